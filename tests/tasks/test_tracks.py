"""Boxes by second, of tracking and spatial-temporal grounding: a second formula for each metric."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spans import pairs

from rmsd_jax.tasks import answers

MANY = settings(max_examples=1_000, deadline=None)
PLACES = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 20)] * 2).map(
  lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
TRACKS = st.dictionaries(st.integers(0, 9), PLACES, min_size=1, max_size=6)


@MANY
@given(TRACKS, TRACKS)
def test_mean_box_iou_agrees_with_counting_pixels(boxes, truth):
  """The second formula: shared and joint pixels of pictures, a missing second an empty picture."""

  def picture(corners):
    pixels = np.zeros((60, 60), bool)
    if corners is not None:
      pixels[corners[1] : corners[3], corners[0] : corners[2]] = True
    return pixels

  scores = []
  for second, corners in truth.items():
    a, b = picture(boxes.get(second)), picture(corners)
    scores.append((a & b).sum() / (a | b).sum())
  assert answers.mean_box_iou(boxes, truth) == pytest.approx(np.mean(scores))
  given_seconds = [second in boxes for second in truth]
  assert answers.covered(boxes, truth) == pytest.approx(np.mean(given_seconds))


@MANY
@given(pairs(0, 30), pairs(0, 30), TRACKS, TRACKS)
def test_tube_iou_is_half_time_and_half_boxes(a, b, boxes, truth):
  """The second formula: seconds counted one by one, boxes cell by cell."""
  shared = sum(a[0] <= s < a[1] and b[0] <= s < b[1] for s in range(31))
  joint = sum(a[0] <= s < a[1] or b[0] <= s < b[1] for s in range(31))
  cells = lambda c: {(x, y) for x in range(c[0], c[2]) for y in range(c[1], c[3])}
  overlaps = [
    len(cells(boxes[s]) & cells(box)) / len(cells(boxes[s]) | cells(box)) if s in boxes else 0.0
    for s, box in truth.items()
  ]
  expected = shared / joint / 2 + sum(overlaps) / len(truth) / 2
  got = answers.tube_iou((a, boxes), (b, truth))
  assert got == pytest.approx(expected) and 0 <= got <= 1
  assert answers.tube_iou((b, truth), (b, truth)) == 1


def test_leaving_out_a_second_never_helps():
  truth = {0: (0, 0, 10, 10), 1: (0, 0, 10, 10)}
  both = {0: (0, 0, 10, 10), 1: (9, 9, 30, 30)}
  assert answers.mean_box_iou(both, truth) > answers.mean_box_iou({0: both[0]}, truth)


@pytest.mark.parametrize("key", ["-1", "1.0", "01", "", " 1", "1 ", "1e1", "\u0661", "9" * 7])
def test_a_key_that_is_no_second_is_refused(key):
  text = json.dumps({"boxes": {key: [0, 0, 1, 1]}})
  assert answers.track(text) is None
  assert answers.tube(text[:-1] + ', "time": [0, 1]}') is None


def test_a_track_has_at_most_32_boxes_a_tube_more():
  boxes = {str(second): [0, 0, 1, 1] for second in range(answers.MAX_TRACKED + 1)}
  assert answers.as_track({"boxes": boxes}) is None
  assert len(answers.as_tube({"time": [0, 40], "boxes": boxes})[1]) == answers.MAX_TRACKED + 1

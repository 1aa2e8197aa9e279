"""Truths in seconds against the seconds that a prompt shows."""

import json
import math

import numpy as np
import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import clip_truths, records
from rmsd_jax.tasks import registry

TIMES = np.array([[10.0, 11.0], [12.0, 15.0]], np.float32)  # of the frames of a window


def record(task, answer, media=("video",), **more):
  value = {"id": "1", "task": task, "question": "?", "answer": answer, **more}
  value["media"] = [{"type": kind, "path": f"{i}.mp4"} for i, kind in enumerate(media)]
  return records.parse(json.dumps(value), 1, registry.TASKS)


BOX = [0, 0, 9, 9]


@pytest.mark.parametrize(
  ("task", "answer", "words"),
  [
    ("temporal_grounding", [2, 4], "from 2 to 4 s lies outside of the 10 to 15 s"),
    ("temporal_grounding", '{"time": [50, 60]}', "from 50 to 60 s lies outside"),
    ("temporal_grounding", {"time": [0, 11]}, "most of the truth from 0 to 11 s"),
    ("tracking", {"boxes": {"12": BOX, "90": BOX}}, "second 90"),
    ("spatiotemporal_grounding", {"time": [12, 14], "boxes": {"3": BOX}}, "second 3"),
    ("spatiotemporal_grounding", {"time": [2, 4], "boxes": {"12": BOX}}, "from 2 to 4 s"),
  ],
)
def test_a_truth_outside_of_the_frames_is_refused(task, answer, words):
  with pytest.raises(UserError, match=words):
    clip_truths.check(record(task, answer), TIMES)


@pytest.mark.parametrize(
  ("task", "answer"),
  [
    ("temporal_grounding", [12, 14]),
    ("temporal_grounding", [9.5, 15.5]),
    ("tracking", {"boxes": {"10": BOX, "15": BOX, "16": BOX}}),
    ("ocr", "2 to 4"),
  ],
)
def test_a_truth_inside_is_not(task, answer):
  clip_truths.check(record(task, answer), TIMES)


def test_what_is_not_known_is_not_judged():
  clip_truths.check(record("temporal_grounding", [2, 4], ("video", "video")), TIMES)
  clip_truths.check(record("temporal_grounding", [2, 4], ("image",)), np.full((1, 2), math.nan))
  one = record("temporal_grounding", [12, 14], alternatives=[[2, 4]])
  with pytest.raises(UserError, match="from 2 to 4 s"):
    clip_truths.check(one, TIMES)


@pytest.mark.parametrize(
  ("more", "words"),
  [
    ({"alternatives": []}, "1 to 32 further answers"),
    ({"alternatives": "3"}, "1 to 32 further answers"),
    ({"eps_abs": -1}, "eps_abs must be a number of 0 or more"),
    ({"decimals": 1.5}, "decimals must be a whole number"),
    ({"decimals": 1, "eps_rel": 0.1}, "exclude each other"),
  ],
)
def test_further_fields_of_a_truth_are_checked(more, words):
  with pytest.raises(records.RecordFault, match=words):
    record("numerical", 3, **more)
  assert record("numerical", 3).answer == 3
  assert record("numerical", 3, decimals=1).answer == {"answer": 3, "decimals": 1}

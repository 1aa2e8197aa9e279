"""When, where, open answers and rule-v1 against tables of replies, and hostile replies."""

import json
import pathlib
import time

import pytest
from tasks_hostile import replies

from rmsd_jax.benchmarks import grounding, math_rules, open_answers

HERE = pathlib.Path(__file__).parent


def lines(name, skip):
  return [line for line in (HERE / name).read_text("utf-8").split("\n")[skip:] if line]


def test_intervals_are_read_as_the_table_says():
  rows = [line.split(" ", 3) for line in lines("time_forms.txt", 1)]
  assert len(rows) >= 60
  for *values, reply in rows:
    for parser, value in zip(grounding.PARSERS, values, strict=True):
      wanted = None if value == "-" else tuple(map(float, value.split(",")))
      assert grounding.interval_in(json.loads(reply), parser) == wanted, (parser, reply)


def test_boxes_are_read_as_the_table_says():
  rows = [line.split(" ", 3) for line in lines("box_forms.txt", 2)]
  assert len(rows) >= 60
  truth = [("5", (1.0, 2.0, 3.0, 4.0)), ("6", (0.0, 0.0, 10.0, 10.0))]
  for *values, reply in rows:
    for parser, value in zip(grounding.PARSERS, values, strict=True):
      ious = grounding.ious(truth, grounding.boxes_in(json.loads(reply), parser))
      assert ious == pytest.approx(list(map(float, value.split(","))), abs=1e-3), (parser, reply)


def test_open_answers_are_right_where_the_table_says():
  rows = lines("open_forms.txt", 1)
  assert len(rows) >= 60
  decoder = json.JSONDecoder()
  for row in rows:
    truth, end = decoder.raw_decode(row)
    right, reply = row[end + 1 :].split(" ", 1)
    assert open_answers.right(truth, open_answers.said(json.loads(reply))) == bool(int(right)), row


def test_rule_v1_is_as_the_table_says():
  options = ["oak", "pine", "145°", "3/8"]
  rows = [json.loads(line) for line in lines("math_forms.txt", 2)]
  kinds = [row[0] for row in rows]
  assert min(kinds.count(kind) for kind in ("choice", "mathvista", "mathverse")) >= 45
  for kind, *row in rows:
    if kind == "choice":
      reply, strict, nearest = row
      assert math_rules.choice(reply, options, "ABCD") == strict, reply
      assert math_rules.choice(reply, options, "ABCD", nearest=True) == nearest, reply
    elif kind == "mathvista":
      type_, precision, truth, reply, right = row
      assert math_rules.mathvista(reply, type_, precision, truth)[0] == right, row
    else:
      truth, reply, right = row
      assert math_rules.mathverse(reply, truth)[0] == right, row


@pytest.mark.parametrize(
  "truth, options, letters",
  [
    ("C", ["1", "2", "3"], "C"),
    ("(B)", ["1", "2"], "B"),
    ("C\nD", list("abcdef"), "CD"),
    ("A\nC", list("abcd"), "AC"),
    ("False", ["True", "False"], "B"),
    ("B. 45", ["30", "45"], "B"),
    ("090^\\circ T", ["045^\\circ T", "090^\\circ T"], "B"),
    ("12", ["3", "4"], ""),
  ],
)
def test_truths_of_mathverse_are_cleaned(truth, options, letters):
  assert math_rules.mathverse_letters(truth, options) == letters


@pytest.mark.parametrize("end", ["\\boxed{7}", "The answer is 7.", "$$\n7\n$$", "7"])
def test_an_answer_behind_long_reasoning_without_tags_is_read(end):
  reply = "I count the dots once more.\n" * 1_000 + end
  assert math_rules.mathvista(reply, "integer", None, "7") == (True, "7")
  assert math_rules.mathverse(reply, "7")[0]


def test_nothing_that_a_model_writes_crashes_a_reader_or_takes_long():
  readers = {
    **{f"when {p}": lambda text, p=p: grounding.interval_in(text, p) for p in grounding.PARSERS},
    **{f"where {p}": lambda text, p=p: grounding.boxes_in(text, p) for p in grounding.PARSERS},
    "open": open_answers.said,
    "choice": lambda text: math_rules.choice(text, ["a", "b"], "AB", nearest=True),
    "integer": lambda text: math_rules.mathvista(text, "integer", None, "7"),
    "float": lambda text: math_rules.mathvista(text, "float", 2, "0.25"),
    "list": lambda text: math_rules.mathvista(text, "list", None, "[1, 2]"),
    "number": lambda text: math_rules.mathverse(text, "35\u63b3"),
    "word": lambda text: math_rules.mathverse(text, "rhombus"),
  }
  for reply in replies():
    for name, read in readers.items():
      start = time.process_time()
      read(reply)
      assert time.process_time() - start < 1, (name, reply[:60])


@pytest.mark.parametrize(
  "truth, found, iou",
  [
    ((4.2, 9.0), (4.2, 9.0), 1.0),
    ((0.0, 10.0), (5.0, 10.0), 0.5),
    ((0.0, 2.0), (8.0, 10.0), 0.0),
    ((0.0, 4.0), (2.0, 6.0), 2 / 6),
    ((0.0, 4.0), None, 0.0),
    ((3.0, 3.0), (3.0, 3.0), 0.0),
  ],
)
def test_temporal_iou_is_over_the_hull(truth, found, iou):
  assert grounding.temporal_iou(truth, found) == pytest.approx(iou)


def test_boxes_in_thousandths_become_pixels():
  found = {"3": [(0.0, 500.0, 1000.0, 1000.0)]}
  assert grounding.in_pixels(found, "relative-1000", 1280, 720) == {"3": [(0, 360, 1280, 720)]}
  assert grounding.in_pixels(found, "pixels", 1280, 720) == found

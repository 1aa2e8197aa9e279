"""Readers and metrics: accepted forms, hostile answers, and a second formula for each metric."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from spans import pairs

from rmsd_jax.tasks import answers, registry

OPTIONS = ("A. A cat", "B. two dogs", "C. 3.5 m", "(D) none")
MANY = settings(max_examples=1_000, deadline=None)  # of second formulas
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
MODEST = st.floats(-1e6, 1e6).map(lambda x: round(x, 3)) | st.integers(-50, 50).map(float)
HOSTILE = [
  pytest.param(text, id=name)
  for name, text in {
    "empty": "",
    "space": " ",
    "null": "\x00",
    "lone surrogate": "\ud800",
    "deep lists": "[" * 100_000,
    "deep objects": '{"time":' * 50_000,
    "long number": "9" * 100_000,
    "dashes": "-" * 99_999,
  }.items()
]


BOXES = st.tuples(pairs(0, 40), pairs(0, 40)).map(lambda p: (p[0][0], p[1][0], p[0][1], p[1][1]))


# Option letters


@pytest.mark.parametrize(
  ("text", "letter"),
  [
    ("A", "A"),
    (" b\n", "B"),
    ("(A)", "A"),
    ("(a).", "A"),
    ("A.", "A"),
    ("A)", "A"),
    ("A:", "A"),
    ("A. A cat", "A"),
    ("A. a  CAT.", "A"),
    ("(B) two dogs", "B"),
    ("C: 3.5 m", "C"),
    ("D. none", "D"),
  ],
)
def test_option_letter_accepts(text, letter):
  assert answers.option_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
  "text",
  [
    "E",
    "A. two dogs",
    "A, B",
    "A or B",
    "AB",
    "A.B",
    "A. B.",
    "A cat",  # begins with a letter that is no label
    "two dogs",
    "the answer is A",
    "Answer: A",
    "A. A cat B. two dogs",
    "1",
    "Ａ",
    *HOSTILE,
  ],
)
def test_option_letter_refuses(text):
  assert answers.option_letter(text, OPTIONS) is None


@given(st.text(max_size=20), st.lists(st.text(max_size=10), max_size=4))
def test_option_letter_is_among_the_options(text, options):
  letter = answers.option_letter(text, options)
  assert letter is None or letter in [
    label[0] for label in map(answers.split_label, options) if label
  ]


# Numbers


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("7", 7),
    (" -7.50 ", -7.5),
    ("+3", 3),
    (".5", 0.5),
    ("5.", 5),
    ("1,234", 1234),
    ("12,345,678.9", 12345678.9),
    ("1e3", 1000),
    ("\u22122", -2),
    ("007", 7),
  ],
)
def test_number_accepts(text, value):
  assert answers.number(text) == value


@pytest.mark.parametrize(
  "text",
  "1,23 0,123 ,5 1,2345 1234,567 1,,234 . - e5 nan NaN inf -Infinity 1e999 0x10 1_000".split()
  + ["5%", "$5", "5m", "5 m", "1/2", "٣", "1 2", "about 5", "5 or 6", "- 5", *HOSTILE],
)
def test_number_refuses(text):
  assert answers.number(text) is None


@given(FLOATS)
def test_number_reads_every_float_back(value):
  assert answers.number(repr(value)) == value


@given(st.integers(-(10**15), 10**15))
def test_number_reads_thousands_commas_back(value):
  assert answers.number(f"{value:,}") == value


@given(st.text("0123456789.,+-eE \u2212", max_size=12))
def test_number_agrees_with_float_where_there_is_no_comma(text):
  value = answers.number(text)
  assert value is None or math.isfinite(value)
  if "," not in text:
    try:
      wanted = float(text.replace("\u2212", "-"))
    except ValueError:
      wanted = math.inf
    assert value == (wanted if math.isfinite(wanted) else None)


# JSON answers


@pytest.mark.parametrize(
  "text",
  [
    "NaN",
    "[Infinity]",
    '{"a": 1, "a": 2}',
    '{"a": 1} x',
    "{'a': 1}",
    '{"a": 1,}',
    "[" * (answers.MAX_BRACKETS + 1) + "]" * (answers.MAX_BRACKETS + 1),
    '["]",' * 40 + "[" * 40,
    pytest.param("[" + " " * answers.MAX_CHARS + "]", id="long"),
    *HOSTILE,
  ],
)
def test_strict_json_refuses(text):
  assert answers.strict_json(text) is None


@given(
  st.recursive(
    st.none() | st.booleans() | FLOATS | st.text(max_size=5),
    lambda inner: (
      st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
  )
)
def test_strict_json_reads_what_json_wrote(value):
  assert answers.strict_json(json.dumps(value)) == value


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ('{"time": [0, 2.5]}', (0.0, 2.5)),
    ('\n{"time":[1e0,12]} ', (1.0, 12.0)),
  ],
)
def test_interval_accepts(text, value):
  assert answers.interval(text) == value


@pytest.mark.parametrize(
  "text",
  [
    "[0, 2]",
    "0 to 2",
    '{"time": [2, 2]}',
    '{"time": [3, 2]}',
    '{"time": [-1, 2]}',
    '{"time": [0, 1, 2]}',
    '{"time": [0]}',
    '{"time": "0, 2"}',
    '{"time": ["0", "2"]}',
    '{"time": [false, true]}',
    '{"time": [0, null]}',
    '{"time": [0, NaN]}',
    '{"time": [0, Infinity]}',
    '{"time": [0, 1e999]}',
    '{"time": [0, ' + "9" * 3_000 + "]}",
    '{"time": [0, 2], "time": [2, 4]}',
    '{"time": [0, 2], "also": [2, 4]}',
    '{"times": [0, 2]}',
    '```json\n{"time": [0, 2]}\n```',
    *HOSTILE,
  ],
)
def test_interval_refuses(text):
  assert answers.interval(text) is None


def test_box_accepts():
  assert answers.box('{"boxes": [0, 10.5, 1000, 20]}') == (0.0, 10.5, 1000.0, 20.0)


@pytest.mark.parametrize(
  "text",
  [
    '{"boxes": [10, 10, 10, 20]}',
    '{"boxes": [10, 20, 20, 10]}',
    '{"boxes": [-1, 0, 5, 5]}',
    '{"boxes": [0, 0, 5, 1000.5]}',
    '{"boxes": [[0, 0, 5, 5]]}',
    '{"boxes": [0, 0, 5]}',
    '{"boxes": [true, 0, 5, 5]}',
    '{"boxes": [0, 0, NaN, 5]}',
    '{"box": [0, 0, 5, 5]}',
    *HOSTILE,
  ],
)
def test_box_refuses(text):
  assert answers.box(text) is None


@pytest.mark.parametrize("value", [True, None, "1", [1], math.nan, math.inf, 10**400])
def test_as_number_refuses(value):
  assert answers.as_number(value) is None


# Metrics


SPELLINGS = ("{0}", "({0})", "{0}.", " {0} ", "{0}. {1}", "({0}) {1}")


@MANY
@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from(SPELLINGS))
def test_multiple_choice_is_the_equality_of_letters(said, truth, spelling):
  options = ("A. A cat", "B. two dogs", "C. 3.5 m", "D. none")
  answer = spelling.format("ABCD"[said], options[said][3:])
  task = registry.get("multiple_choice")
  assert task.check(answer, options, "ABCD"[truth]) == 1
  assert task.metric(answer, options, "ABCD"[truth]) == float(said == truth)


@MANY
@given(MODEST, MODEST)
@example(0.125, 0.13)
@example(0.125, 0.12)
@example(2.675, 2.68)
@example(-0.005, 0.0)
def test_default_numeric_accuracy_is_decimal_rounding(a, b):
  def cents(x):
    """Of the number as it is written: halves away from zero."""
    places = Fraction(str(x)) * 100
    whole = math.floor(abs(places) + Fraction(1, 2))
    return whole if places > 0 else -whole

  assert answers.numeric_accuracy(a, b) == float(cents(a) == cents(b))


@MANY
@given(FLOATS, FLOATS, st.floats(0, 10), st.floats(0, 1))
def test_numeric_accuracy_with_tolerances(a, b, eps_abs, eps_rel):
  assume(eps_abs > 0 or eps_rel > 0)
  a_, b_, absolute, relative = (Fraction(repr(x)) for x in (a, b, eps_abs, eps_rel))
  expected = abs(a_ - b_) <= absolute or abs(a_ - b_) <= relative * abs(b_)
  assert answers.numeric_accuracy(a, b, eps_abs=eps_abs, eps_rel=eps_rel) == float(expected)
  assert answers.numeric_accuracy(b, b, eps_abs=eps_abs, eps_rel=eps_rel) == 1.0


@MANY
@given(st.integers(-3_000, 3_000), st.integers(-300, 300).filter(bool))
@example(95, 100)
@example(90, 100)
@example(50, 100)
def test_mean_relative_accuracy_in_exact_fractions(p, t):
  thetas = [Fraction(percent, 100) for percent in range(50, 100, 5)]
  share = Fraction(sum(abs(Fraction(p - t, t)) < 1 - theta for theta in thetas), len(thetas))
  assert answers.mean_relative_accuracy(float(p), float(t)) == float(share)


@pytest.mark.parametrize(
  ("p", "t", "score"),
  [(1.045, 1.1, 0.9), (0.855, 0.9, 0.9), (2.85, 3, 0.9), (0.7, 1, 0.4), (0.11, 0.1, 0.8),
   (0.07, 0.1, 0.4), (1.15, 1, 0.7), (33.6, 32, 0.9)],
)  # fmt: skip
def test_mean_relative_accuracy_has_no_rounding_error(p, t, score):
  """An error of exactly 5, 10, 15 or 30 % is not below that threshold, however floats round."""
  assert answers.mean_relative_accuracy(p, t) == score


def test_mean_relative_accuracy_at_known_points():
  assert [answers.mean_relative_accuracy(p, 100.0) for p in (100, 95, 96, 51, 50, 0)] == [
    1.0,
    0.9,
    1.0,
    0.1,
    0.0,
    0.0,
  ]
  assert answers.mean_relative_accuracy(0.0, 0.0) == 1.0
  assert answers.mean_relative_accuracy(1e-9, 0.0) == 0.0


def edit_distance(a, b):
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    last, row[0] = row[0], i
    for j, y in enumerate(b, 1):
      last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
  return row[-1]


WORDS = st.lists(st.sampled_from(["3", "7", "cat", "Cat", "ca", "é"]), max_size=8)


@MANY
@given(WORDS, WORDS.filter(bool), st.sampled_from([" ", "\n", " \t\u00a0"]))
def test_ocr_accuracy_is_one_minus_edit_distance(words, truth, space):
  expected = max(0.0, 1.0 - edit_distance(words, truth) / len(truth))
  assert answers.ocr_accuracy(space.join(words), " ".join(truth)) == pytest.approx(expected)


def test_ocr_accuracy_at_the_edges():
  assert answers.ocr_accuracy("3 7", " 3\n7 ") == 1.0
  assert answers.ocr_accuracy("", "3 7") == 0.0
  assert answers.ocr_accuracy("3 7 " * 200_000, "3 7") == 0.0
  assert (answers.ocr_accuracy("", " "), answers.ocr_accuracy("3", "")) == (1.0, 0.0)


@pytest.mark.parametrize(
  ("said", "truth"),
  [
    ("caf\u00e9", "cafe\u0301"),
    ("\uac00\ub098", "\u1100\u1161\u1102\u1161"),
    ("\u212b 3", "\u00c5 3"),
    ("STOP\u200b", "STOP"),
    ("a\ufeffb", "ab"),
    ("co\u00adop", "coop"),
  ],
)
def test_ocr_accuracy_takes_the_same_letters_in_any_normal_form(said, truth):
  assert answers.ocr_accuracy(said, truth) == answers.ocr_accuracy(truth, said) == 1.0
  assert answers.ocr_accuracy("cafe", "caf\u00e9") == 0.0


def test_what_cannot_be_seen_is_no_text():
  for text in ("\u200b", "\ufeff \u2060", "\u00ad", "\u3164", "\u2800", "\ufe0f", "\u0301", "\x00"):
    assert not answers.visible(text)
  for text in ("a", "\u200b7", "\U0001f600", "\u732b", "-", "e\u0301"):
    assert answers.visible(text)


@MANY
@given(pairs(0, 30), pairs(0, 30))
def test_temporal_iou_counts_seconds(a, b):
  seconds_a, seconds_b = (set(range(int(x[0]), int(x[1]))) for x in (a, b))
  expected = len(seconds_a & seconds_b) / len(seconds_a | seconds_b)
  assert answers.temporal_iou(a, b) == pytest.approx(expected)


@MANY
@given(BOXES, BOXES)
def test_box_iou_counts_cells(a, b):
  def cells(box):
    grid = np.zeros((40, 40), bool)
    x1, y1, x2, y2 = map(int, box)
    grid[y1:y2, x1:x2] = True
    return grid

  expected = np.sum(cells(a) & cells(b)) / np.sum(cells(a) | cells(b))
  assert answers.box_iou(a, b) == pytest.approx(expected)


ENDS = st.floats(0, 1e308)
EDGES = st.floats(0, 1000)


@MANY
@given(st.tuples(ENDS, ENDS, ENDS, ENDS), st.tuples(*[EDGES] * 8))
def test_ious_are_bounded_symmetric_and_one_for_equals(times, edges):
  a, b = tuple(sorted(times[:2])), tuple(sorted(times[2:]))
  assume(a[0] < a[1] and b[0] < b[1])
  xs, ys = (sorted(edges[:2]), sorted(edges[2:4])), (sorted(edges[4:6]), sorted(edges[6:]))
  boxes = [(x[0], y[0], x[1], y[1]) for x, y in zip(xs, ys, strict=True)]
  assume(all(box[0] < box[2] and box[1] < box[3] for box in boxes))
  for iou, one, other in ((answers.temporal_iou, a, b), (answers.box_iou, *boxes)):
    value = iou(one, other)
    assert 0.0 <= value <= 1.0
    assert value == iou(other, one)
  assert answers.temporal_iou(a, a) == 1.0


def lcs(a, b):
  if not a or not b:
    return 0
  if a[-1] == b[-1]:
    return 1 + lcs(a[:-1], b[:-1])
  return max(lcs(a[:-1], b), lcs(a, b[:-1]))


@MANY
@given(*[st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)] * 2)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(words, truth):
  expected = 2 * lcs(words, truth) / (len(words) + len(truth))
  assert answers.rouge_l(" ".join(words), " ".join(truth)) == pytest.approx(expected)


def test_rouge_l_of_one_right_word_is_one():
  """ROUGE with bigrams would punish it for having none."""
  assert answers.rouge_l("Cat.", "cat") == 1.0
  assert answers.rouge_l("", "cat") == 0.0

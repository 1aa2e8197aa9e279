"""Quality of teacher responses."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmsd_jax.core.errors import UserError
from rmsd_jax.rollouts import grading
from rmsd_jax.tasks import quality, registry, reward
from rmsd_jax.tasks.quality import Score

OPTIONS = ("A. cat", "B. dog")
CASES = {  # task: (reference, [(answer, R_task, metric)])
  "multiple_choice": ("B", [("B", 1, 1), ("(b)", 1, 1), ("A", 1, 0), ("C", 0, 0), ("dog", 0, 0)]),
  "numerical": (1234.5, [("1,234.5", 1, 1), ("1234.501", 1, 1), ("1235", 1, 0), ("many", 0, 0)]),
  "regression": (100, [("100", 1, 1), ("80", 1, 0.6), ("49", 1, 0), ("100 m", 0, 0)]),
  "math": ("\\frac{1}{2}", [("0.5", 1, 1), ("2/4", 1, 1), ("2", 1, 0), ("half", 1, 0), ("", 0, 0)]),
  "ocr": ("3 7 1 1", [("3 7 1 1", 1, 1), ("3 7 1", 1, 0.75), ("no", 1, 0), ("", 0, 0)]),
  "temporal_grounding": (
    [2, 4],
    [('{"time": [2, 4]}', 1, 1), ('{"time": [3, 5]}', 1, 1 / 3), ('{"time": [4, 2]}', 0, 0)],
  ),
  "spatial_grounding": (
    [0, 0, 100, 100],
    [('{"boxes": [0, 0, 100, 50]}', 1, 0.5), ('{"boxes": [0, 0, 2000, 50]}', 0, 0)],
  ),
  "spatiotemporal_grounding": (  # half for the interval, a quarter for each of two boxes
    {"time": [2, 4], "boxes": {"2": [0, 0, 10, 10], "3": [0, 0, 10, 10]}},
    [
      ('{"time": [2, 4], "boxes": {"2": [0, 0, 10, 10], "3": [0, 0, 10, 10]}}', 1, 1),
      ('{"time": [3, 5], "boxes": {"2": [0, 0, 10, 5], "3": [0, 0, 10, 10]}}', 1, 1 / 6 + 3 / 8),
      ('{"time": [2, 4], "boxes": {"3": [0, 0, 10, 10], "9": [0, 0, 9, 9]}}', 0.75, 0.75),
      ('{"time": [2, 4], "boxes": {}}', 0, 0),
      ('{"boxes": {"2": [0, 0, 10, 10], "3": [0, 0, 10, 10]}}', 0, 0),
    ],
  ),
  "tracking": (
    {"boxes": {"0": [0, 0, 10, 10], "5": [0, 0, 10, 10]}},
    [
      ('{"boxes": {"0": [0, 0, 10, 10], "5": [0, 0, 10, 10]}}', 1, 1),
      ('{"boxes": {"0": [0, 0, 10, 5], "5": [0, 0, 10, 10], "6": [0, 0, 1, 1]}}', 1, 0.75),
      ('{"boxes": {"5": [0, 0, 10, 10]}}', 0.75, 0.5),
      ('{"boxes": {"7": [0, 0, 10, 10]}}', 0.5, 0),
      ('{"boxes": {"05": [0, 0, 10, 10]}}', 0, 0),
      ('{"boxes": {"0": [0, 0, 10, 10], "0": [0, 0, 10, 10]}}', 0, 0),
      ('{"boxes": [0, 0, 10, 10]}', 0, 0),
    ],
  ),
  "open_ended": ("A cat.", [("A cat.", 1, 0), ("Something else", 1, 0), ("", 0, 0)]),
}
ROWS = [(name, reference, *row) for name, (reference, rows) in CASES.items() for row in rows]


def render(answer):
  return f"<think>why</think>\n<answer>{answer}</answer>"


def test_every_task_has_cases_here():
  assert set(CASES) == set(registry.TASKS)


@pytest.mark.parametrize(("name", "reference", "answer", "inner", "content"), ROWS)
def test_quality_is_valid_times_metric(name, reference, answer, inner, content):
  task = registry.get(name)
  score = quality.score(task, render(answer), reference, OPTIONS)
  assert (score.outer, score.inner, score.valid) == (1.0, inner, inner == 1)
  assert score.content == pytest.approx(content)
  expected = score.content if task.closed else 1.0
  assert score.quality == (expected if score.valid else 0.0)


@pytest.mark.parametrize(("name", "reference", "answer", "inner", "content"), ROWS)
def test_without_the_outer_format_nothing_counts(name, reference, answer, inner, content):
  del inner, content
  for text in (answer, f"<answer>{answer}</answer>", render(answer) + "!"):
    score = quality.score(registry.get(name), text, reference, OPTIONS)
    assert score == Score(0.0, 0.0, 0.0, False, 0.0, 0.0)


@pytest.mark.parametrize(
  ("finish_reason", "tokens", "max_tokens", "valid"),
  [
    ("stop", 0, None, True),
    ("stop", 56, 56, True),
    ("stop", 57, 56, False),
    ("length", 10, 56, False),
    ("length", 0, None, False),
  ],
)
@pytest.mark.parametrize("name", ["multiple_choice", "open_ended"])
def test_a_cut_off_or_too_long_response_is_not_valid(
  name, finish_reason, tokens, max_tokens, valid
):
  task = registry.get(name)
  score = quality.score(task, render("B"), "B", OPTIONS, finish_reason, tokens, max_tokens)
  assert score.valid is valid
  assert score.quality == float(valid)
  assert score.content == float(task.closed)  # what the text says is kept for the report


@pytest.mark.parametrize("name", sorted(CASES))
@given(text=st.text(max_size=30) | st.text(max_size=30).map(render), length=st.booleans())
def test_bounds_and_implications(name, text, length):
  task, reference = registry.get(name), CASES[name][0]
  score = quality.score(task, text, reference, OPTIONS, "length" if length else "stop")
  for value in (score.outer, score.inner, score.content, score.quality, score.rouge):
    assert isinstance(value, float) and 0.0 <= value <= 1.0
  assert not score.valid or (score.outer == score.inner == 1.0 and not length)
  assert score.quality == 0.0 or score.valid
  assert not task.closed or score.quality <= score.content


def test_open_ended_responses_keep_their_rouge_beside_a_quality_that_ignores_it():
  task = registry.get("open_ended")
  score = quality.score(task, render("a red card"), "the red card", ())
  assert score.quality == 1.0 and score.content == 0.0
  assert score.rouge == pytest.approx(2 / 3)  # 2 of 3 words on either side
  assert quality.score(registry.get("ocr"), render("a red card"), "a red card", ()).rouge == 0.0


@given(st.text(max_size=30).map(render))
def test_teacher_and_student_are_graded_alike(text):
  task = registry.get("ocr")
  score = quality.score(task, text, "a b", ())
  assert (score.outer, score.inner, score.content) == reward.rule_terms(task, text, "a b", ())


def test_a_second_that_lacks_costs_what_is_set():
  """All of a nearly right track, as R-MSD's rule is read, or that second alone."""
  boxes = {str(second): [0, 0, 100 + second, 100] for second in range(4)}
  text = render(json.dumps({"boxes": {k: boxes[k] for k in "012"}}))
  for valid_from, wanted in ((1.0, (False, 0.0)), (0.5, (True, 0.75))):
    task = registry.make_tasks(valid_from=valid_from)["tracking"]
    score = quality.score(task, text, {"boxes": boxes}, ())
    assert (score.valid, score.quality, score.inner) == (*wanted, 0.875)
    terms = grading.rule_terms(
      [[text]], [{"task": "tracking", "answer": {"boxes": boxes}, "options": ()}],
      np.ones((1, 1), bool), {"tracking": task},
    )  # fmt: skip
    assert grading.quality(terms, valid_from) == wanted[1]
  assert quality.version(valid_from=0.5) == f"{quality.SCORER_VERSION} valid_from=0.5"
  for wrong in (0.0, 1.5, float("nan")):
    with pytest.raises(UserError, match="valid_from .*: it is an R_task, above 0 and at most 1"):
      registry.make_tasks(valid_from=wrong)

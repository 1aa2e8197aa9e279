"""The rule terms of the reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import registry, reward

CHOICE = registry.get("multiple_choice")
OCR = registry.get("ocr")
OPEN = registry.get("open_ended")
OPTIONS = ("A. cat", "B. dog")


def render(answer, think="why"):
  return f"<think>{think}</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
  ("task", "text", "terms"),
  [
    (CHOICE, render("B"), (1, 1, 1)),
    (CHOICE, render("A"), (1, 1, 0)),
    (CHOICE, render("dog"), (1, 0, 0)),
    (CHOICE, "B", (0, 0, 0)),
    (CHOICE, "<think>why</think>B", (0, 0, 0)),
    (CHOICE, render("B") + "<answer>A</answer>", (0, 0, 0)),
    (CHOICE, render("A", think="<answer>B</answer>"), (0, 0, 0)),
    (OPEN, render("anything at all"), (1, 1, 0)),
    (OPEN, render("B"), (1, 1, 0)),  # the reference itself: open-ended has no content term
    (OPEN, render(""), (1, 0, 0)),
  ],
)
def test_terms(task, text, terms):
  assert reward.rule_terms(task, text, "B", OPTIONS) == terms


def test_partial_content():
  assert reward.rule_terms(OCR, render("3 8"), "3 7", ()) == (1.0, 1.0, 0.5)


def test_an_empty_answer_does_not_make_the_response_the_graded_text():
  assert reward.rule_terms(OCR, render("", think="3 7"), "3 7", ()) == (1.0, 0.0, 0.0)


@given(st.text() | st.text().map(render))
def test_an_unfinished_response_earns_nothing(text):
  assert reward.rule_terms(CHOICE, text, "B", OPTIONS, finished=False) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("task", registry.TASKS.values(), ids=lambda task: task.name)
@given(text=st.text(max_size=30) | st.text(max_size=30).map(render))
def test_terms_are_bounded_and_each_needs_the_one_before(task, text):
  references = {
    "temporal_grounding": [0, 4],
    "spatial_grounding": [0, 0, 9, 9],
    "spatiotemporal_grounding": {"time": [0, 4], "boxes": {"1": [0, 0, 9, 9]}},
    "tracking": {"boxes": {"1": [0, 0, 9, 9]}},
    "numerical": 3,
    "regression": 3,
  }
  outer, inner, content = reward.rule_terms(task, text, references.get(task.name, "B"), OPTIONS)
  assert outer in (0.0, 1.0)
  assert 0.0 <= inner <= outer
  assert 0.0 <= content <= 1.0
  assert inner > 0 or content == 0


def test_a_bad_reference_stops_instead_of_grading_zero():
  with pytest.raises(UserError, match="multiple_choice"):
    reward.rule_terms(CHOICE, render("A"), "Z", OPTIONS)

"""Questions have one exact answer that the tasks accept, found again from the rendered labels."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.demo import world
from rmsd_jax.demo.questions import KINDS, LETTERS, answer_of, letter_of, option_texts, questions
from rmsd_jax.tasks import registry

TASKS = {  # those that the demo asks
  "multiple_choice", "numerical", "ocr", "temporal_grounding", "spatial_grounding", "open_ended",
}  # fmt: skip
seeds = st.integers(0, 2**32 - 1)


def asked(seed, still=False):
  rng = np.random.default_rng(seed)
  scene = (world.make_still if still else world.make_scene)(rng, "train")
  return scene, questions(scene, rng)


def text_of(answer):
  return json.dumps(answer) if isinstance(answer, dict) else str(answer)


@settings(max_examples=100, deadline=None)
@given(seeds, st.booleans())
def test_the_tasks_accept_every_ground_truth_and_grade_it_as_right(seed, still):
  for question in asked(seed, still)[1]:
    task = registry.get(question.task)
    assert task.validate(question.answer, question.options) is None
    text = text_of(question.answer)
    assert task.check(text, question.options, question.answer) == 1.0
    assert task.metric(text, question.options, question.answer) == 1.0


def seen(scene):
  """Per second {digit: (colour, cell)}, from the labels: a second way to know the scene."""
  labels = world.cell_labels(scene)
  return [
    {
      int(digit): (world.COLOUR_NAMES[colour], cell)
      for cell, (digit, colour) in enumerate(zip(digits, colours, strict=True))
      if digit != world.NO_DIGIT
    }
    for digits, colours in zip(labels.digit_FG, labels.colour_FG, strict=True)
  ]


def expected(question, by_second):
  """The value of a question, derived from the labels alone."""
  order = list(dict.fromkeys(digit for second in by_second for digit in second))
  times = [i for i, second in enumerate(by_second) if question.digit in second]
  life = [second[question.digit] for second in by_second if question.digit in second]
  match question.kind:
    case "colour":
      return life[0][0]
    case "direction":
      step = np.subtract(divmod(life[-1][1], 3), divmod(life[0][1], 3))
      return {(0, -1): "left", (0, 1): "right", (-1, 0): "up", (1, 0): "down"}[tuple(step)]
    case "first":
      return order[0]
    case "count_at":
      number = int("".join(filter(str.isdigit, question.text)))
      return tuple(digit for digit in order if digit in by_second[number])
    case "when":
      return times[0], times[-1] + 1
    case "where":
      return world.cell_box(life[0][1])
    case "describe":
      colours = {digit: colour for second in by_second for digit, (colour, _) in second.items()}
      return tuple((colours[digit], digit) for digit in order)
  return tuple(order)


@settings(max_examples=100, deadline=None)
@given(seeds, st.booleans())
def test_the_answers_are_those_that_the_labels_give(seed, still):
  scene, all_asked = asked(seed, still)
  by_second = seen(scene)
  for question in all_asked:
    value = expected(question, by_second)
    assert question.value == value, question
    assert question.answer == answer_of(question.kind, value, question.options)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_options_are_four_different_texts_with_one_that_is_right(seed):
  for question in asked(seed)[1]:
    if question.task == "multiple_choice":
      texts = option_texts(question.options)
      assert len(set(texts)) == 4
      assert [option[:3] for option in question.options] == [f"{x}. " for x in LETTERS]
      assert texts[LETTERS.index(question.answer)] == str(question.value)
    else:
      assert question.options == ()


def test_all_tasks_and_kinds_come_up_and_no_letter_is_favoured():
  kinds, letters = collections.Counter(), collections.Counter()
  for seed in range(400):
    for question in asked(seed, still=seed % 6 == 0)[1]:
      kinds[question.kind] += 1
      if question.task == "multiple_choice":
        letters[question.answer] += 1
  assert set(kinds) == set(KINDS)
  assert {task for task, _ in KINDS.values()} == TASKS <= set(registry.TASKS)
  shares = np.array([letters[letter] for letter in LETTERS]) / letters.total()
  assert np.abs(shares - 0.25).max() < 0.05


def test_answers_by_example():
  assert letter_of(5, ("A. 3", "B. 5")) == "B"
  assert answer_of("sum", (3, 5, 7)) == 15
  assert answer_of("count_at", ()) == 0
  assert answer_of("read", (3, 5)) == "3 5"
  assert answer_of("describe", (("red", 3), ("orange", 5))) == "a red 3, then an orange 5"
  with pytest.raises(ValueError, match="no kind of question 'x'"):
    answer_of("x", 1)

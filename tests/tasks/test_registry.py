"""The table of tasks: good ground truths, bad ones, hostile answers."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import registry

OPTIONS = ("A. A cat", "B. two dogs", "C. 3.5 m", "(D) none")
HOSTILE = {
  "empty": "",
  "null": "\x00",
  "lone surrogate": "\ud800",
  "deep lists": "[" * 100_000,
  "deep objects": '{"boxes":' * 50_000,
  "long number": "9" * 100_000,
  "many words": "3 7 " * 100_000,
}
CASES = {name: (task.example.truth, task.example.options) for name, task in registry.TASKS.items()}
TASK_NAMES = sorted(registry.TASKS)


def test_only_open_ended_has_no_metric():
  assert [name for name in TASK_NAMES if not registry.TASKS[name].closed] == ["open_ended"]


@pytest.mark.parametrize("name", TASK_NAMES)
def test_the_wrong_example_is_in_format_and_wrong(name):
  task, (truth, options) = registry.get(name), CASES[name]
  assert task.check(task.example.wrong, options, truth) == 1.0
  assert task.metric(task.example.wrong, options, truth) == 0.0


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_good_truth_is_its_own_perfect_answer(name):
  task, (truth, options) = registry.get(name), CASES[name]
  answer = registry.spelled(truth)
  assert task.name == name
  assert task.validate(truth, options) is None
  assert task.check(answer, options, truth) == 1.0
  assert task.metric(answer, options, truth) == 1.0


@pytest.mark.parametrize("name", TASK_NAMES)
@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_no_answer_makes_a_task_raise(name, answer):
  task, (truth, options) = registry.get(name), CASES[name]
  assert task.check(answer, options, truth) == (
    1.0 if name in ("ocr", "math", "open_ended") and answer.strip("\x00 ") else 0.0
  )
  assert 0.0 <= task.metric(answer, options, truth) <= 1.0


JSONISH = st.sampled_from(
  ['{"time": [', '{"boxes": [', "]}", "0", "1.5", ", ", "900", "A", "(B)", " 3"]
)


@pytest.mark.parametrize("name", TASK_NAMES)
@settings(deadline=None)  # the first formula waits for a process that imports SymPy
@given(answer=st.text(max_size=40) | st.lists(JSONISH, max_size=9).map("".join))
def test_metrics_are_bounded_and_need_the_format(name, answer):
  task, (truth, options) = registry.get(name), CASES[name]
  inner, content = task.check(answer, options, truth), task.metric(answer, options, truth)
  assert 0.0 <= content <= 1.0
  assert inner >= 0.5 or content == 0.0


@pytest.mark.parametrize(
  ("name", "truth", "options", "words"),
  [
    ("multiple_choice", "E", OPTIONS, "'E' is not the letter"),
    ("multiple_choice", 1, OPTIONS, "1 is not the letter"),
    ("multiple_choice", "A", (), "0 options"),
    ("multiple_choice", "A", ("A. x", "a movie"), "'a movie' has no label"),
    ("multiple_choice", "A", ("A. x", "a. y"), "A, A repeat"),
    ("numerical", "many", (), "finite number"),
    ("numerical", True, (), "finite number"),
    ("numerical", math.nan, (), "finite number"),
    ("numerical", None, (), "finite number"),
    ("regression", 0, (), "other than 0"),
    ("ocr", " ", (), "not empty"),
    ("ocr", 37, (), "not empty"),
    ("ocr", "a </think> b", (), "the tag </think>"),
    ("math", "5</answer>", (), "the tag </answer>"),
    ("math", "...", (), "has no value"),
    ("math", "$$", (), "has no value"),
    ("math", "\\boxed{}", (), "has no value"),
    ("math", "\\quad", (), "has no value"),
    ("temporal_grounding", [2, 1], (), "start < end"),
    ("temporal_grounding", {"time": [0, 1], "x": 1}, (), "start < end"),
    ("spatial_grounding", [0, 0, 1001, 5], (), "0..1000"),
    ("tracking", {"boxes": {}}, (), "1 to 32 boxes"),
    ("tracking", {"boxes": {str(i): [0, 0, 1, 1] for i in range(33)}}, (), "1 to 32 boxes"),
    ("spatiotemporal_grounding", {"time": [0, 1], "boxes": {"a": [0, 0, 1, 1]}}, (), "second"),
    ("spatiotemporal_grounding", [0, 1], (), "second"),
    (
      "spatiotemporal_grounding",
      {"time": [0, 200], "boxes": {str(i): [100, 200, 300, 400] for i in range(200)}},
      (),
      "more characters",
    ),
    ("spatial_grounding", {"boxes": [[0, 0, 1, 5]]}, (), "0..1000"),
    ("open_ended", ["x" * 500], (), "..."),
  ],
)
def test_a_bad_truth_is_faulted_and_never_graded(name, truth, options, words):
  task = registry.get(name)
  fault = task.validate(truth, options)
  assert words in fault
  assert "\n" not in fault and len(fault) < 200
  with pytest.raises(UserError, match=name):
    task.metric("A", options, truth)


@pytest.mark.parametrize("truth", [[1, 2.5], {"time": [1, 2.5]}, '{"time": [1, 2.5]}'])
def test_a_structured_truth_may_be_list_object_or_text(truth):
  task = registry.get("temporal_grounding")
  assert task.validate(truth, ()) is None
  assert task.metric('{"time": [1, 4]}', (), truth) == 0.5


def test_tolerances_reach_the_numerical_task_alone():
  loose, default = registry.make_tasks(eps_rel=0.1)["numerical"], registry.get("numerical")
  assert (loose.metric("109", (), 100), default.metric("109", (), 100)) == (1.0, 0.0)
  assert (loose.metric("111", (), 100), default.metric("100.001", (), 100)) == (0.0, 1.0)
  for eps in (-1.0, math.nan):
    with pytest.raises(UserError, match="eps_abs"):
      registry.make_tasks(eps_abs=eps)


def test_an_unknown_task_is_refused_with_the_names_there_are():
  with pytest.raises(UserError, match="'riddle'.*multiple_choice, numerical"):
    registry.get("riddle")


@pytest.mark.parametrize(
  ("name", "truth", "options", "words"),
  [
    ("multiple_choice", "B", ("A", "C", "B", "D"), "A, C, B, D are out of order"),
    ("multiple_choice", "['A', 'B']", ("A. x", "B. y"), "several truths in one string"),
    ("ocr", "['STOP', 'Stop']", (), "several truths in one string"),
    ("math", '["24/7", "3.43"]', (), "several truths in one string"),
    ("spatial_grounding", [0.1, 0.2, 0.3, 0.4], (), "lie in 0..1"),
    ("tracking", {"boxes": {"0": [0, 0, 0.5, 1], "1": [0, 0, 1, 1]}}, (), "lie in 0..1"),
    (
      "spatiotemporal_grounding",
      {"time": [0, 1], "boxes": {"0": [0.1, 0.1, 0.2, 0.2]}},
      (),
      "lie in 0..1",
    ),
    ("numerical", {"answer": 1, "alternatives": ["many"]}, (), "'many' is not a finite number"),
    ("ocr", {"answer": "x", "eps_abs": 1}, (), "eps_abs is for tasks whose answers are numbers"),
  ],
)
def test_a_truth_that_no_right_answer_can_meet_is_faulted(name, truth, options, words):
  assert words in registry.get(name).validate(truth, options)


@pytest.mark.parametrize(
  ("name", "truth", "said", "earned"),
  [
    ("numerical", {"answer": 3, "alternatives": [7, 9.5]}, "9.5", 1),
    ("numerical", {"answer": 3, "alternatives": [7, 9.5]}, "8", 0),
    ("numerical", {"answer": 3, "eps_abs": 0.5}, "3.5", 1),
    ("numerical", {"answer": 0.3, "eps_abs": 0.1}, "0.2", 1),
    ("numerical", {"answer": 200, "eps_rel": 0.01}, "203", 0),
    ("numerical", {"answer": 2.5, "decimals": 0}, "3.4", 1),
    ("math", {"answer": "3.14", "decimals": 2}, "3.1416", 1),
    ("math", {"answer": "3.14", "eps_abs": 0.001}, "3.1416", 0),
    ("ocr", {"answer": "a b", "alternatives": ["c d"]}, "c b", 0.5),
    ("temporal_grounding", {"answer": [0, 1], "alternatives": [[4, 6]]}, '{"time": [4, 6]}', 1),
  ],
)
def test_a_reply_earns_what_the_best_of_several_truths_gives(name, truth, said, earned):
  assert registry.get(name).validate(truth, ()) is None
  assert registry.get(name).metric(said, (), truth) == earned


@pytest.mark.parametrize(
  ("made", "words"),
  [
    ("(task('video/qa'),)", "the task 'video/qa' needs a name of letters, digits, _, - and ."),
    ("(task(''),)", "the task '' needs a name"),
    ("task('counting')", "it needs TASKS, a tuple"),
    ("3", "it needs TASKS, a tuple"),
  ],
)
def test_tasks_of_a_file_have_names_that_a_checkpoint_can_keep(made, words, tmp_path):
  text = (
    "from rmsd_jax.tasks import Example, new_task\n"
    "read = lambda text, options: text\n"
    "task = lambda name: new_task(name, 'x', read=read, read_truth=read, compare=lambda a, b: 1,\n"
    "  expected='a text', example=Example('a', 'b'))\n"
  )
  (tmp_path / "tasks.py").write_text(f"{text}TASKS = {made}\n")
  with pytest.raises(UserError, match=re.escape(words)):
    registry.from_file(str(tmp_path / "tasks.py"))

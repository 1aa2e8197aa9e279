"""The table of tasks: what a question asks for, and how an answer to it is graded.

A task is added by adding it to the table at `_FIXED_TASKS` (or, where it has settings, to
`make_tasks`), or without touching the package by a Python file of one's own, see `from_file`; the
rest of the project finds tasks by name.
Classes and metrics are those of R-MSD (arXiv 2603.11423), the shapes of answers OneThinker's
(arXiv 2512.03043).
"""

import dataclasses
import functools
import json
import pathlib
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import answers, symbolic


class Example(NamedTuple):
  """A question of a task, for audits and tests: its truth, and an honest answer that is wrong."""

  truth: object
  wrong: str  # in the task's format; where there is a metric it is 0
  options: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """One kind of question. Its functions are pure; a truth is the `answer` of a pool record.

  `check` and `metric` never raise for any answer text. For a truth or options that
  `validate` faults, `metric` raises UserError: a pool is validated when it is built.
  """

  name: str
  closed: bool  # closed-ended: the metric against the truth is part of quality and reward
  instruction: str  # the sentence after the question that tells the format of a reply
  check: Callable[[str, Sequence[str], object], float]  # (answer, options, truth) -> R_task
  metric: Callable[[str, Sequence[str], object], float]  # (answer, options, truth) -> R_content
  validate: Callable[[object, Sequence[str]], str | None]  # (truth, options) -> fault in words
  example: Example
  read: Callable[[str, Sequence[str]], object]  # (answer, options) -> its value, or None


def new_task(
  name: str,
  inside: str,
  *,
  unit: str = "",
  read: Callable[[str, Sequence[str]], object],
  read_truth: Callable[[object, Sequence[str]], object],
  compare: Callable[..., float],
  expected: str,
  example: Example,
  faults: Callable[[Sequence[str]], str | None] = lambda options: None,
  complete: Callable[..., float] | None = None,
  closed: bool = True,
) -> Task:
  """A task whose answer is read as one value, or not at all, and compared with the truth.

  Args:
    inside: what the instruction shows inside the answer tags.
    unit: what the instruction says of it after them.
    read: (answer, options) -> value, None when the answer does not have the task's format.
    read_truth: (truth, options) -> value, None when the truth is unusable.
    compare: (value, value of the truth) -> [0, 1].
    expected: a usable ground truth, in words.
    example: see `Example`.
    faults: options -> what is wrong with them, in words, or None.
    complete: (value, value of the truth) -> share in [0, 1] of what must be there; a value of
      the right form earns half of the format score, this share of the other half (OneThinker,
      arXiv 2512.03043). None: all of it.
  """

  def check(answer: str, options: Sequence[str], truth: object) -> float:
    value = read(answer, options)
    if value is None or complete is None:
      return float(value is not None)
    return 0.5 + 0.5 * complete(value, read_truth(truth, options))

  def metric(answer: str, options: Sequence[str], truth: object) -> float:
    if fault := validate(truth, options):
      raise UserError(f"{name}: {fault}; mend or drop the record")
    value = read(answer, options)
    return 0.0 if value is None else compare(value, read_truth(truth, options))

  def validate(truth: object, options: Sequence[str]) -> str | None:
    if fault := faults(options):
      return fault
    if read_truth(truth, options) is None:
      return f"answer {_brief(truth)} is not {expected}"
    if isinstance(truth, dict | list) and len(spelled(truth)) > answers.MAX_CHARS:
      return f"answer {_brief(truth)} has more characters than may be read of a response"
    return None

  instruction = f"Reply as <think>your reasoning</think><answer>{inside}</answer>{unit}."
  return Task(name, closed, instruction, check, metric, validate, example, read)


def _option_fault(options: Sequence[str]) -> str | None:
  if len(options) < 2:
    return f"{len(options)} options, at least 2 are needed"
  labels = [answers.split_label(option) for option in options]
  if None in labels:
    option = options[labels.index(None)]
    return f'option {_brief(option)} has no label; write it as "A. text"'
  letters = [label[0] for label in labels if label]
  if len(set(letters)) < len(letters):
    return f"option labels {', '.join(letters)} repeat; each option needs its own letter"
  return None


def _letter(value: object, options: Sequence[str]) -> str | None:
  return answers.option_letter(value, options) if isinstance(value, str) else None


def _number(value: object, options: Sequence[str]) -> float | None:
  del options
  return answers.number(value) if isinstance(value, str) else answers.as_number(value)


def _text(value: object, options: Sequence[str]) -> str | None:
  del options
  return _non_empty(value) if isinstance(value, str) else None


def _written(value: object) -> object:
  """A number as text; anything else as it is."""
  return value if answers.as_number(value) is None else str(value)


def _non_empty(text: str) -> str | None:
  return text if text.strip() else None


def _of_text(reader: Callable[[str], object]) -> Callable[[str, Sequence[str]], object]:
  return lambda answer, options: reader(answer)


def _structured(
  of_text: Callable[[str], object], of_json: Callable[[object], object], key: str
) -> Callable[[object, Sequence[str]], object]:
  """A reader of truths given as the object an answer has, its JSON text, or its bare list."""

  def read(value: object, options: Sequence[str]) -> object:
    del options
    if isinstance(value, str):
      return of_text(value)
    return of_json({key: value} if isinstance(value, list) else value)

  return read


def _brief(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + "..."


# The tasks that have no settings of their own.
_FIXED_TASKS = (
  new_task(
    "multiple_choice",
    "the letter of one option",
    read=answers.option_letter,
    read_truth=_letter,
    compare=lambda letter, truth: float(letter == truth),
    expected="the letter of an option",
    example=Example("B", "A", ("A. a cat", "B. two dogs")),
    faults=_option_fault,
  ),
  new_task(
    "regression",
    "one number",
    read=_of_text(answers.number),
    read_truth=lambda value, options: _number(value, options) or None,
    compare=answers.mean_relative_accuracy,
    expected="a finite number other than 0, which has no relative error",
    example=Example(100, "3"),
  ),
  new_task(
    "math",
    "the result, as a number or in LaTeX",
    read=_of_text(_non_empty),
    read_truth=lambda value, options: _text(_written(value), options),
    compare=lambda result, truth: float(symbolic.equal(result, truth)),
    expected="a number or a text that is not empty",
    example=Example("\\frac{1}{2}", "3"),
  ),
  new_task(
    "ocr",
    "the text you read",
    read=_of_text(_non_empty),
    read_truth=_text,
    compare=answers.ocr_accuracy,
    expected="a text that is not empty",
    example=Example("3 7", "4"),
  ),
  new_task(
    "temporal_grounding",
    '{"time": [start, end]}',
    unit=" in seconds",
    read=_of_text(answers.interval),
    read_truth=_structured(answers.interval, answers.as_interval, "time"),
    compare=answers.temporal_iou,
    expected='{"time": [start, end]} in seconds with 0 <= start < end',
    example=Example({"time": [1, 2.5]}, '{"time": [7, 8]}'),
  ),
  new_task(
    "spatial_grounding",
    '{"boxes": [x1, y1, x2, y2]}',
    unit=" in coordinates from 0 to 1000",
    read=_of_text(answers.box),
    read_truth=_structured(answers.box, answers.as_box, "boxes"),
    compare=answers.box_iou,
    expected='{"boxes": [x1, y1, x2, y2]} within 0..1000 with x1 < x2 and y1 < y2',
    example=Example({"boxes": [0, 0, 500, 400]}, '{"boxes": [600, 500, 700, 600]}'),
  ),
  new_task(
    "spatiotemporal_grounding",
    '{"time": [start, end], "boxes": {"second": [x1, y1, x2, y2], ...}}',
    unit=" in seconds and coordinates from 0 to 1000, with a box for each whole second",
    read=_of_text(answers.tube),
    read_truth=_structured(answers.tube, answers.as_tube, ""),
    compare=answers.tube_iou,
    complete=lambda tube, truth: answers.covered(tube[1], truth[1]),
    expected='{"time": [start, end], "boxes": {"second": [x1, y1, x2, y2], ...}}',
    example=Example(
      {"time": [2, 4], "boxes": {"2": [0, 0, 9, 9], "3": [1, 1, 9, 9]}},
      '{"time": [7, 9], "boxes": {"2": [50, 50, 60, 60], "3": [50, 50, 60, 60]}}',
    ),
  ),
  new_task(
    "tracking",
    '{"boxes": {"second": [x1, y1, x2, y2], ...}}',
    unit=f" in coordinates from 0 to 1000, for each second asked, at most {answers.MAX_TRACKED}",
    read=_of_text(answers.track),
    read_truth=_structured(answers.track, answers.as_track, "boxes"),
    compare=answers.mean_box_iou,
    complete=answers.covered,
    expected=f'{{"boxes": {{"second": [x1, y1, x2, y2], ..}}}} of 1 to {answers.MAX_TRACKED} boxes',
    example=Example(
      {"boxes": {"0": [0, 0, 9, 9], "10": [1, 1, 9, 9]}},
      '{"boxes": {"0": [50, 50, 60, 60], "10": [50, 50, 60, 60]}}',
    ),
  ),
  new_task(
    "open_ended",
    "a full answer in your own words",
    read=_of_text(_non_empty),
    read_truth=_text,
    compare=answers.rouge_l,
    expected="a text that is not empty",
    example=Example("A cat sleeps.", "Rain."),
    closed=False,
  ),
)


@functools.cache
def make_tasks(
  *, eps_abs: float = 0.0, eps_rel: float = 0.0, module: str = ""
) -> Mapping[str, Task]:
  """All tasks by name, made once for each set of settings; see `quality.Rules`.

  Raises:
    UserError: a tolerance is negative or NaN, or the file of tasks is not usable.
  """
  for name, eps in (("eps_abs", eps_abs), ("eps_rel", eps_rel)):
    if not eps >= 0:
      raise UserError(f"{name} {eps}: a tolerance must be 0 or more; give both 0 for 2 decimals")
  numerical = new_task(
    "numerical",
    "one number",
    read=_of_text(answers.number),
    read_truth=_number,
    compare=functools.partial(answers.numeric_accuracy, eps_abs=eps_abs, eps_rel=eps_rel),
    expected="a finite number",
    example=Example(12.5, "3"),
  )
  tasks = {task.name: task for task in (numerical, *_FIXED_TASKS)}
  return tasks | from_file(module) if module else tasks


def from_file(path: str) -> dict[str, Task]:
  """The tasks of a Python file that somebody else wrote: its `TASKS`, a tuple of `new_task`.

  One of a name that is known already replaces it. Run in every process that grades.

  Raises:
    UserError: there is no such file, or no TASKS in it.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"tasks.module={path}: there is no such file; give a Python file with TASKS")
  tasks = runpy.run_path(path).get("TASKS", ())
  if not tasks or not all(isinstance(task, Task) for task in tasks):
    raise UserError(
      f"tasks.module={path}: it needs TASKS, a tuple of rmsd_jax.tasks.new_task(..); see the "
      "recipe in docs/code.md"
    )
  return {task.name: task for task in tasks}


TASKS: Mapping[str, Task] = make_tasks()


def get(name: str, tasks: Mapping[str, Task] = TASKS) -> Task:
  """The task of that name; UserError names those there are."""
  if name not in tasks:
    raise UserError(f"task {name!r} is unknown; use one of {', '.join(sorted(tasks))}")
  return tasks[name]


def spelled(truth: object) -> str:
  """A ground truth as it would be written inside the answer tags."""
  return truth if isinstance(truth, str) else json.dumps(truth)

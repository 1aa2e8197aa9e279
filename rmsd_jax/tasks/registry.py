"""The table of tasks: what a question asks for, and how an answer to it is graded.

A task is added by adding it to the table at `_FIXED_TASKS` (or, where it has settings, to
`make_tasks`); the rest of the project finds tasks by name.
Classes and metrics are those of R-MSD (arXiv 2603.11423), the shapes of answers OneThinker's
(arXiv 2512.03043).
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import answers, response, symbolic


class Example(NamedTuple):
  """A question of a task, for audits and tests: its answer, and an honest answer that is wrong."""

  reference: object
  wrong: str  # in the task's format; where there is a metric it is 0
  options: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """One kind of question. Its functions are pure; a reference is the `answer` of a pool record.

  `check` and `metric` never raise for any answer text. For a reference or options that
  `validate` faults, `metric` raises UserError: a pool is validated when it is built.
  """

  name: str
  closed: bool  # closed-ended: the metric against the reference is part of quality and reward
  instruction: str  # the sentence after the question that tells the format of a response
  check: Callable[[str, Sequence[str], object], float]  # (answer, options, reference) -> R_task
  metric: Callable[[str, Sequence[str], object], float]  # (answer, options, reference) -> R_content
  validate: Callable[[object, Sequence[str]], str | None]  # (reference, options) -> fault in words
  example: Example
  read: Callable[[str, Sequence[str]], object]  # (answer, options) -> its value, or None
  valid_from: float = 1.0  # R_task from which a response is valid


def _task(
  name: str,
  inside: str,
  *,
  unit: str = "",
  read: Callable[[str, Sequence[str]], object],
  read_reference: Callable[[object, Sequence[str]], object],
  compare: Callable[..., float],
  expected: str,
  example: Example,
  faults: Callable[[Sequence[str]], str | None] = lambda options: None,
  complete: Callable[..., float] | None = None,
  closed: bool = True,
) -> Task:
  """A task whose answer is read as one value, or not at all, and compared with the reference.

  Args:
    inside: what the instruction shows inside the answer tags.
    unit: what the instruction says of it after them.
    read: (answer, options) -> value, None when the answer does not have the task's format.
    read_reference: (reference, options) -> value, None when the reference is unusable.
    compare: (value, value of the reference) -> [0, 1].
    expected: a usable reference, in words.
    example: see `Example`.
    faults: options -> what is wrong with them, in words, or None.
    complete: (value, value of the reference) -> share in [0, 1] of what must be there; a value of
      the right form earns half of the format score, this share of the other half (OneThinker,
      arXiv 2512.03043). None: all of it.
  """

  def check(answer: str, options: Sequence[str], reference: object) -> float:
    value = read(answer, options)
    if value is None or complete is None:
      return float(value is not None)
    return 0.5 + 0.5 * complete(value, read_reference(reference, options))

  def metric(answer: str, options: Sequence[str], reference: object) -> float:
    if fault := validate(reference, options):
      raise UserError(f"{name}: {fault}; mend or drop the record")
    value = read(answer, options)
    return 0.0 if value is None else compare(value, read_reference(reference, options))

  def validate(reference: object, options: Sequence[str]) -> str | None:
    if fault := faults(options):
      return fault
    if read_reference(reference, options) is None:
      return f"answer {_brief(reference)} is not {expected}"
    if isinstance(reference, dict | list) and len(spelled(reference)) > answers.MAX_CHARS:
      return f"answer {_brief(reference)} has more characters than may be read of a response"
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
  """A reader of references given as the object an answer has, its JSON text, or its bare list."""

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
  _task(
    "multiple_choice",
    "the letter of one option",
    read=answers.option_letter,
    read_reference=_letter,
    compare=lambda letter, truth: float(letter == truth),
    expected="the letter of an option",
    example=Example("B", "A", ("A. a cat", "B. two dogs")),
    faults=_option_fault,
  ),
  _task(
    "regression",
    "one number",
    read=_of_text(answers.number),
    read_reference=lambda value, options: _number(value, options) or None,
    compare=answers.mean_relative_accuracy,
    expected="a finite number other than 0, which has no relative error",
    example=Example(100, "3"),
  ),
  _task(
    "math",
    "the result, as a number or in LaTeX",
    read=_of_text(_non_empty),
    read_reference=lambda value, options: _text(_written(value), options),
    compare=lambda result, truth: float(symbolic.equal(result, truth)),
    expected="a number or a text that is not empty",
    example=Example("\\frac{1}{2}", "3"),
  ),
  _task(
    "ocr",
    "the text you read",
    read=_of_text(_non_empty),
    read_reference=_text,
    compare=answers.ocr_accuracy,
    expected="a text that is not empty",
    example=Example("3 7", "4"),
  ),
  _task(
    "temporal_grounding",
    '{"time": [start, end]}',
    unit=" in seconds",
    read=_of_text(answers.interval),
    read_reference=_structured(answers.interval, answers.as_interval, "time"),
    compare=answers.temporal_iou,
    expected='{"time": [start, end]} in seconds with 0 <= start < end',
    example=Example({"time": [1, 2.5]}, '{"time": [7, 8]}'),
  ),
  _task(
    "spatial_grounding",
    '{"boxes": [x1, y1, x2, y2]}',
    unit=" in coordinates from 0 to 1000",
    read=_of_text(answers.box),
    read_reference=_structured(answers.box, answers.as_box, "boxes"),
    compare=answers.box_iou,
    expected='{"boxes": [x1, y1, x2, y2]} within 0..1000 with x1 < x2 and y1 < y2',
    example=Example({"boxes": [0, 0, 500, 400]}, '{"boxes": [600, 500, 700, 600]}'),
  ),
  _task(
    "spatiotemporal_grounding",
    '{"time": [start, end], "boxes": {"second": [x1, y1, x2, y2], ...}}',
    unit=" in seconds and coordinates from 0 to 1000, with a box for each whole second",
    read=_of_text(answers.tube),
    read_reference=_structured(answers.tube, answers.as_tube, ""),
    compare=answers.tube_iou,
    complete=lambda tube, truth: answers.covered(tube[1], truth[1]),
    expected='{"time": [start, end], "boxes": {"second": [x1, y1, x2, y2], ...}}',
    example=Example(
      {"time": [2, 4], "boxes": {"2": [0, 0, 9, 9], "3": [1, 1, 9, 9]}},
      '{"time": [7, 9], "boxes": {"2": [50, 50, 60, 60], "3": [50, 50, 60, 60]}}',
    ),
  ),
  _task(
    "tracking",
    '{"boxes": {"second": [x1, y1, x2, y2], ...}}',
    unit=f" in coordinates from 0 to 1000, for each second asked, at most {answers.MAX_TRACKED}",
    read=_of_text(answers.track),
    read_reference=_structured(answers.track, answers.as_track, "boxes"),
    compare=answers.mean_box_iou,
    complete=answers.covered,
    expected=f'{{"boxes": {{"second": [x1, y1, x2, y2], ..}}}} of 1 to {answers.MAX_TRACKED} boxes',
    example=Example(
      {"boxes": {"0": [0, 0, 9, 9], "10": [1, 1, 9, 9]}},
      '{"boxes": {"0": [50, 50, 60, 60], "10": [50, 50, 60, 60]}}',
    ),
  ),
  _task(
    "open_ended",
    "a full answer in your own words",
    read=_of_text(_non_empty),
    read_reference=_text,
    compare=answers.rouge_l,
    expected="a text that is not empty",
    example=Example("A cat sleeps.", "Rain."),
    closed=False,
  ),
)


@functools.cache
def make_tasks(
  *, eps_abs: float = 0.0, eps_rel: float = 0.0, valid_from: float = 1.0
) -> Mapping[str, Task]:
  """All tasks by name.

  Args:
    eps_abs, eps_rel: tolerances of `numerical`, see `metrics.numeric_accuracy`; with both 0 two
      numbers are equal when they agree after rounding to 2 decimals.
    valid_from: R_task from which a response is valid. With 1 a track that lacks one second of the
      ground truth is worth nothing; 0.5 is the right form, and the metric alone counts what lacks.

  Raises:
    UserError: a tolerance is negative or NaN, or valid_from is no share.
  """
  for name, eps in (("eps_abs", eps_abs), ("eps_rel", eps_rel)):
    if not eps >= 0:
      raise UserError(f"{name} {eps}: a tolerance must be 0 or more; give both 0 for 2 decimals")
  if not 0 < valid_from <= 1:
    raise UserError(f"valid_from {valid_from}: it is an R_task, above 0 and at most 1")
  numerical = _task(
    "numerical",
    "one number",
    read=_of_text(answers.number),
    read_reference=_number,
    compare=functools.partial(answers.numeric_accuracy, eps_abs=eps_abs, eps_rel=eps_rel),
    expected="a finite number",
    example=Example(12.5, "3"),
  )
  tasks = (numerical, *_FIXED_TASKS)
  return {task.name: dataclasses.replace(task, valid_from=valid_from) for task in tasks}


TASKS: Mapping[str, Task] = make_tasks()


def get(name: str, tasks: Mapping[str, Task] = TASKS) -> Task:
  """The task of that name; UserError names those there are."""
  if name not in tasks:
    raise UserError(f"task {name!r} is unknown; use one of {', '.join(sorted(tasks))}")
  return tasks[name]


def answer_of(task: str, text: str, options: Sequence[str]) -> str:
  """The answer in a response as its task reads it, so that "(A)" and "A" are one; where the task
  does not read it, as it is written; "" without the outer format."""
  answer = response.parse(text).answer
  value = get(task).read(answer, options)
  if value is None or isinstance(value, str):
    return value or answer
  return json.dumps(value, sort_keys=True)


def spelled(reference: object) -> str:
  """A ground truth as it would be written inside the answer tags."""
  return reference if isinstance(reference, str) else json.dumps(reference)


def prompt_text(task: Task, question: str, options: Sequence[str] = ()) -> str:
  """What a model is asked: the question, the options one a line, the format of the response."""
  return "\n".join([question.strip(), *(option.strip() for option in options), task.instruction])

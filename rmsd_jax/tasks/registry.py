"""The table of tasks: what a question asks for, and how an answer to it is graded.

A task is added by adding it to the table at `_FIXED_TASKS` (or, where it has settings, to
`make_tasks`), or without touching the package by a Python file of one's own, see `from_file`; the
rest of the project finds tasks by name.
Classes and metrics are those of R-MSD (arXiv 2603.11423), the shapes of answers OneThinker's
(arXiv 2512.03043).
"""

import functools
import pathlib
import re
import runpy
from collections.abc import Callable, Mapping, Sequence

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import answers, lenient, symbolic
from rmsd_jax.tasks.task import Example, Task, brief, new_task
from rmsd_jax.tasks.truths import spelled

__all__ = ["CHAT", "READINGS", "TASKS", "Example", "Task", "from_file", "get", "make_tasks",
           "new_task", "spelled"]  # fmt: skip
READINGS = ("strict", "lenient")
# The name that plain conversations have in a pool in the place of a task: a question and replies
# without truth, format or grade, which stage 1 may mix in (data.chat_share).
CHAT = "chat"


def _option_fault(options: Sequence[str]) -> str | None:
  if len(options) < 2:
    return f"{len(options)} options, at least 2 are needed"
  labels = [answers.split_label(option) for option in options]
  if None in labels:
    option = options[labels.index(None)]
    return f'option {brief(option)} has no label; write it as "A. text"'
  letters = [label[0] for label in labels if label]
  if len(set(letters)) < len(letters):
    return f"option labels {', '.join(letters)} repeat; each option needs its own letter"
  bare = [letter for letter, text in filter(None, labels) if not text]
  if bare and letters != sorted(letters):
    return (
      f"option labels {', '.join(letters)} are out of order: are they texts? Write each with its "
      'own letter, such as "B. C"'
    )
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
  return text if answers.visible(text) else None


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


def _in_unit(boxes: list[answers.Box]) -> str | None:
  """A truth in shares of the picture: a box of less than a thousandth of it is none."""
  if max(map(max, boxes)) > 1:
    return None
  return "all its boxes lie in 0..1, but coordinates are 0 to 1000: multiply them by 1000"


def _of_lenient(reader: Callable[[str], object]) -> dict[str, Callable]:
  return {"read": _of_text(reader)}


def _worthless(truth: str) -> str | None:
  """A result that shows nothing once it is read ("$$", "..."): not even itself is equal to it."""
  if symbolic.equal(truth, truth):
    return None
  return f"answer {brief(truth)} has no value: given as a reply it would earn nothing"


def _either(compare: Callable[..., float]) -> Callable[..., float]:
  """A number that was written in per cent counts as the better of 50 and 0.5."""

  def best(value: float, truth: float, **tolerances) -> float:
    values = value.values() if isinstance(value, lenient.Percent) else (value,)
    return max(compare(reading, truth, **tolerances) for reading in values)

  return best


def _same_result(result: str, truth: str, **tolerances) -> float:
  """By `symbolic.equal`; `decimals` of a record are half a unit of the last one."""
  if "decimals" in tolerances:
    tolerances = {"eps_abs": 0.5 * 10.0 ** -tolerances["decimals"]}
  return float(symbolic.equal(result, truth, **tolerances))


def _same_said(result: str, truth: str, **tolerances) -> float:
  return _same_result(result, truth, **tolerances) or _same_result(
    lenient.result(result), truth, **tolerances
  )


def _lenient_ocr(text: str, truth: str) -> float:
  """The better of the text as it stands and without what dresses it."""
  if not answers.transcribed(text, truth):
    return 0.0
  bare = answers.ocr_accuracy(lenient.text(text) or text, lenient.text(truth) or truth)
  return max(answers.ocr_accuracy(text, truth), bare)


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
    lenient={"read": lenient.option_letter},
  ),
  new_task(
    "regression",
    "one number",
    read=_of_text(answers.number),
    read_truth=lambda value, options: _number(value, options) or None,
    compare=answers.mean_relative_accuracy,
    expected="a finite number other than 0, which has no relative error",
    example=Example(100, "3"),
    lenient=_of_lenient(lenient.number) | {"compare": _either(answers.mean_relative_accuracy)},
  ),
  new_task(
    "math",
    "the result, as a number or in LaTeX",
    read=_of_text(_non_empty),
    read_truth=lambda value, options: _text(_written(value), options),
    compare=_same_result,
    expected="a number or a text that is not empty",
    example=Example("\\frac{1}{2}", "3"),
    unmet=_worthless,
    tolerant=True,
    lenient={"compare": _same_said},
  ),
  new_task(
    "ocr",
    "the text you read",
    read=_of_text(_non_empty),
    read_truth=_text,
    compare=answers.ocr_accuracy,
    expected="a text that is not empty",
    example=Example("3 7", "4"),
    lenient={"compare": _lenient_ocr},
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
    lenient=_of_lenient(lenient.interval),
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
    unmet=lambda box: _in_unit([box]),
    lenient=_of_lenient(lenient.box),
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
    unmet=lambda tube: _in_unit(list(tube[1].values())),
    lenient=_of_lenient(lenient.tube),
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
    unmet=lambda track: _in_unit(list(track.values())),
    lenient=_of_lenient(lenient.track),
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
  *, eps_abs: float = 0.0, eps_rel: float = 0.0, module: str = "", reading: str = "strict"
) -> Mapping[str, Task]:
  """All tasks by name, made once for each set of settings; see `quality.Rules`.

  Raises:
    UserError: a tolerance is negative or NaN, there is no such reading, or the file of tasks is not
      usable.
  """
  if reading not in READINGS:
    raise UserError(f"reading {reading!r}: it is one of {', '.join(READINGS)}")
  for name, eps in (("eps_abs", eps_abs), ("eps_rel", eps_rel)):
    if not eps >= 0:
      raise UserError(f"{name} {eps}: a tolerance must be 0 or more; give both 0 for 2 decimals")
  compare = functools.partial(_near, {"eps_abs": eps_abs, "eps_rel": eps_rel})
  numerical = new_task(
    "numerical",
    "one number",
    read=_of_text(answers.number),
    read_truth=_number,
    compare=compare,
    expected="a finite number",
    example=Example(12.5, "3"),
    tolerant=True,
    lenient=_of_lenient(lenient.number) | {"compare": _either(compare)},
  )
  tasks = {task.name: task for task in (numerical, *_FIXED_TASKS)}
  if module:
    # After ours, so that a user's task may replace one.
    tasks |= from_file(module)
  if reading == "lenient":
    tasks = {name: task.lenient or task for name, task in tasks.items()}
  return tasks


def _near(tolerances: Mapping[str, float], value: float, truth: float, **own) -> float:
  """By the tolerances of the rules, or by the record's own instead."""
  return answers.numeric_accuracy(value, truth, **(own or tolerances))


def from_file(path: str) -> dict[str, Task]:
  """The tasks of a Python file that somebody else wrote: its `TASKS`, a tuple of `new_task`.

  One of a name that is known already replaces it. Run in every process that grades.

  Raises:
    UserError: there is no such file, or no TASKS in it.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"tasks.module={path}: there is no such file; give a Python file with TASKS")
  tasks = runpy.run_path(path).get("TASKS", ())
  listed = isinstance(tasks, tuple | list)
  if not listed or not tasks or not all(isinstance(task, Task) for task in tasks):
    raise UserError(
      f"tasks.module={path}: it needs TASKS, a tuple of rmsd_jax.tasks.new_task(..); see the "
      "recipe in docs/code.md"
    )
  if CHAT in (task.name for task in tasks):
    raise UserError(
      f"tasks.module={path}: {CHAT!r} is the name of plain conversations; call the task otherwise"
    )
  for task in tasks:
    # Checkpoints keep figures by task, and "/" parts the names of theirs.
    if not re.fullmatch(r"[\w .-]+", task.name):
      raise UserError(
        f"tasks.module={path}: the task {task.name!r} needs a name of letters, digits, _, - and ."
      )
  return {task.name: task for task in tasks}


TASKS: Mapping[str, Task] = make_tasks()


def get(name: str, tasks: Mapping[str, Task] = TASKS) -> Task:
  """The task of that name; UserError names those there are."""
  if name not in tasks:
    raise UserError(f"task {name!r} is unknown; use one of {', '.join(sorted(tasks))}")
  return tasks[name]

"""What a task is, and how one is made of a reader and a metric.

Its functions take an answer text and a ground truth in any form of `truths`: where a record has
several right answers, a reply earns what the best of them gives.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import answers, response, truths


class Example(NamedTuple):
  """A question of a task, for audits and tests: its truth, and an honest answer that is wrong."""

  truth: object
  wrong: str  # in the task's format; where there is a metric it is 0
  options: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """One kind of question. Its functions are pure; a truth is that of a pool record, see `truths`.

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
  agree: Callable[[str, str, Sequence[str], object], float]  # (answer, answer, options, truth)
  lenient: "Task | None" = None  # the same in the lenient reading; None: no difference


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
  unmet: Callable[[Any], str | None] = lambda value: None,
  complete: Callable[..., float] | None = None,
  closed: bool = True,
  tolerant: bool = False,
  lenient: Mapping[str, Any] | None = None,
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
    unmet: value of the truth -> why no right answer can meet it, in words, or None.
    complete: (value, value of the truth) -> share in [0, 1] of what must be there; a value of
      the right form earns half of the format score, this share of the other half (OneThinker,
      arXiv 2512.03043). None: all of it.
    tolerant: `compare` takes `truths.TOLERANCES`, so that a record may set its own.
    lenient: `read`, `read_truth` or `compare` of the lenient reading, where they differ.
  """

  asked = _Asked(name, read, read_truth, compare, expected, faults, unmet, complete, tolerant)
  instruction = f"Reply as <think>your reasoning</think><answer>{inside}</answer>{unit}."
  strict = _task(asked, closed, instruction, example)
  if lenient is None:
    return strict
  other = _task(dataclasses.replace(asked, **lenient), closed, instruction, example)
  return dataclasses.replace(strict, lenient=other)


@dataclasses.dataclass(frozen=True)
class _Asked:
  """The parts of a task in one reading, see `new_task`."""

  name: str
  read: Callable[[str, Sequence[str]], object]
  read_truth: Callable[[object, Sequence[str]], object]
  compare: Callable[..., float]
  expected: str
  faults: Callable[[Sequence[str]], str | None]
  unmet: Callable[[Any], str | None]
  complete: Callable[..., float] | None
  tolerant: bool

  def check(self, answer: str, options: Sequence[str], truth: object) -> float:
    value = self.read(answer, options)
    if value is None or self.complete is None:
      return float(value is not None)
    # The best of several truths, here and in the metric: an answer need be right by one.
    return 0.5 + 0.5 * max(self.complete(value, right) for right in self._values(truth, options))

  def metric(self, answer: str, options: Sequence[str], truth: object) -> float:
    if fault := self.validate(truth, options):
      raise UserError(f"{self.name}: {fault}; mend or drop the record")
    value = self.read(answer, options)
    if value is None:
      return 0.0
    tolerances = truths.apart(truth).tolerances
    return max(self.compare(value, right, **tolerances) for right in self._values(truth, options))

  def agree(self, one: str, other: str, options: Sequence[str], truth: object) -> float:
    """How far two answers agree, in [0, 1]: the metric, whichever counts as the truth; of the truth
    no more is used than a record's own tolerances."""
    values = [self.read(answer, options) for answer in (one, other)]
    if None in values:
      return 0.0
    tolerances = truths.apart(truth).tolerances
    try:
      return max(self.compare(*pair, **tolerances) for pair in (values, values[::-1]))
    except ArithmeticError:  # 0 has no relative error
      return float(values[0] == values[1])

  def validate(self, truth: object, options: Sequence[str]) -> str | None:
    if fault := self.faults(options):
      return fault
    told = truths.apart(truth)
    if told.tolerances and not self.tolerant:
      return f"{next(iter(told.tolerances))} is for tasks whose answers are numbers"
    for answer, value in zip(told.answers, self._values(truth, options), strict=True):
      fault = _fault(answer, value, self.expected)
      if fault is None and value is not None:
        fault = self.unmet(value)
      if fault:
        return fault
    return None

  def _values(self, truth: object, options: Sequence[str]) -> list[Any]:
    return [self.read_truth(answer, options) for answer in truths.apart(truth).answers]


def _task(asked: _Asked, closed: bool, instruction: str, example: Example) -> Task:
  graded = (asked.check, asked.metric, asked.validate)
  return Task(asked.name, closed, instruction, *graded, example, asked.read, asked.agree)


def _fault(answer: object, value: object, expected: str) -> str | None:
  if isinstance(answer, str) and (tag := next((tag for tag in response.TAGS if tag in answer), "")):
    return f"answer {brief(answer)} has the tag {tag}, which no reply can give inside its own"
  if several(answer):
    return (
      f"answer {brief(answer)} holds several truths in one string; give one as the answer and the "
      'others as "alternatives"'
    )
  if value is None:
    return f"answer {brief(answer)} is not {expected}"
  if isinstance(answer, dict | list) and len(truths.spelled(answer)) > answers.MAX_CHARS:
    return f"answer {brief(answer)} has more characters than may be read of a response"
  return None


def several(answer: object) -> bool:
  """Whether a text is a list of quoted texts, as a data set's several answers are often written."""
  return isinstance(answer, str) and bool(
    re.fullmatch(r"\s*[\[({]\s*(['\"]).*\1?\s*,\s*['\"].*[\])}]\s*", answer[:4_000], re.DOTALL)
  )


def brief(value: object) -> str:
  """A value as it stands in a message."""
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + "..."

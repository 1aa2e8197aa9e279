"""The mistakes of the demo's teacher: plausible wrong values of every kind of question."""

import typing

import numpy as np

from rmsd_jax.demo import world
from rmsd_jax.demo.questions import Question, option_texts

# Digits that are taken for one another.
_CONFUSED = (
  (6, 8), (7, 4), (7, 3), (8, 5), (9, 1), (6, 3), (5, 8), (1, 9), (3, 9), (4, 8),
)  # fmt: skip


def _misread(digit: int, rng: np.random.Generator) -> int:
  return int(rng.choice(_CONFUSED[digit]))


def _wrong_digits(
  digits: tuple[int, ...], rng: np.random.Generator, ways: tuple[str, ...]
) -> tuple[int, ...]:
  """Digits with one misread, one overlooked, or one seen that is not there."""
  mistaken = list(digits)
  way = str(rng.choice(ways)) if digits else "extra"
  at = int(rng.integers(len(digits) + (way == "extra")))
  if way == "misread":
    mistaken[at] = _misread(digits[at], rng)
  elif way == "missed" and len(digits) > 1:
    del mistaken[at]
  else:
    mistaken.insert(at, int(rng.choice([d for d in range(10) if d not in digits])))
  return tuple(mistaken)


def _wrong_interval(truth: tuple[int, int], rng: np.random.Generator, far: bool) -> tuple[int, int]:
  """An interval of whole seconds whose ends are at most one second off, but not both right; a far
  one overlaps the truth by 0.2 to 0.5 of their union."""
  start, end = truth
  every = [(s, e) for e in range(1, world.SECONDS + 1) for s in range(e) if (s, e) != truth]
  union = lambda s, e: max(e, end) - min(s, start)
  iou = lambda s, e: max(min(e, end) - max(s, start), 0) / union(s, e)
  if far:
    kept = [(s, e) for s, e in every if 0.2 <= iou(s, e) < 0.5]
  else:
    kept = [(s, e) for s, e in every if abs(s - start) <= 1 and abs(e - end) <= 1]
  # Never empty: a start or an end alone can be off, inside the clip.
  return kept[int(rng.integers(len(kept)))]


def _wrong_box(truth: tuple[int, ...], rng: np.random.Generator, far: bool) -> tuple[int, ...]:
  """A box of the same size that is shifted by 60 to 160 thousandths along one or both axes; a far
  one by 120 to 200 along one."""
  if far:
    axis = int(rng.integers(2))
    inwards = 1 if truth[axis] < 1000 - truth[axis + 2] else -1
    shift = np.zeros(2, int)
    shift[axis] = inwards * 20 * rng.integers(6, 11)
    return tuple(int(edge) for edge in np.array(truth) + np.tile(shift, 2))
  shift = rng.integers(3, 9, 2) * 20 * rng.choice((-1, 1), 2)
  shift[rng.integers(2)] *= int(rng.integers(2))
  shift = np.clip(shift, -np.array(truth[:2]), 1000 - np.array(truth[2:]))
  if not shift.any():  # a corner held it: it reaches too far inwards instead
    x1, y1, x2, y2 = truth
    return (x1 - 100, y1, x2, y2) if x1 else (x1, y1, x2 + 100, y2)
  return tuple(int(edge) for edge in np.array(truth) + np.tile(shift, 2))


def mistake(question: Question, rng: np.random.Generator, far: bool = False) -> typing.Any:
  """A plausible wrong value for the question, of the type that its kind of question has.

  Args:
    far: a gross one, where the task has degrees.
  """
  truth = question.value
  match question.kind:
    case "colour" | "direction" | "first":
      # A wrong option and not just a wrong word: the answer must stay one of the letters.
      others = [text for text in option_texts(question.options) if text != str(truth)]
      chosen = others[int(rng.integers(len(others)))]
      return int(chosen) if question.kind == "first" else chosen
    case "count" | "count_at":
      return _wrong_digits(truth, rng, ("missed", "extra"))
    case "sum":
      return _wrong_digits(truth, rng, ("misread",))
    case "read":
      if far and len(truth) > 1:  # all digits but one
        kept = int(rng.integers(len(truth)))
        return tuple(d if i == kept else _misread(d, rng) for i, d in enumerate(truth))
      return _wrong_digits(truth, rng, ("misread", "misread", "missed", "extra"))
    case "when":
      return _wrong_interval(truth, rng, far)
    case "where":
      return _wrong_box(truth, rng, far)
    case "describe":
      at = int(rng.integers(len(truth)))
      colour, digit = truth[at]
      if rng.random() < 0.5:
        changed = (colour, _misread(digit, rng))
      else:
        others = [name for name in world.COLOUR_NAMES if name != colour]
        changed = (others[int(rng.integers(len(others)))], digit)
      return (*truth[:at], changed, *truth[at + 1 :])
  raise ValueError(f"no kind of question {question.kind!r}")

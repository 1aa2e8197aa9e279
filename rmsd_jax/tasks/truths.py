"""The ground truth of a record: its answer, further right ones, and how near a number must be.

Where a record has an answer alone, its truth is that value. Otherwise it is one JSON object, which
goes wherever the answer goes (rows, batches, evaluations):

    {"answer": 12.5, "alternatives": [12.6], "eps_abs": 0.1}
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

TOLERANCES = ("eps_abs", "eps_rel", "decimals")  # of one record's numbers
EXTRAS = ("alternatives", *TOLERANCES)
MAX_ALTERNATIVES = 32
MAX_DECIMALS = 15


class Truth(NamedTuple):
  """A ground truth taken apart."""

  answers: tuple[Any, ...]  # the answer first, then its alternatives
  tolerances: dict[str, Any]  # those of TOLERANCES that are given


def joined(answer: object, extras: Mapping[str, Any]) -> object:
  """The truth of an answer and the `EXTRAS` that its record has."""
  return {"answer": answer, **extras} if extras else answer


def apart(truth: object) -> Truth:
  """The inverse of `joined`; any other value is an answer alone."""
  if isinstance(truth, dict) and "answer" in truth and truth.keys() <= {"answer", *EXTRAS}:
    others = truth["alternatives"] if "alternatives" in truth else []
    return Truth((truth["answer"], *others), {k: truth[k] for k in TOLERANCES if k in truth})
  return Truth((truth,), {})


def fault(extras: Mapping[str, Any]) -> str | None:
  """What is wrong with the `EXTRAS` of a record by themselves, in words, or None."""
  others = extras["alternatives"] if "alternatives" in extras else [None]
  if not isinstance(others, list) or not 1 <= len(others) <= MAX_ALTERNATIVES:
    return f"alternatives must be a list of 1 to {MAX_ALTERNATIVES} further answers"
  for name in ("eps_abs", "eps_rel"):
    if name in extras and not _is_number(extras[name]):
      return f"{name} must be a number of 0 or more, not {extras[name]!r}"
  if "decimals" in extras:
    decimals = extras["decimals"]
    whole = _is_number(decimals) and decimals == int(decimals)
    if not whole or decimals > MAX_DECIMALS:
      return f"decimals must be a whole number from 0 to {MAX_DECIMALS}, not {decimals!r}"
    if "eps_abs" in extras or "eps_rel" in extras:
      return "decimals and a tolerance exclude each other; give one of them"
  return None


def _is_number(value: object) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return math.isfinite(value) and value >= 0


def spelled(truth: object) -> str:
  """A ground truth, the first where there are several, as it would be written in the tags."""
  answer = apart(truth).answers[0]
  return answer if isinstance(answer, str) else json.dumps(answer)

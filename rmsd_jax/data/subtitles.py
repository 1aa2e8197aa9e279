"""Where the subtitles of a clip stand among its frames. Numpy only.

Axes: N frames, F frame pairs.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

_KEYS = {"start", "end", "text"}
_NARROW = 1.0  # seconds: a shorter subtitle counts as this long


@dataclasses.dataclass(frozen=True)
class Subtitle:
  """A line that is spoken or shown from `start` to `end`, in seconds on the clock of the clip.

  It may lie outside of the clip, as where the clip is cut from a longer one.
  """

  start: float
  end: float
  text: str


def from_json(values: Any) -> tuple[Subtitle, ...]:
  """[{"start": 1.5, "end": 3.0, "text": "Hello"}, ...] -> subtitles, in that order.

  Raises:
    ValueError: it is not of that form; the message says why.
  """
  if not isinstance(values, list | tuple):
    raise ValueError(f"subtitles are {values!r:.80}; give a list of objects with start, end, text")
  return tuple(_subtitle(value) for value in values)


def _subtitle(value: Any) -> Subtitle:
  if not isinstance(value, dict) or set(value) != _KEYS or not isinstance(value["text"], str):
    raise ValueError(f"a subtitle is {value!r:.80}; give an object with start, end and a text")
  for name in ("start", "end"):
    number = value[name]
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not _finite(number):
      raise ValueError(f"a subtitle has the {name} {number!r:.80}; give a number of seconds")
  if value["end"] < value["start"]:
    raise ValueError(f"a subtitle ends at {value['end']} s, before its start at {value['start']} s")
  return Subtitle(float(value["start"]), float(value["end"]), value["text"])


def _finite(number: numbers.Real) -> bool:
  try:
    return math.isfinite(number)
  except OverflowError:  # an integer beyond all floats
    return False


def between(
  subtitles: Sequence[Subtitle], seconds_N: Sequence[float], seconds_F: Sequence[float]
) -> tuple[str, ...]:
  """What stands between the frame pairs of a clip, by LongVideoBench's rule.

  A subtitle is shown if a frame lies inside its window, edges not counted; a window of less than a
  second is widened to one around its middle. It stands after the pairs whose told time is not after
  its middle, and after the subtitles before it: a line of its own.

  Args:
    seconds_N: seconds that are told of the frames, ascending.
    seconds_F: seconds that are told of the pairs, ascending.

  Returns:
    F + 1 texts: before each pair, and after the last; () if no subtitle is shown.
  """
  words = [""] * (len(seconds_F) + 1)
  place = 0
  for subtitle in subtitles:
    start = subtitle.start
    end = subtitle.end
    middle = (start + end) / 2
    place = max(place, int(np.searchsorted(seconds_F, middle, side="right")))
    if end - start < _NARROW:
      start = middle - _NARROW / 2
      end = middle + _NARROW / 2
    inside = np.searchsorted(seconds_N, end) - np.searchsorted(seconds_N, start, side="right")
    if inside > 0 and subtitle.text.strip():
      words[place] += f"{subtitle.text}\n"
  return tuple(words) if any(words) else ()

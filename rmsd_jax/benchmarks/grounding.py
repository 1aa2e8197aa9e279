"""V-STaR: when and where in a reply, official and robust, and how near they are to the truth."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rmsd_jax.benchmarks.letters import answer_span, tagged

PARSERS = ("official", "open-o3", "robust")
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of boxes
TIME_THRESHOLDS = (0.3, 0.5, 0.7)
_MAX_CHARS = 100_000
_MAX_BRACKETS = 5_000
_FENCED = re.compile(r"```json\s*\n(\[.*?\]|\{.*?\})\s*\n```", re.DOTALL)
_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:\.\d+)?)(?![\d:])")
_JOINT = re.compile(
  r"(?:\s|</?t>|s(?:ec(?:onds?)?)?\b)*(?:to|until|till|through|and|[-\u2013\u2014~,])"
  r"(?:\s|</?t>|end\b\W*)*",
  re.IGNORECASE,
)
_SECONDS = re.compile(r"(?<![\w.])(\d{1,6}(?:\.\d+)?)")

Box = tuple[float, float, float, float]
Boxes = dict[str, list[Box]]  # by the second as it is written


def interval_in(reply: str, parser: str) -> tuple[float, float] | None:
  """Start and end in seconds, or None.

  Args:
    parser: "official": exactly two numbers of \\b\\d+(?:\\.\\d+)?\\b, which "12s" is none of and
      of which "7.2s" is 7. "open-o3": the same on the answer block, mm:ss made seconds before.
      "robust": the first two times of the answer that are joined, or the only two, as seconds,
      mm:ss or h:mm:ss, with or without s.
  """
  text = reply[:_MAX_CHARS]
  if parser == "robust":
    return _robust_interval(answer_span(reply)[:_MAX_CHARS])
  if parser == "open-o3":
    block = tagged(text)
    text = text if block is None else block
    stamps = re.findall(r"(?<!\d)\d+:\d+", text)
    for stamp in stamps if len(stamps) <= 2 else ():  # of more, more than two numbers are left
      minutes, _, seconds = stamp.partition(":")
      if len(stamp) <= 12:
        text = text.replace(stamp, f"<t>{int(minutes) * 60 + int(seconds)}</t>s")
  found = re.findall(r"\b\d+(?:\.\d+)?\b", text)
  return (float(found[0]), float(found[1])) if len(found) == 2 else None


def _robust_interval(text: str) -> tuple[float, float] | None:
  """The first two times that "to", a dash or a comma joins; else the only two."""
  found = [(match.start(), match.end(), _clock(match)) for match in _CLOCK.finditer(text)]
  rest = _CLOCK.sub(lambda match: " " * len(match[0]), text)
  found += [(match.start(), match.end(), float(match[1])) for match in _SECONDS.finditer(rest)]
  found.sort()
  for (_, end, first), (start, _, second) in zip(found, found[1:], strict=False):
    if start - end <= 40 and _JOINT.fullmatch(text[end:start]) and first <= second:
      return first, second
  values = [value for _, _, value in found]
  return (values[0], values[1]) if len(values) == 2 and values[0] <= values[1] else None


def _clock(match: re.Match) -> float:
  hours, minutes, seconds = match.groups()
  return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)


def boxes_in(reply: str, parser: str) -> Boxes | None:
  """Boxes by second, as the model wrote them; None where there is no JSON of such a form.

  The first fenced block, else the widest [..] or {..}; of the answer block for all parsers but the
  official one. Single quotes are doubled, a list of objects is one object, a list of [key, box]
  pairs is one too, and brackets are closed once. "robust" also takes [{"time": 3, "bbox_2d": [..]}]
  and keys such as "3s", "3.0" and "00:03", which it makes "3".
  """
  text = reply if parser == "official" else answer_span(reply)
  text = text[:_MAX_CHARS]
  fenced = _FENCED.search(text) if text.count("```json") < 50 else None
  written = fenced[1] if fenced else _widest(text)
  if parser == "robust" and not fenced:
    written = _whole(text)
  if not written or sum(map(written.count, "[{")) > _MAX_BRACKETS:
    return None
  value = _loaded(written.strip().replace("'", '"'), robust=parser == "robust")
  if value is None:
    return None
  found: Boxes = {}
  for key, box in value.items():
    second = whole_second(str(key)) if parser == "robust" else str(key)
    found[second] = found.get(second, []) + _several(box)
  return {key: boxes for key, boxes in found.items() if boxes}


def _widest(text: str) -> str:
  """From the first bracket to the last closing one of its kind, the kind that opens first."""
  spans = [
    (text.find(opening), text.rfind(closing))
    for opening, closing in ("[]", "{}")
    if 0 <= text.find(opening) < text.rfind(closing)
  ]
  start, end = min(spans, default=(0, -1))
  return text[start : end + 1]


def _whole(text: str) -> str:
  """From the first bracket on; where the text was cut off, what is whole of it, closed."""
  start = min((place for place in map(text.find, "[{") if place >= 0), default=-1)
  if start < 0:
    return ""
  missing: list[str] = []  # what would close the brackets that are open
  end = depth = 0  # behind the last that was closed, and how many were open there
  for place in range(start, len(text)):
    if text[place] in "[{":
      missing.append("]" if text[place] == "[" else "}")
    elif text[place] in "]}":
      if missing.pop() != text[place]:
        break
      end = place + 1
      depth = len(missing)
      if not missing:
        break
  return text[start:end] + "".join(reversed(missing[:depth])) if end else ""


def _loaded(text: str, robust: bool) -> dict[Any, Any] | None:
  """The object that a JSON text is made."""
  for mended, attempt in enumerate((text, _closed(text))):
    try:
      value = json.loads(attempt)
    except (ValueError, RecursionError):
      continue
    if isinstance(value, dict):
      return value
    # What the official code makes of a list that it had to mend has no keys.
    return None if mended and not robust else _merged(value, robust)
  return None


def _merged(value: Any, robust: bool) -> dict[Any, Any] | None:
  if not isinstance(value, list) or not value:
    return None
  if all(isinstance(one, dict) for one in value):
    timed = [pair for pair in map(_timed, value) if pair]
    if robust and len(timed) == len(value):
      return _together(timed)
    return {key: box for one in value for key, box in one.items()}
  pairs = [one for one in value if isinstance(one, list) and len(one) >= 2]
  return {str(one[0]): one[1] for one in pairs} if len(pairs) == len(value) else None


def _together(timed: Sequence[tuple[str, Any]]) -> dict[str, list[Any]]:
  """Second -> its boxes, of which one may have several."""
  found: dict[str, list[Any]] = {}
  for second, boxes in timed:
    several = isinstance(boxes, list) and bool(boxes) and isinstance(boxes[0], list)
    found.setdefault(second, []).extend(boxes if several else [boxes])
  return found


def _timed(value: Mapping[str, Any]) -> tuple[str, Any] | None:
  """(second, box) of {"time": 3, "bbox_2d": [..]} and its like."""
  keys = {str(key).lower(): key for key in value}
  times = [keys[name] for name in ("time", "timestamp", "second", "frame", "t") if name in keys]
  named = [keys[name] for name in ("bbox_2d", "bbox", "box") if name in keys]
  return (str(value[times[0]]), value[named[0]]) if times and named else None


def _closed(text: str) -> str:
  """One attempt: as many brackets as are missing, at the end, or at the beginning."""
  for opening, closing in ("[]", "{}"):
    more = text.count(opening) - text.count(closing)
    text = text + closing * more if more > 0 else opening * -more + text
  return text


def _several(value: Any) -> list[Box]:
  """The boxes of a value that is one, or a list of them."""
  if not isinstance(value, list):
    return []
  if len(value) == 4 and all(_is_number(one) for one in value):
    return [(float(value[0]), float(value[1]), float(value[2]), float(value[3]))]
  return [box for one in value if isinstance(one, list) and one != value for box in _one(one)]


def _one(value: list[Any]) -> list[Box]:
  numbers = len(value) == 4 and all(_is_number(one) for one in value)
  return [(float(value[0]), float(value[1]), float(value[2]), float(value[3]))] if numbers else []


def _is_number(value: Any) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return abs(value) < 1e9


def whole_second(key: str) -> str:
  """ "3s", "3.0", "00:03" -> "3"; anything else as it is."""
  key = key.strip()
  if clock := _CLOCK.fullmatch(key):
    value = _clock(clock)
  elif number := re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*(?:s|sec|seconds?)?", key):
    value = float(number[1])
  else:
    return key
  return str(int(value)) if value == int(value) else str(value)


def in_pixels(found: Boxes, coordinates: str, width: float, height: float) -> Boxes:
  """Boxes in pixels of the original video.

  Args:
    coordinates: what they are in: "relative-1000" or "pixels".
  """
  if coordinates == "pixels":
    return found
  scale = (width / 1000, height / 1000, width / 1000, height / 1000)
  scaled = lambda box: tuple(side * unit for side, unit in zip(box, scale, strict=True))
  return {key: [scaled(box) for box in several] for key, several in found.items()}


def temporal_iou(truth: Sequence[float], found: tuple[float, float] | None) -> float:
  """Overlap over the hull, as V-STaR has it."""
  if found is None:
    return 0.0
  hull = max(truth[1], found[1]) - min(truth[0], found[0])
  overlap = max(0.0, min(truth[1], found[1]) - max(truth[0], found[0]))
  return overlap / hull if hull > 0 else 0.0


def ious(truth: Sequence[tuple[str, Box]], found: Boxes | None) -> list[float]:
  """Of every true (second, box): the best of the boxes with the same key, 0 without any."""
  return [
    max((_iou(box, one) for one in (found or {}).get(second, ())), default=0.0)
    for second, box in truth
  ]


def _iou(a: Box, b: Box) -> float:
  inside = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
  whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
  return inside / whole if whole > 0 else 0.0


def log_mean(shares: Sequence[float]) -> float:
  """LGM: the mean of -ln(1 - share); infinite where one is 1."""
  return math.inf if 1 in shares else -sum(math.log(1 - share) for share in shares) / len(shares)

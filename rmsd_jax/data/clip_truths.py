"""Ground truths in seconds against the seconds of clip that a record shows.

Seconds run on the clock of the file, from its first frame, in windows too: a truth of [12, 14] lies
in the window from 10 to 15 s, one of [2, 4] does not.
"""

import json
import pathlib
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import media
from rmsd_jax.data.records import Record
from rmsd_jax.tasks import answers, truths

Span = tuple[float, float]  # seconds of the first and the last frame shown

SLACK = 1.0  # seconds by which annotations are rounded, as durations and whole seconds are
EDGE = 0.25  # seconds; what begins no later may still be seen in the last frame
LEAST = 0.5  # of a truth that must be shown
_TIMED = ("temporal_grounding", "spatiotemporal_grounding", "tracking")
_ENDS = media.Sampling(frames=2)


def is_timed(record: Record) -> bool:
  """Whether a record has a truth in seconds, of one clip: of several it is not known which."""
  videos = [medium for medium in record.media if medium.type == "video"]
  return record.task in _TIMED and len(videos) == len(record.media) == 1


def stated_span(record: Record) -> Span | None:
  """What a window says by itself, without a look at the file; None where its end is open."""
  (clip,) = record.media
  return None if clip.end is None else (clip.start or 0.0, clip.end)


def read_span(record: Record, folder: str) -> Span:
  """The seconds that are shown, from the headers of the file and its first frame.

  Raises:
    MediaError: the file cannot be read.
  """
  (clip,) = record.media
  ends = media.look(pathlib.Path(folder, clip.path), clip.start, clip.end, _ENDS)
  return float(ends.times_N[0]), float(ends.times_N[-1])


def fault(record: Record, span: Span) -> str | None:
  """Why no right answer can meet a truth, in words, or None."""
  shown = f"the {span[0]:.4g} to {span[1]:.4g} s of the clip that are shown"
  for interval, seconds in map(_times, truths.apart(record.answer).answers):
    if interval is not None:
      start, end = interval
      inside = min(end, span[1] + EDGE) - max(start, span[0] - EDGE)
      if inside <= 0:
        return f"the truth from {start:g} to {end:g} s lies outside of {shown}"
      if inside < LEAST * (end - start):
        return f"most of the truth from {start:g} to {end:g} s lies outside of {shown}"
    for second in seconds:
      if not span[0] - SLACK <= second <= span[1] + SLACK:
        return f"second {second} of the truth lies outside of {shown}"
  return None


def reaches_beyond(record: Record, span: Span) -> bool:
  """Whether a part of a truth, more than rounding, is not shown."""
  intervals = [_times(answer)[0] for answer in truths.apart(record.answer).answers]
  return any(
    interval[0] < span[0] - SLACK or interval[1] > span[1] + SLACK
    for interval in intervals
    if interval is not None
  )


def check(record: Record, times: Any) -> None:
  """Raises UserError for a truth that no right answer can meet.

  Args:
    times: array of the seconds of the frames that a prompt shows, NaN for stills.
  """
  shown = times[~(times != times)]  # without NaN
  if is_timed(record) and shown.size and (reason := fault(record, span_of(shown))):
    raise UserError(reason)


def span_of(times: Any) -> Span:
  """The first and the last of some seconds."""
  return float(times.min()), float(times.max())


def _times(answer: Any) -> tuple[answers.Interval | None, tuple[int, ...]]:
  """The interval and the seconds with boxes of one truth, in any form that its task takes."""
  value = json.loads(answer) if isinstance(answer, str) else answer
  if isinstance(value, list):
    return answers.as_interval({"time": value}), ()
  interval = answers.as_interval({"time": value["time"]}) if "time" in value else None
  boxes = value["boxes"] if isinstance(value.get("boxes"), dict) else {}
  return interval, tuple(map(int, boxes))

"""What `pool check` finds out about ground truths: those that no right answer can meet, and those
that deserve a look."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Sequence

from rmsd_jax.data import children, clip_truths, json_lines, records
from rmsd_jax.tasks import Rules, answers, symbolic, truths

SECONDS = 60.0  # to read the headers of one clip
MAX_NAMED = 8  # places named of each note

Spans = dict[tuple, clip_truths.Span | str]  # what a record shows of its clip, or why it is unknown

_SEVERAL = re.compile(r"\s(?:or|/|\|)\s|\|\||;\s", re.IGNORECASE)
_NOTES = {
  "beyond": "truths of which a part is not shown",
  "several": "truths that may hold several in one string",
  "labels": "options that are not labelled A, B, C in this order",
  "text": "math truths that can only be compared as text",
}


@dataclasses.dataclass(frozen=True)
class _Look:
  """Line -> its place in `Spans` and what is there; runs in child processes."""

  rules: Rules

  def __call__(self, line: json_lines.Line) -> clip_truths.Span:
    return clip_truths.read_span(line.read(self.rules), line.folder)


def spans(
  jsonl: Sequence[str],
  rules: Rules,
  progress: Callable[[int], json_lines.Progress],
  workers: int,
  media_root: str = "",
) -> Spans:
  """The seconds that records with truths in seconds show, each clip and window read once.

  Args:
    media_root: a folder that media may lie in, besides that of their file; others are not opened.
  """
  wanted: dict[tuple, json_lines.Line] = {}
  root = json_lines.common_folder(jsonl)
  for path in jsonl:
    for number, offset, size, record in json_lines.read(path, rules, root):
      if isinstance(record, records.Record) and clip_truths.is_timed(record):
        line = json_lines.Line(path, offset, size, number, record.id, record.clip, record.split)
        if (line.folder, *record.media) in wanted:
          continue
        if not json_lines.outside(record, line.folder, media_root) and _is_there(
          record, line.folder
        ):
          wanted[line.folder, *record.media] = line
  known: Spans = {}
  if wanted:
    with progress(len(wanted)) as bar:
      made = children.run(_Look(rules), wanted.values(), workers, SECONDS)
      for key, (_, span) in zip(wanted, made, strict=True):
        known[key] = span.reason if isinstance(span, children.Failure) else span
        bar.update(1)
  return known


def _is_there(record: records.Record, folder: str) -> bool:
  path = os.path.join(folder, record.media[0].path)
  return os.path.isfile(path) and os.path.getsize(path) > 0


def unmet(record: records.Record, folder: str, known: Spans) -> tuple[str, str] | None:
  """(kind, reason) where no right answer can meet a record's truth in seconds, which is sound by
  itself, or where its clip cannot be read."""
  span = span_of(record, folder, known)
  if isinstance(span, str):
    return "media", span
  if span and (reason := clip_truths.fault(record, span)):
    return "ground truth", f"{record.task}: {reason}"
  return None


def span_of(record: records.Record, folder: str, known: Spans) -> clip_truths.Span | str | None:
  """What a record shows of its clip, as far as it is known."""
  if not clip_truths.is_timed(record):
    return None
  key = (folder, *record.media)
  return known[key] if key in known else clip_truths.stated_span(record)


class Notes:
  """Counts of usable records whose truths deserve a look."""

  def __init__(self):
    self._places: dict[str, list[str]] = collections.defaultdict(list)
    self._math = False

  def add(self, place: str, record: records.Record, span: clip_truths.Span | str | None) -> None:
    """Takes in a record without a fault; `place` is its name."""
    told = truths.apart(record.answer).answers
    self._math |= record.task == "math"
    # Options without labels have none out of order.
    labels = [label[0] for label in map(answers.split_label, record.options) if label]
    texts = [answer for answer in told if isinstance(answer, str)]
    doubts = {
      "beyond": isinstance(span, tuple) and clip_truths.reaches_beyond(record, span),
      "several": record.task in ("math", "ocr") and any(map(_SEVERAL.search, texts)),
      "labels": labels != [chr(ord("A") + i) for i in range(len(labels))],
      "text": record.task == "math" and any(symbolic.text_only(str(truth)) for truth in told),
    }
    for name, is_so in doubts.items():
      if is_so:
        self._places[name].append(place)

  def lines(self) -> list[str]:
    """What was found, for people; the count of texts in any case where there is mathematics."""
    names = [name for name in _NOTES if name in self._places or (name == "text" and self._math)]
    return [f"{_NOTES[name]}: {named(self._places[name])}" for name in names]


def named(places: Sequence[str]) -> str:
  """A count and the first places."""
  if not places:
    return "0"
  more = f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else ""
  return f"{len(places)} ({', '.join(places[:MAX_NAMED])}{more})"

"""Clips whose times need a second look: what is odd about their clocks, and how many there are."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from rmsd_jax.data import containers
from rmsd_jax.data.records import Record

NOTES = {  # of `containers.Timeline.notes`, in words
  "clocks": "frame number / header rate is over half a frame spacing off the time stamps",
  "stamps": "time stamps stand still or repeat",
  "header": "the header states another rate, number of frames or duration than the frames have",
}
_CLOCKS = {
  "stamps": "by time stamps",
  "index": "by frame number / header rate, as transformers has it",
}


@dataclasses.dataclass
class Tally:
  """Notes by file, over all clips that were seen."""

  notes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  def summary(self) -> dict[str, Any]:
    """JSON values: the number of files, and of each note how many have it and the first of them."""
    counts: dict[str, Any] = {"files": len(self.notes)}
    for name in NOTES:
      paths = sorted(path for path, notes in self.notes.items() if name in notes)
      counts[name] = {"files": len(paths), "first": paths[0] if paths else ""}
    return counts


def of_record(record: Record, folder: str) -> dict[str, tuple[str, ...]]:
  """The notes of the clips of a record, by path.

  Args:
    folder: what relative media paths are relative to.

  Raises:
    MediaError: as `containers.timeline`.
  """
  videos = [medium.path for medium in record.media if medium.type == "video"]
  return {
    path: containers.timeline(path).notes
    for path in (os.path.normpath(os.path.join(folder, video)) for video in videos)
  }


def lines(summary: Mapping[str, Any], times: str) -> list[str]:
  """A `Tally.summary` for people; `times` is the clock of the sampling."""
  if not summary["files"]:
    return []
  told = [f"clips: {summary['files']} files, times {_CLOCKS[times]}"]
  for name, words in NOTES.items():
    count = summary[name]["files"]
    told.append(f"  {words}: {count}" + (f", such as {summary[name]['first']}" if count else ""))
  return told

"""Intake of a pool: finds the usable lines of JSON Lines files, and keeps count of the others."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from rmsd_jax.data import records
from rmsd_jax.errors import UserError


class Quarantine:
  """Collects unusable lines, and stops a build once they are too many."""

  def __init__(self, path: pathlib.Path, kept: pathlib.Path, bad_share: float):
    self._file = open(path, "w", encoding="utf-8")
    self._kept, self._bad_share = kept, bad_share
    self.first = ""  # what is wrong with the first line here
    self.total = 0  # lines of the input, once known
    self.kinds: collections.Counter[str] = collections.Counter()

  def __enter__(self) -> "Quarantine":
    return self

  def __exit__(self, *exc: object) -> None:
    self._file.close()

  def add(self, file: str, line: int, id_: str, kind: str, reason: str) -> None:
    """Notes one line; `kind` groups reasons in the summary."""
    entry = {"file": file, "line": line, "id": id_, "kind": kind, "reason": reason}
    self._file.write(json.dumps(entry) + "\n")
    self.kinds[kind] += 1
    self.first = self.first or f"{file} line {line}: {reason}"
    if self.total:
      self.check()

  def check(self) -> None:
    """Raises UserError when more than the allowed share of lines is here."""
    bad = self.kinds.total()
    if bad > self._bad_share * self.total:
      raise UserError(
        f"{bad} of {self.total} lines are unusable, more than the allowed share of "
        f"{self._bad_share:g}; the first is {self.first}; reasons are in {self._kept}"
      )


@dataclasses.dataclass(frozen=True)
class Line:
  """Where a record stands. Records are read again by the child that decodes them."""

  path: str
  offset: int  # bytes
  size: int  # bytes
  number: int
  id: str
  clip: str
  split: str

  @property
  def folder(self) -> str:
    """What the record's media paths are relative to."""
    return os.path.dirname(os.path.abspath(self.path))

  def read(self, known_tasks: Collection[str]) -> records.Record:
    """The record again, from its file."""
    with open(self.path, "rb") as file:
      file.seek(self.offset)
      return records.parse(file.read(self.size).decode("utf-8"), self.number, known_tasks)


def scan(
  jsonl: Sequence[str | os.PathLike], known_tasks: Collection[str], quarantine: Quarantine
) -> list[Line]:
  """Finds the well-formed records of all files; the others go to the quarantine.

  Raises:
    UserError: a file is missing, no record is usable, or a clip is in both splits.
  """
  lines: dict[str, Line] = {}
  total = 0
  for path in map(str, jsonl):
    for number, offset, raw in _raw_lines(path):
      total += 1
      try:
        record = records.parse(raw.decode("utf-8"), number, known_tasks)
      except UnicodeDecodeError:
        quarantine.add(path, number, "", "RecordFault", "not UTF-8")
      except records.RecordFault as fault:
        quarantine.add(path, number, "", "RecordFault", fault.reason)
      else:
        line = Line(path, offset, len(raw), number, record.id, record.clip, record.split)
        if record.id in lines:
          first = lines[record.id]
          reason = f"id {record.id!r} stands in {first.path} line {first.number} already"
          quarantine.add(path, number, record.id, "RecordFault", reason)
        else:
          lines[record.id] = line
  quarantine.total = total
  quarantine.check()
  if not lines:
    raise UserError(f"no record in {', '.join(map(str, jsonl))}; a pool needs at least one")
  _check_clips(lines.values())
  return list(lines.values())


def _raw_lines(path: str) -> Iterator[tuple[int, int, bytes]]:
  """(number, offset, bytes) of the lines that are not blank."""
  if not os.path.isfile(path):
    raise UserError(f"no file {path}; give the JSON Lines files of the pool")
  with open(path, "rb") as file:
    offset = 0
    for number, raw in enumerate(file, 1):
      if raw.strip():
        yield number, offset, raw
      offset += len(raw)


def _check_clips(lines: Iterable[Line]) -> None:
  splits = collections.defaultdict(set)
  for line in lines:
    splits[line.clip].add(line.split)
  if shared := [clip for clip, names in splits.items() if len(names) > 1]:
    raise UserError(
      f"{len(shared)} clips are in both splits, such as {shared[0]!r}: held-out questions would "
      "show training clips; give all questions of a clip one split"
    )

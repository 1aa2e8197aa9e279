"""Intake of a pool: finds the usable lines of JSON Lines files, and keeps count of the others."""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TextIO

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children, records
from rmsd_jax.tasks import Rules


class Progress(Protocol):
  """What long loops report to: a context manager that counts."""

  def __enter__(self) -> "Progress": ...

  def __exit__(self, *exc: object) -> None: ...

  def update(self, n: int = 1, note: str = "") -> None: ...


class Quarantine:
  """Collects unusable lines, and stops a build once they are too many."""

  def __init__(self, path: pathlib.Path, kept: pathlib.Path, bad_share: float):
    try:
      self._file = open(path, "w", encoding="utf-8")
    except OSError as error:
      raise UserError(
        f"{path} cannot be written ({error.strerror}); give another folder"
      ) from error
    self._kept = kept
    self._bad_share = bad_share
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
    # At once: a build that is killed leaves the reasons until then.
    self._file.flush()
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
  """Where a record is in its file. Records are read again by the child that decodes them."""

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

  def read(self, rules: Rules) -> records.Record:
    """The record again, from its file."""
    with open(self.path, "rb") as file:
      file.seek(self.offset)
      record = records.parse(
        file.read(self.size).decode("utf-8-sig"), self.number, rules.of_records
      )
    return dataclasses.replace(record, clip=self.clip)


def scan(
  jsonl: Sequence[str | os.PathLike],
  rules: Rules,
  quarantine: Quarantine,
  media_root: str | None = None,
) -> list[Line]:
  """Finds the well-formed records of all files; the others go to the quarantine.

  Args:
    media_root: see `outside`; None: media are not read, and may lie anywhere.

  Raises:
    UserError: a file is missing, no record is usable, or a clip is in both splits.
  """
  lines: dict[str, Line] = {}
  total = 0
  root = common_folder(jsonl)
  for path in map(str, jsonl):
    for number, offset, size, record in read(path, rules, root):
      total += 1
      if media_root is not None and isinstance(record, records.Record):
        if reason := outside(record, os.path.dirname(os.path.abspath(path)), media_root):
          record = records.RecordFault(number, reason)
      if isinstance(record, records.RecordFault):
        quarantine.add(path, number, "", "RecordFault", record.reason)
        continue
      line = Line(path, offset, size, number, record.id, record.clip, record.split)
      if record.id in lines:
        # The first one is kept: ids are how results are matched, and a second one of a name would
        # be lost in silence.
        first = lines[record.id]
        reason = f"id {record.id!r} stands in {first.path} line {first.number} already"
        quarantine.add(path, number, record.id, "RecordFault", reason)
      else:
        lines[record.id] = line
  quarantine.total = total
  quarantine.check()
  if not lines:
    why = f" ({quarantine.first})" if quarantine.first else ""
    raise UserError(f"no record in {', '.join(map(str, jsonl))}{why}; a pool needs at least one")
  _check_clips(lines.values())
  return list(lines.values())


def common_folder(jsonl: Sequence[str | os.PathLike]) -> str:
  """The innermost folder that holds all files."""
  return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in jsonl])


def outside(record: records.Record, folder: str, media_root: str) -> str:
  """What is wrong with where a record's media lie; "" if nothing is.

  A file of records may come from anywhere, and what it names is shown to a teacher: so it may name
  files in its own folder, and in one that is given for them. Links count where they lead.

  Args:
    folder: of the file of records.
    media_root: a folder that its media may lie in, too; "": none.
  """
  allowed = [os.path.realpath(root) for root in (folder, media_root) if root]
  for medium in record.media:
    path = os.path.realpath(os.path.join(folder, medium.path))
    if not any(os.path.commonpath([path, root]) == root for root in allowed):
      return (
        f"the file {medium.path!r} lies outside the folder of its records; if it may be read, name "
        "a folder that holds it with --media-root"
      )
  return ""


def read(
  path: str, rules: Rules, root: str
) -> Iterator[tuple[int, int, int, records.Record | records.RecordFault]]:
  """(number, offset, bytes, record or its fault) of the lines of a file that are not blank.

  Args:
    root: see `common_folder`. Records without a `clip` are named by the place of their first media
      file in it, so that a file is one clip whoever names it, and two files are two.
  """
  if not os.path.isfile(path):
    raise UserError(f"no file {path}; give the JSON Lines files of the pool")
  # Bytes: `Line.read` comes back by offset, and one line in another encoding is one fault.
  with open(path, "rb") as file:
    offset = 0
    for number, raw in enumerate(file, 1):
      if raw.strip():
        record = _parse(raw, number, rules)
        if isinstance(record, records.Record):
          record = _placed(record, os.path.dirname(os.path.abspath(path)), root)
        yield number, offset, len(raw), record
      offset += len(raw)


def _parse(raw: bytes, number: int, rules: Rules) -> records.Record | records.RecordFault:
  try:
    return records.parse(raw.decode("utf-8-sig"), number, rules.of_records)
  except UnicodeDecodeError:
    return records.RecordFault(number, "not UTF-8")
  except records.RecordFault as fault:
    return fault


def _placed(record: records.Record, folder: str, root: str) -> records.Record:
  if not record.media or record.clip != record.media[0].path:
    return record
  path = os.path.abspath(os.path.join(folder, record.clip))
  inside = os.path.commonpath([path, root]) == root
  return dataclasses.replace(record, clip=os.path.relpath(path, root) if inside else path)


def usable(
  results: Iterable[tuple[Line, Any]], quarantine: Quarantine, bar: Progress
) -> Iterator[tuple[Line, Any]]:
  """What `children.run` made of lines, without its failures: those go to the quarantine."""
  for line, made in results:
    if isinstance(made, children.Failure):
      reason = made.reason.removeprefix(f"line {line.number}: ")
      quarantine.add(line.path, line.number, line.id, made.kind, reason)
    else:
      yield line, made
    bar.update(1, f"{quarantine.kinds.total()} unusable")


@contextlib.contextmanager
def kept_quarantine(out: str | os.PathLike, bad_share: float) -> Iterator[Quarantine]:
  """A quarantine in OUT.quarantine.jsonl, which is removed if nothing is in it."""
  path = pathlib.Path(f"{out}.quarantine.jsonl")
  try:
    with Quarantine(path, path, bad_share) as quarantine:
      yield quarantine
  finally:
    if not quarantine.kinds:
      path.unlink()


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[TextIO]:
  """A text file that gets its name when it is whole; nothing is left of it after an error.

  Raises:
    UserError: there is something of that name already.
  """
  out = pathlib.Path(path)
  if out.exists():
    raise UserError(f"{out} exists; give another name, or remove it first")
  draft = out.with_name(f".{out.name}.partial")
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    file = open(draft, "w", encoding="utf-8")
  except OSError as error:
    raise UserError(f"{out} cannot be written ({error.strerror}); give another place") from error
  try:
    with file:
      yield file
    os.replace(draft, out)
  finally:
    draft.unlink(missing_ok=True)


def pattern(reason: str) -> str:
  """A reason without its values, so that like faults are counted together."""
  reason = re.sub(r"answer .* is not", "answer _ is not", reason)
  return re.sub(r"(?<!key )'[^']*'|[0-9][0-9.,]*", "_", reason)


def _check_clips(lines: Iterable[Line]) -> None:
  splits = collections.defaultdict(set)
  for line in lines:
    splits[line.clip].add(line.split)
  if shared := [clip for clip, names in splits.items() if len(names) > 1]:
    raise UserError(
      f"{len(shared)} clips are in both splits, such as {shared[0]!r}: held-out questions would "
      "show training clips; give all questions of a clip one split"
    )

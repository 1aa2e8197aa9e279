"""The journal of a collection: every response that was paid for, on disk before it counts as done.

    {"journal": 1, "settings": {"model": "big-model", "temperature": 1.0, ...}}
    {"id": "7", "prompt": "0f3a..", "text": "...", "finish_reason": "stop", "read": 900,
     "written": 120, "media": "91c2.."}

The finish_reason is the server's word; `endings` says what it means, on every reading anew. An
answer that did not come, and may be paid for, has "lost": a cost, no response. "media" changes with
the files that were shown; it is empty for links, without media, and in older journals.
Lines are only ever appended. A process that is killed while it writes leaves a torn last line,
which is dropped; so a restart asks again for the calls that were under way, and for nothing else.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Self

from rmsd_jax.core.errors import UserError
from rmsd_jax.teacher.request import Tokens

VERSION = 1
_BEFORE = {"times": "index"}  # settings that came later, and what held until then


@dataclasses.dataclass(frozen=True)
class Entry:
  """One answer.

  Attributes:
    id: of the record.
    prompt: `request.fingerprint` of what was asked.
    text: the response; of an answer that is not usable, what came of it.
    finish_reason: as the server gave it.
    read, written: tokens that the server counted, or may have counted where it does not say.
    media: `request.media_digest` of what was shown.
  """

  id: str
  prompt: str
  text: str
  finish_reason: str
  read: int
  written: int
  media: str = ""

  @property
  def tokens(self) -> Tokens:
    return Tokens(self.read, self.written)


class Journal:
  """The journal, open for appending by this process alone.

  Attributes:
    path: the file.
    entries: those of earlier runs, in the order in which they came.
  """

  def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]):
    """Opens the journal, or begins one.

    Raises:
      UserError: it was begun with other settings, it is damaged, it cannot be written, or another
        process has it open.
    """
    self.path = path
    try:
      # Unbuffered: `_append` counts what the system took, and cuts off what it did not.
      self._file = open(path, "ab", buffering=0)
    except OSError as error:
      raise UserError(f"{path} cannot be written ({error.strerror}); give another --out") from error
    try:
      # Locked before it is read and cut, or the torn line that is dropped could be one that another
      # process is about to finish.
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      self.entries, self._size = _read(path, settings)
      self._file.truncate(self._size)
      if not self.entries:
        self._append({"journal": VERSION, "settings": settings})
    except BlockingIOError:
      self._file.close()
      raise UserError(
        f"{path} is in use by another collection; wait for it, or give another --out"
      ) from None
    except UserError:
      self._file.close()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self._file.close()

  def add(self, entry: Entry) -> None:
    """Appends one answer; it is on disk when this returns.

    Raises:
      UserError: it cannot be written.
    """
    self._append(dataclasses.asdict(entry))

  def _append(self, value: Mapping[str, Any]) -> None:
    line = json.dumps(value).encode("utf-8") + b"\n"
    try:
      written = 0
      while written < len(line):
        written += self._file.write(line[written:])
      os.fsync(self._file.fileno())
    except OSError as error:
      with contextlib.suppress(OSError):
        self._file.truncate(self._size)  # a later line must not follow half a line
      raise UserError(
        f"{self.path} cannot be written ({error.strerror}); make room, then run the same command"
      ) from error
    self._size += len(line)


def read_entries(path: pathlib.Path, settings: Mapping[str, Any]) -> list[Entry]:
  """The entries of a journal, none if there is no file; it stays as it is.

  Raises:
    UserError: it was begun with other settings, or it is damaged.
  """
  return _read(path, settings)[0] if path.exists() else []


def _read(path: pathlib.Path, settings: Mapping[str, Any]) -> tuple[list[Entry], int]:
  """The entries, and the bytes to keep: none without entries, else all but a torn last line."""
  entries = []
  whole = 0
  with open(path, "rb") as file:
    for number, raw in enumerate(file, 1):
      # Torn by a kill, so the last one: its answer is asked for again.
      if not raw.endswith(b"\n"):
        break
      try:
        value = json.loads(raw)
        if number == 1:
          begun = {"journal": value["journal"], **value["settings"]}
        else:
          entries.append(_entry(value))
      except (ValueError, TypeError, KeyError) as error:
        raise UserError(
          f"{path} line {number} is no line of a journal; restore the file, or give another --out"
        ) from error
      whole += len(raw)
  if not entries:
    return [], 0  # nothing was paid for, so nothing holds the settings
  # What a journal says nothing of was as it was before it could be chosen.
  begun = {name: value for name, value in _BEFORE.items() if name in settings} | begun
  _check(path, begun, {"journal": VERSION, **settings})
  return entries, whole


def _entry(value: Mapping[str, Any]) -> Entry:
  entry = Entry(**value)
  for field in dataclasses.fields(entry):
    if type(getattr(entry, field.name)) is not field.type:
      raise TypeError(f"{field.name} is no {field.type}")
  return entry


def _check(path: pathlib.Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  changed = [
    f"{name} {begun.get(name)!r} -> {now.get(name)!r}"
    for name in sorted({*begun, *now})
    if begun.get(name) != now.get(name)
  ]
  if changed:
    raise UserError(
      f"{path} was begun with other settings ({', '.join(changed)}); take the old ones, or give "
      "another --out"
    )

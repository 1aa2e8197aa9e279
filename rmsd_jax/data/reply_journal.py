"""The replies of an evaluation, on disk batch by batch: a kill costs the batch under way at most.

    WORKDIR/evaluate/NAME/asked.json                       what the replies depend on
    WORKDIR/evaluate/NAME/part-00000-row-000000032.jsonl   those of process 0 to one batch, which
                                                           begins for it at row 32 of the pool

    {"row": 32, "id": "..", "clip": "..", "task": "..", "question": "..", "options": [],
     "answer": .., "closed": true, "greedy": {"length": [9], "finished": [true], "text": [".."]},
     "sampled": {..}}
    {"sha256": "..", "seconds": 4.1}                       the last line: of all before it, and
                                                           what the batch took

Files are written in one step, so that buckets hold a journal as disks do; one that is torn or
damaged does not count, and its prompts are answered again. No grade is stored: `evaluate` grades
what lies here, and so can be asked to do it anew.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text

VERSION = 1
ASKED = "asked.json"
_NAME = "part-{process:05d}-row-{row:09d}.jsonl"


class ReplyJournal:
  """The replies of one evaluation.

  Args:
    folder: WORKDIR/evaluate/NAME; may lie in a bucket.
    process, count: this process reads the parts of the processes that are `process` modulo `count`,
      so that each part is read by one, also where there were more of them before.

  Attributes:
    rows: row of the pool -> its line; those that this process has read or added.
    damaged: names of the files that do not count.
  """

  def __init__(self, folder: str | os.PathLike, process: int = 0, count: int = 1):
    self.folder = epath.Path(folder)
    self._process = process
    self.rows: dict[int, dict[str, Any]] = {}
    self.damaged: list[str] = []
    for path in parts(self.folder):
      if int(path.name.split("-")[1]) % count == process:
        lines = _whole_lines(path)
        self.damaged += [path.name] if lines is None else []
        for line in lines or ():
          # Twice where another number of processes went on; the replies are the same.
          self.rows.setdefault(line["row"], line)

  def asked(self) -> dict[str, Any] | None:
    """What `begin` has stored; None where nothing is.

    Raises:
      UserError: it is damaged, or lacks beside the replies.
    """
    path = self.folder / ASKED
    if not path.exists():
      if parts(self.folder):
        raise UserError(
          f"{path} is missing, so that nobody knows what the replies beside it are of; restore it, "
          "or remove the folder"
        )
      return None
    return _asked(path)

  def begin(self, asked: Mapping[str, Any]) -> None:
    """Stores what the replies depend on; to be called by one process, before the first `add`."""
    replace_text(self.folder / ASKED, json.dumps({"replies": VERSION, **asked}) + "\n")

  def add(self, lines: Sequence[dict[str, Any]], seconds: float = 0.0) -> None:
    """Stores this process's lines of a batch; they are on disk when this returns.

    Args:
      seconds: since the batch before, or the start.
    """
    if not lines:  # of a last batch that did not reach this process
      return
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    name = _NAME.format(process=self._process, row=lines[0]["row"])
    end = json.dumps({"sha256": _sha256(text), "seconds": round(seconds, 3)})
    replace_text(self.folder / name, f"{text}{end}\n")
    # As they are read: what is graded does not depend on whether there was a kill.
    self.rows |= {line["row"]: line for line in map(json.loads, text.splitlines())}


def parts(folder: epath.Path) -> list[epath.Path]:
  """The files of a journal but ASKED, in the order of their names."""
  return sorted(folder.glob("part-[0-9]*-row-[0-9]*.jsonl")) if folder.exists() else []


def seconds(folder: str | os.PathLike) -> float | None:
  """What the replies of a folder took, starts and compilations included, but without what was lost
  to kills; None where no part says. Of several processes the slowest counts."""
  of_process: dict[str, float] = {}
  for path in parts(epath.Path(folder)):
    process = path.name.split("-")[1]
    # What is torn will be answered again; a part of before does not say.
    with contextlib.suppress(ValueError, KeyError, TypeError):
      last = json.loads(path.read_bytes().rstrip(b"\n").rpartition(b"\n")[2])
      of_process[process] = of_process.setdefault(process, 0.0) + float(last["seconds"])
  return max(of_process.values(), default=None)


def read_journal(folder: str | os.PathLike) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """What the replies of a folder depend on, and their lines by row of the pool.

  Raises:
    UserError: it holds no journal, or a damaged one.
  """
  journal = ReplyJournal(folder)
  asked = journal.asked()
  if asked is None:
    raise UserError(f"{folder} holds no replies of an evaluation; give WORKDIR/evaluate/NAME")
  if journal.damaged:
    raise UserError(
      f"{journal.folder / journal.damaged[0]} is damaged; run the evaluation again, which answers "
      "its prompts anew"
    )
  return asked, [journal.rows[row] for row in sorted(journal.rows)]


def changes(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
  """ "NAME OLD -> NEW" for what is asked otherwise now; of sections (one deep) by their keys."""
  before, now = dict(_flat(there)), dict(_flat(json.loads(json.dumps(asked))))
  names = [*now, *(name for name in before if name.partition(".")[0] in asked and name not in now)]
  shown = lambda value: "other contents" if isinstance(value, dict) else value
  return [
    f"{name} {shown(before.get(name))} -> {shown(now.get(name))}"
    for name in names
    if before.get(name) != now.get(name)
  ]


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    if isinstance(value, dict):
      yield from ((f"{name}.{key}", inner) for key, inner in value.items())
    else:
      yield name, value


def _asked(path: epath.Path) -> dict[str, Any]:
  try:
    asked = json.loads(path.read_text())
    if asked.pop("replies") == VERSION:
      return asked
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is damaged; restore it, or remove the folder") from error
  raise UserError(f"{path} is of another version of rmsd_jax; remove the folder")


def _whole_lines(path: epath.Path) -> list[dict[str, Any]] | None:
  """The lines of a part, or None where it is not what was written."""
  text, _, last = path.read_bytes().removesuffix(b"\n").rpartition(b"\n")
  try:
    if json.loads(last)["sha256"] == _sha256(text.decode() + "\n"):
      return [json.loads(line) for line in text.splitlines()]
  except (ValueError, KeyError, TypeError):
    pass
  return None


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()

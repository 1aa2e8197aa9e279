"""What is to be asked of a teacher, what has been answered, and the file that comes of it."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data.json_lines import Line, Quarantine, scan
from rmsd_jax.data.records import SPLITS, Record
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import endings, request
from rmsd_jax.teacher.endings import KNOWN, Endings
from rmsd_jax.teacher.journal import Entry
from rmsd_jax.teacher.request import Asking, Tokens

ASKED_SPLITS = ("train",)  # by default: held-out prompts need no responses


@dataclasses.dataclass
class Job:
  """What is to be asked, and what has been answered.

  Attributes:
    lines: the usable records, in the order of the input.
    held: ids of those that are not asked, being of another split; what was once answered counts.
    wanted: id -> responses of this teacher that the input lacks, at most `samples`.
    prompts: id -> `request.fingerprint`.
    answers: id -> usable and refused entries of the journal, `wanted` at most.
    failures: kind -> lines that are unusable and prompts that stay without answers.
    spent: tokens of all entries of the journal.
    lost: those of them that are answers which did not come, or not whole.
    unknown: finish_reasons that no table has, in the order of their coming.
  """

  asking: Asking
  rules: Rules
  endings: Endings
  failures: collections.Counter[str]
  lines: list[Line] = dataclasses.field(default_factory=list)
  held: set[str] = dataclasses.field(default_factory=set)
  wanted: dict[str, int] = dataclasses.field(default_factory=dict)
  prompts: dict[str, str] = dataclasses.field(default_factory=dict)
  answers: collections.defaultdict[str, list[Entry]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(list)
  )
  spent: Tokens = Tokens(0, 0)
  lost: int = 0
  unknown: dict[str, None] = dataclasses.field(default_factory=dict)

  def missing(self, line: Line) -> int:
    """Responses to a line that are still to be asked for."""
    return 0 if line.id in self.held else self.wanted[line.id] - len(self.answers[line.id])

  def usable(self, entry: Entry) -> bool:
    """Whether the model itself, or its limit of tokens, ended the text."""
    return self.endings.kind(entry.finish_reason) in endings.USABLE

  def add(self, entry: Entry) -> None:
    """Counts an entry of the journal."""
    self.spent += entry.tokens
    kind = self.endings.kind(entry.finish_reason)
    if kind is None:
      self.unknown[entry.finish_reason] = None
    elif kind == endings.BROKEN:
      self.lost += 1
    elif entry.id in self.wanted and len(self.answers[entry.id]) < self.wanted[entry.id]:
      self.answers[entry.id].append(entry)

  def check_endings(self, journal: pathlib.Path) -> None:
    """Raises UserError where the journal has an ending that nobody has explained."""
    if self.unknown:
      raise endings.unknown(list(self.unknown), journal)

  def take(self, path: pathlib.Path, entries: Sequence[Entry]) -> None:
    """Counts what earlier runs were answered.

    Raises:
      UserError: a prompt has changed since, or a file that it shows; an unknown ending.
    """
    shown = {entry.id: entry.media for entry in entries if entry.media}
    for line in self.lines:
      if line.id in shown and self.asking.media == "frames":
        # Files that are gone are missed when they are needed.
        now = request.media_digest(line.read(self.rules), line.folder)
        if now and now != shown[line.id]:
          raise _changed(line.id, path, "a media file that it shows has other bytes")
    for entry in entries:
      if entry.prompt != self.prompts.get(entry.id, entry.prompt):
        raise _changed(entry.id, path, "question, options, task or media")
      if entry.media and entry.media != shown[entry.id]:
        raise _changed(entry.id, path, "its answers there are to different media files")
      self.add(entry)
    self.check_endings(path)

  def withheld(self, line: Line) -> str | None:
    """The reason, where every answer to a line ended by something else than the model."""
    entries = self.answers[line.id]
    reasons = {entry.finish_reason for entry in entries if not self.usable(entry)}
    if not reasons or self.missing(line) or any(map(self.usable, entries)):
      return None
    return f"all {len(entries)} answers were withheld: {', '.join(sorted(reasons))}"

  def questions(self) -> Iterator[tuple[Line, Record, str]]:
    """(line, record, text) of the lines that lack answers."""
    for line in self.lines:
      if self.missing(line):
        record = line.read(self.rules)
        yield line, record, record.plain_prompt(self.rules)


def _changed(id_: str, path: pathlib.Path, what: str) -> UserError:
  return UserError(
    f"prompt {id_!r} is not what it was when {path} was written ({what}); give it a new id, or "
    "give another --out"
  )


def prepare(
  prompts: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  asking_: Asking,
  rules: Rules,
  samples: int,
  quarantine: Quarantine,
  *,
  endings_: Endings = KNOWN,
  splits: Collection[str] = ASKED_SPLITS,
  media_root: str = "",
) -> Job:
  """Reads the prompts.

  Args:
    prompts: files of `records`, with or without responses.
    out: the file to write.
    rules: the tasks.
    samples: K, the responses that every prompt is to have of this teacher.
    quarantine: takes the lines that are no usable records.
    endings_: what finish_reasons mean.
    splits: those whose prompts are asked; the others are passed on as they are.
    media_root: a folder that media may lie in, besides that of their file. Links are not read, and
      may name anything.

  Raises:
    UserError: no line is usable, the settings contradict each other, or `out` lies elsewhere.
  """
  if samples < 1:
    raise UserError(f"--samples {samples}: it must be at least 1")
  if samples > 1 and asking_.temperature == 0:
    raise UserError(
      f"--temperature 0 gives {samples} times the same response; raise it, or take --samples 1"
    )
  if unknown := sorted(set(splits) - set(SPLITS)):
    raise UserError(f"--splits {unknown[0]}: use one or more of {', '.join(SPLITS)}")
  job = Job(asking_, rules, endings_, quarantine.kinds)
  # None: links are not files, and are not looked for.
  root = media_root if asking_.media == "frames" else None
  for line in scan(prompts, rules, quarantine, root):
    record = line.read(rules)
    fault = rules.validate(record.task, record.answer, record.options)
    if fault := fault or (line.split in splits and record.not_plain()):
      quarantine.add(line.path, line.number, line.id, "RecordFault", fault)
      continue
    _check_place(line, record, out)
    text = record.plain_prompt(rules)
    there = sum(response.teacher == asking_.teacher for response in record.responses)
    job.lines.append(line)
    if line.split not in splits:
      job.held.add(line.id)
    job.wanted[line.id] = max(0, samples - there)
    job.prompts[line.id] = request.fingerprint(record, text)
  if job.lines and len(job.held) == len(job.lines):
    raise UserError(
      f"all {len(job.lines)} prompts are held out (split {', '.join(set(SPLITS) - set(splits))}) "
      f"and need no responses; to ask for them, give --splits {' '.join(SPLITS)}"
    )
  return job


def _check_place(line: Line, record: Record, out: str | os.PathLike) -> None:
  """Media paths are relative to the folder of their file, so `out` must lie beside it."""
  folder = pathlib.Path(out).absolute().parent
  relative = [medium.path for medium in record.media if not os.path.isabs(medium.path)]
  if relative and folder.resolve() != pathlib.Path(line.folder).resolve():
    raise UserError(
      f"{line.path} names media relative to its folder, such as {relative[0]!r}, which would be "
      f"lost in {folder}; write --out beside it, or make the paths absolute"
    )


def write_pool(job: Job, out: str | os.PathLike, lines: Sequence[Line]) -> None:
  """Writes the lines with their responses, in one step: a reader finds the old file or the new.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(out)
  draft = path.with_name(f".{path.name}.partial")
  try:
    with open(draft, "w", encoding="utf-8") as file:
      for line in lines:
        file.write(json.dumps(_answered(job, line), ensure_ascii=False) + "\n")
      file.flush()
      # On disk before it takes the name: or a crash could leave an empty file under it.
      os.fsync(file.fileno())
    os.replace(draft, path)
  except OSError as error:
    raise UserError(
      f"{out} cannot be written ({error.strerror}); make room, then run the same command"
    ) from error


def _answered(job: Job, line: Line) -> dict[str, Any]:
  """The line's own JSON, with what the teacher said at the end of its responses."""
  # The line as it stands, not the record made of it: fields that nobody here knows are kept.
  with open(line.path, "rb") as file:
    file.seek(line.offset)
    value = json.loads(file.read(line.size))
  said = [
    {
      "text": entry.text,
      "teacher": job.asking.teacher,
      "finish_reason": job.endings.kind(entry.finish_reason),
    }
    for entry in job.answers[line.id]
    if job.usable(entry)
  ]
  return value | {"responses": [*value.get("responses", []), *said]}

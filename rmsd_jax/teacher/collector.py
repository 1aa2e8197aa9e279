"""Collects a teacher's responses: K samples for each prompt, from a chat endpoint.

    OUT                   the prompts in their order, with the responses; written at the end, whole
    OUT.journal.jsonl     every paid response, see `journal`; the same command continues from it
    OUT.failures.jsonl    the lines and prompts that could not be used or answered, with the reason

At most `concurrency` calls are under way; a kill or Ctrl-C loses those and nothing else.
"""

import asyncio
import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children
from rmsd_jax.data.json_lines import Line, Progress, Quarantine, scan
from rmsd_jax.data.records import Record
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import journal, request
from rmsd_jax.teacher.endpoint import Endpoint, OverBudget, Unanswered
from rmsd_jax.teacher.journal import Entry, Journal
from rmsd_jax.teacher.request import UNBOUNDED, Asking, Budget, Tokens

SECONDS = 60.0  # to read the media of one record


@dataclasses.dataclass
class Job:
  """What is to be asked, and what has been answered.

  Attributes:
    lines: the usable records, in the order of the input.
    wanted: id -> responses of this teacher that the input lacks, at most `samples`.
    prompts: id -> `request.fingerprint`.
    answers: id -> entries of the journal, `wanted` at most.
    failures: kind -> lines that are unusable and prompts that stay without answers.
    spent: tokens of all entries of the journal.
    lost: those of them that are answers which did not come.
  """

  asking: Asking
  rules: Rules
  lines: list[Line]
  wanted: dict[str, int]
  prompts: dict[str, str]
  answers: collections.defaultdict[str, list[Entry]]
  failures: collections.Counter[str]
  spent: Tokens = Tokens(0, 0)
  lost: int = 0

  def missing(self, line: Line) -> int:
    """Responses to a line that are still to be asked for."""
    return self.wanted[line.id] - len(self.answers[line.id])

  def add(self, entry: Entry) -> None:
    """Counts an entry of the journal."""
    self.spent += entry.tokens
    if entry.finish_reason == journal.LOST:
      self.lost += 1
    elif entry.id in self.wanted and len(self.answers[entry.id]) < self.wanted[entry.id]:
      self.answers[entry.id].append(entry)

  def take(self, path: pathlib.Path, entries: Sequence[Entry]) -> None:
    """Counts what earlier runs were answered.

    Raises:
      UserError: a prompt has changed since.
    """
    for entry in entries:
      if entry.prompt != self.prompts.get(entry.id, entry.prompt):
        raise UserError(
          f"prompt {entry.id!r} is not what it was when {path} was written (question, options, "
          "task or media); give it a new id, or give another --out"
        )
      self.add(entry)

  def withheld(self, line: Line) -> str | None:
    """The reason, where every answer to a line ended by something else than the model."""
    reasons = {entry.finish_reason for entry in self.answers[line.id] if not entry.usable}
    usable = any(entry.usable for entry in self.answers[line.id])
    if usable or not reasons or self.missing(line):
      return None
    return f"all {self.wanted[line.id]} answers were withheld: {', '.join(sorted(reasons))}"

  def questions(self) -> Iterator[tuple[Line, Record, str]]:
    """(line, record, text) of the lines that lack answers."""
    for line in self.lines:
      if self.missing(line):
        record = line.read(self.rules)
        yield line, record, self.rules.prompt_text(record.task, record.question, record.options)


def journal_path(out: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(f"{out}.journal.jsonl")


def failures_path(out: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(f"{out}.failures.jsonl")


def prepare(
  prompts: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  asking_: Asking,
  rules: Rules,
  samples: int,
  quarantine: Quarantine,
  media_root: str = "",
) -> Job:
  """Reads the prompts.

  Args:
    prompts: files of `records`, with or without responses.
    out: the file to write.
    rules: the tasks.
    samples: K, the responses that every prompt is to have of this teacher.
    quarantine: takes the lines that are no usable records.
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
  job = Job(asking_, rules, [], {}, {}, collections.defaultdict(list), quarantine.kinds)
  root = media_root if asking_.media == "frames" else None
  for line in scan(prompts, rules, quarantine, root):
    record = line.read(rules)
    if fault := rules.validate(record.task, record.answer, record.options):
      quarantine.add(line.path, line.number, line.id, "RecordFault", fault)
      continue
    _check_place(line, record, out)
    text = rules.prompt_text(record.task, record.question, record.options)
    there = sum(response.teacher == asking_.teacher for response in record.responses)
    job.lines.append(line)
    job.wanted[line.id] = max(0, samples - there)
    job.prompts[line.id] = request.fingerprint(record, text)
  return job


def _check_out(prompts: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
  path = pathlib.Path(out).resolve()
  if path in [pathlib.Path(given).resolve() for given in prompts]:
    raise UserError(f"--out {out} is also among --prompts; give another file to write")
  if path.exists() and not journal_path(out).exists():
    raise UserError(f"--out {out} exists, and no collection wrote it; give another file")
  if not path.parent.is_dir():
    raise UserError(f"--out {out}: there is no folder {path.parent}; make it")


def _check_place(line: Line, record: Record, out: str | os.PathLike) -> None:
  """Media paths are relative to the folder of their file, so `out` must lie beside it."""
  folder = pathlib.Path(out).absolute().parent
  relative = [medium.path for medium in record.media if not os.path.isabs(medium.path)]
  if relative and folder.resolve() != pathlib.Path(line.folder).resolve():
    raise UserError(
      f"{line.path} names media relative to its folder, such as {relative[0]!r}, which would be "
      f"lost in {folder}; write --out beside it, or make the paths absolute"
    )


def estimate(job: Job) -> tuple[int, Tokens]:
  """Requests that are still to be sent, and the most tokens that they may count."""
  requests, most = 0, Tokens(0, 0)
  for line, record, text in job.questions():
    count, bound = job.missing(line), job.asking.bound(record, text)
    requests += count
    most += Tokens(count * bound.read, count * bound.written)
  return requests, most


def collect(
  prompts: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  asking_: Asking,
  rules: Rules,
  endpoint: Endpoint,
  *,
  progress: Callable[..., Progress],
  samples: int = 4,
  concurrency: int = 8,
  budget: Budget = UNBOUNDED,
  bad_share: float = 0.05,
  media_root: str = "",
) -> Job:
  """Asks for what is missing, then writes `out`.

  Args:
    prompts, out, asking_, rules, samples, media_root: see `prepare`.
    endpoint: where the teacher is.
    progress: called with the number of responses and, as `start`, those that are there.
    concurrency: calls under way at most.
    budget: what may be spent.
    bad_share: gives up when more of the lines are unusable or unanswered.

  Raises:
    UserError: as `prepare`; the budget is reached, the endpoint refuses, too much failed.
    KeyboardInterrupt: calls under way are dropped; all answers until then are in the journal.
  """
  if concurrency < 1:
    raise UserError(f"--concurrency {concurrency}: it must be at least 1")
  if not 0 <= bad_share <= 1:
    raise UserError(f"--max-bad-share {bad_share}: a share is between 0 and 1")
  _check_out(prompts, out)
  failures = failures_path(out)
  with (
    Journal(journal_path(out), asking_.settings()) as journal_,
    Quarantine(failures, failures, bad_share) as quarantine,
  ):
    try:
      job = prepare(prompts, out, asking_, rules, samples, quarantine, media_root)
      job.take(journal_path(out), journal_.entries)
      there = sum(map(len, job.answers.values()))
      with progress(sum(job.wanted.values()), start=there) as bar:
        asyncio.run(_Run(job, endpoint, journal_, quarantine, budget, concurrency, bar).ask())
      write_pool(job, out, job.lines)
    finally:
      if not quarantine.kinds:
        failures.unlink()
  return job


def look(
  prompts: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  asking_: Asking,
  rules: Rules,
  samples: int = 4,
  media_root: str = "",
) -> Job:
  """What is there and what is missing; asks for nothing and writes nothing.

  Raises:
    UserError: as `collect`.
  """
  _check_out(prompts, out)
  with Quarantine(os.devnull, os.devnull, bad_share=1.0) as quarantine:
    job = prepare(prompts, out, asking_, rules, samples, quarantine, media_root)
  job.take(journal_path(out), journal.read_entries(journal_path(out), asking_.settings()))
  return job


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
      os.fsync(file.fileno())
    os.replace(draft, path)
  except OSError as error:
    raise UserError(
      f"{out} cannot be written ({error.strerror}); make room, then run the same command"
    ) from error


def _answered(job: Job, line: Line) -> dict[str, Any]:
  """The line's own JSON, with what the teacher said at the end of its responses."""
  with open(line.path, "rb") as file:
    file.seek(line.offset)
    value = json.loads(file.read(line.size))
  said = [
    {"text": entry.text, "teacher": job.asking.teacher, "finish_reason": entry.finish_reason}
    for entry in job.answers[line.id]
    if entry.usable
  ]
  return value | {"responses": [*value.get("responses", []), *said]}


class _Run:
  """One run: keeps up to `concurrency` calls under way until nothing is missing."""

  def __init__(self, job, endpoint, journal_, quarantine, budget, concurrency, bar):
    self._job, self._endpoint, self._journal = job, endpoint, journal_
    self._quarantine, self._budget, self._concurrency = quarantine, budget, concurrency
    self._bar = bar
    self._read = request.Reader(job.asking, SECONDS)
    self._calls: dict[asyncio.Task, Tokens] = {}  # those under way, with what they may count
    self._failed: set[str] = set()
    self._over: Tokens | None = None  # what a call may take that was not sent again

  async def ask(self) -> None:
    """Asks for all that is missing. A prompt's media are read once, for all its samples."""
    for line in self._job.lines:
      if reason := self._job.withheld(line):
        self._fail(line, "withheld", reason)
    async with self._endpoint:
      try:
        for line, record, text in self._job.questions():
          await self._ask_line(line, record, text)
        while self._calls:
          await self._one_done()
        if self._over is not None:
          raise self._spent(self._over)
      finally:
        self._read.close()
        for call in self._calls:
          call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

  async def _ask_line(self, line: Line, record: Record, text: str) -> None:
    asking_ = self._job.asking
    bound = asking_.bound(record, text)
    await self._room(bound)
    content = await asyncio.to_thread(self._read, record, line.folder, text)
    if isinstance(content, children.Failure):
      self._fail(line, content.kind, content.reason)
      return
    body = asking_.body(content)
    for _ in range(self._job.missing(line)):
      await self._room(bound)
      if line.id in self._failed:
        return
      self._calls[asyncio.create_task(self._call(line, body, bound))] = bound

  async def _call(self, line: Line, body: dict[str, Any], bound: Tokens) -> None:
    try:
      answer = await self._endpoint.ask(body, bound, functools.partial(self._lose, line))
    except Unanswered as fault:
      self._fail(line, fault.kind, str(fault))
      return
    except OverBudget:
      self._over = bound
      return
    read, written = answer.tokens or bound
    prompt = self._job.prompts[line.id]
    entry = Entry(line.id, prompt, answer.text, answer.finish_reason, read, written)
    self._journal.add(entry)
    self._job.add(entry)
    self._bar.update(1, self._budget.spelled(self._job.spent))
    if reason := self._job.withheld(line):
      self._fail(line, "withheld", reason)

  def _lose(self, line: Line, tokens: Tokens) -> bool:
    """Counts an answer that did not come; whether the budget holds if it is asked for again."""
    entry = Entry(line.id, self._job.prompts[line.id], "", journal.LOST, *tokens)
    self._journal.add(entry)
    self._job.add(entry)
    return self._affords(Tokens(0, 0))

  async def _room(self, bound: Tokens) -> None:
    """Waits until one more call may be made."""
    while (
      len(self._calls) >= self._concurrency or self._over is not None or not self._affords(bound)
    ):
      if not self._calls:
        raise self._spent(self._over or bound)
      await self._one_done()

  def _affords(self, bound: Tokens) -> bool:
    """Whether the budget holds if this call and those under way count all they may."""
    return self._budget.holds(sum(self._calls.values(), self._job.spent + bound))

  def _spent(self, bound: Tokens) -> UserError:
    job, budget = self._job, self._budget
    missing = sum(map(job.missing, job.lines))
    return UserError(
      f"the budget is reached: {budget.spelled(job.spent)} so far, and the next call may take "
      f"{budget.spelled(bound)}; {missing} responses are missing. Raise --budget or --token-budget "
      "and run the command again, or write what is complete with --partial"
    )

  async def _one_done(self) -> None:
    done, _ = await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
    for call in done:
      del self._calls[call]
      call.result()

  def _fail(self, line: Line, kind: str, reason: str) -> None:
    """Notes a prompt that stays without answers; raises UserError when they are too many."""
    if line.id not in self._failed:
      self._failed.add(line.id)
      self._quarantine.add(line.path, line.number, line.id, kind, reason)

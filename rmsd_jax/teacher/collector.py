"""Collects a teacher's responses: K samples for each prompt, from a chat endpoint.

    OUT                   the prompts in their order, with the responses; written at the end, whole
    OUT.journal.jsonl     every paid response, see `journal`; the same command continues from it
    OUT.failures.jsonl    the lines and prompts that could not be used or answered, with the reason

At most `concurrency` calls are under way, and one alone until the first answer has come: it shows
whether key, model and endings are as they should be. A kill or Ctrl-C loses the calls under way and
nothing else; any other end of a run waits for their answers.
"""

import asyncio
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children
from rmsd_jax.data.json_lines import Line, Progress, Quarantine
from rmsd_jax.data.records import Record
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import journal, request
from rmsd_jax.teacher.endings import KNOWN, Endings
from rmsd_jax.teacher.endpoint import Endpoint, NotAgain, Unanswered
from rmsd_jax.teacher.jobs import ASKED_SPLITS, Job, prepare, write_pool
from rmsd_jax.teacher.journal import Entry, Journal
from rmsd_jax.teacher.replies import Answer
from rmsd_jax.teacher.request import UNBOUNDED, Asking, Budget, Tokens

SECONDS = 60.0  # to read the media of one record


def journal_path(out: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(f"{out}.journal.jsonl")


def failures_path(out: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(f"{out}.failures.jsonl")


def _check_out(prompts: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
  path = pathlib.Path(out).resolve()
  if path in [pathlib.Path(prompt_file).resolve() for prompt_file in prompts]:
    raise UserError(f"--out {out} is also among --prompts; give another file to write")
  if path.exists() and not journal_path(out).exists():
    raise UserError(f"--out {out} exists, and no collection wrote it; give another file")
  if not path.parent.is_dir():
    raise UserError(f"--out {out}: there is no folder {path.parent}; make it")


def collect(
  prompts: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  asking_: Asking,
  rules: Rules,
  endpoint: Endpoint,
  *,
  progress: Callable[..., Progress],
  samples: int = 4,
  splits: Collection[str] = ASKED_SPLITS,
  concurrency: int = 8,
  budget: Budget = UNBOUNDED,
  bad_share: float = 0.05,
  media_root: str = "",
) -> Job:
  """Asks for what is missing, then writes `out`.

  Args:
    prompts, out, asking_, rules, samples, splits, media_root: see `prepare`.
    endpoint: where the teacher is.
    progress: called with the number of responses and, as `start`, those that are there.
    concurrency: calls under way at most.
    budget: what may be spent.
    bad_share: gives up when more of the lines are unusable or unanswered.

  Raises:
    UserError: as `prepare`; the budget is reached, the endpoint refuses or ends answers with a word
      that nobody has explained, too much failed.
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
      options = {"endings_": endpoint.endings, "splits": splits, "media_root": media_root}
      job = prepare(prompts, out, asking_, rules, samples, quarantine, **options)
      job.take(journal_path(out), journal_.entries)
      there = sum(map(len, job.answers.values()))
      with progress(there + sum(map(job.missing, job.lines)), start=there) as bar:
        asyncio.run(_Run(job, endpoint, journal_, quarantine, budget, concurrency, bar).ask())
      write_pool(job, out, job.lines)
    finally:
      # An empty file would look like one with failures.
      if not quarantine.kinds:
        failures.unlink()
  return job


def look(
  prompts: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  asking_: Asking,
  rules: Rules,
  samples: int = 4,
  *,
  splits: Collection[str] = ASKED_SPLITS,
  endings_: Endings = KNOWN,
  media_root: str = "",
) -> Job:
  """What is there and what is missing; asks for nothing and writes nothing.

  Raises:
    UserError: as `collect`.
  """
  _check_out(prompts, out)
  with Quarantine(os.devnull, os.devnull, bad_share=1.0) as quarantine:
    options = {"endings_": endings_, "splits": splits, "media_root": media_root}
    job = prepare(prompts, out, asking_, rules, samples, quarantine, **options)
  job.take(journal_path(out), journal.read_entries(journal_path(out), asking_.settings()))
  return job


class _Run:
  """One run: keeps up to `concurrency` calls under way until nothing is missing."""

  def __init__(self, job, endpoint, journal_, quarantine, budget, concurrency, bar):
    self._job = job
    self._endpoint = endpoint
    self._journal = journal_
    self._quarantine = quarantine
    self._budget = budget
    self._concurrency = concurrency
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
      except UserError:
        await self._wait_for_answers()
        raise
      finally:
        self._read.close()
        await self._drop(set(self._calls))

  async def _wait_for_answers(self) -> None:
    """Before the run ends: answers that are being made are paid for, so they are kept."""
    # First, so that no call is sent while the others are dropped.
    out = self._endpoint.end()
    await self._drop(self._calls.keys() - out)
    if waiting := self._calls.keys() & out:
      print(f"the run ends; {len(waiting)} answers under way are waited for", file=sys.stderr)
      await asyncio.gather(*waiting, return_exceptions=True)

  async def _drop(self, calls: Collection[asyncio.Task]) -> None:
    for call in calls:
      call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

  async def _ask_line(self, line: Line, record: Record, text: str) -> None:
    asking_ = self._job.asking
    bound = asking_.bound(record, text)
    # Before media are read: what the budget has no room for need not be decoded.
    await self._room(bound)
    digest = ""
    if asking_.media == "frames":
      digest = await asyncio.to_thread(request.media_digest, record, line.folder)
    # In a thread, since decoding would hold up the replies to all calls that are out.
    content = await asyncio.to_thread(self._read, record, line.folder, text)
    if isinstance(content, children.Failure):
      self._fail(line, content.kind, content.reason)
      return
    body = asking_.body(content)
    for _ in range(self._job.missing(line)):
      await self._room(bound)
      # While this call waited for room, another one for the same prompt may have failed.
      if line.id in self._failed:
        return
      keep = functools.partial(self._keep, line, digest, bound)
      self._calls[asyncio.create_task(self._call(line, body, bound, keep))] = bound

  async def _call(
    self, line: Line, body: dict[str, Any], bound: Tokens, keep: Callable[[Answer], bool]
  ) -> None:
    try:
      answer = await self._endpoint.ask(body, bound, keep)
    except Unanswered as fault:
      self._fail(line, fault.kind, str(fault))
      return
    except NotAgain:
      self._over = bound
      return
    # On disk before it is judged: an answer with an unknown ending is paid for all the same.
    keep(answer)
    self._job.check_endings(self._journal.path)
    self._bar.update(1, self._budget.spelled(self._job.spent))
    if reason := self._job.withheld(line):
      self._fail(line, "withheld", reason)

  def _keep(self, line: Line, digest: str, bound: Tokens, answer: Answer) -> bool:
    """Writes down what came; whether the budget holds if the same is asked for again."""
    read, written = answer.tokens or bound
    prompt = self._job.prompts[line.id]
    entry = Entry(line.id, prompt, answer.text, answer.finish_reason, read, written, digest)
    self._journal.add(entry)
    self._job.add(entry)
    return self._affords(Tokens(0, 0))

  async def _room(self, bound: Tokens) -> None:
    """Waits until one more call may be made."""
    # Slow start: one call until the first answer. Then as many as may be, while all of them and
    # this one together cannot exceed the budget.
    while (
      len(self._calls) >= (self._concurrency if self._endpoint.answered else 1)
      or self._over is not None
      or not self._affords(bound)
    ):
      if not self._calls:
        raise self._spent(self._over or bound)
      await self._one_done()

  def _affords(self, bound: Tokens) -> bool:
    """Whether the budget holds if this call and those under way count all they may."""
    return self._budget.holds(sum(self._calls.values(), self._job.spent + bound))

  def _spent(self, bound: Tokens) -> UserError:
    job = self._job
    budget = self._budget
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

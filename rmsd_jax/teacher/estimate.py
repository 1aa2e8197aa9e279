"""What a collection will cost: a bound that no call passes, and what is likely.

The bound goes into the budget: the largest counts of any service, a token for each byte of text,
and responses at their limit. What is likely is what the answers so far took; before the first, what
Qwen3-VL counts for the sizes in the headers of some of the media.
"""

from typing import NamedTuple

from rmsd_jax.data import children
from rmsd_jax.data.json_lines import Line
from rmsd_jax.teacher import endings
from rmsd_jax.teacher.jobs import Job
from rmsd_jax.teacher.request import Tokens

LOOKED_AT = 64  # prompts whose media are opened
_SECONDS = 30.0  # to open the media of one
_WORKERS = 2


class Likely(NamedTuple):
  """What is likely to be counted.

  Attributes:
    read, written: tokens of all requests to come; written is None before the first answer.
    basis: what this was made of, in words.
  """

  read: int
  written: int | None
  basis: str


def most(job: Job) -> tuple[int, Tokens]:
  """Requests that are still to be sent, and the most tokens that they may count."""
  requests = 0
  total = Tokens(0, 0)
  for line, record, text in job.questions():
    count = job.missing(line)
    bound = job.asking.bound(record, text)
    requests += count
    total += Tokens(count * bound.read, count * bound.written)
  return requests, total


def likely(job: Job) -> Likely | None:
  """What the requests to come will count; None if there are none, or nothing tells."""
  return _by_answers(job) or _by_headers(job)


def _by_answers(job: Job) -> Likely | None:
  """By the answers so far: their share of the bound, so that longer prompts count for more."""
  bound = 0
  seen = Tokens(0, 0)
  answers = 0
  for line in job.lines:
    entries = [e for e in job.answers[line.id] if e.finish_reason != endings.LOST]
    if entries:
      record = line.read(job.rules)
      text = record.plain_prompt(job.rules)
      per_call = job.asking.bound(record, text)
      told = [e.tokens for e in entries if e.tokens != per_call]  # the bound: it was not told
      bound += len(told) * per_call.read
      answers += len(told)
      seen = sum(told, seen)
  requests, total = most(job)
  if not requests or not bound:
    return None
  read = round(total.read * seen.read / bound)
  written = round(requests * seen.written / answers)
  each = f"{seen.read / answers:,.0f} in and {seen.written / answers:,.0f} out each"
  return Likely(read, written, f"as the {answers} answers so far, {each}")


def _by_headers(job: Job) -> Likely | None:
  """By what Qwen3-VL counts, from the headers of evenly chosen prompts."""
  asked = [line for line in job.lines if job.missing(line)]
  # Rounded up, so that at most LOOKED_AT are opened; 1 where nothing is asked.
  chosen = asked[:: -(-len(asked) // LOOKED_AT) or 1]
  count = _Count(job)
  opened = [line for line in chosen if count.opens(line)]
  counted = [(line, count(line)) for line in chosen if line not in opened]
  counted += children.run(count, opened, _WORKERS, _SECONDS) if opened else ()
  # (requests, tokens read by each)
  samples = [
    (job.missing(line), tokens)
    for line, tokens in counted
    if not isinstance(tokens, children.Failure)
  ]
  if not samples:
    return None
  mean = sum(count * tokens for count, tokens in samples) / sum(count for count, _ in samples)
  requests = sum(map(job.missing, asked))
  return Likely(round(requests * mean), None, f"as Qwen3-VL counts, by {len(samples)} prompts")


class _Count:
  """Line -> tokens that one request for it reads; runs in child processes."""

  def __init__(self, job: Job):
    self._asking = job.asking
    self._rules = job.rules

  def opens(self, line: Line) -> bool:
    """Whether files are opened for it, which is better done in a child."""
    return self._asking.media == "frames" and bool(line.read(self._rules).media)

  def __call__(self, line: Line) -> int:
    record = line.read(self._rules)
    text = record.plain_prompt(self._rules)
    return self._asking.likely(record, line.folder, text)

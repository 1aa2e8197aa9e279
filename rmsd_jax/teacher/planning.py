"""What the records of a pool will take, from headers alone: frames, sizes, tokens, buckets.

A pool whose buckets are too small loses records, one whose buckets are too large pays for padding
in every step; both are seen here before anything is decoded.
"""

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import children, oddities, rows
from rmsd_jax.data.json_lines import Line, Progress, Quarantine, scan
from rmsd_jax.data.processor import Processor
from rmsd_jax.tasks import Rules

QUANTILES = (0.5, 0.9, 0.99, 1.0)
ROUND = {"prompt": 128, "response": 128}  # multiples that attention on TPU can take


@dataclasses.dataclass
class Plan:
  """What was found.

  Attributes:
    needs_N4: int, per usable record the smallest bucket (P, T, F, S) that holds it; T is 0 where no
      response ended by itself.
    media: (kind, frames, height, width, tokens) -> number of images or clips.
    clips: what is odd about the clocks of clips, see `oddities.Tally.summary`.
    times: the clock of the sampling.
    unusable: reason of the first unusable record of each kind, and their number.
  """

  needs_N4: np.ndarray
  media: collections.Counter
  clips: dict[str, Any]
  times: str
  unusable: dict[str, tuple[int, str]]


def plan_pool(
  jsonl: Sequence[str | os.PathLike],
  processor: Processor,
  rules: Rules,
  progress: Callable[[int], Progress],
  workers: int = 2,
  limit_s: float = 60.0,
  media_root: str = "",
) -> Plan:
  """Looks at every record of JSON Lines files.

  Args:
    processor, rules: every child process gets a copy.
    progress: called with the number of records that will be looked at.
    workers, limit_s: child processes that read headers, and seconds that each has for a record.
    media_root: a folder that media may lie in, besides that of their file.

  Raises:
    UserError: a file is missing, or no record is usable.
  """
  needs = []
  media = collections.Counter()
  unusable = {}
  clips = oddities.Tally()
  with Quarantine(os.devnull, os.devnull, bad_share=1.0) as quarantine:
    lines = scan(jsonl, rules, quarantine, media_root)
  for kind, count in quarantine.kinds.items():
    unusable[kind] = (count, quarantine.first)
  with progress(len(lines)) as bar:
    for line, made in children.run(_Look(processor, rules), lines, workers, limit_s):
      if isinstance(made, children.Failure):
        count, first = unusable.get(made.kind, (0, f"record {line.id!r}: {made.reason}"))
        unusable[made.kind] = (count + 1, first)
      else:
        needs.append(made[0])
        media.update(made[1])
        clips.notes |= made[2]
      bar.update(1)
  if not needs:
    raise UserError(f"no record is usable: {'; '.join(first for _, first in unusable.values())}")
  return Plan(np.array(needs), media, clips.summary(), processor.sampling.times, unusable)


@dataclasses.dataclass(frozen=True)
class _Look:
  """Line -> (its smallest bucket, sizes of its media, what is odd of them); runs in children."""

  processor: Processor
  rules: Rules

  def __call__(self, line: Line) -> tuple[Bucket, list[tuple], dict[str, tuple[str, ...]]]:
    record = rows.trimmed(line.read(self.rules), self.rules)
    bucket, plans = self.processor.plan(rows.messages(record, line.folder, self.rules))
    # A response that was cut off is as long as the teacher's limit, and says nothing about the
    # student's.
    ended = [r.text for r in record.responses if r.finish_reason == "stop"]
    longest = max(
      (len(self.processor.tokenizer.encode_response(reply)) for reply in ended), default=0
    )
    sizes = [(p.layout.kind, p.frames, p.height, p.width, p.tokens) for p in plans]
    return bucket._replace(response=longest), sizes, oddities.of_record(record, line.folder)


def suggested(needs_N4: np.ndarray, share: float = 1.0) -> Bucket:
  """The smallest bucket, in round numbers, that holds this share of the records on every axis.

  But for T, which is that of the longest response in any case: it limits what the student may write
  about these prompts. 0 where there is no response.
  """
  sizes = Bucket(*(int(x) for x in np.quantile(needs_N4, share, axis=0, method="higher")))
  sizes = sizes._replace(response=int(needs_N4[:, 1].max()))
  rounded = {name: math.ceil(getattr(sizes, name) / to) * to for name, to in ROUND.items()}
  return sizes._replace(**rounded)


def fitting(needs_N4: np.ndarray, response: int) -> tuple[Bucket, ...]:
  """The buckets that `plan_table` names: one for half of the records and one for all of them, or
  one where both are alike; for responses of so many tokens."""
  found = [suggested(needs_N4, share)._replace(response=response) for share in (0.5, 1.0)]
  return tuple(dict.fromkeys(found))


def _spelled(bucket: Bucket) -> str:
  """P,T,F,S for the command line; T stays a letter where nothing tells it."""
  return ",".join(str(size) for size in bucket._replace(response=bucket.response or "T"))


def plan_table(plan: Plan) -> str:
  """The plan in words, for people."""
  lines = [f"{'':<7}{'frames':>7} {'height x width':>15} {'tokens':>7} {'number':>8}"]
  for (kind, frames, height, width, tokens), count in plan.media.most_common(20):
    lines.append(f"{kind:<7}{frames:>7} {f'{height} x {width}':>15} {tokens:>7,} {count:>8,}")
  if (rest := len(plan.media) - 20) > 0:
    lines.append(f"and {rest} rarer sizes")
  names = ("P prompt tokens", "T response tokens", "F frame pairs", "S patches of a pair")
  lines += ["", f"{'needed by':<22}" + "".join(f"{f'{q:.0%}':>9}" for q in QUANTILES)]
  for axis, name in enumerate(names):
    values = np.quantile(plan.needs_N4[:, axis], QUANTILES, method="higher")
    lines.append(f"{name:<22}" + "".join(f"{int(value):>9,}" for value in values))
  half, whole = (_spelled(suggested(plan.needs_N4, q)) for q in (0.5, 1.0))
  lines += ["", f"{len(plan.needs_N4):,} records fit --buckets {whole}"]
  if half != whole:
    share = (plan.needs_N4 <= np.array(suggested(plan.needs_N4, 0.5))).all(1).mean()
    lines.append(
      f"less padding: --buckets {half} {whole}  ({share:.0%} of the records fit the first)"
    )
  if not plan.needs_N4[:, 1].any():
    lines.append("no responses: choose T, the most tokens that the student may write (1024?)")
  pixels = sum(count * f * h * w for (_, f, h, w, _), count in plan.media.items())
  lines.append(f"pictures: at most {3 * pixels / 1e9:,.3g} GB on disk (lossless PNG)")
  lines += oddities.lines(plan.clips, plan.times)
  lines += [f"{count} unusable: {first}" for count, first in plan.unusable.values()]
  return "\n".join(lines)

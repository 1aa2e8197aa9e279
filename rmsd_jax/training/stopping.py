"""When a run ends by what its held-out looks say: no gain for long, or a reward that is hacked.

The rules read the lines of the log, so that a run that was resumed decides as one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rmsd_jax.core.errors import UserError

SCORE = "held_out/sampled/quality"  # what the rules, and the best checkpoint, follow
REWARD = "reward/mean"
LOOKED_AT = "held_out/"  # metrics of held-out looks begin so
READ = (SCORE, "held_out/sampled/low", REWARD)  # of a line


class Seen(NamedTuple):
  """A look, and the reward of the steps since the one before."""

  step: int
  score: float
  low: float
  reward: float  # mean over the logged steps; NaN where none had a reward


def looks_of(lines: Sequence[Mapping[str, float]]) -> list[Seen]:
  """The looks in the lines of a log, in order."""
  found, rewards = [], []
  for line in lines:
    if REWARD in line:
      rewards.append(line[REWARD])
    if SCORE in line:
      reward = sum(rewards) / len(rewards) if rewards else math.nan
      low = line["held_out/sampled/low"]
      found.append(Seen(int(line["step"]), line[SCORE], low, reward))
      rewards = []
  return found


def told(line: Mapping[str, float], looks: Sequence[Seen]) -> str:
  """The console's line about the last look.

  Args:
    line: its figures.
  """

  def of(how: str) -> str:
    score, low, high = (line[f"held_out/{how}/{name}"] for name in ("quality", "low", "high"))
    return f"{how} {score:.3f} [{low:.3f}, {high:.3f}]"

  best = best_of(looks)
  better = "the best so far" if best is looks[-1] else f"best {best.score:.3f} at step {best.step}"
  return f"held-out quality at step {looks[-1].step}: {of('sampled')}, {of('greedy')}; {better}"


def best_of(looks: Sequence[Seen]) -> Seen:
  """The look with the highest score, of equal ones the first."""
  return max(looks, key=lambda look: (look.score, -look.step))


def improves(looks: Sequence[Seen]) -> bool:
  """Whether the last look is better than all before."""
  return bool(looks) and best_of(looks) is looks[-1]


def stalled(looks: Sequence[Seen], patience: int) -> str:
  """Why a run is to end after its last look for want of gain; "": it is not.

  Args:
    patience: looks in a row without a new best; 0: any number.
  """
  if not patience or not looks:
    return ""
  best = best_of(looks)
  since = sum(look.step > best.step for look in looks)
  if since < patience:
    return ""
  return (
    f"no gain in {since} held-out looks (evaluate.patience={patience}): the best was "
    f"{best.score:.3f} at step {best.step}"
  )


def hacked(looks: Sequence[Seen]) -> str:
  """Why the reward of a run is being hacked; "": it is not, as far as its last look tells.

  The held-out score fell below the interval of the best look, while the reward rose since then; or
  since the first look behind it that had one, where the best was in the warm-up.
  """
  if len(looks) < 2:
    return ""
  last, best = looks[-1], best_of(looks)
  since = (look for look in looks if look.step >= best.step and not math.isnan(look.reward))
  first = next(since, last)
  if not (last.score < best.low and last.reward > first.reward):
    return ""
  return (
    f"the reward is being hacked: since step {first.step} it rose from {first.reward:.3g} to "
    f"{last.reward:.3g}, and the held-out score fell from {best.score:.3f} (interval from "
    f"{best.low:.3f}) to {last.score:.3f} at step {last.step}; look at the terms of "
    f"config.reward, and take --checkpoint=best, step {best.step}; "
    "evaluate.stop_hacking=False goes on all the same"
  )


def best_metric(metric: str, looks: bool) -> str:
  """What the best checkpoint follows: `config.best_metric`, else held-out looks, else "": nothing.

  Raises:
    UserError: see `check_best`.
  """
  check_best(metric, looks)
  return metric or (SCORE if looks else "")


def check_best(metric: str, looks: bool, metrics: Mapping | None = None) -> None:
  """Raises UserError for a `best_metric` that no step of the run will have, where that is known.

  Args:
    metric: with or without a minus before it; "": none.
    looks: the run looks at held-out prompts.
    metrics: of a step; None: there has been none yet.
  """
  name = metric.removeprefix("-")
  if name.startswith(LOOKED_AT):
    if not looks:
      raise UserError(
        f"best_metric={metric}: this run looks at no held-out prompts; give evaluate.every, or a "
        "metric of the log"
      )
  elif name and metrics is not None and name not in metrics:
    raise UserError(
      f"best_metric={metric}: no step has {name!r}; give one of {', '.join(sorted(metrics))}"
    )

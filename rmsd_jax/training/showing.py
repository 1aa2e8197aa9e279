"""What a run shows of itself besides figures: some rollouts of stage 2, and warnings.

    WORKDIR/samples.jsonl    a line for each prompt that is shown: its question, the times of its
                             frames, and each rollout with reward, terms, score and teacher's reply

Axes: B prompts of this process, N rollouts.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from rmsd_jax.core import sharding
from rmsd_jax.core.files import complete_lines, replace_text
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.store import Pool
from rmsd_jax.method import advantages

FILE = "samples.jsonl"
OUTER_LEAST = 0.05  # share of rollouts with think and answer tags, below which nothing is graded
SHARE_WITHIN = (0.02, 0.60)  # of the discriminator in the reward's variance


def warnings(metrics: Mapping[str, float]) -> dict[str, str]:
  """What is wrong with the rollouts of a step, by kind."""
  found = {}
  if metrics.get("rollout/outer", 1.0) < OUTER_LEAST:
    found["outer"] = (
      f"rollout/outer is {metrics['rollout/outer']:.3f}: next to no rollout has think and answer "
      "tags, so that no rule pays; look at samples.jsonl, and train stage 1 longer"
    )
  if metrics.get("rollout/finished", 1.0) == 0:
    found["finished"] = (
      "all rollouts were cut off at T: none has a score or a reward; build the pool with a larger "
      "T in --buckets, or train stage 1 longer"
    )
  # A run of the rules alone has no discriminator, and none of its share is to be warned of.
  judged = "discriminator/loss" in metrics
  share = metrics.get("reward/discriminator/variance_share") if judged else None
  low, high = SHARE_WITHIN
  # Without a group that is not dead there is no variance to have a share of.
  if share is not None and metrics["reward/dead_groups"] < 1 and not low <= share <= high:
    found["share"] = (
      f"the discriminator has {share:.0%} of the reward's variance inside groups: "
      + (
        "it hardly counts; a higher reward.discriminator lets it"
        if share < low
        else "it drives the policy alone; bound it (reward.score=sigmoid with policy.scale=none) "
        "or lower reward.discriminator"
      )
    )
  return found


class Shown:
  """Some rollouts of a step, as they were graded.

  Args:
    workdir: folder of the run.
    resume_step: lines of later steps are dropped.
    write: False on every process but the first, whose rollouts are shown.
    reward: config.reward.
    every: steps between two; 0: never.
    prompts: of a step that are shown.
  """

  def __init__(
    self,
    workdir: str,
    resume_step: int,
    write: bool,
    reward: Mapping[str, Any],
    *,
    every: int,
    prompts: int,
  ):
    self._path = epath.Path(workdir) / FILE
    self._reward = reward
    self._every = every
    self._prompts = prompts
    self._lines: list[str] = []
    self._write = write and every > 0
    self._seen: tuple = ()  # of the latest policy step, on the devices
    if self._write and self._path.exists():
      kept = complete_lines(self._path)
      self._lines = [text for text in kept if _step_of(text) <= resume_step]
      replace_text(self._path, "".join(self._lines))

  def around(self, steps):
    """The programs of a step; what the reward is made of is remembered."""
    if not self._write or not hasattr(steps, "reward"):
      return steps

    def reward(running, score_BN, samples, terms, pairs):
      made = steps.reward(running, score_BN, samples, terms, pairs)
      self._seen = (made[0].advantage_BN, score_BN, samples, terms, pairs)
      return made

    return steps._replace(reward=reward)

  def due(self, done: int) -> bool:
    """Whether rollouts are shown behind this step; steps of the warm-up have no reward to show."""
    return bool(self._seen) and done % self._every == 0

  def add(self, done: int, batch: Batch, pool: Pool, replies: Sequence[Sequence[str]]) -> str:
    """Stores some rollouts of the step; returns them as Markdown.

    Args:
      batch: of this process.
      pool: that its rows are of.
      replies: B x N texts.
    """
    host = lambda tree: jax.tree.map(sharding.local_rows, tree)
    advantage_BN, score_BN, samples, terms, pairs = map(host, self._seen)
    rewards = {"discriminator": score_BN} | terms.by_name()
    c = self._reward
    bounded_BN = advantages.bounded(score_BN, samples.length_BR, c["clip"], c["per_log_length"])
    paid_BN = advantages.score_term(bounded_BN, samples.finished_BR, c["score"])
    paid = rewards | {"discriminator": paid_BN}
    weights = advantages.weights_of(c)
    weighted = advantages.composite(paid, weights, pairs.closed_B, c["gate"])
    total_BN = np.sum([np.asarray(term) for term in weighted.values()], 0)
    texts = []
    for b in range(min(self._prompts, len(batch.row_B))):
      row = pool[int(batch.row_B[b])]
      line: dict[str, Any] = {"step": done, "row": int(batch.row_B[b]), "id": row.id}
      line |= {"clip": row.clip, "task": row.task}
      line |= {"question": row.question, "options": list(row.options), "answer": row.answer}
      line["times"] = np.round(row.times_F2, 3).tolist()  # s, of both frames of each pair
      line["rollouts"] = []
      for n, reply in enumerate(replies[b]):
        match = int(pairs.match_BN[b, n])
        line["rollouts"].append(
          {
            "reply": reply,
            "tokens": int(samples.length_BR[b, n]),
            "finished": bool(samples.finished_BR[b, n]),
            "terms": {name: float(x_BN[b, n]) for name, x_BN in rewards.items()},
            "reward": float(total_BN[b, n]),
            "advantage": float(advantage_BN[b, n]),
            "teacher": row.texts[match] if match >= 0 else None,
          }
        )
      self._lines.append(json.dumps(line) + "\n")
      texts.append(_markdown(line))
    replace_text(self._path, "".join(self._lines))
    return "\n\n".join(texts)


def _step_of(text: str) -> float:
  """The step of a line; of one that was damaged on the disk, later than any."""
  try:
    return json.loads(text)["step"]
  except (ValueError, TypeError, KeyError):
    return math.inf


def _markdown(line: Mapping[str, Any]) -> str:
  """One prompt for TensorBoard: its rollouts by advantage."""
  parts = [f"**{line['task']}** `{line['id']}`: {line['question']}", f"truth: {line['answer']}"]
  for one in sorted(line["rollouts"], key=lambda one: -one["advantage"]):
    terms = ", ".join(f"{name} {value:.2f}" for name, value in one["terms"].items())
    cut = "" if one["finished"] else ", cut off"
    parts.append(f"advantage {one['advantage']:+.2f} ({terms}{cut})")
    parts.append(f"    {one['reply']}".replace("\n", "\n    "))
  teachers = [one["teacher"] for one in line["rollouts"] if one["teacher"]]
  if teachers:
    parts += ["teacher:", f"    {teachers[0]}".replace("\n", "\n    ")]
  return "\n\n".join(parts)

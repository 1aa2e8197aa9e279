"""How a discriminator ranks held-out replies: right above wrong, the teacher's above the student's.

What stage 2 logs of this is of prompts that the discriminator learns from, at steps that move on.
Here one checkpoint scores the student's sampled replies to held-out prompts, and the teacher's
responses to them.
Axes: B prompts, N sampled replies, K teacher responses, R = N + K, those with a score.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsd_jax.core import intervals, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import join_responses
from rmsd_jax.data.batch import Batch
from rmsd_jax.method import shortcuts
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts.generate import Samples
from rmsd_jax.tasks import Rules

RANKED = {  # of `ranking`, in words
  "right": "right above wrong",
  "valid": "format kept above broken",
  "best": "quality of its favourite less the mean",
  "teacher": "the teacher's above sampled ones",
  "teacher_alike": "the same of like length and ending",
}
LIKE_LENGTH = 0.1  # lengths are alike that differ by at most this share of the longer one


class Critic(NamedTuple):
  """A discriminator that scores replies."""

  scores: Callable  # (params, groups) -> fp32 [B, R], jitted
  params: dict


def make_critic(model: Qwen3VL, mesh: jax.sharding.Mesh, params: dict) -> Critic:
  """Compiled when first called. `params`: all weights of the discriminator."""
  critic = Discriminator(model)
  # Padded rows: one pass without gradients, beside which sampling takes far longer.
  scores = lambda params, groups: sharding.constrained(critic(params, groups), sharding.BATCH)
  return Critic(jax.jit(scores, compiler_options=sharding.compiler_options(mesh)), params)


def add_scores(
  lines: list[dict[str, Any]], critic: Critic, mesh: jax.sharding.Mesh, batch: Batch, mine: Samples
) -> None:
  """Adds to the line of each prompt what `ranking` reads.

  To "sampled" the "score" of each reply, None where it was cut off (stage 2 gives it none), and
  its "ending", the ids before the end-of-turn token (`shortcuts.ENDING` of them); under "teacher"
  "score", "length" and "ending" of the teacher's responses, and "same", the numbers of the sampled
  replies that are the very same tokens.

  Args:
    lines: see `held_out.answered`.
    batch: of this process, with the teacher's responses.
    mine: this process's sampled replies, as numpy.

  Raises:
    UserError: a score is not finite.
  """
  students = batch.groups.with_responses(mine.responses_BRT, mine.length_BR)
  groups = join_responses(students, batch.groups)
  score_BR = sharding.local_rows(critic.scores(critic.params, sharding.put_batch(mesh, groups)))
  N = mine.length_BR.shape[1]
  known_BR = np.concatenate([mine.finished_BR, batch.present_BK], 1)
  if not np.isfinite(score_BR[known_BR]).all():
    raise UserError("the discriminator's scores are not finite; give an earlier --checkpoint")
  for b, line in enumerate(lines):
    ids_R = [
      ids_T[:length].tolist()
      for ids_T, length in zip(groups.responses_BRT[b], groups.response_length_BR[b], strict=True)
    ]
    ending_R = [ids[-1 - shortcuts.ENDING : -1] for ids in ids_R]
    score_R = [
      float(f"{score:.6g}") if known else None
      for score, known in zip(score_BR[b], known_BR[b], strict=True)
    ]
    line["sampled"] |= {"score": score_R[:N], "ending": ending_R[:N]}
    slots = (N + np.flatnonzero(batch.present_BK[b])).tolist()
    line["teacher"] = {
      "score": [score_R[r] for r in slots],
      "length": [len(ids_R[r]) for r in slots],
      "ending": [ending_R[r] for r in slots],
      "same": [[n for n in range(N) if ids_R[n] == ids_R[r]] for r in slots],
    }


def among_sampled(prompt: dict[str, Any], truth_N) -> float:
  """`intervals.concordance` of the scores of a prompt's sampled replies with how true they are, of
  those that have both (a truth of NaN is unknown): the area under the ROC curve for truths of 0 and
  1."""
  score_N = np.array(prompt["sampled"]["score"], np.float64)  # None: NaN
  truth_N = np.asarray(truth_N, np.float64)
  known_N = ~np.isnan(score_N) & ~np.isnan(truth_N)
  return intervals.concordance(score_N[known_N], truth_N[known_N])


def right_over_wrong(prompt: dict[str, Any], pass_above: float, rules: Rules) -> float:
  """`among_sampled` of the replies that keep their format, right being those of quality
  `pass_above` or more; NaN without both kinds.

  Args:
    prompt: graded, see `held_out.grade`.
  """
  right_N = intervals.passes(prompt["sampled"]["quality"], pass_above)
  return among_sampled(prompt, np.where(_is_valid(prompt, rules), right_N, np.nan))


def valid_over_invalid(prompt: dict[str, Any], rules: Rules) -> float:
  """`among_sampled` of the replies that keep their format above those that do not."""
  return among_sampled(prompt, _is_valid(prompt, rules))


def _is_valid(prompt: dict[str, Any], rules: Rules) -> np.ndarray:
  return rules.is_valid(*(np.array(prompt["sampled"][name]) for name in ("outer", "inner")))


def best_over_mean(prompt: dict[str, Any]) -> float:
  """Quality of the sampled reply with the highest score less the mean of those that have one: what
  the best of N by the score is worth; NaN where none has. Equal scores share the place.

  A score may rank pairs well and its favourites badly, and a policy seeks its favourites.
  """
  score_N = np.array(prompt["sampled"]["score"], np.float64)
  known_N = ~np.isnan(score_N)
  if not known_N.any():
    return float("nan")
  quality_N = np.array(prompt["sampled"]["quality"], np.float64)[known_N]
  return float(quality_N[score_N[known_N] == score_N[known_N].max()].mean() - quality_N.mean())


def teacher_over_student(prompt: dict[str, Any], alike: bool = False) -> float:
  """How often a teacher's response has a higher score than a sampled reply to the same prompt that
  is not the very same; NaN without such pairs.

  Args:
    alike: only pairs of like length (`LIKE_LENGTH`) and the same ending, which tell them apart no
      more.
  """
  sampled, teacher = prompt["sampled"], prompt["teacher"]
  both = lambda name: [*sampled[name], *teacher[name]]
  score_R = np.array(both("score"), np.float64)
  length_R, ending_R = np.array(both("length")), np.array([str(ids) for ids in both("ending")])
  is_teacher_R = np.arange(len(score_R)) >= len(sampled["score"])
  # From here on [teacher's response, sampled reply].
  fits_RR = ~np.isnan(score_R)[:, None] & ~np.isnan(score_R)
  for slot, same in enumerate(teacher["same"], len(sampled["score"])):
    fits_RR[slot, same] = False
  if alike:
    longer_RR = np.maximum(length_R[:, None], length_R)
    fits_RR &= np.abs(length_R[:, None] - length_R) <= LIKE_LENGTH * longer_RR
    fits_RR &= ending_R[:, None] == ending_R
  return intervals.concordance(score_R, is_teacher_R, fits_RR)


def ranking(prompts: list[dict[str, Any]], pass_above: float, rules: Rules) -> dict[str, Any]:
  """Means over prompts with 95 % intervals over clips, `intervals.mean_interval`.

  Returns:
    "right": `right_over_wrong` of the closed-ended prompts, and "tasks": the same by task;
    "valid": `valid_over_invalid`, "teacher" and "teacher_alike": `teacher_over_student`, of all
    prompts; in all of them 0.5 is chance. "best": `best_over_mean` of the closed-ended prompts;
    chance is 0.
  """
  closed = [prompt for prompt in prompts if prompt["closed"]]
  is_right = functools.partial(right_over_wrong, pass_above=pass_above, rules=rules)
  right = lambda rows: _mean(rows, is_right)
  tasks = sorted({prompt["task"] for prompt in closed})
  return {
    "right": right(closed),
    "tasks": {task: right([row for row in closed if row["task"] == task]) for task in tasks},
    "valid": _mean(prompts, functools.partial(valid_over_invalid, rules=rules)),
    "best": _mean(closed, best_over_mean),
    "teacher": _mean(prompts, teacher_over_student),
    "teacher_alike": _mean(prompts, functools.partial(teacher_over_student, alike=True)),
  }


def line(found: dict[str, Any]) -> str:
  """`ranking` for the console."""
  of = {name: found[name] for name in RANKED}
  parts = [
    f"{RANKED[name]} {x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}] of {x['n']} prompts"
    for name, x in of.items()
  ]
  return "; ".join(parts)


def _mean(prompts: list[dict[str, Any]], of: Callable[[dict], float]) -> dict[str, float]:
  """Over the prompts that have such pairs."""
  values = {i: value for i, row in enumerate(prompts) if not np.isnan(value := of(row))}
  return intervals.mean_interval(list(values.values()), [prompts[i]["clip"] for i in values])

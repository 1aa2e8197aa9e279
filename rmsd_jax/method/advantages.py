"""From reward terms to advantages, inside prompt groups.

    R(S_i) = alpha * D(S_i) + beta * R_outer + eta * R_task + delta * R_content
                                              (R-MSD, arXiv 2603.11423; weights by config)

`from_rewards` is the whole way, in order; what follows it are its parts.
Axes: B prompts, R or N rollouts of a prompt.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmsd_jax.core import masked
from rmsd_jax.method import custom_rewards
from rmsd_jax.method.carriers import Array, Pairs, RuleTerms

TERMS = ("discriminator", *RuleTerms.names())  # of the method; a user's file may add others
SCORES = ("raw", "sigmoid", "standardised")
SCALES = ("group", "task", "none")
FORMS = ("total", "separate", "gated")  # what is normalised inside a group, see `parts_of`


def weights_of(reward: Mapping) -> dict[str, float]:
  """Term -> weight; `reward` is that section of the config."""
  return {name: reward[name] for name in TERMS} | dict(custom_rewards.of_config(reward).weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Advantages:
  """What the policy loss takes from the rewards."""

  advantage_BN: jax.Array  # fp32, 0 for dead groups and rollouts that do not count
  counts_BN: jax.Array  # bool
  keep_kl_BN: jax.Array  # bool


def from_rewards(
  score_BN: jax.Array,
  finished_BN: jax.Array,
  terms: RuleTerms,
  pairs: Pairs,
  spread: dict,
  *,
  weights: Mapping[str, float],
  score: str,
  gate: bool,
  dead_below: float,
  form: str,
  right_from: float,
  format_penalty: float,
  scale: str,
  scale_decay: float,
  kl_of_dead: bool,
  mask_cut_off: bool,
  kl_teaches: bool = False,
) -> tuple[Advantages, dict, dict]:
  """Discriminator scores and rule terms -> (advantages, the new spread, metrics).

  Args:
    score_BN: the discriminator's logits, see also `bounded`.
    finished_BN: bool, rollouts that came to their end of turn.
    spread: running spread of each task's rewards, by task name, see `new_spread`.
    weights: by name: alpha, beta, eta, delta of TERMS, and those of `terms.custom`.
    score, gate, scale, form, right_from: see `score_term`, `composite`, `scales`, `parts_of`.
    format_penalty: if any, minus this is the advantage of a wrong outer format (PRISM).
    dead_below: groups whose rewards span less are dead; of each part, where there are several.
    scale_decay: of the running spread, per step.
    kl_of_dead: dead groups keep their KL term where another group is alive: Adam would turn the
      rounding of the KL alone into whole steps. With `kl_teaches`, a teacher's, they always do.
    mask_cut_off: rollouts that were cut off count neither in their group nor in the loss.
  """
  counts_BN = finished_BN | (not mask_cut_off)
  # 1. The reward: weighted terms.
  rewards = {"discriminator": score_term(score_BN, finished_BN, score), **terms.by_name()}
  weighted = composite(rewards, weights, pairs.closed_B, gate)
  total_BN = sum(weighted.values(), jnp.zeros(()))
  # 2. The scale: a spread that holds this step, too, so that the first step of a task has one.
  names = list(spread["weight"])
  lives_B = alive(total_BN, counts_BN, dead_below)
  known = _stacked(spread)
  followed = follow_spread(known, total_BN, counts_BN, lives_B, pairs.task_B, scale_decay)
  # 3. Advantages inside the group, of the reward or of its parts.
  scaled = lambda x_BN: scales(scale, x_BN, counts_BN, followed, pairs.task_B)
  parts = parts_of(form, rewards, weighted, weights, pairs.closed_B, right_from)
  advantage_BN, alive_B = added_up(parts, counts_BN, dead_below, scaled)
  wrong_BN = counts_BN & (terms.outer_BN != 1) & (format_penalty > 0)
  advantage_BN = jnp.where(wrong_BN, -format_penalty, advantage_BN)
  alive_B |= wrong_BN.any(-1)
  keep_kl_B = alive_B | (kl_of_dead & jnp.any(alive_B)) | kl_teaches
  keep_kl_BN = jnp.broadcast_to(keep_kl_B[:, None], advantage_BN.shape)
  metrics = reward_metrics(weighted, counts_BN)
  metrics |= shares_by_task(weighted["discriminator"], total_BN, counts_BN, pairs.task_B, names) | {
    "reward/dead_groups": 1 - jnp.mean(alive_B),
    "policy/tied_share": tied_share(advantage_BN, terms.content_BN, counts_BN, pairs.closed_B),
  }
  return Advantages(advantage_BN, counts_BN, keep_kl_BN), _by_name(followed, names), metrics


def bounded(score_BR: jax.Array, length_BR: jax.Array, clip: float, length: float) -> jax.Array:
  """The discriminator's logit as a reward may read it, fp32 [B, R] (PRISM, arXiv 2604.28123).

      clip(D, -clip, clip) - length * log(1 + tokens)

  Args:
    length_BR: int32, tokens of each rollout.
    clip: 0 leaves the logit as it is.
    length: what a longer rollout loses; 0: nothing.
  """
  if clip:
    score_BR = jnp.clip(score_BR, -clip, clip)
  return score_BR - length * jnp.log1p(length_BR.astype(jnp.float32)) if length else score_BR


def score_term(score_BR: jax.Array, finished_BR: jax.Array, form: str) -> jax.Array:
  """The discriminator's logit as a reward: `form` is one of SCORES, "standardised" in its group.

  A rollout that was cut off has no end-of-turn token to read the score at; it takes the minimum
  over the finished rollouts of its group, 0 if there are none (our decision).
  """
  if form == "sigmoid":
    score_BR = jax.nn.sigmoid(score_BR)
  elif form == "standardised":
    spread = masked.std(score_BR, finished_BR, -1, keepdims=True)
    score_BR = (score_BR - masked.mean(score_BR, finished_BR, -1, keepdims=True)) / (spread + 1e-6)
  # After the form, so that the minimum is one of the scores that the group is paid.
  lowest_B1 = jnp.min(jnp.where(finished_BR, score_BR, jnp.inf), -1, keepdims=True)
  return jnp.where(finished_BR, score_BR, jnp.where(jnp.isfinite(lowest_B1), lowest_B1, 0.0))


def composite(
  terms: dict, weights: Mapping[str, float], closed_B: Array, gate: bool
) -> dict[str, jax.Array]:
  """The weighted reward terms, each fp32 [B, R]; their sum is the reward.

  Args:
    terms, weights: by name.
    closed_B: bool, the prompt's task has a metric.
    gate: withhold the two format terms from responses of closed-ended prompts whose content
      score is 0, so that all-wrong groups learn nothing from format. The discriminator's term is
      never gated: it is the distillation signal (our decision).
  """
  weighted = {name: weights[name] * x_BR.astype(jnp.float32) for name, x_BR in terms.items()}
  if gate:
    pays_BR = ~closed_B[:, None] | (terms["content"] > 0)
    for name in ("outer", "inner"):
      weighted[name] = jnp.where(pays_BR, weighted[name], 0.0)
  return weighted


class Part(NamedTuple):
  """What is normalised inside its group by itself."""

  weight: float  # in the sum of the advantages
  reward_BN: jax.Array  # fp32
  pays_BN: jax.Array | bool  # False where it gives no advantage


def parts_of(
  form: str, terms: dict, weighted: dict, weights: Mapping, closed_B: Array, right_from: float
) -> list[Part]:
  """The parts of the reward whose advantages are added up; GN is normalisation inside a group.

      "total"     A = GN(sum_j w_j r_j)                                (GRPO; R-MSD as we read it)
      "separate"  A = sum_j w_j GN(r_j)                                       (PRISM, 2604.28123)
      "gated"     A = GN(rules) + alpha GN(D) [format right] [content right]                (PRISM)

  With "total" a term weighs by its spread, with "separate" by its weight alone, and with "gated"
  the discriminator ranks right rollouts only: it cannot pay for a wrong answer in a teacher's tone.

  Args:
    terms, weighted, weights: by name, see `composite`.
    closed_B: bool; an open-ended prompt has no content to be right.
    right_from: content score from which a rollout is right.
  """
  if form == "separate":
    # Of the weighted terms: with the gate of `composite`.
    return [Part(w, weighted[name] / w, True) for name, w in weights.items() if w]
  if form == "gated":
    rules_BN = sum(x_BN for name, x_BN in weighted.items() if name != "discriminator")
    right_BN = (terms["outer"] == 1) & (terms["inner"] == 1)
    right_BN &= ~closed_B[:, None] | (terms["content"] >= right_from)
    score_BN = terms["discriminator"].astype(jnp.float32)
    return [Part(1.0, rules_BN, True), Part(weights["discriminator"], score_BN, right_BN)]
  return [Part(1.0, sum(weighted.values()), True)]


def added_up(
  parts: Sequence[Part], counts_BN, dead_below: float, scaled: Callable
) -> tuple[jax.Array, jax.Array]:
  """The weighted sum of the parts' advantages, fp32 [B, N], and whether a part is alive, bool [B].

  Args:
    scaled: rewards [B, N] -> what their advantages are divided by [B], see `scales`.
  """
  advantage_BN = jnp.zeros(counts_BN.shape)
  alive_B = jnp.zeros(len(counts_BN), bool)
  for part in parts:
    lives_B = alive(part.reward_BN, counts_BN, dead_below)
    gained_BN = group_advantages(part.reward_BN, counts_BN, lives_B, scaled(part.reward_BN))
    advantage_BN += part.weight * jnp.where(part.pays_BN, gained_BN, 0.0)
    alive_B |= lives_B
  return advantage_BN, alive_B


def new_spread(tasks: Sequence[str]) -> dict:
  """No task's spread is known yet: {"variance", "weight"}, each task name -> fp32.

  By name, so that a checkpoint outlives a change of the tasks. In the order of `tasks`, which must
  be sorted: trees of dicts come back sorted.
  """
  return {name: {task: jnp.zeros(()) for task in tasks} for name in ("variance", "weight")}


def _stacked(spread: dict) -> dict:
  """Each fp32 [tasks]."""
  return {name: jnp.stack(list(by_task.values())) for name, by_task in spread.items()}


def _by_name(spread: dict, tasks: Sequence[str]) -> dict:
  """The inverse of `_stacked`."""
  return {name: dict(zip(tasks, x, strict=True)) for name, x in spread.items()}


def follow_spread(spread: dict, reward_BR, mask_BR, alive_B, task_B, decay: float) -> dict:
  """The running mean of the reward's variance inside groups, task by task.

  Exponential over the steps in which the task has a group that is not dead; `variance / weight` is
  free of the bias towards 0 of the first steps (as Adam's moments are).

  Args:
    spread: {"variance", "weight"}, each fp32 [tasks].
    alive_B: bool, groups that are not dead.
    task_B: int32 index of each prompt's task.
    decay: of the running mean, in [0, 1).
  """
  variance_B = masked.std(reward_BR, mask_BR, -1) ** 2
  of_task = (task_B == jnp.arange(len(spread["weight"]))[:, None]) & alive_B  # [tasks, B]
  seen = jnp.any(of_task, 1)
  now = masked.mean(jnp.broadcast_to(variance_B, of_task.shape), of_task, 1)
  # One reward that is not finite would stay in a running mean for good.
  seen &= jnp.isfinite(now)
  step = lambda old, new: jnp.where(seen, decay * old + (1 - decay) * new, old)
  return {"variance": step(spread["variance"], now), "weight": step(spread["weight"], 1.0)}


def scales(form: str, reward_BR, mask_BR, spread: dict, task_B, eps: float = 1e-6):
  """What advantages are divided by, fp32 [B]; `form` is one of SCALES.

  "group": the group's own s.d., unbiased, + eps (GRPO). "task": the running s.d. of the task's
  groups + eps, so that a group with little spread stays a small signal, and tasks with rewards of
  different spread weigh alike (after the EMA-GRPO of OneThinker, arXiv 2512.03043; the running
  mean is ours). "none": 1 (Dr. GRPO, arXiv 2503.20783).
  """
  if form == "group":
    return masked.std(reward_BR, mask_BR, -1) + eps
  if form == "task":
    # A task that was never seen has dead groups only, whose advantages are 0 by any divisor; this
    # one is there so that no NaN arises.
    known = spread["weight"] > 0
    return jnp.sqrt(spread["variance"] / jnp.where(known, spread["weight"], 1))[task_B] + eps
  return jnp.ones(len(reward_BR))


def _span(x_BR, mask_BR) -> jax.Array:
  """[B]: highest minus lowest value of the group; -inf where nothing counts."""
  highest_B = jnp.max(jnp.where(mask_BR, x_BR, -jnp.inf), -1)
  return highest_B - jnp.min(jnp.where(mask_BR, x_BR, jnp.inf), -1)


def alive(reward_BR, mask_BR, dead_below: float) -> jax.Array:
  """bool [B]: the group's rewards span at least `dead_below`, and more than 0."""
  span_B = _span(reward_BR, mask_BR)
  return (span_B >= dead_below) & (span_B > 0)


def group_advantages(reward_BR, mask_BR, alive_B, scale_B) -> jax.Array:
  """(r - group mean) / scale, fp32 [B, R].

  Args:
    mask_BR: rollouts that count.
    alive_B: `alive`; the advantages of a dead group are 0, never a tiny spread divided by itself.
    scale_B: `scales`.
  """
  advantage_BR = reward_BR - masked.mean(reward_BR, mask_BR, -1, keepdims=True)
  return jnp.where(alive_B[:, None] & mask_BR, advantage_BR / scale_B[:, None], 0.0)


def tied_share(advantage_BR, content_BR, mask_BR, closed_B) -> jax.Array:
  """Share of sum |A| that lies in tied groups: closed-ended, with content scores all alike.

  There nothing tells right from wrong: the gradient comes from format and the discriminator alone.
  0 where all advantages are 0.
  """
  tied_B = closed_B & (_span(content_BR, mask_BR) == 0)
  size_BR = jnp.abs(advantage_BR)
  return masked.total(size_BR, tied_B[:, None]) / jnp.maximum(jnp.sum(size_BR), 1e-12)


def reward_metrics(weighted: dict, mask_BR: jax.Array) -> dict:
  """Per term: mean, mean s.d. inside a group, and share of the reward's variance inside groups.

  The share of a term is cov(term, reward) / var(reward), pooled over groups; shares sum to 1.
  """
  reward_BR = sum(weighted.values())
  metrics = {
    "reward/mean": masked.mean(reward_BR, mask_BR),
    "reward/std_in_group": jnp.mean(masked.std(reward_BR, mask_BR, -1)),
  }
  for name, term_BR in weighted.items():
    metrics[f"reward/{name}/mean"] = masked.mean(term_BR, mask_BR)
    metrics[f"reward/{name}/std_in_group"] = jnp.mean(masked.std(term_BR, mask_BR, -1))
    metrics[f"reward/{name}/variance_share"], _ = share_of(term_BR, reward_BR, mask_BR)
  return metrics


def share_of(term_BR, reward_BR, mask_BR) -> tuple[jax.Array, jax.Array]:
  """cov(term, reward) / var(reward) inside groups, and the summed squares that var is of."""
  centred = lambda x: x - masked.mean(x, mask_BR, -1, keepdims=True)
  covariance = masked.total(centred(term_BR) * centred(reward_BR), mask_BR)
  squares = masked.total(centred(reward_BR) ** 2, mask_BR)
  return covariance / jnp.maximum(squares, 1e-12), squares


def shares_by_task(
  term_BR: jax.Array, reward_BR: jax.Array, mask_BR: jax.Array, task_B: Array, tasks: Sequence[str]
) -> dict:
  """The discriminator's share of the reward's variance inside the groups of each task, as in
  `reward_metrics`; NaN for a task whose rewards do not vary."""
  metrics = {}
  for i, task in enumerate(tasks):
    share, squares = share_of(term_BR, reward_BR, mask_BR & (task_B == i)[:, None])
    name = f"reward/discriminator/variance_share/{task}"
    metrics[name] = jnp.where(squares > 1e-12, share, jnp.nan)
  return metrics

"""From reward terms to advantages, inside prompt groups.

    R(S_i) = alpha * D(S_i) + beta * R_outer + eta * R_task + delta * R_content
                                              (R-MSD, arXiv 2603.11423; weights by config)

Axes: B prompts, R rollouts of a prompt.
"""

import jax
import jax.numpy as jnp

from rmsd_jax.core import masked

TERMS = ("discriminator", "outer", "task", "content")
SCORES = ("raw", "sigmoid", "standardised")
SCALES = ("group", "task", "none")


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
  lowest_B1 = jnp.min(jnp.where(finished_BR, score_BR, jnp.inf), -1, keepdims=True)
  return jnp.where(finished_BR, score_BR, jnp.where(jnp.isfinite(lowest_B1), lowest_B1, 0.0))


def composite(terms: dict, weights: dict, closed_B: jax.Array, gate: bool) -> dict:
  """The weighted reward terms, each fp32 [B, R]; their sum is the reward.

  Args:
    terms, weights: by the names in TERMS.
    closed_B: bool, the prompt's task has a metric.
    gate: withhold the two format terms from responses of closed-ended prompts whose content
      score is 0, so that all-wrong groups learn nothing from format. The discriminator's term is
      never gated: it is the distillation signal (our decision).
  """
  weighted = {name: weights[name] * terms[name].astype(jnp.float32) for name in TERMS}
  if gate:
    pays_BR = ~closed_B[:, None] | (terms["content"] > 0)
    for name in ("outer", "task"):
      weighted[name] = jnp.where(pays_BR, weighted[name], 0.0)
  return weighted


def new_spread(tasks: int) -> dict:
  """No task's spread is known yet: {"variance", "weight"}, each fp32 [tasks]."""
  return {"variance": jnp.zeros(tasks), "weight": jnp.zeros(tasks)}


def follow_spread(spread: dict, reward_BR, mask_BR, alive_B, task_B, decay: float) -> dict:
  """The running mean of the reward's variance inside groups, task by task.

  Exponential over the steps that hold a living group of the task; `variance / weight` is free of
  the bias towards 0 of the first steps (as Adam's moments are).

  Args:
    spread: `new_spread`, or what this function returned.
    alive_B: bool, groups that are not dead.
    task_B: int32 index of each prompt's task.
    decay: of the running mean, in [0, 1).
  """
  variance_B = masked.std(reward_BR, mask_BR, -1) ** 2
  of_task = (task_B == jnp.arange(len(spread["weight"]))[:, None]) & alive_B  # [tasks, B]
  seen = jnp.any(of_task, 1)
  now = masked.mean(jnp.broadcast_to(variance_B, of_task.shape), of_task, 1)
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
    known = spread["weight"] > 0
    return jnp.sqrt(spread["variance"] / jnp.where(known, spread["weight"], 1))[task_B] + eps
  return jnp.ones(len(reward_BR))


def _span(x_BR, mask_BR) -> jax.Array:
  """[B]: highest minus lowest value of the group; -inf where nothing counts."""
  highest_B = jnp.max(jnp.where(mask_BR, x_BR, -jnp.inf), -1)
  return highest_B - jnp.min(jnp.where(mask_BR, x_BR, jnp.inf), -1)


def alive(reward_BR, mask_BR, dead_below: float) -> jax.Array:
  """bool [B]: the group's rewards span at least `dead_below`."""
  return _span(reward_BR, mask_BR) >= dead_below


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
  """Share of the push, sum |A|, in closed-ended groups whose content scores are all alike.

  There nothing tells right from wrong: what pushes is format and the discriminator alone. 0 where
  nothing pushes.
  """
  tied_B = closed_B & (_span(content_BR, mask_BR) == 0)
  push_BR = jnp.abs(advantage_BR)
  return masked.total(push_BR, tied_B[:, None]) / jnp.maximum(jnp.sum(push_BR), 1e-12)


def reward_metrics(weighted: dict, mask_BR: jax.Array) -> dict:
  """Per term: mean, mean s.d. inside a group, and share of the reward's variance inside groups.

  The share of a term is cov(term, reward) / var(reward), pooled over groups; shares sum to 1.
  """
  reward_BR = sum(weighted.values())
  centred = lambda x: x - masked.mean(x, mask_BR, -1, keepdims=True)
  variance = masked.total(centred(reward_BR) ** 2, mask_BR)
  metrics = {
    "reward/mean": masked.mean(reward_BR, mask_BR),
    "reward/std_in_group": jnp.mean(masked.std(reward_BR, mask_BR, -1)),
  }
  for name, term_BR in weighted.items():
    covariance = masked.total(centred(term_BR) * centred(reward_BR), mask_BR)
    metrics[f"reward/{name}/mean"] = masked.mean(term_BR, mask_BR)
    metrics[f"reward/{name}/std_in_group"] = jnp.mean(masked.std(term_BR, mask_BR, -1))
    metrics[f"reward/{name}/variance_share"] = covariance / jnp.maximum(variance, 1e-12)
  return metrics

"""From reward terms to advantages, inside prompt groups.

    R(S_i) = alpha * D(S_i) + beta * R_outer + eta * R_task + delta * R_content
                                              (R-MSD, arXiv 2603.11423; weights by config)

Axes: B prompts, R rollouts of a prompt.
"""

import jax
import jax.numpy as jnp

from rmsd_jax import masked

TERMS = ("discriminator", "outer", "task", "content")


def score_term(score_BR: jax.Array, finished_BR: jax.Array, form: str) -> jax.Array:
  """The discriminator's logit as a reward: "raw", "sigmoid", or "standardised" in its group.

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


def group_advantages(reward_BR, mask_BR, divide_by_std: bool, dead_below: float, eps: float = 1e-6):
  """(r - group mean) / (group s.d. + eps), unbiased s.d. (GRPO); without the s.d. Dr. GRPO.

  Args:
    mask_BR: rollouts that count.
    dead_below: a group whose rewards span less than this is dead: its advantages are 0, never a
      tiny spread divided by itself.
  Returns:
    advantages fp32 [B, R], and alive bool [B].
  """
  span_B = jnp.max(jnp.where(mask_BR, reward_BR, -jnp.inf), -1) - jnp.min(
    jnp.where(mask_BR, reward_BR, jnp.inf), -1
  )
  alive_B = span_B >= dead_below
  advantage_BR = reward_BR - masked.mean(reward_BR, mask_BR, -1, keepdims=True)
  if divide_by_std:
    advantage_BR /= masked.std(reward_BR, mask_BR, -1, keepdims=True) + eps
  return jnp.where(alive_B[:, None] & mask_BR, advantage_BR, 0.0), alive_B


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

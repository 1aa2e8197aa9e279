"""What is handed from one part of a stage 2 step to the next, by name.

Registered with JAX, so each passes through jit and sharding as one argument.
Axes: B prompts, N rollouts of a prompt, T response tokens.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RuleTerms:
  """What the rules say of each rollout; fp32, the first three in [0, 1]."""

  outer_BN: Array  # R_outer: think and answer tags
  inner_BN: Array  # R_task: the task's own format, 0 where outer is 0
  content_BN: Array  # R_content: the metric against the ground truth, 0 for open-ended prompts
  custom: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # of a user's file, [B, N]

  @classmethod
  def names(cls) -> tuple[str, ...]:
    """Of the method's terms, as the weights in config.reward and the log call them."""
    fields = (field.name for field in dataclasses.fields(cls))
    return tuple(name.removesuffix("_BN") for name in fields if name.endswith("_BN"))

  def by_name(self) -> dict[str, Array]:
    return {name: getattr(self, f"{name}_BN") for name in self.names()} | dict(self.custom)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
  """Which teacher response each rollout is paired with, and what the step knows of the prompts."""

  match_BN: Array  # int32 m(i), the teacher slot of rollout i; -1: no pair
  paired_BN: Array  # bool, both responses of the pair ended by themselves
  differs_BN: Array  # bool, and they are not the same token by token: the pair counts
  weight_BN: Array  # fp32 q of that response; 1 where pairs are not weighed
  survivors_B: Array  # fp32, teacher responses that may supervise
  closed_B: Array  # bool, the prompt's task has a metric
  task_B: Array  # int32, index into the run's task names


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyBatch:
  """What the policy's loss reads of each rollout."""

  advantage_BN: Array  # fp32, 0 for a dead group
  counts_BN: Array  # bool, the rollout is part of its group and of the loss
  keep_kl_BN: Array  # bool, its KL term counts
  sampled_BNT: Array  # fp32 nats, log-probs of the sampler, to compare with the trainer's

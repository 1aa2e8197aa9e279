"""Values of stage 2's settings that make no sense, told before any work."""

from rmsd_jax.core.errors import UserError, check_least, check_within
from rmsd_jax.method import advantages, losses, matching

LEAST = {
  "log_every": 1,
  "reward.dead_below": 0,
  "rollouts.pieces": 1,
  "rollouts.samples": 2,  # each is compared with the others of its prompt
  "policy.kl": 0,
  "policy.max_kl": 0,
  "policy.format_penalty": 0,
  "discriminator.warmup_steps": 0,
  "discriminator.probe_every": 0,
  "discriminator.frozen_after": 0,
  "discriminator.score_l2": 0,
}
WITHIN = {f"reward.{name}": "[0, inf)" for name in advantages.TERMS} | {
  "rollouts.temperature": "(0, inf)",
  "policy.clip": "(0, inf)",
  "policy.scale_decay": "[0, 1)",
  "policy.jsd_beta": "[0, 1]",
  "reward.clip": "[0, inf)",
  "reward.per_log_length": "[0, inf)",
  "reward.right_from": "(0, 1]",
  "discriminator.pause_above": "[0, inf)",
}


def check_settings(config) -> None:
  """Raises UserError for a setting of stage 2 outside of what it may be."""
  for name, value, choices in (
    ("reward.score", config.reward.score, advantages.SCORES),
    ("policy.scale", config.policy.scale, advantages.SCALES),
    ("policy.advantage", config.policy.advantage, advantages.FORMS),
    ("policy.kl_estimator", config.policy.kl_estimator, (*losses.KL_ESTIMATORS, losses.JSD)),
  ):
    if value not in choices:
      raise UserError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
  matching.check_supervision(**config.supervision)
  if config.data.chat_share:
    raise UserError(
      f"data.chat_share={config.data.chat_share}: stage 2 rewards replies, and conversations have "
      "no reward; they are for stage 1"
    )
  if config.supervision.target == "near" and config.discriminator.joint_warmup:
    raise UserError(
      "supervision.target='near' is stage 1's: a joint warm-up does not score the teacher's "
      "responses; take 'best' for stage 2"
    )
  if config.reward.discriminator and config.discriminator.warmup_steps >= config.steps:
    raise UserError(
      f"discriminator.warmup_steps={config.discriminator.warmup_steps} of steps={config.steps} "
      "leave the student none; raise steps or lower the warm-up"
    )
  if config.policy.advantage != "total" and config.policy.scale == "task":
    raise UserError(
      f"policy.scale='task' follows the spread of the total reward, and "
      f"policy.advantage={config.policy.advantage!r} divides parts of it; take 'group' or 'none'"
    )
  if config.rollouts.top_p != 1 or config.rollouts.top_k != 0:
    raise UserError(
      "rollouts.top_p and top_k must be 1 and 0 in stage 2: the policy gradient is of the whole "
      "distribution that the rollouts are drawn from"
    )
  check_within(config, WITHIN)
  check_least(config, LEAST)
  if config.policy.reference and not config.policy.kl:
    raise UserError(
      "policy.reference names a teacher and policy.kl=0 leaves it out; give policy.kl a weight, "
      "such as 1 for on-policy distillation"
    )
  if config.policy.reference and config.reward.discriminator and config.discriminator.probe_every:
    raise UserError(
      "discriminator.probe_every wants the student of stage 1, which a run with policy.reference "
      "does not keep; set it to 0"
    )
  by_kl = config.policy.reference and config.policy.kl_estimator != "k1"  # its gradient is noise
  teaches = config.policy.format_penalty or by_kl
  if not any(advantages.weights_of(config.reward).values()) and not teaches:
    raise UserError(
      f"{', '.join(f'reward.{name}' for name in advantages.TERMS)} are all 0: no rollout earns "
      "more than another, and there is nothing to learn; give one of them a weight"
    )
  if config.reward.discriminator and config.discriminator.probe_every % config.log_every:
    raise UserError(
      f"discriminator.probe_every={config.discriminator.probe_every} is not a multiple of "
      f"log_every={config.log_every}: its figures would not be logged; give one, or 0 for none"
    )

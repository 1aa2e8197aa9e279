"""Settings of stage 2 that make no sense are refused before any work."""

import functools

import pytest
import tiny_run

from rmsd_jax import train_rl
from rmsd_jax.core.errors import UserError

CONFIG = functools.partial(tiny_run.config, "rl")
TERMS = ("reward__discriminator", "reward__outer", "reward__inner", "reward__content")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"policy__scale": "batch"}, "policy.scale is 'batch'; choose one of group, task, none"),
    ({"policy__kl_estimator": "k4"}, "policy.kl_estimator is 'k4'; choose one of k1, k2, k3"),
    ({"reward__score": "logit"}, "reward.score is 'logit'; choose one of raw, sigmoid, stand"),
    ({"discriminator__probe_every": 7, "log_every": 5}, "probe_every=7 is not a multiple"),
    ({"policy__scale_decay": 1.0}, r"scale_decay=1.0: it must be in \[0, 1\)"),
    ({"supervision__closed": "unifrom"}, "judge 'unifrom' is unknown; use one of ground_truth"),
    ({"supervision__tau": 3.0}, "tau 3.0: quality is in"),
    ({"rollouts__temperature": 0.0}, r"temperature=0.0: it must be in \(0, inf\)"),
    ({"rollouts__top_p": 0.9}, "top_p and top_k must be 1 and 0 in stage 2"),
    ({"rollouts__top_k": 5}, "top_p and top_k must be 1 and 0 in stage 2"),
    ({"discriminator__warmup_steps": 6, "steps": 6}, "warmup_steps=6 of steps=6 leave the student"),
    ({"rollouts__samples": 0}, "rollouts.samples=0; give 2 or more"),
    ({"rollouts__samples": 1}, "rollouts.samples=1; give 2 or more"),
    ({"rollouts__top_p": 1.5}, "top_p and top_k must be 1 and 0 in stage 2"),
    ({"rollouts__top_p": float("nan")}, "top_p and top_k must be 1 and 0 in stage 2"),
    ({"reward__content": float("nan")}, r"reward.content=nan: it must be in \[0, inf\)"),
    (
      {"reward__discriminator": float("inf")},
      r"reward.discriminator=inf: it must be in \[0, inf\)",
    ),
    ({"policy__kl": float("nan")}, "policy.kl=nan; give 0 or more"),
    ({"policy__kl": float("inf")}, "policy.kl=inf; give 0 or more"),
    ({"reward__outer": -1.0}, r"reward.outer=-1.0: it must be in \[0, inf\)"),
    ({"policy__clip": 0.0}, r"policy.clip=0.0: it must be in \(0, inf\)"),
    (dict.fromkeys(TERMS, 0.0), "reward.outer, .* are all 0: .* nothing to learn; give one"),
    (dict.fromkeys(TERMS, 0) | {"policy__kl": 0.1}, "are all 0: no rollout earns more"),
    ({"log_every": 0}, "log_every=0; give 1 or more"),
    ({"discriminator__warmup_steps": -3}, "warmup_steps=-3; give 0 or more"),
    ({"reward__dead_below": -1.0}, "reward.dead_below=-1.0; give 0 or more"),
  ],
)
def test_values_that_make_no_sense_are_refused(changes, words):
  with pytest.raises(UserError, match=words):
    train_rl.check_config(CONFIG(**changes))


@pytest.mark.parametrize("weight", [*TERMS, "policy__format_penalty"])
def test_one_term_of_the_reward_is_enough(weight):
  train_rl.check_config(CONFIG(**dict.fromkeys(TERMS, 0.0) | {weight: 0.5}))

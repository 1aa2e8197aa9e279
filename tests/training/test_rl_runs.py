"""Whole runs of stage 2: who learns when, the sampler's log-probs, resume, what stops one."""

import functools

import jax
import pytest
import tiny_run

from rmsd_jax import train_rl
from rmsd_jax.core.errors import UserError
from rmsd_jax.training import checkpoint

CONFIG = functools.partial(tiny_run.config, "rl", discriminator__optim__learning_rate=3e-3)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("rl") / "straight"
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.run(patch, train_rl, CONFIG(), workdir)
  return workdir


def test_warm_up_moves_the_discriminator_alone_and_the_reference_never_moves(straight):
  first = jax.device_get(tiny_run.rl_state(CONFIG()))
  warmed, last = (tiny_run.restored(straight, train_rl, CONFIG(), step) for step in (2, 6))
  for name in ("student", "student_optim", "reference", "frozen"):
    tiny_run.assert_same(warmed[name], first[name])
  every = {*tiny_run.flat(first["discriminator"])}
  assert tiny_run.moves(warmed["discriminator"], first["discriminator"]) == every
  for name in ("reference", "frozen"):
    tiny_run.assert_same(last[name], first[name])
  assert tiny_run.moves(last["student"], first["student"]) == {*tiny_run.flat(first["student"])}


def test_every_step_of_a_run_agrees_with_its_sampler(straight):
  written = tiny_run.lines(straight)
  assert [line["step"] for line in written] == [1, 2, 3, 4, 5, 6]
  gaps = [line.get("policy/sampler_trainer_gap") for line in written]
  # Rounding of log-probs as low as -15 nats; the untrained weights stay below 1e-5.
  assert gaps[:2] == [None, None] and max(gaps[2:]) < 3e-5
  for line in written:
    assert line["rollout/quality"] == 0 and 0 < line["rollout/finished"] < 1
    assert 0 < line["discriminator/pairs"] <= line["rollout/finished"]


def test_every_figure_of_the_log_is_explained(straight):
  assert not tiny_run.unexplained(straight)


def test_the_probe_looks_at_fixed_pairs_every_few_steps(straight):
  """Of the reference's rollouts on the first batch: the student's changes do not show."""
  written = tiny_run.lines(straight)
  probed = [line["step"] for line in written if "probe/margin" in line]
  assert probed == [3, 6]
  assert written[2]["probe/margin"] != written[5]["probe/margin"]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(straight, tmp_path, monkeypatch):
  tiny_run.run(monkeypatch, train_rl, CONFIG(), tmp_path, stop_after=5)
  assert checkpoint.find_step(str(tmp_path)) == 4
  tiny_run.run(monkeypatch, train_rl, CONFIG(), tmp_path)
  assert tiny_run.lines(tmp_path) == tiny_run.lines(straight)
  resumed, whole = (tiny_run.restored(d, train_rl, CONFIG(), 6) for d in (tmp_path, straight))
  tiny_run.assert_same(resumed, whole)


def test_a_student_that_runs_away_is_stopped_before_it_is_saved(tmp_path, monkeypatch):
  c = CONFIG(policy__max_kl=1e-9, save_every=1)
  with pytest.raises(UserError, match="nats per token at step 4, over policy.max_kl=1e-09: the"):
    tiny_run.run(monkeypatch, train_rl, c, tmp_path)
  assert checkpoint.find_step(str(tmp_path)) == 3  # at its first update it was the reference


def test_schedules_are_over_the_updates_that_each_makes(monkeypatch):
  monkeypatch.setattr(train_rl.optim, "make", lambda section, steps: steps)
  c = CONFIG(steps=8, discriminator__warmup_steps=2, discriminator__frozen_after=4)
  assert train_rl.make_optims(c) == {"student": 6, "reference": None, "discriminator": 8}
  c.discriminator.joint_warmup = True  # the student learns from the first step on
  assert train_rl.make_optims(c)["student"] == 8
  c.reward.discriminator = 0.0
  assert train_rl.make_optims(c) == {"student": 8, "reference": None}


SWITCHES = {
  "joint": {
    "discriminator__joint_warmup": True,
    "discriminator__zero_head": True,
    "policy__advantage": "gated",
  },
  "prism": {
    "policy__advantage": "separate",
    "policy__format_penalty": 1.5,
    "policy__kl": 0.0,
    "reward__clip": 10.0,
    "reward__per_log_length": 0.1,
    "discriminator__score_l2": 0.001,
  },
}


@pytest.mark.parametrize("row", ["joint", pytest.param("prism", marks=pytest.mark.slow)])
def test_a_run_of_our_own_rows_ends_and_resumes(row, tmp_path, monkeypatch):
  c = CONFIG(**SWITCHES[row])
  tiny_run.run(monkeypatch, train_rl, c, tmp_path / "whole")
  assert not tiny_run.unexplained(tmp_path / "whole")
  written = tiny_run.lines(tmp_path / "whole")
  joint = row == "joint"
  assert ["warmup/loss" in line for line in written] == [joint, joint, *[False] * 4]
  assert ["policy/loss" in line for line in written] == [False, False, *[True] * 4]
  if joint:  # the head learns from 0, and until then every score is 0
    assert written[0]["discriminator/score_student"] == 0 != written[2]["discriminator/margin"]
  tiny_run.run(monkeypatch, train_rl, c, tmp_path / "cut", stop_after=3)
  tiny_run.run(monkeypatch, train_rl, c, tmp_path / "cut")
  assert tiny_run.lines(tmp_path / "cut") == written
  resumed, whole = (tiny_run.restored(tmp_path / name, train_rl, c, 6) for name in ("cut", "whole"))
  tiny_run.assert_same(resumed, whole)

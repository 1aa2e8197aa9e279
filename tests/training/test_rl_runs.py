"""Whole runs of stage 2: who learns when, the sampler's log-probs, resume, what stops one."""

import functools
import json
import shutil

import jax
import pytest
import tiny_run

from rmsd_jax import train_rl
from rmsd_jax.core.errors import UserError
from rmsd_jax.models import hf
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


def test_a_teacher_that_is_another_model_distils_and_stays_as_it_is(tmp_path, monkeypatch):
  """GKD over all tokens of one with a layer more, no reward: the divergence falls."""
  teacher = tiny_run.teacher_folder()
  nothing = {f"reward__{name}": 0.0 for name in ("discriminator", "outer", "inner", "content")}
  c = CONFIG(
    policy__reference=str(teacher),
    policy__kl=1.0,
    policy__kl_estimator="jsd",
    discriminator__probe_every=0,
    **nothing,
  )
  tiny_run.run(monkeypatch, train_rl, c, tmp_path / "cut", stop_after=3)
  tiny_run.run(monkeypatch, train_rl, c, tmp_path / "cut")
  fallen = [line["policy/kl"] for line in tiny_run.lines(tmp_path / "cut")]
  assert len(fallen) == 6 and max(fallen[3:]) < min(fallen[:2])
  state = tiny_run.restored(tmp_path / "cut", train_rl, c, 6)
  text = hf.load(teacher)[1]["text"]
  tiny_run.assert_same(state["reference"]["text"], text)
  assert tiny_run.moves(
    state["student"], tiny_run.restored(tmp_path / "cut", train_rl, c, 4)["student"]
  )


def test_a_teacher_of_another_kind_is_refused(tmp_path, monkeypatch):
  refused = lambda words: pytest.raises(UserError, match=words)
  c = CONFIG(policy__reference=str(tiny_run.teacher_folder()), discriminator__probe_every=0)
  for words, changes in (
    ("policy.kl=0 leaves it out", {"policy__kl": 0.0}),
    ("probe_every wants the student of stage 1", {"discriminator__probe_every": 3}),
    ("config.json does not exist", {"policy__reference": str(tmp_path)}),
  ):
    given = {"policy__reference": c.policy.reference, "discriminator__probe_every": 0} | changes
    with refused(words):
      tiny_run.run(monkeypatch, train_rl, CONFIG(**given), tmp_path / "run")
  other = tmp_path / "other"
  shutil.copytree(c.policy.reference, other)
  words = json.loads((other / "tokenizer.json").read_text())
  vocabulary = words["model"]["vocab"]
  one, two = [word for word, id_ in vocabulary.items() if id_ in (300, 301)]
  vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
  (other / "tokenizer.json").write_text(json.dumps(words))
  with refused("has other tokens than the student's"):
    tiny_run.run(
      monkeypatch,
      train_rl,
      CONFIG(policy__reference=str(other), discriminator__probe_every=0),
      tmp_path / "run",
    )

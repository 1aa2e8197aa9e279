"""Held-out looks: when they end a run, what they see, and that training does not notice."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import small_pool
import tiny_run

from rmsd_jax import train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import epochs, loader, store
from rmsd_jax.method import custom_rewards
from rmsd_jax.rollouts import looks
from rmsd_jax.training import checkpoint, log, loop, stopping

LOOKING = functools.partial(
  tiny_run.config, evaluate__every=2, data__held_out=0.3, evaluate__prompts=8, save_every=100
)


def drive(monkeypatch, workdir, scores, rewards=(), width=0.05, stop_after=None, **changes) -> list:
  """A run of a step for each reward or two for each score, without model and devices: looks and
  rewards as given. Returns the lines of its log."""
  c = LOOKING("rl", steps=2 * len(scores), keep=20, **changes)
  on = tiny_run.mesh()
  monkeypatch.setattr(loop.sharding, "make_mesh", lambda **_: on)
  state = {"student": {"w": jnp.zeros(2)}, "frozen": {"v": jnp.ones(2)}}
  with loop.Loop(c, str(workdir), stage=2, needs_teacher=False) as made:
    made._load = lambda start, end, workers: iter([(step, None) for step in range(start, end)])
    for step, _ in made.batches():
      ends = {"quality": 0, "low": -width, "high": width}
      figures = {
        f"held_out/{how}/{name}": scores[step // 2] + end
        for how in looks.WAYS
        for name, end in ends.items()
      }
      made._look = lambda params, figures=figures: figures
      made.after(step, state, {"reward/mean": rewards[step]} if rewards else {}, note="loss")
      if step + 1 == stop_after:
        break
  return log.read(str(workdir))


RISING = [0.1 * step for step in range(12)]


def test_a_rigged_reward_is_stopped_with_the_reason(monkeypatch, tmp_path):
  """A term that pays length: the reward rises, the held-out score falls."""
  with pytest.raises(UserError) as stop:
    drive(monkeypatch, tmp_path, [0.5, 0.6, 0.57, 0.4, 0.3, 0.2], RISING)
  text = str(stop.value)
  assert text.startswith("the reward is being hacked: since step 4 it rose from 0.25 to 0.65, and ")
  assert "fell from 0.600 (interval from 0.550) to 0.400 at step 8" in text
  assert checkpoint.find_step(str(tmp_path), "best") == 4  # and nothing of later
  assert [line["step"] for line in log.read(str(tmp_path))][-1] == 8


def test_a_best_look_of_the_warm_up_has_no_reward_and_the_next_one_counts():
  """As in a joint warm-up, in which the student goes on with stage 1."""
  nan = float("nan")
  looks = [(0.7, nan), (0.66, 0.2), (0.68, 0.5), (0.3, 1.1)]
  seen = [stopping.Seen(10 * i, score, score - 0.05, x) for i, (score, x) in enumerate(looks, 1)]
  assert stopping.hacked(seen[:3]) == "" == stopping.hacked(seen[:1])
  assert "since step 20 it rose from 0.2 to 1.1, and" in stopping.hacked(seen)
  assert stopping.hacked([*seen[:3], seen[3]._replace(reward=0.1)]) == ""


@pytest.mark.parametrize(
  ("scores", "rewards"),
  [
    ([0.3, 0.4, 0.5, 0.55, 0.6, 0.62], RISING),  # healthy
    ([0.5, 0.6, 0.57, 0.56, 0.58, 0.551], RISING),  # noise inside the interval
    ([0.5, 0.6, 0.5, 0.4, 0.3, 0.2], RISING[::-1]),  # worse, but the reward knows
    ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], ()),  # stage 1 has no reward
  ],
  ids=["healthy", "noise", "reward falls", "no reward"],
)
def test_other_runs_go_on(monkeypatch, tmp_path, scores, rewards):
  assert drive(monkeypatch, tmp_path, scores, rewards)[-1]["step"] == 12


def test_a_run_may_be_told_to_go_on(monkeypatch, tmp_path):
  scores = [0.5, 0.6, 0.57, 0.4, 0.3, 0.2]
  lines = drive(monkeypatch, tmp_path, scores, RISING, evaluate__stop_hacking=False)
  assert lines[-1]["step"] == 12


def test_patience_ends_a_run_at_a_saved_step_and_the_next_start_knows(
  monkeypatch, tmp_path, capsys
):
  scores = [0.3, 0.5, 0.5, 0.45, 0.4, 0.6]
  lines = drive(monkeypatch, tmp_path, scores, evaluate__patience=2)
  assert lines[-1]["step"] == 8
  assert checkpoint.find_step(str(tmp_path)) == 8
  assert checkpoint.find_step(str(tmp_path), "best") == 4  # saved for being the best
  assert "no gain in 2 held-out looks (evaluate.patience=2): the best was 0.500 at step 4" in (
    capsys.readouterr().out
  )
  assert drive(monkeypatch, tmp_path, scores, evaluate__patience=2) == lines
  # More patience is an operational key: the same folder goes on.
  assert drive(monkeypatch, tmp_path, scores, evaluate__patience=5)[-1]["step"] == 12
  assert checkpoint.find_step(str(tmp_path), "best") == 12


def test_a_resumed_run_stops_where_the_uninterrupted_one_does(monkeypatch, tmp_path):
  scores = [0.5, 0.6, 0.57, 0.4, 0.3, 0.2]
  drive(monkeypatch, tmp_path, scores, RISING, stop_after=7, save_every=1)
  with pytest.raises(UserError, match="since step 4 it rose from 0.25 to 0.65"):
    drive(monkeypatch, tmp_path, scores, RISING, save_every=1)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"data__held_out": 0.0}, "evaluate.every=2 wants prompts that training never sees: give"),
    ({"data__held_out": 0.0, "evaluate__split": "train"}, "evaluate.split, a split other than"),
    ({"evaluate__split": "dev"}, "has no split 'dev', only"),
    ({"data__held_out": 1.0}, r"data.held_out=1.0: it must be in \[0, 1\)"),
    ({"data__held_out": 1e-9}, "data.held_out=1e-09 holds out 0 of 48 prompts"),
    ({"evaluate__prompts": 0}, "evaluate.prompts=0; give 1 or more"),
    ({"evaluate__patience": -1}, "evaluate.patience=-1; give 0 or more"),
  ],
)
def test_what_cannot_be_looked_at_is_refused_before_weights_are_loaded(
  monkeypatch, tmp_path, changes, words
):
  monkeypatch.setattr(train_sft.state_lib, "load_student", None)
  with pytest.raises(UserError, match=words):
    tiny_run.run(monkeypatch, train_sft, LOOKING("sft", **changes), tmp_path)


def test_a_run_goes_on_with_the_reward_terms_it_began_with(monkeypatch, tmp_path):
  terms = tmp_path / "rewards.py"
  text = "REWARDS = {'short': lambda replies, prompts: []}"

  def go_on(text):
    terms.write_text(text)
    custom_rewards._load.cache_clear()  # as in another process
    reward = {"reward__module": str(terms), "save_every": 1}
    return drive(monkeypatch, tmp_path / "run", [0.5, 0.6], RISING, **reward)

  lines = go_on(text)
  assert go_on(text) == lines
  with pytest.raises(UserError, match="reward.json belongs to another reward: file .* -> "):
    go_on(text + "  # longer")


# what is held out


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_held_out_rows_share_no_clip_with_training_and_are_never_trained_on(share):
  pool = store.open_pool(tiny_run.pool_folder(), "train")
  training, held_out = epochs.apart(pool, share)
  clips = [{pool[row].clip for row in epochs.in_turn(part)} for part in (training, held_out)]
  assert clips[0] and clips[1] and not clips[0] & clips[1]
  assert len(epochs.in_turn(training)) + len(epochs.in_turn(held_out)) == len(pool)
  assert len(clips[1]) / len(clips[0] | clips[1]) == pytest.approx(share, abs=0.2)
  steps = loader.Steps(training, 4, 0, 4)
  assert steps.per_epoch == epochs.per_epoch(training, 4)
  seen = {int(row) for step in range(3 * steps.per_epoch) for row in steps.rows(step)}
  assert seen <= set(epochs.in_turn(training).tolist())
  few = epochs.some(held_out, 3, ())
  assert len(epochs.in_turn(few)) == min(3, len(epochs.in_turn(held_out)))
  assert set(epochs.in_turn(few)) <= set(epochs.in_turn(held_out))


def test_a_pool_of_before_cannot_hold_clips_out():
  pool = small_pool.make_pool()
  with pytest.raises(UserError, match="is from before clips were in its index; build it again"):
    epochs.apart(type("Old", (), {"clip_N": None, "directory": "POOL"})(), 0.1)
  assert epochs.per_epoch(pool, 4) == loader.Steps(pool, 4, 0, 2).per_epoch


# a real run


def test_training_does_not_notice_that_it_is_looked_at(monkeypatch, tmp_path):
  """Weights and metrics bit for bit; the looks are those that the weights give."""
  seen = []
  call = looks.Look.__call__

  def kept(self, params):
    seen.append((self, call(self, params)))
    return seen[-1][1]

  monkeypatch.setattr(looks.Look, "__call__", kept)
  for name, every in (("looked", 2), ("alone", 0)):
    c = LOOKING("sft", steps=4, save_every=2, evaluate__every=every, data__draws="seed")
    tiny_run.run(monkeypatch, train_sft, c, tmp_path / name)
  looked, alone = (tiny_run.lines(tmp_path / name) for name in ("looked", "alone"))
  told = [{k: v for k, v in line.items() if k.startswith("held_out/")} for line in looked]
  assert [bool(line) for line in told] == [False, True, False, True]
  assert told[1::2] == [figures for _, figures in seen]
  assert [{k: v for k, v in line.items() if k not in told[1]} for line in looked] == alone
  one, other = (tiny_run.restored(tmp_path / x, train_sft, c, 4) for x in ("looked", "alone"))
  tiny_run.assert_same(one, other)
  # Each way by itself: greedy and sampled replies differ in length, and a look is repeatable.
  assert 0 < told[1]["held_out/sampled/length"] != told[1]["held_out/greedy/length"] > 0
  assert not tiny_run.unexplained(tmp_path / "looked")
  rows = set(epochs.in_turn(seen[0][0]._pool).tolist())
  training, _ = epochs.apart(store.open_pool(c.data.pool, "train"), 0.3)
  assert len(rows) == 8 and not rows & set(epochs.in_turn(training).tolist())


def test_figures_are_means_over_prompts_with_intervals_over_clips():
  reply = lambda *scores: {
    "quality": scores, "outer": [1.0] * len(scores), "inner": [1.0] * len(scores),
    "length": [3] * len(scores), "finished": [True] * len(scores), "text": [""] * len(scores),
  }  # fmt: skip
  prompts = [
    {"clip": f"c{i}", "task": "ocr", "closed": True, "greedy": reply(g), "sampled": reply(*s)}
    for i, (g, s) in enumerate([(1.0, (1.0, 0.0)), (0.0, (0.0, 0.0)), (1.0, (1.0, 1.0))])
  ]
  found = looks.figures_of(json.loads(json.dumps(prompts)), 0.5, tiny_run.Rules())
  assert found["held_out/greedy/quality"] == pytest.approx(2 / 3)
  assert found["held_out/sampled/quality"] == pytest.approx(0.5)
  assert found["held_out/sampled/low"] < 0.5 < found["held_out/sampled/high"]
  assert found["held_out/greedy/quality/ocr"] == pytest.approx(2 / 3)
  for prompt in prompts:
    prompt["closed"] = False
  found = looks.figures_of(prompts, 0.5, tiny_run.Rules())
  assert found[stopping.SCORE] == found["held_out/sampled/low"] == found["held_out/sampled/format"]
  assert np.isfinite(list(found.values())).all()

"""Several teachers: their weights by a second formula, the draws, and runs of a pool of two."""

import functools

import numpy as np
import pytest
import test_pairs
import tiny_run
from scipy import stats

from rmsd_jax import train_rl, train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import store
from rmsd_jax.demo import simulated_teacher
from rmsd_jax.method import matching, reliability
from rmsd_jax.tasks import Rules
from rmsd_jax.training import loop

CLOSED = {"count": True, "where": True, "describe": False}
# Task -> teacher -> the quality of each of its responses.
SAID = {
  "count": {"large": [1.0, 1.0, 0.5], "small": [0.0] * 200},
  "where": {"large": [0.25], "late": [0.5, 0.75]},
  "describe": {"large": [0.0], "small": [0.0], "late": [0.0]},
}
MEASURED = {
  task: {teacher: (len(found), sum(found)) for teacher, found in of.items()}
  for task, of in SAID.items()
}
DRAWS = 20_000


def test_weights_are_means_with_twenty_average_responses_more():
  got = reliability.weights(MEASURED, CLOSED)
  for task in ("count", "where"):
    average = np.mean(np.concatenate([*SAID[task].values()]))
    for teacher in ("large", "small", "late"):
      more = [*SAID[task].get(teacher, []), *[average] * 20]
      assert got[task][teacher] == pytest.approx(np.mean(more), abs=1e-12)
  for teacher, weight in got["describe"].items():
    assert weight == pytest.approx((got["count"][teacher] + got["where"][teacher]) / 2)
  # Three good answers are not yet much better than the rest; 200 bad ones are worse.
  assert got["count"]["large"] < 0.2 and got["count"]["small"] < 0.5 * got["count"]["late"]


def test_the_best_is_the_one_of_the_highest_weight_at_each_task():
  weighed = reliability.weights(MEASURED, CLOSED)
  best = reliability.weights(MEASURED, CLOSED, reliability.BEST)
  assert best.keys() == weighed.keys()
  for task, of in best.items():
    assert [m for m in of if of[m] == 1] == [max(weighed[task], key=weighed[task].get)]
    assert all(0 < weight <= 1 for weight in of.values())


def test_what_tells_no_one_apart_does_not_count():
  """A task at which all are worth nothing, one without responses, teachers that share no task."""
  ones = dict.fromkeys(("large", "small"), 1.0)
  nothing = {"count": {"large": (3, 0.0), "small": (9, 0.0)}, "describe": {"large": (1, 0.0)}}
  assert reliability.weights(nothing, CLOSED) == {"count": ones, "describe": ones}
  more = MEASURED | {"time": {"large": (50, 0.0)}, "box": {}}
  got = reliability.weights(more, CLOSED | {"time": True, "box": True})
  known = reliability.weights(MEASURED, CLOSED)
  assert got["describe"] == got["box"] == known["describe"]
  assert set(got["time"].values()) == {1.0}
  rng = np.random.default_rng(0)
  for _ in range(100):  # equal but for rounding
    apart = {"count": {"a": (int(rng.integers(1, 99)), float(rng.random())), "b": (1, 0.3)}}
    apart |= {f"t{i}": {"a": (int(rng.integers(1, 9)), float(rng.random()))} for i in range(4)}
    apart |= {"describe": {"c": (1, 0.0), "d": (1, 0.0)}}
    closed = {task: task != "describe" for task in apart}
    best = reliability.weights(apart, closed, reliability.BEST)["describe"]
    assert best["c"] == best["d"]


@pytest.mark.parametrize(
  "measured",
  [
    {"count": {"large": (3, 2.0)}},
    {"count": {"large": (3, 2.0)}, "where": {"small": (3, 2.0)}, "describe": {"": (1, 0.0)}},
    {"describe": {"large": (3, 0.0), "small": (3, 0.0)}},
    {"count": {}},
    {},
  ],
)
def test_a_pool_that_cannot_tell_teachers_apart_is_refused(measured):
  with pytest.raises(UserError, match="in this pool no two have any"):
    reliability.weights(measured, CLOSED)


def shares(picks, size=4):
  return np.bincount(picks, minlength=size)


@pytest.mark.parametrize(("graded", "by_quality"), [(True, True), (True, False), (False, True)])
def test_pairs_are_drawn_by_weight_times_what_they_are_drawn_by_alone(graded, by_quality):
  quality_K, trust_K = np.array([0.9, 0.3, 0.6, 1.0]), np.array([0.2, 0.8, 0.4, 0.5], np.float32)
  keep_K = np.array([1, 1, 1, 0], bool)
  rng = matching.rng_for(0, 0, 0)
  counts = shares(matching.draw(quality_K, keep_K, graded, by_quality, DRAWS, rng, trust_K))
  want = keep_K * trust_K * (quality_K if graded and by_quality else 1)
  assert counts[3] == 0
  assert stats.chisquare(counts[:3], DRAWS * want[:3] / want.sum()).pvalue > 1e-4


def test_targets_that_are_equally_good_are_drawn_by_weight():
  rng = np.random.default_rng(0)
  quality_K, trust_K = np.array([1.0, 1.0, 0.5, 1.0]), np.array([0.2, 0.6, 0.9, 0.2], np.float32)
  keep_K = np.ones(4, bool)
  pick = lambda: matching.choose_target(quality_K, keep_K, True, "best", rng, None, trust_K)
  counts = shares([pick() for _ in range(DRAWS // 4)])
  assert counts[2] == 0
  assert stats.chisquare(counts[[0, 1, 3]], DRAWS // 4 * np.array([0.2, 0.6, 0.2])).pvalue > 1e-4


@pytest.mark.parametrize("rule", matching.RULES)
def test_equal_weights_change_no_draw(rule):
  quality_K, keep_K, ones_K = np.array([1.0, 0.4, 1.0]), np.ones(3, bool), np.ones(3, np.float32)
  for row in range(50):
    rng = functools.partial(matching.rng_for, 1, 2, row)
    target = functools.partial(matching.choose_target, quality_K, keep_K, True, rule)
    assert target(rng()) == target(rng(), None, ones_K)
    draw = functools.partial(matching.draw, quality_K, keep_K, True, True, 8)
    np.testing.assert_array_equal(draw(rng()), draw(rng(), ones_K))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A pool of two teachers, who answer in turn."""
  folder = tmp_path_factory.mktemp("two")
  noises = simulated_teacher.NOISES["two"]
  simulated_teacher.make_pool(
    folder / "raw", train_prompts=40, test_prompts=2, seed=3, workers=1,
    teacher=simulated_teacher.Teacher(4, *noises),
  )  # fmt: skip
  tiny_run.build_pool([folder / "raw" / "pool.jsonl", folder / "raw" / "test.jsonl"], folder / "p")
  return folder / "p"


def test_a_pool_says_how_good_each_teacher_was_at_each_task(two):
  opened = store.open_pool(two, "train")
  sums = {}
  for row in (opened[i] for i in range(len(opened))):
    assert row.teachers == ("simulated-teacher", "second-teacher") * 2
    for teacher, quality in zip(row.teachers, row.quality_K, strict=True):
      sums.setdefault(row.task, {}).setdefault(teacher, []).append(float(quality))
  told = opened.metadata["teachers"]
  assert told.keys() == sums.keys()
  for task, of in sums.items():
    assert told[task].keys() == of.keys()
    for teacher, found in of.items():
      assert told[task][teacher] == pytest.approx([len(found), sum(found)])


def config(stage, two, **changes):
  return tiny_run.config(stage, data__pool=str(two), steps=4, **changes)


@pytest.mark.parametrize(("module", "stage"), [(train_sft, "sft"), (train_rl, "rl")])
def test_a_run_learns_from_the_best_teacher_and_resumes_bit_for_bit(
  module, stage, two, tmp_path, monkeypatch, capsys
):
  batches, after = [], loop.Loop.batches
  monkeypatch.setattr(
    loop.Loop, "batches", lambda self: ((s, batches.append(b) or b) for s, b in after(self))
  )
  c = config(stage, two, supervision__teachers="best")
  tiny_run.run(monkeypatch, module, c, tmp_path / "straight")
  assert "second-teacher: " in capsys.readouterr().out
  trust = reliability.weights(
    store.read_metadata(two)["teachers"], Rules(**c.tasks).closed, reliability.BEST
  )
  taught = paired = 0
  for step, batch in enumerate(batches):
    for b, told in enumerate(batch.info):
      of = [trust[told["task"]][name] for name in ("simulated-teacher", "second-teacher")] * 2
      np.testing.assert_allclose(batch.trust_BK[b], of, rtol=1e-6)
    groups = matching.targets(batch, seed=c.seed, step=step, **c.supervision)
    for b in range(len(batch.row_B)):
      best = batch.valid_BK[b] & (batch.trust_BK[b] == 1)
      if batch.closed_B[b] or not best.any() or not groups.response_length_BR[b, 0]:
        continue  # of closed-ended ones their own quality decides first
      length = groups.response_length_BR[b, 0]
      said = groups.responses_BRT[b, 0, :length].tolist()
      ids = [batch.groups.responses_BRT[b, k].tolist()[:length] for k in np.flatnonzero(best)]
      assert said in ids
      taught += 1
    # Stage 2: every rollout is paired with the best teacher where that has what may be drawn.
    rollouts = test_pairs.rollouts(batch, c)
    match_BN = train_rl.pairs_of(batch, rollouts, step, c).match_BN
    for b in range(len(batch.row_B)):
      drawn = batch.valid_BK[b] & (~batch.closed_B[b] | (batch.quality_BK[b] >= 0.3))
      if (drawn & (batch.trust_BK[b] == 1)).any():
        assert (batch.trust_BK[b, match_BN[b]] == 1).all()
        paired += (drawn & (batch.trust_BK[b] < 1)).any()
  assert taught and paired
  tiny_run.run(monkeypatch, module, c, tmp_path / "resumed", stop_after=2)
  tiny_run.run(monkeypatch, module, c, tmp_path / "resumed")
  assert tiny_run.lines(tmp_path / "resumed") == tiny_run.lines(tmp_path / "straight")


def test_what_cannot_be_done_is_said_before_any_work(two, tmp_path, monkeypatch):
  def refused(reason, pool=two, **changes):
    with pytest.raises(UserError, match=reason):
      tiny_run.run(monkeypatch, train_sft, config("sft", pool, **changes), tmp_path / "none")

  weighed = {"supervision__teachers": "weighed"}
  refused("in this pool no two have any", pool=tiny_run.pool_folder(), **weighed)
  refused("this run reads 'test'", data__split="test", **weighed)
  refused("take one of the two", supervision__closed="uniform", **weighed)
  refused("draws nothing in stage 1", supervision__target="first", **weighed)
  refused("take one of the two", supervision__closed="agreement", **weighed)
  refused("rule for teachers 'alone' is unknown", supervision__teachers="alone")
  known = store.read_metadata
  without = lambda folder: {k: v for k, v in known(folder).items() if k != "teachers"}
  monkeypatch.setattr(store, "read_metadata", without)
  refused("from before teachers were measured", **weighed)

"""Intervals against scipy's bootstrap, pass@k against every choice of k, concordance."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from rmsd_jax.core.intervals import (
  concordance,
  crossed_interval,
  mean_interval,
  pass_at_k,
  passes,
)

RNG = np.random.default_rng(0)
VALUES = {
  "normal": RNG.normal(3, 2, 40),
  "binary": (RNG.random(60) < 0.3).astype(float),
  "skewed": RNG.exponential(1, 15),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_clusters_of_one_value_agree_with_scipy(kind, level):
  values = VALUES[kind]
  ours = mean_interval(values, [f"clip {i}" for i in range(len(values))], 1, 20_000, level)
  theirs = stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile", rng=2
  ).confidence_interval
  # Two bootstraps of 20,000 differ by some 2 % of the standard error of the mean.
  tolerance = 0.06 * values.std() / len(values) ** 0.5
  np.testing.assert_allclose([ours["low"], ours["high"]], [*theirs], rtol=0, atol=tolerance)
  assert (ours["mean"], ours["n"]) == (pytest.approx(values.mean()), len(values))


def test_clusters_are_resampled_whole():
  """Values that repeat inside a clip tell no more than one of them: the interval stays as wide."""
  values = VALUES["normal"]
  clips = [f"clip {i:02d}" for i in range(len(values))]
  once = mean_interval(values, clips)
  thrice = mean_interval(np.tile(values, 3), clips * 3)
  assert thrice["n"] == 3 * once["n"]
  for key in ("mean", "low", "high"):
    assert thrice[key] == pytest.approx(once[key])
  apart = mean_interval(np.tile(values, 3), range(3 * len(values)))
  assert apart["high"] - apart["low"] < 0.7 * (once["high"] - once["low"])


def test_clips_of_different_sizes_are_weighed_by_their_values():
  """Against scipy's bootstrap of a ratio of paired sums."""
  sizes = RNG.integers(1, 6, 30)
  values = [RNG.normal(i % 3, 1, n) for i, n in enumerate(sizes)]
  clips = np.repeat([f"clip {i:02d}" for i in range(30)], sizes)
  ours = mean_interval(np.concatenate(values), clips, resamples=20_000)
  sums = np.array([v.sum() for v in values])
  theirs = stats.bootstrap(
    (sums, sizes),
    lambda s, n, axis: s.sum(axis) / n.sum(axis),
    paired=True,
    n_resamples=20_000,
    method="percentile",
    rng=3,
  ).confidence_interval
  np.testing.assert_allclose([ours["low"], ours["high"]], [*theirs], atol=0.02)


def test_the_same_seed_gives_the_same_interval():
  values = VALUES["normal"]
  clips = [str(i // 2) for i in range(40)]
  assert mean_interval(values, clips, seed=4) == mean_interval(values, clips, seed=4)


def test_one_clip_tells_nothing_of_others():
  point = mean_interval([0.25, 0.75], ["a", "a"])
  assert (point["mean"], point["n"]) == (0.5, 2) and np.isnan([point["low"], point["high"]]).all()


def test_nothing_to_average_is_not_a_number():
  empty = mean_interval([], [])
  assert empty.pop("n") == 0 and set(empty) == {"mean", "low", "high"}
  assert np.isnan([*empty.values()]).all()


@pytest.mark.parametrize("N", [1, 2, 5])
def test_pass_at_k_counts_every_choice_of_k_samples(N):
  passed_BN = np.array(list(itertools.product([False, True], repeat=N)))
  for k in range(1, N + 1):
    choices = list(itertools.combinations(range(N), k))
    wanted_B = [np.mean([row[list(chosen)].any() for chosen in choices]) for row in passed_BN]
    np.testing.assert_allclose(pass_at_k(passed_BN, k), wanted_B, atol=1e-12)


def test_a_stored_quality_passes_the_same_number_of_a_config():
  stored = float(np.float32(0.9))
  assert stored < 0.9 and passes([[stored, 0.9, 0.899]], 0.9).tolist() == [[True, True, False]]


def test_pass_at_more_than_there_are_is_refused():
  with pytest.raises(ValueError, match="pass@3 needs 3 samples, there are 2"):
    pass_at_k(np.ones((1, 2), bool), 3)


@pytest.mark.parametrize("seed", range(5))
def test_concordance_is_the_area_under_the_roc_curve(seed):
  rng = np.random.default_rng(seed)
  score = rng.integers(0, 4, 12) / 3  # some are equal
  truth = np.array([True, False, *(rng.random(10) < 0.4)])
  assert concordance(score, truth) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
  # Harrell's c of truths that are no classes, and of some pairs only.
  truth, fits = rng.integers(0, 3, 12), rng.random((12, 12)) < 0.5
  wins = [
    0.5 if score[i] == score[j] else float(score[i] > score[j])
    for i, j in itertools.permutations(range(12), 2)
    if truth[i] > truth[j] and fits[i, j]
  ]
  assert concordance(score, truth, fits) == pytest.approx(np.mean(wins), abs=1e-12)


def test_concordance_of_equal_truths_is_unknown():
  score = np.array([1.0, 2.0])
  assert np.isnan(concordance(score, np.array([1, 1])))
  assert np.isnan(concordance(score, np.array([0, 1]), np.zeros((2, 2), bool)))
  assert np.isnan(concordance(np.zeros(0), np.zeros(0)))


# over seeds and clips


def test_crossed_interval_of_one_seed_is_the_interval_over_clips():
  values, clips = RNG_VALUES, [f"c{i // 3}" for i in range(len(RNG_VALUES))]
  made = crossed_interval(values[None], clips)
  other = mean_interval(values, clips, resamples=20_000)
  assert made["mean"] == pytest.approx(values.mean())
  assert made["high"] - made["low"] == pytest.approx(other["high"] - other["low"], rel=0.06)


RNG_VALUES = np.random.default_rng(3).random(300)


def test_crossed_interval_of_equal_prompts_is_students_over_seeds():
  means_S = np.array([0.5, 0.6, 0.58])
  made = crossed_interval(np.repeat(means_S[:, None], 40, 1), list(range(40)))
  low, high = stats.t.interval(0.95, 2, means_S.mean(), stats.sem(means_S))
  assert (made["low"], made["high"]) == pytest.approx((low, high))


def test_crossed_interval_of_one_clip_is_unknown():
  made = crossed_interval(np.array([[0.0, 1.0, 1.0]]), ["c"] * 3)
  assert made["mean"] == pytest.approx(2 / 3) and np.isnan([made["low"], made["high"]]).all()


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.02, 0.05, 0.1])
def test_crossed_interval_covers_the_truth_at_least_as_often_as_it_says(seeds, seed_sd):
  """60 clips of 2 questions that succeed and fail together: 95 % of 1,000 intervals."""
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(1_000):
    seeds_S1 = rng.normal(0, seed_sd, (seeds, 1))
    clips_N = np.repeat(rng.normal(0, 0.1, 60), 2)
    made = crossed_interval(
      seeds_S1 + clips_N + rng.normal(0, 0.2, (seeds, 120)), np.repeat(np.arange(60), 2)
    )
    covered += made["low"] <= 0 <= made["high"]
  assert covered / 1_000 >= 0.935  # 2 s.e. below 0.95

"""The filter, stage 1 targets and the draw of pairs, with chi-square tests of what is random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rmsd_jax.core.errors import UserError
from rmsd_jax.method import matching

TRUE_4 = np.ones(4, bool)
DRAWS = 20_000
P_LEAST = 1e-4  # seeds are fixed, so a test passes for good or never


@st.composite
def groups(draw):
  """(quality_K, valid_K, present_K) as a pool has them: quality 0 unless valid."""
  k = draw(st.integers(1, 8))
  bools = st.lists(st.booleans(), min_size=k, max_size=k).map(np.array)
  present_K = draw(bools)
  valid_K = draw(bools) & present_K
  values = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])
  quality_K = np.array(draw(st.lists(values, min_size=k, max_size=k)), np.float32) * valid_K
  return quality_K, valid_K, present_K


# By what responses are told apart

ROUGE_22 = np.array([[0.0, 0.0], [0.2, 0.6]], np.float32)
QUALITY_22 = np.array([[0.5, 0.9], [1.0, 1.0]], np.float32)
CLOSED_2 = np.array([True, False])


@pytest.mark.parametrize("closed", matching.JUDGES)
@pytest.mark.parametrize("open_ended", matching.JUDGES)
def test_each_class_of_task_has_its_own_judge(closed, open_ended):
  given = QUALITY_22, ROUGE_22, CLOSED_2
  quality_BK, graded_B = matching.judged(*given, closed, open_ended)
  assert graded_B.tolist() == [closed == "ground_truth", open_ended == "ground_truth"]
  np.testing.assert_array_equal(quality_BK, [QUALITY_22[0], ROUGE_22[1]])


def test_an_unknown_judge_is_refused():
  with pytest.raises(UserError, match="'rouge'.*ground_truth, uniform"):
    matching.judged(QUALITY_22, ROUGE_22, CLOSED_2, "ground_truth", "rouge")


# The filter


def test_filter_on_an_example():
  quality_K = np.array([0.0, 0.29, 0.3, 1.0], np.float32)
  valid_K = np.array([False, True, True, True])
  keep = [matching.survivors(quality_K, valid_K, TRUE_4, True, tau).tolist() for tau in (0.3, 0)]
  assert keep == [[False, False, True, True], [True, True, True, True]]
  assert matching.survivors(quality_K, valid_K, TRUE_4, False, 0.9).tolist() == valid_K.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [float, np.float64])
def test_a_quality_of_exactly_tau_survives_in_any_precision(dtype, kind):
  for tau in np.linspace(0.01, 1, 100).round(2):
    quality_K = np.array([tau], dtype)
    assert matching.survivors(quality_K, TRUE_4[:1], TRUE_4[:1], True, kind(tau))[0], tau


@given(groups(), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_tau_keeps_a_subset_and_absent_slots_never_survive(group, low, high):
  quality_K, valid_K, present_K = group
  low, high = sorted((low, high))
  keep_low = matching.survivors(quality_K, valid_K, present_K, True, low)
  keep_high = matching.survivors(quality_K, valid_K, present_K, True, high)
  assert keep_low.dtype == bool
  assert not np.any(keep_high & ~keep_low)
  assert not np.any(keep_low & ~present_K)
  if high > 0:
    assert not np.any(keep_high & ~valid_K)
  open_K = matching.survivors(quality_K, valid_K, present_K, False, high)
  np.testing.assert_array_equal(open_K, valid_K & present_K)


def test_tau_zero_keeps_all_that_are_present_and_aliases_nothing():
  present_K = np.array([True, False, True])
  keep_K = matching.survivors(np.zeros(3), np.zeros(3, bool), present_K, True, 0.0)
  np.testing.assert_array_equal(keep_K, present_K)
  keep_K[:] = False
  assert present_K.any()


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_tau_outside_its_range_is_refused(tau):
  with pytest.raises(UserError, match="tau"):
    matching.survivors(np.ones(4), TRUE_4, TRUE_4, True, tau)


# Stage 1 targets


def targets(quality_K, keep_K, closed, rule, count=DRAWS):
  rng = np.random.default_rng(7)
  picks = [matching.choose_target(quality_K, keep_K, closed, rule, rng) for _ in range(count)]
  return np.bincount(picks, minlength=len(keep_K))


def test_best_breaks_ties_uniformly_and_takes_nothing_else():
  counts = targets(
    np.array([1.0, 0.9, 1.0, 1.0, 1.0]), np.array([1, 1, 1, 0, 1], bool), True, "best"
  )
  assert counts[1] == counts[3] == 0
  assert stats.chisquare(counts[[0, 2, 4]]).pvalue > P_LEAST


@pytest.mark.parametrize(
  ("closed", "rule"), [(False, "best"), (True, "random_survivor"), (True, "random")]
)
def test_random_rules_are_uniform_over_candidates(closed, rule):
  counts = targets(np.array([0.2, 0.9, 1.0, 0.4]), np.array([1, 0, 1, 1], bool), closed, rule)
  assert counts[1] == 0
  assert stats.chisquare(counts[[0, 2, 3]]).pvalue > P_LEAST


def test_first_is_the_first_candidate():
  assert targets(np.ones(3), np.array([0, 1, 1], bool), True, "first", 20).tolist() == [0, 20, 0]


@given(groups(), st.booleans(), st.sampled_from(matching.RULES), st.integers(0, 99))
def test_a_target_is_a_candidate_and_best_has_no_better(group, closed, rule, seed):
  quality_K, valid_K, present_K = group
  keep_K = matching.survivors(quality_K, valid_K, present_K, closed, 0.3)
  candidates_K = matching.eligible(keep_K, present_K, rule)
  index = matching.choose_target(quality_K, candidates_K, closed, rule, np.random.default_rng(seed))
  assert (index == -1) == (not candidates_K.any())
  if index >= 0:
    assert candidates_K[index]
    if rule == "best" and closed:
      assert quality_K[index] == max(quality_K[keep_K])


def test_unfiltered_rules_choose_among_all_that_are_present():
  keep_K, present_K = np.array([0, 1, 0], bool), np.array([1, 1, 0], bool)
  for rule in matching.RULES:
    expected = present_K if rule in ("random", "first") else keep_K
    np.testing.assert_array_equal(matching.eligible(keep_K, present_K, rule), expected)


def test_an_unknown_rule_is_refused_with_the_names_there_are():
  with pytest.raises(UserError, match="'worst'.*best, near, random_survivor"):
    matching.choose_target(np.ones(4), TRUE_4, True, "worst", np.random.default_rng(0))
  with pytest.raises(UserError, match="worst"):
    matching.eligible(TRUE_4, TRUE_4, "worst")


# The draw of pairs

QUALITY_4 = np.array([0.1, 0.4, 0.0, 0.75], np.float32)


@pytest.mark.parametrize(
  ("keep", "closed", "by_quality", "shares"),
  [
    ([1, 1, 1, 1], True, True, [0.08, 0.32, 0, 0.6]),
    ([1, 0, 0, 1], True, True, [2 / 17, 0, 0, 15 / 17]),
    ([1, 1, 1, 1], True, False, [0.25] * 4),
    ([1, 1, 0, 1], False, True, [1 / 3, 1 / 3, 0, 1 / 3]),
    ([0, 0, 1, 0], True, True, [0, 0, 1, 0]),  # the qualities sum to 0
  ],
)
def test_draw_has_the_distribution_of_the_method(keep, closed, by_quality, shares):
  rng = matching.rng_for(1, 2, 3)
  picks = matching.draw(QUALITY_4, np.array(keep, bool), closed, by_quality, DRAWS, rng)
  counts, shares = np.bincount(picks, minlength=4), np.array(shares)
  assert counts[shares == 0].sum() == 0
  if np.sum(shares > 0) > 1:
    expected = DRAWS * shares[shares > 0] / shares.sum()
    assert stats.chisquare(counts[shares > 0], expected).pvalue > P_LEAST


def test_draw_is_uniform_where_all_qualities_are_zero():
  picks = matching.draw(np.zeros(4), TRUE_4, True, True, DRAWS, matching.rng_for(0, 0, 0))
  assert stats.chisquare(np.bincount(picks, minlength=4)).pvalue > P_LEAST


def test_rollouts_of_a_prompt_are_paired_independently():
  pairs = [
    matching.draw(np.ones(4), TRUE_4, True, True, 2, matching.rng_for(0, step, 5))
    for step in range(4_000)
  ]
  table = np.zeros((4, 4))
  np.add.at(table, tuple(np.transpose(pairs)), 1)
  assert stats.chisquare(table.ravel()).pvalue > P_LEAST


@given(groups(), st.booleans(), st.booleans(), st.integers(0, 9), st.integers(0, 99))
def test_draw_takes_survivors_only(group, closed, by_quality, count, seed):
  quality_K, valid_K, present_K = group
  keep_K = matching.survivors(quality_K, valid_K, present_K, closed, 0.0)
  rng = np.random.default_rng(seed)
  picks = matching.draw(quality_K, keep_K, closed, by_quality, count, rng)
  assert picks.shape == (count,) and picks.dtype == np.int32
  if not keep_K.any():
    assert np.all(picks == -1)
  else:
    assert np.all(keep_K[picks])
    if closed and by_quality and quality_K[keep_K].any():
      assert np.all(quality_K[picks] > 0)


def test_generators_repeat_and_differ():
  firsts = {
    (seed, step, row): matching.rng_for(seed, step, row).random()
    for seed in range(5)
    for step in range(5)
    for row in range(5)
  }
  assert len(set(firsts.values())) == len(firsts)
  assert all(matching.rng_for(*key).random() == value for key, value in firsts.items())

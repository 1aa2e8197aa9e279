"""Which teacher response a rollout is paired with, and what stage 1 learns from a batch."""

import dataclasses
import functools

import numpy as np
import tiny_run

from rmsd_jax import train_rl
from rmsd_jax.method import matching
from rmsd_jax.rollouts.generate import Samples

CONFIG = functools.partial(tiny_run.config, "rl")


def rollouts(loaded, c):
  """Of one token each, that came to their end."""
  shape = len(loaded.row_B), c.rollouts.samples
  ids_BNT = np.zeros((*shape, loaded.groups.responses_BRT.shape[2]), np.int32)
  one_BN = np.ones(shape, np.int32)
  return Samples(ids_BNT, one_BN, np.zeros(ids_BNT.shape, np.float32), one_BN > 0)


def matched(loaded, step, c):
  pairs = train_rl.pairs_of(loaded, rollouts(loaded, c), step, c)
  return pairs.match_BN, pairs.weight_BN


def test_pairs_are_drawn_among_survivors_and_weighed_where_the_task_has_a_metric():
  c = CONFIG()
  loaded = tiny_run.batch(c)
  quality_BK = loaded.quality_BK.copy()
  quality_BK[loaded.closed_B, 0] = 0.1  # below tau
  loaded = dataclasses.replace(loaded, quality_BK=quality_BK)
  match_BN, weight_BN = matched(loaded, 3, c)
  for b in range(c.batch):
    keep_K = loaded.valid_BK[b] & ((quality_BK[b] >= 0.3) | ~loaded.closed_B[b])
    chosen_N = match_BN[b]
    assert keep_K[chosen_N].all() if keep_K.any() else (chosen_N == -1).all()
    if not loaded.closed_B[b]:
      assert (weight_BN[b] == 1).all()
    elif keep_K.any():
      np.testing.assert_array_equal(weight_BN[b], quality_BK[b][chosen_N])
  again, other = matched(loaded, 3, c), matched(loaded, 4, c)
  np.testing.assert_array_equal(again[0], match_BN)
  assert (other[0] != match_BN).any()


def test_identical_is_token_by_token_up_to_the_lengths():
  """Right values by comparing lists; padding behind the end does not count."""
  rng = np.random.default_rng(0)
  shape = (8, 3, 48)
  ids, others = rng.integers(0, 2, (2, *shape)).astype(np.int32)
  others[:, :, :3] = ids[:, :, :3]
  length, other_length = rng.integers(1, 4, (2, 8, 3)).astype(np.int32)
  got = matching.identical(ids, length, others, other_length)
  wanted = [
    [list(ids[b, n, : length[b, n]]) == list(others[b, n, : other_length[b, n]]) for n in range(3)]
    for b in range(8)
  ]
  np.testing.assert_array_equal(got, wanted)
  assert 0 < np.sum(wanted) < 24


def test_the_task_adaptive_ablations_turn_the_judges_around():
  c = CONFIG()
  loaded = tiny_run.batch(c)
  K = loaded.quality_BK.shape[1]
  quality_BK, rouge_BK = np.full_like(loaded.quality_BK, 0.1), np.zeros_like(loaded.rouge_BK)
  quality_BK[:, K - 1] = 0.9
  rouge_BK[~loaded.closed_B, 0] = 0.7
  everyone_BK = np.ones_like(loaded.valid_BK)
  loaded = dataclasses.replace(
    loaded, quality_BK=quality_BK, rouge_BK=rouge_BK, valid_BK=everyone_BK, present_BK=everyone_BK
  )
  assert loaded.closed_B.any() and not loaded.closed_B.all()
  match_BN, _ = matched(loaded, 0, c)
  assert (match_BN[loaded.closed_B] == K - 1).all() and (match_BN[~loaded.closed_B] > 0).any()
  c.supervision.closed, c.supervision.open_ended = "uniform", "ground_truth"
  match_BN, weight_BN = matched(loaded, 0, c)
  assert (match_BN[loaded.closed_B] < K - 1).any() and (match_BN[~loaded.closed_B] == 0).all()
  assert (weight_BN[loaded.closed_B] == 1).all()
  np.testing.assert_allclose(weight_BN[~loaded.closed_B], 0.7)
  groups = matching.targets(loaded, seed=0, step=0, **c.supervision)
  first_BT = loaded.groups.responses_BRT[:, 0]
  np.testing.assert_array_equal(
    groups.responses_BRT[~loaded.closed_B, 0], first_BT[~loaded.closed_B]
  )

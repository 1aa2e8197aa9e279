"""Rows as they are read: in another order of responses, by another judge of them."""

import dataclasses

import numpy as np
import pytest
import small_pool

from rmsd_jax.data import rows
from rmsd_jax.tasks import Rules

PER_RESPONSE = ("texts", "teachers", "finish_reasons", "responses")


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_responses_go_round_with_all_that_is_known_of_them(first):
  stored = small_pool.make_row(np.random.default_rng(0), 0, responses=3)
  stored = dataclasses.replace(stored, finish_reasons=("stop", "length", "stop"))
  order = [(k + first) % 3 for k in range(3)]
  read = rows.rotated(stored, first)
  for field in dataclasses.fields(stored):
    got, wanted = getattr(read, field.name), getattr(stored, field.name)
    if field.name.endswith("_K") or field.name in PER_RESPONSE:
      assert len(got) == 3 and type(got) is type(wanted)
      assert all(np.array_equal(got[i], wanted[k]) for i, k in enumerate(order)), field.name
    else:
      assert got is wanted


def test_a_row_without_responses_stays_as_it_is():
  stored = small_pool.make_row(np.random.default_rng(0), 0, responses=0)
  assert rows.rotated(stored, 5) is stored


def test_without_the_truth_a_quality_is_the_agreement_of_the_first_responses():
  said = [f"<think>I look.</think><answer>{letter}</answer>" for letter in "ABAB"]
  stored = dataclasses.replace(
    small_pool.make_row(np.random.default_rng(0), 0, responses=4, task="multiple_choice"),
    options=("A. red", "B. blue"),
    texts=tuple(said),
    valid_K=np.array([True, True, False, True]),
  )
  read = rows.by_agreement(stored, Rules(), 3)
  np.testing.assert_allclose(read.quality_K, [2 / 3, 1 / 3, 0, 0])
  assert read.quality_K.dtype == np.float32
  np.testing.assert_array_equal(read.content_K, stored.content_K)  # the reward keeps the truth

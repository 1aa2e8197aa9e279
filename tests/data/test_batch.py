"""Batches: padding changes nothing but padding, and every token finds its patch."""

import dataclasses

import numpy as np
import pytest
import small_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.core import positions
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import batch, prompts, rows

LAYOUT = small_pool.LAYOUT
SMALL, LARGE = small_pool.BUCKETS


def collate(chosen, bucket=LARGE, k=3):
  return batch.collate(chosen, list(range(len(chosen))), bucket, k, LAYOUT)


def make(seed=0, **changes):
  return small_pool.make_row(np.random.default_rng(seed), seed, **changes)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(0, 2))
def test_a_visual_token_points_to_the_pixels_of_its_place(seed, frames):
  row = make(seed, frames=frames)
  groups = collate([row]).groups
  blocks = LARGE.patches // 4
  is_visual_P = groups.visual_BP[0] >= 0
  np.testing.assert_array_equal(is_visual_P[: len(row.ids_P)], row.is_visual_P)
  assert not is_visual_P[len(row.ids_P) :].any()
  seen = iter(groups.visual_BP[0][is_visual_P])
  for f, (picture, (height, width)) in enumerate(zip(rows.unpack(row), row.grid_F2, strict=True)):
    frames_2HWC = picture.reshape(2, height * 4, width * 4, 3)
    for block_row in range(height // 2):
      for block_column in range(width // 2):
        frame, block = divmod(int(next(seen)), blocks)
        assert frame == f
        patches = groups.patches_BFSC[0, frame, 4 * block : 4 * block + 4]
        pixels = frames_2HWC[
          :, block_row * 8 : block_row * 8 + 8, block_column * 8 : block_column * 8 + 8
        ]
        for inside, values in enumerate(patches):
          y, x = inside // 2 * 4, inside % 2 * 4
          wanted = pixels[:, y : y + 4, x : x + 4].transpose(3, 0, 1, 2)
          np.testing.assert_array_equal(values.reshape(3, 2, 4, 4), wanted)
  assert next(seen, None) is None


def test_buckets_differ_in_padding_only():
  chosen = [make(i, frames=i % 3) for i in range(6)]
  small, large = collate(chosen, SMALL), collate(chosen, LARGE)
  p, t, f, s = SMALL
  for name, cut in {
    "tokens_BP": np.s_[:, :p],
    "positions_B3P": np.s_[:, :, :p],
    "patches_BFSC": np.s_[:, :f, :s],
    "grid_BF2": np.s_[:, :f],
    "responses_BRT": np.s_[:, :, :t],
    "prompt_length_B": np.s_[:],
    "next_position_B": np.s_[:],
    "response_length_BR": np.s_[:],
  }.items():
    a, b = getattr(small.groups, name), getattr(large.groups, name)
    np.testing.assert_array_equal(a, b[cut], err_msg=name)
    rest = b.copy()
    rest[cut] = 0
    assert not rest.any(), f"{name} has values in its padding"
  assert (large.groups.visual_BP[:, p:] == -1).all()


def test_prompts_are_those_of_the_rows():
  chosen = [make(i, frames=i % 3) for i in range(4)]
  groups = collate(chosen).groups
  for b, row in enumerate(chosen):
    length = int(groups.prompt_length_B[b])
    assert length == len(row.ids_P)
    np.testing.assert_array_equal(groups.tokens_BP[b, :length], row.ids_P)
    positions_3P, following = positions.prompt_positions(row.is_visual_P, row.grid_F2, 2)
    np.testing.assert_array_equal(groups.positions_B3P[b, :, :length], positions_3P)
    assert groups.next_position_B[b] == following
    np.testing.assert_array_equal(groups.grid_BF2[b, : len(row.grid_F2)], row.grid_F2)


def test_responses_fill_their_slots_and_unusable_ones_leave_them_empty():
  row = make(1)
  valid_K = np.array([True, True, False])
  empty = np.zeros(0, np.int32)
  cut = dataclasses.replace(row, responses=(empty, *row.responses[1:]), valid_K=valid_K)
  loaded = collate([row, cut, make(2, responses=1), make(3, responses=0)], k=3)
  np.testing.assert_array_equal(loaded.present_BK, [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
  np.testing.assert_array_equal(loaded.valid_BK, [[1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
  np.testing.assert_array_equal(loaded.groups.response_length_BR > 0, loaded.present_BK)
  for k, ids_T in enumerate(row.responses):
    np.testing.assert_array_equal(loaded.groups.responses_BRT[0, k, : len(ids_T)], ids_T)
  np.testing.assert_array_equal(loaded.quality_BK[0], row.quality_K)
  np.testing.assert_array_equal(loaded.quality_BK[1], row.quality_K * [0, 1, 0])
  assert not loaded.quality_BK[~loaded.valid_BK].any()


def test_rouge_counts_where_a_response_is_valid():
  rouge_K = np.array([0.25, 0.5, 0.75], np.float32)
  row = dataclasses.replace(make(1), rouge_K=rouge_K, valid_K=np.array([True, False, True]))
  np.testing.assert_array_equal(collate([row], k=3).rouge_BK, [rouge_K * [1, 0, 1]])


def test_fewer_slots_take_the_first_responses():
  row = make(4)
  for k in range(4):
    loaded = collate([row], k=k)
    assert loaded.groups.responses_BRT.shape == (1, k, LARGE.response)
    np.testing.assert_array_equal(loaded.quality_BK, collate([row]).quality_BK[:, :k])


def test_types_are_those_of_prompt_groups():
  loaded = collate([make(0), make(1, task="open_ended")])
  for field in dataclasses.fields(loaded.groups):
    wanted = np.uint8 if field.name == "patches_BFSC" else np.int32
    assert getattr(loaded.groups, field.name).dtype == wanted, field.name
  np.testing.assert_array_equal(loaded.closed_B, [True, False])
  assert loaded.row_B.dtype == np.int64 and loaded.real_B.all()
  assert loaded.info[1]["answer"] == {"index": 1}


def test_prompts_without_a_pool_are_the_same_groups():
  chosen = [make(i) for i in range(3)]
  plain = prompts.collate([batch.prompt_of(row, LAYOUT) for row in chosen], LAYOUT, LARGE)
  pooled = collate(chosen, k=0).groups
  for field in dataclasses.fields(plain):
    np.testing.assert_array_equal(getattr(plain, field.name), getattr(pooled, field.name))


FAULTS = [
  (lambda row: row, Bucket(8, 8, 3, 16), "P of the prompt is .*, but 8"),
  (lambda row: row, Bucket(40, 8, 1, 16), "F of the prompt is 2, but 1"),
  (lambda row: row, Bucket(40, 8, 3, 4), "S of the prompt is 8, but 4"),
  (lambda row: row, Bucket(40, 1, 3, 16), "response . of row 'row 5' has . tokens, but T"),
  (
    lambda row: dataclasses.replace(row, is_visual_P=~row.is_visual_P),
    LARGE,
    "visual placeholders, but its media give 3 visual tokens",
  ),
]


@pytest.mark.parametrize("change, bucket, reason", FAULTS, ids=[case[2] for case in FAULTS])
def test_what_does_not_fit_is_refused_with_its_numbers(change, bucket, reason):
  with pytest.raises(UserError, match=reason):
    collate([change(make(5))], bucket)

"""Loaders: the order is a function of seed and step; restarts and processes change nothing."""

import dataclasses
import gc
from collections import Counter

import numpy as np
import pytest
import small_pool
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src import xla_bridge

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import epochs, loader

buckets = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array)


@settings(deadline=None)
@given(buckets, st.integers(1, 7), st.integers(0, 99), st.integers(0, 5))
def test_an_epoch_has_every_row_once_but_a_remainder_per_bucket(bucket_N, size, seed, epoch):
  rows = epochs.plan_epoch(bucket_N, size, seed, epoch)
  assert rows.dtype == np.int64 and rows.shape[1] == size
  counts = Counter(rows.ravel().tolist())
  assert set(counts.values()) <= {1}
  for bucket in set(bucket_N.tolist()):
    used = sum(1 for row in counts if bucket_N[row] == bucket)
    assert used == (bucket_N == bucket).sum() // size * size
  assert all(len(set(bucket_N[step])) == 1 for step in rows)
  np.testing.assert_array_equal(rows, epochs.plan_epoch(bucket_N, size, seed, epoch))


def test_epochs_and_seeds_differ_and_leave_other_rows_out():
  bucket_N = np.zeros(50, int)
  orders = [epochs.plan_epoch(bucket_N, 8, *key) for key in ((0, 0), (0, 1), (1, 0))]
  left = [set(range(50)) - set(rows.ravel().tolist()) for rows in orders]
  assert len({frozenset(rest) for rest in left}) == 3
  assert not np.array_equal(orders[0], orders[1])


def test_rows_of_a_bucket_that_fills_no_batch_move_to_one_that_holds_them():
  sizes = (Bucket(10, 5, 1, 4), Bucket(10, 5, 2, 4), Bucket(12, 5, 1, 8), Bucket(20, 9, 9, 8))
  few = np.array([0, 1, 1, 1, 2, 2, 2, 3, -1, -1])
  with pytest.raises(UserError, match=r"\(20, 9, 9, 8\) has 1 rows, fewer than a batch of 3"):
    epochs.fill(few, sizes, 3)
  enough = np.array([0, 1, 1, 1, 2, 2, 3, -1])
  np.testing.assert_array_equal(epochs.fill(enough, sizes, 3), [1, 1, 1, 1, 3, 3, 3, -1])
  np.testing.assert_array_equal(epochs.fill(enough, sizes, 1), enough)


def same(a, b):
  for field in dataclasses.fields(a.groups):
    np.testing.assert_array_equal(getattr(a.groups, field.name), getattr(b.groups, field.name))
  for name in ("quality_BK", "valid_BK", "present_BK", "closed_B", "row_B", "real_B"):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
  assert a.info == b.info


GIVEN = {"batch_size": 4, "seed": 7, "k": 2}


def take(pool, start, end, **changes):
  return list(loader.make(pool, start_step=start, end_step=end, **{**GIVEN, **changes}))


def test_a_restart_goes_on_as_if_nothing_had_happened():
  pool = small_pool.make_pool()
  whole = take(pool, 0, 12)  # more than two epochs
  assert [step for step, _ in whole] == list(range(12))
  for start in (1, 5, 11):
    rest = take(pool, start, 12)
    for (a, one), (b, other) in zip(whole[start:], rest, strict=True):
      assert a == b
      same(one, other)
  assert take(pool, 12, 12) == []


def test_processes_share_a_step():
  pool = small_pool.make_pool()
  shares = [take(pool, 0, 6, process_index=i, process_count=2) for i in range(2)]
  for (_, one), (_, left), (_, right) in zip(take(pool, 0, 6), *shares, strict=True):
    np.testing.assert_array_equal(np.concatenate([left.row_B, right.row_B]), one.row_B)
    assert left.groups.tokens_BP.shape == right.groups.tokens_BP.shape
    patches = [half.groups.patches_BFSC for half in (left, right)]
    np.testing.assert_array_equal(np.concatenate(patches), one.groups.patches_BFSC)


def test_every_batch_has_the_shape_of_its_bucket():
  pool = small_pool.make_pool()
  steps = loader.Steps(pool, **GIVEN)
  assert steps.per_epoch == 8 // 4 + 15 // 4
  seen = set()
  for step in range(steps.per_epoch):
    bucket = steps.bucket(step)
    seen.add(bucket)
    groups = steps[step].groups
    assert groups.tokens_BP.shape == (4, bucket.prompt)
    assert groups.patches_BFSC.shape == (4, bucket.frames, bucket.patches, 3 * 2 * 4 * 4)
    assert groups.responses_BRT.shape == (4, 2, bucket.response)
  assert seen == set(small_pool.BUCKETS)


class Watchful(small_pool.MemoryPool):
  """Notices when its reader has woken the accelerator."""

  def __getitem__(self, index):
    assert not xla_bridge.backends_are_initialized(), "a worker woke the accelerator"
    return super().__getitem__(index)


def test_worker_processes_load_the_same_and_leave_jax_alone():
  flags.FLAGS.mark_as_parsed()  # as the commands do: Grain reads absl flags when it starts workers
  pool = small_pool.make_pool(count=16)
  whole = take(pool, 3, 8)
  for (a, one), (b, other) in zip(
    whole, take(Watchful(pool.stored), 3, 8, num_workers=2), strict=True
  ):
    assert a == b
    same(one, other)
    assert type(other.groups.patches_BFSC) is np.ndarray, "not a view of shared memory"
  assert shared() == 0


def shared() -> int:
  """Arrays in shared memory that are still held; at exit they would be told as leaked."""
  return sum(isinstance(one, SharedMemoryArray) for one in gc.get_objects())


def test_a_reader_that_stops_early_gives_the_shared_memory_back():
  flags.FLAGS.mark_as_parsed()
  pool = small_pool.make_pool(count=16)
  stream = loader.make(pool, start_step=0, end_step=8, num_workers=1, **GIVEN)
  kept = next(stream)
  assert shared() > 0
  stream.close()
  assert shared() == 0
  same(kept[1], take(pool, 0, 1)[0][1])


def test_tasks_are_chosen_by_the_index():
  pool = small_pool.make_pool(count=40)
  for _, loaded in take(pool, 0, 6, tasks=("open_ended",)):
    assert not loaded.closed_B.any()
    assert all(info["task"] == "open_ended" for info in loaded.info)


def test_conversations_are_so_much_of_every_batch_and_an_epoch_is_one_of_the_others():
  rng = np.random.default_rng(0)
  # Of both buckets; the larger one's conversations fit no batch of the smaller one.
  chats = [small_pool.make_row(rng, 100 + i, bucket=i % 2, task="chat") for i in range(5)]
  plain = small_pool.make_pool(count=24)
  pool = dataclasses.replace(plain, stored=(*chats[:3], *plain.stored, *chats[3:]))
  small = {i for i, row in enumerate(pool.stored) if row.task == "chat" and row.bucket == 0}
  share = {"batch_size": 4, "chat_share": 0.25}
  assert epochs.per_epoch(pool, **share) == epochs.per_epoch(plain, 3) == 7
  seen = Counter()
  for step, loaded in take(pool, 0, 14, chat_share=0.25, shards=2):
    tasks = [info["task"] for info in loaded.info]
    assert tasks.count("chat") == 1
    assert loaded.groups.tokens_BP.shape[1] in {bucket.prompt for bucket in small_pool.BUCKETS}
    if loaded.groups.tokens_BP.shape[1] == small_pool.BUCKETS[0].prompt:
      assert set(loaded.row_B.tolist()) & small
    seen.update((step // 7, row) for row in loaded.row_B.tolist())
  asked = [count for (_, row), count in seen.items() if pool[row].task != "chat"]
  assert set(asked) == {1} and len(asked) == 2 * 7 * 3  # an epoch has every other row once
  assert {row for _, row in seen if pool[row].task == "chat"} == {0, 1, 2, 27, 28}
  whole = take(pool, 0, 14, chat_share=0.25)
  for (_, one), (_, other) in zip(whole[9:], take(pool, 9, 14, chat_share=0.25), strict=True):
    same(one, other)
  parts = [take(pool, 0, 3, chat_share=0.25, process_index=i, process_count=2) for i in (0, 1)]
  for (_, one), *halves in zip(whole[:3], *parts, strict=True):
    rows = np.concatenate([loaded.row_B for _, loaded in halves])
    np.testing.assert_array_equal(rows, one.row_B)


def test_conversations_are_used_where_they_are_asked_for_alone():
  rng = np.random.default_rng(0)
  stored = small_pool.make_pool(count=13, large_every=99).stored[1:]  # of the smaller bucket
  chats = (small_pool.make_row(rng, 50, bucket=1, task="chat"),)
  pool = small_pool.MemoryPool((*stored, *chats))
  assert all(12 not in one.row_B for _, one in take(pool, 0, 6))
  assert all(12 not in one.row_B for one in loader.sequential(pool, batch_size=4))
  with pytest.raises(UserError, match="no task 'chat'; it has ocr, open_ended"):
    take(pool, 0, 1, tasks=("chat",))
  alone = dataclasses.replace(small_pool.MemoryPool(chats), split="train", directory="POOL")
  for read in (take, loader.sequential):
    given = (0, 1) if read is take else ()
    with pytest.raises(UserError, match="split train of the pool POOL has plain conversations al"):
      read(alone, *given, **({} if given else {"batch_size": 4}))
  for wrong, words in (
    (0.25, "has 1 conversations .*, none of which fits the bucket"),
    (0.05, "of a batch of 4 prompts is 0; both kinds need at least 1"),
    (0.9, "of a batch of 4 prompts is 4"),
    (1.0, "in .0, 1."),
    (float("nan"), "in .0, 1."),
  ):
    with pytest.raises(UserError, match=words):
      take(pool, 0, 1, chat_share=wrong)


REFUSED = [
  ({"tasks": ("poetry",)}, "no task 'poetry'; it has ocr, open_ended"),
  ({"k": 4}, "data.responses=4, but the pool has 3 .* give 1 to 3"),
  ({"k": 0}, "data.responses=0, but the pool has 3"),
  ({"process_count": 3}, "batch of 4 prompts cannot be split over 3 processes"),
  ({"batch_size": 0}, "batch of 0"),
  ({"batch_size": 24}, "fewer than a batch of 24"),
  ({"num_workers": -1}, "-1 workers"),
]


@pytest.mark.parametrize("changes, reason", REFUSED, ids=[case[1] for case in REFUSED])
def test_impossible_settings_are_refused_before_anything_is_read(changes, reason):
  with pytest.raises(UserError, match=reason):
    loader.make(small_pool.make_pool(), start_step=0, end_step=1, **{**GIVEN, **changes})


@pytest.mark.parametrize("limit, count", [(0, 23), (10, 10), (99, 23)])
def test_an_evaluation_sees_every_row_once(limit, count):
  pool = small_pool.make_pool()
  loaded = list(loader.sequential(pool, batch_size=4, k=1, limit=limit))
  rows = np.concatenate([one.row_B[one.real_B] for one in loaded])
  assert sorted(rows.tolist()) == list(range(count))
  for one in loaded:
    assert len(one.row_B) == 4 and one.real_B[0]
    assert (one.row_B[~one.real_B] == one.row_B[0]).all()
  shares = [
    list(loader.sequential(pool, batch_size=4, limit=limit, process_index=i, process_count=2))
    for i in range(2)
  ]
  for one, left, right in zip(loaded, *shares, strict=True):
    np.testing.assert_array_equal(np.concatenate([left.real_B, right.real_B]), one.real_B)
    np.testing.assert_array_equal(np.concatenate([left.row_B, right.row_B]), one.row_B)

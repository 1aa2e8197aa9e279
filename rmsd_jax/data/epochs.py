"""Which rows of a pool are used, held out, and in which batches of an epoch they come.

All of it follows from the pool's index and a few numbers: no row is read. Numpy only.
Axes: N rows of a split, B prompts of a batch.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data.store import Pool
from rmsd_jax.tasks import CHAT


def chosen(pool: Pool, tasks: Sequence[str]) -> np.ndarray:
  """bool [N]: rows of the named tasks, or of all; conversations are of none."""
  known = sorted(set(pool.task_N.tolist()) - {CHAT})
  if unknown := sorted(set(tasks) - set(known)):
    raise UserError(f"the pool has no task {unknown[0]!r}; it has {', '.join(known)}")
  if not known:
    raise UserError(
      f"split {pool.split} of the pool {pool.directory} has plain conversations alone; it needs "
      "prompts of a task"
    )
  of_tasks_N = np.isin(pool.task_N, tasks or known)
  return of_tasks_N if pool.used_N is None else of_tasks_N & pool.used_N


def used(pool: Pool, batch_size: int, tasks: Sequence[str], limit: int) -> np.ndarray:
  """The bucket in which training has each row; -1: it is not used, so that row numbers stay those
  of the pool."""
  used_N = np.full(len(pool), -1)
  rows_N = np.flatnonzero(chosen(pool, tasks))[: limit or None]
  used_N[rows_N] = pool.bucket_N[rows_N]
  return fill(used_N, pool.buckets, batch_size)


def plan_epoch(
  bucket_N: np.ndarray, batch_size: int, seed: int, epoch: int, stage: int = 0
) -> np.ndarray:
  """The batches of one epoch, int64 [steps, B]: row indices, each batch from one bucket.

  Rows are shuffled inside their buckets and batches among each other. What is left of a bucket
  when it is cut into batches is dropped in this epoch; other rows are left in the next.

  Args:
    bucket_N: bucket of each row; negative: never used.
    batch_size: rows of a batch, B.
    seed, epoch, stage: decide the order, and nothing else does; stage 0 is the order of runs from
      before stages had draws of their own.
  """
  # No state but these numbers: step 10,000 of a resumed run is planned without the 9,999 before.
  rng = np.random.default_rng((seed, epoch, stage) if stage else (seed, epoch))
  batches = [np.zeros((0, batch_size), np.int64)]
  for bucket in np.unique(bucket_N[bucket_N >= 0]):
    rows = rng.permutation(np.flatnonzero(bucket_N == bucket))
    batches.append(rows[: len(rows) // batch_size * batch_size].reshape(-1, batch_size))
  return rng.permutation(np.concatenate(batches))


def fill(bucket_N: np.ndarray, buckets: Sequence[Bucket], batch_size: int) -> np.ndarray:
  """Moves rows of buckets that cannot fill one batch to the next bucket that holds them.

  Without this such rows would never be seen. Larger buckets cost padding alone, but for T, which
  limits what the student may write.

  Args:
    bucket_N: bucket of each row; negative: never used.
    buckets: their sizes, smallest first.
    batch_size: rows of a batch.

  Raises:
    UserError: no larger bucket can take them.
  """
  filled_N = bucket_N.copy()
  # From the smallest on, so that rows that were moved up count where they arrive.
  for i, bucket in enumerate(buckets):
    few = filled_N == i
    if not 0 < few.sum() < batch_size:
      continue
    larger = (j for j in range(i + 1, len(buckets)) if np.all(np.less_equal(bucket, buckets[j])))
    j = next(larger, None)
    if j is None:
      raise UserError(
        f"bucket {tuple(bucket)} has {few.sum()} rows, fewer than a batch of {batch_size}, and no "
        "larger bucket takes them; lower the batch size, add records or build with other buckets"
      )
    filled_N[few] = j
  return filled_N


def per_epoch(
  pool: Pool,
  batch_size: int,
  tasks: Sequence[str] = (),
  limit: int = 0,
  chat_share: float = 0.0,
) -> int:
  """Steps of an epoch of `loader.Steps` with these arguments, without planning one."""
  asked = batch_size - chats(batch_size, chat_share)
  used_N = used(pool, asked, tasks, limit)
  return int((np.bincount(used_N[used_N >= 0]) // asked).sum())


def chats(batch_size: int, chat_share: float) -> int:
  """How many prompts of a batch are plain conversations.

  Raises:
    UserError: the share is none, or leaves no room for either kind.
  """
  if not 0 <= chat_share < 1:
    raise UserError(f"data.chat_share is {chat_share}; it must be in [0, 1)")
  count = round(chat_share * batch_size)
  if chat_share and not 0 < count < batch_size:
    raise UserError(
      f"data.chat_share={chat_share} of a batch of {batch_size} prompts is {count}; both kinds "
      "need at least 1"
    )
  return count


def conversations(pool: Pool) -> np.ndarray:
  """int64, the rows of plain conversations that may be used."""
  chats_N = pool.task_N == CHAT
  return np.flatnonzero(chats_N if pool.used_N is None else chats_N & pool.used_N)


def chats_of(pool: Pool, bucket_N: np.ndarray) -> dict[int, np.ndarray]:
  """Bucket of a batch -> the conversations that it holds.

  Args:
    bucket_N: the bucket in which each other row is used; negative: it is not.
  """
  rows_N = conversations(pool)
  own = pool.bucket_N[rows_N]
  held = {}
  for bucket in np.unique(bucket_N[bucket_N >= 0]).tolist():
    sizes = pool.buckets[bucket]
    fits = np.array([bool(np.all(np.less_equal(pool.buckets[b], sizes))) for b in own], bool)
    held[bucket] = rows_N[fits]
    if not len(held[bucket]):
      raise UserError(
        f"data.chat_share: the pool has {len(own)} conversations (task {CHAT!r}), none of which "
        f"fits the bucket {tuple(sizes)}; add such records and build it again, or set it to 0"
      )
  return held


def in_turn(pool: Pool, tasks: Sequence[str] = (), limit: int = 0) -> np.ndarray:
  """int64 [N] rows of an evaluation in its order: bucket by bucket, in stored order.

  Args:
    tasks, limit: see `loader.sequential`.
  """
  rows_N = np.flatnonzero(chosen(pool, tasks))[: limit or None]
  return rows_N[np.argsort(pool.bucket_N[rows_N], kind="stable")]


def apart(pool: Pool, share: float) -> tuple[Pool, Pool]:
  """(what training sees, what it never sees): the rows of a share of the clips are held out.

  Which clips follows from their names alone: both stages, and runs of other seeds, hold out the
  same.

  Raises:
    UserError: a pool of before keeps no names of clips in its index, or one part has no row.
  """
  if pool.clip_N is None:
    raise UserError(
      f"data.held_out={share}: the pool {pool.directory} is from before clips were in its index; "
      "build it again, or name a split of it (evaluate.split)"
    )
  names, of_N = np.unique(pool.clip_N, return_inverse=True)
  place = lambda name: (
    int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big") / 2**64
  )
  held_N = np.array([place(name) < share for name in names])[of_N]
  if held_N.all() or not held_N.any():
    raise UserError(
      f"data.held_out={share} holds out {held_N.sum()} of {len(held_N)} prompts; give another share"
    )
  used = lambda mask_N: dataclasses.replace(pool, used_N=mask_N)
  return used(~held_N), used(held_N)


def some(pool: Pool, count: int, tasks: Sequence[str]) -> Pool:
  """A pool of which only `count` rows are used, drawn once for all among those that may be."""
  rows_N = np.random.default_rng(0).permutation(np.flatnonzero(chosen(pool, tasks)))[:count]
  used_N = np.zeros(len(pool), bool)
  if not len(rows_N):
    raise UserError("no prompt of a task is held out; give another split, share or data.tasks")
  used_N[rows_N] = True
  return dataclasses.replace(pool, used_N=used_N)

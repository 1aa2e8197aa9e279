"""Batches addressed by step: batch(step) depends on the pool, seed, stage and step alone.

So a restart at step s goes on as if nothing had happened, and every process of a larger run can cut
its own share out of the same plan. Runs in Grain threads or worker processes: numpy only.

Axes: N rows of a split, B prompts of a batch.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epy

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket, PromptGroups
from rmsd_jax.core.packing import deal
from rmsd_jax.data import batch, epochs
from rmsd_jax.data.store import Pool

with epy.lazy_imports():
  import grain

_READ_THREADS = 4  # per process; reading and PNG decoding release the interpreter's lock


@dataclasses.dataclass(frozen=True)
class Share:
  """Which part of every batch a process loads: the `index`-th of `count` equal parts."""

  index: int = 0
  count: int = 1

  def size(self, batch_size: int) -> int:
    if batch_size < 1 or batch_size % self.count:
      raise UserError(
        f"a batch of {batch_size} prompts cannot be split over {self.count} processes; make it a "
        f"multiple of {self.count}"
      )
    return batch_size // self.count

  def of(self, rows_B: np.ndarray) -> np.ndarray:
    # Contiguous: `sharding.put_batch` joins the parts in the order of the processes.
    size = self.size(len(rows_B))
    return rows_B[self.index * size : (self.index + 1) * size]


class Steps:
  """The training batches of a pool, by step.

  Args:
    pool: one split.
    batch_size: prompts of a batch, over all processes.
    seed, stage: of the order; see `epochs.plan_epoch`.
    k: teacher slots; rows with more responses give their first k.
    tasks: names of the tasks to use; empty: all.
    limit: only the first `limit` rows of the chosen tasks; 0: all.
    share: the part of each batch that this process loads.
    shards: equal contiguous parts of a batch, over which its prompts are dealt by their tokens.
    samples: responses that a step will have of each prompt, about as long as the teacher's.
    chat_share: share of each batch that is plain conversations, rounded to whole prompts.

  Raises:
    UserError: the pool has fewer responses than k, no such task, too few rows for a batch, or no
      conversations to mix in.
  """

  def __init__(
    self,
    pool: Pool,
    batch_size: int,
    seed: int,
    k: int,
    tasks: Sequence[str] = (),
    limit: int = 0,
    share: Share = Share(),
    stage: int = 0,
    shards: int = 1,
    samples: int = 1,
    chat_share: float = 0.0,
  ):
    share.size(batch_size)
    _check_k(pool, k, 1)
    self._chats = epochs.chats(batch_size, chat_share)
    self._asked = batch_size - self._chats  # prompts of a batch that are of a task
    self._bucket_N = epochs.used(pool, self._asked, tasks, limit)
    self._chats_of = epochs.chats_of(pool, self._bucket_N) if self._chats else {}
    self._pool = pool
    self._order = (seed, stage)
    self._k = k
    self._share = share
    self._shards = shards
    self._samples = samples
    self._epoch = (0, self._plan(0))

  @property
  def per_epoch(self) -> int:
    """Steps of an epoch; the same in every epoch."""
    return len(self._epoch[1])

  def rows(self, step: int) -> np.ndarray:
    """int64 [B] rows of a step, over all processes."""
    # Epochs have equally many steps, so the step alone says which epoch it is in. The last plan is
    # kept, since steps come in order.
    epoch, place = divmod(step, self.per_epoch)
    known, planned = self._epoch
    if epoch != known:
      planned = self._plan(epoch)
      self._epoch = (epoch, planned)  # one assignment: other threads see both or neither
    return planned[place]

  def dealt(self, step: int) -> np.ndarray:
    """The rows of a step in the order in which they lie on the mesh: each shard has about as many
    tokens, as far as the teacher's lengths tell. A pool of before leaves them as drawn."""
    rows_B = self.rows(step)
    if self._pool.tokens_N2 is None:
      return rows_B
    prompt_B, response_B = self._pool.tokens_N2[rows_B].T
    return rows_B[deal(prompt_B + self._samples * response_B, self._shards)]

  def _plan(self, epoch: int) -> np.ndarray:
    seed, stage = self._order
    planned = epochs.plan_epoch(self._bucket_N, self._asked, seed, epoch, stage)
    if not self._chats:
      return planned
    # Behind the others, whose bucket is the batch's. Each bucket goes through its conversations in
    # an order of its own, and begins anew where they run out.
    mixed = np.zeros((len(planned), self._chats), np.int64)
    for bucket, rows in self._chats_of.items():
      steps = np.flatnonzero(self._bucket_N[planned[:, 0]] == bucket)
      order = np.random.default_rng((seed, epoch, stage, bucket)).permutation(rows)
      mixed[steps] = np.resize(order, (len(steps), self._chats))
    return np.concatenate([planned, mixed], axis=1)

  def bucket(self, step: int) -> Bucket:
    """The padded sizes of a step, alike on every process."""
    return self._pool.buckets[self._bucket_N[self.rows(step)[0]]]

  def __getitem__(self, step: int) -> batch.Batch:
    # All processes plan the whole batch; each reads and decodes its own rows of it.
    rows_B = self._share.of(self.dealt(step))
    return _collate(self._pool, rows_B, self.bucket(step), self._k)


def make(
  pool: Pool,
  *,
  batch_size: int,
  seed: int,
  k: int,
  start_step: int,
  end_step: int,
  tasks: Sequence[str] = (),
  limit: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  prefetch: int = 2,
  stage: int = 0,
  shards: int = 1,
  samples: int = 1,
  chat_share: float = 0.0,
) -> Iterator[tuple[int, batch.Batch]]:
  """Yields (step, this process's share of its batch) for steps start_step .. end_step - 1.

  Args:
    pool: one split.
    batch_size, seed, k, tasks, limit, stage, shards, samples, chat_share: see `Steps`.
    start_step: the first step; a resumed run starts where it stopped.
    end_step: steps of the whole run.
    process_index, process_count: this process takes the index-th of count equal parts.
    num_workers: worker processes that load; 0 loads in threads of this process.
    prefetch: batches kept ready (by each worker).

  Raises:
    UserError: see `Steps`.
  """
  share = Share(process_index, process_count)
  steps = Steps(pool, batch_size, seed, k, tasks, limit, share, stage, shards, samples, chat_share)
  return _stream(_Window(steps, start_step, end_step), num_workers, prefetch)


def sequential(
  pool: Pool,
  *,
  batch_size: int,
  k: int = 0,
  limit: int = 0,
  tasks: Sequence[str] = (),
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  prefetch: int = 2,
  done: Collection[int] = (),
) -> Iterator[batch.Batch]:
  """Every row once, for evaluation, in the order of `epochs.in_turn`.

  The last batch of a bucket is filled with repeats of its first row, which `real_B` marks False, so
  that every process sees as many batches.

  Args:
    limit: only the first `limit` rows of the chosen tasks; 0: all.
    done: rows that are answered; a batch of such rows alone is left out, and others stay as they
      are, so that an evaluation that goes on has the batches of one that was not interrupted.
    Others: as in `make`.
  """
  share = Share(process_index, process_count)
  share.size(batch_size)
  _check_k(pool, k, 0)
  rows_N = epochs.in_turn(pool, tasks, limit)
  turns = []
  # Bucket by bucket, so that each padded size is compiled once and no batch mixes two.
  for bucket in np.unique(pool.bucket_N[rows_N]):
    inside = rows_N[pool.bucket_N[rows_N] == bucket]
    for start in range(0, len(inside), batch_size):
      turns.append(inside[start : start + batch_size])
  answered = frozenset(done)
  turns = [turn for turn in turns if not answered.issuperset(turn.tolist())]
  window = _Turns(pool, turns, batch_size, k, share)
  return (loaded for _, loaded in _stream(window, num_workers, prefetch))


@dataclasses.dataclass(frozen=True)
class _Window:
  """Steps start .. end - 1 as a source for Grain."""

  steps: Steps
  start: int
  end: int

  def __len__(self) -> int:
    return max(self.end - self.start, 0)

  def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
    step = self.start + index
    return step, _to_tree(self.steps[step])


@dataclasses.dataclass(frozen=True)
class _Turns:
  """Batches of an evaluation as a source for Grain."""

  pool: Pool
  turns: Sequence[np.ndarray]  # up to batch_size rows each, of one bucket
  batch_size: int
  k: int
  share: Share

  def __len__(self) -> int:
    return len(self.turns)

  def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
    rows = self.turns[index]
    bucket = self.pool.buckets[self.pool.bucket_N[rows[0]]]
    # Filled up before it is shared out: the repeats may all fall to the last process.
    filled_B = np.concatenate([rows, np.repeat(rows[:1], self.batch_size - len(rows))])
    real_B = np.arange(self.batch_size) < len(rows)
    loaded = _collate(self.pool, self.share.of(filled_B), bucket, self.k)
    return index, _to_tree(dataclasses.replace(loaded, real_B=self.share.of(real_B)))


# Not a generator, so that a wrong setting is refused when the loader is made, not at its first
# batch.
def _stream(source: _Window | _Turns, num_workers: int, prefetch: int) -> Iterator:
  if num_workers < 0 or prefetch < 1:
    raise UserError(f"{num_workers} workers and {prefetch} batches ahead; needed: >= 0 and >= 1")
  return _iterate(source, num_workers, prefetch)


def _iterate(source: _Window | _Turns, num_workers: int, prefetch: int) -> Iterator:
  if not len(source):
    return
  reading = grain.ReadOptions(min(_READ_THREADS, prefetch), prefetch)
  # Threads keep the order of the steps, and so do Grain's worker processes: each takes every n-th.
  dataset = grain.MapDataset.source(source).to_iter_dataset(reading)
  if num_workers:
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers, prefetch))
  tree = None
  try:
    # Closed also where the consumer stops early: workers would live on.
    with contextlib.closing(iter(dataset)) as loaded, _lost_workers():
      for step, tree in loaded:
        # Arrays from workers are views of shared memory that must not outlive this loop.
        yield step, _from_tree(tree, np.array if num_workers else np.asarray)
  finally:
    del tree
    if num_workers:
      # The last batches hang in reference cycles of Grain's iterators. Their shared memory is given
      # back with them; at the end of the process the resource tracker would find it leaked.
      gc.collect()


@contextlib.contextmanager
def _lost_workers() -> Iterator[None]:
  """A worker process that is gone, as Grain says it, in one line."""
  try:
    yield
  except RuntimeError as error:
    if "terminated unexpectedly" not in str(error):
      raise
    raise UserError(
      f"a data worker is gone ({str(error).partition('. ')[0]}), for want of memory perhaps; lower "
      "data.workers or data.prefetch; the same command goes on from the last checkpoint"
    ) from error


def _to_tree(loaded: batch.Batch) -> dict[str, Any]:
  """A batch as nested dicts, whose arrays Grain hands between processes in shared memory."""
  fields = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)}
  groups = fields["groups"]
  arrays = {field.name: getattr(groups, field.name) for field in dataclasses.fields(groups)}
  return fields | {"groups": arrays}


def _from_tree(tree: dict[str, Any], own: Callable[[np.ndarray], np.ndarray]) -> batch.Batch:
  """The inverse of `_to_tree`; `own` is applied to every array."""
  groups = PromptGroups(**{name: own(array) for name, array in tree["groups"].items()})
  arrays = {name: own(tree[name]) for name in tree if name not in ("groups", "info")}
  return batch.Batch(groups=groups, info=tree["info"], **arrays)


def _collate(pool: Pool, rows_B: np.ndarray, bucket: Bucket, k: int) -> batch.Batch:
  return batch.collate([pool[row] for row in rows_B], rows_B, bucket, k, pool.layout, pool.trust)


def _check_k(pool: Pool, k: int, least: int) -> None:
  most = pool.metadata["k"]
  if not least <= k <= most:
    raise UserError(
      f"data.responses={k}, but the pool has {most} responses per prompt; give {least} to {most}"
    )

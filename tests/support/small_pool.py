"""A pool in memory, for tests of what reads pools: random rows, no video and no tokenizer."""

import dataclasses

import numpy as np

from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import prompts, rows

LAYOUT = prompts.Layout(patch=4, merge=2, temporal=2, pad_id=0)
BUCKETS = (Bucket(24, 6, 2, 8), Bucket(40, 8, 3, 16))


def make_row(rng, index, bucket=0, frames=2, responses=3, task="ocr"):
  """A row whose pictures, ids and scores are random and whose sizes fit `bucket`."""
  grids = [(2, 4) if f % 2 == 0 else (2, 2) for f in range(frames)]
  visual = []
  for rows_, columns in grids:
    visual += [False] * int(rng.integers(1, 4)) + [True] * (rows_ * columns // 4)
  visual += [False] * 3
  lengths = rng.integers(1, BUCKETS[bucket].response + 1, responses)
  quality = rng.uniform(size=responses).astype(np.float32)
  return rows.Row(
    id=f"row {index}",
    clip=f"clip {index // 2}",
    task=task,
    closed=task != "open_ended",
    question="What is written?",
    options=(),
    answer={"index": index},
    source="",
    bucket=bucket,
    ids_P=rng.integers(1, 99, len(visual)).astype(np.int32),
    is_visual_P=np.array(visual),
    grid_F2=np.array(grids, np.int32).reshape(-1, 2),
    times_F2=np.zeros((frames, 2), np.float32),
    **rows.pack([rng.integers(0, 256, (2 * 4 * h, 4 * w, 3), np.uint8) for h, w in grids]),
    texts=tuple(f"text {k}" for k in range(responses)),
    teachers=("big",) * responses,
    finish_reasons=("stop",) * responses,
    responses=tuple(rng.integers(1, 99, n).astype(np.int32) for n in lengths),
    tokens_K=lengths.astype(np.int32),
    outer_K=np.ones(responses, np.float32),
    inner_K=np.ones(responses, np.float32),
    content_K=quality,
    quality_K=quality,
    rouge_K=quality / 2 * (task == "open_ended"),
    valid_K=np.ones(responses, bool),
  )


@dataclasses.dataclass(frozen=True)
class MemoryPool:
  """Has what loaders use of a `data.pool.Pool`."""

  stored: tuple
  buckets: tuple = BUCKETS
  layout: prompts.Layout = LAYOUT
  used_N: np.ndarray | None = None
  trust: None = None
  split: str = "train"
  directory: str = "POOL"

  def __len__(self):
    return len(self.stored)

  def __getitem__(self, index):
    return self.stored[int(index)]

  @property
  def bucket_N(self):
    return np.array([row.bucket for row in self.stored], np.int32)

  @property
  def task_N(self):
    return np.array([row.task for row in self.stored])

  @property
  def tokens_N2(self):
    lengths = [[len(ids) for ids in row.responses] for row in self.stored]
    return np.array([(len(row.ids_P), max(n)) for row, n in zip(self.stored, lengths, strict=True)])

  @property
  def metadata(self):
    return {"k": max(len(row.texts) for row in self.stored)}


def make_pool(count=23, seed=0, tasks=("ocr", "open_ended"), large_every=3):
  """`count` rows of alternating tasks; every `large_every`-th is of the larger bucket."""
  rng = np.random.default_rng(seed)
  return MemoryPool(
    tuple(
      make_row(rng, i, bucket=int(i % large_every == 0), task=tasks[i % len(tasks)])
      for i in range(count)
    )
  )

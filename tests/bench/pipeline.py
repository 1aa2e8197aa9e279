"""How fast the input pipeline is, and how fast a large pool opens.

    python -m tests.bench.pipeline WORKDIR        WORKDIR of a demo that has run

Batches per second of the demo's stage 1 pipeline, on one core and without a model, against the
prompts per second that its stage 1 consumed (WORKDIR/sft/metrics.jsonl); and the seconds that a
pool of 100,000 rows, copies of the demo's, takes to open.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

from rmsd_jax.data import loader, rows, store
from rmsd_jax.training import log

ROWS = 100_000


def examples_per_second(opened: store.Pool, batch: int, batches: int) -> float:
  """Prompts per second out of the loader, its first batches (start-up) left out."""
  os.sched_setaffinity(0, {0})  # one core, its threads and children too
  steps = loader.make(
    opened, batch_size=batch, seed=0, start_step=0, end_step=batches + 5, k=4, tasks=(), limit=0,
    num_workers=0, prefetch=2, process_index=0, process_count=1,
  )  # fmt: skip
  steps = iter(steps)
  for _ in itertools.islice(steps, 5):
    pass
  began = time.perf_counter()
  done = sum(len(made.row_B) for _, made in steps)
  return done / (time.perf_counter() - began)


def copy_many(opened: store.Pool, out: pathlib.Path, count: int) -> None:
  """A pool of `count` rows that repeat the opened ones."""
  stored = [rows.encode(opened[i]) for i in range(min(len(opened), 200))]
  store.write_rows(
    out, {"train": (stored[i % len(stored)] | {"id": f"row {i}"} for i in range(count))}
  )
  tasks = store._index(out, "train")
  metadata = dict(opened.metadata) | {"rows": {"train": tasks}}
  (out / "metadata.json").write_text(json.dumps(metadata))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--rows", type=int, default=ROWS)
  options = parser.parse_args()
  opened = store.open_pool(options.workdir / "pool", "train")
  with tempfile.TemporaryDirectory() as folder:
    copy_many(opened, pathlib.Path(folder), options.rows)
    seconds = []
    for _ in range(5):
      began = time.perf_counter()
      large = store.open_pool(folder, "train")
      seconds.append(time.perf_counter() - began)
    assert len(large) == options.rows and dataclasses.asdict(large[0])
  print(f"a pool of {options.rows:,} rows opens in {statistics.median(seconds):.2f} s (bar: 2)")
  consumed = [line["prompts_per_second"] for line in log.read(str(options.workdir / "sft"))]
  made = examples_per_second(opened, 32, 60)
  used = statistics.median(consumed)
  print(f"pipeline {made:.0f} prompts/s on one core; the demo's stage 1 takes {used:.1f} (2 cores)")
  print(f"{made / used:.1f} times (bar: 10)")


if __name__ == "__main__":
  main()

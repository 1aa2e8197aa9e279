"""300 flipped bits over all files of a run and of a pool: none is used.

tests/data/test_pool_damage.py and tests/training/test_checkpoint.py try fewer in every run.
"""

import hashlib
import pathlib

import jax
import numpy as np
import pytest
import tiny_run
from flip_drill import flips

from rmsd_jax import train_sft
from rmsd_jax.data import store
from rmsd_jax.rollouts import looks
from rmsd_jax.training.loop import Loop

FLIPS = 300
SEED = 20


def digest(arrays: dict[str, np.ndarray]) -> str:
  found = hashlib.sha256()
  for name in sorted(arrays):
    found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
    found.update(np.ascontiguousarray(arrays[name]).tobytes())
  return found.hexdigest()


def files(folder: pathlib.Path, *names: str) -> list[str]:
  found = [path for path in folder.rglob("*") if path.is_file() and path.name != "quarantine.jsonl"]
  paths = sorted(str(path.relative_to(folder)) for path in found)
  return [path for path in paths if path.split("/")[0] in names or not names]


def report(outcomes) -> None:
  print({name: len(lines) for name, lines in outcomes.items()})
  for name in ("used", "harmless"):
    print(*(f"{name}: {line}" for line in outcomes[name]), sep="\n")


@pytest.mark.slow
def test_no_flipped_bit_of_a_run_is_used(tmp_path, monkeypatch):
  """Read as the same command would on resuming: config, pool and the whole state."""
  c = tiny_run.config("sft", steps=4, save_every=2, keep=2, best_metric="-loss", data__limit=8)
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "run")
  monkeypatch.setattr("rmsd_jax.core.sharding.make_mesh", lambda **sizes: tiny_run.mesh())

  def state_of(loop) -> tuple:
    with jax.set_mesh(loop.mesh), loop:
      optims = train_sft.make_optims(c)
      state = loop.start(tiny_run.model_of(c), optims, lambda: {}, looks.Look)
      rows = [batch.row_B.tolist() for _, batch in loop._load(0, 2, num_workers=0)]
      return loop.begin, digest(tiny_run.flat(state)), str(rows)

  read = lambda folder: state_of(Loop(c, str(folder), stage=1))
  whole = read(tmp_path / "run")
  assert whole[0] == 4
  older = (2, digest(tiny_run.flat(tiny_run.restored(tmp_path / "run", train_sft, c, 2))), whole[2])
  tried = files(tmp_path / "run", "checkpoints", "config.json", "pool.json", "metrics.jsonl")
  assert {name.split("/")[-1] for name in tried} >= {"SHA256SUMS", "metrics", "config.json"}
  outcomes = flips(tmp_path / "run", tried, read, FLIPS, SEED, [older])
  report(outcomes)
  assert not outcomes["used"]
  assert len(outcomes["other"]) > 50 and len(outcomes["refused"]) > 3


@pytest.mark.slow
def test_no_flipped_bit_of_a_pool_is_used():
  """Every row of both splits."""

  def read(folder) -> str:
    found = {}
    for split in ("train", "test"):
      pool = store.open_pool(folder, split)
      found |= {
        f"{split} {i} {name}": value if isinstance(value, np.ndarray) else np.array(repr(value))
        for i in range(0, len(pool), 4)
        for name, value in vars(pool[i]).items()
        if name != "responses"
      }
      found |= {f"{split} {name}": getattr(pool, name) for name in ("bucket_N", "task_N")}
    return digest(found)

  folder = tiny_run.pool_folder()
  outcomes = flips(folder, files(folder), read, FLIPS, SEED)
  report(outcomes)
  assert not outcomes["used"] and len(outcomes["refused"]) > 200

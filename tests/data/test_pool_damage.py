"""A damaged, mixed or useless pool is one line, and trains nobody."""

import json
import shutil

import numpy as np
import pytest
import small_pool
import tiny_run

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import rows, store


@pytest.fixture
def pool(tmp_path):
  shutil.copytree(tiny_run.pool_folder(), tmp_path / "pool")
  return tmp_path / "pool"


def flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def test_no_flipped_bit_of_a_pool_is_read(pool, tmp_path):
  rng, copy = np.random.default_rng(0), tmp_path / "copy"
  paths = [p for p in pool.rglob("*") if p.is_file() and p.name != "quarantine.jsonl"]
  assert {p.name for p in paths} >= {"SHA256SUMS", "metadata.json", "index-train.npz"}
  whole = store.open_pool(pool, "train").identity
  for number in range(60):
    path = paths[number % len(paths)]
    shutil.copy(path, copy)
    flip(path, int(rng.integers(8 * path.stat().st_size)))
    with pytest.raises(UserError) as caught:
      store.open_pool(pool, "train")
    assert "\n" not in str(caught.value)
    shutil.copy(copy, path)
  assert store.open_pool(pool, "train").identity == whole


@pytest.mark.parametrize("name", ["index-train.npz", "SHA256SUMS", "rmsd_pool/1.0.0/features.json"])
def test_a_lost_file_is_named(pool, name):
  (pool / name).unlink()
  with pytest.raises(UserError, match=rf"pool is damaged: {name} is missing; copy it again"):
    store.open_pool(pool, "train")


def without_digests(pool):
  """As earlier versions built it."""
  metadata = json.loads((pool / "metadata.json").read_text())
  del metadata["digests"]
  (pool / "metadata.json").write_text(json.dumps(metadata))
  (pool / "SHA256SUMS").unlink()


def test_a_pool_without_digests_is_read_and_an_index_of_another_is_noticed(pool, capsys):
  without_digests(pool)
  opened = store.open_pool(pool, "train")
  assert "from before digests" in capsys.readouterr().out and "sha256" not in opened.identity
  assert [opened[i].task for i in range(len(opened))] == opened.task_N.tolist()
  index = dict(np.load(pool / "index-train.npz"))
  np.savez(pool / "index-train.npz", **(index | {"task_N": index["task_N"][::-1]}))
  opened = store.open_pool(pool, "train")
  wrong = np.flatnonzero(index["task_N"] != index["task_N"][::-1])
  with pytest.raises(UserError, match="is of task .*: the index is of another pool; copy the pool"):
    opened[wrong[0]]


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_torn_index_without_digests_is_one_line(pool, keep):
  without_digests(pool)
  path = pool / "index-train.npz"
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(UserError, match="is damaged: split train cannot be read"):
    store.open_pool(pool, "train")


def pool_of(row, vocabulary=0):
  source = [rows.encode(row)]
  source[0] |= {
    name: source[0][name].encode()
    for name in ("id", "clip", "task", "question", "answer", "source")
  }
  index = (np.array([row.bucket], np.int32), np.array([row.task]))
  return store.Pool("POOL", "train", {}, source, *index, vocabulary=vocabulary)


@pytest.mark.parametrize(
  ("name", "values"),
  [("quality", [0.5, 1.5, 0]), ("quality", [np.nan, 0, 0]), ("rouge", [0, -0.1, 0])],
)
def test_scores_outside_their_range_are_refused(name, values):
  row = small_pool.make_row(np.random.default_rng(0), 0)
  getattr(row, f"{name}_K")[:] = values
  with pytest.raises(UserError, match=rf"row 0 \('row 0'\) of the pool POOL has a {name} outside"):
    pool_of(row)[0]


@pytest.mark.parametrize("where", ["ids_P", "responses"])
def test_ids_beyond_the_vocabulary_are_refused(where):
  row = small_pool.make_row(np.random.default_rng(0), 0)
  assert pool_of(row, 99)[0].id == "row 0"
  (row.ids_P if where == "ids_P" else row.responses[1])[0] = 99
  assert pool_of(row)[0].id == "row 0"
  with pytest.raises(UserError, match="has the token id 99, outside the model's vocabulary of 99"):
    pool_of(row, 99)[0]

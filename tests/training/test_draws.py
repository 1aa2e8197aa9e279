"""Stages draw their prompts in orders of their own; older runs keep the order they had."""

import collections
import json

import numpy as np
import pytest
import tiny_run

from rmsd_jax import cli
from rmsd_jax.core import sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import epochs
from rmsd_jax.training import guard
from rmsd_jax.training.loop import Loop


def rows(folder, stage, **changes):
  """int64 [steps, B]: what a stage reads, from the step it is at."""
  c = tiny_run.config(stage, steps=12, **changes)
  # On one device, for several are dealt the prompts of a batch by their lengths.
  on = tiny_run.mesh()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh", lambda **sizes: on)
    loop = Loop(c, str(folder), stage={"sft": 1, "rl": 2}[stage])
  with loop:
    return np.array([batch.row_B for _, batch in loop.batches()])


def test_stage_2_does_not_see_the_prompts_as_stage_1_did(tmp_path):
  """48 prompts, 8 a step: 12 steps are two epochs."""
  read = lambda stage, **changes: rows(tmp_path / "_".join((stage, *changes)), stage, **changes)
  first, second = (read(stage, data__draws="stage", seed=3) for stage in ("sft", "rl"))
  for epoch in (slice(0, 6), slice(6, 12)):
    for order in (first, second):
      assert sorted(order[epoch].ravel()) == list(range(48))
    assert (first[epoch] != second[epoch]).mean() > 0.8
  alike = [read(stage, seed=3) for stage in ("sft", "rl")]  # the demo's draws: "seed"
  np.testing.assert_array_equal(*alike)
  assert not np.array_equal(alike[0], first)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**80, 1)])
def test_stage_0_is_the_order_that_runs_had_before(seed, epoch):
  """Planned here a second time, as it was written then."""
  bucket_N = np.array([0, 1, 1, 0, 1, -1, 0, 0, 1, 1, 1, 0, 0])
  rng = np.random.default_rng((seed, epoch))
  batches = []
  for bucket in (0, 1):
    shuffled = rng.permutation(np.flatnonzero(bucket_N == bucket))
    batches.append(shuffled[:6].reshape(3, 2))
  wanted = rng.permutation(np.concatenate(batches))
  np.testing.assert_array_equal(epochs.plan_epoch(bucket_N, 2, seed, epoch), wanted)


@pytest.mark.parametrize("seed", [0, 1, 2**70])
def test_no_two_stages_and_epochs_have_one_order(seed):
  bucket_N = np.zeros(64, int)
  orders = collections.Counter(
    epochs.plan_epoch(bucket_N, 8, seed, epoch, stage).tobytes()
    for epoch in range(5)
    for stage in range(3)
  )
  assert set(orders.values()) == {1}


def begun(folder, c, monkeypatch):
  """A folder whose run has a config and, as far as the loop asks, a checkpoint at step 3."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(c))
  checkpoints = "rmsd_jax.training.loop.Checkpoints"
  monkeypatch.setattr(f"{checkpoints}.latest", lambda self: 3)
  monkeypatch.setattr(f"{checkpoints}.latest_whole", lambda self: 3)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_run_without_the_key_goes_on_in_its_order_again_and_again(stage, tmp_path, monkeypatch):
  whole = rows(tmp_path / "whole", stage)
  old = tiny_run.config(stage, steps=12).to_dict()
  del old["data"]["draws"]
  begun(tmp_path / "old", old, monkeypatch)
  for draws in ("stage", "stage", "seed"):  # started three times
    np.testing.assert_array_equal(rows(tmp_path / "old", stage, data__draws=draws), whole[3:])
  assert "draws" not in guard.read_config(str(tmp_path / "old"))["data"]


def test_a_run_with_the_key_is_bound_to_it(tmp_path, monkeypatch):
  begun(tmp_path / "new", tiny_run.config("sft", steps=12).to_dict(), monkeypatch)
  with pytest.raises(UserError, match='data.draws "seed" -> "stage"'):
    rows(tmp_path / "new", "sft", data__draws="stage")


def test_another_word_is_refused(tmp_path):
  with pytest.raises(UserError, match="data.draws is 'step'; choose one of stage, seed"):
    rows(tmp_path / "new", "sft", data__draws="step")


@pytest.mark.parametrize("name", ["default", "qwen3vl_2b_sft", "qwen3vl_4b_rl"])
def test_presets_draw_by_stage(name):
  assert cli.load_config(str(tiny_run.ROOT / "configs" / f"{name}.py")).data.draws == "stage"


def test_a_bucket_keeps_its_rows_in_every_stage():
  pool_buckets = (Bucket(10, 5, 1, 4), Bucket(10, 5, 2, 4))
  bucket_N = epochs.fill(np.array([0, 1, 1, 0, 1, 0]), pool_buckets, 2)
  for stage in range(3):
    for batch in epochs.plan_epoch(bucket_N, 2, 0, 0, stage):
      assert len({bucket_N[row] for row in batch}) == 1

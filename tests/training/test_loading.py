"""A run's student in Python: its weights, prompts as its pool has them, scores by its rules."""

import json

import numpy as np
import pytest
import tiny_run

import rmsd_jax
from rmsd_jax import train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import store
from rmsd_jax.training import loading


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("loading") / "sft"
  c = tiny_run.config("sft", steps=4, best_metric="-loss")
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.run(patch, train_sft, c, folder)
  return folder


@pytest.mark.parametrize("step", ["latest", "best", 2])
def test_weights_are_those_of_the_step(workdir, step):
  model, params, _ = rmsd_jax.load_run(str(workdir), step)
  number = loading.state.checkpoint.find_step(str(workdir), step)
  c = tiny_run.config("sft", steps=4)
  wanted = tiny_run.restored(workdir, train_sft, c, number)
  tiny_run.assert_same(params, loading.state.weights(wanted))
  assert model.config == tiny_run.model_of(c).config


def test_questions_are_asked_as_the_pool_asks_them(workdir):
  """Token by token and patch by patch, of each of its tasks."""
  _, _, processor = rmsd_jax.load_run(str(workdir))
  pool = store.open_pool(tiny_run.pool_folder(), "train")
  rows = {row.id: row for row in (pool[i] for i in range(len(pool)))}
  records = map(json.loads, (tiny_run.HERE / "raw" / "pool.jsonl").read_text().splitlines())
  of_task = {record["task"]: record for record in records}
  assert len(of_task) >= 4
  for task, record in of_task.items():
    row = rows[record["id"]]
    (shown,) = record["media"]
    path = str(tiny_run.HERE / "raw" / shown["path"])
    given = {"video": path} if shown["type"] == "video" else {"images": [path]}
    groups = processor.ask(row.question, task, **given, options=row.options)
    assert groups.tokens_BP[0, : groups.prompt_length_B[0]].tolist() == row.ids_P.tolist(), task
    np.testing.assert_array_equal(groups.grid_BF2[0], row.grid_F2)


def test_replies_are_scored_by_the_rules_of_the_run(workdir):
  _, _, processor = rmsd_jax.load_run(str(workdir))
  reply = "<think>I see.</think><answer>B</answer>"
  options = ["A. 1", "B. 2"]
  for truth, quality in (("B", 1.0), ("A", 0.0)):
    assert processor.score(reply, truth, "multiple_choice", options).quality == quality
  assert processor.score("B", "B", "multiple_choice", options).quality == 0  # no tags
  with pytest.raises(UserError, match="the ground truth does not suit the task"):
    processor.score(reply, "E", "multiple_choice", options)


def test_what_is_no_run_is_named(workdir, tmp_path):
  with pytest.raises(UserError, match="config.json does not exist; give the work folder of a run"):
    rmsd_jax.load_run(str(tmp_path))
  with pytest.raises(UserError, match="does not hold step 3"):
    rmsd_jax.load_run(str(workdir), 3)
  with pytest.raises(UserError):
    rmsd_jax.load_run(str(workdir), folder=str(tmp_path / "nowhere"))

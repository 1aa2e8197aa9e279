"""Work folders of earlier versions: they resume, evaluate and report with the numbers they had.

fixtures/old_run.tar.xz was written by the version before the rooms (commit 52e14e7), with the
settings of support/tiny_run.py: a model, a pool, both stages stopped after step 5 of 6 and saved at
step 4, an evaluation of stage 2 at step 4, and in expected.json the log of the same runs without
interruption.
"""

import json
import pathlib
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from rmsd_jax import evaluate, train_rl, train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import Rules
from rmsd_jax.training import guard, log, old_runs, timing
from rmsd_jax.training import state as state_lib

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "old_run.tar.xz"
PLACE = "OLD_RUN"  # stands in the stored configs for the folder of the runs
NEW = ("time", "epoch", "policy/learning_rate", "discriminator/learning_rate")


def named(line) -> set:
  """The metrics of a line but what a machine gave, and what the old runs did not log."""
  return {name for name in line if not name.startswith((*NEW, *timing.OF_THE_MACHINE))}


@pytest.fixture
def old(tmp_path):
  """The fixture, unpacked."""
  with tarfile.open(FIXTURE) as archive:
    archive.extractall(tmp_path, filter="data")
  for path in tmp_path.glob("*/config.json"):
    path.write_text(path.read_text().replace(PLACE, str(tmp_path)))
  return tmp_path


def config(old, stage, **changes):
  places = {"model__folder": str(old / "model"), "data__pool": str(old / "pool"), "keep": 1}
  if stage == "rl":
    places["optim__schedule"] = "constant"  # which the demo had then
  return tiny_run.config(stage, **places, **changes)


@pytest.mark.parametrize(("stage", "module"), [("sft", train_sft), ("rl", train_rl)])
def test_an_old_run_resumes_with_the_numbers_it_would_have_had(old, stage, module, monkeypatch):
  """Also in the old order of prompts, though today's default is another."""
  changes = {"init_from": str(old / "sft_whole")} if stage == "rl" else {}
  changes["data__draws"] = "stage"
  tiny_run.run(monkeypatch, module, config(old, stage, **changes), old / stage)
  got = {line["step"]: line for line in log.read(str(old / stage))}
  assert sorted(got) == [1, 2, 3, 4, 5, 6]
  for line in json.loads((old / "expected.json").read_text())[stage]:
    wanted = {old_runs.metric_now(name): value for name, value in line.items()}
    if stage == "rl":
      # Its rollouts draw by the row of the pool now: the numbers are others, and some step may have
      # no pair of a kind. All other figures are there, under today's names.
      lacking = wanted.keys() ^ (named(got[line["step"]]))
      assert all(name.startswith(log.MAY_BE_EMPTY) for name in lacking), lacking
      continue
    assert named(got[line["step"]]) == wanted.keys()
    for name, value in wanted.items():
      assert got[line["step"]][name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name
  assert "draws" not in guard.read_config(str(old / stage))["data"]  # the next start knows, too


def test_an_old_run_is_evaluated_as_it_was(old, monkeypatch):
  path = old / "rl" / "evaluate" / "test.json"
  before = old_runs.evaluation_now(json.loads(path.read_text()))
  c = config(old, "rl", data__split="test", evaluate__name="again")
  tiny_run.run(monkeypatch, evaluate, c, old / "rl", checkpoint="latest")
  after = json.loads((path.parent / "again.json").read_text())
  assert after["step"] == before["step"] == 4
  # Samples are drawn by the row of the pool now, so these are others.
  greedy = lambda evaluation: [row["greedy"] for row in evaluation["prompts"]]
  assert greedy(after) == greedy(before) and after["greedy"] == before["greedy"]


def test_an_old_run_is_still_bound_to_its_config(old, monkeypatch):
  changes = {"init_from": str(old / "sft_whole"), "reward__inner": 0.3}
  with pytest.raises(UserError, match=r"reward\.inner 0\.1 -> 0\.3"):
    tiny_run.run(monkeypatch, train_rl, config(old, "rl", **changes), old / "rl")
  assert guard.read_config(str(old / "rl"))["reward"]["inner"] == 0.1


@pytest.mark.parametrize(
  ("name", "now"),
  [
    ("task/ocr/accuracy", "discriminator/accuracy/ocr"),
    ("task/ocr/effective_weight", "pairs/weight/ocr"),
    ("reward/task/variance_share", "reward/inner/variance_share"),
    ("rollout/task", "rollout/inner"),
    ("policy/kl", "policy/kl"),
  ],
)
def test_metrics_are_read_by_their_new_names(name, now):
  assert old_runs.metric_now(name) == now


def test_the_running_spread_outlives_a_change_of_the_tasks():
  """As an array, which it was, and by name; a new task begins at 0, one that went is forgotten."""
  values = jnp.arange(1.0, 11.0)
  by_name = dict(zip(old_runs.ARRAY_TASKS, values, strict=True))
  tasks = ["another", *old_runs.ARRAY_TASKS[1:]]
  for x in (values, by_name):
    stored = {"accuracy": jnp.float32(0.6), "spread": {"variance": x, "weight": x}}
    running = state_lib.running_of(stored, tasks)
    assert jax.tree.structure(running) == jax.tree.structure(state_lib.new_running(tasks))
    weight = running["spread"]["weight"]
    np.testing.assert_array_equal([weight[task] for task in tasks], [0, *values[1:]])
    assert running["accuracy"] == stored["accuracy"]


def test_the_array_had_todays_tasks_in_their_order():
  assert Rules().names == old_runs.ARRAY_TASKS

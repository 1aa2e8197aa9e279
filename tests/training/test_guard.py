"""One config per work folder: what may change, what older runs did, what a torn file leads to."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from rmsd_jax.cli import load_config
from rmsd_jax.core.errors import UserError
from rmsd_jax.training import guard, old_runs
from rmsd_jax.training.checkpoint import Checkpoints
from rmsd_jax.training.guard import guard_config

ROOT = Path(__file__).parents[2]
CONFIG = {
  "seed": 1,
  "optim": {"lr": 1e-3, "betas": (0.9, 0.95)},
  "log": {"every": 10},
  "name": None,
}
OPERATIONAL = ("log", "optim.be")


def changed(**keys):
  config = json.loads(json.dumps(CONFIG))
  for name, value in keys.items():
    section, _, key = name.rpartition("__")
    (config[section] if section else config)[key] = value
  return config


def test_the_same_config_is_accepted_again(tmp_path):
  guard_config(tmp_path / "run", ConfigDict(CONFIG), OPERATIONAL)
  first = (tmp_path / "run" / "config.json").read_text()
  assert json.loads(first)["optim"] == {"lr": 1e-3, "betas": [0.9, 0.95]}
  guard_config(tmp_path / "run", CONFIG, OPERATIONAL)
  assert (tmp_path / "run" / "config.json").read_text() == first


def test_a_changed_config_is_refused_with_every_difference(tmp_path):
  guard_config(tmp_path, CONFIG, OPERATIONAL)
  new = changed(seed=2, optim__lr=0.1, optim__betas=[0.9, 0.99], log__every=5, extra=True)
  del new["name"]
  with pytest.raises(UserError) as caught:
    guard_config(tmp_path, new, OPERATIONAL)
  message = str(caught.value)
  for words in (
    "seed 1 -> 2",
    "optim.lr 0.001 -> 0.1",
    "optim.betas [0.9, 0.95] -> [0.9, 0.99]",  # the prefix optim.be covers no part of a name
    "extra (absent) -> true",
    "name null -> (absent)",
  ):
    assert words in message
  assert "log.every" not in message
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_operational_keys_may_change_and_are_recorded(tmp_path):
  guard_config(tmp_path, CONFIG, OPERATIONAL)
  guard_config(tmp_path, changed(log__every=5), OPERATIONAL)
  assert json.loads((tmp_path / "config.json").read_text())["log"] == {"every": 5}


def test_only_the_first_process_writes_the_config(tmp_path):
  guard_config(tmp_path, CONFIG, write=False)
  assert not (tmp_path / "config.json").exists()
  guard_config(tmp_path, CONFIG)
  with pytest.raises(UserError, match="seed 1 -> 2"):
    guard_config(tmp_path, changed(seed=2), write=False)


@pytest.mark.parametrize("text", ["", '{"seed": 1, "op', "\xff\xfe{}", "[]"])
def test_a_torn_config_is_one_line_that_names_the_newest_whole_step(tmp_path, text):
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {"student": {"w": jnp.full((4,), step)}})
  (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
  for read in (lambda: guard_config(tmp_path, CONFIG), lambda: guard.read_config(str(tmp_path))):
    with pytest.raises(UserError, match="config.json is damaged or cut off: .* whole step is 2$"):
      read()
  guard_config(tmp_path, CONFIG, begun=False)  # nothing was computed: begun anew
  assert guard.read_config(str(tmp_path))["seed"] == 1


def test_a_lost_config_is_said(tmp_path, capsys):
  guard_config(tmp_path, CONFIG)
  assert "config.json is gone: the run goes on without being compared" in capsys.readouterr().out


def test_a_run_from_before_a_key_came_resumes_with_what_it_did(tmp_path):
  def config(**name):
    optim = {"lr": 1e-3, **name}
    return {"seed": 1, "optim": optim, "discriminator": {"optim": optim}}

  guard_config(tmp_path, config())
  with pytest.raises(UserError) as caught:
    guard_config(tmp_path, config(name="sgd"))
  for key in ("optim.name", "discriminator.optim.name"):
    assert f'{key} "adamw" -> "sgd"' in str(caught.value)
  guard_config(tmp_path, config(name="adamw"))
  assert json.loads((tmp_path / "config.json").read_text())["optim"]["name"] == "adamw"
  with pytest.raises(UserError, match=r'optim.name "adamw" -> \(absent\)'):
    guard_config(tmp_path, config())


def test_what_older_runs_did_is_said_of_keys_that_there_are():
  # All of default.py's, and the world's of the demo.
  config = load_config(f"{ROOT / 'configs' / 'demo.py'}:sft").to_dict()
  for name in old_runs.ADDED_KEYS:
    value = config
    for part in name.split("."):
      value = value[part]
    assert not isinstance(value, dict), f"{name} is a section"


def test_processes_with_other_settings_are_told_apart(monkeypatch):
  mine = {"config": {"seed": 0, "mesh": {"data": 2}}, "pool": {"buckets": [[1, 2]]}}
  others = lambda *values: monkeypatch.setattr(
    guard.sharding, "gathered", lambda own: [*own, *values]
  )
  moved = {"config": {"seed": 0, "mesh": {"data": 4}}, "pool": {"buckets": [[1, 2]]}}
  others(mine, moved)
  guard.check_alike(mine, ("mesh",))
  others(mine, moved | {"pool": {"buckets": [[1, 3]]}})
  with pytest.raises(
    UserError, match=r"process 2 has another pool .* buckets \[\[1, 2\]\] -> \[\[1, 3"
  ):
    guard.check_alike(mine, ("mesh",))
  others(mine | {"config": {"seed": 1}})
  with pytest.raises(UserError, match="process 1 has another config than process 0: .*seed 0 -> 1"):
    guard.check_alike(mine, ("mesh",))

"""Killed around its saves and deletions, a run goes on by itself and ends as it would have."""

import json

import drills
import pytest
import tiny_run

from rmsd_jax import train_sft


def drill(folder, name, kills) -> dict:
  """The report of a drill whose work folder is folder/name."""
  arguments = folder / "config.json", folder / name, kills, 0
  return drills.run("kill_drill", *arguments, compiled=folder / "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, 60])  # some 2 and 20 minutes
def test_every_restart_goes_on_by_itself_and_the_end_is_the_same(kills, tmp_path):
  c = tiny_run.config("sft", data__limit=8, steps=6 * kills, save_every=1, keep=1)
  (tmp_path / "config.json").write_text(json.dumps(c.to_dict()))
  assert drill(tmp_path, "straight", 0)["refused"] == []
  report = drill(tmp_path, "killed", kills)
  print(report)
  assert report["refused"] == [] and sum(report["killed"].values()) == kills
  assert tiny_run.lines(tmp_path / "killed") == tiny_run.lines(tmp_path / "straight")
  states = (tiny_run.restored(tmp_path / name, train_sft, c) for name in ("killed", "straight"))
  tiny_run.assert_same(*states)

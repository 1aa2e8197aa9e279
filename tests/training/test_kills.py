"""Killed around its saves and deletions, a run goes on by itself and ends as it would have."""

import json

import drills
import pytest
import tiny_run

from rmsd_jax import train_rl, train_sft


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


@pytest.mark.slow
@pytest.mark.parametrize("kills", [9, 60])
def test_both_stages_and_the_evaluation_survive_any_end(kills, tmp_path):
  """By SIGKILL, SIGTERM and SIGINT at start, between steps and in saves: the same state, figures,
  looks, rollouts shown and scores as of a run that was left alone, each step once."""
  shown = {"evaluate__every": 4, "evaluate__split": "test", "evaluate__prompts": 4}
  shown |= {"samples__every": 3, "samples__prompts": 1, "data__limit": 8}
  configs = {
    "sft": tiny_run.config("sft", steps=2 * kills, keep=1, **shown),
    "rl": tiny_run.config("rl", steps=2 * kills, keep=1, **shown),
    # Of the training prompts: they are as many batches as there are ends.
    "evaluate": tiny_run.config("evaluate", batch=1, data__limit=0, data__split="train"),
  }
  file = tmp_path / "configs.json"
  file.write_text(json.dumps({stage: c.to_dict() for stage, c in configs.items()}))
  report = {
    name: drills.run(
      "stages_drill", file, tmp_path / name, count, 0, compiled=tmp_path / "compiled"
    )
    for name, count in (("straight", 0), ("killed", kills))
  }
  print(report)
  assert report["straight"]["wrong"] == report["killed"]["wrong"] == []
  ends = report["killed"]["killed"]
  assert sum(ends.values()) == kills
  assert sum(count for name, count in ends.items() if "was through" in name) <= kills / 5
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  for stage, module in (("sft", train_sft), ("rl", train_rl)):
    steps = tiny_run.lines(killed / stage)
    assert [line["step"] for line in steps] == list(range(1, 2 * kills + 1))
    assert steps == tiny_run.lines(straight / stage)
    found = (
      tiny_run.restored(folder / stage, module, configs[stage]) for folder in (killed, straight)
    )
    tiny_run.assert_same(*found)
  for name in ("samples.jsonl", "evaluate/train.json"):
    assert (killed / "rl" / name).read_bytes() == (straight / "rl" / name).read_bytes(), name

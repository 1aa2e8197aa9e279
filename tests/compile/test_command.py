"""The compile report, on this machine's own fake devices in place of a topology's."""

import json

import jax
import pytest
import tiny_run

from rmsd_jax.compile import __main__ as compile_command
from rmsd_jax.compile import chips
from rmsd_jax.core import sharding
from rmsd_jax.core.errors import UserError


@pytest.fixture
def here(monkeypatch):
  """8 fake CPU devices pass for a v5e:2x4."""
  monkeypatch.setattr(compile_command, "devices_of", lambda topology: ("v5e", jax.devices()))
  monkeypatch.setitem(sharding.XLA_OPTIONS, "cpu", {"xla_backend_optimization_level": 0})


def config(stage):
  c = tiny_run.config(stage, mesh__data=2, mesh__fsdp=4, batch=8).unlock()
  c.compile.stage, c.compile.bucket = stage, tuple(tiny_run.BUCKET)
  return c.lock()


@pytest.mark.parametrize(
  ("stage", "names"),
  [
    ("sft", ["encode", "imitate", "train"]),
    ("rl", ["rollout", "improve", "policy", "judge", "discriminator"]),
  ],
)
def test_every_program_of_a_stage_is_reported(stage, names, here, tmp_path, capsys):
  path = tmp_path / "report.json"
  c = config(stage).unlock()
  (tmp_path / "rewards.py").write_text("REWARDS = {'short': lambda replies, prompts: []}")
  c.reward.module = str(tmp_path / "rewards.py")  # a term of the user's is one of the arguments
  compile_command.main(c.lock(), topology="", json=str(path), mean_length="0.3")
  report = json.loads((tmp_path / "report.json").read_text())
  assert [program["name"] for program in report["programs"]] == names
  assert report["devices"] == 8 and report["topology"] == "v5e:4x4"
  for program in report["programs"]:
    assert program["peak"] >= program["arguments"] > 0 and not program["fault"]
    assert set(program["seconds"]) == {"compute", "hbm", "network"}
    assert program["name"] == "encode" or program["hbm_bytes"] > 0 and program["collectives"]
  said = capsys.readouterr().out
  assert said.count("fits") == len(names)
  # Shorter responses take less of the rollouts and of what is packed, and no less of the rest.
  usual = report["usual_lengths"]["seconds"]
  assert list(usual) == names and "responses of 0.3 T on average" in said
  for program in report["programs"]:
    least = max(program["seconds"][name] for name in ("compute", "hbm"))
    shorter = program["name"] in ("rollout", "imitate", "improve", "judge")
    assert usual[program["name"]] < least if shorter else usual[program["name"]] == least


def test_a_chip_or_a_stage_that_does_not_exist_is_refused(here):
  c = config("sft").unlock()
  c.compile.stage = "dpo"
  with pytest.raises(UserError, match="choose sft or rl"):
    compile_command.main(c, topology="", json="", mean_length="0")


def test_an_unknown_chip_is_refused():
  with pytest.raises(UserError, match="none of v5e, v5p, v6e, tpu7x, h100"):
    chips.devices_of("v9z:2x2")


@pytest.mark.parametrize("topology", ["v5e:3x7", "h100:12", "h100:many"])
def test_a_shape_that_does_not_exist_is_refused(topology):
  with pytest.raises(UserError, match="cannot be described .* a shape that exists"):
    chips.devices_of(topology)


def test_gpu_figures_are_written_as_xla_reads_them():
  text = chips._as_proto({"a": 1, "b": {"c": "x", "d": 0.5}})
  assert text == 'a: 1 b { c: "x" d: 0.5 }'

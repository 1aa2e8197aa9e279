"""tests.bench.on_gpu at toy sizes on this CPU: what it measures on a GPU must at least run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(parts, tmp_path, *more):
  out = tmp_path / "found.json"
  command = [sys.executable, "-m", "tests.bench.on_gpu", "--size", "tiny", "--parts", parts]
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [*command, "--json", str(out), *more],
    cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  return done, json.loads(out.read_text()) if out.exists() else None


def test_attention_and_a_step_run_and_are_right(tmp_path):
  done, found = run("attention,sft", tmp_path)
  assert done.returncode == 0, done.stderr[-2000:]
  assert found["attention"]["xla"]["ok"] and found["attention"]["split"]["ok"]
  assert 0 < found["sft"]["seconds"] and 11 < found["sft"]["loss"] < 13  # log 151,936 is 11.9
  assert found["sft"]["share_of_peak"] is None  # this CPU's peak is in no table


def test_a_part_without_time_does_not_stop_the_others_and_is_named(tmp_path):
  done, found = run("attention,sft", tmp_path, "--minutes", "0.01")
  assert done.returncode == 1 and "not fine: attention, sft" in done.stdout
  assert "stopped after" in found["attention"]["fault"]
  assert found["sft"] == {"ok": False, "fault": "no time was left"}


def test_an_unknown_part_is_named(tmp_path):
  done, _ = run("attention,vision", tmp_path)
  assert done.returncode == 2 and "unknown parts vision" in done.stderr


@pytest.mark.slow
def test_all_parts(tmp_path):
  done, found = run("attention,parity,sft,rl,torch_sft,torch_rollouts", tmp_path)
  assert done.returncode == 0, done.stderr[-2000:]
  assert all(figures["part_seconds"] > 0 for figures in found.values())

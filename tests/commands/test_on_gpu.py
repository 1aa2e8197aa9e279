"""tests.bench.on_gpu at toy sizes on this CPU: what it measures on a GPU must at least run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import random_model

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


def test_lengths_have_the_mean_that_was_asked_for():
  size = random_model.SIZES["2b"]._replace(mean=0.3)
  lengths = random_model.make_lengths(size, 8)
  assert lengths.shape == (8, 8) and 0.2 < lengths.mean() / size.bucket[1] < 0.4
  # Of tokens drawn evenly one in so many ends a response.
  vocabulary = random_model.model_config(size).text.vocab
  assert vocabulary / len(random_model.stop_ids(size)) == pytest.approx(0.3 * 256, rel=0.02)
  assert len(random_model.stop_ids(random_model.SIZES["2b"])) == 2


@pytest.mark.slow
def test_all_parts(tmp_path):
  names = "attention,parity,sft,rl,sft@0.3,rl@0.3,torch_sft,torch_rollouts@0.3"
  done, found = run(names, tmp_path, "--trace", str(tmp_path / "trace"))
  assert done.returncode == 0, done.stderr[-2000:]
  assert all(figures["part_seconds"] > 0 for figures in found.values())
  assert found["rl@0.3"]["rollout"]["mean_length"] < found["rl"]["rollout"]["mean_length"]
  assert found["sft"]["padding"] == 0 < found["sft@0.3"]["padding"]
  assert "ENTRY" in (tmp_path / "trace" / "rollout.hlo.txt").read_text()

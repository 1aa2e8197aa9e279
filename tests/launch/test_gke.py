"""launch/gke.sh against a stand-in xpk, and what its containers run against a stand-in Python."""

import os
import shutil
import subprocess
from pathlib import Path

import launching
import pytest

ROOT = Path(__file__).parents[2]
RUN = {
  "CLUSTER": "tpus",
  "ZONE": "us-east5-a",
  "PROJECT": "p",
  "TYPE": "v5p-32",
  "BUCKET": "gs://bucket",
  "RUN": "SFT_1.b",
  "STAGE": "train_sft",
  "CONFIG": "configs/qwen3vl_4b_sft.py",
  "MODEL": "gs://bucket/model",
  "POOL": "gs://bucket/pool",
}


@pytest.fixture
def programs(tmp_path):
  """A folder for PATH whose programs write down their arguments, and xpk what is in the image."""
  (tmp_path / "bin").mkdir()
  for name in ("xpk", "kubectl", "docker", "gcloud"):
    program = tmp_path / "bin" / name
    program.write_text(
      f'#!/usr/bin/env bash\necho {name} "$@" >>{tmp_path}/log\nfor a in "$@"; do\n'
      f'case $a in --script-dir=*) cp -r "${{a#*=}}" {tmp_path}/image ;; esac; done\n'
    )
    program.chmod(0o755)
  return tmp_path


def launch(*arguments, folder=None, **variables):
  return launching.start("gke.sh", RUN | variables, *arguments, folder=folder)


@pytest.mark.parametrize("command", ("run", "logs", "status", "stop"))
def test_what_a_dry_run_prints_is_what_is_run(command, programs):
  printed = launch("--dry-run", command)
  assert (printed.returncode, printed.stderr) == (0, "")
  done = launch(command, folder=programs)
  assert (done.returncode, done.stderr) == (0, "")
  told = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
  dry = [line for line in printed.stdout.splitlines() if line.startswith("+ ")]
  apart = lambda lines: [[w for w in line.split() if "script-dir" not in w] for line in lines]
  assert apart(told) == apart(dry) and len(told) == 1
  ran = (programs / "log").read_text().splitlines()
  assert ran[0].split()[0] == told[0].split()[1] and "sft-1-b" in ran[0]


def test_a_workload_has_the_code_and_resumes_by_its_folder(programs):
  launch("run", folder=programs, ARGS="--config.seed=3", SPOT="1")
  [ran] = (programs / "log").read_text().splitlines()
  for word in ("--tpu-type=v5p-32", "--workload=sft-1-b", "--spot", "--max-restarts=20"):
    assert f" {word} " in ran
  command = ran.partition("--command=")[2]
  assert command == (
    "env JAX_COMPILATION_CACHE_DIR=gs://bucket/compiled"
    " bash launch/_container.sh gs://bucket/model gs://bucket/pool rmsd_jax.train_sft"
    " --config=configs/qwen3vl_4b_sft.py --workdir=gs://bucket/runs/SFT_1.b"
    " --config.model.folder=model --config.data.pool=pool --config.seed=3"
  )
  image = programs / "image"
  assert (image / "rmsd_jax" / "train_sft.py").read_bytes() == (
    ROOT / "rmsd_jax" / "train_sft.py"
  ).read_bytes()
  assert (image / "launch" / "_container.sh").exists() and not (image / ".venv").exists()


@pytest.mark.parametrize("script", ["gke.sh", "tpu_vm.sh", "gpu_slurm.sh"])
def test_flags_count_in_any_place_and_what_is_not_understood_runs_nothing(script, programs):
  given = RUN | {"NAME": "pod", "VERSION": "v", "RUNS": "/runs"}
  start = lambda *arguments: launching.start(script, given, *arguments, folder=programs)
  assert "--dry-run" in start("stop", "--help").stdout
  assert start("stop", "--dry-run").returncode == 0
  done = start("stop", "--dryrun")
  assert done.returncode == 2 and "'--dryrun' behind the command 'stop'" in done.stderr
  assert not (programs / "log").exists()


def test_faults_are_told_before_anything_runs(programs):
  done = launch("run", folder=programs, CLUSTER=None, NAME="Pod", MODEL="/m", TYPE=None)
  assert done.returncode == 2 and not (programs / "log").exists()
  for words in (
    "CLUSTER is not set",
    "TYPE is not set",
    "NAME=Pod: a workload's name has a-z",
    "MODEL=/m does not begin with gs://",
  ):
    assert words in done.stderr
  done = launch("run", NAME="a" * 40)
  assert "has 40 letters, at most 39" in done.stderr and "xpk is not installed" in done.stderr


def test_a_container_copies_weights_and_pool_and_becomes_the_command(tmp_path):
  shutil.copytree(ROOT / "launch", tmp_path / "launch")
  (tmp_path / "requirements.txt").write_text("jax==1.2.3\n")
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(
    '#!/usr/bin/env bash\nif [ "$1" = - ]; then cat >/dev/null; fi\n'
    f'echo "$RMSD_PROCESSES" "$@" >>{tmp_path}/log\n'
  )
  python.chmod(0o755)
  command = ["launch/_container.sh", "gs://b/m", "gs://b/p", "rmsd_jax.train_rl", "--config=x y"]
  environment = {k: v for k, v in os.environ.items() if k != "RMSD_PROCESSES"}
  subprocess.run(["bash", *command], cwd=tmp_path, env=environment, check=True)
  lines = (tmp_path / "log").read_text().splitlines()
  assert " -m pip install --quiet jax[tpu]==1.2.3" in lines
  assert " - gs://b/m model gs://b/p pool" in lines
  assert lines[-1] == "auto -m rmsd_jax.train_rl --config=x y"

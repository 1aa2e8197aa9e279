"""launch/gpu_slurm.sh against a stand-in Slurm: what it submits, and what the job does."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from rmsd_jax.data import store

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "gpu_slurm.sh"
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $*" >>"$(dirname "$0")/../calls"
case $(basename "$0") in
  sbatch) echo '7;cluster' ;;
  squeue) cat "$(dirname "$0")/../queue" 2>/dev/null ;;
  scontrol) [ "$1" = requeue ] || printf 'node3\\nnode4\\n' ;;
  srun) SLURM_PROCID=1 "$@" ;;
esac
"""
SLURM = {"SLURM_JOB_ID": "5000", "SLURM_JOB_NODELIST": "node[3-4]", "SLURM_NNODES": "2"}


@pytest.fixture
def cluster(tmp_path):
  """Stand-ins on a PATH, a model, a pool, and the variables of a run."""
  bin_ = tmp_path / "bin"
  bin_.mkdir()
  for name in ("sbatch", "squeue", "scontrol", "scancel", "srun"):
    (bin_ / name).write_text(STAND_IN)
    (bin_ / name).chmod(0o755)
  for name, file, text in (
    ("model", "config.json", {}),
    ("pool", "metadata.json", {"schema": store.SCHEMA}),
  ):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text(json.dumps(text))
  variables = {
    "PATH": f"{bin_}:{os.environ['PATH']}",
    "RUNS": f"{tmp_path}/runs",
    "RUN": "a",
    "STAGE": "train_rl",
    "CONFIG": "configs/demo.py:rl",
    "MODEL": f"{tmp_path}/model",
    "POOL": f"{tmp_path}/pool",
    "NODES": "2",
  }
  return tmp_path, variables


def launch(variables, *arguments):
  variables = {"HOME": os.environ.get("HOME", "/")} | variables
  return subprocess.run([SCRIPT, *arguments], env=variables, capture_output=True, text=True)


def calls(folder: Path) -> list[str]:
  return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def stub_python(folder: Path, text: str) -> None:
  """In the copy of the code that a job runs: a python that is a shell script."""
  venv = folder / "runs" / "a" / "code" / ".venv"
  venv.unlink()
  (venv / "bin").mkdir(parents=True)
  (venv / "bin" / "python").write_text(f"#!/usr/bin/env bash\n{text}\n")
  (venv / "bin" / "python").chmod(0o755)


def run_job(folder: Path, variables) -> subprocess.CompletedProcess:
  job = folder / "runs" / "a" / "job.sh"
  return subprocess.run(["bash", job], env=variables | SLURM, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["setup", "run", "logs", "status", "stop"])
def test_a_dry_run_needs_no_slurm_and_makes_nothing(command, cluster):
  folder, variables = cluster
  done = launch(variables | {"PATH": "/usr/bin:/bin"}, "--dry-run", command)
  assert (done.returncode, done.stderr) == (0, "") and "+ " in done.stdout
  assert not (folder / "runs").exists()


def test_a_run_is_submitted_with_a_copy_of_the_checkout(cluster):
  folder, variables = cluster
  done = launch(variables | {"SBATCH": "--account=x --partition=y", "TIME": "1:00"}, "run")
  assert (done.returncode, done.stderr) == (0, "")
  assert "job 7 is in the queue" in done.stdout
  (submitted,) = calls(folder)
  for flag in ("--nodes=2", "--gpus-per-node=8", "--cpus-per-task=64", "--time=1:00", "--requeue",
               "--account=x", "--partition=y", "--signal=TERM@600"):  # fmt: skip
    assert f" {flag} " in submitted
  run = folder / "runs" / "a"
  assert (run / "job").read_text() == "7\n"
  copied = run / "code" / "rmsd_jax" / "train_rl.py"
  assert copied.read_text() == (ROOT / "rmsd_jax" / "train_rl.py").read_text()
  for script in ("job.sh", "step.sh"):
    assert subprocess.run(["bash", "-n", run / script]).returncode == 0


def test_a_job_starts_one_process_a_node_with_all_it_needs(cluster):
  folder, variables = cluster
  launch(variables | {"ARGS": "'--config.data.tasks=(\"ocr\",)'"}, "run")
  stub_python(
    folder,
    'printf "%s\\n" "$@"; echo $JAX_PLATFORMS $RMSD_PROCESSES $RMSD_PROCESS '
    '$JAX_COORDINATOR_ADDRESS "$JAX_COMPILATION_CACHE_DIR"',
  )
  done = run_job(folder, variables)
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.splitlines() == [
    "-m",
    "rmsd_jax.train_rl",
    "--config=configs/demo.py:rl",
    f"--workdir={folder}/runs/a",
    f"--config.model.folder={folder}/model",
    f"--config.data.pool={folder}/pool",
    '--config.data.tasks=("ocr",)',
    f"cuda 2 1 node3:{61440 + 5000 % 4096} {folder}/runs/compiled",
  ]


@pytest.mark.parametrize(
  ("given", "kept"),
  [({"COMPILED": "/shared/x"}, "/shared/x"), ({"COMPILED": ""}, ""), ({"GPUS": "0"}, "")],
  ids=["in a folder of the user's", "nowhere", "not for CPUs, which differ from node to node"],
)
def test_where_compiled_programs_are_kept(given, kept, cluster):
  folder, variables = cluster
  assert launch(variables | given, "run").returncode == 0
  stub_python(folder, 'echo "[$JAX_COMPILATION_CACHE_DIR]"')
  assert run_job(folder, variables).stdout == f"[{kept}]\n"


@pytest.mark.parametrize(
  ("status", "saves", "stopped", "again"),
  [(143, True, False, True), (143, False, False, False), (143, True, True, False),
   (2, True, False, False), (0, True, False, False)],
  ids=["time is up", "no checkpoint was made", "stopped", "it failed", "it is done"],
)  # fmt: skip
def test_a_job_queues_again_when_it_saved_and_was_not_stopped(
  cluster, status, saves, stopped, again
):
  folder, variables = cluster
  launch(variables, "run")
  run = folder / "runs" / "a"
  save = f"mkdir -p {run}/checkpoints/10;" if saves else ""
  stub_python(folder, f"{save} exit {status}")
  if stopped:
    launch(variables, "stop")
    assert "scancel --state=RUNNING --signal=TERM 7" in calls(folder)
  assert run_job(folder, variables).returncode == status
  assert ("scontrol requeue 5000" in calls(folder)) == again
  launch(variables, "run")
  assert not (run / "stopped").exists()


def test_a_run_that_is_in_the_queue_is_not_submitted_twice(cluster):
  folder, variables = cluster
  launch(variables, "run")
  (folder / "queue").write_text("7 RUNNING\n")
  done = launch(variables, "run")
  assert done.returncode == 2 and "job 7 of RUN=a is in the queue" in done.stderr
  assert sum(call.startswith("sbatch") for call in calls(folder)) == 1


def test_all_faults_are_told_at_once(cluster):
  folder, variables = cluster
  wrong = {"RUN": "a b", "MODEL": "model", "POOL": f"{folder}/bin", "NODES": "0", "GPUS": "all",
           "STAGE": "", "CONFIG": "no.py", "RUNS": f"{folder}/it's"}  # fmt: skip
  done = launch(variables | wrong, "run")
  assert done.returncode == 2 and done.stdout == ""
  for words in ("RUN=a b: use letters", "MODEL=model is not an absolute path", "is no pool of",
                "NODES=0", "GPUS=all: give a number", "STAGE is not set", "no such file",
                "has a quote in it"):  # fmt: skip
    assert words in done.stderr, words
  for command in ("status", "stop", "logs"):
    done = launch(variables, command)
    assert done.returncode == 2 and f"{folder}/runs/a holds no run" in done.stderr

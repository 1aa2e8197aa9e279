"""launch/tpu_vm.sh against a stand-in gcloud that writes down what it is asked."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import launching
import pytest

from rmsd_jax.data import store

ROOT = Path(__file__).parents[2]
RUN = {
  "NAME": "pod",
  "ZONE": "us-east5-a",
  "PROJECT": "p",
  "TYPE": "v5litepod-16",
  "VERSION": "v2-alpha-tpuv5-lite",
  "BUCKET": "gs://bucket",
  "RUN": "run-1",
  "STAGE": "train_rl",
  "CONFIG": "configs/qwen3vl_4b_rl.py",
  "MODEL": "gs://bucket/model",
  "POOL": "gs://bucket/pool",
}
COMMANDS = ("create", "setup", "run", "logs", "status", "stop", "abort", "down")


@pytest.fixture
def gcloud(tmp_path):
  """A folder for PATH whose gcloud logs its arguments; files in `answers` are what `cat` prints."""
  bin_, log = tmp_path / "bin", tmp_path / "log"
  bin_.mkdir()
  log.touch()
  (tmp_path / "metadata").write_text(json.dumps({"schema": store.SCHEMA}))
  (bin_ / "gcloud").write_text(
    "#!/usr/bin/env bash\n"
    f'printf "%s\\x1f" "$@" >>{log}; printf "\\x1e" >>{log}\n'
    f'if [ "$1 $2" = "storage cat" ]; then cat {tmp_path}/metadata; fi\n'
    f'if [ "$1 $2" = "storage ls" ] && [ -f {tmp_path}/closed ]; then exit 1; fi\n'
  )
  (bin_ / "gcloud").chmod(0o755)
  return tmp_path


def calls(folder: Path) -> list[list[str]]:
  return [call.split("\x1f")[:-1] for call in (folder / "log").read_text().split("\x1e")[:-1]]


def launch(*arguments, folder=None, **variables):
  return launching.start("tpu_vm.sh", RUN | variables, *arguments, folder=folder)


def commands(folder: Path) -> list[str]:
  """The shell texts that the workers got."""
  return [
    a.removeprefix("--command=") for c in calls(folder) for a in c if a.startswith("--command=")
  ]


def worker_of(home: Path, python: str):
  """A worker on this machine, which runs shell text in its home; its python is a shell script."""
  file = home / "rmsd" / ".venv" / "bin" / "python"
  file.parent.mkdir(parents=True)
  file.write_text(f"#!/usr/bin/env bash\n{python}\n")
  file.chmod(0o755)
  return lambda script: subprocess.run(
    ["bash", "-c", script], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def is_set_up(worker, setup: str) -> None:
  worker(f"cd rmsd; {setup.splitlines()[-1]}")  # the last thing that setup does


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_prints_the_commands_and_needs_no_gcloud(command, gcloud):
  done = launch("--dry-run", command)
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.startswith("+ gcloud ")
  launch("--dry-run", command, folder=gcloud)
  assert all(call[0] != "compute" for call in calls(gcloud))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_run_is_what_a_dry_run_prints(command, gcloud):
  done = launch(command, folder=gcloud)
  assert (done.returncode, done.stderr) == (0, "")
  asked = [
    call for call in calls(gcloud) if call[:2] not in (["storage", "ls"], ["storage", "cat"])
  ]
  assert len(asked) == done.stdout.count("+ gcloud ")
  for call in asked:
    if call[0] == "compute":
      assert "--zone=us-east5-a" in call and "--project=p" in call and "pod" in call


def test_all_faults_are_told_at_once():
  done = launch(
    "--dry-run",
    "run",
    NAME=None,
    POOL=None,
    BUCKET="bucket",
    RUN="a b",
    STAGE="sft",
    CONFIG="no.py",
  )
  assert done.returncode == 2 and done.stdout == ""
  for words in (
    "NAME is not set",
    "POOL is not set",
    "BUCKET=bucket does not begin with gs://",
    "RUN=a b: use letters",
    "STAGE=sft is none of",
    "CONFIG=no.py: no such file",
  ):
    assert words in done.stderr
  assert done.stderr.count("error: ") == 6


def test_an_unknown_command_lists_the_known_ones():
  done = launch("begin")
  assert done.returncode == 2 and "create, setup, run" in done.stderr


def test_a_closed_bucket_and_an_old_pool_stop_a_run_before_it_starts(gcloud):
  (gcloud / "closed").touch()
  (gcloud / "metadata").write_text('{"schema": 0}')
  done = launch("run", folder=gcloud)
  assert done.returncode == 2
  assert "BUCKET=gs://bucket cannot be listed" in done.stderr
  assert f"is no pool of schema {store.SCHEMA}" in done.stderr
  assert all(call[0] != "compute" for call in calls(gcloud))


def report(folder: Path, peak: float, topology: str, devices: int) -> str:
  programs = [{"name": "policy", "peak": peak * 2**30}]
  text = {
    "topology": topology,
    "devices": devices,
    "chip": {"memory": 15.75},
    "programs": programs,
  }
  (folder / "report.json").write_text(json.dumps(text))
  return str(folder / "report.json")


@pytest.mark.parametrize(
  ("type_", "peak", "topology", "devices", "words"),
  [
    ("v5litepod-16", 12, "v5e:4x4", 16, ""),
    ("v5p-32", 12, "v5p:2x2x4", 16, ""),
    ("v6e-8", 12, "v6e:2x4", 8, ""),
    ("tpu7x-8", 12, "tpu7x:2x2x1", 8, ""),
    ("v5litepod-16", 20, "v5e:4x4", 16, "policy does not fit v5e:4x4"),
    ("v5litepod-8", 12, "v5e:4x4", 16, "is of 16 devices, TYPE=v5litepod-8 has 8"),
    ("v5litepod-16", 12, "v6e:4x4", 16, "is of v6e:4x4, TYPE=v5litepod-16 is v5e"),
  ],
)
def test_a_report_that_does_not_fit_stops_the_purchase(
  gcloud, type_, peak, topology, devices, words
):
  file = report(gcloud, peak, topology, devices)
  done = launch("create", folder=gcloud, TYPE=type_, REPORT=file)
  assert (words in done.stderr) and done.returncode == (2 if words else 0)
  assert bool(calls(gcloud)) == (not words)


def test_the_code_that_is_copied_has_new_files_too(tmp_path, gcloud):
  """A clone with a config nobody committed: commit and diff together give it, and the clone's git
  has neither a change nor an object more."""
  clone = tmp_path / "clone"
  git = lambda *arguments: (
    subprocess.run(
      ["git", "-C", clone, *arguments], check=True, capture_output=True, text=True
    ).stdout
  )
  subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
  shutil.copytree(ROOT / "launch", clone / "launch", dirs_exist_ok=True)
  (clone / "configs" / "mine.py").write_text("# an ablation\n")
  state = lambda: (git("status", "--porcelain"), git("count-objects"))
  before = state()
  kept = tmp_path / "bin" / "gcloud"
  kept.write_text(
    kept.read_text() + f'case "$3" in */diff) [ "$2" != cp ] || cp "$3" {tmp_path}/sent ;; esac\n'
  )
  variables = (
    {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"} | RUN | {"CONFIG": "configs/mine.py"}
  )
  script = clone / "launch" / "tpu_vm.sh"
  done = subprocess.run([script, "setup"], env=variables, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
  assert "new files that are copied too:\nconfigs/mine.py\n" in done.stdout
  assert "+# an ablation" in (tmp_path / "sent").read_text()
  assert state() == before


def test_a_config_that_git_ignores_is_refused(tmp_path):
  (ROOT / "runs").mkdir(exist_ok=True)
  config = ROOT / "runs" / f"{tmp_path.name}.py"
  config.touch()
  try:
    done = launch("--dry-run", "run", CONFIG=str(config.relative_to(ROOT)))
  finally:
    config.unlink()
  assert done.returncode == 2 and "is ignored by git" in done.stderr


def test_queued_and_spot_are_other_commands():
  done = launch("--dry-run", "create", QUEUED="1", SPOT="1")
  assert "queued-resources create pod --node-id=pod" in done.stdout and "--spot" in done.stdout
  assert "queued-resources delete pod" in launch("--dry-run", "down", QUEUED="1").stdout


def test_the_workers_commands_are_valid_bash_and_name_the_run(gcloud):
  for command in ("setup", "run", "status", "stop"):
    launch(command, folder=gcloud, ARGS="--config.steps=10")
  scripts = commands(gcloud)
  assert len(scripts) == 4
  for script in scripts:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), script
  run = scripts[1]
  assert (
    "rmsd_jax.train_rl --config=configs/qwen3vl_4b_rl.py --workdir=gs://bucket/runs/run-1" in run
  )
  assert "--config.steps=10" in run and "RMSD_PROCESSES=auto" in run


@pytest.mark.parametrize(
  ("given", "kept"),
  [(None, "gs://bucket/compiled"), ("gs://other/x", "gs://other/x"), ("", "")],
)
def test_compiled_programs_are_kept_for_the_next_start(given, kept, tmp_path, gcloud):
  for command in ("setup", "run"):
    launch(command, folder=gcloud, COMPILED=given)
  setup, run = commands(gcloud)
  home = tmp_path / "home"
  worker = worker_of(home, 'echo "[$JAX_COMPILATION_CACHE_DIR] $*"')
  is_set_up(worker, setup)
  assert worker(run).returncode == 0
  end = time.monotonic() + 20
  while not (home / "rmsd" / "ended").exists():
    assert time.monotonic() < end
    time.sleep(0.05)
  assert f"[{kept}] -m rmsd_jax.train_rl" in (home / "rmsd" / "log").read_text()


def test_a_worker_whose_disk_is_too_small_says_so_before_anything_is_copied(tmp_path, gcloud):
  launch("setup", folder=gcloud)
  (setup,) = commands(gcloud)
  (gcloud / "bin" / "gcloud").write_text(
    "#!/usr/bin/env bash\necho 1000000000000000 gs://bucket/x\n"
  )
  environment = os.environ | {"PATH": f"{gcloud / 'bin'}:{os.environ['PATH']}"}
  done = subprocess.run(
    ["bash", "-c", setup], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 1 and "MODEL and POOL take 931322 GiB" in done.stdout
  assert not any((tmp_path / "rmsd").iterdir())


def test_a_worker_runs_refuses_to_run_twice_and_stops(tmp_path, gcloud):
  """The shell text itself, on this machine: a stand-in python that sleeps."""
  for command in ("setup", "run", "stop"):
    launch(command, folder=gcloud)
  setup, run, stop = commands(gcloud)
  home = tmp_path / "home"
  code = "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)"
  code += "; print(sys.argv, flush=True); time.sleep(60)"  # as rmsd_jax.cli.run begins
  worker = worker_of(home, f'exec {sys.executable} -c "{code}" "$@"')
  unlike = worker(run)
  assert (
    unlike.returncode == 1 and "not set up with this MODEL, POOL, RUN and code" in unlike.stdout
  )
  is_set_up(worker, setup)
  assert worker(run).returncode == 0
  again = worker(run)
  assert again.returncode == 1 and "it runs already" in again.stdout
  pid = int((home / "rmsd" / "pid").read_text())
  while "rmsd_jax.train_rl" not in (home / "rmsd" / "log").read_text():
    time.sleep(0.05)
  assert worker(stop).returncode == 0 and not (home / "rmsd" / "pid").exists()
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)


CLOUD = """\
#!/usr/bin/env bash
case "$*" in
  *"tpu-vm describe"*) cat node ;;
  "storage cat gs://bucket/runs/run-1/metrics.jsonl")
    printf '{"step": 8}\\n{"step": 9, "x": 1}\\n' ;;
  "storage ls gs://bucket/runs/run-1/checkpoints/")
    printf 'gs://bucket/runs/run-1/checkpoints/%s/\\n' 8 10 9.draft ;;
  *"--worker=all"*) script="${@: -1:1}"; bash -c "${script#--command=}" ;;
esac
"""


def test_probe_says_what_supervise_reads(tmp_path, gcloud):
  (gcloud / "bin" / "gcloud").write_text(CLOUD.replace("node", str(tmp_path / "node")))
  (tmp_path / "node").write_text("READY\n")
  done = launch("probe", folder=gcloud)
  assert done.returncode == 0 and "error" not in done.stderr
  lines = [line for line in done.stdout.splitlines() if not line.startswith("+")]
  assert lines[:4] == ["node READY", "step 9", "checkpoint 10", "parts 0"]
  assert re.fullmatch(r"worker \S+ not started", lines[4])
  (tmp_path / "node").write_text("")
  assert launch("probe", folder=gcloud).stdout.splitlines()[0] == "node NONE"


def test_supervise_refuses_what_it_cannot_begin(gcloud):
  done = launch("supervise", folder=gcloud, TYPE=None, MAX_HOURS="2")
  assert done.returncode == 2 and "TYPE is not set" in done.stderr
  done = launch("supervise", folder=gcloud, MAX_HOURS="two")
  assert done.returncode == 2 and "MAX_HOURS=two is no number" in done.stderr
  assert "no dry run" in launch("--dry-run", "supervise").stderr
  assert all(call[0] != "compute" for call in calls(gcloud))


def test_a_worker_tells_its_state_and_leaves_stacks_where_it_is_aborted(tmp_path, gcloud):
  for command in ("setup", "run", "status", "abort"):
    launch(command, folder=gcloud)
  setup, run, status, abort = commands(gcloud)
  home = tmp_path / "home"
  worker = worker_of(home, f"exec {sys.executable} {tmp_path}/sleeps.py")
  sleeps = tmp_path / "sleeps.py"
  sleeps.write_text("import time\ndef waits_for_a_chip():\n  time.sleep(60)\nwaits_for_a_chip()\n")
  state = lambda: worker(status).stdout.splitlines()[0].split(" ", 2)[2]
  is_set_up(worker, setup)
  assert state() == "not started"
  worker(run)
  assert state() == "running"
  time.sleep(0.5)
  worker(abort)
  assert "waits_for_a_chip" in (home / "rmsd" / "log").read_text()
  assert not (home / "rmsd" / "pid").exists()
  sleeps.write_text("raise SystemExit(2)\n")
  worker(run)
  end = time.monotonic() + 30
  while state() != "ended 2":
    assert time.monotonic() < end
    time.sleep(0.05)
  (home / "rmsd" / "ended").unlink()
  assert state() == "gone"

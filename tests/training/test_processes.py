"""Several processes on loopback do what one process does: both stages and evaluation.

Each process has its share of 8 devices, reads its own rows, grades its own rollouts and writes its
own shards of the checkpoint. Gloo carries the collectives.
"""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run

from rmsd_jax import cli, train_rl, train_sft
from rmsd_jax.training import log, stored, timing

WRAPPER = """\
import json
from ml_collections import ConfigDict
def get_config():
  return ConfigDict(json.loads({text!r}), convert_dict=True)
"""
MODULES = {"sft": train_sft, "rl": train_rl}
COMMANDS = {"sft": "rmsd_jax.train_sft", "rl": "rmsd_jax.train_rl", "evaluate": "rmsd_jax.evaluate"}


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def run(stage, processes, folder, workdir=None, steps=2, terminate=False, save_every=0, least=3):
  """Runs a stage in `processes` processes with 8 devices together; returns its work folder.

  With `terminate`, the last process gets SIGTERM after `least` steps, and all are to end by it.
  """
  workdir = workdir or folder / f"{stage}-{processes}"
  lasts = {"steps": steps, "save_every": save_every or steps}
  started = start(stage, processes, folder, workdir, lasts)
  try:
    if terminate:
      wait_for_steps(workdir, least)
      started[-1].terminate()
    outputs = [process.communicate(timeout=400)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  for process in started:  # where one fails, another often knows why
    said = "\n== the next ==\n".join(output[-3000:] for output in outputs)
    assert process.returncode == (cli.EXIT_TERMINATED if terminate else 0), said
  return workdir


def start(stage, processes, folder, workdir=None, lasts=None, last=(), faulty=False):
  """The processes of a run; the last has further arguments, and a fault where that is asked for."""
  c = tiny_run.config(
    stage,
    **lasts,
    discriminator__probe_every=1,
    discriminator__warmup_steps=1,  # so that one of two steps is the policy's
    mesh__data=2,
    mesh__fsdp=4,
    mesh__tensor=1,
    rollouts__tensor=2,
  )
  values = c.to_dict()
  config, workdir = folder / f"{stage}.py", workdir or folder / f"{stage}-{processes}"
  lists = json.dumps(values)  # tuples become lists; the command line takes either
  config.write_text(WRAPPER.format(text=lists))
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
    "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    "RMSD_PROCESSES": str(processes),
  }
  command = [sys.executable, "-m", COMMANDS[stage]]
  arguments = [f"--config={config}", f"--workdir={workdir}"]
  commands = [[*command, *arguments] for _ in range(processes)]
  if faulty:
    commands[-1] = [sys.executable, "-c", FAULTY, COMMANDS[stage], *arguments]
  commands[-1] += last
  return [
    subprocess.Popen(
      command,
      cwd=tiny_run.ROOT,
      env=environment | {"RMSD_PROCESS": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i, command in enumerate(commands)
  ]


# What happens to one of two processes, its exit status, and the words with which the other ends.
ENDS = {
  "interrupt": (130, r"ended with process 1: interrupted"),
  "kill": (-9, r"ended with process 1: it was killed, or its host is gone"),
  "kill the first": (-9, r"ended with process 0: it was killed, or its host is gone"),
  "pool": (2, r"ended with process 1: error: /nowhere is not a finished pool: .*"),
  "flag": (2, r"ended with process 1: error: unknown config key --config\.nothing; .*"),
  "fault": (1, r"ended with process 1: RuntimeError: of our making"),
}
FAULTY = """
import sys
from rmsd_jax import train_rl, train_sft
from rmsd_jax.training import loop
after = loop.Loop.after
def fails(self, step, *more, **words):
  if step == 3:
    raise RuntimeError("of our making")
  after(self, step, *more, **words)
loop.Loop.after = fails
sys.modules[sys.argv.pop(1)].command()
"""


@pytest.mark.parametrize(
  ("stage", "how"),
  [
    ("sft", "pool"),
    pytest.param("sft", "kill the first", marks=pytest.mark.slow),
    *(pytest.param("sft", how, marks=pytest.mark.slow) for how in ("flag", "kill", "interrupt")),
    *(pytest.param("rl", how, marks=pytest.mark.slow) for how in ("fault", "kill", "interrupt")),
  ],
)
def test_what_ends_one_process_ends_all_soon_in_one_line(stage, how, tmp_path):
  status, words = ENDS[how]
  hit = 0 if how == "kill the first" else 1
  more = {"pool": ["--config.data.pool=/nowhere"], "flag": ["--config.nothing=1"]}
  lasts = {"steps": 2_000, "save_every": 2}
  started = start(stage, 2, tmp_path, lasts=lasts, last=more.get(how, []), faulty=how == "fault")
  workdir = tmp_path / f"{stage}-2"
  try:
    if how not in ("pool", "flag", "fault"):
      wait_for_steps(workdir, 3)
      started[hit].send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    else:
      started[1].wait(400)
    begin = time.monotonic()
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert time.monotonic() - begin < 60
  finally:
    for process in started:
      process.kill()
  other = outputs[1 - hit]
  assert started[hit].returncode == status, outputs[hit][-3000:]
  assert started[1 - hit].returncode == (2 if status < 0 else status), other[-3000:]
  assert re.fullmatch(words, other.rstrip().split("\n")[-1]), other[-3000:]
  assert "race" not in other and other.count("ended with") == 1  # neither Python's nor C++'s trace
  assert how == "fault" or "Traceback" not in outputs[hit]
  if how not in (
    "pool",
    "flag",
    "fault",
  ):  # what is there is whole, and the same command goes on from it
    assert stored.whole_steps(stored.folder_of(str(workdir)))
    done = len(log.read(str(workdir)))
    run(stage, 2, tmp_path, workdir, steps=2_000, save_every=2, terminate=True, least=done + 1)
    steps = [line["step"] for line in log.read(str(workdir))]
    assert len(steps) > done and steps == list(range(1, len(steps) + 1))


def wait_for_steps(workdir, count: int, seconds: float = 300):
  end = time.monotonic() + seconds
  while not (workdir / log.FILE).exists() or len(log.read(str(workdir))) < count:
    assert time.monotonic() < end, "no steps were logged"
    time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Stage -> the work folder of one process with 8 devices, run when first asked for."""
  folder = tmp_path_factory.mktemp("alone")
  return functools.cache(lambda stage: run(stage, 1, folder))


@pytest.mark.parametrize(
  ("stage", "processes"), [("rl", 2), pytest.param("sft", 4, marks=pytest.mark.slow)]
)
def test_processes_together_equal_one(stage, processes, alone, tmp_path):
  together = run(stage, processes, tmp_path)
  one, many = log.read(str(alone(stage))), log.read(str(together))
  assert [line["step"] for line in many] == [1, 2]
  for a, b in zip(one, many, strict=True):
    named = lambda line: {
      name for name in line if not name.startswith(("time", *timing.OF_THE_MACHINE))
    }
    assert named(a) == named(b)
    for name in named(a):
      np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=1e-5, err_msg=name)
  c = tiny_run.config(stage)
  wanted = tiny_run.flat(tiny_run.restored(alone(stage), MODULES[stage], c))
  got = tiny_run.flat(tiny_run.restored(together, MODULES[stage], c))
  assert wanted.keys() == got.keys()
  for name, leaf in wanted.items():
    np.testing.assert_allclose(got[name], leaf, rtol=1e-3, atol=1e-5, err_msg=name)


def test_sigterm_to_one_process_ends_all_at_one_saved_step(tmp_path):
  workdir = run("sft", 2, tmp_path, steps=2_000, terminate=True)
  (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert 3 <= step < 2_000 and len(log.read(str(workdir))) == step


@pytest.mark.parametrize("lost", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_evaluation_in_two_processes_equals_one(lost, alone, tmp_path):
  """Each prompt once, in the same order, with the same samples and grades; also where what one of
  the two has stored is lost."""
  results = {}
  for processes in (1, 2):
    workdir = tmp_path / str(processes)
    shutil.copytree(alone("rl"), workdir)
    run("evaluate", processes, tmp_path, workdir)
    results[processes] = (workdir / "evaluate" / "test.json").read_bytes()
  one, two = (json.loads(results[processes]) for processes in (1, 2))
  assert len(one["prompts"]) == 16 and two["prompts"] == one["prompts"]
  assert (two["greedy"], two["sampled"]) == (one["greedy"], one["sampled"])
  if not lost:
    return
  (workdir / "evaluate" / "test.json").unlink()
  parts = list((workdir / "evaluate" / "test").glob("part-00001-*"))
  for path in parts:
    path.unlink()
  assert parts
  run("evaluate", 2, tmp_path, workdir)
  assert (workdir / "evaluate" / "test.json").read_bytes() == results[2]


@pytest.mark.parametrize(
  "variables",
  [{"JAX_COORDINATOR_ADDRESS": "localhost:1"}, {"RMSD_PROCESS": "0"}, {"RMSD_PROCESS": "2"}],
  ids=["no number", "no address", "number too large"],
)
def test_a_process_without_its_place_is_refused(variables, monkeypatch, capsys):
  for name in ("RMSD_PROCESS", "JAX_COORDINATOR_ADDRESS"):
    monkeypatch.delenv(name, raising=False)
  for name, value in ({"RMSD_PROCESSES": "2"} | variables).items():
    monkeypatch.setenv(name, value)
  with pytest.raises(SystemExit) as ended:
    cli.run(cli.join_processes)
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert said.startswith("error: RMSD_PROCESSES='2' RMSD_PROCESS=")
  assert "HOST:PORT" in said


def test_a_process_of_a_slurm_job_sees_all_gpus_of_its_node():
  """JAX by itself would leave it the one of its number."""
  code = "from rmsd_jax import cli; cli.join_processes()"
  code += "; import jax; print(jax.config.values['jax_cuda_visible_devices'], jax.process_count())"
  environment = os.environ | {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    "RMSD_PROCESSES": "2",
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_LOCALID": "0",
  }
  started = [
    subprocess.Popen(
      [sys.executable, "-c", code],
      cwd=tiny_run.ROOT,
      env=environment | {"RMSD_PROCESS": str(i), "SLURM_PROCID": str(i)},
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  assert [process.communicate(timeout=100)[0] for process in started] == ["all 2\n"] * 2

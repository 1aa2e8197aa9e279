"""Several processes on loopback do what one process does: both stages and evaluation.

Each process has its share of 8 devices, reads its own rows, grades its own rollouts and writes its
own shards of the checkpoint. Gloo carries the collectives.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run

from rmsd_jax import cli, train_rl, train_sft
from rmsd_jax.training import log

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


def run(stage: str, processes: int, folder, workdir=None, steps=2, terminate=False):
  """Starts a stage in `processes` processes with 8 devices together; returns its work folder.

  With `terminate`, the last process gets SIGTERM after some steps, and all are to end by it.
  """
  c = tiny_run.config(
    stage,
    steps=steps,
    save_every=steps,
    discriminator__probe_every=1,
    discriminator__warmup_steps=1,  # so that one of two steps is the policy's
    mesh__data=2,
    mesh__fsdp=4,
    mesh__tensor=1,
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
  command += [f"--config={config}", f"--workdir={workdir}"]
  started = [
    subprocess.Popen(
      command,
      cwd=tiny_run.ROOT,
      env=environment | {"RMSD_PROCESS": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(processes)
  ]
  try:
    if terminate:
      wait_for_steps(workdir, 3)
      started[-1].terminate()
    outputs = [process.communicate(timeout=400)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  for process, output in zip(started, outputs, strict=True):
    assert process.returncode == (cli.EXIT_TERMINATED if terminate else 0), output[-3000:]
  return workdir


def wait_for_steps(workdir, count: int, seconds: float = 300):
  end = time.monotonic() + seconds
  while not (workdir / log.FILE).exists() or len(log.read(str(workdir))) < count:
    assert time.monotonic() < end, "no steps were logged"
    time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Work folders of one process with 8 devices, by stage."""
  folder = tmp_path_factory.mktemp("alone")
  return {stage: run(stage, 1, folder) for stage in MODULES}


@pytest.mark.parametrize(("stage", "processes"), [("sft", 4), ("rl", 2)])
def test_processes_together_equal_one(stage, processes, alone, tmp_path):
  together = run(stage, processes, tmp_path)
  one, many = log.read(str(alone[stage])), log.read(str(together))
  assert [line["step"] for line in many] == [1, 2]
  skipped = ("time", "seconds_per_step", "prompts_per_second", "host_memory_gb")
  for a, b in zip(one, many, strict=True):
    assert a.keys() == b.keys()
    for name in a.keys() - set(skipped):
      np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=1e-5, err_msg=name)
  c = tiny_run.config(stage)
  wanted = tiny_run.flat(tiny_run.restored(alone[stage], MODULES[stage], c))
  got = tiny_run.flat(tiny_run.restored(together, MODULES[stage], c))
  assert wanted.keys() == got.keys()
  for name, leaf in wanted.items():
    np.testing.assert_allclose(got[name], leaf, rtol=1e-3, atol=1e-5, err_msg=name)


def test_sigterm_to_one_process_ends_all_at_one_saved_step(tmp_path):
  workdir = run("sft", 2, tmp_path, steps=2_000, terminate=True)
  (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert 3 <= step < 2_000 and len(log.read(str(workdir))) == step


def test_evaluation_in_two_processes_equals_one(alone, tmp_path):
  """Of the greedy answers: each prompt once, in the same order, with the same grades."""
  results = {}
  for processes in (1, 2):
    workdir = tmp_path / str(processes)
    shutil.copytree(alone["sft"], workdir)
    run("evaluate", processes, tmp_path, workdir)
    results[processes] = json.loads((workdir / "evaluate" / "test.json").read_text())
  one, two = (
    [(row["id"], row["greedy"]) for row in results[processes]["prompts"]] for processes in (1, 2)
  )
  assert len(one) == 16 and two == one
  assert results[2]["greedy"] == results[1]["greedy"]


@pytest.mark.parametrize(
  "variables",
  [{"JAX_COORDINATOR_ADDRESS": "localhost:1"}, {"RMSD_PROCESS": "0"}, {"RMSD_PROCESS": "2"}],
  ids=["no number", "no address", "number too large"],
)
def test_a_process_without_its_place_is_refused(variables):
  done = subprocess.run(
    [sys.executable, "-m", "rmsd_jax.train_sft", "--config=configs/demo.py:sft", "--workdir=x"],
    cwd=tiny_run.ROOT,
    env=os.environ | {"RMSD_PROCESSES": "2"} | variables,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: RMSD_PROCESSES='2' RMSD_PROCESS=")
  assert "HOST:PORT" in done.stderr


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

"""What the drills share: commands that are forked from a process which has imported everything.

A drill is a program of its own, since a process that has woken its devices must not fork. Every
start is a fork of it, so that starts cost little.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

from rmsd_jax import cli

ROOT = pathlib.Path(__file__).parents[2]


def run(name: str, *arguments: object, compiled: pathlib.Path) -> dict:
  """The report of tests/support/NAME.py, the last line that it prints; compiled programs are kept
  in a folder."""
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",  # one device
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = [sys.executable, ROOT / "tests" / "support" / f"{name}.py", *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def start(command: Callable[[], object], output: pathlib.Path) -> int:
  """The number of a new process that runs the command; what it prints goes to a file."""
  if number := os.fork():
    return number
  out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(out, 1)
  os.dup2(out, 2)
  try:
    cli.run(command)
  except SystemExit as ended:
    sys.stdout.flush()
    os._exit(ended.code or 0)
  os._exit(1)

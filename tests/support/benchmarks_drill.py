"""Runs sets to cards undisturbed, and again killed at random moments.

    python tests/support/benchmarks_drill.py ARGUMENTS.json DIR KILLS SEED

Every start is a fork of this process, which has imported everything and woken no device. ARGUMENTS
are those of `benchmarks run` but --out, which is DIR/out for both: DIR/alone is what the first left
there. Prints one JSON line: signals and the last step begun before each, seconds undisturbed.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import drills

from rmsd_jax import evaluate as evaluate  # before the forks, as the command does it later
from rmsd_jax import pool as pool
from rmsd_jax.benchmarks.__main__ import main as benchmarks


def last_step(log: pathlib.Path) -> str:
  lines = log.read_text().splitlines() if log.exists() else []
  begun = [line for line in lines if line.startswith(("prepare", "build", "["))]
  return begun[-1].partition(",")[0] if begun else "start"


def wait_for_a_step(log: pathlib.Path) -> None:
  """Returns when the run has begun a step: what goes before is the same in every start."""
  until = time.monotonic() + 120
  while last_step(log) == "start" and time.monotonic() < until:
    time.sleep(0.05)


def main(arguments_file: str, folder: str, kills: int, seed: str) -> None:
  rng = random.Random(seed)
  here = pathlib.Path(folder)
  out, log = here / "out", here / "log"
  arguments = [*json.loads(pathlib.Path(arguments_file).read_text()), "--out", str(out)]
  start = lambda: drills.start(lambda: benchmarks(arguments), log)
  began = time.monotonic()
  assert os.waitpid(start(), 0)[1] == 0, log.read_text()[-2000:]
  seconds = time.monotonic() - began
  out.rename(here / "alone")
  killed = []
  while len(killed) < kills:
    log.unlink(missing_ok=True)
    number = start()
    wait_for_a_step(log)
    time.sleep(rng.uniform(0, 0.12) * seconds)
    how = rng.choice((signal.SIGKILL, signal.SIGTERM))
    os.kill(number, how)  # one that has ended waits for the next line
    if os.waitpid(number, 0)[1] == 0:
      break
    killed.append(f"{how.name} in {last_step(log)}")
  assert os.waitpid(start(), 0)[1] == 0, log.read_text()[-2000:]
  print(json.dumps({"killed": killed, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

"""Evaluates once undisturbed and once killed again and again at random moments.

    python tests/support/evaluation_drill.py CONFIG.json FOLDER KILLS SEED

Every start is a fork of this process, which has imported everything and woken no device. Writes
FOLDER/alone and FOLDER/killed, and prints one JSON line: kills, and the batches there after each.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import drills
from ml_collections import ConfigDict

from rmsd_jax import evaluate

BATCHES = 11  # of the config


def main(config_file: str, folder: str, kills: int, seed: str) -> None:
  rng = random.Random(seed)
  config = ConfigDict(json.loads(pathlib.Path(config_file).read_text()), convert_dict=True)
  alone, killed = pathlib.Path(folder, "alone"), pathlib.Path(folder, "killed")
  output = pathlib.Path(folder, "output.txt")
  start = lambda workdir: drills.start(lambda: evaluate.main(config, str(workdir), "base"), output)
  begin = time.monotonic()
  assert os.waitpid(start(alone), 0)[1] == 0, output.read_text()[-2000:]
  seconds = time.monotonic() - begin
  parts = lambda: len(list(killed.glob("evaluate/test/part-*")))
  found = []
  while len(found) < kills:
    number, before = start(killed), parts()
    # Soon after a batch was written, as long as there is one to write; else whenever it may be.
    end = time.monotonic() + seconds * (1 if before < BATCHES - 1 else rng.uniform(0.1, 0.6))
    while time.monotonic() < end and parts() == before:
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(number, signal.SIGKILL)  # one that has ended waits for the next line
    os.waitpid(number, 0)
    found.append(parts())
  assert os.waitpid(start(killed), 0)[1] == 0, output.read_text()[-2000:]
  print(json.dumps({"killed": len(found), "parts": found}))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

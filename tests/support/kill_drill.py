"""Kills a run of stage 1 again and again, around its saves and deletions, and lets it go on.

    python tests/support/kill_drill.py CONFIG.json WORKDIR KILLS SEED

Every start is a fork of this process, which has imported everything and woken no device, so that a
start costs little. Prints one JSON line: kills by what was going on, and starts that did not go on.
"""

import collections
import json
import os
import pathlib
import random
import signal
import sys
import time

import drills
from ml_collections import ConfigDict

from rmsd_jax import train_sft

PHASES = ("draft", "digests", "commit", "deletion")


def files(folder: pathlib.Path) -> int:
  return sum(len(names) for _, _, names in os.walk(folder))


def going_on(folder: pathlib.Path, most: dict[str, int]) -> set[str]:
  """Which of PHASES the folder of checkpoints is in. `most` remembers how many files steps had."""
  found = set()
  names = os.listdir(folder) if folder.exists() else []
  steps = [name for name in names if name.isdecimal()]
  for name in names:
    if ".orbax" in name:
      found |= {"draft"} | ({"digests"} if (folder / name / "SHA256SUMS").exists() else set())
  if len(steps) > 1:  # one is kept
    found |= {"commit"}
  for step in steps:
    count = files(folder / step)
    if count < most.get(step, 0):
      found |= {"deletion"}
    most[step] = max(count, most.get(step, 0))
  return found


def main(config_file: str, workdir: str, kills: int, seed: int) -> None:
  rng = random.Random(seed)
  config = ConfigDict(json.loads(pathlib.Path(config_file).read_text()), convert_dict=True)
  folder, killed, refused = pathlib.Path(workdir), collections.Counter(), []
  output = folder.parent / "output.txt"
  start = lambda: drills.start(lambda: train_sft.main(config, str(folder)), output)
  torn = 0  # kills that left a numbered folder with files missing
  while sum(killed.values()) < kills:
    phase, delay = PHASES[sum(killed.values()) % len(PHASES)], rng.uniform(0, 0.02)
    number, most = start(), {}
    while True:
      ended, status = os.waitpid(number, os.WNOHANG)
      if ended:
        refused.append([status, output.read_text()[-500:]])
        break
      if phase in going_on(folder / "checkpoints", most):
        time.sleep(delay)
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        killed[phase] += 1
        steps = (path for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())
        torn += any(files(path) < most.get(path.name, 0) for path in steps)
        break
    if refused:
      break
  _, status = os.waitpid(start(), 0)
  if status:
    refused.append([status, output.read_text()[-500:]])
  print(json.dumps({"killed": killed, "torn": torn, "refused": refused}))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

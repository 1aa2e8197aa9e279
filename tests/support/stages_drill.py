"""Ends a run of both stages and its evaluation at random moments, by three signals.

    python tests/support/stages_drill.py CONFIGS.json DIR KILLS SEED

CONFIGS are those of "sft", "rl" and "evaluate", in this order from one to the next: DIR/sft,
DIR/rl, and the evaluation of the latter. Each is started again until it has had its share of the
KILLS, and then left to its end. Every start is a fork of this process, which has imported
everything and woken no device. Prints one JSON line: how often by stage, moment and signal, and
starts that did not go on or did not end as they should.
"""

import collections
import functools
import json
import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Callable

import drills
from ml_collections import ConfigDict

from rmsd_jax import cli, evaluate, train_rl, train_sft

COMMANDS = {
  "sft": train_sft.main,
  "rl": train_rl.main,
  "evaluate": functools.partial(evaluate.main, checkpoint="latest"),
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Exit statuses: before a command has its handlers it ends by the signal.
ENDS = {
  "SIGKILL": {-signal.SIGKILL},
  "SIGTERM": {cli.EXIT_TERMINATED, -signal.SIGTERM},
  "SIGINT": {cli.EXIT_INTERRUPTED, -signal.SIGINT},
}
MOMENTS = ("start", "step", "save")
START = 8.0  # seconds that a start takes, about: restoring and compiling included
MOST = 90.0  # seconds from a signal to the end


def lines(path: pathlib.Path) -> int:
  return path.read_bytes().count(b"\n") if path.exists() else 0


def progress(workdir: pathlib.Path) -> int:
  """Steps that were logged and batches that were answered."""
  return lines(workdir / "metrics.jsonl") + len(list(workdir.glob("evaluate/train/part-*")))


def is_saving(workdir: pathlib.Path) -> bool:
  return any(".orbax" in path.name for path in workdir.glob("checkpoints/*"))


def ended(number: int, seconds: float, until: Callable[[], bool] = lambda: False) -> int | None:
  """The exit status of a process; None where it goes on for so many seconds, or when `until`."""
  end = time.monotonic() + seconds
  while time.monotonic() < end and not until():
    if os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT):
      return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    time.sleep(0.001)
  return None


def wait_for(moment: str, number: int, workdir: pathlib.Path, rng: random.Random) -> int | None:
  """Waits for a moment of a process that was just started; its exit status, if it ended before."""
  now = progress(workdir)
  before = now + rng.randint(0, 1)
  # At least so long that what is forked has come to the command's own handlers. No later than its
  # first step: on a fast machine it would be through before it had its share of kills.
  if moment == "start":
    status = ended(number, 0.3)
    later = rng.uniform(0, START)
    return ended(number, later, lambda: progress(workdir) > now) if status is None else status
  until = {"step": lambda: progress(workdir) > before, "save": lambda: is_saving(workdir)}[moment]
  status = ended(number, 10 * START, until)
  return ended(number, rng.uniform(0, 0.05)) if status is None else status


def main(configs_file: str, folder: str, kills: int, seed: int) -> None:
  rng = random.Random(seed)
  raw = json.loads(pathlib.Path(configs_file).read_text())
  base = pathlib.Path(folder)
  raw["rl"]["init_from"] = str(base / "sft")
  output = base.with_suffix(".txt")
  killed: collections.Counter = collections.Counter()
  wrong: list = []
  for place, (stage, command) in enumerate(COMMANDS.items()):
    config = ConfigDict(raw[stage], convert_dict=True)
    workdir = base / ("sft" if stage == "sft" else "rl")
    run = functools.partial(command, config, str(workdir))
    # A third of the kills each; in nine turns every signal at every moment.
    for turn in range((place + 1) * kills // 3 - place * kills // 3):
      sent = SIGNALS[turn % len(SIGNALS)]
      moment = MOMENTS[(turn + turn // len(SIGNALS) + place) % len(MOMENTS)]
      moment = "step" if (stage, moment) == ("evaluate", "save") else moment
      number = drills.start(run, output)
      status = wait_for(moment, number, workdir, rng)
      how = "by itself"
      if status is None:
        how = sent.name
        os.kill(number, sent)
        status = ended(number, MOST)
      # One that was through when the signal came has ended well.
      if status not in ENDS.get(how, set()) | {0}:
        wrong.append([stage, moment, how, status, output.read_text()[-800:]])
      killed[f"{stage} {moment} {how if status else 'was through'}"] += 1
    if status := ended(drills.start(run, output), 600):
      wrong.append([stage, "end", "by itself", status, output.read_text()[-800:]])
  print(json.dumps({"killed": killed, "wrong": wrong}))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

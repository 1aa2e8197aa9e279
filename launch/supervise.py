"""Keeps a run on a Cloud TPU slice going until it is done: `launch/tpu_vm.sh supervise`.

It makes the slice, sets it up and starts the run; makes the slice anew after a preemption; starts
the run again where a process or a worker was lost, where the run failed, and where no step was made
for STEP_LIMIT minutes, then with the stacks of all processes in their logs. Every command is one of
tpu_vm.sh. Standard library only: it runs where gcloud does.

It ends with status 0 when the run is done, 2 when the run refuses its input, 1 at a crash loop,
where the slice cannot be set up, and at MAX_HOURS. The slice is left as it is, and billed, unless
DOWN=1.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Protocol

READY = ("READY", "ACTIVE")
LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "FAILED")  # and it does not come back
NONE = "NONE"
BAD_INPUT = 2  # exit status of a command that refuses what it was given
SETUPS = 2  # that fail before the slice is made anew
SLICES = 2  # one after the other on which setups fail, after which it is given up
MISSED = 3  # looks in a row without a worker: one may fail for once
ATTEMPTS = 2  # that fail without a new checkpoint: a crash loop


@dataclasses.dataclass
class Probe:
  """What is there.

  Attributes:
    node: state of the slice; NONE where there is none.
    step: of the last line of the run's metrics; 0: none.
    parts: batches that an evaluation has stored.
    checkpoint: the last one; 0: none.
    workers: host -> "running", "ended STATUS", "gone" where its process has left no status, or
      "not started".
  """

  node: str = NONE
  step: int = 0
  parts: int = 0
  checkpoint: int = 0
  workers: dict[str, str] = dataclasses.field(default_factory=dict)


class Cloud(Protocol):
  """What is supervised."""

  def act(self, command: str) -> bool:
    """Runs a command of tpu_vm.sh; whether it succeeded."""

  def probe(self) -> Probe: ...

  def now(self) -> float:
    """Seconds."""

  def wait(self, seconds: float) -> None: ...


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the environment says.

  Attributes:
    step_limit: minutes without a step (or a batch of an evaluation) after which a run hangs.
    start_limit: the same for the first step of a start, which restores and compiles.
    max_hours: of a slice that is billed; 0: no limit.
    price: of an hour, in any currency; 0: not told.
    poll: seconds between two looks.
    down: delete the slice at the end.
  """

  step_limit: float = 30.0
  start_limit: float = 90.0
  max_hours: float = 0.0
  price: float = 0.0
  poll: float = 60.0
  down: bool = False


@dataclasses.dataclass
class Supervisor:
  cloud: Cloud
  settings: Settings
  say: Callable[[str], None]

  def __post_init__(self):
    self.paid = 0.0  # seconds of a slice that was there
    self._is_set_up = False
    self._hosts = 0  # most workers seen on this slice
    self._failed_setups = 0
    self._new_slices = 0
    self._running = False  # an attempt is under way

  def run(self) -> int:
    """Until the end; the exit status."""
    failures = 0  # attempts in a row without a new checkpoint
    newest = 0
    looked = self.cloud.now()
    while True:
      there = self.cloud.probe()
      now = self.cloud.now()
      self.paid += (now - looked) * (there.node in READY)
      looked = now
      if there.checkpoint > newest:
        newest, failures = there.checkpoint, 0
      self._tell(there)
      if self.settings.max_hours and self.paid >= 3600 * self.settings.max_hours:
        if self._running:
          self.cloud.act("stop")
        return self._end(1, f"MAX_HOURS={self.settings.max_hours:g} are over; the run can go on")
      if there.node == NONE or there.node in LOST:
        self._make_slice(there)
      elif there.node in READY and not self._running:
        if not self._start(there):
          return self._end(1, "the slice cannot be set up; see above")
      elif there.node in READY:
        verdict = self._verdict(there)
        if verdict == "done":
          return self._end(0, "the run is done")
        if verdict == "refused":
          return self._end(BAD_INPUT, "the run refuses its input; see logs")
        if verdict in ("failed", "hangs"):
          failures += 1
          if failures >= ATTEMPTS:
            self.cloud.act("abort")
            return self._end(1, f"{failures} attempts made no new checkpoint; see logs")
        if verdict:
          self.say(f"the run {verdict}; it is started again")
          self.cloud.act("abort")
          self._is_set_up &= verdict != "lost a worker"
          self._running = False
          continue
      self.cloud.wait(self.settings.poll)

  def _make_slice(self, there: Probe) -> None:
    if there.node in LOST:
      self.say(f"the slice is {there.node}; it is made anew")
      self.cloud.act("down")
    self._is_set_up = False
    self._hosts = 0
    self._running = False
    if not self.cloud.act("create"):
      self.say("no slice could be made; it is tried again")

  def _start(self, there: Probe) -> bool:
    """Sets up, where that is to be done, and starts the run; False where it is given up."""
    # A supervisor that was started again finds the run of the one before.
    goes_on = any(state == "running" for state in there.workers.values())
    is_set_up = goes_on or self._is_set_up or self.cloud.act("setup")
    if not goes_on and not (is_set_up and self.cloud.act("run")):
      self._is_set_up = False
      self._failed_setups += 1
      if self._failed_setups < SETUPS:
        return True
      self._failed_setups = 0
      self._new_slices += 1
      if self._new_slices < SLICES:
        self.say("the slice cannot be set up; it is made anew")
        self.cloud.act("down")
      return self._new_slices < SLICES
    self._is_set_up = True
    self._failed_setups = 0
    self._new_slices = 0
    self._running = True
    self._stepped = False  # the attempt made a step
    self._missed = 0  # looks in a row without a worker
    self._progress = there.step, there.parts
    self._moved = self.cloud.now()
    return True

  def _verdict(self, there: Probe) -> str:
    """What became of the attempt; "": it goes on."""
    self._hosts = max(self._hosts, len(there.workers))
    states = list(there.workers.values())
    if (there.step, there.parts) != self._progress:
      self._progress = there.step, there.parts
      self._moved = self.cloud.now()
      self._stepped = True
    lost = len(states) < self._hosts or "gone" in states or "not started" in states
    self._missed = self._missed + 1 if lost else 0
    if self._missed:
      return "lost a worker" if self._missed == MISSED else ""
    # Where one process is killed, the others end with this status, too.
    if states and all(state == f"ended {BAD_INPUT}" for state in states) and not self._stepped:
      return "refused"
    if states and all(state == "ended 0" for state in states):
      return "done"
    if any(state.startswith("ended") and state != "ended 0" for state in states):
      return "failed"
    limit = self.settings.step_limit if self._stepped else self.settings.start_limit
    return "hangs" if self.cloud.now() - self._moved > 60 * limit else ""

  def _tell(self, there: Probe) -> None:
    parts = [there.node]
    if self._running:
      running = sum(state == "running" for state in there.workers.values())
      age = (self.cloud.now() - self._moved) / 60
      parts += [f"{running} of {max(self._hosts, len(there.workers))} workers run"]
      parts += [f"step {there.step}, {age:.0f} min ago", f"checkpoint {there.checkpoint}"]
    self.say(", ".join([*parts, self._cost()]))

  def _cost(self) -> str:
    hours = self.paid / 3600
    cost = f" ({hours * self.settings.price:.2f} so far)" if self.settings.price else ""
    return f"{hours:.1f} h of the slice{cost}"

  def _end(self, status: int, why: str) -> int:
    left = "the slice is billed until `tpu_vm.sh down`"
    if self.settings.down:
      left = "the slice is deleted" if self.cloud.act("down") else f"it was not deleted: {left}"
    self.say(f"{why}; {self._cost()}; {left}")
    return status


class Script:
  """tpu_vm.sh in this environment."""

  def __init__(self):
    self._script = pathlib.Path(__file__).with_name("tpu_vm.sh")

  def act(self, command: str) -> bool:
    return subprocess.run([self._script, command], check=False).returncode == 0

  def probe(self) -> Probe:
    done = subprocess.run([self._script, "probe"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == BAD_INPUT:
      sys.exit(BAD_INPUT)  # it has said why
    return parse(done.stdout)

  def now(self) -> float:
    return time.monotonic()

  def wait(self, seconds: float) -> None:
    time.sleep(seconds)


def parse(text: str) -> Probe:
  """The lines of `tpu_vm.sh probe`."""
  there = Probe()
  for line in text.splitlines():
    words = line.split()
    if words[:1] == ["worker"] and len(words) > 2:
      there.workers[words[1]] = " ".join(words[2:])
    elif len(words) == 2 and words[0] == "node":
      there.node = words[1]
    elif len(words) == 2 and words[0] in ("step", "parts", "checkpoint") and words[1].isdecimal():
      setattr(there, words[0], int(words[1]))
  return there


def settings_of(environment: dict[str, str]) -> Settings:
  """From STEP_LIMIT, START_LIMIT, MAX_HOURS, PRICE, POLL and DOWN.

  Raises:
    ValueError: one of them is no number of 0 or more.
  """
  values: dict[str, float] = {}
  for name in ("step_limit", "start_limit", "max_hours", "price", "poll"):
    if text := environment.get(name.upper(), ""):
      try:
        values[name] = float(text)
      except ValueError:
        values[name] = -1.0
      if not 0 <= values[name] < float("inf"):
        raise ValueError(f"{name.upper()}={text} is no number of 0 or more")
  return Settings(**values, down=environment.get("DOWN") == "1")


def main() -> None:
  try:
    settings = settings_of(dict(os.environ))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)
  say = lambda line: print(time.strftime("%F %T"), line, flush=True)
  try:
    sys.exit(Supervisor(Script(), settings, say).run())
  except KeyboardInterrupt:
    say("no longer supervised; the run goes on, and the slice is billed until `tpu_vm.sh down`")
    sys.exit(130)


if __name__ == "__main__":
  main()

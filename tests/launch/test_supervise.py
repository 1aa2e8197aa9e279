"""launch/supervise.py in a simulated cloud: 20 histories, each ending as it should."""

import dataclasses
import importlib.util
import itertools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("supervise", ROOT / "launch" / "supervise.py")
supervise = importlib.util.module_from_spec(spec)
sys.modules["supervise"] = supervise
spec.loader.exec_module(supervise)

# Of the simulated run, in minutes: a run that nothing happens to takes 10 + 300.
FIRST, EVERY, STEPS, SAVED = 10, 1, 300, 30
CREATING, SETUP = 5, 15
HOSTS = ("w-0", "w-1", "w-2", "w-3")


class World:
  """A slice of four workers and a run on it, in minutes of its own.

  Args:
    events: minute -> what happens then, once: "preempt", "crash", "kill" (a process), "hang",
      "lose" (a worker, until the slice is made anew), "blind" (looks see no worker for a minute and
      a half), "reboot" (processes and statuses go), "stop" (SIGTERM, as before maintenance).
    always: what happens to every attempt after so many steps of it: (steps, "crash" or "refuse").
    failing: command -> how often it fails, from the first on.
  """

  def __init__(self, events=None, always=None, failing=None):
    self.minute = 0.0
    self.billed = 0.0  # minutes
    self.asked = []
    self._events = sorted((events or {}).items())
    self._always = always
    self._failing = dict(failing or {})
    self._node, self._ready_at = supervise.NONE, 0.0
    self._step = self._saved = 0
    self._workers: dict[str, str] = {}
    self._lost = self._begun = self._hung = self._blind_until = 0.0
    self._from = 0

  def now(self):
    return 60 * self.minute

  def wait(self, seconds):
    end = self.minute + seconds / 60
    while self.minute < end:
      self.minute += 0.5
      self._turn()

  def _turn(self):
    if self._node == "CREATING" and self.minute >= self._ready_at:
      self._node = "READY"
    self.billed += 0.5 * (self._node == "READY")
    while self._events and self._events[0][0] <= self.minute:
      getattr(self, f"_{self._events.pop(0)[1]}")()
    if "running" in self._workers.values() and not self._hung:
      if self.minute - self._begun >= FIRST + EVERY * (self._step - self._from + 1):
        self._step += 1
        self._saved = self._step if self._step % SAVED == 0 else self._saved
        if self._step == STEPS:
          self._saved = STEPS
          self._all("ended 0")
    if self._always and "running" in self._workers.values():
      steps, how = self._always
      if self._step - self._from >= steps and self.minute - self._begun >= FIRST:
        self._all({"crash": "ended 1", "refuse": "ended 2"}[how])

  def _all(self, state):
    self._workers = dict.fromkeys(self._workers, state)

  def _preempt(self):
    self._node, self._workers = "PREEMPTED", {}

  def _crash(self):
    self._all("ended 1")

  def _kill(self):
    self._all("ended 2")  # the others hear of it
    self._workers["w-1"] = "ended 137"

  def _stop(self):
    self._saved = self._step
    self._all("ended 143")

  def _hang(self):
    self._hung = 1

  def _lose(self):
    self._lost = 1
    self._all("ended 2")
    self._workers.pop("w-2", None)

  def _reboot(self):
    self._all("not started")

  def _blind(self):
    self._blind_until = self.minute + 1.5

  def act(self, command):
    self.asked.append(command)
    if self._failing.get(command, 0) > 0:
      self._failing[command] -= 1
      self.wait(60)
      return False
    if command == "create":
      assert self._node == supervise.NONE
      self._node, self._ready_at, self._lost = "CREATING", self.minute + CREATING, 0
      self._workers = {}
    elif command == "down":
      self._node, self._workers = supervise.NONE, {}
    elif command == "setup":
      if self._node != "READY" or self._lost or "running" in self._workers.values():
        return False
      self._workers = dict.fromkeys(HOSTS, "not started")
      self.wait(60 * SETUP)
      return self._node == "READY"
    elif command == "run":
      if not self._workers or "running" in self._workers.values():
        return False
      self._all("running")
      self._begun, self._hung = self.minute, 0
      self._step = self._from = self._saved
    elif command in ("abort", "stop"):
      self._saved = self._step if command == "stop" else self._saved
      self._all("not started")
    return True

  def probe(self):
    seen = {} if self.minute < self._blind_until else dict(self._workers)
    workers = seen if self._node == "READY" else {}
    return supervise.Probe(self._node, self._step, 0, self._saved, workers)


def history(settings=None, **world):
  """(exit status, hours that were paid, commands, what was said) of a history."""
  cloud, said = World(**world), []
  supervisor = supervise.Supervisor(cloud, supervise.Settings(**settings or {}), said.append)
  status = supervisor.run()
  assert cloud.minute < 10_000, "it ends"
  # It looks once a minute.
  assert supervisor.paid / 60 == pytest.approx(cloud.billed, abs=3 * (cloud.asked.count("create")))
  return status, cloud.billed / 60, cloud.asked, "\n".join(said)


WHOLE = (SETUP + FIRST + STEPS) / 60  # hours of a slice
AGAIN = FIRST / 60  # of another start on a slice that is set up
ANEW = (SETUP + FIRST) / 60  # of another start on a new one
# name: world, settings, exit status, hours that are paid, how often each command was asked, words
HISTORIES = {
  "nothing happens": ({}, {}, 0, WHOLE, "create setup run", "the run is done"),
  "preempted in the middle": (
    {"events": {100.2: "preempt"}}, {}, 0, WHOLE + ANEW + 0.33,
    "create setup run down create setup run", "the slice is PREEMPTED; it is made anew",
  ),
  "preempted while it is set up": (
    {"events": {12: "preempt"}}, {}, 0, WHOLE + 0.12, "create setup down create setup run", "done",
  ),
  "preempted five times": (
    {"events": dict.fromkeys((100, 200, 300, 400, 500), "preempt")}, {}, 0, None, None, "done",
  ),
  "no slice to be had at first": ({"failing": {"create": 4}}, {}, 0, WHOLE, None, "tried again"),
  "crashes once": (
    {"events": {100: "crash"}}, {}, 0, WHOLE + AGAIN + 0.17, "create setup run abort run", "failed",
  ),
  "crashes twice, with checkpoints between": (
    {"events": {100: "crash", 200: "crash"}}, {}, 0, None,
    "create setup run abort run abort run", "done",
  ),
  "a crash loop": (
    {"always": (5, "crash")}, {}, 1, None, "create setup run abort run abort",
    "2 attempts made no new checkpoint",
  ),
  "a crash loop before the first step": (
    {"always": (0, "crash")}, {}, 1, None, "create setup run abort run abort", "no new checkpoint",
  ),
  "refuses its input": (
    {"always": (0, "refuse")}, {}, 2, None, "create setup run", "refuses its input",
  ),
  "a process is killed": (
    {"events": {22: "kill"}}, {}, 0, WHOLE + 0.05, "create setup run abort run", "failed",
  ),
  "hangs once": (
    {"events": {100: "hang"}}, {}, 0, WHOLE + AGAIN + 0.68, "create setup run abort run", "hangs",
  ),
  "hangs in every start": (
    {"events": {25: "hang", 130: "hang"}}, {}, 1, None, "create setup run abort run abort",
    "no new checkpoint",
  ),
  "a worker is lost and does not come back": (
    {"events": {100: "lose"}}, {}, 0, None,
    "create setup run abort setup setup down create setup run", "lost a worker",
  ),
  "all workers are started anew": (
    {"events": {100: "reboot"}}, {}, 0, None, "create setup run abort setup run", "lost a worker",
  ),
  "a look fails": ({"events": {100: "blind"}}, {}, 0, WHOLE, "create setup run", "done"),
  "saved and ended before maintenance": (
    {"events": {101: "stop"}}, {}, 0, WHOLE + AGAIN, "create setup run abort run", "done",
  ),
  "setup fails once": ({"failing": {"setup": 1}}, {}, 0, WHOLE, "create setup setup run", "done"),
  "setup always fails": (
    {"failing": {"setup": 99}}, {}, 1, None, "create setup setup down create setup setup",
    "cannot be set up",
  ),
  "its hours are over": (
    {}, {"max_hours": 2.0, "down": True, "price": 10.0}, 1, 2.0, "create setup run stop down",
    "MAX_HOURS=2 are over; the run can go on; 2.0 h of the slice (20.",
  ),
}  # fmt: skip


def test_there_are_twenty():
  assert len(HISTORIES) == 20


@pytest.mark.parametrize("name", HISTORIES)
def test_a_history_ends_as_it_should(name):
  world, settings, status, hours, asked, words = HISTORIES[name]
  got, paid, commands, said = history(settings, **world)
  assert got == status, said
  assert asked is None or [key for key, _ in itertools.groupby(commands)] == [
    key for key, _ in itertools.groupby(asked.split())
  ]
  assert words in said
  if hours is not None:
    assert paid == pytest.approx(hours, abs=0.15)
  assert ("billed until" in said) == (not settings.get("down"))
  if status == 0:
    assert commands.count("abort") < 3


def test_a_supervisor_that_is_started_again_finds_the_run():
  cloud = World()
  first = supervise.Supervisor(cloud, supervise.Settings(), lambda line: None)
  with pytest.raises(StopIteration):
    wait, turns = cloud.wait, iter(range(40))
    cloud.wait = lambda seconds: (next(turns), wait(seconds))
    first.run()
  cloud.wait = wait
  assert supervise.Supervisor(cloud, supervise.Settings(), lambda line: None).run() == 0
  assert cloud.asked == ["create", "setup", "run"]


def test_what_probe_prints_is_read():
  text = "node READY\n+ gcloud x\nstep 12\nparts 0\ncheckpoint 10\nworker w-0 ended 143\nworker w-1"
  text += " running\nworker w-2 not started\nnoise\n"
  assert supervise.parse(text) == supervise.Probe(
    "READY", 12, 0, 10, {"w-0": "ended 143", "w-1": "running", "w-2": "not started"}
  )
  assert supervise.parse("") == supervise.Probe()


def test_settings_come_from_the_environment():
  got = supervise.settings_of({"MAX_HOURS": "12", "POLL": "5", "DOWN": "1", "PRICE": ""})
  assert dataclasses.asdict(got) == {
    "step_limit": 30.0, "start_limit": 90.0, "max_hours": 12.0, "price": 0.0, "poll": 5.0,
    "down": True,
  }  # fmt: skip
  with pytest.raises(ValueError, match=re.escape("MAX_HOURS=x is no number of 0 or more")):
    supervise.settings_of({"MAX_HOURS": "x"})

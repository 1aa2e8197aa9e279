"""Children: order, refusals, time limits and crashes of isolated work."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children


def work(task):
  kind, value = task
  if kind == "sleep":
    time.sleep(value)
  if kind == "compute":  # seconds of a core
    began = time.process_time()
    while time.process_time() - began < value:
      pass
  if kind == "refuse":
    raise UserError(f"{value} is too much")
  if kind == "die":
    os._exit(value)
  return value


def pinned(task):
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  return work(task)


def close_when_busy(worker):
  """Not after some time: on a busy machine the task may not have begun by then."""
  while worker._child.idle:
    time.sleep(0.01)
  worker.close()


class DiesWhenUnpickled:
  def __reduce__(self):
    return os._exit, (3,)


def test_results_come_in_order_and_one_bad_task_costs_one_result():
  tasks = [
    ("sleep", 0.3),
    ("ok", 1),
    ("refuse", 2),
    ("die", 7),
    ("sleep", 60),
    *[("ok", i) for i in range(20)],
  ]
  got = list(children.run(work, tasks, workers=2, limit_s=1.0))
  assert [task for task, _ in got] == tasks
  results = [result for _, result in got]
  assert results[:2] == [0.3, 1]
  assert results[2] == children.Failure("UserError", "2 is too much")
  assert results[3].kind == "Crash" and "7" in results[3].reason
  assert results[4] == children.Failure("TimeLimit", "took more than 1 s")
  assert results[5:] == list(range(20))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone tells")
def test_what_a_task_waits_for_a_core_does_not_count():
  """Five processes on one core: 0.2 s of it take 1 s by the clock. What computes too long, or
  waits for anything else, is over its time on a busy machine, too."""
  mine = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(mine)})  # the busy ones inherit it
  busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
  try:
    run = children.run(pinned, [("compute", 0.2), ("compute", 30), ("sleep", 30)], 1, limit_s=0.4)
    results = [result for _, result in run]
  finally:
    os.sched_setaffinity(0, mine)
    for process in busy:
      process.kill()
      process.wait()
  assert results[0] == 0.2
  assert [result.kind for result in results[1:]] == ["TimeLimit", "TimeLimit"]


def test_tasks_are_drawn_as_needed():
  drawn = []

  def tasks():
    for i in range(100):
      drawn.append(i)
      yield ("ok", i)

  stream = children.run(work, tasks(), workers=1, limit_s=5.0)
  assert next(stream)[1] == 0
  assert len(drawn) <= 1 + children.AHEAD
  stream.close()


def test_no_tasks_and_a_child_that_cannot_start():
  assert list(children.run(work, [], workers=2, limit_s=1.0)) == []
  with pytest.raises(UserError, match="0 workers; at least 1"):
    list(children.run(work, [("ok", 1)], workers=0, limit_s=1.0))
  with pytest.raises(RuntimeError, match="exit code 3"):
    list(children.run(DiesWhenUnpickled(), [("ok", 1)], workers=1, limit_s=1.0))


def test_a_worker_outlives_its_bad_tasks_and_ends_when_closed():
  worker = children.Worker(work, limit_s=1.0)
  with contextlib.closing(worker):
    assert [worker(("ok", i)) for i in range(3)] == [0, 1, 2]
    assert worker(("refuse", 2)) == children.Failure("UserError", "2 is too much")
    assert worker(("die", 7)).kind == "Crash"
    assert worker(("sleep", 60)) == children.Failure("TimeLimit", "took more than 1 s")
    assert worker(("ok", 4)) == 4
    worker._child.process.kill()  # between two tasks, as when memory runs out
    worker._child.process.join()
    assert worker(("ok", 5)) == 5
  worker = children.Worker(work, limit_s=60.0)
  assert worker(("ok", 5)) == 5
  closing = threading.Thread(target=close_when_busy, args=(worker,))
  closing.start()
  begun = time.monotonic()
  assert worker(("sleep", 60)).kind == "Crash" and time.monotonic() - begun < 30
  closing.join()
  with pytest.raises(RuntimeError, match="exit code 3"):
    children.Worker(DiesWhenUnpickled(), 1.0)(("ok", 1))

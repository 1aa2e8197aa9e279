"""Work in child processes that can be stopped: a decoder that hangs, crashes or takes all memory
costs one record.

`concurrent.futures` cannot end a task that hangs inside a C library; a process can be killed.
"""

import contextlib
import dataclasses
import glob
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from rmsd_jax.core.errors import UserError

MEMORY = 4 * 2**30  # bytes that a child may take for its tasks, beyond what it starts with
AHEAD = 4  # tasks per child that may be finished before their turn; bounds memory


@dataclasses.dataclass(frozen=True)
class Failure:
  """A task without a result.

  `kind` is the class of the error, or "TimeLimit", "MemoryLimit" or "Crash".
  """

  kind: str
  reason: str


def run(
  work: Callable[[Any], Any], tasks: Iterable[Any], workers: int, limit_s: float
) -> Iterator[tuple[Any, Any]]:
  """Yields (task, result or Failure) in the order of the tasks.

  Args:
    work: picklable; raises UserError to refuse a task. Any other error ends its process.
    tasks: picklable values, drawn as they are needed.
    workers: child processes, at least 1.
    limit_s: seconds a task may take before its process is killed. What it waits for a core does not
      count (on Linux), so that a busy machine loses no records.

  Raises:
    UserError: no workers.
    RuntimeError: a child died without a task, so a new one would too (its own traceback says why).
  """
  if workers < 1:
    raise UserError(f"{workers} workers; at least 1 is needed")
  children = [_Child(work) for _ in range(workers)]
  queue = enumerate(tasks)
  more = True
  pending: dict[int, Any] = {}  # tasks handed out and not yet yielded
  results: dict[int, Any] = {}
  turn = 0
  try:
    while more or pending:
      # 1. A task for every idle child. A slow task holds back what comes after it, since results
      # are yielded in order; without a bound the finished ones would pile up behind it.
      for child in children:
        if more and child.idle and len(pending) < AHEAD * workers:
          number, task = next(queue, (-1, None))
          more = number >= 0
          if more:
            pending[number] = task
            child.give(number, task, limit_s)
      # 2. Wait. Children that are still starting are waited for even without tasks, so that one
      # that cannot start is noticed.
      if pending or any(not child.ready for child in children):
        results.update(_collect(children))
      # 3. A child that was killed or died is replaced by a fresh one.
      for i, child in enumerate(children):
        if child.process is None:
          children[i] = _Child(work)
      while turn in results:
        yield pending.pop(turn), results.pop(turn)
        turn += 1
  finally:
    for child in children:
      child.kill()


class Worker:
  """One child process for tasks that come one at a time; it starts with the first.

  Args:
    work, limit_s: see `run`.
  """

  def __init__(self, work: Callable[[Any], Any], limit_s: float):
    self._work = work
    self._limit_s = limit_s
    self._child: _Child | None = None

  def __call__(self, task: Any) -> Any:
    """The result, or a Failure. Not thread-safe: one call at a time.

    Raises:
      RuntimeError: the child died without a task (its own traceback says why).
    """
    # A child may have died between two tasks: that is nobody's fault, and a new one takes over.
    child = self._child
    if child is None or child.process is None or not child.process.is_alive():
      self._child = _Child(self._work)
    while not self._child.ready:
      _collect([self._child])
    self._child.give(0, task, self._limit_s)
    results: dict[int, Any] = {}
    while not results:  # none where the deadline has moved
      results = _collect([self._child])
    return results[0]

  def close(self) -> None:
    """Ends the child; a task under way in another thread returns as a Failure."""
    if self._child is not None and self._child.process is not None:
      self._child.process.kill()


class _Child:
  """A child process, its pipe and the task it works on."""

  def __init__(self, work: Callable[[Any], Any]):
    # A fork of this process would inherit its threads and locks; one of a fresh server does not,
    # and the server imports everything once for all children.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([type(work).__module__])
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    self.process.start()
    theirs.close()  # or the pipe would not end when the child dies
    self.ready = False  # it has imported and unpickled everything
    self.number = -1
    self.limit_s = self.deadline = float("inf")
    self.queued = 0.0  # seconds that it had waited for a core when the deadline was set

  @property
  def idle(self) -> bool:
    return self.ready and self.number < 0

  def give(self, number: int, task: Any, limit_s: float) -> None:
    self.number = number
    self.limit_s = limit_s
    self.deadline = time.monotonic() + limit_s
    self.queued = _queued(self.process.pid)
    self.pipe.send(task)

  def take(self) -> dict[int, Any]:
    """The message that the child has sent: {} for "ready", else {number: result}."""
    try:
      result = self.pipe.recv()
    except (EOFError, ConnectionResetError):
      self.process.join()
      code = self.process.exitcode
      number = self.number
      self.kill()
      # With a task in hand it is the task's fault. Without one it failed to import or to unpickle,
      # as the next child would, and replacing it would go on for ever.
      if number < 0:
        raise RuntimeError(f"a worker process died without a task (exit code {code})") from None
      return {number: Failure("Crash", f"its process died (exit code {code})")}
    if not self.ready:
      self.ready = True
      return {}
    number = self.number
    self.number = -1
    self.deadline = float("inf")
    return {number: result}

  def overdue(self) -> bool:
    """Whether its task has had its time. The deadline moves by what it waited for a core."""
    if time.monotonic() < self.deadline:
      return False
    queued = _queued(self.process.pid)
    self.deadline += queued - self.queued
    self.queued = queued
    return time.monotonic() >= self.deadline

  def expire(self) -> dict[int, Any]:
    self.kill()
    return {self.number: Failure("TimeLimit", f"took more than {self.limit_s:g} s")}

  def kill(self) -> None:
    if self.process is not None:
      self.process.kill()
      self.process.join()
      self.pipe.close()
      self.process = None


def _collect(children: list[_Child]) -> dict[int, Any]:
  """Waits until a child sends a message or its deadline has come; {} where that has moved."""
  pause = min(child.deadline for child in children) - time.monotonic()
  spoke = wait([child.pipe for child in children], None if pause == float("inf") else max(pause, 0))
  results: dict[int, Any] = {}
  for child in children:
    if child.pipe in spoke:
      results.update(child.take())
    elif child.overdue():
      results.update(child.expire())
  return results


def _queued(process: int) -> float:
  """Seconds that a process could run and had no core, by the thread that waited longest; 0 where
  the system does not say."""
  longest = 0
  for path in glob.glob(f"/proc/{process}/task/*/schedstat"):
    with contextlib.suppress(OSError), open(path) as file:  # a thread may just have ended
      longest = max(longest, int(file.read().split()[1]))  # ns on a core, ns waiting for one, turns
  return longest / 1e9


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
  _limit_memory()
  pipe.send("ready")
  while True:
    task = pipe.recv()
    try:
      result = work(task)
    except UserError as fault:
      result = Failure(type(fault).__name__, str(fault))
    except MemoryError:
      result = Failure("MemoryLimit", f"took more than {MEMORY / 2**30:g} GiB of memory")
    pipe.send(result)


def _limit_memory() -> None:
  """Bounds what the process may take: one record must not end the others by the kernel's choice."""
  try:
    with open("/proc/self/statm") as file:
      data = int(file.read().split()[5]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data + MEMORY
    resource.setrlimit(
      resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )
  except OSError:
    pass  # not Linux: there is no such limit

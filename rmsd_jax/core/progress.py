"""How far a long loop is, and what memory it holds."""

import math
import resource
import sys
import time
from typing import Self, TextIO

import psutil
from tqdm import tqdm

_GB = 2**30


class Progress:
  """Progress of a long loop on stderr: count, rate, time left.

  A bar on a terminal; elsewhere (a log file) a plain line at most every `interval` seconds and one
  at the end. The rate is that of the time since the line before; `without` takes out what will not
  come again.

  Args:
    total: units of the whole job.
    label: what the loop does, e.g. "stage 1".
    start: units done before this process started (a resumed run).
    write: False on every process but the first, which makes this object do nothing.
    interval: least seconds between two plain lines.
    stream: where to write; stderr if None.
  """

  def __init__(
    self,
    total: int,
    label: str,
    start: int = 0,
    write: bool = True,
    interval: float = 30.0,
    stream: TextIO | None = None,
  ):
    self._stream = sys.stderr if stream is None else stream
    self._total = total
    self._label = label
    self._interval = interval
    self._count = self._reported = start
    self._time = time.monotonic()
    self._note = ""
    self._write = write
    self._bar = None
    if write and self._stream.isatty():
      self._bar = tqdm(
        total=total, desc=label, initial=start, file=self._stream, dynamic_ncols=True
      )

  def update(self, n: int = 1, note: str = "") -> None:
    """Counts `n` more units done; `note` is shown beside the count, e.g. "loss 1.23"."""
    self._count += n
    self._note = note
    if self._bar is not None:
      self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(n)
    elif time.monotonic() - self._time >= self._interval:
      self._line()

  def without(self, seconds: float) -> None:
    """Forgets some of the time since the line before, such as that of compiling: no forecast."""
    self._time += seconds
    if self._bar is not None:
      self._bar.start_t += seconds
      self._bar.last_print_t += seconds

  def say(self, line: str) -> None:
    """Prints a line of its own, above the bar where there is one."""
    if self._bar is not None:
      self._bar.write(line, file=self._stream)
    elif self._write:
      print(line, file=self._stream, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
    elif self._count != self._reported:
      self._line()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def _line(self) -> None:
    now = time.monotonic()
    rate = (self._count - self._reported) / max(now - self._time, 1e-9)
    left = (self._total - self._count) / rate if rate > 0 else math.inf
    self._reported = self._count
    self._time = now
    if not self._write:
      return
    parts = [f"{self._label}: {self._count}/{self._total}", f"{rate:.3g}/s"]
    if self._count < self._total:
      parts.append(f"{duration(left)} left")
    parts += [self._note] if self._note else []
    print(", ".join(parts), file=self._stream, flush=True)


def duration(seconds: float) -> str:
  """Seconds in words: 42s, 3m10s, 2h05m, or ? where they are not known."""
  if not math.isfinite(seconds):
    return "?"
  minutes, rest = divmod(round(seconds), 60)
  if minutes == 0:
    return f"{rest}s"
  hours, minutes = divmod(minutes, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def rss_gb() -> float:
  """Resident memory in GiB: the peak of this process plus what its live children hold now.

  Children that have ended count with the largest of them, where that is more.
  """
  unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux, bytes on macOS
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
  live = 0
  for child in psutil.Process().children(recursive=True):
    try:
      live += child.memory_info().rss
    except psutil.NoSuchProcess:
      continue  # it ended between being listed and being asked for its memory
  return (own + max(ended, live)) / _GB

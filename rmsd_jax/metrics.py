"""What a run tells the outside: scalars (JSON Lines and TensorBoard), progress, memory in use.

A run is resumed often, so lines written after the restored step are dropped first: the steps in
`metrics.jsonl` never run backwards.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from typing import Self, TextIO

import jax
import psutil
from etils import epath
from tqdm import tqdm

FILE = "metrics.jsonl"
_RESERVED = ("step", "time")
_GB = 2**30


class Writer:
  """Appends scalars to `workdir/metrics.jsonl` and to TensorBoard events under `workdir/tb`.

  Args:
    workdir: folder of the run; made if missing. In a bucket (gs://..), where nothing can be
      appended, the file is written anew each time, and there are no TensorBoard events.
    resume_step: the step the run goes on from; lines of later steps are dropped before the first
      write, so a restarted run does not report a step twice.
    write: False on every process but the first, which makes this object do nothing.
  """

  def __init__(self, workdir: str, resume_step: int = 0, write: bool = True):
    self._file, self._board = None, None
    if not write:
      return
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    path = epath.Path(workdir) / FILE
    kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= resume_step]
    if in_bucket(workdir):
      self._file = _Rewritten(path, kept)
      return
    replace_text(path, "".join(kept))
    self._file = open(path, "a", encoding="utf-8")
    from tensorboardX import SummaryWriter  # here: it imports torch where that is installed

    self._board = SummaryWriter(os.path.join(workdir, "tb"), purge_step=resume_step + 1)

  def write(self, step: int, values: Mapping[str, jax.typing.ArrayLike]) -> None:
    """Writes scalars of one step; the line is on disk when this returns.

    Waits for device values. A value that is not finite stays visible: JSON has no such number, so
    it is written as the string "nan", "inf" or "-inf" (`read` turns it back).
    """
    if self._file is None:
      return
    clash = [name for name in _RESERVED if name in values]
    if clash:
      raise ValueError(f"a metric may not be called {clash[0]!r}: the line has that key already")
    numbers = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
    line = {"step": int(step), "time": round(time.time(), 3)}
    line |= {name: v if math.isfinite(v) else str(v) for name, v in numbers.items()}
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()
    if self._board is not None:
      for name, number in numbers.items():
        self._board.add_scalar(name, number, step)

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._file = None
    if self._board is not None:
      self._board.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()


class _Rewritten:
  """A text file that cannot be appended to: `flush` writes all of it."""

  def __init__(self, path: epath.Path, lines: list[str]):
    self._path, self._lines = path, lines

  def write(self, line: str) -> None:
    self._lines.append(line)

  def flush(self) -> None:
    replace_text(self._path, "".join(self._lines))

  def close(self) -> None:
    self.flush()


def read(workdir: str) -> list[dict[str, float]]:
  """All lines of a run's metrics, in order; a last line torn by a kill is left out."""
  lines = [json.loads(line) for line in _complete_lines(epath.Path(workdir) / FILE)]
  return [
    {key: float(value) if isinstance(value, str) else value for key, value in line.items()}
    for line in lines
  ]


class Progress:
  """Progress of a long loop on stderr: count, rate, time left.

  A bar on a terminal; elsewhere (a log file) a plain line at most every `interval` seconds and one
  at the end. The rate is that of the time since the line before, so a slow first step (compilation)
  does not spoil the forecast for long.

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
    self._total, self._label, self._interval = total, label, interval
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
    self._reported, self._time = self._count, now
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
      continue  # it ended between the listing and the question
  return (own + max(ended, live)) / _GB


def in_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is an address such as gs://bucket/runs/1, not one of a local disk."""
  return "://" in str(path)


def replace_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file in one step: a reader finds the old text or the new, never a part.

  The path may lie in a bucket (gs://..), where every write is one step. Its folder is made if
  missing.
  """
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  if in_bucket(path):
    target.write_text(text)
    return
  draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
  draft.write_text(text)
  draft.replace(target)


def _complete_lines(path: epath.Path) -> list[str]:
  """Lines that end in a newline; a process killed while writing leaves a torn one at the end."""
  if not path.exists():
    return []
  return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

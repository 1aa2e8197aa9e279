"""The log of a run: scalars, as JSON Lines and as TensorBoard events.

A run is resumed often, so lines written after the restored step are dropped first: the steps in
`metrics.jsonl` never run backwards.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
from etils import epath

from rmsd_jax.core.files import complete_lines, in_bucket, replace_text
from rmsd_jax.training import old_runs, stored, trackers

FILE = "metrics.jsonl"
_RESERVED = ("step", "time")
# Metrics of parts of a step, e.g. of one task: NaN where the step has no such part.
MAY_BE_EMPTY = (
  "discriminator/accuracy/",
  "discriminator/auc",
  "pairs/",
  "probe/",
  "reward/discriminator/variance_share/",
  "rollout/quality",
)
FLUSH_SECONDS = 30  # between two flushes of TensorBoard's events


class Writer:
  """Appends scalars to `workdir/metrics.jsonl` and to TensorBoard events under `workdir/tb`.

  Args:
    workdir: folder of the run; made if missing. In a bucket (gs://..), where nothing can be
      appended, the file is written anew each time, and there are no TensorBoard events.
    resume_step: the step the run goes on from; lines of later steps are dropped before the first
      write, so a restarted run does not report a step twice.
    write: False on every process but the first, which makes this object do nothing.
    tracker: gets the same scalars, see `trackers`; closed with this.
  """

  def __init__(
    self,
    workdir: str,
    resume_step: int = 0,
    write: bool = True,
    tracker: trackers.Tracker | None = None,
  ):
    self._file = None
    self._board = None
    self._tracker = tracker
    if not write:
      return
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    path = epath.Path(workdir) / FILE
    # Steps behind the restored one will be done again.
    kept = [text for text, line in _lines(path) if line["step"] <= resume_step]
    if in_bucket(workdir):
      self._file = _Rewritten(path, kept)
      return
    replace_text(path, "".join(kept))
    self._file = open(path, "a", encoding="utf-8")
    self._board = _Board(os.path.join(workdir, "tb"), resume_step + 1)

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
    # One transfer for all values of the step.
    numbers = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
    line = {"step": int(step), "time": round(time.time(), 3)}
    line |= {name: v if math.isfinite(v) else str(v) for name, v in numbers.items()}
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()
    if self._board is not None:
      self._board.write(step, numbers)
    if self._tracker is not None:
      self._tracker.write(step, numbers)

  def text(self, step: int, name: str, text: str) -> None:
    """Writes Markdown for TensorBoard's text page."""
    if self._board is not None:
      self._board.text(step, name, text)

  def close(self) -> None:
    with contextlib.ExitStack() as stack:
      for one in (self._file, self._board, self._tracker):
        if one is not None:
          stack.callback(one.close)
      self._tracker = None
      self._file = None
      self._board = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
  """A package that others import where they find it, but need not, is not found: torch takes 6 s of
  a run's start, for nothing."""
  hidden = {} if name in sys.modules else {name: None}
  sys.modules.update(hidden)
  try:
    yield
  finally:
    for each in hidden:
      del sys.modules[each]


class _Board:
  """TensorBoard's events, written at once: the SummaryWriter of tensorboardX has a thread for it,
  which a full disk ends, and then blocks for ever.

  Args:
    purge_step: events of this step and later ones, of runs before, are hidden.
  """

  def __init__(self, folder: str, purge_step: int):
    with _without("torch"):
      from tensorboardX import event_file_writer, summary
      from tensorboardX.proto import event_pb2

    os.makedirs(folder, exist_ok=True)
    self._summary = summary
    self._events = event_pb2
    self._writer = event_file_writer.EventsWriter(os.path.join(folder, "events"))
    started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._writer.write_event(event_pb2.Event(step=purge_step, session_log=started))
    self._flushed = time.monotonic()

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    self._add(step, [self._summary.scalar(name, x).value[0] for name, x in numbers.items()])

  def text(self, step: int, name: str, text: str) -> None:
    self._add(step, list(self._summary.text(name, text).value))

  def _add(self, step: int, values: list) -> None:
    event = self._events.Event(wall_time=time.time(), step=step)
    event.summary.value.extend(values)
    self._writer.write_event(event)
    if time.monotonic() - self._flushed > FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._writer.close()


class _Rewritten:
  """A text file that cannot be appended to: `flush` writes all of it."""

  def __init__(self, path: epath.Path, lines: list[str]):
    self._path = path
    self._lines = lines

  def write(self, line: str) -> None:
    self._lines.append(line)

  def flush(self) -> None:
    replace_text(self._path, "".join(self._lines))

  def close(self) -> None:
    self.flush()


def _lines(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
  """The lines of a log, as they stand and as they read; one that cannot be read is left out, and
  the console says so. The end that a kill tore off is no line."""
  found, damaged = [], []
  for number, text in enumerate(complete_lines(path), 1):
    try:
      line = json.loads(text)
    except ValueError:
      line = None
    if isinstance(line, dict) and isinstance(line.get("step"), int):
      found.append((text, line))
    else:
      damaged.append(str(number))
  if damaged:
    print(
      f"{path}: line {', '.join(damaged[:5])} of the metrics cannot be read and is left out "
      f"({len(damaged)} in all); {stored.newest_words(str(path.parent))}",
      file=sys.stderr,
    )
  return found


def read(workdir: str) -> list[dict[str, float]]:
  """All lines of a run's metrics, in order; torn and damaged ones are left out."""
  lines = [line for _, line in _lines(epath.Path(workdir) / FILE)]
  return [
    {
      old_runs.metric_now(key): float(value) if isinstance(value, str) else value
      for key, value in line.items()
    }
    for line in lines
  ]

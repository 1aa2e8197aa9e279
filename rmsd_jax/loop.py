"""What both trainers do around a step: resume, log, save, show progress.

with Loop(workdir, "stage 1", ...) as loop:
  state = loop.start(abstract, make_state)
  for step, batch in batches(pool, config.data, start_step=loop.begin, ...):
    state, metrics = ...
    loop.after(step, state, metrics)
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import jax

from rmsd_jax.checkpoint import Checkpoints
from rmsd_jax.data import loader
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.pool import Pool
from rmsd_jax.metrics import Progress, Writer
from rmsd_jax.state import State


def batches(pool: Pool, data, **options) -> Iterator[tuple[int, Batch]]:
  """`loader.make` of this process's share, from the `data` section of a config."""
  loaded = loader.make(
    pool,
    k=data.responses,
    tasks=data.tasks,
    limit=data.limit,
    num_workers=data.workers,
    prefetch=data.prefetch,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **options,
  )
  return ((step, blinded(batch) if data.blind else batch) for step, batch in loaded)


def blinded(batch: Batch) -> Batch:
  """The same prompts with every frame mid-grey."""
  return dataclasses.replace(batch, groups=batch.groups.without_media())


class Loop:
  """The running gear of one training run; a context manager.

  Args:
    workdir: folder of the run; a folder with checkpoints is resumed.
    label: for the progress bar.
    steps: updates in all.
    log_every, save_every: steps; the last step is always logged and saved.
    keep: checkpoints kept.

  Attributes:
    begin: the step to go on from; 0 for a new run.
  """

  def __init__(
    self, workdir: str, label: str, steps: int, log_every: int, save_every: int, keep: int
  ):
    self._steps, self._log_every, self._save_every = steps, log_every, save_every
    first = jax.process_index() == 0
    self._checkpoints = Checkpoints(workdir, keep)
    self.begin = self._checkpoints.latest() or 0
    self._writer = Writer(workdir, self.begin, first)
    self._progress = Progress(steps, label, self.begin, first)
    self._logged, self._clock = self.begin, time.monotonic()

  def start(self, saved: State, make: Callable[[], State]) -> State:
    """The state to begin with: the last checkpoint's, or a new one.

    Args:
      saved: abstract state with shardings; the checkpoint is read straight into it.
      make: makes the state of step 0.
    """
    state = self._checkpoints.restore(saved) if self.begin else make()
    self._clock = time.monotonic()
    return state

  def after(self, step: int, state: State, metrics: Mapping, prompts: int, note: str) -> None:
    """Counts one step; logs and saves when it is time.

    Args:
      step: the step just done, from 0.
      metrics: scalars; device values are waited for only when they are logged.
      prompts: of one step, for the rate.
      note: name of the metric that the progress bar shows.
    """
    done = step + 1
    if done % self._log_every == 0 or done == self._steps:
      metrics = jax.device_get(dict(metrics))
      now = time.monotonic()
      seconds, self._clock = (now - self._clock) / (done - self._logged), now
      rates = {"seconds_per_step": seconds, "prompts_per_second": prompts / seconds}
      self._writer.write(done, metrics | rates)
      self._progress.update(done - self._logged, note=f"{note} {float(metrics[note]):.3f}")
      self._logged = done
    if done % self._save_every == 0 or done == self._steps:
      self._checkpoints.save(done, state)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self._progress.close()
    self._writer.close()
    self._checkpoints.close()

"""A trace of a few training steps, for TensorBoard's profile plugin."""

import os
import re

import jax

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import in_bucket


class Profiler:
  """Traces some steps of a run with jax.profiler, on every process its own devices.

  Args:
    steps: "FIRST:COUNT", FIRST from 0; "": nothing is traced.
    workdir: folder of the run; the trace goes to its tb/.

  Raises:
    UserError: `steps` has another form, or the folder is in a bucket.
  """

  def __init__(self, steps: str, workdir: str):
    self._folder = os.path.join(workdir, "tb")
    self._steps = range(0)
    self._traces = False
    if not steps:
      return
    match = re.fullmatch(r"(\d+):([1-9]\d*)", steps)
    if not match:
      raise UserError(f"profile={steps!r}: give FIRST:COUNT, such as 10:3 for steps 10, 11 and 12")
    if in_bucket(workdir):
      raise UserError(f"profile={steps}: {workdir} is a bucket; trace a run in a local folder")
    first, count = map(int, match.groups())
    self._steps = range(first, first + count)

  def before(self, step: int) -> None:
    """Starts the trace where a step is the first to be traced, also of a run that resumes there."""
    if step in self._steps and not self._traces:
      jax.profiler.start_trace(self._folder)
      self._traces = True

  def after(self, step: int, metrics: object) -> None:
    """Ends the trace behind the last step to be traced.

    Args:
      metrics: of the step; its devices are waited for, since a step returns before it is done.
    """
    if self._traces and step + 1 not in self._steps:
      jax.block_until_ready(metrics)
      self.close()

  def close(self) -> None:
    if self._traces:
      self._traces = False
      jax.profiler.stop_trace()

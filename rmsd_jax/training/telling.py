"""What a run says where it begins and where it ends."""

import jax
from jax.sharding import Mesh


def beginning(stage: int, mesh: Mesh, workdir: str, begin: int, steps: int) -> str:
  """Devices, mesh, folder, and whether it is new.

  Args:
    begin: the step to go on from; 0 for a new run.
    steps: of the whole run.
  """
  first = mesh.devices.flat[0]
  axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
  devices = f"{mesh.size} x {first.device_kind}"
  if jax.process_count() > 1:
    devices += f" of {jax.process_count()} processes"
  if begin >= steps:
    how = (
      f"is finished, step {begin} of {steps}; to go on, begin in another --workdir with "
      f"--config.init_from={workdir}"
    )
  elif begin:
    how = f"goes on from step {begin} of {steps}"
  else:
    how = f"begins, {steps} steps"
  return f"stage {stage} in {workdir} {how}; {devices}, mesh {axes}"


def ending(stage: int, workdir: str, done: int, steps: int, reason: str) -> str:
  """Where the results are, and what to run next.

  Args:
    done: steps.
    reason: why it ended before its last step; "": it did not.
  """
  ended = f"ended early at step {done} of {steps} ({reason})" if reason else f"done, {done} steps"
  return (
    f"stage {stage} {ended}: checkpoints and metrics.jsonl in {workdir}; next: python -m "
    f"rmsd_jax.evaluate --workdir={workdir} --config=.., then python -m rmsd_jax.report {workdir}"
  )

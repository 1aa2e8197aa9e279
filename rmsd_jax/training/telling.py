"""What a run says where it begins and where it ends."""

import jax
from jax.sharding import Mesh

from rmsd_jax.data import epochs
from rmsd_jax.data.store import Pool


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


def pool_line(pool: Pool, config, rules: str) -> str:
  """What there is to learn from. `rules`: the version of those that grade."""
  data = config.data
  sizes = " ".join(",".join(map(str, bucket)) for bucket in pool.buckets)
  line = f"pool: {epochs.chosen(pool, ()).sum():,} prompts, "
  if mixed := epochs.chats(config.batch, data.chat_share):
    there = len(epochs.conversations(pool))
    line += f"{mixed} of each {config.batch} from {there:,} plain conversations, "
  if pool.used_N is not None:
    line += f"{(~pool.used_N).sum():,} of other clips are held out, "
  line += f"buckets P,T,F,S {sizes}, "
  if pool.metadata["scorer"] != rules:
    line += f"scored by rules {pool.metadata['scorer']} (mended since: {rules}), "
  if (there := pool.metadata["k"]) <= data.responses:
    return f"{line}up to {there} responses each"
  if data.first_response:
    return f"{line}{data.responses} of up to {there} responses each, from {data.first_response} on"
  more = f"data.responses={there} takes all"
  return f"{line}the first {data.responses} of up to {there} responses each; {more}"

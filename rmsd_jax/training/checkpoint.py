"""Checkpoints of a run (Orbax).

A state is a dict of pytrees, e.g. {"student": .., "frozen": .., "student_optim": ..}, see
`rmsd_jax.training.state`. Each entry is an Orbax item of its own, so evaluation and export read
the student without touching the optimizer:

    WORKDIR/checkpoints/STEP/{student, frozen, student_optim, .., metrics}

Orbax writes a step under a temporary name, in a bucket under its own, and marks it committed at the
end, behind the list of digests of its files. What counts as a whole step, and what becomes of
others: `rmsd_jax.training.stored`.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from etils import epath, epy

from rmsd_jax.core import digests
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import in_bucket
from rmsd_jax.training import stored
from rmsd_jax.training.stored import METRICS, SCORE, find_step

with epy.lazy_imports():  # the programs of a step are built without it, see docs/code.md
  import orbax.checkpoint as ocp

PyTree = Any
State = dict[str, PyTree]

_OF_THE_DISK = re.compile(
  r"No space left|Read-only file system|Permission denied|Input/output error|quota|No such file|"
  r"NOT_FOUND|directory does not exist"
)
_WITHOUT_SCORE = "Requested `tracked_metric`"  # what Orbax warns of at each save without a score
# Orbax logs the faults of its threads with their traces, before it raises them.
_RAISED_LATER = lambda record: (
  not ((record.exc_info and "orbax" in record.pathname) or _WITHOUT_SCORE in str(record.msg))
)
_LISTED = 8  # problems named in one message; the rest are counted


class Checkpoints:
  """Saves the state of a run in the background and restores it straight onto the devices.

  Every process of the run makes one and calls every method alike.

  Args:
    workdir: folder of the run, shared by all processes.
    keep: how many of the latest steps to keep.
    best_metric: also keep the step with the largest value of this metric; with a minus before its
      name, such as "-loss", the smallest.
  """

  def __init__(self, workdir: str, keep: int = 3, best_metric: str | None = None):
    if keep < 1:
      raise UserError(f"{keep} checkpoints to keep; keep 1 or more")
    if best_metric and best_metric.endswith("loss") and not best_metric.startswith("-"):
      raise UserError(f"best_metric={best_metric} would keep the worst step; give -{best_metric}")
    logging.get_absl_logger().addFilter(_RAISED_LATER)
    self._folder = stored.folder_of(workdir)
    self._best_metric = best_metric
    self._saving = 0  # the step that is under way
    self._checked = set()  # steps whose contents were read and agree with their digests
    with self._writing():
      self._say(stored.by_first(lambda: stored.tidy(self._folder)))
    rules = ocp.checkpoint_managers.preservation_policy
    # A step stays if any policy wants it, so the best one outlives the latest ones.
    policies = [rules.LatestN(keep)]
    if best_metric is not None:
      best = rules.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
      policies.append(best)
    options = ocp.CheckpointManagerOptions(
      best_fn=_score if best_metric else None,  # with one, Orbax warns of each save without a score
      preservation_policy=rules.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
      # On the first process, beside the next steps, when all have written and before the mark.
      async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
    )
    with self._writing():
      self._manager = ocp.CheckpointManager(self._folder, options=options)
      self._held = _hold(self._folder)

  def save(self, step: int, state: State, metrics: Mapping[str, float] | None = None) -> None:
    """Starts saving `state` as `step`; returns once the arrays are copied off the devices.

    The caller may donate or change the arrays afterwards. A fault of the write appears at the next
    `save`, `wait` or `close`. Saving a step again is a no-op.

    Args:
      step: training steps done.
      state: dict of pytrees; arrays may be sharded in any way.
      metrics: numbers of this step; only `best_metric` is read from them.
    """
    latest = self.latest()
    if latest == step:
      return
    if latest is not None and step < latest:
      raise UserError(
        f"{self._folder}: step {step} would be saved although step {latest} is there; go on from "
        "the latest step or use a new workdir"
      )
    if METRICS in state:
      raise ValueError(f"a state may have no entry called {METRICS!r}")
    if self._lost():
      raise self._gone(step)
    # An entry without arrays, such as "frozen" where all weights learn, is not written.
    items = {name: ocp.args.StandardSave(_boxed(state[name])) for name in _full(state)}
    self.wait()  # so that `_seal` of the save before has seen its number
    self._saving = step
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(**items),
        metrics=self._scored(metrics),
        force=True,
        custom_metadata=stored.PROMISE,
      )

  def _seal(self) -> None:
    """Lists the digests of the step that is about to be committed."""
    if self._lost():
      raise FileNotFoundError(f"{self._folder} was removed or moved")
    step = self._folder / str(self._saving)
    drafts = [path for path in self._folder.glob(f"{step.name}.*") if path.is_dir()]
    digests.write_list(step if in_bucket(step) else drafts[0], stored.WRITTEN_LAST)

  def preempted(self, step: int) -> bool:
    """Whether all processes are to save at this step and end, since one got SIGTERM.

    Asked after every step: the processes agree on a step that none has passed. Always False where
    there is one process; its own handler must see the signal.
    """
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Returns when the last save is committed."""
    with self._writing():
      self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Whole steps on disk, oldest first; a save that is still under way is not among them."""
    return stored.whole_steps(self._folder)

  def latest(self) -> int | None:
    """The last step given to `save` or found on disk, or None."""
    return self._manager.latest_step()

  def latest_whole(self) -> int | None:
    """The step to go on from: the latest whose contents agree with their digests, or None.

    Later ones are put away, see `stored`, and the console says so.

    Raises:
      UserError: there are steps, and none is whole.
    """
    while (step := self.latest()) is not None:
      fault = stored.damage(self._folder, step)
      if not fault:
        self._checked.add(step)
        return step
      older = [number for number in self.steps() if number < step]
      if not older:
        raise UserError(
          f"checkpoint {step} of {self._folder} is damaged: {fault}; no other step is whole: copy "
          "the run's folder again, or use a new workdir"
        )
      away = lambda step=step, fault=fault, newest=older[-1]: [
        stored.put_away(self._folder, step, fault, newest)
      ]
      with self._writing():
        self._say(stored.by_first(away))
      self._manager.reload()
    return None

  def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
    """Leaf -> shape of one entry of the latest step; {} where the step has no such entry."""
    path = self._folder / str(stored.pick(self._folder, None)) / name
    if not path.exists():
      return {}
    leaves = ocp.tree.to_flat_dict(ocp.PyTreeCheckpointHandler().metadata(path).tree, sep="/")
    return {leaf: tuple(metadata.shape) for leaf, metadata in leaves.items()}

  def restore(self, abstract_state: State, step: int | None = None) -> State:
    """Reads the entries of `abstract_state` as they lie on disk at `step` (the latest if None).

    Args:
      abstract_state: dict of pytrees of jax.ShapeDtypeStruct, each with the sharding its array is
        to have. The mesh may differ from that of the save, and so may the dtype. Entries left out
        of the dict are not read.

    Raises:
      UserError: no such step, no such entry, other names or shapes than on disk, or damage.
    """
    # A save that is still under way is not on disk yet.
    self.wait()
    step = stored.pick(self._folder, step)
    if step not in self._checked:
      _check_contents(self._folder, step, _full(abstract_state))
    return {
      name: _restore(self._folder / str(step), name, abstract)
      for name, abstract in abstract_state.items()
    }

  def close(self) -> None:
    """Waits for the last save, then lets go of the background threads."""
    try:
      with self._writing():
        self._manager.close()
    finally:
      if self._held is not None:
        os.close(self._held)
        self._held = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def _scored(self, metrics: Mapping[str, float] | None) -> dict[str, float] | None:
    """The number "best" compares; a step without one, or one that is not finite, cannot win."""
    if self._best_metric is None or metrics is None:
      return None
    name = self._best_metric.removeprefix("-")
    if name not in metrics:
      if jax.process_index() == 0:
        print(
          f"this step cannot become the best: it has no {name!r}, only {', '.join(sorted(metrics))}"
        )
      return None
    score = float(metrics[name]) * (-1 if self._best_metric.startswith("-") else 1)
    return {SCORE: score} if math.isfinite(score) else None

  def _lost(self) -> bool:
    """Whether the run's folder was removed or moved. Another may have its name by then: Orbax makes
    one where there is none, and would go on without the rest of the run."""
    if self._held is None:
      return False
    try:
      return not os.path.samestat(os.fstat(self._held), os.stat(self._folder))
    except OSError:  # none there, or of a file server that no longer knows the one held
      return True

  def _gone(self, step: int) -> UserError:
    return UserError(
      f"{self._folder} is gone: the run's folder was removed or moved, and step {step} is not "
      "saved; put the folder back, and the same command goes on from its last whole step"
    )

  def _say(self, lines: list[str]) -> None:
    if jax.process_index() == 0:
      print("\n".join(lines), end="\n" if lines else "")

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Faults of the disk, as they come out of Orbax and TensorStore, in one line."""
    try:
      yield
    except (OSError, ValueError) as error:
      # What a save finds first in a folder that was moved under it differs from time to time, and
      # it may have made parts of the folder anew.
      if self._saving and self._lost():
        raise self._gone(self._saving) from error
      if not isinstance(error, OSError) and not _OF_THE_DISK.search(str(error)):
        raise
      raise UserError(
        f"checkpoints cannot be written to {self._folder}: {_last_line(error)}; "
        "make room or mend the folder; the same command goes on from the last whole step"
      ) from error


def restore_item(
  workdir: str, name: str, abstract: PyTree, step: str | int | None = None
) -> PyTree:
  """Reads one entry of a saved state, e.g. "student", and nothing else; see `Checkpoints.restore`.

  Only reads, so it may run beside the training that writes into `workdir`. `step` is anything
  `find_step` takes; the latest if None.
  """
  number = find_step(workdir, "latest" if step is None else step)
  folder = stored.folder_of(workdir)
  if items := _full({name: abstract}):
    _check_contents(folder, number, items)
  return _restore(folder / str(number), name, abstract)


def _hold(folder: epath.Path) -> int | None:
  """A descriptor of the folder, which no other folder can be taken for while it is open. None of a
  bucket, which has no folders to lose, and on a host that does not see yet what the first process
  made."""
  with contextlib.suppress(FileNotFoundError):
    return None if in_bucket(folder) else os.open(folder, os.O_RDONLY)
  return None


def _last_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _score(metrics: Mapping[str, float]) -> float:
  return metrics[SCORE]


def _full(state: State) -> list[str]:
  """Names of the entries that hold arrays."""
  return [name for name, tree in state.items() if jax.tree.leaves(tree)]


def _boxed(tree: PyTree) -> PyTree:
  """An Orbax item is a container: a bare array or number is put into one."""
  return {"value": tree} if jax.tree_util.all_leaves([tree]) else tree


def _check_contents(folder: epath.Path, step: int, items: Sequence[str]) -> None:
  """Refuses entries that differ from their digests; see `stored.damage`."""
  if fault := stored.damage(folder, step, items):
    others = [number for number in stored.whole_steps(folder) if number != step]
    whole = [number for number in others if not stored.damage(folder, number)]
    newest = f"the newest whole step is {whole[-1]}" if whole else "no other step is whole"
    raise UserError(f"checkpoint {step} of {folder} is damaged: {fault}; {newest}")


def _restore(step_folder: epath.Path, name: str, abstract: PyTree) -> PyTree:
  if not jax.tree.leaves(abstract):
    return abstract  # see `Checkpoints.save`
  if name not in stored.items_of(step_folder) or name == METRICS:
    there = [item for item in stored.items_of(step_folder) if item != METRICS]
    raise UserError(f"{step_folder} has no entry {name!r}; it holds {', '.join(there)}")
  boxed = _boxed(abstract)
  path = step_folder / name
  _check_sharded(boxed)
  try:
    _check(path, boxed)
    # Not by a manager: making one removes temporary folders, also of a run that is saving just now.
    with ocp.StandardCheckpointer() as checkpointer:
      restored = checkpointer.restore(path, boxed)
  except (OSError, ValueError) as error:  # of a step without digests: what Orbax stumbled over
    raise UserError(
      f"{path} cannot be read, it is damaged: {_last_line(error)}; give another step, or move "
      f"{step_folder.name} out of {step_folder.parent} to go on from an earlier one"
    ) from error
  return restored if boxed is abstract else restored["value"]


def _check_sharded(abstract: PyTree) -> None:
  wanted = ocp.tree.to_flat_dict(abstract, sep="/")
  bare = [
    name
    for name, leaf in wanted.items()
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None
  ]
  if bare:
    raise ValueError(f"{bare[0]} of the abstract state has no sharding; Orbax would guess one")


def _check(path: epath.Path, abstract: PyTree) -> None:
  """Compares names and shapes with those on disk and reports every difference at once."""
  # From the metadata: no array is read before all of them are known to fit.
  there = ocp.tree.to_flat_dict(ocp.PyTreeCheckpointHandler().metadata(path).tree, sep="/")
  wanted = ocp.tree.to_flat_dict(abstract, sep="/")
  problems = [f"{name} is missing" for name in wanted.keys() - there.keys()]
  problems += [f"{name} is not expected" for name in there.keys() - wanted.keys()]
  for name in wanted.keys() & there.keys():
    shape = tuple(there[name].shape)
    here = _stored_shape(wanted[name])
    if shape != here:
      problems.append(f"{name} has shape {shape}, expected {here}")
  if problems:
    more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise UserError(
      f"{path} does not fit this model: {'; '.join(sorted(problems)[:_LISTED])}{more}; "
      "use the config the checkpoint was made with"
    )


def _stored_shape(leaf: Any) -> tuple[int, ...]:
  """Shape on disk: a typed random key is stored as its integers."""
  if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.eval_shape(jax.random.key_data, leaf).shape
  return np.shape(leaf)

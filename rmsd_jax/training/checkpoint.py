"""Checkpoints of a run (Orbax) and the guard that keeps one config per work folder.

A state is a dict of pytrees, e.g. {"student": .., "frozen": .., "student_optim": ..}, see
`rmsd_jax.training.state`. Each entry is an Orbax item of its own, so evaluation and export read
the student without touching the optimizer:

    WORKDIR/checkpoints/STEP/{student, frozen, student_optim, .., metrics}

Orbax writes a step under a temporary name, in a bucket under its own, and marks it committed at the
end. A step counts only when it and all its items carry that mark, so a save cut short by a kill is
never read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from etils import epath, epy
from ml_collections import ConfigDict

from rmsd_jax.core import sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import in_bucket, replace_text
from rmsd_jax.training import old_runs

with epy.lazy_imports():  # the programs of a step are built without it, see docs/code.md
  import orbax.checkpoint as ocp

PyTree = Any
State = dict[str, PyTree]

FOLDER = "checkpoints"
CONFIG_FILE = "config.json"
_COMMITTED = "commit_success.txt"
_METRICS = "metrics"
_SCORE = "score"
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
    self._folder = _folder(workdir)
    self._best_metric = best_metric
    # Before Orbax looks: it would take such a folder for a step that is there.
    if broken := _broken(self._folder):
      raise UserError(
        f"{self._folder / str(broken[0])} is not a complete checkpoint (copied in part?); "
        "remove that folder"
      )
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
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options)

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
    if _METRICS in state:
      raise ValueError(f"a state may have no entry called {_METRICS!r}")
    items = {name: ocp.args.StandardSave(_boxed(tree)) for name, tree in state.items()}
    self._manager.save(
      step, args=ocp.args.Composite(**items), metrics=self._scored(metrics), force=True
    )

  def preempted(self, step: int) -> bool:
    """Whether all processes are to save at this step and end, since one got SIGTERM.

    Asked after every step: the processes agree on a step that none has passed. Always False where
    there is one process; its own handler must see the signal.
    """
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Returns when the last save is committed."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Steps on disk, oldest first; a save that is still under way is not among them."""
    return _committed(self._folder)

  def latest(self) -> int | None:
    """The last step given to `save` or found on disk, or None."""
    return self._manager.latest_step()

  def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
    """Leaf -> shape of one entry of the latest step; {} where the step has no such entry."""
    path = self._folder / str(_pick(self._folder, None)) / name
    if not path.exists():
      return {}
    stored = ocp.tree.to_flat_dict(ocp.PyTreeCheckpointHandler().metadata(path).tree, sep="/")
    return {leaf: tuple(metadata.shape) for leaf, metadata in stored.items()}

  def restore(self, abstract_state: State, step: int | None = None) -> State:
    """Reads the entries of `abstract_state` as they lie on disk at `step` (the latest if None).

    Args:
      abstract_state: dict of pytrees of jax.ShapeDtypeStruct, each with the sharding its array is
        to have. The mesh may differ from that of the save, and so may the dtype. Entries left out
        of the dict are not read.

    Raises:
      UserError: no such step, no such entry, or other names or shapes than on disk.
    """
    # A save that is still under way is not on disk yet.
    self.wait()
    step = _pick(self._folder, step)
    return {
      name: _restore(self._folder / str(step), name, abstract)
      for name, abstract in abstract_state.items()
    }

  def close(self) -> None:
    """Waits for the last save, then lets go of the background threads."""
    self._manager.close()

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
    return {_SCORE: score} if math.isfinite(score) else None


def find_step(workdir: str, which: str | int = "latest") -> int:
  """The step meant by "latest", "best" (by the metric it was saved with) or a number.

  Raises:
    UserError: no such step; the message lists those there are.
  """
  folder = _folder(workdir)
  if which == "latest":
    return _pick(folder, None)
  if which == "best":
    scores = {step: _read_score(folder / str(step)) for step in _committed(folder)}
    known = {step: score for step, score in scores.items() if score is not None}
    if not known:
      raise UserError(f"{folder}: no checkpoint has a score; {_present(folder)}, name one of them")
    return max(known, key=lambda step: (known[step], step))  # of equal ones the latest
  if not str(which).isdecimal():
    raise UserError(f"checkpoint {which!r} is neither a step number nor 'best' nor 'latest'")
  return _pick(folder, int(which))


def restore_item(
  workdir: str, name: str, abstract: PyTree, step: str | int | None = None
) -> PyTree:
  """Reads one entry of a saved state, e.g. "student", and nothing else; see `Checkpoints.restore`.

  Only reads, so it may run beside the training that writes into `workdir`. `step` is anything
  `find_step` takes; the latest if None.
  """
  number = find_step(workdir, "latest" if step is None else step)
  return _restore(_folder(workdir) / str(number), name, abstract)


def guard_config(
  workdir: str,
  config: ConfigDict | Mapping[str, Any],
  operational: Sequence[str] = (),
  write: bool = True,
  begun: bool = True,
  file: str = CONFIG_FILE,
) -> None:
  """Refuses to go on in a work folder that belongs to another config.

  The first run writes the resolved config to `workdir/config.json`; a later one must agree with it,
  but for keys that do not change what is computed; a key of `old_runs.ADDED_KEYS` that it
  lacks has the value given there. The file always holds the config of the last
  start.

  Args:
    workdir: folder of the run; made if missing.
    config: nested values that JSON can hold.
    operational: dotted prefixes of keys that may differ, e.g. ("log", "mesh.data").
    write: False on every process but the first.
    begun: False where the run has no checkpoint yet; then any config may begin it.
    file: the name of the file, for other things that a run belongs to, such as its pool.

  Raises:
    UserError: names every key that differs, old -> new.
  """
  if isinstance(config, ConfigDict):
    config = config.to_dict()
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  path = epath.Path(workdir) / file
  # A first start that failed has computed nothing, and does not bind its folder to its config.
  if begun and path.exists():
    # Both as JSON gives them back: a tuple here is a list there.
    old = _flat(old_runs.config_now(json.loads(path.read_text())))
    new = _flat(json.loads(text))
    added = {key: value for key, value in old_runs.ADDED_KEYS.items() if key in new}
    if changes := _changes(added | old, new, operational):
      raise UserError(
        f"{path} belongs to another {path.stem}: {'; '.join(changes)}; "
        "undo the change or use a new workdir"
      )
  # Written anew at every start, since operational keys may have changed.
  if write:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


def check_alike(values: Mapping[str, Mapping[str, Any]], operational: Sequence[str]) -> None:
  """Refuses a run whose processes were started with different settings.

  Args:
    values: of this process, by what they are of; nested values that JSON can hold.
    operational: as in `guard_config`; the processes may differ in them.

  Raises:
    UserError: on every process; names what one has otherwise than process 0.
  """
  # Every process gets all values and finds the same fault, so that none is left waiting.
  first, *others = sharding.gathered([values])
  for process, other in enumerate(others, 1):
    for name in values:
      if changes := _changes(first[name], other[name], operational):
        raise UserError(
          f"process {process} has another {name} than process 0: {'; '.join(changes)}; start all "
          "processes with the same command and copies of the same pool"
        )


def read_config(workdir: str) -> dict[str, Any]:
  """The config that a work folder belongs to.

  Raises:
    UserError: the folder holds no run.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    raise UserError(f"{path} does not exist; give the work folder of a run")
  return old_runs.config_now(json.loads(path.read_text()))


def _folder(workdir: str) -> epath.Path:
  path = epath.Path(workdir)
  # `absolute` would put the current folder before the address of a bucket.
  return (path if in_bucket(path) else path.absolute()) / FOLDER


def _broken(folder: epath.Path) -> list[int]:
  """Steps that are named as finished and are not: copies in part.

  In a bucket that is what a kill during a save leaves, which Orbax removes.
  """
  if in_bucket(folder):
    return []
  return sorted(set(_numbered(folder)) - set(_committed(folder)))


def _numbered(folder: epath.Path) -> list[int]:
  """Step numbers of the folders that are named as a finished save is."""
  if not folder.exists():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _items(step_folder: epath.Path) -> list[str]:
  return sorted(path.name for path in step_folder.iterdir() if path.is_dir())


def _committed(folder: epath.Path) -> list[int]:
  """Steps whose save was finished, in order."""

  def complete(path: epath.Path) -> bool:
    parts = [path / name for name in _items(path) if name != _METRICS]
    return bool(parts) and all((part / _COMMITTED).exists() for part in [path, *parts])

  return [step for step in _numbered(folder) if complete(folder / str(step))]


def _present(folder: epath.Path) -> str:
  steps = _committed(folder)
  return f"present: steps {', '.join(map(str, steps))}" if steps else "no step is present"


def _pick(folder: epath.Path, step: int | None) -> int:
  """`step` or the latest, if it is there."""
  steps = _committed(folder)
  if step is None and steps:
    return steps[-1]
  if step in steps:
    return step
  wanted = "any step" if step is None else f"step {step}"
  raise UserError(f"{folder} does not hold {wanted}; {_present(folder)}")


def _score(metrics: Mapping[str, float]) -> float:
  return metrics[_SCORE]


def _read_score(step_folder: epath.Path) -> float | None:
  path = step_folder / _METRICS / _METRICS
  return float(json.loads(path.read_text())[_SCORE]) if path.exists() else None


def _boxed(tree: PyTree) -> PyTree:
  """An Orbax item is a container: a bare array or number is put into one."""
  return {"value": tree} if jax.tree_util.all_leaves([tree]) else tree


def _restore(step_folder: epath.Path, name: str, abstract: PyTree) -> PyTree:
  if name not in _items(step_folder) or name == _METRICS:
    there = [item for item in _items(step_folder) if item != _METRICS]
    raise UserError(f"{step_folder} has no entry {name!r}; it holds {', '.join(there)}")
  boxed = _boxed(abstract)
  path = step_folder / name
  _check(path, boxed)
  # Not by a manager: making one removes temporary folders, also of a run that is saving just now.
  with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(path, boxed)
  return restored if boxed is abstract else restored["value"]


def _check(path: epath.Path, abstract: PyTree) -> None:
  """Compares names and shapes with those on disk and reports every difference at once."""
  # From the metadata: no array is read before all of them are known to fit.
  stored = ocp.tree.to_flat_dict(ocp.PyTreeCheckpointHandler().metadata(path).tree, sep="/")
  wanted = ocp.tree.to_flat_dict(abstract, sep="/")
  bare = [
    name
    for name, leaf in wanted.items()
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None
  ]
  if bare:
    raise ValueError(f"{bare[0]} of the abstract state has no sharding; Orbax would guess one")
  problems = [f"{name} is missing" for name in wanted.keys() - stored.keys()]
  problems += [f"{name} is not expected" for name in stored.keys() - wanted.keys()]
  for name in wanted.keys() & stored.keys():
    there = tuple(stored[name].shape)
    here = _stored_shape(wanted[name])
    if there != here:
      problems.append(f"{name} has shape {there}, expected {here}")
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


def _changes(
  old: Mapping[str, Any], new: Mapping[str, Any], operational: Sequence[str]
) -> list[str]:
  """ "key old -> new" of every dotted key in which two configs differ, but for operational ones."""
  old = _flat(old)
  new = _flat(new)
  return [
    f"{key} {_shown(old, key)} -> {_shown(new, key)}"
    for key in sorted(old.keys() | new.keys())
    if _shown(old, key) != _shown(new, key) and not _covered(key, operational)
  ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
  return json.dumps(flat[key]) if key in flat else "(absent)"


def _covered(key: str, prefixes: Sequence[str]) -> bool:
  return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)

"""The guard that keeps one config, and one pool, per work folder."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from rmsd_jax.core import digests, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text
from rmsd_jax.training import old_runs, stored

CONFIG_FILE = "config.json"
_NAMED = 8  # keys that a message names; the rest are counted


def guard_config(
  workdir: str,
  config: ConfigDict | Mapping[str, Any],
  operational: Sequence[str] = (),
  write: bool = True,
  begun: bool = True,
  file: str = CONFIG_FILE,
) -> bool:
  """Refuses to go on in a work folder that belongs to another config.

  The first run writes the resolved config to `workdir/config.json`; a later one must agree with it,
  but for keys that do not change what is computed; a key of `old_runs.ADDED_KEYS` that it
  lacks has the value given there. The file always holds the config of the last
  start, but for keys of `old_runs.KEPT_KEYS` that it lacked.

  Args:
    workdir: folder of the run; made if missing.
    config: nested values that JSON can hold.
    operational: dotted prefixes of keys that may differ, e.g. ("log", "mesh.data").
    write: False on every process but the first.
    begun: False where the run has no checkpoint yet; then any config may begin it.
    file: the name of the file, for other things that a run belongs to, such as its pool.

  Returns:
    Whether it was compared with that of an earlier run.

  Raises:
    UserError: names every key that differs, old -> new.
  """
  if isinstance(config, ConfigDict):
    config = config.to_dict()
  path = epath.Path(workdir) / file
  if file == CONFIG_FILE and begun and path.exists():
    config = old_runs.without(config, old_runs.lacking(_read_json(path, workdir)))
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  # A first start that failed has computed nothing, and does not bind its folder to its config.
  if begun and not path.exists() and write:
    print(f"{path} is gone: the run goes on without being compared with it")
  if compared := begun and path.exists():
    # Both as JSON gives them back: a tuple here is a list there.
    old = _flat(old_runs.config_now(_read_json(path, workdir)))
    new = _flat(json.loads(text))
    added = {key: value for key, value in old_runs.ADDED_KEYS.items() if key in new}
    if changes := _changes(added | old, new, operational):
      further = (
        f", or go on from its student: another --workdir with --config.init_from={workdir}"
        if any(change.startswith("steps ") for change in changes)
        else ""
      )
      more = f"; and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
      raise UserError(
        f"{path} belongs to another {path.stem}: {'; '.join(changes[:_NAMED])}{more}; "
        f"undo the change or use a new workdir{further}"
      )
  # Written anew at every start, since operational keys may have changed.
  if write:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
  return compared


def part_of(pool: str) -> tuple[int, int]:
  """(i, n): this process is the i-th of n that see the very same files of a pool, so that each may
  read a part of them. Copies of a pool, on other hosts or here, are read each."""
  boot, path = epath.Path("/proc/sys/kernel/random/boot_id"), epath.Path(pool) / digests.FILE
  host = boot.read_text() if boot.exists() else socket.gethostname()
  try:
    status = os.stat(path)
    seen = [host, status.st_dev, status.st_ino]
  except OSError:  # in a bucket; or it is not there, which the reader says
    seen = [host, jax.process_index()]
  everyone = sharding.gathered([seen])
  same = [process for process, theirs in enumerate(everyone) if theirs == seen]
  return same.index(jax.process_index()), len(same)


def as_begun(workdir: str, config: ConfigDict, begun: bool) -> ConfigDict:
  """`config`, with what its run has always done where that was begun before a key of
  `old_runs.KEPT_KEYS` came.

  Args:
    begun: whether the run has a checkpoint.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  if not begun or not path.exists():
    return config
  kept = old_runs.lacking(_read_json(path, workdir))
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(kept)
  return config


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
  return old_runs.config_now(_read_json(path, workdir))


def _read_json(path: epath.Path, workdir: str) -> dict[str, Any]:
  """What a run's folder belongs to."""
  try:
    value = json.loads(path.read_text())
  except ValueError:  # of JSON or of its encoding
    value = None
  if not isinstance(value, dict):
    raise UserError(
      f"{path} is damaged or cut off: put a copy of it back, or remove it if what you start is "
      f"surely the same; {stored.newest_words(workdir)}"
    )
  return value


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

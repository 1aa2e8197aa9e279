"""Further places for the log of a run: Weights & Biases, or a writer of the user's own.

class Mine:                                          # my_writer.py
  def __init__(self, workdir, name, config): ...     # config: nested dicts, "commit" among them
  def write(self, step, values): ...                 # scalars by tag
  def close(self): ...

--config.writer=my_writer.py:Mine                    or --config.writer=wandb
"""

import hashlib
import importlib
import pathlib
import runpy
from collections.abc import Mapping
from typing import Any, Protocol

from rmsd_jax.core.checkout import commit
from rmsd_jax.core.errors import UserError

PROJECT = "rmsd_jax"


class Tracker(Protocol):
  """What a writer has to have."""

  def write(self, step: int, values: Mapping[str, float]) -> None: ...

  def close(self) -> None: ...


class _Wandb:
  """Weights & Biases; offline with WANDB_MODE=offline. One run a work folder, also when resumed."""

  def __init__(self, workdir: str, name: str, config: dict[str, Any]):
    try:
      wandb = importlib.import_module("wandb")
    except ImportError as error:
      raise UserError(
        f"writer=wandb: {error}; install it (pip install wandb), or leave the key out"
      ) from error
    # The same folder is the same run, so that a restart goes on with its curves.
    number = hashlib.sha256(workdir.encode()).hexdigest()[:12]
    self._run = wandb.init(
      project=PROJECT, name=name, id=number, resume="allow", dir=workdir, config=config
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


def tracker_of(writer: str, workdir: str, config: Mapping[str, Any]) -> Tracker | None:
  """The writer that `config.writer` names; None for "".

  Args:
    writer: "wandb", or FILE.py:NAME, which is called with workdir, name and config.
    config: of the run.

  Raises:
    UserError: there is no such file or name, it lacks a method, or wandb is not installed.
  """
  if not writer:
    return None
  about = {**config, "commit": commit()}
  name = pathlib.PurePath(workdir).name
  if writer == "wandb":
    return _Wandb(workdir, name, about)
  file, _, kind = writer.rpartition(":")
  if not file.endswith(".py") or not pathlib.Path(file).is_file():
    raise UserError(f"writer={writer!r}: give wandb, or FILE.py:NAME of a file that is there")
  contents = runpy.run_path(file)
  if kind not in contents:
    raise UserError(f"writer={writer!r}: {file} has no {kind}")
  made = contents[kind](workdir, name, about)
  lacking = [method for method in ("write", "close") if not callable(getattr(made, method, None))]
  if lacking:
    raise UserError(f"writer={writer!r}: what it makes has no method {lacking[0]}()")
  return made

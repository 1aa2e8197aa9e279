"""What `run --models` names: a checkpoint of a run, or the weights of a Hugging Face folder.

RUN            the latest step of a run's work folder
RUN@best       or another: latest, best, a step, or base (what the run's model.folder holds)
FOLDER         a Hugging Face folder, without any run
NAME=...       any of these under a name of its own, in tables and files
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import in_bucket, replace_text

_STORED = "model.json"
_NAME = re.compile(r"[\w.@+-]+")


@dataclasses.dataclass(frozen=True)
class NamedModel:
  """Weights that answer.

  Attributes:
    name: of their folders and their row.
    workdir: of the run; "": there is none.
    checkpoint: a step, or "base".
    folder: Hugging Face folder with the tokenizer and the config.
  """

  name: str
  workdir: str
  checkpoint: str
  folder: str


def models_named(texts: Sequence[str], folder: str = "") -> list[NamedModel]:
  """The models of a command line.

  Args:
    folder: instead of what the configs of runs call model.folder; "": that.

  Raises:
    UserError: there is no such run, step or folder, or two models have one name.
  """
  found = [_model(text, folder) for text in texts]
  for model in found:
    same = [other for other in found if other.name == model.name]
    if len(same) > 1:
      raise UserError(f"{len(same)} models are called {model.name!r}; give NAME={texts[0]}")
  return found


def _model(text: str, folder: str) -> NamedModel:
  # Only here: the rest of this room does without jax.
  from rmsd_jax.training import guard, stored

  name, equals, path = text.rpartition("=")
  if equals and not _NAME.fullmatch(name):
    raise UserError(f"--models {text}: a name has letters, digits and . _ @ + - alone")
  path, _, which = path.partition("@")
  path = path if in_bucket(path) else str(Path(path).absolute())
  config = epath.Path(path) / "config.json"
  if not config.exists():
    raise UserError(
      f"--models {text}: there is no {config}; give the work folder of a run, or a Hugging Face "
      "folder"
    )
  last = path.rstrip("/").rpartition("/")[2]
  if _is_hugging_face(config):
    if which not in ("", "base"):
      raise UserError(f"--models {text}: {path} is no run, and has no checkpoint {which!r}")
    return NamedModel(name or last, "", "base", path)
  base = folder or guard.read_config(path)["model"]["folder"]
  if not epath.Path(base).exists():
    raise UserError(f"{config} names the folder {base}, which is gone; give --config.model.folder")
  step = "base" if which == "base" else str(stored.find_step(path, which or "latest"))
  return NamedModel(name or f"{last}@{step}", path, step, base)


def _is_hugging_face(config: epath.Path) -> bool:
  try:
    return "model_type" in json.loads(config.read_text())
  except (ValueError, TypeError):
    return False  # a run's, whose reader says what is wrong with it


def keep_name(model: NamedModel, folder: Path) -> None:
  """Stores what a name stands for, and refuses it for another model.

  Raises:
    UserError: the name is taken.
  """
  path = folder / _STORED
  now = {"name": model.name, "run": model.workdir, "checkpoint": model.checkpoint}
  now["folder"] = model.folder
  if path.exists() and (before := json.loads(path.read_text("utf-8"))) != now:
    raise UserError(
      f"{folder} is of {before['run'] or before['folder']}, checkpoint {before['checkpoint']}; "
      f"give NAME={model.workdir or model.folder}@{model.checkpoint}, or remove the folder"
    )
  replace_text(path, json.dumps(now, indent=1) + "\n")

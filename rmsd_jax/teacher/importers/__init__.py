"""Other projects' training files -> JSON Lines of prompts, one module a format.

A module has `convert(source, out, rules, *, media_root, split) -> Imported`; `IMPORTERS` makes it a
choice of `python -m rmsd_jax.pool import --format`. May import data.
"""

import dataclasses
import importlib
import types

# Format -> module, by name: one is imported when it is asked for.
IMPORTERS = {"onethinker": "rmsd_jax.teacher.importers.onethinker"}


@dataclasses.dataclass(frozen=True)
class Imported:
  """What came of a file: prompts by task, refusals by kind, media files that are not there."""

  tasks: dict[str, int]
  refused: dict[str, int]
  media: int
  missing: int


def get(name: str) -> types.ModuleType:
  """The module of a format."""
  return importlib.import_module(IMPORTERS[name])

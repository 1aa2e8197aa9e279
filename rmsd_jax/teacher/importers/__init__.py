"""Other projects' training files -> JSON Lines of prompts, one module a format.

A module has `convert(source, out, rules, *, media_root, split) -> Imported`; `IMPORTERS` makes it a
choice of `python -m rmsd_jax.pool import --format`. May import data.
"""

import dataclasses
import importlib
from typing import Any

# Format -> module, by name: one is imported when it is asked for. "MODULE:" has it in its FORMATS.
IMPORTERS = {"onethinker": "rmsd_jax.teacher.importers.onethinker"}
IMPORTERS |= dict.fromkeys(
  ("time_r1", "charades_sta", "nextgqa", "got10k", "cgbench", "llava_video"),
  "rmsd_jax.teacher.importers.annotations:",
)


@dataclasses.dataclass(frozen=True)
class Imported:
  """What came of a file: prompts by task, refusals by kind and by reason (without its values), and
  media files that are not there."""

  tasks: dict[str, int]
  refused: dict[str, int]
  media: int
  missing: int
  reasons: dict[str, int] = dataclasses.field(default_factory=dict)


def get(name: str) -> Any:
  """What has the `convert` of a format: a module, or an entry of one's FORMATS."""
  module, colon, _ = IMPORTERS[name].partition(":")
  imported = importlib.import_module(module)
  return imported.FORMATS[name] if colon else imported

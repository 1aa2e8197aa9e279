"""How much each teacher's responses were worth in a pool, by task."""

from collections.abc import Mapping
from typing import Any


class TeacherTally:
  """Responses by task and teacher: their number, and the sum of their quality."""

  def __init__(self):
    self._found: dict[str, dict[str, list[float]]] = {}

  def add(self, row: Mapping[str, Any]) -> None:
    """Counts an encoded row's."""
    of = self._found.setdefault(row["task"], {})
    for teacher, quality in zip(row["teachers"], row["quality_K"], strict=True):
      known = of.setdefault(teacher.decode("utf-8"), [0, 0.0])
      known[0] += 1
      known[1] += float(quality)

  def summary(self) -> dict[str, dict[str, list[float]]]:
    return {task: dict(sorted(of.items())) for task, of in sorted(self._found.items())}

"""Text files of a run, on a local disk or in a bucket: whole writes, and reads past a torn end."""

import os

from etils import epath


def in_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is an address such as gs://bucket/runs/1, not one of a local disk."""
  return "://" in str(path)


def replace_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file in one step: a reader finds the old text or the new, never a part.

  The path may lie in a bucket (gs://..), where every write is one step. Its folder is made if
  missing.
  """
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  if in_bucket(path):
    target.write_text(text)
    return
  draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
  draft.write_text(text)
  draft.replace(target)


def complete_lines(path: epath.Path) -> list[str]:
  """Lines that end in a newline; a process killed while writing leaves a torn one at the end."""
  if not path.exists():
    return []
  return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

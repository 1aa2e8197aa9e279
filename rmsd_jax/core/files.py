"""Text files of a run, on a local disk or in a bucket: whole writes, and reads past a torn end."""

import os
import pathlib
import shutil

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
  with draft.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())  # else a machine that loses power may keep the name and not the text
  draft.replace(target)


def lines_of(text: str) -> list[str]:
  """The lines of JSON Lines that are not empty. They end in "\\n" alone: a JSON text may hold other
  ends of lines (U+2028), at which splitlines would cut it in two."""
  return [line for line in text.split("\n") if line.strip()]


def complete_lines(path: epath.Path) -> list[str]:
  """Lines that end in a newline; a process killed while writing leaves a torn one at the end."""
  if not path.exists():
    return []
  # Damaged bytes are left for whoever reads the line they stand in.
  text = path.read_bytes().decode("utf-8", "replace")
  return [f"{line}\n" for line in text.split("\n")[:-1]]


def replace_folder(stage: pathlib.Path, out: pathlib.Path) -> None:
  """Puts a whole folder in its place; what was there goes last."""
  old = out.with_name(f".{out.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  if out.exists():
    os.replace(out, old)
  os.replace(stage, out)
  shutil.rmtree(old, ignore_errors=True)

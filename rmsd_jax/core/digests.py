"""Digests of a folder's files, kept in it: damage that is read as numbers would go unnoticed.

The list is in the form of the command sha256sum (`sha256sum -c SHA256SUMS` checks it, too). Folders
may lie in a bucket (gs://..).
"""

import concurrent.futures
import hashlib
import re
from collections.abc import Collection, Iterable

from etils import epath

FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_THREADS = 8  # reading and hashing release the interpreter's lock


class DamageError(Exception):
  """A folder does not hold what its list says; the message names the first file that differs."""


def write_list(folder: epath.Path, leave_out: Collection[str] = ()) -> None:
  """Makes the list of all files in `folder` but those of the names `leave_out`.

  Args:
    leave_out: paths from `folder`, of files that still change.
  """
  names = [name for name in files_below(folder) if name not in leave_out]
  digests = _digests(folder, names)
  text = "".join(f"{digests[name]}  {name}\n" for name in names)
  (folder / FILE).write_text(text)


def read_list(folder: epath.Path) -> dict[str, str] | None:
  """File (path from `folder`) -> digest, as listed; None where there is no list.

  Raises:
    DamageError: the list itself is damaged.
  """
  try:
    text = (folder / FILE).read_text()
  except FileNotFoundError:
    return None
  except UnicodeDecodeError as error:
    raise DamageError(f"{FILE} is damaged") from error
  lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
  if not text.endswith("\n") or not all(lines):
    raise DamageError(f"{FILE} is damaged")
  return {line[2]: line[1] for line in lines if line}


def check_names(folder: epath.Path, listed: Iterable[str], leave_out: Collection[str] = ()) -> None:
  """Compares which files there are with the list; reads none of them.

  Args:
    leave_out: paths that need not be listed. Hidden files (of file systems and desktops) neither.

  Raises:
    DamageError: a file is missing, or one is there that the list, cut off, does not name.
  """
  there = set(files_below(folder))
  listed = set(listed)
  if missing := sorted(listed - there):
    raise DamageError(f"{missing[0]} is missing")
  hidden = {name for name in there if name.rpartition("/")[2].startswith(".")}
  if more := sorted(there - listed - hidden - set(leave_out)):
    raise DamageError(f"{more[0]} is not in {FILE}")


def check_contents(folder: epath.Path, listed: dict[str, str]) -> None:
  """Reads the listed files and compares their digests.

  Raises:
    DamageError: a file is missing or differs.
  """
  actual = _digests(folder, list(listed))
  if differ := [name for name, digest in listed.items() if actual[name] != digest]:
    gone = actual[differ[0]] is None
    raise DamageError(f"{differ[0]} {'is missing' if gone else 'differs from its digest'}")


def check_part(folder: epath.Path, part: tuple[int, int], needed: bool) -> str:
  """Reads the i-th of n equal parts of the listed files, compares their digests, and returns the
  digest of the list itself; "" where there is no list.

  Args:
    part: (i, n); the rest is for others to read.
    needed: whether there must be a list.

  Raises:
    DamageError: a file is missing or differs.
  """
  listed = read_list(folder)
  if listed is None:
    if needed:
      raise DamageError(f"{FILE} is missing")
    return ""
  mine = sorted(listed)[part[0] :: part[1]]
  check_contents(folder, {name: listed[name] for name in mine})
  return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()


def files_below(folder: epath.Path) -> list[str]:
  """Paths from `folder` of all files below it but the list itself, sorted."""
  names = []
  folders = [folder]
  while folders:
    for path in folders.pop().iterdir():
      if path.is_dir():
        folders.append(path)
      else:
        names.append(path.relative_to(folder).as_posix())
  return sorted(name for name in names if name != FILE)


def _digests(folder: epath.Path, names: list[str]) -> dict[str, str | None]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: epath.Path) -> str | None:
  """None where there is no such file."""
  digest = hashlib.sha256()
  try:
    with path.open("rb") as file:
      while block := file.read(1 << 20):
        digest.update(block)
  except FileNotFoundError:
    return None
  return digest.hexdigest()

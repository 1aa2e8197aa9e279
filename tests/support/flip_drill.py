"""Flips bits of files, one at a time, and sorts what a reader makes of each.

outcomes = flip_drill.flips(root, files, read, count=300, seed=0)
assert not outcomes["used"]

refused   one line (UserError)
other     the reader said so and took other, whole data, as it says by what it returns
harmless  the very same data
used      anything else: damage that was read in silence, an error of several lines

A traceback ends the drill.
"""

import collections
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from rmsd_jax.core.errors import UserError


def flip(path: pathlib.Path, bit: int) -> None:
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def flips(
  root: pathlib.Path,
  files: Sequence[str],
  read: Callable[[pathlib.Path], Hashable],
  count: int,
  seed: int,
  others: Sequence[Hashable] = (),
) -> dict[str, list[str]]:
  """Outcome -> "file bit reason" of every flip.

  Args:
    root: folder of the files; it is copied for each flip, for readers move things.
    files: paths from `root`, which take turns.
    read: what a command would read of a folder like `root`, as a digest of it.
    others: what `read` may give instead, if it was said.
  """
  rng, outcomes = np.random.default_rng(seed), collections.defaultdict(list)
  files = [name for name in files if (root / name).stat().st_size]
  whole = read(root)
  for number in range(count):
    name = files[number % len(files)]
    bit = int(rng.integers(8 * (root / name).stat().st_size))
    with tempfile.TemporaryDirectory(dir=root.parent) as place:
      copy = pathlib.Path(place) / root.name
      shutil.copytree(root, copy)
      flip(copy / name, bit)
      outcome, why = _outcome(copy, read, whole, others)
    outcomes[outcome].append(f"{name} bit {bit}: {why}")
  return outcomes


def _outcome(copy, read, whole, others) -> tuple[str, str]:
  try:
    found = read(copy)
  except UserError as error:
    line = str(error)
    return ("used" if "\n" in line or len(line) > 600 else "refused"), line
  if found == whole:
    return "harmless", ""
  return ("other" if found in others else "used"), "other data"

"""The sets by name: every file of `sets/` that has a `SET`. A new set is a new file there."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from rmsd_jax.benchmarks import sets
from rmsd_jax.benchmarks.item import Benchmark
from rmsd_jax.core.errors import UserError


@functools.cache
def all_sets() -> Mapping[str, Benchmark]:
  """Name -> set, sorted by name."""
  names = sorted(module.name for module in pkgutil.iter_modules(sets.__path__))
  found = [importlib.import_module(f"{sets.__name__}.{name}").SET for name in names]
  return {one.name: one for one in found}


def the(name: str) -> Benchmark:
  """The set of that name; UserError names those there are."""
  if name not in all_sets():
    raise UserError(f"there is no set {name!r}; use one of {', '.join(all_sets())}")
  return all_sets()[name]

"""Parameters by name: "text/layers/q" is params["text"]["layers"]["q"].

Sharding, freezing, decay, import and export all address weights by such names, with regular
expressions that must match from the start of the name to its end.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from rmsd_jax.core.errors import UserError


def flatten(tree: dict, prefix: str = "") -> dict:
  """{"text": {"norm": x}} -> {"text/norm": x}, in the tree's own order."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    flat.update(flatten(value, name + "/") if isinstance(value, dict) else {name: value})
  return flat


def unflatten(flat: dict) -> dict:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for name, value in flat.items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def matches(name: str, patterns: Iterable[str]) -> bool:
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def split(tree: dict, patterns: Iterable[str]) -> tuple[dict, dict]:
  """The leaves whose names match a pattern, and the rest, both as nested dicts.

  Raises:
    UserError: a pattern matches nothing (a typo would silently train or freeze too much).
  """
  flat = flatten(tree)
  patterns = tuple(patterns)  # it is read twice, and may be a generator
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f"pattern {pattern!r} is no regular expression ({error}); mend it") from None
    if not any(re.fullmatch(pattern, name) for name in flat):
      raise UserError(
        f"pattern {pattern!r} matches no parameter; names look like {next(iter(flat))!r}"
      )
  chosen = {k: v for k, v in flat.items() if matches(k, patterns)}
  return unflatten(chosen), unflatten({k: v for k, v in flat.items() if k not in chosen})


def join(a: dict, b: dict) -> dict:
  """Both halves of a `split` as one tree again."""
  return unflatten({**flatten(a), **flatten(b)})


def count_table(tree: dict, frozen: Iterable[str] = ()) -> str:
  """Parameter counts by group (two levels of names), one line each, frozen groups marked."""
  frozen = tuple(frozen)
  groups: dict[tuple[str, bool], int] = {}
  for name, leaf in flatten(tree).items():
    group = ("/".join(name.split("/")[:2]), matches(name, frozen))
    groups[group] = groups.get(group, 0) + math.prod(leaf.shape)
  total = sum(groups.values())
  free = sum(count for (_, is_frozen), count in groups.items() if not is_frozen)
  rows = [
    f"  {name:<24} {count:>15,}{'  frozen' if is_frozen else ''}"
    for (name, is_frozen), count in groups.items()
  ]
  return "\n".join([*rows, f"  {'all':<24} {total:>15,}  ({free:,} trained)"])

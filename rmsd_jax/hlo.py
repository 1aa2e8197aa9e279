"""Collectives of a compiled program, read off its HLO text, loops counted as often as they run.

XLA's own cost analysis counts a loop's body once and a Pallas kernel not at all, so it is not used.
"""

import collections
import math
import re

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
  r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """Kind of collective -> (how often it runs, bytes of its results on one device).

  A loop whose number of turns is unknown counts once; a branch counts as if it were taken. An
  asynchronous pair is counted at its start, whose result tuple also holds the operand.
  """
  computations, entry = _computations(text)
  found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])

  def visit(name: str, times: int) -> None:
    for shape, operation, line in computations.get(name, ()):
      kind = operation.removesuffix("-start")
      if operation == "all-reduce-start":  # the one whose tuple holds results only
        operation = kind
      if kind in COLLECTIVES:
        found[kind][0] += times
        found[kind][1] += times * _result_bytes(shape, operation.endswith("-start"))
        continue
      if operation == "async-done" or operation.endswith(("-done", "-update")):
        continue
      turns = times
      if operation == "while" and (known := _TRIPS.search(line)):
        turns = times * int(known[1])
      for called in _called(line):
        visit(called, turns)

  visit(entry, 1)
  return {kind: (count, size) for kind, (count, size) in sorted(found.items())}


def _called(line: str) -> list[str]:
  names = _CALLED.findall(line)
  for branches in _BRANCHES.findall(line):
    names += [name.strip().lstrip("%") for name in branches.split(",")]
  return names


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
  """{computation: [(result shape, operation, line)]}, and the name of the entry."""
  computations, current, entry = {}, None, ""
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif current is not None and (operation := _OPERATION.match(line)):
      current.append((operation[1], operation[2], line))
  return computations, entry


def _result_bytes(shape: str, started: bool) -> int:
  """Bytes of a result; an asynchronous start names (operands, results): the larger half."""
  arrays = [(kind, dims) for kind, dims in _SHAPE.findall(shape) if (kind, dims) != ("u32", "")]
  sizes = [_bytes(kind, dims) for kind, dims in arrays]  # without the scalars of the context
  if not started or len(sizes) == 1:
    return sum(sizes)
  half = len(sizes) // 2
  return max(sum(sizes[:half]), sum(sizes[half:]))


def _bytes(kind: str, dims: str) -> int:
  bits = _BITS.get(kind)
  if bits is None:
    digits = re.search(r"\d+", kind)
    bits = int(digits[0]) if digits else 32
  return bits * math.prod(int(size) for size in dims.split(",") if size) // 8

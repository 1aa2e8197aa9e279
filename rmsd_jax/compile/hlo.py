"""What a compiled program does, read off its HLO text, loops counted as often as they run.

Collectives and their bytes, and the HBM traffic of a decoding loop. XLA's own cost analysis counts
a loop's body once, a Pallas kernel not at all and on-chip copies as traffic, so it is not used.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
# The text form: the head of a computation, an operation, an array (with its layout), the turns of a
# loop, and the computations that an operation calls.
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OPERATION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
  r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_ESTIMATE = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"')  # of a Pallas kernel
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# What moves no bytes, and what reads a part of its operand.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
_SLICES = ("dynamic-slice", "slice", "gather")


class Op(NamedTuple):
  """One operation of a computation."""

  name: str
  shape: str
  kind: str
  operands: tuple[str, ...]
  line: str
  root: bool


def collectives(text: str, turns: Sequence[float] = ()) -> dict[str, tuple[int, int]]:
  """Kind of collective -> (how often it runs, bytes of its results on one device).

  Args:
    turns: of the loops whose number of turns is unknown, in the order of `turn_traffic`; where they
      are not as many, such a loop counts once.

  A branch counts as if it were taken. An
  asynchronous pair is counted at its start, whose result tuple also holds the operand; one that
  the compiler for TPU spread over several fusions stands in each of them under one channel number
  and counts once.
  """
  computations, entry = _computations(text)
  loops = [loop.name for loop, _ in _token_loops(computations)] if turns else []
  unknown = dict(zip(loops, turns, strict=True)) if len(loops) == len(turns) else {}
  channels = set()
  counted: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0])

  def visit(name: str, times: float) -> None:
    for op in computations.get(name, ()):
      kind = op.kind.removesuffix("-start")
      if kind in COLLECTIVES:
        channel = re.search(r"channel_id=(\d+)", op.line)
        if channel and channel[1] in channels:
          continue
        channels.add(channel and channel[1])
        # All-reduce is the one whose tuple at the start holds results only.
        started = op.kind != kind and kind != "all-reduce"
        counted[kind][0] += times
        counted[kind][1] += times * _result_bytes(op.shape, started)
      elif not op.kind.endswith(("-done", "-update")):
        for called in _called(op.line):
          known = _turns(computations, op)
          visit(called, times * (unknown.get(op.name, 1) if known is None else known))

  visit(entry, 1)
  return {kind: (round(count), round(size)) for kind, (count, size) in sorted(counted.items())}


def _called(line: str) -> list[str]:
  names = _CALLED.findall(line)
  for branches in _BRANCHES.findall(line):
    names += [name.strip().lstrip("%") for name in branches.split(",")]
  return names


def _turns(computations: dict[str, list[Op]], op: Op) -> int | None:
  """How often a loop's body runs; 1 for what is no loop, None for a loop that does not say.

  XLA notes the number on CPU and GPU. On TPU it is read off the condition, `turn < constant`, as
  lax.scan counts.
  """
  if op.kind != "while":
    return 1
  if known := _TRIPS.search(op.line):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", op.line)
  ops = {o.name: o for o in computations.get(condition[1], ())} if condition else {}
  last = next((o for o in ops.values() if o.root), None)
  if last is None or last.kind != "compare" or "direction=LT" not in last.line:
    return None
  limit = ops.get(last.operands[-1])
  turns = limit and limit.kind == "constant" and re.search(r"constant\((\d+)\)", limit.line)
  return int(turns[1]) if turns else None


def _computations(text: str) -> tuple[dict[str, list[Op]], str]:
  """{computation: its operations}, and the name of the entry."""
  computations = {}
  current = None  # operations of the computation whose lines are being read
  entry = ""
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif current is not None and (operation := _OPERATION.match(line)):
      root, name, shape, kind = operation.groups()
      # Operands stand between the parentheses alone; names behind them are of called computations.
      operands = tuple(re.findall(r"%([\w.\-]+)", _inside(line, operation.end())))
      current.append(Op(name, shape, kind, operands, line, bool(root)))
  return computations, entry


def _inside(line: str, start: int) -> str:
  """What stands between the parenthesis that opens before `start` and the one that closes it."""
  depth = 1
  for end in range(start, len(line)):
    depth += {"(": 1, ")": -1}.get(line[end], 0)
    if depth == 0:
      return line[start:end]
  return line[start:]


def _result_bytes(shape: str, started: bool) -> int:
  """Bytes of a result; an asynchronous start names (operands, results): the larger half."""
  arrays = [(k, dims) for k, dims, _ in _SHAPE.findall(shape) if (k, dims) != ("u32", "")]
  sizes = [_bytes(kind, dims) for kind, dims in arrays]  # without the scalars of the context
  if not started or len(sizes) == 1:
    return sum(sizes)
  half = len(sizes) // 2
  return max(sum(sizes[:half]), sum(sizes[half:]))


def _bytes(kind: str, dims: str) -> int:
  # f32, s8, u4, f8e4m3fn: the first number is the size; the few others are in the table.
  bits = _BITS.get(kind)
  if bits is None:
    digits = re.search(r"\d+", kind)
    bits = int(digits[0]) if digits else 32
  return bits * math.prod(int(size) for size in dims.split(",") if size) // 8


def turn_traffic(text: str) -> list[list[dict[str, int]]]:
  """HBM bytes that one turn of each loop of unknown length of a program reads and writes, by kind
  of operation: of a rollout program, those of decoding one token.

  Arrays that XLA keeps on the chip (memory space 1) cost nothing; a slice costs what it takes, an
  update in place what it writes, a Pallas kernel what it says of itself. Padding to the
  chip's tiles is not counted.

  Returns:
    Of each loop, the largest first, and for each branch that its conditionals may take: of the
    windows of the responses' caches, the shortest first. One, where there are no conditionals.
  """
  return [moved for _, moved in _token_loops(_computations(text)[0])]


def _token_loops(computations: dict[str, list[Op]]) -> list[tuple[Op, list[dict[str, int]]]]:
  """The loops of unknown length and what a turn of each moves, the largest first."""
  # Layers are a scan, whose length is known; only the loop over tokens ends when all are done.
  loops = [op for ops in computations.values() for op in ops if _turns(computations, op) is None]
  found = []
  for loop in loops:
    traffic = _Traffic(computations)
    body = re.search(r"body=%?([\w.\-]+)", loop.line)[1]
    moved = [traffic.turn(body, branch) for branch in range(traffic.branches(body))]
    found.append((loop, [dict(one.most_common()) for one in moved]))
  return sorted(found, key=lambda pair: -sum(pair[1][-1].values()))


class _Traffic:
  """Bytes moved between HBM and the chip, operation by operation."""

  def __init__(self, computations: dict[str, list[Op]]):
    self._computations = computations
    self._ops = {name: {op.name: op for op in ops} for name, ops in computations.items()}

  def branches(self, computation: str) -> int:
    """Most branches of a conditional inside, at least 1."""
    counts = [1]
    for op in self._ops[computation].values():
      if op.kind == "conditional":
        counts.append(len(_called(op.line)))
      elif op.kind in ("while", "call", "async-start"):
        counts += [self.branches(called) for called in self._entered(op, 0)]
    return max(counts)

  def turn(self, computation: str, branch: int) -> collections.Counter:
    """Bytes of a computation, by kind, whose conditionals take this branch."""
    moved = collections.Counter()
    ops = self._ops[computation]
    for op in ops.values():
      if op.kind in _FREE or op.kind.endswith(("-done", "-update")):
        continue
      if op.kind in ("while", "conditional", "call", "async-start"):
        turns = _turns(self._computations, op) or 1
        for called in self._entered(op, branch):
          for kind, size in self.turn(called, branch).items():
            moved[kind] += turns * size
      else:
        moved[op.kind.removesuffix("-start")] += self._moved(ops, op)
    return moved

  def _entered(self, op: Op, branch: int) -> list[str]:
    """The computations that an operation runs."""
    called = _called(op.line)
    if op.kind == "conditional":
      return [called[min(branch, len(called) - 1)]]
    # A loop's condition compares two numbers; it moves next to nothing.
    skipped = re.search(r"condition=%?([\w.\-]+)", op.line)
    return [name for name in called if not skipped or name != skipped[1]]

  def _moved(self, ops: dict[str, Op], op: Op) -> int:
    """Bytes of one operation that is no loop or call."""
    if estimate := _ESTIMATE.search(op.line):
      return int(estimate[1])
    if op.kind == "copy-start":  # (destination, source, context)
      return sum(_in_hbm(op.shape)[:2])
    if op.kind.endswith("-start"):  # a slice, or what a collective sends: as much as it results in
      return 2 * _result_bytes(op.shape, True)
    reads = 0
    for place, name in enumerate(op.operands):
      if name in ops and sum(_in_hbm(ops[name].shape)):
        reads += self._read_by(ops, op, place)
    return reads + self._written(ops, op) * (sum(_in_hbm(op.shape)) > 0)

  def _read_by(self, ops: dict[str, Op], op: Op, place: int) -> int:
    """Bytes that an operation reads of its operand number `place`, wherever that lies."""
    # A fusion reads of an operand what its inside reads: often one layer's slice of all layers.
    if op.kind == "fusion":
      inner = self._ops[_called(op.line)[0]]
      own = next(
        p for p in inner.values() if p.kind == "parameter" and f"parameter({place})" in p.line
      )
      return self._read(inner, own)
    if place == 0 and op.kind in _SLICES:
      return _total(op.shape)
    # In place: what is not overwritten is not touched.
    if place == 0 and op.kind == "dynamic-update-slice":
      return 0
    return _total(ops[op.operands[place]].shape)

  def _read(self, ops: dict[str, Op], array: Op) -> int:
    """Bytes read of an array inside a fused computation, over all that use it. All of it, where it
    is the result: the fusion around this one uses it."""
    read = _total(array.shape) if array.root else 0
    for op in ops.values():
      for place, name in enumerate(op.operands):
        if name == array.name:
          read += self._read(ops, op) if op.kind == "bitcast" else self._read_by(ops, op, place)
    # Several readers inside one fusion share what is on the chip already.
    return min(read, _total(array.shape))

  def _written(self, ops: dict[str, Op], op: Op) -> int:
    """Bytes that an operation writes, wherever they go."""
    if op.kind == "fusion":
      inner = self._ops[_called(op.line)[0]]
      return self._written(inner, next(o for o in inner.values() if o.root))
    if op.kind == "dynamic-update-slice":
      return _total(ops[op.operands[1]].shape)
    # A bitcast only names an update differently, and the update writes its slice alone.
    if op.kind == "bitcast" and op.operands[0] in ops:
      source = ops[op.operands[0]]
      return _total(op.shape) if source.kind == "parameter" else self._written(ops, source)
    if op.kind == "tuple":
      return sum(self._written(ops, ops[name]) for name in op.operands)
    return _total(op.shape)


def _in_hbm(shape: str) -> list[int]:
  """Bytes of the arrays of a result, 0 for those that lie on the chip."""
  return [0 if "S(" in at else _bytes(kind, dims) for kind, dims, at in _SHAPE.findall(shape)]


def _total(shape: str) -> int:
  return sum(_bytes(kind, dims) for kind, dims, _ in _SHAPE.findall(shape))

"""Which groups share a row: the plan of a batch from lengths alone. Numpy only.

Prompts stay on the shard of the mesh that encoded their media. Every shard deals its groups to
equally many rows, the rows are sorted by size, and the j-th rows of all shards make a piece of one
padded size. A plan follows from the lengths of the batch and nothing else, so that every process
makes the same one and a resumed run goes on with it.

Axes: B prompts.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Share of the cost that other rows must save, each kind of which comes in sizes of its own.
SHORTER = 0.03  # of fewer groups
MIXED = 0.1  # whose prompts count in the dealing


class Sizes(NamedTuple):
  """In what steps the padded sizes of rows grow, and how much is computed at a time.

  Steps grow with the groups of a row, as the spread of their tokens does, so that few sizes occur,
  each of which is compiled once. A row of one group has the step of two for its responses: the
  longest of a batch and the shortest would each have sizes of their own.
  """

  P: int  # step of the places for prompts, for each group of a row: a fourth of the bucket's
  W: int  # step of the places for responses, for each group of a row
  most: int  # places of a shard's rows whose gradient is computed at a time
  lanes: int = 1  # P and W are multiples of this
  block: int = 1  # P + W is a multiple of this

  def padded(self, groups: int, prompts: int, responses: Sequence[int]) -> tuple[int, list[int]]:
    """P of all rows of so many groups, and the W of each, that hold so many tokens."""
    up = lambda tokens, step: step * max(1, -(-tokens // step))
    # Four steps hold any prompts of a bucket, also where a step was rounded up.
    most = up(max(4 * groups * self.P, prompts), self.lanes)
    P = min(up(prompts, up(groups * self.P, self.lanes)), most)
    # The finer step where the coarser one leaves no room for what memory would hold.
    for of in (max(groups, 2), groups):
      W_n = [up(tokens, up(of * self.W, self.lanes)) for tokens in responses]
      W_n = [up(P + W, self.block) - P for W in W_n]
      if P + max(W_n) <= self.most:
        break
    return P, W_n


class Piece(NamedTuple):
  """Rows of one padded size: `deep` of them on every shard."""

  P: int  # places for prompts
  W: int  # places for responses
  deep: int
  rows: tuple[tuple[tuple[int, ...], ...], ...]  # [shard][row] -> numbers of its prompts there


def plan(
  prompt_B: np.ndarray,
  response_B: np.ndarray,
  shards: int,
  sizes: Sizes,
  cost: Callable[[int, int], float],
) -> list[Piece]:
  """The pieces of a batch: each shard's groups in as few rows as are allowed, or in shorter ones
  where these are cheaper.

  Args:
    prompt_B: tokens of each prompt, in the order of the global batch.
    response_B: tokens of all responses of each prompt together.
    shards: into how many equal contiguous parts the batch is split.
    cost: of a row with P and W places, see `Qwen3VL.row_cost`.
  """
  parts = np.arange(len(prompt_B)).reshape(shards, -1)
  prompt_SG, response_SG = prompt_B[parts], response_B[parts]
  best: list[Piece] = []
  least = math.inf
  for most in _halves(parts.shape[1]):
    n = -(-parts.shape[1] // most)
    # Rows of equally many groups: their prompts then take about as many places, and the programs
    # differ in the places for responses alone. So these are what is shared out evenly, unless
    # prompts are so unlike that the fullest row's places for them cost more.
    for even_SG, margin in ((response_SG, SHORTER), (prompt_SG + response_SG, MIXED)):
      dealt = [_deal(even_G, n, most) for even_G in even_SG]
      pieces = _pieces(dealt, most, prompt_SG, response_SG, sizes)
      price = sum(shards * piece.deep * cost(piece.P, piece.W) for piece in pieces)
      if max(piece.P + piece.W for piece in pieces) <= sizes.most:
        if price < (1 - margin) * least:
          best = pieces
          least = price
      elif least == math.inf:  # nothing fits so far: the shortest rows there are, the latest
        best = pieces
  return best


def _halves(groups: int) -> list[int]:
  """Groups of a row: all of them, half of them, and so on to one."""
  halves = [groups]
  while halves[-1] > 1:
    halves.append(-(-halves[-1] // 2))
  return halves


def _deal(tokens_G, n: int, most: int) -> list[list[int]]:
  """n rows of at most `most` groups: the group with most tokens first, each to the row with the
  fewest."""
  rows: list[list[int]] = [[] for _ in range(n)]
  tokens = np.zeros(n)
  for g in np.argsort(-tokens_G, kind="stable"):
    room = np.array([len(row) < most for row in rows])
    row = int(np.argmin(np.where(room, tokens, np.inf)))
    rows[row].append(int(g))
    tokens[row] += tokens_G[g]
  return rows


def _pieces(dealt, groups: int, prompt_SG, response_SG, sizes: Sizes) -> list[Piece]:
  """Rows of equal rank by their response tokens, joined while the size of a piece allows it."""
  dealt = [
    sorted(rows, key=lambda row: (-int(response_G[row].sum()), row))
    for rows, response_G in zip(dealt, response_SG, strict=True)
  ]
  shards, n = len(dealt), len(dealt[0])
  widest = lambda tokens_SG, j: max(int(tokens_SG[s][dealt[s][j]].sum()) for s in range(shards))
  prompts = max(widest(prompt_SG, j) for j in range(n))
  P, W_n = sizes.padded(groups, prompts, [widest(response_SG, j) for j in range(n)])
  # As many rows at a time as the largest allows, in pieces of one depth.
  count = -(-n // max(1, sizes.most // (P + W_n[0])))
  deep = -(-n // count)
  pieces = []
  for start in range(0, n, deep):
    members = tuple(
      tuple(tuple(dealt[s][j]) if j < n else () for j in range(start, start + deep))
      for s in range(shards)
    )
    pieces.append(Piece(P, W_n[start], deep, members))
  return pieces


def deal(tokens_B: np.ndarray, shards: int) -> np.ndarray:
  """The order of a batch in which its shards, equal contiguous parts, have about as many tokens.

  The largest prompt first, each to the shard with the fewest tokens that has room.

  Args:
    tokens_B: expected tokens of each prompt and its responses.

  Returns:
    int64 [B], a permutation.
  """
  per = len(tokens_B) // shards
  parts: Sequence[list[int]] = [[] for _ in range(shards)]
  load = np.zeros(shards)
  for b in np.argsort(-tokens_B, kind="stable"):
    room = np.array([len(part) < per for part in parts])
    shard = int(np.argmin(np.where(room, load, np.inf)))
    parts[shard].append(int(b))
    load[shard] += tokens_B[b]
  return np.array([sorted(part) for part in parts], np.int64).reshape(-1)

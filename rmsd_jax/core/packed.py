"""Packed rows: prompts of one or several groups head to tail, then their responses head to tail.

    place      0                                P                                       P + W
    row        | prompt 0 | prompt 1 | padding  | response 0.0 | 0.1 | 1.0 | 1.1 | padding |

A token sees the tokens before it of its own segment, and from a response the whole prompt of its
group. The network's cost follows the tokens that exist: an empty response takes no place, and
prompts of different lengths share a row.

`pack` fills rows on the host as `rmsd_jax.core.packing` plans them; `padded` lays a batch out
unpacked, a row for each prompt and T places for each response: for prefilling and for checks.

Axes: B prompts, R responses, P and W places for prompts and for responses in a row, S = P + W,
T response tokens, V visual tokens of a prompt, X rows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rmsd_jax.core import sharding
from rmsd_jax.core.groups import Array, PromptGroups
from rmsd_jax.core.packing import Piece


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """X packed rows. They are split over the mesh as the prompts are, and a row holds prompts of its
  own shard alone: numbers of prompts count inside a shard, so that looking something up by them
  moves nothing between devices."""

  tokens_XS: Array  # int32 ids
  positions_X3S: Array  # int32 interleaved M-RoPE positions (time, row, column)
  group_XS: Array  # int32 number of the token's prompt inside its shard, -1 for padding
  visual_XP: Array  # int32 place among the V visual tokens of the prompt, -1 for text
  response_XW: Array  # int32 number of the response inside its group, -1 for padding
  start_XW: Array  # int32 place at which the response starts
  from_XW: Array  # int32 place whose hidden state predicts the token: the one-token shift
  last_XW: Array  # bool, the last token of its response
  longest: int = dataclasses.field(metadata={"static": True})  # most tokens of a response

  @property
  def P(self) -> int:
    return self.visual_XP.shape[1]

  @property
  def mask_XW(self) -> Array:
    """bool, tokens of responses."""
    return self.response_XW >= 0

  @property
  def targets_XW(self) -> Array:
    """int32 ids of the response tokens."""
    return self.tokens_XS[:, self.P :]

  @property
  def group_XW(self) -> Array:
    return self.group_XS[:, self.P :]

  def of_responses(self, x_BR: jax.Array) -> jax.Array:
    """[B, R] -> [X, W]: each token gets what its response has; padding something of another."""
    R = x_BR.shape[1]
    return sharding.take_local(x_BR.reshape(-1), self.group_XW * R + self.response_XW)

  def of_tokens(self, x_BRT: jax.Array) -> jax.Array:
    """[B, R, T] -> [X, W]; padding gets something of another token."""
    _, R, T = x_BRT.shape
    place_XW = self.P + jnp.arange(self.response_XW.shape[1]) - self.start_XW
    index_XW = (self.group_XW * R + self.response_XW) * T + place_XW
    return sharding.take_local(x_BRT.reshape(-1), index_XW)

  def to_responses(self, x_XW: jax.Array, B: int, R: int) -> jax.Array:
    """[X, W] -> [B, R]: the value at the last token of each response, 0 for one not in the rows."""
    index_XW = jnp.where(self.last_XW, self.group_XW * R + self.response_XW, -1)
    return sharding.add_local(x_XW, index_XW, B * R).reshape(B, R)

  def sums(self, x_XW: jax.Array, B: int, R: int) -> jax.Array:
    """[X, W] -> [B, R]: the sum over the tokens of each response, 0 for one not in the rows."""
    index_XW = jnp.where(self.mask_XW, self.group_XW * R + self.response_XW, -1)
    return sharding.add_local(x_XW, index_XW, B * R).reshape(B, R)


def pack(groups: PromptGroups, piece: Piece, shards: slice, longest: int) -> Rows:
  """This process's rows of a piece, as numpy.

  Args:
    groups: this process's prompts, as numpy.
    piece: of the plan, see `packing.plan`.
    shards: those of this process, which hold its prompts in equal contiguous parts.
    longest: T, most tokens that any response may have.
  """
  parts = piece.rows[shards]
  size = len(groups.tokens_BP) // len(parts)
  P, W = piece.P, piece.W
  X = len(parts) * piece.deep
  zeros = lambda *shape: np.zeros(shape, np.int32)
  rows = Rows(
    tokens_XS=zeros(X, P + W),
    positions_X3S=zeros(X, 3, P + W),
    group_XS=zeros(X, P + W) - 1,
    visual_XP=zeros(X, P) - 1,
    response_XW=zeros(X, W) - 1,
    start_XW=zeros(X, W),
    from_XW=zeros(X, W),
    last_XW=np.zeros((X, W), bool),
    longest=longest,
  )
  for s, members in enumerate(parts):
    for depth, numbers in enumerate(members):
      _fill(rows, s * piece.deep + depth, groups, numbers, s * size)
  return rows


def _fill(rows: Rows, x: int, groups: PromptGroups, numbers, first: int) -> None:
  """Writes the prompts with these numbers inside their shard, whose first prompt is `first`."""
  at_P = 0
  at_W = 0
  for number in numbers:
    b = first + number
    n = int(groups.prompt_length_B[b])
    here = slice(at_P, at_P + n)
    rows.tokens_XS[x, here] = groups.tokens_BP[b, :n]
    rows.positions_X3S[x, :, here] = groups.positions_B3P[b, :, :n]
    rows.visual_XP[x, here] = groups.visual_BP[b, :n]
    rows.group_XS[x, here] = number
    at_P += n
    for r, length in enumerate(groups.response_length_BR[b].tolist()):
      if not length:
        continue
      start = rows.P + at_W
      here = slice(at_W, at_W + length)
      rows.tokens_XS[x, start : start + length] = groups.responses_BRT[b, r, :length]
      rows.positions_X3S[x, :, start : start + length] = groups.next_position_B[b] + np.arange(
        length
      )
      rows.group_XS[x, start : start + length] = number
      rows.response_XW[x, here] = r
      rows.start_XW[x, here] = start
      # The first token of a response is predicted by the last one of its prompt.
      rows.from_XW[x, here] = np.arange(start - 1, start + length - 1)
      rows.from_XW[x, at_W] = at_P - 1
      rows.last_XW[x, at_W + length - 1] = True
      at_W += length


def padded(groups: PromptGroups) -> Rows:
  """A row for each prompt: P places for it and T for each response, inside jit or not.

  Numbers of prompts count inside their shard, as everywhere in `Rows`.
  """
  B, R, T = groups.responses_BRT.shape
  P = groups.tokens_BP.shape[1]
  number_B1 = (jnp.arange(B) % (B // sharding.shards_here()))[:, None]
  response_W = jnp.repeat(jnp.arange(R), T)
  start_W = P + response_W * T
  mask_BW = groups.response_mask_BRT.reshape(B, R * T)
  place_W = jnp.arange(R * T) + P
  first_W = place_W == start_W
  own_BW = jnp.tile(groups.response_positions_BT, (1, R))
  own_B3W = jnp.broadcast_to(own_BW[:, None], (B, 3, R * T))
  length_BW = jnp.repeat(groups.response_length_BR, T, 1)
  return Rows(
    tokens_XS=jnp.concatenate([groups.tokens_BP, groups.responses_BRT.reshape(B, R * T)], 1),
    positions_X3S=jnp.concatenate([groups.positions_B3P, own_B3W], 2),
    group_XS=jnp.where(jnp.concatenate([groups.prompt_mask_BP, mask_BW], 1), number_B1, -1),
    visual_XP=groups.visual_BP,
    response_XW=jnp.where(mask_BW, response_W, -1),
    start_XW=jnp.broadcast_to(start_W, mask_BW.shape),
    from_XW=jnp.where(first_W, groups.prompt_length_B[:, None] - 1, place_W - 1),
    last_XW=mask_BW & (place_W - start_W == length_BW - 1),
    longest=max(T, 1),
  )

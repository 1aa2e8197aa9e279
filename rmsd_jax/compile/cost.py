"""How much work the steps are, from sizes alone: FLOPs and HBM bytes of a whole batch.

A multiply-add is 2 FLOPs. A backward pass costs twice its forward pass; recomputing layers (remat)
costs one forward pass more. Causal attention counts the pairs that may see each other.

Axes: B prompts, P prompt tokens, R responses (N rollouts, K teacher's), T response tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmsd_jax.core.groups import Bucket
from rmsd_jax.core.packing import Piece
from rmsd_jax.models.config import ModelConfig, TextConfig, VisionConfig


class Work(NamedTuple):
  """FLOPs, by where they are."""

  vision: float = 0.0
  linear: float = 0.0  # the decoder's matrix products
  attention: float = 0.0
  logits: float = 0.0

  @property
  def total(self) -> float:
    return sum(self)

  def times(self, factor: float) -> "Work":
    return Work(*(factor * part for part in self))

  def plus(self, other: "Work") -> "Work":
    return Work(*(a + b for a, b in zip(self, other, strict=True)))


def layer_weights(t: TextConfig) -> int:
  """Weights of one decoder layer's matrices."""
  # q and o have N heads, k and v only K; the MLP is gate, up and down.
  attention = 2 * t.width * t.heads * t.head + 2 * t.width * t.kv_heads * t.head
  return attention + 3 * t.width * t.mlp


def vision(v: VisionConfig, frames: int, patches: int) -> Work:
  """The tower over `frames` frame pairs of `patches` patches each."""
  tokens = frames * patches
  # A block's weights are qkv and proj, 4 W^2, and the MLP's two matrices. A merger sees a token of
  # merge^2 patches, hence the division: what follows counts by patch.
  block = 4 * v.width**2 + 2 * v.width * v.mlp
  joined = v.width * v.merge**2
  mergers = (1 + len(v.deepstack)) * (joined**2 + joined * v.out) / v.merge**2
  linear = 2 * tokens * (v.patch_values * v.width + v.depth * block + mergers)
  return Work(vision=linear + 4 * frames * patches**2 * v.width * v.depth)


class Size(NamedTuple):
  """How large the rows of a batch are, all pieces together."""

  tokens: float  # places of the rows, padding included
  responses: float  # places for responses: those whose logits are made
  pairs: float  # pairs of tokens that see each other; others are skipped
  longest: int  # response places of the largest row


def pairs(prompt_B, response_BR) -> float:
  """Pairs of tokens that see each other in groups of these lengths."""
  # Each token sees itself and what stands before it; a response also sees the whole prompt.
  p_B1 = np.asarray(prompt_B, float)[:, None]
  n_BR = np.asarray(response_BR, float)
  return float((p_B1 * (p_B1 + 1) / 2).sum() + (n_BR * p_B1 + n_BR * (n_BR + 1) / 2).sum())


def size(pieces: Sequence[Piece], prompt_B, response_BR) -> Size:
  """Of a plan for groups of these lengths."""
  rows = lambda piece: len(piece.rows) * piece.deep
  return Size(
    tokens=sum(rows(piece) * (piece.P + piece.W) for piece in pieces),
    responses=sum(rows(piece) * piece.W for piece in pieces),
    pairs=pairs(prompt_B, response_BR),
    longest=max(piece.W for piece in pieces),
  )


def forward(c: ModelConfig, size: Size, with_logits: bool) -> Work:
  """The decoder over packed rows; logits of response tokens only."""
  t = c.text
  # Norms, rotations and softmax are left out: they are small beside the matrix products.
  return Work(
    linear=2 * size.tokens * t.layers * layer_weights(t),
    attention=4 * size.pairs * t.layers * t.heads * t.head,
    logits=2 * size.responses * t.vocab * t.width * with_logits,
  )


def recomputed(forward_pass: Work, longest: int, remat: str, chunk: int) -> Work:
  """What a backward pass computes a second time: layers by `remat`, logits of several chunks.

  Args:
    forward_pass: its work.
    longest: response places of a row.
    remat: as `model.remat`; with "products" norms and the like are left, which count nothing here.
    chunk: `logit_chunk`, those of which the logits exist at a time (losses.token_logps).
  """
  # A single chunk keeps its logits for the backward pass, whatever remat does with the layers.
  layers = forward_pass if remat == "all" else Work()
  return layers._replace(logits=forward_pass.logits if longest > chunk else 0.0)


def sft(c: ModelConfig, size: Size, remat: str, chunk: int) -> Work:
  """The gradient of stage 1, without the encoding of the media."""
  once = forward(c, size, True)
  return once.times(3).plus(recomputed(once, size.longest, remat, chunk))


def policy(c: ModelConfig, size: Size, remat: str, chunk: int) -> Work:
  """The gradient of the policy: the student forward and backward, the reference forward."""
  once = forward(c, size, True)
  return once.times(4).plus(recomputed(once, size.longest, remat, chunk))


def discriminator(c: ModelConfig, size: Size, remat: str) -> Work:
  """Scores of N + K responses and the gradient of the pairs, in one pass."""
  return forward(c, size, False).times(4 if remat == "all" else 3)


class Turn(NamedTuple):
  """A token of decoding: the same on all shards, which go on until the last response is done."""

  rows: int  # of a shard, each a response
  places: int  # of each response's cache that are read


def turns(length_ZX, rows: Sequence[int], window: int, tokens: int) -> list[Turn]:
  """Those that responses of these lengths take (rmsd_jax.rollouts.generate).

  Args:
    length_ZX: responses of each shard.
    rows: of a shard in each loop.
    window: places of the caches are read in multiples of it, up to `tokens`.
  """
  # The first token is the prompt's; a turn puts one in and draws the next.
  alive_t = [(length_ZX > t + 1).sum(1).max() for t in range(length_ZX.max() - 1)]
  fitting = lambda alive: min(n for n in rows if n >= alive)
  return [
    Turn(fitting(alive), min((t // window + 1) * window, tokens)) for t, alive in enumerate(alive_t)
  ]


def rollout(c: ModelConfig, B: int, bucket: Bucket, shards: int, decoding: Sequence[Turn]) -> Work:
  """Encoding the media, prefilling the prompts, and decoding."""
  P = bucket.prompt
  t = c.text
  prefill = forward(c, Size(B * P, 0, B * P * (P + 1) / 2, 0), False)
  tokens = shards * sum(turn.rows for turn in decoding)
  seen = shards * sum(turn.rows * (P + turn.places) for turn in decoding)
  decode = Work(
    linear=2 * tokens * t.layers * layer_weights(t),
    attention=4 * seen * t.layers * t.heads * t.head,
    logits=2 * tokens * t.vocab * t.width,
  )
  return prefill.plus(decode).plus(vision(c.vision, B * bucket.frames, bucket.patches))


def cache_bytes(t: TextConfig) -> int:
  """Bytes of the keys and values of one token in all layers, in bfloat16."""
  return 2 * 2 * t.layers * t.kv_heads * t.head


def decode_bytes(t: TextConfig, P: int, groups: int, decoding: Sequence[Turn]) -> float:
  """HBM traffic of the caches of a shard in decoding, bfloat16: in each turn a group's prompt is
  read once, of each row its places. Scores go to HBM in fp32 and back twice, as XLA for TPU has it.

  Args:
    groups: prompts of a shard.
  """
  rows = max(turn.rows for turn in decoding)  # queries of responses that left stay, masked
  keys = sum(groups * P + turn.rows * turn.places for turn in decoding)
  scores = sum(rows * P + turn.rows * turn.places for turn in decoding)
  return cache_bytes(t) * keys + 3 * 4 * t.layers * t.heads * scores

"""How much work the steps are, from sizes alone: FLOPs and HBM bytes of a whole batch.

A multiply-add is 2 FLOPs. A backward pass costs twice its forward pass; recomputing layers (remat)
costs one forward pass more. Causal attention counts the pairs that may see each other.

Axes: B prompts, P prompt tokens, R responses (N rollouts, K teacher's), T response tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rmsd_jax.core.groups import Bucket
from rmsd_jax.core.packing import Piece
from rmsd_jax.models.config import ModelConfig, TextConfig
from rmsd_jax.models.flops import Size as Size
from rmsd_jax.models.flops import Work as Work
from rmsd_jax.models.flops import forward as forward
from rmsd_jax.models.flops import layer_weights as layer_weights
from rmsd_jax.models.flops import pairs as pairs
from rmsd_jax.models.flops import vision as vision


def size(pieces: Sequence[Piece], prompt_B, response_BR) -> Size:
  """Of a plan for groups of these lengths."""
  rows = lambda piece: len(piece.rows) * piece.deep
  return Size(
    tokens=sum(rows(piece) * (piece.P + piece.W) for piece in pieces),
    responses=sum(rows(piece) * piece.W for piece in pieces),
    pairs=pairs(prompt_B, response_BR),
    longest=max(piece.W for piece in pieces),
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


def policy(
  c: ModelConfig, size: Size, remat: str, chunk: int, teacher: ModelConfig | None = None
) -> Work:
  """The gradient of the policy: the student forward and backward, the reference forward.

  Args:
    teacher: of the reference, where that is another model; its encoding of the media is left out.
  """
  once = forward(c, size, True)
  reference = forward(teacher or c, size, True)
  return once.times(3).plus(reference).plus(recomputed(once, size.longest, remat, chunk))


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


def every_turn(rows: Sequence[int], window: int, tokens: int) -> list[list[Turn]]:
  """Of each loop, the turns that differ: one for each window of caches of so many tokens."""
  ends = [min(end, tokens) for end in range(window, tokens + window, window)]
  return [[Turn(n, end) for end in ends] for n in rows]


def traffic_of(every: list[list[Turn]], found: list[list[dict[str, int]]]) -> dict[Turn, int]:
  """HBM bytes of each turn from those of a compiled program (hlo.turn_traffic); empty where its
  loops are not these."""
  if [len(windows) for windows in every] != [len(windows) for windows in found]:
    return {}
  pairs = zip(sum(every, []), sum(found, []), strict=True)
  return {turn: sum(kinds.values()) for turn, kinds in pairs}


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


def decode_bytes(
  t: TextConfig, P: int, groups: int, decoding: Sequence[Turn], on_chip: bool
) -> float:
  """HBM traffic of the caches of a shard in decoding, bfloat16: in each turn a group's prompt is
  read once, of each row its places. Scores go to HBM in fp32 and back twice, as XLA for TPU has it.

  Args:
    groups: prompts of a shard.
    on_chip: those of the prompts do not (models/flash_decoding.py).
  """
  # Queries of responses that left stay, masked.
  asking = 0 if on_chip else max(turn.rows for turn in decoding)
  keys = sum(groups * P + turn.rows * turn.places for turn in decoding)
  scores = sum(asking * P + turn.rows * turn.places for turn in decoding)
  return cache_bytes(t) * keys + 3 * 4 * t.layers * t.heads * scores

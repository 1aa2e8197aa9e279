"""How much work the steps are, from sizes alone: FLOPs and HBM bytes of a whole batch.

A multiply-add is 2 FLOPs. A backward pass costs twice its forward pass; recomputing layers (remat)
costs one forward pass more. Causal attention counts the pairs that may see each other.

Axes: B prompts, P prompt tokens, R responses (N rollouts, K teacher's), T response tokens.
"""

from collections.abc import Sequence

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


def recomputed(forward_pass: Work, longest: int, remat: bool, chunk: int) -> Work:
  """What a backward pass computes a second time: layers with remat, logits of several chunks.

  Args:
    forward_pass: its work.
    longest: response places of a row.
    chunk: `logit_chunk`, those of which the logits exist at a time (losses.token_logps).
  """
  # A single chunk keeps its logits for the backward pass, whatever remat does with the layers.
  layers = forward_pass if remat else Work()
  return layers._replace(logits=forward_pass.logits if longest > chunk else 0.0)


def sft(c: ModelConfig, size: Size, remat: bool, chunk: int) -> Work:
  """The gradient of stage 1, without the encoding of the media."""
  once = forward(c, size, True)
  return once.times(3).plus(recomputed(once, size.longest, remat, chunk))


def policy(c: ModelConfig, size: Size, remat: bool, chunk: int) -> Work:
  """The gradient of the policy: the student forward and backward, the reference forward."""
  once = forward(c, size, True)
  return once.times(4).plus(recomputed(once, size.longest, remat, chunk))


def discriminator(c: ModelConfig, size: Size, remat: bool) -> Work:
  """Scores of N + K responses and the gradient of the pairs, in one pass."""
  return forward(c, size, False).times(4 if remat else 3)


def rollout(c: ModelConfig, B: int, bucket: Bucket, N: int) -> Work:
  """Encoding the media, prefilling the prompts, N responses of full length."""
  P = bucket.prompt
  T = bucket.response
  t = c.text
  prefill = forward(c, Size(B * P, 0, B * P * (P + 1) / 2, 0), False)
  decode = Work(
    linear=2 * B * N * T * t.layers * layer_weights(t),
    attention=4 * B * N * (T * P + T * (T + 1) / 2) * t.layers * t.heads * t.head,
    logits=2 * B * N * T * t.vocab * t.width,
  )
  return prefill.plus(decode).plus(vision(c.vision, B * bucket.frames, bucket.patches))


def cache_bytes(t: TextConfig) -> int:
  """Bytes of the keys and values of one token in all layers, in bfloat16."""
  return 2 * 2 * t.layers * t.kv_heads * t.head


def decode_bytes(c: ModelConfig, B: int, bucket: Bucket, N: int, weight_bytes: float) -> float:
  """Least HBM traffic of decoding on all devices together: each reads its copy of the weights once
  a token, a group's prompt cache once a token, each response its own cache; bfloat16 caches.

  Args:
    weight_bytes: what one token reads of weights, all devices together.
  """
  P = bucket.prompt
  T = bucket.response
  # A response's own cache grows from 0 to T, so that a token reads half of it on average.
  return T * (weight_bytes + B * cache_bytes(c.text) * (P + N * T / 2))

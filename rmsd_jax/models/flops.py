"""FLOPs of a forward pass, from sizes alone. A multiply-add is 2; causal attention counts the pairs
that may see each other. What the steps make of it: `rmsd_jax.compile.cost` (all that is computed),
`rmsd_jax.training.timing` (what is of use).

Axes: B prompts, R responses.
"""

from typing import NamedTuple

import numpy as np

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


def forward(c: ModelConfig, size: Size, with_logits: bool) -> Work:
  """The decoder over packed rows; logits of response tokens only."""
  t = c.text
  # Norms, rotations and softmax are left out: they are small beside the matrix products.
  return Work(
    linear=2 * size.tokens * t.layers * layer_weights(t),
    attention=4 * size.pairs * t.layers * t.heads * t.head,
    logits=2 * size.responses * t.vocab * t.width * with_logits,
  )

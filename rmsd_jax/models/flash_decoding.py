"""Decoding on TPU: a new token of each response on the keys and values of its group's prompt.

XLA writes the scores of all prompts to HBM and reads them back twice, in fp32; here they stay on
the chip. For the responses' own caches, whose scores are few, XLA is left to itself.
Axes: L layers, B prompts, P prompt tokens, K key/value heads, Q queries of one of them (responses
of the prompt x query heads that share it), H head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rmsd_jax.models.layers import NEVER

_SPARE = 16 << 20  # bytes on the chip beside the keys and values of a prompt and their scores


def attention(
  q_BKQH: jax.Array,
  prompt_kv: tuple[jax.Array, jax.Array],
  layer: jax.Array,
  prompt_length_B: jax.Array,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of scaled queries: fp32 (sums of the values [B, K, Q, H], the largest score [B, K, Q, 1], the
  sum of the weights [B, K, Q, 1]), as `attention._partial`.

  Args:
    prompt_kv: keys and values of all layers [L, B, K, P, H]; one layer's are read, where they lie.
    layer: int32, which.
    prompt_length_B: int32, places behind it are not seen.
    interpret: run on any backend, slowly.
  """
  B, K, Q, H = q_BKQH.shape
  P = prompt_kv[0].shape[3]
  # One turn for each prompt and head; the next turn's keys and values are fetched meanwhile.
  of_turn = lambda b, k, *_: (b, k, 0, 0)
  queries = lambda width: pl.BlockSpec((1, 1, Q, width), of_turn)
  keys = pl.BlockSpec((1, 1, 1, P, H), lambda b, k, layer, _: (layer[0], b, k, 0, 0))
  shape = lambda width: jax.ShapeDtypeStruct((B, K, Q, width), jnp.float32)
  both = 2 * P * H * prompt_kv[0].dtype.itemsize  # keys and values of a turn
  width = H * q_BKQH.dtype.itemsize + (H + 2) * 4  # bytes of a query and what comes of it
  return pl.pallas_call(
    _turn,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(B, K),
      in_specs=[queries(H), keys, keys],
      out_specs=[queries(H), queries(1), queries(1)],
    ),
    out_shape=[shape(H), shape(1), shape(1)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel"),
      vmem_limit_bytes=2 * both + 3 * 4 * max(Q, 8) * P + _SPARE,
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * B * K * Q * P * H,
      transcendentals=B * K * Q * P,
      bytes_accessed=B * K * (both + Q * width),
    ),
    interpret=interpret,
    name="flash_decoding",
  )(layer[None], prompt_length_B, q_BKQH, *prompt_kv)


def _turn(layer, length_B, q, k, v, values, top, total):
  """One prompt's one head: refs in blocks as above."""
  del layer  # which has chosen the blocks
  product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
  scores_QP = product(q[0, 0], k[0, 0, 0], (((1,), (1,)), ((), ())))
  place_QP = jax.lax.broadcasted_iota(jnp.int32, scores_QP.shape, 1)
  scores_QP = jnp.where(place_QP < length_B[pl.program_id(0)], scores_QP, NEVER)
  top_Q1 = scores_QP.max(1, keepdims=True)
  weights_QP = jnp.exp(scores_QP - top_Q1)
  values[0, 0] = product(weights_QP.astype(v.dtype), v[0, 0, 0], (((1,), (0,)), ((), ())))
  top[0, 0] = top_Q1
  total[0, 0] = weights_QP.sum(1, keepdims=True)

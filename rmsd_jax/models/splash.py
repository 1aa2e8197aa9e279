"""Attention of packed rows on TPU: Pallas splash attention with a mask made on the device.

Where responses start is data, so that one program serves all lengths of a padded size. Blocks
that the rule leaves empty (siblings, other groups, the future) are skipped, and no [S, S] mask is
stored.
Axes: X rows, S = P + W places, N query heads, K key/value heads, H head width, n blocks.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from rmsd_jax.core.errors import UserError
from rmsd_jax.models.layers import ATTENTION

LANES = 128  # P and W must be multiples: blocks are
BLOCK = 512  # a row should be a multiple: of larger blocks more is computed for nothing
MOST = 1 << 15  # places of a row
_PLACE_BITS = 16  # low bits of a query's number: its place; above: where its segment starts


@functools.lru_cache(maxsize=64)
def _rule(P: int):
  """The mask function; one object per P, because the kernel takes it as a static argument. Groups
  are the kernel's segments."""

  def may_see(query, key):
    place = query & ((1 << _PLACE_BITS) - 1)
    start = query >> _PLACE_BITS
    return (key <= place) & ((key < P) | (key >= start))

  return may_see


def check_sizes(P: int, W: int) -> None:
  """Raises UserError where the kernel cannot run."""
  if P % LANES or W % LANES or P + W > MOST:
    raise UserError(
      f"attention 'splash' needs P and W to be multiples of {LANES} and rows of at most {MOST:,} "
      f"places, got P = {P}, W = {W}; build the pool with such buckets, or set model.attention to "
      "'split'"
    )


def block_of(S: int) -> int:
  """The largest block of 512, 256 or 128 that divides the row: larger ones are fewer turns."""
  return next(block for block in (BLOCK, 256, LANES) if S % block == 0)


def mask_infos(start_S, group_S, P: int, block: int) -> tuple[MaskInfo, MaskInfo]:
  """What the kernel has to know of a row's mask: for the forward pass and dq, and for dk and dv.

  For each block of queries and keys whether anything in it may be seen, and which block of keys
  (of queries, for dk and dv) comes next, so that it is fetched in time.
  """
  S = len(start_S)
  n = S // block
  place_S = jnp.arange(S, dtype=jnp.int32)
  first_n = jnp.arange(n) * block
  last_n = first_n + block - 1
  earliest_n = start_S.reshape(n, block).min(1)
  lowest_n = group_S.reshape(n, block).min(1)
  highest_n = group_S.reshape(n, block).max(1)
  need_nn = first_n[None] <= last_n[:, None]
  need_nn &= (first_n[None] < P) | (last_n[None] >= earliest_n[:, None])
  need_nn &= (lowest_n[:, None] <= highest_n[None]) & (lowest_n[None] <= highest_n[:, None])
  # A block of padding sees itself: a row of queries without any key would be NaN.
  need_nn |= jnp.eye(n, dtype=bool)
  block_mask = need_nn.astype(jnp.int32)
  queries_S = place_S | start_S.astype(jnp.int32) << _PLACE_BITS
  info = lambda data_next: MaskInfo(data_next[None], None, block_mask[None], None, queries_S, None)
  return info(_next(block_mask)), info(_next(block_mask.T).T)


def _next(block_mask):
  """For each block, row by row, the column of the next one that is needed; wraps around."""
  n = len(block_mask)
  flat = block_mask.reshape(-1)
  index = jnp.where(flat > 0, jnp.arange(flat.size), flat.size)
  upcoming = jax.lax.cummin(index, reverse=True)
  return (jnp.where(upcoming == flat.size, 0, upcoming) % n).reshape(n, n).astype(jnp.int32)


def attention(q_XNSH, k_XKSH, v_XKSH, layout, interpret: bool = False):
  """o_XNSH under the group rule; queries come scaled. Of the rows of one device.

  The fused backward pass is off: it writes dq once per key block (1,157 instead of 337 MB of
  temporaries at P = 4,096, W = 4,096 on a v5e).
  """
  P = layout.P
  S = q_XNSH.shape[2]
  check_sizes(P, S - P)
  b = block_of(S)
  blocks = kernel_lib.BlockSizes(
    block_q=b, block_kv=b, block_kv_compute=b, block_q_dkv=b, block_kv_dkv=b,
    block_kv_dkv_compute=b, block_q_dq=b, block_kv_dq=b,
  )  # fmt: skip

  def row(x):
    q_NSH, k_KSH, v_KSH, start_S, group_S = x
    forward, backward = mask_infos(start_S, group_S, P, b)
    kernel = kernel_lib.SplashAttentionKernel(
      forward,
      forward,
      backward,
      block_sizes=blocks,
      is_mqa=False,
      save_residuals=False,
      mask_value=kernel_lib.DEFAULT_MASK_VALUE,
      attn_logits_soft_cap=None,
      residual_checkpoint_name=ATTENTION,
      mask_function=_rule(P),
      interpret=interpret,
    )
    return kernel(q_NSH, k_KSH, v_KSH, kernel_lib.SegmentIds(group_S, group_S))

  # Row by row: the kernel reads one mask.
  return jax.lax.map(row, (q_XNSH, k_XKSH, v_XKSH, layout.start_XS, layout.group_XS))

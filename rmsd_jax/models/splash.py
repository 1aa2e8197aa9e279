"""Group attention on TPU: Pallas splash attention with the group rule as a lazily computed mask.

Blocks that the rule leaves empty (siblings, the future) are skipped, and no [S, S] mask is stored.
Axes: B prompts, S = P + R*T packed tokens, N query heads, K key/value heads, H head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.core.errors import UserError

LANES = 128  # P and T must be multiples: a segment starts where a register of the TPU does
_PLACE_BITS = 18  # low bits of a query's number: its place; above: its segment's start / LANES


class GroupMask(mask_lib._ComputableMask):
  """The group rule for splash attention: prompt P, then R responses of T tokens.

  A query's number packs its place and where its segment starts, so the kernel needs no division.
  """

  def __init__(self, P: int, R: int, T: int):
    self._key = (P, R, T)
    size = P + R * T
    super().__init__((size, size), _rule(P))
    place_S = np.arange(size)
    # The prompt's segment starts at 0. Starts are multiples of LANES (see `check_sizes`), so that
    # dividing by LANES loses nothing and both numbers fit in an int32.
    start_S = np.where(place_S < P, 0, P + (place_S - P) // max(T, 1) * T)
    self.q_sequence = (place_S | start_S // LANES << _PLACE_BITS).astype(np.int32)

  # The library tells the masks of heads apart by these two: equal masks are summed up once.
  def __eq__(self, other: object) -> bool:
    return isinstance(other, GroupMask) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


@functools.lru_cache(maxsize=64)
def _rule(P: int):
  """The mask function; one object per P, because the kernel takes it as a static argument."""

  def may_see(query, key):
    place = query & ((1 << _PLACE_BITS) - 1)
    start = query >> _PLACE_BITS << 7  # * LANES
    return (key <= place) & ((key < P) | (key >= start))

  return may_see


def check_sizes(P: int, R: int, T: int) -> None:
  """Raises UserError where the kernel cannot run."""
  if P % LANES or R and T % LANES or P + R * T >= 1 << _PLACE_BITS:
    raise UserError(
      f"attention 'splash' needs P and T to be multiples of {LANES} and at most "
      f"{1 << _PLACE_BITS:,} tokens in a group, got P = {P}, R = {R}, T = {T}; build the pool with "
      "such buckets, or set model.attention to 'split'"
    )


def block_of(P: int, R: int, T: int) -> int:
  """The largest block of 512, 256 or 128 that divides the packed row."""
  # Larger blocks are fewer turns of the kernel: at P = 4,096, R = 8, T = 512 a head's forward pass
  # takes 16 x 9 with 512 and 64 x 36 with 128. With 1,024 more is computed for nothing (47 % of all
  # blocks instead of 42 %).
  return next(block for block in (512, 256, LANES) if (P + R * T) % block == 0)


def _kernel(P: int, R: int, T: int, heads: int, interpret: bool):
  """The kernel for [N, S, H] queries. Its mask is summed up on the host: O(S^2) numpy work, which
  the library keeps for equal masks (1.4 s for 8,192 tokens, 29 s for 49,152).

  The fused backward pass is off: it writes dq once per key block (1,157 instead of 337 MB of
  temporaries at P = 4,096, R = 8, T = 512 on a v5e).
  """
  b = block_of(P, R, T)
  blocks = kernel_lib.BlockSizes(
    block_q=b, block_kv=b, block_kv_compute=b, block_q_dkv=b, block_kv_dkv=b,
    block_kv_dkv_compute=b, block_q_dq=b, block_kv_dq=b,
  )  # fmt: skip
  mask = mask_lib.MultiHeadMask([GroupMask(P, R, T)] * heads)
  return kernel_lib.make_splash_mha(
    mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
  )


def attention(q_BNSH, k_BKSH, v_BKSH, layout, prompt_length_B, interpret: bool = False):
  """o_BNSH under the group rule; queries come scaled. Heads lie on the mesh's "tensor" axis.

  Padding of the prompt is a segment of its own, so nothing that counts sees it.
  """
  check_sizes(*layout)
  mesh = jax.sharding.get_abstract_mesh()

  def local(q_BNSH, k_BKSH, v_BKSH, prompt_length_B):
    # Inside shard_map the arrays are this device's: the kernel is made for its share of the heads.
    run = _kernel(*layout, q_BNSH.shape[1], interpret)
    place_S = jnp.arange(q_BNSH.shape[2])
    padding_BS = (place_S >= prompt_length_B[:, None]) & (place_S < layout.P)
    # Padding sees padding, itself at least: a row without any key would be NaN.
    segments = jnp.where(padding_BS, 0, 1).astype(jnp.int32)
    row = lambda q, k, v, s: run(q, k, v, kernel_lib.SegmentIds(s, s))
    return jax.vmap(row)(q_BNSH, k_BKSH, v_BKSH, segments)

  if mesh.empty or mesh.size == 1:
    return local(q_BNSH, k_BKSH, v_BKSH, prompt_length_B)
  # XLA's partitioner cannot look into a Pallas kernel, so the split is written out.
  heads = Spec(("data", "fsdp"), "tensor", None, None)
  return jax.shard_map(
    local,
    in_specs=(heads, heads, heads, Spec(("data", "fsdp"))),
    out_specs=heads,
    check_vma=False,
  )(q_BNSH, k_BKSH, v_BKSH, prompt_length_B)

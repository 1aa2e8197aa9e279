"""The vision tower: patches of frame pairs -> visual tokens for the prompt and for DeepStack.

Attention stays inside one frame pair, so frame pairs of all clips are one batch, and scores exist
of one pair of each clip at a time.
Axes: B prompts, F frame pairs, S patches of a pair, C values of a patch, W tower width, U its MLP,
V = F * S / merge^2 visual tokens, D decoder width, n DeepStack levels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rmsd_jax.core import positions, sharding
from rmsd_jax.models import layers
from rmsd_jax.models.config import VisionConfig


class Embed(nnx.Module):
  """Patches to width W, plus the position table interpolated to the picture's size."""

  def __init__(self, c: VisionConfig, rngs: nnx.Rngs):
    self.kernel = layers.normal(rngs, c.init_std, C=c.patch_values, W=c.width)
    self.bias = layers.zeros(W=c.width)
    self.table = layers.normal(rngs, c.init_std, Y=c.table**2, W=c.width)

  def __call__(self, patches_FSC, taps_FS4, weights_FS4):
    # Frame pairs and patches do not overlap, so the convolution over them is one product.
    x_FSW = layers.linear(patches_FSC, self.kernel[...], self.bias[...])
    # Four entries of the table around each patch, weighted: [F, S, 4, W] -> [F, S, W].
    table = self.table[...].astype(x_FSW.dtype)
    return x_FSW + jnp.einsum("FSiW,FSi->FSW", table[taps_FS4], weights_FS4.astype(x_FSW.dtype))


class Block(nnx.Module):
  """Pre-norm attention inside a frame pair, then an MLP with the tanh GELU."""

  def __init__(self, c: VisionConfig, rngs: nnx.Rngs):
    head = c.width // c.heads
    weight = functools.partial(layers.normal, rngs, c.init_std)
    self.norm1_scale = layers.ones(W=c.width)
    self.norm1_bias = layers.zeros(W=c.width)
    # The released files store the three side by side, and one product serves all.
    self.qkv = weight(W=c.width, three=3, N=c.heads, H=head)
    self.qkv_bias = layers.zeros(three=3, N=c.heads, H=head)
    self.proj = weight(N=c.heads, H=head, W=c.width)
    self.proj_bias = layers.zeros(W=c.width)
    self.norm2_scale = layers.ones(W=c.width)
    self.norm2_bias = layers.zeros(W=c.width)
    self.fc1 = weight(W=c.width, U=c.mlp)
    self.fc1_bias = layers.zeros(U=c.mlp)
    self.fc2 = weight(U=c.mlp, W=c.width)
    self.fc2_bias = layers.zeros(W=c.width)

  def __call__(self, x_FSW, angles_FSE, real_FS, frames: int):
    """F are the frame pairs of all prompts, `frames` of each, one prompt's behind another's."""
    y = layers.layer_norm(x_FSW, self.norm1_scale[...], self.norm1_bias[...])
    qkv_FSiNH = layers.linear(y, self.qkv[...], self.qkv_bias[...])
    q, k, v = (qkv_FSiNH[:, :, i].swapaxes(1, 2) for i in range(3))  # F N S H
    # Turned in fp32 here, unlike in the decoder: transformers casts queries and keys of the tower
    # up.
    turn = lambda x: positions.rotate(x.astype(jnp.float32), angles_FSE[:, None]).astype(x.dtype)
    q = turn(q)
    k = turn(k)
    # One frame pair of every prompt at a time: the scores of a whole clip, in fp32, would take more
    # memory than all else in the tower. Prompts, which are split over the devices, stay together.
    by_pair = lambda x: x.reshape(-1, frames, *x.shape[1:]).swapaxes(0, 1)
    o = jax.lax.map(lambda pair: _attend(*pair), jax.tree.map(by_pair, (q, k, v, real_FS)))
    o_FSNH = o.swapaxes(0, 1).reshape(q.shape).swapaxes(1, 2)
    x_FSW += layers.linear(o_FSNH, self.proj[...], self.proj_bias[...], inputs=2)
    y = layers.layer_norm(x_FSW, self.norm2_scale[...], self.norm2_bias[...])
    y = jax.nn.gelu(layers.linear(y, self.fc1[...], self.fc1_bias[...]), approximate=True)
    return x_FSW + layers.linear(y, self.fc2[...], self.fc2_bias[...])


@jax.checkpoint  # or a tower that learns would keep the scores of all pairs for its backward pass
def _attend(q_BNSH, k_BNSH, v_BNSH, real_BS):
  """Attention inside one frame pair of every prompt. A pair is a batch of its own, so that no mask
  keeps pairs apart; only padding is masked. One of padding alone sees nothing and yields a mean,
  which no one reads."""
  scores = jnp.einsum("BNSH,BNZH->BNSZ", q_BNSH, k_BNSH, preferred_element_type=jnp.float32)
  scores = jnp.where(real_BS[:, None, None], scores * q_BNSH.shape[-1] ** -0.5, layers.NEVER)
  return jnp.einsum("BNSZ,BNZH->BNSH", jax.nn.softmax(scores, -1).astype(v_BNSH.dtype), v_BNSH)


class Merger(nnx.Module):
  """merge^2 neighbouring patches to one token of the decoder's width; exact (erf) GELU.

  The main merger normalises each patch, a DeepStack merger the joined patches.
  """

  def __init__(self, c: VisionConfig, rngs: nnx.Rngs, norm_joined: bool):
    self.norm_joined = norm_joined
    joined = c.width * c.merge**2
    normed = joined if norm_joined else c.width
    self.norm_scale = layers.ones(W=normed)
    self.norm_bias = layers.zeros(W=normed)
    self.fc1 = layers.normal(rngs, c.init_std, X=joined, Z=joined)
    self.fc1_bias = layers.zeros(Z=joined)
    self.fc2 = layers.normal(rngs, c.init_std, Z=joined, D=c.out)
    self.fc2_bias = layers.zeros(D=c.out)

  def __call__(self, x_FSW):
    frames = x_FSW.shape[0]
    joined = self.fc1.shape[0]
    # Patches stand block by block, so that merge^2 in a row are the neighbours to join:
    # [F, S, W] -> [F, S / merge^2, merge^2 * W], before the norm or behind it.
    if self.norm_joined:
      x_FSW = x_FSW.reshape(frames, -1, joined)
    y = layers.layer_norm(x_FSW, self.norm_scale[...], self.norm_bias[...])
    y = layers.linear(y.reshape(frames, -1, joined), self.fc1[...], self.fc1_bias[...])
    # Without the two constraints XLA's partitioner got the gradient wrong (not the value) where a
    # batch was cut in pieces on a mesh with all three axes.
    y = sharding.by_prompt(jax.nn.gelu(y, approximate=False))
    return sharding.by_prompt(layers.linear(y, self.fc2[...], self.fc2_bias[...]))


@dataclasses.dataclass(frozen=True)
class VisionTower:
  """Parameters: {"embed", "blocks" (stacked), "merger", "deepstack" (stacked)}."""

  config: VisionConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  @functools.cached_property
  def _parts(self):
    c = self.config
    return {
      "embed": layers.Stack(functools.partial(Embed, c)),
      "blocks": layers.Stack(functools.partial(Block, c)),
      "merger": layers.Stack(functools.partial(Merger, c, norm_joined=False)),
      "deepstack": layers.Stack(functools.partial(Merger, c, norm_joined=True)),
    }

  def init(self, key: jax.Array) -> dict:
    c = self.config
    keys = jax.random.split(key, 4)
    single = {"embed": keys[0], "merger": keys[1]}
    return {
      **{k: jax.tree.map(lambda x: x[0], self._parts[k].init(v, 1)) for k, v in single.items()},
      "blocks": self._parts["blocks"].init(keys[2], c.depth),
      "deepstack": self._parts["deepstack"].init(keys[3], len(c.deepstack)),
    }

  def __call__(self, params: dict, patches_BFSC: jax.Array, grid_BF2: jax.Array):
    """Returns visual tokens [B, V, D] and DeepStack tokens [B, n, V, D]."""
    c = self.config
    parts = self._parts
    # 1. Frame pairs of all clips become one batch [B * F, S, ..]. Patches come as bytes, a quarter
    # of what fp32 would send to the device, and are normalised here (mean and s.d. 0.5).
    B, F, S, C = patches_BFSC.shape
    grid = grid_BF2.reshape(B * F, 2)
    places = positions.patch_rows_columns(grid, S, c.merge)
    real = jnp.arange(S) < jnp.prod(grid, -1)[:, None]
    angles = positions.patch_angles(places, c.width // c.heads)
    pixels = (patches_BFSC.reshape(B * F, S, C).astype(jnp.float32) / 127.5 - 1).astype(self.dtype)
    # Frames stay split over the devices: left to itself XLA splits the tower's width instead, as
    # its weights are split, and sums every norm and product over all devices.
    x = parts["embed"].layer(params["embed"])(
      sharding.by_prompt(pixels), *positions.position_taps(places, grid, c.table)
    )

    def body(x, block):
      return parts["blocks"].layer(block)(sharding.by_prompt(x), angles, real, F), None

    # 2. The scan over blocks is cut behind each block that feeds DeepStack, so that the outputs of
    # these alone are kept.
    body = layers.recomputed(body, self.remat)
    pick = lambda tree, index: jax.tree.map(lambda w: w[index], tree)
    deep = []
    start = 0
    for level, last in enumerate(c.deepstack):
      x, _ = jax.lax.scan(body, x, pick(params["blocks"], slice(start, last + 1)))
      merger = parts["deepstack"].layer(pick(params["deepstack"], level))
      # [B * F, S / merge^2, D] -> [B, V, D]: a prompt's visual tokens, frame pair by frame pair.
      deep.append(merger(x).reshape(B, -1, c.out))
      start = last + 1
    x, _ = jax.lax.scan(body, x, pick(params["blocks"], slice(start, c.depth)))
    tokens = parts["merger"].layer(params["merger"])(x).reshape(B, -1, c.out)
    return tokens, jnp.stack(deep, 1)

"""The vision tower: patches of frame pairs -> visual tokens for the prompt and for DeepStack.

Attention stays inside one frame pair, so frame pairs of all clips are one batch.
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
from rmsd_jax.models.attention import NEVER
from rmsd_jax.models.config import VisionConfig


class Embed(nnx.Module):
  """Patches to width W, plus the position table interpolated to the picture's size."""

  def __init__(self, c: VisionConfig, rngs: nnx.Rngs):
    self.kernel = layers.normal(rngs, c.init_std, C=c.patch_values, W=c.width)
    self.bias = layers.zeros(W=c.width)
    self.table = layers.normal(rngs, c.init_std, Y=c.table**2, W=c.width)

  def __call__(self, patches_FSC, taps_FS4, weights_FS4):
    x_FSW = layers.linear(patches_FSC, self.kernel[...], self.bias[...])
    table = self.table[...].astype(x_FSW.dtype)
    return x_FSW + jnp.einsum("FSiW,FSi->FSW", table[taps_FS4], weights_FS4.astype(x_FSW.dtype))


class Block(nnx.Module):
  """Pre-norm attention inside a frame pair, then an MLP with the tanh GELU."""

  def __init__(self, c: VisionConfig, rngs: nnx.Rngs):
    w, n, h, u, std = c.width, c.heads, c.width // c.heads, c.mlp, c.init_std
    self.norm1_scale, self.norm1_bias = layers.ones(W=w), layers.zeros(W=w)
    self.qkv = layers.normal(rngs, std, W=w, three=3, N=n, H=h)
    self.qkv_bias = layers.zeros(three=3, N=n, H=h)
    self.proj = layers.normal(rngs, std, N=n, H=h, W=w)
    self.proj_bias = layers.zeros(W=w)
    self.norm2_scale, self.norm2_bias = layers.ones(W=w), layers.zeros(W=w)
    self.fc1, self.fc1_bias = layers.normal(rngs, std, W=w, U=u), layers.zeros(U=u)
    self.fc2, self.fc2_bias = layers.normal(rngs, std, U=u, W=w), layers.zeros(W=w)

  def __call__(self, x_FSW, angles_FSE, real_FS):
    y = layers.layer_norm(x_FSW, self.norm1_scale[...], self.norm1_bias[...])
    qkv_FSiNH = layers.linear(y, self.qkv[...], self.qkv_bias[...])
    q, k, v = (qkv_FSiNH[:, :, i].swapaxes(1, 2) for i in range(3))  # F N S H
    turn = lambda x: positions.rotate(x.astype(jnp.float32), angles_FSE[:, None]).astype(x.dtype)
    q, k = turn(q), turn(k)
    scores = jnp.einsum("FNSH,FNZH->FNSZ", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(real_FS[:, None, None], scores * q.shape[-1] ** -0.5, NEVER)
    o = jnp.einsum("FNSZ,FNZH->FNSH", jax.nn.softmax(scores, -1).astype(v.dtype), v)
    o_FSNH = o.swapaxes(1, 2)
    x_FSW += layers.linear(o_FSNH, self.proj[...], self.proj_bias[...], inputs=2)
    y = layers.layer_norm(x_FSW, self.norm2_scale[...], self.norm2_bias[...])
    y = jax.nn.gelu(layers.linear(y, self.fc1[...], self.fc1_bias[...]), approximate=True)
    return x_FSW + layers.linear(y, self.fc2[...], self.fc2_bias[...])


class Merger(nnx.Module):
  """merge^2 neighbouring patches to one token of the decoder's width; exact (erf) GELU.

  The main merger normalises each patch, a DeepStack merger the joined patches.
  """

  def __init__(self, c: VisionConfig, rngs: nnx.Rngs, norm_joined: bool):
    x, self.norm_joined = c.width * c.merge**2, norm_joined
    w = x if norm_joined else c.width
    self.norm_scale, self.norm_bias = layers.ones(W=w), layers.zeros(W=w)
    self.fc1, self.fc1_bias = layers.normal(rngs, c.init_std, X=x, Z=x), layers.zeros(Z=x)
    self.fc2, self.fc2_bias = layers.normal(rngs, c.init_std, Z=x, D=c.out), layers.zeros(D=c.out)

  def __call__(self, x_FSW):
    frames, joined = x_FSW.shape[0], self.fc1.shape[0]
    if self.norm_joined:
      x_FSW = x_FSW.reshape(frames, -1, joined)
    y = layers.layer_norm(x_FSW, self.norm_scale[...], self.norm_bias[...])
    y = layers.linear(y.reshape(frames, -1, joined), self.fc1[...], self.fc1_bias[...])
    # Without the two constraints XLA's partitioner gets the gradient wrong (not the value) when a
    # micro-batch is cut on a mesh with all three axes; tests/core/test_sharding.py would show it.
    y = sharding.by_prompt(jax.nn.gelu(y, approximate=False))
    return sharding.by_prompt(layers.linear(y, self.fc2[...], self.fc2_bias[...]))


@dataclasses.dataclass(frozen=True)
class VisionTower:
  """Parameters: {"embed", "blocks" (stacked), "merger", "deepstack" (stacked)}."""

  config: VisionConfig
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

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
    c, keys = self.config, jax.random.split(key, 4)
    single = {"embed": keys[0], "merger": keys[1]}
    return {
      **{k: jax.tree.map(lambda x: x[0], self._parts[k].init(v, 1)) for k, v in single.items()},
      "blocks": self._parts["blocks"].init(keys[2], c.depth),
      "deepstack": self._parts["deepstack"].init(keys[3], len(c.deepstack)),
    }

  def __call__(self, params: dict, patches_BFSC: jax.Array, grid_BF2: jax.Array):
    """Returns visual tokens [B, V, D] and DeepStack tokens [B, n, V, D]."""
    c, parts = self.config, self._parts
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
      return parts["blocks"].layer(block)(sharding.by_prompt(x), angles, real), None

    body = jax.checkpoint(body, prevent_cse=False) if self.remat else body
    pick = lambda tree, index: jax.tree.map(lambda w: w[index], tree)
    deep, start = [], 0
    for level, last in enumerate(c.deepstack):
      x, _ = jax.lax.scan(body, x, pick(params["blocks"], slice(start, last + 1)))
      merger = parts["deepstack"].layer(pick(params["deepstack"], level))
      deep.append(merger(x).reshape(B, -1, c.out))
      start = last + 1
    x, _ = jax.lax.scan(body, x, pick(params["blocks"], slice(start, c.depth)))
    tokens = parts["merger"].layer(params["merger"])(x).reshape(B, -1, c.out)
    return tokens, jnp.stack(deep, 1)

"""The text decoder: grouped-query attention, q/k norm, interleaved M-RoPE, DeepStack in the scan.

Axes: B prompts, S tokens of a packed row, P prompt tokens, R responses, L layers, D width, N query
heads, K key/value heads, H head width, E = H/2 rotary angles, M MLP width, V vocabulary,
n DeepStack levels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rmsd_jax.core import positions, sharding
from rmsd_jax.models import layers
from rmsd_jax.models.config import TextConfig


class DecoderLayer(nnx.Module):
  """Pre-norm attention and a SwiGLU MLP. What attention means is the caller's `attend`."""

  def __init__(self, c: TextConfig, rngs: nnx.Rngs):
    self.eps = c.eps
    weight = functools.partial(layers.normal, rngs, c.init_std)
    # Random weights follow the order of these lines, since each draws from `rngs` in turn.
    self.attention_norm = layers.ones(D=c.width)
    self.q = weight(D=c.width, N=c.heads, H=c.head)
    self.k = weight(D=c.width, K=c.kv_heads, H=c.head)
    self.v = weight(D=c.width, K=c.kv_heads, H=c.head)
    self.q_norm = layers.ones(H=c.head)
    self.k_norm = layers.ones(H=c.head)
    self.o = weight(N=c.heads, H=c.head, D=c.width)
    self.mlp_norm = layers.ones(D=c.width)
    self.gate = weight(D=c.width, M=c.mlp)
    self.up = weight(D=c.width, M=c.mlp)
    self.down = weight(M=c.mlp, D=c.width)

  def __call__(self, x_BSD, angles_BSE, attend):
    """attend(q_BSNH, k_BSKH, v_BSKH) -> (o_BSNH, kept). Returns (x_BSD, kept)."""
    # Queries and keys are normalised per head before they are turned, never after.
    y = layers.rms_norm(x_BSD, self.attention_norm[...], self.eps)
    q_BSNH = layers.rms_norm(layers.project(y, self.q[...]), self.q_norm[...], self.eps)
    k_BSKH = layers.rms_norm(layers.project(y, self.k[...]), self.k_norm[...], self.eps)
    v_BSKH = layers.project(y, self.v[...])
    q_BSNH, k_BSKH = (positions.rotate(x, angles_BSE[:, :, None]) for x in (q_BSNH, k_BSKH))
    # Training keeps nothing, prefill keeps keys and values, decoding the caches with a new token.
    o_BSNH, kept = attend(q_BSNH, k_BSKH, v_BSKH)
    x_BSD += layers.project(o_BSNH, self.o[...], inputs=2)
    y = layers.rms_norm(x_BSD, self.mlp_norm[...], self.eps)
    y_BSM = jax.nn.silu(layers.project(y, self.gate[...])) * layers.project(y, self.up[...])
    x_BSD += layers.project(y_BSM, self.down[...])
    return x_BSD, kept


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Parameters: {"embed" VD, "layers" (stacked on L), "norm" D, and "head" VD where untied}."""

  config: TextConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"
  unroll: bool = False

  @functools.cached_property
  def _stack(self):
    return layers.Stack(functools.partial(DecoderLayer, self.config))

  def init(self, key: jax.Array) -> dict:
    c = self.config
    layer_key, embed_key, head_key = jax.random.split(key, 3)
    table = lambda k: c.init_std * jax.random.normal(k, (c.vocab, c.width), jnp.float32)
    return {
      "embed": table(embed_key),
      "layers": self._stack.init(layer_key, c.layers),
      "norm": jnp.ones(c.width, jnp.float32),
      **({} if c.tied else {"head": table(head_key)}),
    }

  def embed(self, params: dict, tokens: jax.Array) -> jax.Array:
    # Cast behind the lookup: the rows that are read, not the table of 151,936.
    return params["embed"][tokens].astype(self.dtype)

  def angles(self, positions_B3S: jax.Array) -> jax.Array:
    """Rotary angles fp32 [B, S, H/2]."""
    c = self.config
    return positions.mrope_angles(positions_B3S, c.head, c.theta, c.sections)

  def norm(self, params: dict, x_BSD: jax.Array) -> jax.Array:
    return layers.rms_norm(x_BSD, params["norm"], self.config.eps)

  def __call__(self, params: dict, x_BSD, angles_BSE, deep_nBPD, attend):
    """All layers. attend as in DecoderLayer; returns (x_BSD, what attend kept, stacked on L).

    deep_nBPD: level i is added to the first P tokens after layer i (DeepStack).
    """
    n, _, P, _ = deep_nBPD.shape

    def body(x, layer):
      index, weights = layer
      x, kept = self._stack.layer(weights)(sharding.by_prompt(x), angles_BSE, attend)
      # Behind every layer, and 0 from layer n on, so that one body serves all layers of the scan.
      # The index is held inside the levels; what it reads there from layer n on is thrown away.
      extra = jnp.where(index < n, deep_nBPD[jnp.minimum(index, n - 1)], 0)
      return x.at[:, :P].add(extra), kept

    body = layers.recomputed(body, self.remat)
    layer = (jnp.arange(self.config.layers), params["layers"])
    x_BSD, kept = jax.lax.scan(body, x_BSD, layer, unroll=self.unroll)
    return x_BSD, kept

  def step(self, params: dict, x_ZXD, angles_ZXE, attend, caches):
    """All layers for one new token per response, with caches carried and updated in place.

    attend(q, k, v, layer_index, caches) -> (o, caches). Carrying them, instead of scanning over
    them, spares XLA a second copy of every cache.
    """

    def body(carry, layer):
      x, caches = carry
      index, weights = layer
      x, caches = self._stack.layer(weights)(
        sharding.by_prompt(x), angles_ZXE, lambda q, k, v: attend(q, k, v, index, caches)
      )
      return (x, caches), None

    layer = (jnp.arange(self.config.layers), params["layers"])
    (x_ZXD, caches), _ = jax.lax.scan(body, (x_ZXD, caches), layer, unroll=self.unroll)
    return x_ZXD, caches

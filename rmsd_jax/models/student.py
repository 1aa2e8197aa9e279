"""Qwen3-VL over packed rows of prompt groups.

The student, its reference and the body of the discriminator.

Axes: B prompts, R responses, P prompt tokens, T response tokens, X packed rows of S = P + W places,
F frame pairs, V visual tokens of a prompt (as an axis of `Visual`), L layers, D width, K key/value
heads, H head width, n DeepStack levels. In decoding: Z shards of the mesh, X rows of each, one for
a response.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.core import packed, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.models import attention, layers
from rmsd_jax.models.config import ModelConfig
from rmsd_jax.models.decoder import Decoder
from rmsd_jax.models.vision import VisionTower

# How weights lie on the mesh (data, fsdp, tensor); names as in rmsd_jax.core.named. The table is
# split over D, so that each device looks up its part of every token's row by itself and no lookup
# gathers the table. In layers the axis that a product puts out (heads, MLP) lies on "tensor", and
# the next product sums over it: only behind o and down are activations summed over the devices of a
# tensor group.
PARTITION = (
  ("text/(embed|head)", Spec(None, ("fsdp", "tensor"))),
  ("text/layers/[qkv]", Spec(None, "fsdp", "tensor", None)),
  ("text/layers/o", Spec(None, "tensor", None, "fsdp")),
  ("text/layers/(gate|up)", Spec(None, "fsdp", "tensor")),
  ("text/layers/down", Spec(None, "tensor", "fsdp")),
  ("text/(layers/(attention_norm|mlp_norm|q_norm|k_norm)|norm)", Spec()),
  ("vision/embed/(kernel|table)", Spec(None, "fsdp")),
  ("vision/blocks/qkv", Spec(None, "fsdp", None, "tensor", None)),
  ("vision/blocks/proj", Spec(None, "tensor", None, "fsdp")),
  ("vision/blocks/fc1", Spec(None, "fsdp", "tensor")),
  ("vision/blocks/fc2", Spec(None, "tensor", "fsdp")),
  ("vision/merger/fc[12]", Spec("fsdp", "tensor")),
  ("vision/deepstack/fc[12]", Spec(None, "fsdp", "tensor")),
  ("vision/.*(bias|scale)", Spec()),
)
# In decoding the table is split over V: each device makes the logits of its tokens, and none are
# summed over devices.
DECODING = (("text/(embed|head)", Spec("tensor", "fsdp")), *PARTITION[1:])
MOST_WINDOWS = 16  # of the responses' caches: each is a branch of the program


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visual:
  """What the vision tower makes of the prompts' media. One encoding serves every model that
  shares the tower's weights."""

  tokens_BVD: jax.Array
  deep_BnVD: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values: the prompt's once per group, a response's own for its T tokens."""

  prompt_k_LBKPH: jax.Array
  prompt_v_LBKPH: jax.Array
  own_k_LZXKTH: jax.Array
  own_v_LZXKTH: jax.Array

  def with_first(self, kept_ZX: jax.Array) -> "Cache":
    """The same cache with these rows, by their numbers in their shard, at the front. What is behind
    them is not read again."""

    def moved(cache, kept_ZX):
      # Layer by layer, in place: a smaller copy of the whole would stand beside the whole.
      def body(layer, cache):
        rows_XKTH = jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)[0][kept_ZX[0]]
        return jax.lax.dynamic_update_slice(cache, rows_XKTH[None, None], (layer, 0, 0, 0, 0, 0))

      return jax.lax.fori_loop(0, len(cache), body, cache)

    specs = attention.OWN_CACHES, sharding.BATCH
    move = sharding.by_shard(moved, specs, attention.OWN_CACHES)
    own = (move(c, kept_ZX) for c in (self.own_k_LZXKTH, self.own_v_LZXKTH))
    return Cache(self.prompt_k_LBKPH, self.prompt_v_LBKPH, *own)


class Underway(NamedTuple):
  """The responses that are decoded: X rows in each of Z shards, each one of the B * R."""

  place_ZX: jax.Array  # int32 b * R + r of a row's response, b counted within the shard
  start_ZX: jax.Array  # int32 where its positions start
  row_of_BRX: jax.Array | None  # bool, the row of each response, if it has one; None: all have

  @classmethod
  def of(cls, groups: PromptGroups, samples: int, place_ZX: jax.Array) -> "Underway":
    """Args:
    samples: R, responses of a prompt.
    place_ZX: as above; where all are under way, in their order.
    """
    B = len(groups.prompt_length_B)
    Z, X = place_ZX.shape
    positions_ZB = sharding.by_prompt(groups.next_position_B.reshape(Z, -1))
    start_ZX = jnp.take_along_axis(positions_ZB, place_ZX // samples, 1)
    if X == B // Z * samples:
      return cls(place_ZX, start_ZX, None)
    row_of_ZMX = jnp.arange(B // Z * samples)[:, None] == place_ZX[:, None]
    return cls(place_ZX, start_ZX, sharding.by_prompt(row_of_ZMX.reshape(B, samples, X)))


@dataclasses.dataclass(frozen=True)
class Qwen3VL:
  """Qwen3-VL as plain functions of a parameter dict {"text": .., "vision": ..}.

      model = Qwen3VL(config.from_hf(folder))
      params = model.init(jax.random.key(0))          # fp32 masters
      prompt_BPD, response_BRTD = model(params, groups)

  Args:
    config: sizes.
    dtype: of activations; weights are cast to it inside each layer. Norms, softmax and rotary
      angles stay fp32.
    remat: what the backward pass computes again, one of `layers.REMAT`: "all" of each layer, so
      that memory holds one layer instead of L, all but its "products" with weights, or "none".
    unroll: write out the layers instead of looping over them: for few layers on CPU, where XLA
      runs loop bodies some 20 % slower; compilation takes L times as long.
    attention: one of `attention.IMPLEMENTATIONS`.
    window: decoding reads the responses' caches in steps of so many places, or larger ones where
      there would be more than `MOST_WINDOWS`.
  """

  config: ModelConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"
  unroll: bool = False
  attention: str = "auto"
  window: int = 128

  @functools.cached_property
  def text(self) -> Decoder:
    return Decoder(self.config.text, self.dtype, self.remat, self.unroll)

  @functools.cached_property
  def vision(self) -> VisionTower:
    return VisionTower(self.config.vision, self.dtype, self.remat)

  def init(self, key: jax.Array) -> dict:
    """Random parameters, fp32."""
    text_key, vision_key = jax.random.split(key)
    return {"text": self.text.init(text_key), "vision": self.vision.init(vision_key)}

  def abstract(self) -> dict:
    """Shapes and dtypes of `init`, without computing anything."""
    return jax.eval_shape(lambda: self.init(jax.random.key(0)))

  def encode(self, params: dict, groups: PromptGroups) -> Visual:
    """Runs the vision tower. It always runs, padding frames included: shapes are static."""
    return Visual(*self.vision(params["vision"], groups.patches_BFSC, groups.grid_BF2))

  def encoded(self, params: dict, groups: PromptGroups, visual: Visual | None) -> Visual:
    """`visual`, or where it is None the media as these weights encode them: each set of weights
    for itself where the tower learns."""
    return self.encode(params, groups) if visual is None else visual

  def unembedding(self, params: dict) -> jax.Array:
    """The matrix fp32 [V, D] that turns hidden states into logits."""
    return params["text"]["embed" if self.config.text.tied else "head"]

  def __call__(self, params: dict, groups: PromptGroups, visual: Visual | None = None):
    """Hidden states after the last norm: of the prompts [B, P, D] and the responses [B, R, T, D].

    A row for each prompt, padding included; the trainers pack their rows and call `hidden`.
    """
    rows = packed.padded(groups)
    hidden_BSD = self.hidden(params, rows, self.encoded(params, groups, visual))
    shape = *groups.responses_BRT.shape, self.config.text.width
    return hidden_BSD[:, : rows.P], hidden_BSD[:, rows.P :].reshape(shape)

  def hidden(self, params: dict, rows: Rows, visual: Visual):
    """Hidden states after the last norm, [X, S, D] in the places of the rows.

    Args:
      visual: of the whole batch that the rows are of, see `encode`.
    """
    layout = attention.Layout.of(rows)

    def attend(q, k, v):
      return attention.group_attention(q, k, v, layout, self.attention), None

    x_XSD, deep_nXPD, angles_XSE = self._embedded(params, rows, visual)
    x_XSD, _ = self.text(params["text"], x_XSD, angles_XSE, deep_nXPD, attend)
    return self.text.norm(params["text"], x_XSD)

  def row_cost(self, P: int, W: int) -> float:
    """FLOPs, up to a constant, of a forward pass over a row of P + W places with logits for W: what
    the packing of rows minimises."""
    c = self.config.text
    layer = 2 * c.width * c.head * (c.heads + c.kv_heads) + 3 * c.width * c.mlp
    pairs = attention.crowding(P, W, self.attention, self.dtype)
    attended = 2 * pairs * c.layers * c.heads * c.head
    return (P + W) * c.layers * layer + W * c.vocab * c.width + attended

  def for_decoding(self, params: dict, gather: bool) -> dict:
    """Parameters for a loop that reads the text weights at every turn: these in the type of the
    activations, and where they are gathered, whole on every device up to the tensor axis. The
    results are the same."""
    # Cast first: half the bytes are then sent and kept.
    text = jax.tree.map(lambda x: x.astype(self.dtype), params["text"])
    return params | sharding.laid_out({"text": text}, DECODING, gather)

  def check_decoding(self, mesh: Mesh, tensor: int) -> None:
    """Raises UserError unless so many devices can decode together (rmsd_jax.rollouts.generate)."""
    grouped = sharding.grouped(mesh.abstract_mesh, tensor)
    sharding.shardings(grouped, {"text": self.abstract()["text"]}, DECODING)

  def logits(self, params: dict, groups: PromptGroups) -> jax.Array:
    """Logits of the whole prompts, fp32 [B, P, V], for checks and other uses; training never makes
    them (rmsd_jax.method.losses.token_logps)."""
    return _logits(self, params, groups)

  def prefill(self, params: dict, groups: PromptGroups, samples: int, tokens: int, visual=None):
    """Runs the prompts once and makes room for `samples` responses of `tokens` tokens each.

    Returns:
      The last prompt token's hidden state [B, D], which predicts the first response token, and
      the Cache.
    """
    c = self.config.text
    B = len(groups.tokens_BP)
    visual = self.encoded(params, groups, visual)
    rows = packed.padded(groups.prompts_alone())
    layout = attention.Layout.of(rows)
    x_BPD, deep_nBPD, angles_BPE = self._embedded(params, rows, visual)

    def attend(q, k, v):
      o = attention.group_attention(q, k, v, layout, self.attention)
      # Heads before tokens, [B, K, P, H]: in this order XLA updates and reads the caches in place,
      # where with [.., R, T, K, H] it kept a second copy of all of them.
      return o, (k.swapaxes(1, 2), v.swapaxes(1, 2))

    x_BPD, (k_LBKPH, v_LBKPH) = self.text(params["text"], x_BPD, angles_BPE, deep_nBPD, attend)
    shards = sharding.shards_here()
    rows = B // shards * samples
    own = jnp.zeros((c.layers, shards, rows, c.kv_heads, tokens, c.head), self.dtype)
    own = sharding.constrained(own, attention.OWN_CACHES)
    # Prompts are left-aligned, so their last tokens stand at different places. Only these are
    # normed: nothing else of a prompt is read again.
    last_BD = x_BPD[jnp.arange(B), groups.prompt_length_B - 1]
    prompt = (sharding.constrained(x, attention.PROMPT_CACHES) for x in (k_LBKPH, v_LBKPH))
    return self.text.norm(params["text"], last_BD), Cache(*prompt, own, own)

  def window_of(self, tokens: int) -> int:
    """Places of a window, of which decoding reads whole ones, in caches of so many tokens."""
    return max(self.window, -(-tokens // MOST_WINDOWS))

  def step(
    self, params: dict, tokens_ZX, t, groups: PromptGroups, under_way: Underway, cache: Cache
  ):
    """One token per response: token t goes in, the hidden state [Z, X, D] that predicts
    token t + 1 comes out, with the updated Cache."""
    window = self.window_of(cache.own_k_LZXKTH.shape[4])
    prompt = cache.prompt_k_LBKPH, cache.prompt_v_LBKPH

    def attend(q, k, v, layer, own):
      # [Z, X, K, H] -> [1, Z, X, K, 1, H]: one place of one layer. Written before it is read, since
      # a token sees itself.
      own = tuple(
        jax.lax.dynamic_update_slice(c, x[None, :, :, :, None], (layer, 0, 0, 0, t, 0))
        for c, x in zip(own, (k, v), strict=True)
      )
      o = attention.decode_attention(
        q, prompt, own, groups.prompt_length_B, under_way.row_of_BRX, layer, t, window,
        self.attention,
      )  # fmt: skip
      return o, own

    x_ZXD = self.text.embed(params["text"], tokens_ZX)
    own = cache.own_k_LZXKTH, cache.own_v_LZXKTH
    angles_ZXE = self._response_angles(under_way.start_ZX + t)
    x_ZXD, own = self.text.step(params["text"], x_ZXD, angles_ZXE, attend, own)
    cache = dataclasses.replace(cache, own_k_LZXKTH=own[0], own_v_LZXKTH=own[1])
    return sharding.by_prompt(self.text.norm(params["text"], x_ZXD)), cache

  def _embedded(self, params: dict, rows: Rows, visual: Visual):
    """Embeddings [X, S, D] with visual tokens in their places, DeepStack [n, X, P, D], angles."""
    P = rows.P
    V = visual.tokens_BVD.shape[1]
    # Text places read some visual token and throw it away: shapes stay static.
    seen_XP1 = rows.visual_XP[..., None] >= 0
    place_XP = rows.group_XS[:, :P] * V + rows.visual_XP
    flat = lambda x_BVD: x_BVD.reshape(-1, x_BVD.shape[-1])
    at_places = lambda x_BVD: sharding.take_local(flat(x_BVD.astype(self.dtype)), place_XP)
    x_XSD = self.text.embed(params["text"], rows.tokens_XS)
    x_XPD = jnp.where(seen_XP1, at_places(visual.tokens_BVD), x_XSD[:, :P])
    x_XSD = jnp.concatenate([x_XPD, x_XSD[:, P:]], 1)
    # [B, n, V, D] -> [n, X, P, D]: a layer of the decoder's scan takes its level by index.
    levels = [at_places(visual.deep_BnVD[:, i]) for i in range(visual.deep_BnVD.shape[1])]
    deep_nXPD = jnp.where(seen_XP1, jnp.stack(levels), 0)
    return x_XSD, deep_nXPD, self.text.angles(rows.positions_X3S)

  def _response_angles(self, positions_BT):
    # Text advances time, row and column together.
    return self.text.angles(
      jnp.broadcast_to(positions_BT[:, None], (len(positions_BT), 3, positions_BT.shape[1]))
    )


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Qwen3VL, params: dict, groups: PromptGroups) -> jax.Array:
  prompt_BPD, _ = model(params, groups.prompts_alone())
  return layers.logits(prompt_BPD, model.unembedding(params))

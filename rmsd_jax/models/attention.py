"""Attention inside packed rows behind one function.

A row holds the prompts of one or several groups in its first P places and their responses in the W
behind them (rmsd_jax.core.packed). A token may see its own segment up to itself and, from a
response, the whole prompt of its group; responses never see each other.

    split    einsums: prompts on prompts; responses on the prompts and on the band of places in
             which their own tokens can lie, under one softmax. The path on CPU.
    splash   Pallas on TPU (rmsd_jax.models.splash): no scores in HBM, empty blocks skipped.
    cudnn    cuDNN flash attention on GPU, prompts and responses in a call each. The public API
             only: merging partial results by their log-sum-exp would be cheaper, but jax drops the
             gradient through it (jax 0.10.2).
    dense    one masked softmax over the row: the oracle of the tests.
    auto     splash on TPU, cudnn on GPU, split elsewhere.

Axes: X rows (B prompts where a row is one; in decoding a response), P places for prompts, W for
responses, S = P + W, N query heads, K key/value heads, G = N / K query heads of one key/value head,
H head width, q queries, s keys.
Softmax in fp32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.core import sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.packed import Rows
from rmsd_jax.models.layers import NEVER

IMPLEMENTATIONS = ("auto", "split", "splash", "cudnn", "dense")
BY_BACKEND = {"tpu": "splash", "gpu": "cudnn"}
# How caches lie on the mesh: [L, B, K, P, H] of prompts, [L, Z, X, K, T, H] of responses.
PROMPT_CACHES = Spec(None, *sharding.BATCH, "tensor")
OWN_CACHES = Spec(None, *sharding.BATCH, None, "tensor")


class Layout(NamedTuple):
  """Who may see whom, of `Rows`: what attention needs to know of them."""

  group_XS: jax.Array  # int32, -1 for padding
  start_XS: jax.Array  # int32 place at which a response starts, 0 in the first P places
  P: int
  longest: int  # most tokens of a response

  @classmethod
  def of(cls, rows: Rows) -> "Layout":
    prompt_XP = jnp.zeros_like(rows.visual_XP)
    return cls(rows.group_XS, jnp.concatenate([prompt_XP, rows.start_XW], 1), rows.P, rows.longest)


def group_attention(q_XSNH, k_XSKH, v_XSKH, layout: Layout, impl: str = "split"):
  """Attention under the group rule; o_XSNH in q's dtype. `impl` is one of IMPLEMENTATIONS."""
  attend = {"split": _split, "splash": _splash, "cudnn": _cudnn, "dense": _dense}[
    resolve(impl, q_XSNH.dtype)
  ]
  # The queries are scaled here, once for all implementations: none of them scales again.
  q_XSNH = q_XSNH * q_XSNH.shape[-1] ** -0.5
  # Written out shard by shard: XLA's partitioner cannot look into a Pallas kernel, cuDNN's knows
  # the mesh that is set outside of jit alone, and rollouts group that otherwise.
  local = lambda q, k, v, group, start: attend(
    q, k, v, layout._replace(group_XS=group, start_XS=start)
  )
  queries, keys = Spec(*sharding.BATCH, None, "tensor"), Spec(*sharding.BATCH, "tensor")
  specs = queries, keys, keys, sharding.BATCH, sharding.BATCH
  # Keys and values with heads first, [X, K, S, H], as the caches of decoding store them.
  o_XSNH = sharding.by_shard(local, specs, queries)(
    q_XSNH, k_XSKH.swapaxes(1, 2), v_XSKH.swapaxes(1, 2), layout.group_XS, layout.start_XS
  )
  return o_XSNH.astype(q_XSNH.dtype)


def resolve(impl: str, dtype) -> str:
  """ "auto" -> what suits the default backend and the type (cuDNN takes 16 bits only)."""
  if impl not in IMPLEMENTATIONS:
    raise UserError(f"attention {impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
  if impl != "auto":
    return impl
  suited = BY_BACKEND.get(jax.default_backend(), "split")
  return "split" if suited == "cudnn" and jnp.dtype(dtype).itemsize > 2 else suited


def crowding(P: int, W: int, impl: str, dtype) -> float:
  """Pairs of places that an implementation computes in a row, without those that are the same
  whatever row a group is in: what other groups of the row cost."""
  impl = resolve(impl, dtype)
  if impl == "splash":
    return 0.0  # it skips their blocks
  own = W * W if impl in ("cudnn", "dense") else 0  # split: a band
  return float(P * P + W * P + own)


def _splash(q_XSNH, k_XKSH, v_XKSH, layout: Layout):
  from rmsd_jax.models import splash  # Pallas for TPU: imported where it is used

  return splash.attention(q_XSNH.swapaxes(1, 2), k_XKSH, v_XKSH, layout).swapaxes(1, 2)


def _cudnn(q_XSNH, k_XKSH, v_XKSH, layout: Layout, implementation: str = "cudnn"):
  P = layout.P
  k_XSKH = k_XKSH.swapaxes(1, 2)
  v_XSKH = v_XKSH.swapaxes(1, 2)
  attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation=implementation)
  # 1. Prompts: as many queries as keys, so that the kernel's own causal mask skips the future.
  o_p = attend(
    q_XSNH[:, :P],
    k_XSKH[:, :P],
    v_XSKH[:, :P],
    is_causal=True,
    mask=_same_group(layout, prompt=True),
  )
  if q_XSNH.shape[1] == P:
    return o_p
  # 2. Responses: W queries on all P + W keys.
  mask = jnp.concatenate([_same_group(layout, prompt=False), _own(layout)], 3)
  return jnp.concatenate([o_p, attend(q_XSNH[:, P:], k_XSKH, v_XSKH, mask=mask)], 1)


def _same_group(layout: Layout, prompt: bool):
  """bool [X, 1, P or W, P]: prompt tokens of the query's group. Padding is a group of its own."""
  group_XS, P = layout.group_XS, layout.P
  query = group_XS[:, :P] if prompt else group_XS[:, P:]
  return query[:, None, :, None] == group_XS[:, None, None, :P]


def _own(layout: Layout):
  """bool [X, 1, W, W]: tokens of the query's response up to the query. Padding is a response."""
  start_XW = _marked(layout)
  own_XWW = start_XW[:, :, None] == start_XW[:, None]
  return (own_XWW & _causal(own_XWW.shape[1]))[:, None]


def _marked(layout: Layout):
  """Where each response starts, [X, W]; -1 for padding, which thereby is a segment of its own."""
  P = layout.P
  return jnp.where(layout.group_XS[:, P:] < 0, -1, layout.start_XS[:, P:])


def _split(q_XSNH, k_XKSH, v_XKSH, layout: Layout):
  P = layout.P
  X, S, N, H = q_XSNH.shape
  K = k_XKSH.shape[1]
  G = N // K
  k_p = k_XKSH[:, :, :P]
  v_p = v_XKSH[:, :, :P]
  # 1. Prompts on prompts. Query heads that share keys stand in one row of G * P queries, so that
  # every product is a plain batched one; the mask is repeated for each of the G heads.
  q_p = q_XSNH[:, :P].reshape(X, P, K, G, H).transpose(0, 2, 3, 1, 4).reshape(X, K, G * P, H)
  see_X1PP = _same_group(layout, prompt=True) & _causal(P)
  (weights,), total = _softmax(_scores("XKqH,XKsH->XKqs", q_p, k_p, jnp.tile(see_X1PP, (G, 1))))
  o_p = jnp.einsum("XKqs,XKsH->XKqH", weights.astype(v_p.dtype), v_p) / total
  # [X, K, G * P, H] -> [X, P, N, H]
  o_p = o_p.reshape(X, K, G, P, H).transpose(0, 3, 1, 2, 4).reshape(X, P, N, H)
  if S == P:
    return o_p
  # 2. Responses, in blocks of c places, on the prompts' keys and on their own. A response has at
  # most c tokens, so that its keys lie in the block of the query or in the one before.
  c = layout.longest
  blocks = -(-(S - P) // c)
  cut = lambda x, fill=0: _blocks(x, blocks, c, fill)
  # [X, W, N, H] -> [X, K, U blocks, G * c, H]
  q_r = cut(q_XSNH[:, P:]).reshape(X, blocks, c, K, G, H).transpose(0, 3, 1, 4, 2, 5)
  q_r = q_r.reshape(X, K, blocks, G * c, H)
  k_r, v_r = (cut(x[:, :, P:].swapaxes(1, 2)).transpose(0, 3, 1, 2, 4) for x in (k_XKSH, v_XKSH))
  k_r, v_r = (_with_previous(x, axis=2) for x in (k_r, v_r))  # [X, K, U, 2 * c, H]
  group_XUc = cut(layout.group_XS[:, P:], -1)
  seen = group_XUc[:, None, :, :, None] == layout.group_XS[:, None, None, None, :P]
  start_XUc = cut(_marked(layout), -1)
  own = start_XUc[..., None] == _with_previous(start_XUc, axis=1, fill=-2)[:, :, None]
  own &= jnp.arange(c)[:, None] + c >= jnp.arange(2 * c)
  repeated = lambda mask: jnp.tile(mask, (G, 1))
  to_prompt = _scores("XKUqH,XKsH->XKUqs", q_r, k_p, repeated(seen))
  to_own = _scores("XKUqH,XKUsH->XKUqs", q_r, k_r, repeated(own[:, None]))
  (to_prompt, to_own), total = _softmax(to_prompt, to_own)
  o_r = jnp.einsum("XKUqs,XKsH->XKUqH", to_prompt.astype(v_p.dtype), v_p)
  o_r = (o_r + jnp.einsum("XKUqs,XKUsH->XKUqH", to_own.astype(v_r.dtype), v_r)) / total
  # [X, K, U, G * c, H] -> [X, W, N, H]
  o_r = o_r.reshape(X, K, blocks, G, c, H).transpose(0, 2, 4, 1, 3, 5)
  return jnp.concatenate([o_p, o_r.reshape(X, blocks * c, N, H)[:, : S - P]], 1)


def _blocks(x, blocks: int, c: int, fill):
  """[X, W, ..] -> [X, blocks, c, ..], filled up at the end."""
  room = [(0, 0), (0, blocks * c - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
  return jnp.pad(x, room, constant_values=fill).reshape(len(x), blocks, c, *x.shape[2:])


def _with_previous(x, axis: int, fill=0):
  """Every block behind the one before it: the axis after `axis` is twice as long."""
  room = [(0, 0)] * x.ndim
  room[axis] = (1, 0)
  before = jax.lax.slice_in_dim(jnp.pad(x, room, constant_values=fill), 0, x.shape[axis], axis=axis)
  return jnp.concatenate([before, x], axis + 1)


def _dense(q_XSNH, k_XKSH, v_XKSH, layout: Layout):
  X, S, N, H = q_XSNH.shape
  place_S = jnp.arange(S)
  start_XS1 = layout.start_XS[..., None]
  see_XSS = (place_S < layout.P) | (place_S >= start_XS1)
  see_XSS &= layout.group_XS[..., None] == layout.group_XS[:, None]
  see_XSS &= _causal(S)
  q_XSKGH = q_XSNH.reshape(X, S, k_XKSH.shape[1], -1, H)
  scores = _scores("XsKGH,XKuH->XKGsu", q_XSKGH, k_XKSH, see_XSS[:, None, None])
  weights = jax.nn.softmax(scores, -1).astype(v_XKSH.dtype)
  return jnp.einsum("XKGsu,XKuH->XsKGH", weights, v_XKSH).reshape(X, S, N, H)


def decode_attention(
  q_ZXNH, prompt_kv, own_kv, prompt_length_B, row_of_BRX, layer, t, window: int, impl: str = "split"
):
  """The same rule for one new token of each response under way, at place t of its own cache.

  The prompt's keys and values are stored once per group and shared by its responses. Of the
  responses' own only a part is read, whole windows up to place t.

  Args:
    q_ZXNH: queries, of X rows in each of Z shards of the mesh; a row is a response.
    prompt_kv: keys and values of all layers [L, B, K, P, H].
    own_kv: keys and values of all layers [L, Z, X or more, K, T, H], place t written already.
    row_of_BRX: bool, the row of each response in its shard, if it has one; None: all have, in
      their order.
    layer: that is attended to.
    window: places.
    impl: one of IMPLEMENTATIONS; "splash" keeps the scores of prompts on the chip
      (rmsd_jax.models.flash_decoding), all others are the same.
  """
  on_prompts = _flash if resolve(impl, q_ZXNH.dtype) == "splash" else _prompts
  attend = functools.partial(_decode, window=window, on_prompts=on_prompts)
  rows = Spec(*sharding.BATCH, None, "tensor")
  caches = (PROMPT_CACHES,) * 2, (OWN_CACHES,) * 2
  specs = rows, *caches, sharding.BATCH, sharding.BATCH, Spec(), Spec()
  # Written out shard by shard: parts of a cache are then cut where they lie.
  return sharding.by_shard(attend, specs, rows)(
    q_ZXNH, prompt_kv, own_kv, prompt_length_B, row_of_BRX, layer, t
  )


def _decode(
  q_ZXNH, prompt_kv, own_kv, prompt_length_B, row_of_BRX, layer, t, window: int, on_prompts
):
  """`decode_attention` in one shard, Z = 1."""
  _, X, N, H = q_ZXNH.shape
  B, K = prompt_kv[0].shape[1:3]
  q_XKGH = (q_ZXNH[0] * H**-0.5).reshape(X, K, N // K, H)

  def of_first(places: int):
    def attend(q_XKGH, own_kv, layer, t):
      # Cut out here and not before the branches: as their operand XLA would copy the part.
      sizes = (1, 1, X, K, places, H)
      cut = lambda c: jax.lax.dynamic_slice(c, (layer, 0, 0, 0, 0, 0), sizes)[0, 0]
      k_r, v_r = map(cut, own_kv)
      return _partial(q_XKGH, k_r, v_r, jnp.arange(places) <= t)

    return attend

  T = own_kv[0].shape[4]
  branches = [of_first(min(end, T)) for end in range(window, T + window, window)]
  to_own = jax.lax.switch(t // window, branches, q_XKGH, own_kv, layer, t)
  # All R responses are queries of one product with the prompt's keys: these are read once a group.
  # Products with 0 and 1 move rows to their group and back: on TPU a gather goes row by row.
  exact = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
  if row_of_BRX is None:
    q_BRKGH = q_XKGH.reshape(B, X // B, K, N // K, H)
    back = lambda x_BRKGH: x_BRKGH.reshape(X, *x_BRKGH.shape[2:])
  else:
    row_of_BRX = row_of_BRX.astype(q_XKGH.dtype)
    q_BRKGH = exact("BRX,XKGH->BRKGH", row_of_BRX, q_XKGH).astype(q_XKGH.dtype)
    back = lambda x_BRKGH: exact("BRX,BRKGH->XKGH", row_of_BRX.astype(x_BRKGH.dtype), x_BRKGH)
  R = q_BRKGH.shape[1]
  q_BKQH = q_BRKGH.swapaxes(1, 2).reshape(B, K, -1, H)
  to_prompt = on_prompts(q_BKQH, prompt_kv, layer, prompt_length_B)
  to_prompt = [back(x.reshape(B, K, R, N // K, -1).swapaxes(1, 2)) for x in to_prompt]
  return _merged(to_own, to_prompt).reshape(q_ZXNH.shape).astype(q_ZXNH.dtype)


def _prompts(q_BKQH, prompt_kv, layer, prompt_length_B):
  """`_partial` of queries to the keys of their prompts."""
  k_p, v_p = (jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in prompt_kv)
  seen_BP = jnp.arange(k_p.shape[2]) < prompt_length_B[:, None]
  return _partial(q_BKQH, k_p, v_p, seen_BP[:, None, None])


def _flash(q_BKQH, prompt_kv, layer, prompt_length_B):
  from rmsd_jax.models import flash_decoding  # Pallas for TPU: imported where it is used

  return flash_decoding.attention(q_BKQH, prompt_kv, layer, prompt_length_B)


def _partial(q, k, v, mask):
  """Attention of queries [B, K, q, H] to some of their keys [B, K, s, H]: fp32 (sums of the values
  [.., H], the largest score [.., 1], the sum of the weights [.., 1]), for `_merged`."""
  scores = _scores("BKqH,BKsH->BKqs", q, k, mask)
  top = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - top)
  values = jnp.einsum(
    "BKqs,BKsH->BKqH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
  return values, top, weights.sum(-1, keepdims=True)


def _merged(one, other):
  """One softmax over the keys of two parts. Each part is done with its scores before the next: the
  scores of a joint softmax wait for one another in HBM."""
  parts = one, other
  top = jnp.maximum(one[1], other[1])
  values = sum(values * jnp.exp(own_top - top) for values, own_top, _ in parts)
  return values / sum(total * jnp.exp(own_top - top) for _, own_top, total in parts)


def _causal(tokens: int):
  return jnp.tril(jnp.ones((tokens, tokens), bool))


def _scores(equation: str, q, k, mask):
  # In fp32 from 16-bit operands: products are exact there and only the sum is rounded.
  return jnp.where(mask, jnp.einsum(equation, q, k, preferred_element_type=jnp.float32), NEVER)


def _softmax(*scores):
  """One softmax over the last axes of several score arrays, as if they were joined.

  Returns the unnormalised weights and their sum [.., 1]: dividing the short outputs by it is
  cheaper than dividing the weights.
  """
  # Any shift gives the same softmax, so that no gradient goes through the one that is taken.
  top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
  weights = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in scores]
  return weights, sum(w.sum(-1, keepdims=True) for w in weights)

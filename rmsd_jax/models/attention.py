"""Attention of a prompt group behind one function.

A packed row holds P prompt tokens and R responses of T tokens. A token may see its own segment
up to itself and, from a response, the whole prompt; responses never see each other.

    split    three einsums (prompt-prompt, response-prompt, response-response) that share one
             softmax: no score between siblings is ever computed. The path on CPU.
    splash   Pallas on TPU (rmsd_jax.models.splash): no scores in HBM, empty blocks skipped.
    cudnn    cuDNN flash attention on GPU: the prompt by itself, then each response behind a copy of
             the prompt's keys. The public API only: merging partial results by their log-sum-exp
             would be cheaper, but jax drops the gradient through it (jax 0.10.2).
    dense    one masked softmax over the packed row: the oracle of the tests.
    auto     splash on TPU, cudnn on GPU, split elsewhere.

Axes: B prompts, S = P + R*T packed tokens, N query heads, K key/value heads, G = N / K query heads
of one key/value head, H head width, q queries, s keys.
Softmax in fp32. Padding needs no mask among responses and inside the prompt, since it stands to
the right of every token that counts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmsd_jax.core.errors import UserError

IMPLEMENTATIONS = ("auto", "split", "splash", "cudnn", "dense")
BY_BACKEND = {"tpu": "splash", "gpu": "cudnn"}
NEVER = -1e30  # a finite "minus infinity": a row that sees nothing yields a mean, not NaN


class Layout(NamedTuple):
  """How a packed row is cut: P prompt tokens, then R responses of T tokens."""

  P: int
  R: int
  T: int


def group_attention(q_BSNH, k_BSKH, v_BSKH, layout: Layout, prompt_length_B, impl: str = "split"):
  """Attention under the group rule; o_BSNH in q's dtype. `impl` is one of IMPLEMENTATIONS."""
  attend = {"split": _split, "splash": _splash, "cudnn": _cudnn, "dense": _dense}[
    resolve(impl, q_BSNH.dtype)
  ]
  # The queries are scaled here, once for all implementations: none of them scales again.
  q_BSNH = q_BSNH * q_BSNH.shape[-1] ** -0.5
  # Keys and values with heads first, [B, K, S, H], as the caches of decoding store them.
  o_BSNH = attend(q_BSNH, k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2), layout, prompt_length_B)
  return o_BSNH.astype(q_BSNH.dtype)


def resolve(impl: str, dtype) -> str:
  """ "auto" -> what suits the default backend and the type (cuDNN takes 16 bits only)."""
  if impl not in IMPLEMENTATIONS:
    raise UserError(f"attention {impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
  if impl != "auto":
    return impl
  suited = BY_BACKEND.get(jax.default_backend(), "split")
  return "split" if suited == "cudnn" and jnp.dtype(dtype).itemsize > 2 else suited


def _splash(q_BSNH, k_BKSH, v_BKSH, layout: Layout, prompt_length_B):
  from rmsd_jax.models import splash  # Pallas for TPU: imported where it is used

  q_BNSH = q_BSNH.swapaxes(1, 2)
  return splash.attention(q_BNSH, k_BKSH, v_BKSH, layout, prompt_length_B).swapaxes(1, 2)


def _cudnn(q_BSNH, k_BKSH, v_BKSH, layout: Layout, prompt_length_B, implementation="cudnn"):
  P, R, T = layout
  B, _, N, H = q_BSNH.shape
  k_BSKH = k_BKSH.swapaxes(1, 2)
  v_BSKH = v_BKSH.swapaxes(1, 2)
  attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation=implementation)
  # 1. Prompt on prompt: as many queries as keys, so the kernel's own causal mask is the rule.
  o_p = attend(q_BSNH[:, :P], k_BSKH[:, :P], v_BSKH[:, :P], is_causal=True)
  if R == 0:
    return o_p
  # 2. Each response is a row of its own: [B * R, T] queries on [B * R, P + T] keys. Here padding of
  # the prompt needs a mask, since it stands to the left of tokens that count.
  own = lambda x: x[:, P:].reshape(B * R, T, -1, H)
  behind_prompt = lambda x: jnp.concatenate([jnp.repeat(x[:, :P], R, 0), own(x)], 1)
  seen_BP = jnp.arange(P) < prompt_length_B[:, None]
  to_prompt = jnp.broadcast_to(jnp.repeat(seen_BP, R, 0)[:, None], (B * R, T, P))
  mask = jnp.concatenate([to_prompt, jnp.broadcast_to(_causal(T), (B * R, T, T))], 2)
  o_r = attend(own(q_BSNH), behind_prompt(k_BSKH), behind_prompt(v_BSKH), mask=mask[:, None])
  return jnp.concatenate([o_p, o_r.reshape(B, R * T, N, H)], 1)


def _split(q_BSNH, k_BKSH, v_BKSH, layout: Layout, prompt_length_B):
  P, R, T = layout
  B, _, N, H = q_BSNH.shape
  K = k_BKSH.shape[1]
  G = N // K
  k_p = k_BKSH[:, :, :P]
  v_p = v_BKSH[:, :, :P]
  # 1. Prompt on prompt. Query heads that share keys stand in one row of G * P queries, so that
  # every product is a plain batched one; the causal mask is repeated for each of the G heads.
  q_p = q_BSNH[:, :P].reshape(B, P, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * P, H)
  scores = _scores("BKqH,BKsH->BKqs", q_p, k_p, jnp.tile(_causal(P), (G, 1)))
  (weights,), total = _softmax(scores)
  o_p = jnp.einsum("BKqs,BKsH->BKqH", weights.astype(v_p.dtype), v_p) / total
  # [B, K, G * P, H] -> [B, P, N, H]
  o_p = o_p.reshape(B, K, G, P, H).transpose(0, 3, 1, 2, 4).reshape(B, P, N, H)
  if R == 0:
    return o_p
  # 2. Responses, G * T queries each, on the one copy of the prompt's keys and on their own. Joining
  # the two under one softmax is the whole point: [B, S, N, H] -> [B, K, R, G * T, H].
  k_r, v_r = (x[:, :, P:].reshape(B, K, R, T, H) for x in (k_BKSH, v_BKSH))
  q_r = q_BSNH[:, P:].reshape(B, R, T, K, G, H).transpose(0, 3, 1, 4, 2, 5)
  q_r = q_r.reshape(B, K, R, G * T, H)
  # Padding of the prompt stands to the left of the responses, so that here it needs a mask.
  seen_BP = jnp.arange(P) < prompt_length_B[:, None]
  to_prompt = _scores("BKRqH,BKsH->BKRqs", q_r, k_p, seen_BP[:, None, None, None])
  to_own = _scores("BKRqH,BKRsH->BKRqs", q_r, k_r, jnp.tile(_causal(T), (G, 1)))
  (to_prompt, to_own), total = _softmax(to_prompt, to_own)
  o_r = jnp.einsum("BKRqs,BKsH->BKRqH", to_prompt.astype(v_p.dtype), v_p)
  o_r = (o_r + jnp.einsum("BKRqs,BKRsH->BKRqH", to_own.astype(v_r.dtype), v_r)) / total
  # [B, K, R, G * T, H] -> [B, R * T, N, H]
  o_r = o_r.reshape(B, K, R, G, T, H).transpose(0, 2, 4, 1, 3, 5).reshape(B, R * T, N, H)
  return jnp.concatenate([o_p, o_r], 1)


def _dense(q_BSNH, k_BKSH, v_BKSH, layout: Layout, prompt_length_B):
  P, R, T = layout
  B, S, N, H = q_BSNH.shape
  index_S = jnp.arange(S)
  # -1 is the prompt's segment; T = 0 comes with R = 0, where nothing is divided.
  segment_S = jnp.where(index_S < P, -1, (index_S - P) // max(T, 1))
  own_SS = segment_S[:, None] == segment_S[None]
  prompt_BS = index_S < prompt_length_B[:, None]
  see_BSS = own_SS | ((segment_S >= 0)[:, None] & prompt_BS[:, None])
  see_BSS &= index_S[:, None] >= index_S[None]
  q_BSKGH = q_BSNH.reshape(B, S, k_BKSH.shape[1], -1, H)
  scores = _scores("BsKGH,BKuH->BKGsu", q_BSKGH, k_BKSH, see_BSS[:, None, None])
  weights = jax.nn.softmax(scores, -1).astype(v_BKSH.dtype)
  return jnp.einsum("BKGsu,BKuH->BsKGH", weights, v_BKSH).reshape(B, S, N, H)


def decode_attention(q_BRNH, prompt_kv, own_kv, prompt_length_B, t):
  """The same rule for one new token per response, which stands at place t of its own cache.

  The prompt's keys and values are stored once per group and shared by its R responses.

  Args:
    prompt_kv: keys and values [B, K, P, H].
    own_kv: keys and values [B, M = K * R, T, H], place t written already.
  """
  k_p, v_p = prompt_kv
  k_r, v_r = own_kv
  B, R, N, H = q_BRNH.shape
  K = k_p.shape[1]
  T = k_r.shape[2]
  # All R responses are queries of one product with the prompt's keys: these are read once a group.
  q_BKRGH = (q_BRNH * H**-0.5).reshape(B, R, K, N // K, H).transpose(0, 2, 1, 3, 4)
  seen_BP = jnp.arange(k_p.shape[2]) < prompt_length_B[:, None]
  to_prompt = _scores("BKRGH,BKPH->BKRGP", q_BKRGH, k_p, seen_BP[:, None, None, None])
  # K stands before R in M, so this reshape moves nothing.
  q_BMGH = q_BKRGH.reshape(B, K * R, N // K, H)
  to_own = _scores("BMGH,BMTH->BMGT", q_BMGH, k_r, jnp.arange(T) <= t)
  (to_prompt, to_own), total = _softmax(to_prompt, to_own.reshape(B, K, R, N // K, T))
  o = jnp.einsum("BKRGP,BKPH->BKRGH", to_prompt.astype(v_p.dtype), v_p)
  weights_BMGT = to_own.astype(v_r.dtype).reshape(B, K * R, N // K, T)
  o = (o + jnp.einsum("BMGT,BMTH->BMGH", weights_BMGT, v_r).reshape(o.shape)) / total
  return o.transpose(0, 2, 1, 3, 4).reshape(q_BRNH.shape).astype(q_BRNH.dtype)


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

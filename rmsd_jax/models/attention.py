"""Attention of a prompt group behind one function.

A packed row holds P prompt tokens and R responses of T tokens. A token may see its own segment
up to itself and, from a response, the whole prompt; responses never see each other.

    split   three einsums (prompt-prompt, response-prompt, response-response) that share one
            softmax: no score between siblings is ever computed. The path on CPU.
    dense   one masked softmax over the packed row: the oracle of the tests.

Axes: B prompts, S = P + R*T packed tokens, N query heads, K key/value heads, G = N / K, H head.
Softmax in fp32. Padding needs no mask among responses and inside the prompt, since it stands to
the right of every token that counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30  # a finite "minus infinity": a row that sees nothing yields a mean, not NaN


class Layout(NamedTuple):
  """How a packed row is cut: P prompt tokens, then R responses of T tokens."""

  P: int
  R: int
  T: int


def group_attention(q_BSNH, k_BSKH, v_BSKH, layout: Layout, prompt_length_B, impl: str = "split"):
  """Attention under the group rule; o_BSNH in q's dtype. `impl` is "split" or "dense"."""
  q_BSKGH = _grouped(q_BSNH, k_BSKH.shape[2])
  o_BSKGH = {"split": _split, "dense": _dense}[impl](q_BSKGH, k_BSKH, v_BSKH, layout, prompt_length_B)
  return o_BSKGH.reshape(q_BSNH.shape).astype(q_BSNH.dtype)


def _grouped(q_BSNH, kv_heads: int):
  """Query heads as [K, G], scaled by 1 / sqrt(H)."""
  b, s, n, h = q_BSNH.shape
  return (q_BSNH * h**-0.5).reshape(b, s, kv_heads, n // kv_heads, h)


def _scores(equation: str, q, k, mask):
  scores = jnp.einsum(equation, q, k, preferred_element_type=jnp.float32)
  return jnp.where(mask, scores, NEVER)


def _split(q_BSKGH, k_BSKH, v_BSKH, layout: Layout, prompt_length_B):
  P, R, T = layout
  B = q_BSKGH.shape[0]
  q_p, k_p, v_p = q_BSKGH[:, :P], k_BSKH[:, :P], v_BSKH[:, :P]
  causal_PP = jnp.tril(jnp.ones((P, P), bool))
  own = jax.nn.softmax(_scores("BpKGH,BsKH->BKGps", q_p, k_p, causal_PP), -1)
  o_p = jnp.einsum("BKGps,BsKH->BpKGH", own.astype(v_p.dtype), v_p)
  if R == 0:
    return o_p
  q_r, k_r, v_r = (x[:, P:].reshape(B, R, T, *x.shape[2:]) for x in (q_BSKGH, k_BSKH, v_BSKH))
  seen_BP = jnp.arange(P) < prompt_length_B[:, None]
  to_prompt = _scores("BRtKGH,BpKH->BKGRtp", q_r, k_p, seen_BP[:, None, None, None, None])
  to_own = _scores("BRtKGH,BRsKH->BKGRts", q_r, k_r, jnp.tril(jnp.ones((T, T), bool)))
  to_prompt, to_own = _joint_softmax(to_prompt, to_own)
  o_r = jnp.einsum("BKGRtp,BpKH->BRtKGH", to_prompt.astype(v_p.dtype), v_p)
  o_r += jnp.einsum("BKGRts,BRsKH->BRtKGH", to_own.astype(v_r.dtype), v_r)
  return jnp.concatenate([o_p, o_r.reshape(B, R * T, *o_r.shape[3:])], 1)


def _joint_softmax(a, b):
  """Softmax over the last axes of two score arrays as if they were one, without joining them."""
  top = jax.lax.stop_gradient(jnp.maximum(a.max(-1, keepdims=True), b.max(-1, keepdims=True)))
  a, b = jnp.exp(a - top), jnp.exp(b - top)
  total = a.sum(-1, keepdims=True) + b.sum(-1, keepdims=True)
  return a / total, b / total


def _dense(q_BSKGH, k_BSKH, v_BSKH, layout: Layout, prompt_length_B):
  P, R, T = layout
  index_S = jnp.arange(P + R * T)
  segment_S = jnp.where(index_S < P, -1, (index_S - P) // max(T, 1))
  own_SS = segment_S[:, None] == segment_S[None]
  prompt_BS = index_S < jnp.where(prompt_length_B > 0, prompt_length_B, 1)[:, None]
  see_BSS = own_SS | ((segment_S >= 0)[:, None] & prompt_BS[:, None])
  see_BSS &= index_S[:, None] >= index_S[None]
  weights = jax.nn.softmax(_scores("BsKGH,BuKH->BKGsu", q_BSKGH, k_BSKH, see_BSS[:, None, None]), -1)
  return jnp.einsum("BKGsu,BuKH->BsKGH", weights.astype(v_BSKH.dtype), v_BSKH)


def decode_attention(q_BRNH, prompt_k_BKPH, prompt_v_BKPH, own_k_BKRTH, own_v_BKRTH, prompt_length_B, t):
  """The same rule for one new token per response, which stands at place t of its own cache.

  The prompt's keys and values are stored once per group and shared by its R responses.
  """
  q = _grouped(q_BRNH, prompt_k_BKPH.shape[1])
  seen_BP = jnp.arange(prompt_k_BKPH.shape[2]) < prompt_length_B[:, None]
  to_prompt = _scores("BRKGH,BKPH->BKRGP", q, prompt_k_BKPH, seen_BP[:, None, None, None])
  to_own = _scores("BRKGH,BKRTH->BKRGT", q, own_k_BKRTH, jnp.arange(own_k_BKRTH.shape[3]) <= t)
  to_prompt, to_own = _joint_softmax(to_prompt, to_own)
  o = jnp.einsum("BKRGP,BKPH->BRKGH", to_prompt.astype(prompt_v_BKPH.dtype), prompt_v_BKPH)
  o += jnp.einsum("BKRGT,BKRTH->BRKGH", to_own.astype(own_v_BKRTH.dtype), own_v_BKRTH)
  return o.reshape(q_BRNH.shape).astype(q_BRNH.dtype)

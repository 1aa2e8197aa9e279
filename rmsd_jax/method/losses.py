"""Log-probabilities and the losses of both stages.

Every loss returns ((sum, count), metrics): the caller adds sums and counts over micro-batches and
hosts and divides once. Log-probabilities are in nats, of the temperature-scaled distribution.

Axes: B prompts, R responses, T response tokens, P prompt tokens, D width, V vocabulary, c tokens
of a chunk, M = B * R * c.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.core import masked, sharding
from rmsd_jax.models import layers


def predictors(prompt_BPD, prompt_length_B, response_BRTD):
  """The hidden state that predicts each response token: the one-token shift.

  response token        0               1            2
  predicted from        last of prompt  response 0   response 1
  """
  B, R, _, D = response_BRTD.shape
  last_BD = prompt_BPD[jnp.arange(B), prompt_length_B - 1]
  first_BR1D = jnp.broadcast_to(last_BD[:, None, None], (B, R, 1, D))
  return jnp.concatenate([first_BR1D, response_BRTD[:, :, :-1]], 2)


def token_logps(
  hidden_BRTD,
  unembedding_VD,
  targets_BRT,
  temperature: float = 1.0,
  chunk: int = 512,
  entropy: bool = False,
):
  """log softmax(hidden @ unembedding^T / temperature) at the targets, fp32 [B, R, T].

  Logits exist for `chunk` tokens of each response at a time, forward and backward, so memory does
  not grow with V x T. The backward pass recomputes them once; a single chunk (T <= chunk) is kept.

  Args:
    entropy: return (log-probs, entropy of each token's distribution in nats); no gradient flows
      through the entropy.
  """
  logp_BRT, entropy_BRT = _token_logps(
    hidden_BRTD, unembedding_VD, targets_BRT, temperature, chunk, entropy
  )
  return (logp_BRT, jax.lax.stop_gradient(entropy_BRT)) if entropy else logp_BRT


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _token_logps(hidden_BRTD, unembedding_VD, targets_BRT, temperature, chunk, entropy):
  return _logps_forward(hidden_BRTD, unembedding_VD, targets_BRT, temperature, chunk, entropy)[0]


def _chunks(x, chunk: int):
  """[B, R, T, ..] -> [T / chunk, M = B * R * chunk, ..], zero-padded to whole chunks."""
  B, R, T = x.shape[:3]
  count = -(-T // chunk)
  x = jnp.pad(x, [(0, 0), (0, 0), (0, count * chunk - T)] + [(0, 0)] * (x.ndim - 3))
  x = jnp.moveaxis(x.reshape(B, R, count, chunk, *x.shape[3:]), 2, 0)
  return x.reshape(count, B * R * chunk, *x.shape[4:])


def _unchunk(x, like_BRT):
  """The inverse of `_chunks`, for an array whose first axes are those of `like_BRT`."""
  B, R, T = like_BRT.shape
  x = jnp.moveaxis(x.reshape(len(x), B, R, -1, *x.shape[2:]), 0, 2)
  return x.reshape(B, R, -1, *x.shape[4:])[:, :, :T]


def _table(unembedding_VD, dtype):
  """The table in the type of the activations. On a mesh its vocabulary is split over tensor and its
  width is whole, gathered once here instead of for each chunk of tokens."""
  return sharding.constrained(unembedding_VD.astype(dtype), Spec("tensor"))


def _chosen(targets_M, vocabulary: int):
  """True at the target. An iota, not a gather, so that V may be sharded."""
  return jnp.arange(vocabulary) == targets_M[:, None]


def _logps_forward(hidden_BRTD, unembedding_VD, targets_BRT, temperature, chunk, entropy):
  T = hidden_BRTD.shape[2]
  chunk = min(chunk, T)
  kernel_VD = _table(unembedding_VD, hidden_BRTD.dtype)

  def body(_, xs):
    hidden_MD, targets_M = xs
    scaled_MV = layers.logits(hidden_MD, kernel_VD) / temperature
    lse_M = jax.nn.logsumexp(scaled_MV, -1)
    chosen_M = jnp.sum(jnp.where(_chosen(targets_M, scaled_MV.shape[1]), scaled_MV, 0), -1)
    entropy_M = lse_M  # a placeholder, unless asked for
    if entropy:
      entropy_M -= jnp.sum(jnp.exp(scaled_MV - lse_M[:, None]) * scaled_MV, -1)
    return None, (chosen_M - lse_M, entropy_M, lse_M, scaled_MV if chunk == T else None)

  xs = _chunks(hidden_BRTD, chunk), _chunks(targets_BRT, chunk)
  _, (*chunks, kept_1MV) = jax.lax.scan(body, None, xs)
  logp_BRT, entropy_BRT, lse_BRT = (_unchunk(x, targets_BRT) for x in chunks)
  saved = hidden_BRTD, unembedding_VD, targets_BRT, lse_BRT, kept_1MV
  return (logp_BRT, entropy_BRT), saved


def _logps_backward(temperature, chunk, entropy, saved, grads):
  grad_BRT, _ = grads
  hidden_BRTD, unembedding_VD, targets_BRT, lse_BRT, kept_1MV = saved
  T = hidden_BRTD.shape[2]
  chunk = min(chunk, T)
  kernel_VD = _table(unembedding_VD, hidden_BRTD.dtype)

  def body(d_kernel_VD, xs):
    (hidden_MD, targets_M, lse_M, grad_M), scaled_MV = xs
    if scaled_MV is None:
      scaled_MV = layers.logits(hidden_MD, kernel_VD) / temperature
    d_logits_MV = _chosen(targets_M, scaled_MV.shape[1]) - jnp.exp(scaled_MV - lse_M[:, None])
    # The products run in the type of the activations; their sum over chunks stays fp32, where bf16
    # would lose small terms.
    d_logits_MV = (d_logits_MV * (grad_M / temperature)[:, None]).astype(hidden_MD.dtype)
    d_kernel_VD += jnp.einsum(
      "MV,MD->VD", d_logits_MV, hidden_MD, preferred_element_type=jnp.float32
    )
    return d_kernel_VD, d_logits_MV @ kernel_VD

  xs = tuple(_chunks(x, chunk) for x in (hidden_BRTD, targets_BRT, lse_BRT, grad_BRT))
  nothing_VD = jnp.zeros(unembedding_VD.shape, jnp.float32)
  # Split from the start: whole, these V x D x 4 bytes would lie on every device.
  nothing_VD = sharding.constrained(nothing_VD, Spec("tensor", "fsdp"))
  d_kernel_VD, d_hidden = jax.lax.scan(body, nothing_VD, (xs, kept_1MV))
  return _unchunk(d_hidden, targets_BRT), d_kernel_VD.astype(unembedding_VD.dtype), None


_token_logps.defvjp(_logps_forward, _logps_backward)


def sft(logp_BRT, mask_BRT):
  """Negative log-likelihood of the targets: L_SFT = -log pi_S(T_best | V, Q).

  Returns ((sum, count), metrics); the count is in tokens.
  """
  loss = -masked.total(logp_BRT, mask_BRT)
  tokens = jnp.sum(mask_BRT)
  return (loss, tokens.astype(jnp.float32)), {}


# One token far off must not decide a whole step: exp(20) is still far from overflow in float32, and
# k3 of a gap of 2.6 nats is 10.
MAX_GAP = 20.0  # nats
MAX_K3 = 10.0  # nats


def _k3(gap):
  gap = jnp.clip(gap, -MAX_GAP, MAX_GAP)
  return jnp.clip(jnp.exp(gap) - gap - 1, max=MAX_K3)


KL_ESTIMATORS = {  # of KL(pi_S || pi_ref) from samples of pi_S, with d = log pi_ref - log pi_S
  "k1": lambda d: -d,
  "k2": lambda d: d**2 / 2,
  "k3": _k3,  # exp(d) - d - 1, clipped at 10 as verl's low_var_kl: no gradient beyond
}


def policy_gradient(
  logp_BRT,
  old_logp_BRT,
  ref_logp_BRT,
  advantage_BR,
  mask_BRT,
  keep_kl_BR,
  clip: float,
  kl_weight: float,
  kl_estimator: str,
):
  """Clipped policy gradient with a KL term, summed over tokens.

      ratio = exp(logp - old_logp)
      loss  = -min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A) + kl_weight * KL

  With one update per rollout batch, old_logp is stop_gradient(logp): the ratio is 1 and the
  gradient is the plain policy gradient (GAD's setting, arXiv 2511.10643).

  Args:
    advantage_BR: per response; 0 for a dead group.
    keep_kl_BR: bool, False where the KL term is dropped too.
  Returns:
    ((sum, count in tokens), metrics as sums over tokens).
  """
  ratio = jnp.exp(logp_BRT - old_logp_BRT)
  advantage = advantage_BR[..., None]
  gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)

  def kl(mask):  # masked before the estimator: where it overflows, its gradient is not finite
    gap_BRT = jnp.where(mask, ref_logp_BRT - logp_BRT, 0)
    return masked.total(KL_ESTIMATORS[kl_estimator](gap_BRT), mask)

  loss = -masked.total(gain, mask_BRT) + kl_weight * kl(mask_BRT & keep_kl_BR[..., None])
  metrics = {
    "kl": kl(mask_BRT),
    "ratio_clipped": masked.total(jnp.abs(ratio - 1) > clip, mask_BRT),
  }
  return (loss, jnp.sum(mask_BRT).astype(jnp.float32)), metrics


def pairs(student_BR, teacher_BR, weight_BR, pair_BR):
  """L_D = E[q * -log sigmoid(D(T) - D(S))], one pair per rollout (R-MSD; GAD has q = 1).

  The mean is over pairs, and is not divided by the sum of q.

  Args:
    student_BR, teacher_BR: scores of the rollout and of the teacher response it is paired with.
    weight_BR: q of the teacher response.
    pair_BR: bool, False where there is no pair.
  Returns:
    ((sum, count in pairs), metrics as sums over pairs).
  """
  margin_BR = teacher_BR - student_BR
  loss = masked.total(weight_BR * -jax.nn.log_sigmoid(margin_BR), pair_BR)
  metrics = {
    "accuracy": masked.total(margin_BR > 0, pair_BR),
    "margin": masked.total(margin_BR, pair_BR),
    "weight": masked.total(weight_BR, pair_BR),
  }
  return (loss, jnp.sum(pair_BR).astype(jnp.float32)), metrics

"""Log-probabilities and the losses of both stages.

Every loss returns ((sum, count), metrics): the caller adds sums and counts over pieces and
hosts and divides once. Log-probabilities are in nats, of the temperature-scaled distribution.

Axes: B prompts, R responses, X packed rows of S places, W of them for responses, D width, V
vocabulary, Z shards of the prompts, M tokens of a chunk on a shard.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.core import masked, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.models import layers
from rmsd_jax.models.student import Qwen3VL


def predictors(hidden_XSD, rows: Rows):
  """The hidden state that predicts each response token, [X, W, D]: the one-token shift.

  response token        0               1            2
  predicted from        last of prompt  response 0   response 1
  """
  return jnp.take_along_axis(hidden_XSD, rows.from_XW[..., None], 1)


def logps_of(model: Qwen3VL, temperature: float, chunk: int) -> Callable:
  """(params, rows, groups, visual, **options) -> log-probs of the response tokens, fp32 [X, W].

  Args:
    temperature, chunk, options: see `token_logps`.
  """

  def logps(params, rows: Rows, groups: PromptGroups, visual, **options):
    hidden_XWD, table_VD = predicting_of(model, params, rows, groups, visual)
    return token_logps(hidden_XWD, table_VD, rows.targets_XW, temperature, chunk, **options)

  return logps


def predicting_of(model: Qwen3VL, params, rows: Rows, groups: PromptGroups, visual):
  """(hidden_XWD, unembedding_VD): what predicts each response token of packed rows."""
  hidden_XSD = model.hidden(params, rows, model.encoded(params, groups, visual))
  # Token t of a response is predicted one token earlier; t = 0 by the prompt's last token.
  return predictors(hidden_XSD, rows), model.unembedding(params)


def token_logps(
  hidden_XWD,
  unembedding_VD,
  targets_XW,
  temperature: float = 1.0,
  chunk: int = 2048,
  entropy: bool = False,
):
  """log softmax(hidden @ unembedding^T / temperature) at the targets, fp32 [X, W].

  Logits exist for `chunk` tokens of each row at a time, forward and backward, so memory does not
  grow with V x W. The backward pass recomputes them once; a single chunk (W <= chunk) is kept.

  Args:
    entropy: return (log-probs, entropy of each token's distribution in nats); no gradient flows
      through the entropy.
  """
  logp_XW, entropy_XW = _token_logps(
    hidden_XWD, unembedding_VD, targets_XW, temperature, chunk, entropy
  )
  return (logp_XW, jax.lax.stop_gradient(entropy_XW)) if entropy else logp_XW


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _token_logps(hidden_XWD, unembedding_VD, targets_XW, temperature, chunk, entropy):
  return _logps_forward(hidden_XWD, unembedding_VD, targets_XW, temperature, chunk, entropy)[0]


def _chunks(x, chunk: int):
  """[X, W, ..] -> [W / chunk, Z, M = X / Z * chunk, ..], zero-padded to whole chunks."""
  Z = sharding.shards_here()
  X, W = x.shape[:2]
  count = -(-W // chunk)
  x = jnp.pad(x, [(0, 0), (0, count * chunk - W)] + [(0, 0)] * (x.ndim - 2))
  x = jnp.moveaxis(x.reshape(X, count, chunk, *x.shape[2:]), 1, 0)
  return x.reshape(count, Z, X // Z * chunk, *x.shape[3:])


def _unchunk(x, like_XW):
  """The inverse of `_chunks`, for an array whose first axes are those of `like_XW`."""
  X, W = like_XW.shape
  x = jnp.moveaxis(x.reshape(len(x), X, -1, *x.shape[3:]), 0, 1)
  return x.reshape(X, -1, *x.shape[3:])[:, :W]


def _table(unembedding_VD, dtype):
  """The table in the type of the activations. On a mesh its vocabulary is split over tensor and its
  width is whole, gathered once here instead of for each chunk of tokens."""
  return sharding.constrained(unembedding_VD.astype(dtype), Spec("tensor"))


def _chosen(targets_ZM, vocabulary: int):
  """True at the target. An iota, not a gather, so that V may be sharded."""
  return jnp.arange(vocabulary) == targets_ZM[..., None]


def _logps_forward(hidden_XWD, unembedding_VD, targets_XW, temperature, chunk, entropy):
  W = hidden_XWD.shape[1]
  chunk = min(chunk, W)
  kernel_VD = _table(unembedding_VD, hidden_XWD.dtype)

  def body(_, xs):
    hidden_ZMD, targets_ZM = xs
    scaled_ZMV = layers.logits(hidden_ZMD, kernel_VD) / temperature
    lse_ZM = jax.nn.logsumexp(scaled_ZMV, -1)
    chosen_ZM = jnp.sum(jnp.where(_chosen(targets_ZM, scaled_ZMV.shape[-1]), scaled_ZMV, 0), -1)
    entropy_ZM = lse_ZM  # a placeholder, unless asked for
    if entropy:
      entropy_ZM -= jnp.sum(jnp.exp(scaled_ZMV - lse_ZM[..., None]) * scaled_ZMV, -1)
    return None, (chosen_ZM - lse_ZM, entropy_ZM, lse_ZM, scaled_ZMV if chunk == W else None)

  xs = _chunks(hidden_XWD, chunk), _chunks(targets_XW, chunk)
  _, (*figures, kept_1ZMV) = jax.lax.scan(body, None, xs)
  logp_XW, entropy_XW, lse_XW = (_unchunk(x, targets_XW) for x in figures)
  saved = hidden_XWD, unembedding_VD, targets_XW, lse_XW, kept_1ZMV
  return (logp_XW, entropy_XW), saved


def _logps_backward(temperature, chunk, entropy, saved, grads):
  grad_XW, _ = grads
  hidden_XWD, unembedding_VD, targets_XW, lse_XW, kept_1ZMV = saved
  W = hidden_XWD.shape[1]
  chunk = min(chunk, W)
  kernel_VD = _table(unembedding_VD, hidden_XWD.dtype)

  def body(d_kernel_ZVD, xs):
    (hidden_ZMD, targets_ZM, lse_ZM, grad_ZM), scaled_ZMV = xs
    if scaled_ZMV is None:
      scaled_ZMV = layers.logits(hidden_ZMD, kernel_VD) / temperature
    d_logits_ZMV = _chosen(targets_ZM, scaled_ZMV.shape[-1]) - jnp.exp(
      scaled_ZMV - lse_ZM[..., None]
    )
    # The products run in the type of the activations; their sum over chunks stays fp32, where bf16
    # would lose small terms.
    d_logits_ZMV = (d_logits_ZMV * (grad_ZM / temperature)[..., None]).astype(hidden_ZMD.dtype)
    d_kernel_ZVD += jnp.einsum(
      "ZMV,ZMD->ZVD", d_logits_ZMV, hidden_ZMD, preferred_element_type=jnp.float32
    )
    return d_kernel_ZVD, d_logits_ZMV @ kernel_VD

  # Every shard adds up its own tokens' gradient of the table; it is summed over the mesh once, not
  # for each chunk.
  xs = tuple(_chunks(x, chunk) for x in (hidden_XWD, targets_XW, lse_XW, grad_XW))
  nothing_ZVD = jnp.zeros((sharding.shards_here(), *unembedding_VD.shape), jnp.float32)
  nothing_ZVD = sharding.constrained(nothing_ZVD, Spec(*sharding.BATCH, "tensor"))
  d_kernel_ZVD, d_hidden = jax.lax.scan(body, nothing_ZVD, (xs, kept_1ZMV))
  d_kernel_VD = sharding.constrained(d_kernel_ZVD.sum(0), Spec("tensor", "fsdp"))
  return _unchunk(d_hidden, targets_XW), d_kernel_VD.astype(unembedding_VD.dtype), None


_token_logps.defvjp(_logps_forward, _logps_backward)


def among_likeliest(hidden_XWD, unembedding_VD, targets_XW, top: int, chunk: int):
  """1 where the target is one of the `top` likeliest tokens, 0 where not, fp32 [X, W]."""
  kernel_VD = _table(unembedding_VD, hidden_XWD.dtype)

  def body(_, xs):
    hidden_ZMD, targets_ZM = xs
    logits_ZMV = layers.logits(hidden_ZMD, kernel_VD)
    chosen_ZMV = _chosen(targets_ZM, logits_ZMV.shape[-1])
    own_ZM1 = jnp.sum(jnp.where(chosen_ZMV, logits_ZMV, 0), -1, keepdims=True)
    return None, (jnp.sum(logits_ZMV > own_ZM1, -1) < top).astype(jnp.float32)

  chunk = min(chunk, hidden_XWD.shape[1])
  _, near = jax.lax.scan(body, None, (_chunks(hidden_XWD, chunk), _chunks(targets_XW, chunk)))
  return _unchunk(near, targets_XW)


def jsd(
  hidden_XWD, unembedding_VD, ref_hidden_XWE, ref_unembedding_VE, temperature, chunk: int, beta
):
  """Generalised Jensen-Shannon divergence of teacher and student over the whole vocabulary, at each
  token, fp32 [X, W] (GKD, arXiv 2306.13649).

      beta KL(T || M) + (1 - beta) KL(S || M),   M = beta T + (1 - beta) S

  beta 0 is KL(T || S) and 1 is KL(S || T), where the formula would be 0 (as in TRL). Logits exist
  of `chunk` tokens of each row at a time, as in `token_logps`.

  Args:
    hidden_XWD, unembedding_VD: of the student, see `predicting_of`.
    ref_hidden_XWE, ref_unembedding_VE: of the teacher, which gets no gradient.
    beta: in [0, 1].
  """

  def of_shards(table):  # a copy each, so that its gradient is summed over the mesh once
    own = jnp.broadcast_to(table, (sharding.shards_here(), *table.shape))
    return sharding.constrained(own, Spec(*sharding.BATCH, "tensor"))

  student_ZVD = of_shards(_table(unembedding_VD, hidden_XWD.dtype))
  teacher_ZVE = of_shards(_table(ref_unembedding_VE, ref_hidden_XWE.dtype))

  def log_softmax(hidden_ZMD, table_ZVD):
    logits = jnp.einsum("ZMD,ZVD->ZMV", hidden_ZMD, table_ZVD, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits / temperature)

  @jax.checkpoint
  def body(_, xs):
    s_ZMV = log_softmax(xs[0], student_ZVD)
    t_ZMV = jax.lax.stop_gradient(log_softmax(xs[1], teacher_ZVE))
    return None, _jsd(t_ZMV, s_ZMV, beta)

  chunk = min(chunk, hidden_XWD.shape[1])
  _, divergence = jax.lax.scan(
    body, None, (_chunks(hidden_XWD, chunk), _chunks(ref_hidden_XWE, chunk))
  )
  return _unchunk(divergence, hidden_XWD[..., 0])


def _jsd(t_ZMV, s_ZMV, beta):
  """Of log-probabilities."""
  kl = lambda p, q: jnp.sum(jnp.exp(p) * (p - q), -1)
  if beta == 0:
    return kl(t_ZMV, s_ZMV)
  if beta == 1:
    return kl(s_ZMV, t_ZMV)
  m_ZMV = jnp.logaddexp(t_ZMV + jnp.log(beta), s_ZMV + jnp.log1p(-beta))
  return beta * kl(t_ZMV, m_ZMV) + (1 - beta) * kl(s_ZMV, m_ZMV)


def sft(logp_XW, mask_XW):
  """Negative log-likelihood of the targets: L_SFT = -log pi_S(T_best | V, Q).

  Returns (sum, count in tokens).
  """
  loss = -masked.total(logp_XW, mask_XW)
  tokens = jnp.sum(mask_XW)
  return loss, tokens.astype(jnp.float32)


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
JSD = "jsd"  # instead of an estimate from the sampled token: `jsd`


def policy_gradient(
  logp_XW,
  old_logp_XW,
  ref_logp_XW,
  advantage_XW,
  mask_XW,
  keep_kl_XW,
  clip: float,
  kl_weight: float,
  kl_estimator: str,
  divergence_XW=None,
):
  """Clipped policy gradient with a KL term, summed over tokens.

      ratio = exp(logp - old_logp)
      loss  = -min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A) + kl_weight * KL

  With one update per rollout batch, old_logp is stop_gradient(logp): the ratio is 1 and the
  gradient is the plain policy gradient (GAD's setting, arXiv 2511.10643).

  Args:
    advantage_XW: of the token's response; 0 for a dead group.
    keep_kl_XW: bool, False where the KL term is dropped too.
    divergence_XW: `jsd`, in the place of the estimate.
  Returns:
    ((sum, count in tokens), metrics as sums over tokens).
  """
  ratio = jnp.exp(logp_XW - old_logp_XW)
  clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
  gain = jnp.minimum(ratio * advantage_XW, clipped * advantage_XW)

  def kl(mask):  # masked before the estimator: where it overflows, its gradient is not finite
    if divergence_XW is not None:
      return masked.total(divergence_XW, mask)
    gap_XW = jnp.where(mask, ref_logp_XW - logp_XW, 0)
    return masked.total(KL_ESTIMATORS[kl_estimator](gap_XW), mask)

  loss = -masked.total(gain, mask_XW) + kl_weight * kl(mask_XW & keep_kl_XW)
  metrics = {
    "kl": kl(mask_XW),
    "ratio_clipped": masked.total(jnp.abs(ratio - 1) > clip, mask_XW),
  }
  return (loss, jnp.sum(mask_XW).astype(jnp.float32)), metrics


def pairs(student_BR, teacher_BR, weight_BR, pair_BR, score_l2: float = 0.0):
  """L_D = E[q * -log sigmoid(D(T) - D(S))], one pair per rollout (R-MSD; GAD has q = 1).

  The mean is over pairs, and is not divided by the sum of q. With `score_l2`, that much of the mean
  squared score is added, which keeps scores near 0 (PRISM, arXiv 2604.28123: 0.001).

  Args:
    student_BR, teacher_BR: scores of the rollout and of the teacher response it is paired with.
    weight_BR: q of the teacher response.
    pair_BR: bool, False where there is no pair.
  Returns:
    ((sum, count in pairs), metrics as sums over pairs).
  """
  margin_BR = teacher_BR - student_BR
  loss = masked.total(weight_BR * -jax.nn.log_sigmoid(margin_BR), pair_BR)
  if score_l2:
    loss += score_l2 * masked.total((student_BR**2 + teacher_BR**2) / 2, pair_BR)
  metrics = {
    "accuracy": masked.total(margin_BR > 0, pair_BR),
    "margin": masked.total(margin_BR, pair_BR),
    "weight": masked.total(weight_BR, pair_BR),
  }
  return (loss, jnp.sum(pair_BR).astype(jnp.float32)), metrics

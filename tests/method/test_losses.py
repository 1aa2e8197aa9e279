"""Losses against formulas written in numpy, and log-probs against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from small import random_groups
from tiny_model import assert_close, jit

from rmsd_jax.core import packed, packing
from rmsd_jax.method import losses

B, R, T, D, V = 2, 3, 7, 8, 19
CLIP = 0.2


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, W = 6, 7
HIDDEN, TABLE, WEIGHT = normal(0, X, W, D), normal(1, V, D), normal(2, X, W)
TARGETS = np.random.default_rng(3).integers(0, V, (X, W))
MASK = np.arange(T) < np.array([[7, 4, 1], [2, 0, 5]])[..., None]


# token_logps and predictors


def plain_logps(hidden, table, temperature):
  logits_XWV = hidden @ table.T / temperature
  return jnp.take_along_axis(jax.nn.log_softmax(logits_XWV), TARGETS[..., None], -1)[..., 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_token_logps_are_log_softmax_in_value_and_gradient(chunk, temperature):
  """Whatever the chunk: one token, a size that does not divide W, W itself, more than W."""

  @jit
  def both(hidden, table):
    chunked = lambda h, e: losses.token_logps(h, e, TARGETS, temperature, chunk)
    plain = lambda h, e: plain_logps(h, e, temperature)
    results = []
    for f in (chunked, plain):
      logps, pull = jax.vjp(f, hidden, table)
      results.append((logps, pull(jnp.asarray(WEIGHT))))
    return results

  got, want = both(HIDDEN, TABLE)
  assert_close(got, want)
  assert got[0].dtype == jnp.float32


def test_token_logps_of_large_logits_are_finite():
  logps = losses.token_logps(1e3 * HIDDEN, 1e2 * TABLE, TARGETS, 1.0, 3)
  grads = jax.grad(lambda h: losses.token_logps(h, 1e2 * TABLE, TARGETS, 1.0, 3).sum())(
    1e3 * HIDDEN
  )
  assert np.isfinite(logps).all() and np.isfinite(grads).all() and (logps <= 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_is_that_of_the_distribution_and_has_no_gradient(temperature):
  logp_XW, entropy_XW = losses.token_logps(HIDDEN, TABLE, TARGETS, temperature, 3, entropy=True)
  plain_XW = losses.token_logps(HIDDEN, TABLE, TARGETS, temperature, 3)
  np.testing.assert_array_equal(logp_XW, plain_XW)
  p = jax.nn.softmax(HIDDEN @ TABLE.T / temperature)
  np.testing.assert_allclose(entropy_XW, scipy.stats.entropy(p, axis=-1), atol=2e-5)

  def both(hidden):
    logp_XW, entropy_XW = losses.token_logps(hidden, TABLE, TARGETS, temperature, 3, True)
    return logp_XW.sum() + 5 * entropy_XW.sum()

  wanted = jax.grad(lambda h: losses.token_logps(h, TABLE, TARGETS, temperature, 3).sum())(HIDDEN)
  np.testing.assert_array_equal(jax.grad(both)(HIDDEN), wanted)


def test_token_logps_keep_the_dtypes_of_the_weights():
  hidden = jnp.asarray(HIDDEN, jnp.bfloat16)
  value = lambda h, e: jnp.sum(losses.token_logps(h, e, TARGETS, 1.0, 3) * WEIGHT)
  d_hidden, d_table = jax.grad(value, (0, 1))(hidden, jnp.asarray(TABLE))
  assert losses.token_logps(hidden, TABLE, TARGETS).dtype == jnp.float32
  assert (d_hidden.dtype, d_table.dtype) == (jnp.bfloat16, jnp.float32)
  want = jax.grad(lambda h, e: jnp.sum(plain_logps(h, e, 1.0) * WEIGHT), (0, 1))(HIDDEN, TABLE)
  assert_close((d_hidden.astype(np.float32), d_table), want, 0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_chunk_of_logits_is_computed_once(dtype):
  """Three products with the table (forward, d hidden, d table) by XLA's count, not four."""
  tokens, width, vocabulary = 64, 32, 512
  hidden = jax.ShapeDtypeStruct((2, tokens, width), dtype)
  table = jax.ShapeDtypeStruct((vocabulary, width), dtype)
  targets = jax.ShapeDtypeStruct((2, tokens), jnp.int32)
  value = lambda h, e, t: jnp.sum(losses.token_logps(h, e, t, 1.0, tokens))
  compiled = jax.jit(jax.value_and_grad(value, (0, 1))).lower(hidden, table, targets).compile()
  product = 2 * 2 * tokens * width * vocabulary
  assert 3 <= compiled.cost_analysis()["flops"] / product < 3.5


def test_a_response_token_is_predicted_from_the_token_before_it():
  """In packed rows, of the first group the second prompt, and laid out unpacked."""
  groups = random_groups(B=2, R=3, T=6, P=40)
  piece = packing.Piece(80, 40, 1, (((1, 0),),))
  ends = dict(zip((1, 0), np.cumsum(groups.prompt_length_B[[1, 0]]), strict=True))
  for rows in (packed.pack(groups, piece, slice(0, 1), 6), packed.padded(groups)):
    hidden_XSD = normal(4, *rows.tokens_XS.shape, D)
    got_XWD = np.asarray(losses.predictors(hidden_XSD, rows))
    for x, w in np.argwhere(rows.mask_XW):
      b = int(rows.group_XS[x, rows.P + w])
      first = rows.P + w == rows.start_XW[x, w]
      end = ends[b] if len(hidden_XSD) == 1 else groups.prompt_length_B[b]
      place = end - 1 if first else rows.P + w - 1
      if len(hidden_XSD) == 1 or b == x:
        np.testing.assert_array_equal(got_XWD[x, w], hidden_XSD[x, place])


# Stage 1


def test_sft_is_the_sum_over_target_tokens_and_their_number():
  logp = normal(6, B, R, T)
  loss, count = losses.sft(np.where(MASK, logp, np.nan), MASK)
  np.testing.assert_allclose(loss, -logp[MASK].sum(dtype=np.float64), rtol=1e-6)
  assert count == MASK.sum() and count.dtype == jnp.float32
  loss, count = losses.sft(logp, np.zeros_like(MASK))
  assert loss == 0 and count == 0


# Stage 2


def by_token(x_BR, like_BRT):
  """Each token of a response has what its response has."""
  return jnp.broadcast_to(jnp.asarray(x_BR)[..., None], like_BRT.shape)


def policy(logp, old=None, ref=None, advantage=None, keep=None, kl_weight=0.0, kl="k3", mask=MASK):
  """Defaults: ratio 1, no reference, every KL term kept."""
  return losses.policy_gradient(
    logp,
    jax.lax.stop_gradient(logp) if old is None else old,
    logp if ref is None else ref,
    np.ones_like(logp) if advantage is None else by_token(advantage, logp),
    mask,
    np.ones(logp.shape, bool) if keep is None else by_token(keep, logp),
    clip=CLIP,
    kl_weight=kl_weight,
    kl_estimator=kl,
  )


@pytest.mark.parametrize("chunk", [2, T])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_that_of_torch_and_so_is_its_gradient(beta, chunk):
  """A second formula: PyTorch's kl_div, with the mixture written out."""
  X, V, D, E, temperature = 3, 11, 5, 4, 0.7
  own, table = normal(20, X, T, D), normal(21, V, D)
  theirs, their_table = normal(22, X, T, E), normal(23, V, E)
  learns = {"dtype": torch.float64, "requires_grad": True}
  hidden, kernel = torch.tensor(own, **learns), torch.tensor(table, **learns)
  student = torch.log_softmax(hidden @ kernel.T / temperature, -1)
  logits = torch.tensor(theirs, dtype=torch.float64) @ torch.tensor(their_table).double().T
  teacher = torch.log_softmax(logits / temperature, -1)
  kl = lambda p, q: torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
  if beta in (0, 1):
    wanted = kl(teacher, student) if beta == 0 else kl(student, teacher)
  else:
    mixture = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
    wanted = beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
  wanted.sum().backward()

  def total(own, table):
    divergence = losses.jsd(own, table, theirs, their_table, temperature, chunk, beta)
    return divergence.sum(), divergence

  (grads, got) = jax.grad(total, (0, 1), has_aux=True)(jnp.asarray(own), jnp.asarray(table))
  np.testing.assert_allclose(got, wanted.detach().numpy(), atol=1e-5)
  for grad, tensor in zip(grads, (hidden, kernel), strict=True):
    np.testing.assert_allclose(grad, tensor.grad.numpy(), atol=1e-5)


def test_distillation_on_the_students_tokens_is_a_policy_gradient_of_the_log_ratio():
  """OPD: A_t = c (log pi_T - log pi_S), per token and not differentiated, gives the gradient of the
  k2 term; with a reward it is A - c (log pi_S - log pi_T)."""
  logp, teacher, advantage = normal(24, B, R, T), normal(25, B, R, T), normal(26, B, R)
  c = 0.6
  by_kl = lambda x: policy(x, ref=teacher, advantage=advantage, kl_weight=c, kl="k2")[0][0]
  per_token = advantage[..., None] + c * (teacher - logp)

  def by_advantage(x):
    old = jax.lax.stop_gradient(x)
    ones = np.ones(logp.shape, bool)
    return losses.policy_gradient(x, old, x, per_token, MASK, ones, CLIP, 0.0, "k3")[0][0]

  np.testing.assert_allclose(jax.grad(by_kl)(logp), jax.grad(by_advantage)(logp), rtol=1e-5)


def test_the_gradient_is_minus_the_advantage_of_every_token():
  """With one update per rollout batch: d loss / d logp = -A on tokens that count, else 0."""
  logp, advantage = normal(7, B, R, T), normal(8, B, R)
  grad = jax.grad(lambda x: policy(x, advantage=advantage)[0][0])(logp)
  np.testing.assert_allclose(grad, np.where(MASK, -advantage[..., None], 0), rtol=1e-6)
  (loss, count), _ = policy(logp, advantage=advantage)
  np.testing.assert_allclose(loss, -(advantage[..., None] * MASK).sum(), rtol=1e-5)
  assert count == MASK.sum()


@pytest.mark.parametrize(
  "ratio, advantage, gain, learns",
  [
    (1.1, 2.0, 2.2, True),
    (1.5, 2.0, 2.4, False),  # good and already likelier: held at 1 + clip
    (0.5, 2.0, 1.0, True),  # good and less likely: not held
    (0.5, -2.0, -1.6, False),  # bad and already less likely: held at 1 - clip
    (1.5, -2.0, -3.0, True),  # bad and likelier: not held
  ],
)
def test_the_ratio_is_clipped_where_it_has_gone_far_enough(ratio, advantage, gain, learns):
  logp = np.log(np.full((1, 1, 1), ratio, np.float32))
  arguments = np.zeros((1, 1, 1)), logp, np.full((1, 1), advantage), np.ones((1, 1, 1), bool)
  value = lambda x: policy(x, *arguments[:3], np.ones((1, 1), bool), mask=arguments[3])
  ((loss, _), metrics), grad = value(logp), jax.grad(lambda x: value(x)[0][0])(logp)
  np.testing.assert_allclose(loss, -gain, rtol=1e-6)
  np.testing.assert_allclose(grad, -advantage * ratio if learns else 0, rtol=1e-6)
  assert metrics["ratio_clipped"] == (abs(ratio - 1) > CLIP)


KL = {
  "k1": lambda p, r: p - r,
  "k2": lambda p, r: (p - r) ** 2 / 2,
  "k3": lambda p, r: np.exp(r - p) - (r - p) - 1,
}


@pytest.mark.parametrize("kl", KL)
def test_the_kl_term_is_added_with_its_weight_and_dropped_where_told(kl):
  logp, ref, advantage = normal(9, B, R, T), normal(10, B, R, T), normal(11, B, R)
  keep = np.array([[True, False, True], [True, True, False]])
  terms = KL[kl](logp.astype(np.float64), ref.astype(np.float64))
  (loss, count), metrics = policy(logp, None, ref, advantage, keep, 0.3, kl)
  want = -(advantage[..., None] * MASK).sum() + 0.3 * terms[MASK & keep[..., None]].sum()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(metrics["kl"], terms[MASK].sum(), rtol=1e-5)
  assert count == MASK.sum()


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kl):
  """Their mean under the policy, over a whole small vocabulary, is KL(policy || reference)."""
  p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.3, 0.1, 0.4])
  estimate = np.asarray(losses.KL_ESTIMATORS[kl](np.log(q) - np.log(p)))
  np.testing.assert_allclose((p * estimate).sum(), (p * np.log(p / q)).sum(), rtol=1e-6)
  if kl == "k3":
    assert (estimate >= 0).all()


@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("keep", [True, False], ids=["padding", "a dropped group"])
def test_an_overflow_where_nothing_counts_leaves_the_gradient_finite(kl, keep):
  logp, counts = np.zeros((B, R, T), np.float32), MASK.copy()
  if not keep:
    counts[0] = False
  ref = np.where(counts, -0.5, 200).astype(np.float32)  # exp(200) is inf
  given = dict(keep=counts.any(-1), advantage=np.zeros((B, R)), kl_weight=1.0, kl=kl)
  grad = np.asarray(jax.grad(lambda x: policy(x, ref=ref, **given)[0][0])(logp))
  assert np.isfinite(grad).all() and (grad[counts] != 0).all() and (grad[~counts] == 0).all()


def test_one_token_far_off_is_held_as_in_verls_low_var_kl():
  """Written out in torch: the gap held at 20 nats either way, the estimate at 10."""
  torch = pytest.importorskip("torch")
  gap = np.array([-300.0, -20.5, -12, -9, -0.1, 0.0, 2.4, 2.6, 25, 300], np.float32)
  theirs = torch.tensor(gap, requires_grad=True)
  held = torch.clamp(theirs, min=-20, max=20)
  torch.clamp(torch.exp(held) - held - 1, min=-10, max=10).sum().backward()
  k3 = losses.KL_ESTIMATORS["k3"]
  np.testing.assert_allclose(jax.grad(lambda x: k3(x).sum())(gap), theirs.grad.numpy(), rtol=1e-5)
  assert float(k3(jnp.float32(300))) == float(k3(jnp.float32(-300))) == 10


def test_the_kl_gradient_pulls_towards_the_reference():
  """k2 and k3 at any token: below the reference the loss falls as logp grows, above it rises."""
  logp = np.zeros((B, R, T), np.float32)
  for kl in ("k2", "k3"):
    for ref in (-0.5, 0.5):
      value = lambda x, kl=kl, ref=ref: policy(
        x, ref=np.full_like(logp, ref), advantage=np.zeros((B, R)), kl_weight=1.0, kl=kl
      )
      grad = np.asarray(jax.grad(lambda x, v=value: v(x)[0][0])(logp))
      assert (np.sign(grad[MASK]) == -np.sign(ref)).all() and (grad[~MASK] == 0).all()


def test_loss_and_gradient_are_those_of_verl_and_trl():
  """Written out in torch: the larger of two losses (verl's compute_policy_loss), the token mean of
  the batch, and trl's per-token KL, exp(ref - logp) - (ref - logp) - 1."""
  torch = pytest.importorskip("torch")
  logp, old, ref, advantage = (
    0.4 * normal(20 + i, B, R, *shape) for i, shape in enumerate([(T,), (T,), (T,), ()])
  )
  beta = 0.04
  theirs, mask = torch.tensor(logp, requires_grad=True), torch.tensor(MASK)
  ratio = torch.exp(theirs - torch.tensor(old))
  of_token = torch.tensor(advantage)[..., None]
  clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
  loss = torch.max(-of_token * ratio, -of_token * clipped)
  gap = torch.tensor(ref) - theirs
  loss = ((loss + beta * (torch.exp(gap) - gap - 1)) * mask).sum() / mask.sum()
  loss.backward()

  def ours(x):
    (total, count), _ = policy(x, old, ref, advantage, kl_weight=beta)
    return total / count

  value, grad = jax.value_and_grad(ours)(logp)
  assert float(value) == pytest.approx(loss.item(), rel=1e-5)
  np.testing.assert_allclose(grad, theirs.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_an_unknown_estimator_is_an_error():
  with pytest.raises(KeyError, match="k4"):
    policy(normal(0, B, R, T), kl="k4")


# The discriminator


PAIR = np.array([[True, False, True], [True, True, True]])


def test_the_pair_loss_is_a_weighted_softplus_and_not_divided_by_the_weights():
  student, teacher = 3 * normal(12, B, R), 3 * normal(13, B, R)
  weight = np.random.default_rng(14).uniform(0.1, 0.9, (B, R)).astype(np.float32)
  softplus = np.logaddexp(0, student.astype(np.float64) - teacher)
  (loss, count), metrics = losses.pairs(student, teacher, weight, PAIR)
  np.testing.assert_allclose(loss, (weight * softplus)[PAIR].sum(), rtol=1e-5)
  assert count == 5 and count.dtype == jnp.float32
  margin = (teacher - student)[PAIR]
  np.testing.assert_allclose(metrics["margin"], margin.sum(), rtol=1e-5)
  np.testing.assert_allclose(metrics["weight"], weight[PAIR].sum(), rtol=1e-5)
  assert metrics["accuracy"] == (margin > 0).sum()
  (halved, half_count), _ = losses.pairs(student, teacher, weight / 2, PAIR)
  np.testing.assert_allclose(halved, loss / 2, rtol=1e-6)
  assert half_count == count


def test_the_pair_gradient_lifts_the_teacher_and_lowers_the_student():
  student, teacher, weight = normal(15, B, R), normal(16, B, R), np.full((B, R), 0.5, np.float32)
  value = lambda s, t: losses.pairs(s, t, weight, PAIR)[0][0]
  d_student, d_teacher = jax.grad(value, (0, 1))(student, teacher)
  wrong = 1 / (1 + np.exp(teacher - student))  # the share of belief in the wrong order
  np.testing.assert_allclose(d_student, np.where(PAIR, 0.5 * wrong, 0), rtol=1e-5)
  np.testing.assert_allclose(d_teacher, -d_student, rtol=1e-6)


def test_squared_scores_of_both_sides_are_added_and_not_weighed():
  """PRISM's score_reg_coef: coefficient * mean over pairs of the two squares' mean."""
  student, teacher, weight = normal(17, B, R), normal(18, B, R), np.full((B, R), 0.5, np.float32)
  value = lambda s, t, l2: losses.pairs(s, t, weight, PAIR, l2)[0][0]
  squares = ((student**2 + teacher**2) / 2)[PAIR].sum()
  got = value(student, teacher, 0.3) - value(student, teacher, 0.0)
  np.testing.assert_allclose(got, 0.3 * squares, rtol=1e-5)
  with_l2, without = (jax.grad(value, (0, 1))(student, teacher, l2) for l2 in (0.3, 0.0))
  for scores, a, b in zip((student, teacher), with_l2, without, strict=True):
    np.testing.assert_allclose(a - b, np.where(PAIR, 0.3 * scores, 0), atol=1e-6)


def test_no_pair_is_no_loss_even_when_scores_are_not_numbers():
  nan = np.full((B, R), np.nan, np.float32)
  (loss, count), metrics = losses.pairs(nan, nan, nan, np.zeros((B, R), bool))
  assert (loss, count, metrics["accuracy"], metrics["margin"]) == (0, 0, 0, 0)

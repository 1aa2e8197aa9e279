"""Cached sampling against the training forward, and the laws of restricted sampling."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small import CONFIG, END, random_groups

from rmsd_jax.core import packed, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.method import losses
from rmsd_jax.models.student import PARTITION, Qwen3VL
from rmsd_jax.rollouts import generate as generate_lib
from rmsd_jax.rollouts.generate import (
  BLOCK,
  _each,
  _invert,
  _response_keys,
  _restrict,
  categorical,
  generate,
  prompt_keys,
  sample_token,
)

MODEL = Qwen3VL(CONFIG)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: x * 1.5, MODEL.init(jax.random.key(3)))


def sample(params, groups, seed=0, **options):
  run = functools.partial(
    generate, MODEL, samples=5, max_tokens=12, stop_ids=(END,), **{"temperature": 1.0} | options
  )
  return jax.jit(lambda p, g: run(p, g, key=jax.random.key(seed)))(params, groups)


def predictors(params, groups):
  """Rows laid out unpacked, and the trainer's hidden states [B, W, D] that predict them."""
  rows = packed.padded(jax.tree.map(jnp.asarray, groups))
  return rows, losses.predictors(MODEL.hidden(params, rows, MODEL.encode(params, groups)), rows)


def test_sampler_and_trainer_agree(params):
  """Step 0: the importance ratio is 1, at any temperature."""
  groups = random_groups(B=3)
  for temperature in (1.0, 0.7):
    out = sample(params, groups, temperature=temperature)
    scored = groups.with_responses(out.responses_BRT, out.length_BR)
    rows, hidden_BWD = predictors(params, scored)
    table_VD = MODEL.unembedding(params)
    logp_BW = losses.token_logps(hidden_BWD, table_VD, rows.targets_XW, temperature)
    logp = logp_BW.reshape(out.responses_BRT.shape)
    ratio = jnp.exp(jnp.where(scored.response_mask_BRT, logp - out.logp_BRT, 0))
    np.testing.assert_allclose(ratio, 1, atol=1e-5)


def test_greedy_is_the_argmax_of_the_full_forward(params):
  groups = random_groups(B=3)
  out = sample(params, groups, temperature=0.0)
  _, hidden_BWD = predictors(params, groups.with_responses(out.responses_BRT, out.length_BR))
  hidden = hidden_BWD.reshape(*out.responses_BRT.shape, -1)
  best = np.argmax(hidden @ MODEL.unembedding(params).T, -1)
  mask = np.arange(12) < np.asarray(out.length_BR)[..., None]
  np.testing.assert_array_equal(np.where(mask, best, 0), np.where(mask, out.responses_BRT, 0))


def test_gathering_the_weights_changes_no_sample(params):
  """On 8 devices, weights split over fsdp and tensor: gathered once, or for every token."""
  mesh = sharding.make_mesh(2, 2, 2)
  groups = random_groups(B=4)
  with jax.set_mesh(mesh):
    params = jax.device_put(params, sharding.shardings(mesh, params, PARTITION))
    placed = sharding.put_batch(mesh, groups)
    once, each = (
      jax.device_get(generate(
        MODEL, params, placed, jax.random.key(0), samples=3, max_tokens=6, stop_ids=(END,),
        temperature=1.0, gather=gather,
      ))
      for gather in (True, False)
    )  # fmt: skip
  np.testing.assert_array_equal(once.responses_BRT, each.responses_BRT)
  np.testing.assert_allclose(once.logp_BRT, each.logp_BRT, atol=1e-5)


def test_weights_cast_before_the_loop_are_those_cast_inside(params, monkeypatch):
  """bfloat16 on one device: the very same samples."""
  model, groups = Qwen3VL(CONFIG, dtype="bfloat16"), random_groups(B=3)

  def run():
    program = functools.partial(generate.__wrapped__, model, samples=3, max_tokens=6, pad_id=0)
    return jax.jit(functools.partial(program, stop_ids=(END,), temperature=1.0))(
      params, groups, jax.random.key(0)
    )

  before = run()
  monkeypatch.setattr(Qwen3VL, "for_decoding", lambda model, params, gather: params)
  inside = run()
  np.testing.assert_array_equal(before.responses_BRT, inside.responses_BRT)
  np.testing.assert_array_equal(before.logp_BRT, inside.logp_BRT)


def test_responses_end_once_and_padding_follows(params):
  # A head that likes the end token, so that responses of many lengths appear.
  liked = {
    **params,
    "text": {**params["text"], "embed": params["text"]["embed"].at[END].multiply(4)},
  }
  out = sample(liked, random_groups(B=4), pad_id=159)
  tokens, length, finished = map(np.asarray, (out.responses_BRT, out.length_BR, out.finished_BR))
  assert finished.any()
  for row, n, done in zip(tokens.reshape(-1, 12), length.ravel(), finished.ravel(), strict=True):
    assert (row[: n - 1] != END).all() and (row[n:] == 159).all()
    assert (row[n - 1] == END) == done and (done or n == 12)
  assert (np.asarray(out.logp_BRT)[np.arange(12) >= length[..., None]] == 0).all()


def test_other_keys_give_other_samples_and_the_same_key_the_same(params):
  groups = random_groups()
  a, b, c = (np.asarray(sample(params, groups, seed).responses_BRT) for seed in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


@pytest.mark.parametrize("V", [5, BLOCK, 3 * BLOCK + 17])
def test_draws_follow_the_weights(V):
  """Chi-square against the exact shares; a weight of 0 is never drawn."""
  rng, n = np.random.default_rng(V), 40_000
  weights = np.exp(rng.normal(0, 1.5, V)) * (rng.random(V) < 0.6)
  weights[-1] = 0.0
  drawn = jax.jit(categorical)(
    jax.random.split(jax.random.key(V), (4, n // 4)),
    jnp.broadcast_to(jnp.asarray(weights, jnp.float32), (4, n // 4, V)),
  )
  counts = np.bincount(np.asarray(drawn).ravel(), minlength=V)
  possible = weights > 0
  assert counts[~possible].sum() == 0 and len(counts) == V
  expected = n * weights[possible] / weights.sum()
  assert stats.chisquare(counts[possible], expected).pvalue > 1e-3


def test_a_uniform_close_to_one_still_finds_a_possible_index():
  weights = jnp.array([0.0, 1e-30, 1.0, 1e-9, 0.0, 0.0])
  for u in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))):
    assert weights[_invert(weights, jnp.float32(u))] > 0


def test_every_place_is_drawn_with_its_own_key(params):
  """By hand: place t of response r of prompt b with fold_in(fold_in(fold_in(key, b), r), t), the
  first one included, from the trainer's forward of what came before."""
  groups = random_groups(B=2)
  out = sample(params, groups, seed=7)
  _, hidden_BWD = predictors(params, groups.with_responses(out.responses_BRT, out.length_BR))
  hidden = hidden_BWD.reshape(*out.responses_BRT.shape, -1)
  logits_BRTV = hidden @ MODEL.unembedding(params).T
  of = jax.random.fold_in
  for b, r, t in itertools.product(range(2), range(5), range(4)):
    key = of(of(of(jax.random.key(7), b), r), t)
    one = logits_BRTV[b, r, t][None, None]
    token_11, _ = sample_token(one, key.reshape(1, 1), 1.0, 1.0, 0)
    if t < out.length_BR[b, r]:
      assert token_11[0, 0] == out.responses_BRT[b, r, t]


def test_no_two_responses_or_places_share_a_key():
  keys_BR = _response_keys(jax.random.key(5), 6, 4)
  keys = [_each(jax.random.fold_in)(keys_BR, t) for t in range(9)]
  drawn = np.concatenate([jax.random.key_data(key).reshape(-1, 2) for key in keys])
  assert len(np.unique(drawn, axis=0)) == 6 * 4 * 9


@pytest.fixture(scope="module")
def six(params):
  """Six prompts, their keys by numbers in a pool, and nine responses of each."""
  groups, keys = random_groups(B=6), prompt_keys(jax.random.key(5), np.arange(100, 106))
  run = functools.partial(generate, MODEL, stop_ids=(END,), temperature=1.0)
  out = jax.device_get(run(params, groups, keys, samples=9, max_tokens=10))
  assert len(np.unique(out.length_BR)) > 1  # some ended, and others went on
  return groups, keys, run, out


@pytest.mark.parametrize(
  "rows, samples, places",
  [([4, 2, 0, 5, 3, 1], 9, 10), ([3], 9, 10), ([1, 5, 1], 2, 6)],
  ids=["another order", "alone", "others, fewer samples and places"],
)
def test_a_response_does_not_depend_on_who_else_is_drawn(params, six, rows, samples, places):
  groups, keys, run, out = six
  rows = np.array(rows)
  some = run(
    params,
    jax.tree.map(lambda x: x[rows], groups),
    keys[rows],
    samples=samples,
    max_tokens=places,
  )
  cut = lambda x: x[rows, :samples]
  np.testing.assert_array_equal(some.responses_BRT, cut(out.responses_BRT)[..., :places])
  np.testing.assert_array_equal(some.length_BR, np.minimum(cut(out.length_BR), places))
  np.testing.assert_allclose(some.logp_BRT, cut(out.logp_BRT)[..., :places], atol=1e-5)


@pytest.mark.parametrize("mesh, tensor", [((2, 2, 2), 0), ((1, 4, 2), 4), ((2, 4, 1), 2)], ids=str)
def test_a_response_is_the_same_on_eight_devices(params, six, mesh, tensor):
  """Also where devices decode together that compute apart."""
  groups, keys, run, out = six
  rows = np.array([5, 1, 0, 2] * 2)
  mesh = sharding.make_mesh(*mesh)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.shardings(mesh, params, PARTITION))
    some = sharding.put_batch(mesh, jax.tree.map(lambda x: x[rows], groups))
    if tensor == 4:
      with pytest.raises(UserError, match=r"change config.mesh or rollouts.tensor: .*\(2 % 4\)"):
        MODEL.check_decoding(mesh, tensor)
      return
    MODEL.check_decoding(mesh, tensor)
    run = functools.partial(run, placed, some, keys[rows], samples=3, max_tokens=6, tensor=tensor)
    many = jax.device_get(run())
  np.testing.assert_array_equal(many.responses_BRT, out.responses_BRT[rows, :3, :6])


@pytest.fixture(scope="module")
def uneven(params):
  """Eight prompts and responses of very different lengths by one plain loop: one window of the
  caches, nobody leaves before the last is done."""
  groups, keys = random_groups(B=8), prompt_keys(jax.random.key(6), np.arange(8))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generate_lib, "HALVINGS", 0)
    plain = grown(MODEL, params, groups, keys)
  # One shard of 8 and four of 2 prompts: half and a quarter of the rows are left before T.
  for shards, rows in ((1, 24), (4, 6)):
    alive = [(plain.length_BR.reshape(shards, -1) > t).sum(1).max() for t in range(PLACES - 1)]
    assert any(n <= -(-rows // 4) for n in alive)
  return groups, keys, plain


PLACES = 12


def grown(model, params, groups, keys, **options):
  run = functools.partial(generate.__wrapped__, model, samples=3, max_tokens=PLACES, **options)
  run = functools.partial(run, stop_ids=tuple(range(40)), temperature=1.0)
  return jax.device_get(jax.jit(run)(params, groups, keys))


def assert_same_responses(some, others):
  np.testing.assert_array_equal(some.responses_BRT, others.responses_BRT)
  np.testing.assert_array_equal(some.length_BR, others.length_BR)
  np.testing.assert_array_equal(some.finished_BR, others.finished_BR)


def test_windows_and_rows_that_leave_change_no_response(params, uneven, monkeypatch):
  monkeypatch.setattr(generate_lib, "FEWEST", 1)
  groups, keys, plain = uneven
  out = grown(Qwen3VL(CONFIG, window=4), params, groups, keys)
  assert_same_responses(out, plain)
  np.testing.assert_allclose(out.logp_BRT, plain.logp_BRT, atol=1e-6)


@pytest.mark.parametrize("pieces", [2, 3, 8, 9])
def test_prompts_that_are_answered_in_turn_get_the_same_responses(params, uneven, pieces):
  """In 2, 4 or 8 parts of the 8 prompts; three do not divide them."""
  groups, keys, plain = uneven
  out = grown(MODEL, params, groups, keys, pieces=pieces)
  assert_same_responses(out, plain)
  np.testing.assert_allclose(out.logp_BRT, plain.logp_BRT, atol=1e-5)


@pytest.mark.parametrize(
  "mesh, tensor, pieces", [((2, 2, 2), 0, 1), ((1, 8, 1), 2, 1), ((1, 8, 1), 2, 2)], ids=str
)
def test_rows_leave_their_own_shard_of_eight_devices(
  params, uneven, monkeypatch, mesh, tensor, pieces
):
  monkeypatch.setattr(generate_lib, "FEWEST", 1)
  groups, keys, plain = uneven
  mesh = sharding.make_mesh(*mesh)
  model, options = Qwen3VL(CONFIG, window=4), {"tensor": tensor, "pieces": pieces}
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.shardings(mesh, params, PARTITION))
    out = grown(model, placed, sharding.put_batch(mesh, groups), keys, **options)
  assert out.responses_BRT.shape == plain.responses_BRT.shape
  assert_same_responses(out, plain)
  np.testing.assert_allclose(out.logp_BRT, plain.logp_BRT, atol=1e-5)


def test_the_rows_of_the_loops():
  assert generate_lib.rows_of_loops(64) == [64, 32, 16]
  assert generate_lib.rows_of_loops(27) == [27, 14]
  assert generate_lib.rows_of_loops(15) == [15]


def test_one_key_is_that_of_each_prompt_by_its_place(params, six):
  """Also one of the older form; a number of keys that fits no batch is refused."""
  groups, _, run, _ = six
  some = functools.partial(run, params, groups, samples=2, max_tokens=4)
  one = some(jax.random.key(4)).responses_BRT
  np.testing.assert_array_equal(
    one, some(prompt_keys(jax.random.key(4), np.arange(6))).responses_BRT
  )
  raw = lambda key: jax.random.key_data(_response_keys(key, 6, 2))
  np.testing.assert_array_equal(raw(jax.random.PRNGKey(4)), raw(jax.random.key(4)))
  with pytest.raises(ValueError, match="2 keys for 6 prompts"):
    some(jax.random.split(jax.random.key(4), 2))


@pytest.mark.parametrize("option", [{"top_p": 1.5}, {"top_p": 0.0}, {"top_k": -1}])
def test_options_of_no_distribution_are_refused(params, option):
  with pytest.raises(UserError, match=r"top_p must be in \(0, 1\]"):
    sample(params, random_groups(), **option)


def test_the_nucleus_is_that_of_each_response():
  """[B, R, V] whose axes differ in size and content; by sorting each distribution in numpy."""
  logits = np.random.default_rng(0).normal(0, 2, (3, 2, 7)).astype(np.float32)
  kept = np.isfinite(np.asarray(_restrict(jnp.asarray(logits), 0.7, 0)))
  for row, keep in zip(logits.reshape(-1, 7), kept.reshape(-1, 7), strict=True):
    p = np.exp(row) / np.exp(row).sum()
    order = np.argsort(-p)
    count = np.searchsorted(np.cumsum(p[order]), 0.7) + 1
    assert set(np.flatnonzero(keep)) == set(order[:count])


def test_restricted_sampling_keeps_the_nucleus():
  logits = jnp.log(jnp.array([[[0.5, 0.3, 0.15, 0.05]]]))
  kept = lambda **k: np.isfinite(
    np.asarray(_restrict(logits, **{"top_p": 1.0, "top_k": 0, **k}))[0, 0]
  )
  assert kept().all()
  np.testing.assert_array_equal(kept(top_k=2), [True, True, False, False])
  np.testing.assert_array_equal(kept(top_k=99), [True] * 4)
  np.testing.assert_array_equal(kept(top_p=0.5), [True, False, False, False])
  np.testing.assert_array_equal(kept(top_p=0.51), [True, True, False, False])
  np.testing.assert_array_equal(kept(top_p=0.96, top_k=3), [True, True, True, False])

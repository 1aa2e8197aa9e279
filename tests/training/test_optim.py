"""The optimiser's schedule and decay, steps that must not count, gradients over pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny_model import MODEL, assert_close, jit, random_params

from rmsd_jax.core import named
from rmsd_jax.core.errors import UserError
from rmsd_jax.training import optim


def settings(**changes):
  return ConfigDict(
    {
      "name": "adamw",
      "learning_rate": 0.1,
      "warmup_share": 0.0,
      "schedule": "constant",
      "b1": 0.9,
      "b2": 0.999,
      "weight_decay": 0.0,
      "clip_norm": 1e9,
      "moment_dtype": "float32",
      **changes,
    }
  )


# schedule


def rates(steps, at, **changes):
  rate = optim.schedule(settings(**changes), steps)
  return [float(rate(step)) for step in at]


def test_cosine_warms_up_and_ends_at_zero():
  """Update k has the rate at k + 1: the first moves the weights, the last has reached 0."""
  cosine = {"schedule": "cosine", "learning_rate": 2.0, "warmup_share": 0.1}
  want = {0: 0.1, 4: 0.5, 9: 1, 39: 0.75, 54: 0.5, 69: 0.25, 99: 0, 500: 0}
  np.testing.assert_allclose(rates(100, want, **cosine), 2 * np.array([*want.values()]), atol=1e-6)


def test_constant_warms_up_and_stays():
  constant = {"schedule": "constant", "learning_rate": 2.0, "warmup_share": 0.05}
  want = {0: 0.4, 3: 1.6, 4: 2, 99: 2, 10_000: 2}
  np.testing.assert_allclose(rates(100, want, **constant), [*want.values()], rtol=1e-6)


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_the_warm_up_is_one_step_at_least_and_the_run_may_be_one_step(schedule):
  """A learning rate that never leaves 0, or is not a number, would train nothing, silently."""
  np.testing.assert_allclose(rates(1, [0], schedule=schedule, warmup_share=0.0), 0.1, rtol=1e-6)
  assert np.isfinite(rates(3, range(6), schedule=schedule, warmup_share=1.0)).all()


def test_an_update_without_a_gradient_moves_nothing():
  """Neither momentum nor decay act on a batch that has nothing to learn from."""
  params = {"w": jnp.ones(3)}
  tx = optim.make(settings(weight_decay=0.1), 10)
  after, state, _ = optim.apply(tx, {"w": jnp.full(3, 0.5)}, tx.init(params), params)
  assert (after["w"] < 1).all()
  still, same, health = optim.apply(tx, {"w": jnp.zeros(3)}, state, after)
  jax.tree.map(np.testing.assert_array_equal, (still, same), (after, state))
  assert health["skipped"] == 0


def test_an_unknown_schedule_is_refused_with_the_choices():
  with pytest.raises(UserError, match="optim.schedule is 'linear'; choose one of cosine, constant"):
    optim.make(settings(schedule="linear"), 10)


def test_an_unknown_optimizer_is_refused_with_the_choices():
  with pytest.raises(UserError, match="optim.name is 'adam'; choose one of adamw$"):
    optim.make(settings(name="adam"), 10)


def test_another_optimizer_is_one_entry_of_the_table(monkeypatch):
  """It gets the schedule and the mask; clipping and skipping come around it."""
  decays = lambda section, rate, decayed: optax.chain(
    optax.add_decayed_weights(section.weight_decay, decayed), optax.sgd(rate)
  )
  monkeypatch.setitem(optim.OPTIMIZERS, "sgd", decays)
  grads = jax.tree.map(lambda x: np.full_like(x, 3.0), PARAMS)  # 9 values: norm 9
  broken = jax.tree.map(lambda x: np.full_like(x, np.nan), PARAMS)
  changes = {"name": "sgd", "weight_decay": 0.5, "learning_rate": 0.1, "clip_norm": 0.9}
  (params, _, _), (after, _, health) = run(optim.make(settings(**changes), 10), [grads, broken])
  np.testing.assert_allclose(params["text"]["q"], 1 - 0.1 * (0.3 + 0.5), rtol=1e-6)
  np.testing.assert_allclose(params["text"]["norm"], 1 - 0.1 * 0.3, rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, after, params)
  assert health["skipped"] == 1


# apply: one update

PARAMS = {"text": {"q": np.ones((2, 3), np.float32), "norm": np.ones(3, np.float32)}}


def run(tx, gradients, params=PARAMS):
  """Applies a list of gradients; returns params, state and health after each."""
  state, history = jit(tx.init)(params), []
  one = jit(lambda g, s, p: optim.apply(tx, g, s, p))
  for grads in gradients:
    params, state, health = one(grads, state, params)
    history.append((params, state, health))
  return history


def test_two_steps_equal_adamw_by_hand():
  rng = np.random.default_rng(0)
  grads = [
    jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), PARAMS)
    for _ in range(3)
  ]
  tx = optim.make(settings(weight_decay=0.01, learning_rate=0.1, b1=0.8, b2=0.9), steps=10)
  history = run(tx, grads)
  for name, decay in (("q", 0.01), ("norm", 0.0)):
    x, mu, nu = PARAMS["text"][name].astype(np.float64), 0.0, 0.0
    for step, ((params, _, _), g) in enumerate(zip(history, grads, strict=True)):
      g = g["text"][name].astype(np.float64)
      mu, nu = 0.8 * mu + 0.2 * g, 0.9 * nu + 0.1 * g**2
      update = (mu / (1 - 0.8 ** (step + 1))) / (np.sqrt(nu / (1 - 0.9 ** (step + 1))) + 1e-8)
      x = x - 0.1 * (update + decay * x)  # the warm-up of one step ends with the first
      np.testing.assert_allclose(params["text"][name], x, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm_and_reported_before():
  grads = jax.tree.map(lambda x: np.full_like(x, 3.0), PARAMS)  # 9 values: norm 9
  (_, clipped, health), *_ = run(optim.make(settings(clip_norm=0.9), 10), [grads])
  np.testing.assert_allclose(health["grad_norm"], 9.0, rtol=1e-6)
  moments = [x for x in jax.tree.leaves(clipped) if np.ndim(x)]
  np.testing.assert_allclose(moments[0], 0.1 * 0.3, rtol=1e-5)  # (1 - b1) * clipped gradient


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
  good = jax.tree.map(np.ones_like, PARAMS)
  broken = {"text": {**good["text"], "norm": np.array([1, bad, 1], np.float32)}}
  first, second, third = run(optim.make(settings(), 10), [good, broken, good])
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same((second[0], second[1].inner), (first[0], first[1].inner))  # moments and counts too
  assert [step[2]["skipped"] for step in (first, second, third)] == [0, 1, 1]
  assert [step[2]["skipped_in_a_row"] for step in (first, second, third)] == [0, 1, 0]
  straight = run(optim.make(settings(), 10), [good, good])[-1]
  same((third[0], third[1].inner), (straight[0], straight[1].inner))


def test_norms_and_biases_are_never_decayed_and_every_matrix_is():
  """On every leaf of the model: where it has no gradient, AdamW only decays."""
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), MODEL.abstract())
  params["value_head"] = {"kernel": np.ones(4, np.float32)}
  params["other"] = {"bias": np.ones(4, np.float32)}  # with no gradient at all nothing moves
  grads = jax.tree.map(np.zeros_like, params) | {"other": {"bias": np.ones(4, np.float32)}}
  tx = optim.make(settings(weight_decay=0.5, learning_rate=0.1), 10)
  after = named.flatten(run(tx, [grads], params)[-1][0])
  assert (after.pop("other/bias") < 1).all()
  kept = {name for name, x in after.items() if np.all(x == 1)}
  assert all(np.allclose(x, 0.95) for name, x in after.items() if name not in kept)
  stacked = ("text/layers/", "vision/blocks/", "vision/deepstack/")
  vectors = {
    name
    for name, x in after.items()
    if (x.ndim - name.startswith(stacked) == 1 and name != "value_head/kernel")
    or name == "vision/blocks/qkv_bias"
  }
  assert kept == vectors


def test_the_first_moment_is_kept_in_the_dtype_of_the_config():
  state = optim.make(settings(moment_dtype="bfloat16"), 10).init(PARAMS)
  dtypes = [str(x.dtype) for x in jax.tree.leaves(state) if x.ndim]
  assert sorted(dtypes) == ["bfloat16"] * 2 + ["float32"] * 2


# gradients


def loss_fn(params, batch):
  """Squared error over rows that count: counts differ from piece to piece."""
  error = (batch["x"] @ params["w"] - batch["y"]) * batch["counts"]
  loss = jnp.sum(error**2)
  sums = {"loss": loss, "absolute": jnp.sum(jnp.abs(error))}
  parts = jnp.zeros(12).at[batch["row"]].set(error)
  return loss, optim.Figures(jnp.sum(batch["counts"]), sums, {"largest": error.max()}, parts)


def data():
  rng = np.random.default_rng(1)
  batch = {"x": rng.standard_normal((12, 3)), "y": rng.standard_normal(12), "counts": np.ones(12)}
  batch["counts"][[0, 3, 4, 9]] = 0
  batch = jax.tree.map(np.float32, batch) | {"row": np.arange(12)}
  return {"w": rng.standard_normal(3).astype(np.float32)}, batch


def cut(batch, *ends):
  """Pieces of unequal size."""
  bounds = zip((0, *ends), (*ends, 12), strict=True)
  return [jax.tree.map(lambda x, a=a, b=b: x[a:b], batch) for a, b in bounds]


@pytest.mark.parametrize("ends", [(), (5,), (2, 3, 11)], ids=str)
def test_pieces_give_gradient_metrics_and_parts_of_the_whole(ends):
  params, batch = data()
  one = jit(lambda grads, piece: optim.add(loss_fn, params, grads, piece))
  grads, figures = optim.over(cut(batch, *ends), optim.nothing(params), one)
  grads, metrics = optim.averaged(grads, figures)
  error = (batch["x"] @ params["w"] - batch["y"]) * batch["counts"]
  n = batch["counts"].sum()
  assert_close(grads["w"], 2 * (error @ batch["x"]) / n)
  wanted = {"loss": (error**2).sum() / n, "absolute": np.abs(error).sum() / n}
  assert_close(metrics, wanted | {"largest": error.max()})
  assert_close(figures.parts, error)


def test_a_batch_that_counts_nothing_has_no_gradient():
  params, batch = data()
  batch["counts"] = np.zeros(12, np.float32)
  grads, metrics = optim.averaged(*optim.add(loss_fn, params, optim.nothing(params), batch))
  assert (np.asarray(grads["w"]) == 0).all() and metrics["loss"] == 0


def test_only_the_given_parameters_are_trained():
  """Frozen weights are closed over: `named.split`, gradients of one half, `named.join`."""
  params = random_params({"w": np.zeros(3), "frozen": {"scale": np.zeros(())}})
  _, batch = data()
  free, frozen = named.split(params, ["w"])

  def joined_loss(free, batch):
    params = named.join(free, frozen)
    total, figures = loss_fn(params, batch)
    return total * params["frozen"]["scale"], figures

  grads, _ = optim.add(joined_loss, free, optim.nothing(free), batch)
  assert list(named.flatten(grads)) == ["w"]

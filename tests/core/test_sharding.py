"""Eight devices compute what one does; rules cover the models; batches go out and come back."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec
from ml_collections import ConfigDict
from small import CONFIG as LARGER
from small import random_groups
from tiny_model import CONFIG, MODEL, QUICK, assert_close, gradients, random_params, sft_loss

from rmsd_jax.core import named, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.models.config import PRESETS
from rmsd_jax.models.student import PARTITION, Qwen3VL
from rmsd_jax.training import optim, state

HEAD = {"value_head": {"kernel": np.zeros(CONFIG.text.width)}}
OPTIM = ConfigDict(
  {
    "learning_rate": 1e-4,
    "warmup_share": 0.0,
    "schedule": "constant",
    "b1": 0.9,
    "b2": 0.999,
    "weight_decay": 0.01,
    "clip_norm": 0.2,
    "name": "adamw",
    "moment_dtype": "float32",
  }
)


@pytest.fixture(scope="module")
def mesh():
  assert jax.device_count() == 8
  return sharding.make_mesh(2, 2, 2)


# make_mesh, check_batch


def test_a_mesh_takes_all_devices_and_minus_one_takes_what_is_left():
  shape = lambda *sizes: tuple(sharding.make_mesh(*sizes).shape.values())
  assert shape(2, 2, 2) == (2, 2, 2) and shape(8, 1, 1) == (8, 1, 1)
  assert (
    shape(-1, 2, 2) == (2, 2, 2) and shape(1, -1, 4) == (1, 2, 4) and shape(1, 8, -1) == (1, 8, 1)
  )
  assert sharding.make_mesh(1, 1, 1, jax.devices()[:1]).size == 1
  assert sharding.make_mesh(2, 2, 2).axis_names == sharding.AXES


def test_devices_join_along_fsdp_to_decode_together():
  """Neighbours, so that the order of the devices stays; what cannot be is refused with a remedy."""
  mesh = sharding.make_mesh(1, 4, 2).abstract_mesh
  sizes = lambda tensor: tuple(sharding.grouped(mesh, tensor).shape.values())
  assert [sizes(t) for t in (0, 2, 4, 8)] == [(1, 4, 2), (1, 4, 2), (1, 2, 4), (1, 1, 8)]
  for tensor in (1, 3, 6, 16, -2):
    with pytest.raises(UserError, match="a multiple of 2 that divides 8, or 0 for 2"):
      sharding.grouped(mesh, tensor)


def test_a_shards_prompts_are_divided_into_so_many_pieces_or_more():
  assert [sharding.pieces_of(6, n) for n in (1, 2, 3, 4, 5, 6, 7)] == [1, 2, 3, 6, 6, 6, 6]
  assert sharding.pieces_of(1, 1) == sharding.pieces_of(1, 4) == 1


@pytest.mark.parametrize(
  "sizes", [(2, 2, 3), (-1, 3, 1), (16, -1, 1), (-1, -1, 8), (4, 1, 1), (0, -1, 1)]
)
def test_a_mesh_that_does_not_fit_is_refused_with_sizes_devices_and_remedy(sizes):
  with pytest.raises(UserError) as error:
    sharding.make_mesh(*sizes)
  data, fsdp, tensor = sizes
  for part in (
    f"data={data} fsdp={fsdp} tensor={tensor}",
    "does not fit 8 devices",
    "set config.mesh",
  ):
    assert part in str(error.value)


def test_a_batch_must_divide_over_shards(mesh):
  assert sharding.batch_shards(mesh) == 4
  sharding.check_batch(mesh, 16, "config.batch")
  for batch in (6, 0, 2):
    with pytest.raises(UserError) as error:
      sharding.check_batch(mesh, batch, "config.batch")
    for part in (f"config.batch={batch} ", "4 mesh shards", "config.mesh"):
      assert part in str(error.value)


# rules


@pytest.mark.parametrize("size", PRESETS)
def test_the_rules_cover_the_released_models_and_all_are_used(size):
  """And every weight of them divides over fsdp and tensor, up to the key/value heads."""
  tree = Qwen3VL(PRESETS[size]).abstract()
  sharding.check_rules(tree, PARTITION)
  sharding.shardings(sharding.make_mesh(1, 4, 2), tree, PARTITION)
  sharding.shardings(sharding.make_mesh(1, 1, 8), tree, PARTITION)


def test_the_rules_of_a_run_cover_the_discriminator_too():
  for config in (CONFIG, LARGER):
    sharding.check_rules({**Qwen3VL(config).abstract(), **HEAD}, state.RULES)


def test_large_weights_are_cut_over_fsdp_and_tensor_and_vectors_are_whole(mesh):
  for name, x in named.flatten(sharding.abstract(mesh, MODEL.abstract(), PARTITION)).items():
    part = np.prod(x.sharding.shard_shape(x.shape)) / np.prod(x.shape)
    if name.endswith(("bias", "scale", "norm")):
      assert part == 1, name
    else:
      assert part == (1 / 2 if name.startswith("vision/embed/") else 1 / 4), name


def test_a_weight_without_a_rule_and_a_rule_without_a_weight_are_named_together():
  tree = {"text": {"embed": 0, "new": 0}}
  rules = (("text/embed", Spec()), ("text/old", Spec()), ("text/gone/.*", Spec()))
  with pytest.raises(UserError) as error:
    sharding.check_rules(tree, rules)
  for part in ("no rule for ['text/new']", "'text/old'", "'text/gone/.*'"):
    assert part in str(error.value)
  assert "text/embed" not in str(error.value)


def test_all_weights_that_do_not_divide_are_named_with_their_shape(mesh):
  tree = {"a": {"w": np.zeros((3, 4)), "v": np.zeros((4, 6)), "u": np.zeros((4, 5))}}
  with pytest.raises(UserError) as error:
    sharding.shardings(mesh, tree, (("a/.*", Spec("fsdp", ("data", "tensor"))),))
  for part in (
    "a/w (3, 4)",
    "(3 % 2)",
    "a/v (4, 6)",
    "(6 % 4)",
    "a/u (4, 5)",
    "change config.mesh",
  ):
    assert part in str(error.value)


def test_optimizer_moments_lie_like_their_parameters(mesh):
  params = sharding.abstract(mesh, {**MODEL.abstract(), **HEAD}, state.RULES)
  layout = named.flatten(jax.tree.map(lambda x: x.sharding, params))
  tx = optim.make(OPTIM, 10)
  optimizer = {"student_optim": jax.eval_shape(tx.init, params)}
  optimizer = sharding.abstract(mesh, optimizer, state.RULES)
  seen = []
  for path, x in jax.tree_util.tree_leaves_with_path(optimizer):
    name = "/".join(str(k.key) for k in path[1:] if isinstance(k, jax.tree_util.DictKey))
    if name:
      seen.append(name)
      assert x.sharding == layout[name], name
    else:
      assert x.sharding.is_fully_replicated and x.shape == ()
  assert sorted(seen) == sorted(2 * list(layout))


# batches


def test_a_batch_goes_out_by_rows_and_comes_back(mesh):
  host = random_groups(B=8)
  placed = sharding.put_batch(mesh, host)
  for x, there in zip(jax.tree.leaves(host), jax.tree.leaves(placed), strict=True):
    assert there.sharding.shard_shape(there.shape) == (2, *x.shape[1:])
    np.testing.assert_array_equal(sharding.local_rows(there), x)
    assert there.dtype == x.dtype


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (1, 1, 8)])
def test_rows_come_back_in_order_and_once_on_any_mesh(sizes):
  x = np.arange(16.0).reshape(8, 2)
  placed = sharding.put_batch(sharding.make_mesh(*sizes), x)
  np.testing.assert_array_equal(sharding.local_rows(placed), x)


def test_rows_come_back_when_only_one_axis_splits_them(mesh):
  """What jit decides about an output may be coarser than BATCH, or no split at all."""
  x = np.arange(8.0)
  for spec in (Spec("data"), Spec()):
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    np.testing.assert_array_equal(sharding.local_rows(placed), x)


def test_by_prompt_splits_rows_under_a_mesh_and_is_nothing_without_one(mesh):
  x = np.zeros((8, 3))
  assert sharding.by_prompt(x) is x
  with jax.set_mesh(mesh):
    placed = jax.jit(sharding.by_prompt)(jax.device_put(x, NamedSharding(mesh, Spec())))
  assert placed.sharding.shard_shape(placed.shape) == (2, 3)


# a train step


def train(mesh):
  """Two updates on a mesh: gradients of the first, then parameters and optimizer state."""
  params, tx = random_params(MODEL.abstract()), optim.make(OPTIM, 10)

  def step(params, opt_state, groups):
    grads, metrics, outputs = gradients(sft_loss(MODEL), params, groups)
    params, opt_state, health = optim.apply(tx, grads, opt_state, params)
    return params, opt_state, (grads, metrics, health, outputs["logp"])

  with jax.set_mesh(mesh):
    params = jax.device_put(params, sharding.shardings(mesh, params, PARTITION))
    layout = sharding.shardings(mesh, jax.eval_shape(tx.init, params), PARTITION)
    opt_state = jax.jit(tx.init, out_shardings=layout, compiler_options=QUICK)(params)
    groups = sharding.put_batch(mesh, random_groups(B=8, R=2, T=4, P=40))
    placed = jax.tree.map(lambda x: x.sharding, (params, opt_state))
    compiled = jax.jit(step, out_shardings=(*placed, None), compiler_options=QUICK)
    params, opt_state, first = compiled(params, opt_state, groups)
    params, opt_state, _ = compiled(params, opt_state, groups)
  return jax.device_get((first, params, opt_state))


@functools.cache
def one_device():
  return train(sharding.make_mesh(1, 1, 1, jax.devices()[:1]))


def test_a_train_step_on_eight_devices_equals_one_device(mesh):
  """Loss, gradients, log-probs, clipping, moments and updated weights."""
  eight = train(mesh)
  for got, want in zip(eight, one_device(), strict=True):
    assert_close(got, want)
  grads, _, health, _ = eight[0]
  assert health["skipped"] == 0 and health["grad_norm"] > OPTIM.clip_norm
  idle = {name for name, g in named.flatten(grads).items() if not np.abs(g).max() > 1e-5}
  assert not idle, f"no gradient reaches {idle}"

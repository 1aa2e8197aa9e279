"""Collectives read off compiled programs: loops count as often as they run."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from rmsd_jax import hlo, sharding

LAYERS, WIDTH = 6, 64


def test_a_gather_in_a_loop_counts_once_a_turn():
  """Weights split over 4 devices, gathered in each turn: forward only, and one sum at the end."""
  mesh = sharding.make_mesh(1, 4, 1, jax.devices()[:4])
  over = lambda *spec: NamedSharding(mesh, Spec(*spec))
  shape = lambda *sizes, at: jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=at)
  w = shape(LAYERS, WIDTH, WIDTH, at=over(None, "fsdp"))
  x = shape(8, WIDTH, at=over("fsdp"))

  def loss(w, x):
    def body(x, w):
      return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, over())), None

    return jnp.sum(jax.lax.scan(body, x, w)[0])

  found = hlo.collectives(jax.jit(loss).lower(w, x).compile().as_text())
  assert found == {"all-gather": (LAYERS, LAYERS * WIDTH**2 * 4), "all-reduce": (1, 4)}
  grads = hlo.collectives(jax.jit(jax.grad(loss)).lower(w, x).compile().as_text())
  sums = [size for kind, (_, size) in grads.items() if kind in ("all-reduce", "reduce-scatter")]
  assert sum(sums) >= LAYERS * WIDTH**2  # the gradient of the weights is summed over the devices
  assert grads["all-gather"][1] in (found["all-gather"][1], 2 * found["all-gather"][1])


ASYNC = """\
HloModule m

%inner (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}, u32[], u32[]) all-gather-start(%p), dimensions={0}
  ROOT %done = bf16[16,8]{1,0} all-gather-done(%start)
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %sum = f32[10]{0} all-reduce(%x), to_apply=%add
  %nested = (s32[], f32[10]) while(%s), condition=%c, body=%deep, backend_config={"known_trip_count":{"n":"5"}}
}

%deep (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %moved = (pred[3]{0}, s8[7]{0}) all-to-all(%a, %b), dimensions={0}
}

ENTRY %main (x: f32[10]) -> f32[10] {
  %call = bf16[16,8]{1,0} call(%x), to_apply=%inner
  %loop = (s32[], f32[10]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %unknown = (s32[], f32[10]) while(%t), condition=%c, body=%deep
}
"""  # noqa: E501


def test_pairs_nested_loops_and_tuples():
  assert hlo.collectives(ASYNC) == {
    "all-gather": (1, 16 * 8 * 2),
    "all-reduce": (3, 3 * 40),
    "all-to-all": (16, 16 * 10),
  }


def test_a_program_of_one_device_has_none():
  text = jax.jit(jnp.sum).lower(np.zeros(4, np.float32)).compile().as_text()
  assert hlo.collectives(text) == {}

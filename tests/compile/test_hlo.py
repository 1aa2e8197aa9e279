"""Collectives read off compiled programs: loops count as often as they run."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.compile import hlo
from rmsd_jax.core import sharding

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


SPREAD = """\
HloModule m

%part.1 (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %a = bf16[16,8]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

%part.2 (q: bf16[4,8]) -> bf16[16,8] {
  %q = bf16[4,8]{1,0} parameter(0)
  ROOT %b = bf16[16,8]{1,0} all-gather(%q), channel_id=7, dimensions={0}
}

ENTRY %main (x: bf16[4,8]) -> bf16[16,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %one = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%part.1
  %two = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%part.2
  ROOT %other = bf16[16,8]{1,0} all-gather(%x), channel_id=8, dimensions={0}
}
"""


def test_a_collective_spread_over_fusions_counts_once():
  assert hlo.collectives(SPREAD) == {"all-gather": (2, 2 * 256)}


DECODE = """\
HloModule m

%put (p0: bf16[4,8], p1: bf16[1,8], p2: s32[]) -> bf16[4,8] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  %p1 = bf16[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %dus = bf16[4,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

%attend (q0: f32[8], q1: bf16[6,4,8], q2: s32[]) -> f32[4] {
  %q0 = f32[8]{0:T(128)S(1)} parameter(0)
  %q2 = s32[]{:S(6)} parameter(2)
  %q1 = bf16[6,4,8]{2,1,0} parameter(1)
  %cast = bf16[6,4,8]{2,1,0} bitcast(%q1)
  %one = bf16[1,4,8]{2,1,0} dynamic-slice(%cast, %q2, %q2, %q2), dynamic_slice_sizes={1,4,8}
  ROOT %dot = f32[4]{0} dot(%one, %q0)
}

%layer (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %w = bf16[6,4,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%s), index=1
  %i = s32[]{:S(2)} get-tuple-element(%s), index=0
  %x = f32[8]{0:T(128)S(1)} get-tuple-element(%s), index=2
  %out = f32[4]{0:T(128)S(1)} fusion(%x, %w, %i), kind=kOutput, calls=%attend
}

%body (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %cache = bf16[4,8]{1,0} get-tuple-element(%s), index=1
  %new = bf16[1,8]{1,0} get-tuple-element(%s), index=2
  %i = s32[]{:S(2)} get-tuple-element(%s), index=0
  %written = bf16[4,8]{1,0} fusion(%cache, %new, %i), kind=kLoop, calls=%put
  %layers = (s32[], bf16[4,8]) while(%s), condition=%c, body=%layer, backend_config={"known_trip_count":{"n":"6"}}
  %whole = (bf16[4,8]{1,0:S(1)}, bf16[4,8]{1,0}, u32[]) copy-start(%written)
  %here = bf16[4,8]{1,0:S(1)} copy-done(%whole)
}

%c (s: (s32[], bf16[4,8])) -> pred[] {
  %never = pred[]{:S(2)} compare(%a, %b), direction=LT
}

%counted (s: (s32[], bf16[4,8])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  %turn = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn, %six), direction=LT
}

ENTRY %main (x: f32[10]) -> f32[10] {
  %large = f32[1000]{0} negate(%x)
  %tokens = (s32[], bf16[4,8]) while(%t), condition=%c, body=%body
}
"""  # noqa: E501


def test_traffic_of_a_turn_counts_slices_updates_and_copies_from_hbm():
  """An update writes and reads one row; each of 6 layers reads its slice of the weights and leaves
  its result on the chip; one array is copied onto the chip."""
  assert hlo.turn_traffic(DECODE) == [[{"fusion": 2 * 16 + 6 * 64, "copy": 64}]]


def test_a_fusion_inside_a_fusion_that_only_turns_an_array_reads_it():
  text = DECODE.replace(
    "%cast = bf16[6,4,8]{2,1,0} bitcast(%q1)",
    "%cast = bf16[6,4,8]{2,1,0} fusion(%q1), kind=kLoop, calls=%view",
  ).replace(
    "%attend (q0",
    "%view (v0: bf16[6,4,8]) -> bf16[6,4,8] {\n"
    "  %v0 = bf16[6,4,8]{2,1,0} parameter(0)\n"
    "  ROOT %turned = bf16[6,4,8]{2,1,0} bitcast(%v0)\n"
    "}\n\n%attend (q0",
  )
  # All of it: that only a slice is used afterwards is not followed through the inner fusion.
  assert hlo.turn_traffic(text)[0][0]["fusion"] == 2 * 16 + 6 * 6 * 64


def test_the_turns_of_a_loop_may_stand_in_its_condition_alone():
  """As the compiler for TPU writes them."""
  text = DECODE.replace(
    'condition=%c, body=%layer, backend_config={"known_trip_count":{"n":"6"}}',
    "condition=%counted, body=%layer",
  )
  assert text != DECODE and hlo.turn_traffic(text) == hlo.turn_traffic(DECODE)


WINDOWS = """
%short (a: bf16[6,4,8]) -> f32[4] {
  %a = bf16[6,4,8]{2,1,0} parameter(0)
  ROOT %few = bf16[6,1,8]{2,1,0:S(1)} slice(%a), slice={[0:6], [0:1], [0:8]}
}

%long (b: bf16[6,4,8]) -> f32[4] {
  %b = bf16[6,4,8]{2,1,0} parameter(0)
  ROOT %many = bf16[6,2,8]{2,1,0:S(1)} slice(%b), slice={[0:6], [0:2], [0:8]}
}

%layer (s"""


def test_each_window_of_the_caches_is_counted_apart():
  """In each of 6 layers a conditional, whose branches read a half and a quarter of an array."""
  branch = "  %some = f32[4]{0:S(1)} conditional(%i, %w, %w), branch_computations={%short, %long}\n"
  text = DECODE.replace("\n%layer (s", WINDOWS)
  text = text.replace("  %out = f32[4]", branch + "  %out = f32[4]")
  fixed = {"fusion": 2 * 16 + 6 * 64, "copy": 64}
  short, long = 6 * 2 * 6 * 8, 6 * 2 * 6 * 2 * 8
  assert hlo.turn_traffic(text) == [[fixed | {"slice": short}, fixed | {"slice": long}]]


def test_each_loop_of_unknown_length_is_counted_the_largest_first():
  assert hlo.turn_traffic(DECODE.replace("while(%t)", "call(%t)")) == []
  second = "  %more = (s32[], bf16[4,8]) while(%t), condition=%c, body=%layer\n"
  found = hlo.turn_traffic(DECODE.replace("  %tokens", second + "  %tokens"))
  assert found == [*hlo.turn_traffic(DECODE), [{"fusion": 64}]]


def test_collectives_of_decoding_count_for_each_token():
  """In two loops, of which the one that moves more goes on for 10 tokens, the other for 2.5."""
  sum_of = "  %sum = f32[4]{0} all-reduce(%out), channel_id="
  text = DECODE.replace("  %here = bf16", f"{sum_of}1\n  %here = bf16")
  text = text.replace(
    "%counted (s:", "%less (s: (s32[])) -> (s32[]) {\n" + sum_of + "2\n}\n\n%counted (s:"
  )
  second = "  %more = (s32[], bf16[4,8]) while(%t), condition=%c, body=%less\n"
  text = text.replace("  %tokens", second + "  %tokens")
  assert hlo.collectives(text) == {"all-reduce": (2, 2 * 16)}
  assert hlo.collectives(text, [10, 2.5]) == {"all-reduce": (12, 200)}
  assert hlo.collectives(text, [10]) == {"all-reduce": (2, 2 * 16)}  # other loops: once each


def test_a_program_of_one_device_has_none():
  text = jax.jit(jnp.sum).lower(np.zeros(4, np.float32)).compile().as_text()
  assert hlo.collectives(text) == {}

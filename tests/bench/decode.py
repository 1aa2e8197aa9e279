"""What decoding one token moves through HBM, by the program that a TPU would run.

    JAX_PLATFORMS=cpu python -m tests.bench.decode [--topology v5p:2x2x1] [--groups 4]

Compiles the sampling of Qwen3-VL-4B ahead of time and reads one turn of its loop off the scheduled
program (rmsd_jax.compile.hlo.turn_traffic). The least possible: each device reads its copy of the
weights once, each group's prompt cache once for all its responses, and the responses' own caches
once, at their full static length. And which operations make an array of a cache's size: a second
copy of a cache would be among them.
"""

import argparse
import collections

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from rmsd_jax.compile import chips, cost, hlo
from rmsd_jax.core import named, sharding
from rmsd_jax.core.accelerators import CHIPS
from rmsd_jax.core.groups import Bucket
from rmsd_jax.models.config import PRESETS
from rmsd_jax.models.student import PARTITION, Qwen3VL
from rmsd_jax.rollouts.generate import generate
from tests.bench.flops import shapes

BUCKET, SAMPLES = Bucket(2304, 1024, 8, 1008), 8


def makers(program: str, shape: tuple[int, ...]) -> str:
  """The operations of a program that result in a bfloat16 array of this shape, counted."""
  start = f"bf16[{','.join(map(str, shape))}]"
  computations, _ = hlo._computations(program)
  kinds = collections.Counter(
    op.kind
    for ops in computations.values()
    for op in ops
    if op.shape.startswith(start) and op.kind not in hlo._FREE
  )
  return ", ".join(f"{kind} {count}" for kind, count in kinds.items())


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topology", default="v5p:2x2x1")
  parser.add_argument("--groups", type=int, default=4, help="prompts per device")
  options = parser.parse_args()
  kind, devices = chips.devices_of(options.topology)
  mesh = sharding.make_mesh(1, -1, 1, devices=devices)
  model = Qwen3VL(PRESETS["4b"], dtype="bfloat16", attention="splash")
  B, (P, T, *_) = options.groups * mesh.size, BUCKET
  params = sharding.abstract(mesh, model.abstract(), PARTITION)
  over = NamedSharding(mesh, sharding.BATCH)
  groups, visual = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over), shapes(model, B, P, 0, T)
  )

  def sample(params, groups, visual, key):
    return generate(
      model, params, groups, key, samples=SAMPLES, max_tokens=T, temperature=1.0, visual=visual
    )

  key = jax.eval_shape(lambda: jax.random.key(0))
  with jax.set_mesh(mesh):
    compiled = jax.jit(
      sample, compiler_options=sharding.compiler_options(mesh)
    ).lower(params, groups, visual, key).compile()  # fmt: skip
  program = compiled.as_text()
  moved = hlo.turn_traffic(program)
  text = named.flatten(params["text"])
  read = [leaf.size for name, leaf in text.items() if name.startswith("layers")]
  weights = jnp.dtype("bfloat16").itemsize * (sum(read) + text["embed"].size)
  cache = options.groups * cost.cache_bytes(model.config.text) * (P + SAMPLES * T)
  found = sum(moved.values())
  print(f"{options.topology}, {options.groups} prompts x {SAMPLES} responses a device, one token:")
  print(
    f"  moved {found / 1e9:.2f} GB: " + ", ".join(f"{k} {v / 1e9:.3f}" for k, v in moved.items())
  )
  held, temporaries = weights + cache, compiled.memory_analysis().temp_size_in_bytes
  parts = f"weights {weights / 1e9:.2f}, caches {cache / 1e9:.2f}"
  print(f"  least {held / 1e9:.2f} GB: {parts}")
  print(f"  {found / held:.3f} times the least (bar: 1.5)")
  print(f"temporaries {temporaries / 1e9:.2f} GB, {(temporaries - held) / 1e9:+.2f} beside these")
  t = model.config.text
  own = (t.layers, options.groups, t.kv_heads * SAMPLES, T, t.head)
  print(f"what makes an array like the responses' caches: {makers(program, own)}")
  print(
    "  (keys and values: a broadcast makes each, updates are in place; a copy would stand here)"
  )
  print(f"{found / CHIPS[kind].hbm * 1e3:.1f} ms a token at the chip's peak")


if __name__ == "__main__":
  main()

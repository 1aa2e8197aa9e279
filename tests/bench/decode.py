"""What decoding one token moves through HBM, by the program that a TPU would run.

    JAX_PLATFORMS=cpu python -m tests.bench.decode [--topology v5p:2x2x1] [--groups 8] [--tensor 1]

Compiles the sampling of Qwen3-VL-4B ahead of time and reads the turns of its loops off the
scheduled program (rmsd_jax.compile.hlo.turn_traffic): for each number of rows, averaged over the
windows of the responses' caches. Beside it what rmsd_jax.compile reckons by formula, and bytes per
sampled token for responses of a mean length. And which operations make an array of a cache's size:
a copy of a cache would be among them.
"""

import argparse
import collections
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from rmsd_jax.compile import chips, cost, hlo
from rmsd_jax.compile.programs import lengths
from rmsd_jax.core import named, sharding
from rmsd_jax.core.accelerators import CHIPS
from rmsd_jax.core.groups import Bucket
from rmsd_jax.models.config import PRESETS
from rmsd_jax.models.student import PARTITION, Qwen3VL
from rmsd_jax.rollouts.generate import generate, rows_of_loops
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
  parser.add_argument("--groups", type=int, default=8, help="prompts of the devices of a shard")
  parser.add_argument("--tensor", type=int, default=1, help="devices of a shard: rollouts.tensor")
  parser.add_argument("--mean", type=float, default=0.3, help="of the responses, a share of T")
  parser.add_argument("--hlo", default="", help="a file to write the compiled program to")
  options = parser.parse_args()
  kind, devices = chips.devices_of(options.topology)
  mesh = sharding.make_mesh(1, -1, 1, devices=devices)
  attention = chips.ATTENTION.get(kind, "splash")
  model = Qwen3VL(PRESETS["4b"], dtype="bfloat16", attention=attention)
  shards = sharding.batch_shards(sharding.grouped(mesh.abstract_mesh, options.tensor))
  B, (P, T, *_) = options.groups * shards, BUCKET
  params = sharding.abstract(mesh, model.abstract(), PARTITION)
  over = NamedSharding(mesh, sharding.BATCH)
  groups, visual = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over), shapes(model, B, P, 0, T)
  )

  def sample(params, groups, visual, key):
    return generate(
      model, params, groups, key, samples=SAMPLES, max_tokens=T, temperature=1.0, visual=visual,
      tensor=options.tensor,
    )  # fmt: skip

  key = jax.eval_shape(lambda: jax.random.key(0))
  with jax.set_mesh(mesh):
    compiled = jax.jit(
      sample, compiler_options=sharding.compiler_options(mesh)
    ).lower(params, groups, visual, key).compile()  # fmt: skip
  program = compiled.as_text()
  if options.hlo:
    Path(options.hlo).write_text(program, "utf-8")
  found = hlo.turn_traffic(program)
  text, t = named.flatten(params["text"]), model.config.text
  read = sum(leaf.size for name, leaf in text.items() if name.startswith("layers"))
  weights = jnp.dtype("bfloat16").itemsize * (read + text["embed"].size) / options.tensor
  rows = rows_of_loops(options.groups * SAMPLES)
  window = model.window_of(T)
  every = cost.every_turn(rows, window, T)
  traffic = cost.traffic_of(every, found)

  def reckoned(turns):
    on_chip = attention == "splash"
    caches = cost.decode_bytes(t, P, options.groups, turns, on_chip) / options.tensor
    return len(turns) * weights + caches

  print(f"{options.topology}, {options.groups} prompts x {SAMPLES} responses a shard, one token:")
  for n, turns, windows in zip(rows, every, found, strict=True):
    moved = sum(traffic[turn] for turn in turns) / len(turns)
    parts = ", ".join(f"{k} {v / 1e9:.2f}" for k, v in windows[-1].items() if v > 1e7)
    formula = reckoned(turns) / len(turns) / 1e9
    print(f"  {n} rows: moved {moved / 1e9:.2f} GB, by formula {formula:.2f}; last: {parts}")
  own = (t.layers, 1, rows[0], t.kv_heads // options.tensor, T, t.head)
  print(f"what makes an array like the responses' caches: {makers(program, own)}")
  print("  (keys and values: a broadcast makes each, updates are in place; a copy would be here)")
  print(f"temporaries {compiled.memory_analysis().temp_size_in_bytes / 1e9:.2f} GB")
  # As many shards as the step of the presets has.
  _, length_BR = lengths(BUCKET, 128, SAMPLES, options.mean)
  turns = cost.turns(length_BR.reshape(128 // options.groups, -1), rows, window, T)
  total = sum(traffic[turn] for turn in turns)
  sampled = length_BR.sum() / (128 // options.groups) / options.tensor
  print(
    f"128 prompts, responses of {options.mean} T: {total / sampled / 1e6:.0f} MB a sampled token"
  )
  print(f"  (by formula {reckoned(turns) / sampled / 1e6:.0f}), ", end="")
  print(f"{total / CHIPS[kind].hbm:.2f} s at the chip's peak")


if __name__ == "__main__":
  main()

"""Compiles a run's programs for accelerators that are not there: does it fit, and what bounds it?

    JAX_PLATFORMS=cpu python -m rmsd_jax.compile --config=configs/qwen3vl_4b_rl.py \\
        --topology=v5p:2x2x4 --json=report.json

Needs no accelerator: libtpu from PyPI compiles on any x86 Linux machine, jax[cuda12] for GPUs
(--topology=h100:8). Per program it prints the memory of one device as XLA planned it, FLOPs and
HBM bytes from formulas (rmsd_jax.compile.cost; XLA's own counts miss loop turns and Pallas
kernels), collectives read off the compiled program, and the time that the slowest of the three
would take at the chip's peak.

Rollouts are planned at full length: every response T tokens long.
"""

import dataclasses
import functools
import json
import math
import re
import time
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from rmsd_jax import cli, train_rl, train_sft
from rmsd_jax.compile import cost, hlo
from rmsd_jax.compile.chips import ATTENTION, CHIPS, Chip, devices_of
from rmsd_jax.compile.cost import Work
from rmsd_jax.core import named, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket, PromptGroups
from rmsd_jax.method.carriers import Pairs, RuleTerms
from rmsd_jax.models import hf
from rmsd_jax.models.config import ModelConfig
from rmsd_jax.tasks import Rules
from rmsd_jax.training import state as state_lib

GIB = 2**30
OPTIONS = {
  "topology": ("", "chips, such as v5e:4x4, v5p:2x2x4, v6e:4x4 or h100:8; else the config's"),
  "json": ("", "file to write the report to, as JSON"),
}


@dataclasses.dataclass
class Report:
  """One program on one device. Bytes are per device, FLOPs of the whole batch."""

  name: str
  compile_seconds: float
  arguments: int = 0
  temporaries: int = 0
  peak: int = 0
  work: Work = Work()
  hbm_bytes: float = 0.0
  collectives: dict = dataclasses.field(default_factory=dict)
  seconds: dict = dataclasses.field(default_factory=dict)  # compute, hbm, network
  fault: str = ""  # why it does not compile, or what cannot be read off it


def abstract_groups(config, model: ModelConfig, mesh, bucket: Bucket, R: int) -> PromptGroups:
  """The shapes of a batch with R responses, split over the mesh."""
  B, (P, T, F, S) = config.batch, bucket
  over = NamedSharding(mesh, sharding.BATCH)
  array = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype, sharding=over)
  return PromptGroups(
    tokens_BP=array(B, P),
    positions_B3P=array(B, 3, P),
    prompt_length_B=array(B),
    next_position_B=array(B),
    visual_BP=array(B, P),
    patches_BFSC=array(B, F, S, model.vision.patch_values, dtype=jnp.uint8),
    grid_BF2=array(B, F, 2),
    responses_BRT=array(B, R, T),
    response_length_BR=array(B, R),
  )


def abstract_rewards(mesh, B: int, N: int) -> tuple[jax.ShapeDtypeStruct, RuleTerms, Pairs]:
  """What the host part of a stage 2 step hands to its programs: scores [B, N], terms, pairs."""
  number = jax.ShapeDtypeStruct((B, N), jnp.float32)
  pairs = Pairs(
    match_BN=jax.ShapeDtypeStruct((B, N), jnp.int32),
    weight_BN=number,
    survivors_B=jax.ShapeDtypeStruct((B,), jnp.float32),
    closed_B=jax.ShapeDtypeStruct((B,), jnp.bool_),
    task_B=jax.ShapeDtypeStruct((B,), jnp.int32),
  )
  return _split(mesh, (number, RuleTerms(*(number for _ in RuleTerms.names())), pairs))


def _split(mesh, tree):
  """Abstract arrays whose prompts are split over the mesh."""
  over = NamedSharding(mesh, sharding.BATCH)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over), tree)


def programs(config, mesh) -> dict:
  """name -> (jitted function, abstract arguments, Work, least HBM bytes of one device)."""
  model, bucket = hf.load_model(**config.model), Bucket(*config.compile.bucket)
  c, B, remat, chunk = model.config, config.batch, config.model.remat, config.logit_chunk
  pieces = config.microbatches
  passes = (3 + remat) * pieces  # of each: forward, two products backward, the forward again
  if config.compile.stage == "sft":
    state = state_lib.abstract(mesh, model, config.trained, train_sft.make_optims(config))
    groups = abstract_groups(config, c, mesh, bucket, 1)
    train = train_sft.make_steps(config, mesh).train
    work = cost.sft(c, B, bucket, remat, chunk)
    least = reading_bytes(config, mesh, state, passes) + update_bytes(mesh, state)
    return {"sft step": (train, (state, groups), work, least)}
  if config.compile.stage != "rl":
    raise UserError(f"compile.stage is {config.compile.stage!r}; choose sft or rl")
  N = config.rollouts.samples
  K = config.data.responses
  optims = train_rl.make_optims(config)
  state = state_lib.abstract(mesh, model, config.trained, optims, Rules(**config.tasks).names)
  steps = train_rl.make_steps(config, mesh)
  groups = abstract_groups(config, c, mesh, bucket, K)
  key = jax.eval_shape(lambda: jax.random.key(0))
  samples, visual = _split(mesh, jax.eval_shape(steps.rollout, state, groups, key))
  score_BN, terms, pairs = abstract_rewards(mesh, B, N)
  learn = jax.ShapeDtypeStruct((), jnp.bool_)
  reading = functools.partial(reading_bytes, config, mesh, state)
  caches = cost.decode_bytes(c, B, bucket, N, 0) / mesh.size
  found = {
    "rollout": (
      steps.rollout,
      (state, groups, key),
      cost.rollout(c, B, bucket, N),
      reading(1 + bucket.response, logits=True) + caches,
    ),
    "policy": (
      steps.policy,
      (state, groups, samples, visual, score_BN, terms, pairs),
      cost.policy(c, B, bucket, N, remat, chunk),
      reading(passes + pieces) + update_bytes(mesh, state),
    ),
  }
  if "discriminator" in state:
    arguments = (state, groups, samples, visual, pairs, learn)
    work = cost.discriminator(c, B, bucket, N + K, remat)
    least = reading(passes) + update_bytes(mesh, state)
    found["discriminator"] = (steps.discriminator, arguments, work, least)
    if config.discriminator.probe_every:
      work = cost.forward(c, B, bucket, N + K, False)
      work = work.plus(cost.vision(c.vision, B * bucket.frames, bucket.patches))
      found["probe"] = (
        steps.probe,
        (state, groups, samples, pairs.match_BN),
        work,
        reading(pieces),
      )
  return found


def compiled(name: str, program, mesh, chip: Chip) -> Report:
  """Compiles one program and reads what it takes."""
  function, arguments, work, least = program
  began = time.monotonic()
  try:
    result = function.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Report(name, time.monotonic() - began, work=work, fault=_memory_line(str(error)))
  report = Report(name, time.monotonic() - began, work=work, hbm_bytes=least)
  memory = result.memory_analysis()
  report.arguments, report.temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  report.peak = report.arguments + report.temporaries + fresh
  try:
    report.collectives = hlo.collectives(result.as_text())
  except jax.errors.JaxRuntimeError as error:  # seen with a libtpu newer than jaxlib
    report.fault = f"collectives unknown: {str(error).splitlines()[0]}"
  report.seconds = {
    "compute": work.total / mesh.size / chip.flops,
    "hbm": report.hbm_bytes / chip.hbm,
  }
  if not report.fault:
    moved = sum(size for _, size in report.collectives.values())
    report.seconds["network"] = moved / chip.link
  return report


def reading_bytes(config, mesh, state: dict, passes: int, logits: bool = False) -> float:
  """HBM bytes of one device for `passes` readings of the decoder's gathered weights, in the type of
  the activations; with `logits`, of the table that they come from too."""
  width = np.dtype(jnp.dtype(config.model.dtype)).itemsize
  student = named.flatten(state_lib.weights(state))
  read = sum(leaf.size for name, leaf in student.items() if name.startswith("text/layers"))
  if logits:
    read += student["text/head" if "text/head" in student else "text/embed"].size
  return passes * width * read / mesh.shape["tensor"]


def update_bytes(mesh, state: dict) -> float:
  """HBM bytes of one device to read and write its share of the learning weights and moments."""
  moments = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state["student_optim"]))
  learned = sum(x.size * 4 for x in jax.tree.leaves(state["student"]))
  return (2 * moments + 4 * learned) / (mesh.shape["fsdp"] * mesh.shape["tensor"])


def _memory_line(message: str) -> str:
  """The line of XLA's message that names the sizes."""
  lines = [line.strip() for line in message.splitlines()]
  found = [line for line in lines if re.search(r"Ran out of memory|[Uu]sed .* of|exceed", line)]
  return (found or lines)[0]


def report_table(reports: list[Report], chip: Chip) -> str:
  """The reports for people."""
  head = ("program", "arguments", "temporaries", "peak", f"of {chip.memory:g} GiB", "compiled in")
  rows = ["{:<14} {:>10} {:>12} {:>9} {:>13} {:>12}".format(*head)]
  gib = lambda size: f"{size / GIB:.2f}"
  for r in reports:
    fits = r.peak and r.peak <= chip.memory * GIB
    cells = (gib(r.arguments), gib(r.temporaries), gib(r.peak)) if r.peak else ("-",) * 3
    verdict = f"fits {r.peak / GIB / chip.memory:.0%}" if fits else "DOES NOT FIT"
    rows.append(
      "{:<14} {:>10} {:>12} {:>9} {:>13} {:>11.0f}s".format(
        r.name, *cells, verdict, r.compile_seconds
      )
    )
  rows += [
    "",
    f"{'program':<14} {'PFLOP':>8} {'HBM GB':>8} {'moved GB':>9} {'seconds':>9}  bound by",
  ]
  for r in reports:
    if not r.seconds:
      rows.append(f"{r.name:<14} {r.fault}")
      continue
    bound = max(r.seconds, key=r.seconds.get)
    moved = sum(size for _, size in r.collectives.values()) / 1e9
    parts = ", ".join(f"{k} {v:.2f}" for k, v in r.seconds.items())
    rows.append(
      f"{r.name:<14} {r.work.total / 1e15:>8.2f} {r.hbm_bytes / 1e9:>8.1f} {moved:>9.1f} "
      f"{r.seconds[bound]:>9.2f}  {bound} ({parts})"
    )
    if r.fault:
      rows.append(f"{'':<14}   {r.fault}")
    for kind, (count, size) in r.collectives.items():
      rows.append(f"{'':<14}   {kind} {count} times, {size / 1e9:.2f} GB")
  return "\n".join(rows)


def main(config, topology: str, json: str) -> None:
  """Compiles every program of the run that the config describes."""
  with config.unlocked():
    config.compile.topology = topology or config.compile.topology
  kind, devices = devices_of(config.compile.topology)
  with config.unlocked():
    if config.model.attention == "auto":
      config.model.attention = ATTENTION.get(kind, "splash")
  mesh, chip = sharding.make_mesh(**config.mesh, devices=devices), CHIPS[kind]
  sharding.check_batch(mesh, config.batch, config.microbatches, "config.batch")
  shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  print(f"{config.compile.topology}: {len(devices)} devices, mesh {shape}", flush=True)
  reports = []
  with jax.set_mesh(mesh):
    for name, program in programs(config, mesh).items():
      reports.append(compiled(name, program, mesh, chip))
      print(f"compiled {name} in {reports[-1].compile_seconds:.0f} s", flush=True)
  print("\n" + report_table(reports, chip))
  if json:
    _write(json, config, len(devices), chip, reports)
    print(f"wrote {json}")
  if faults := [r.name for r in reports if not 0 < r.peak <= chip.memory * GIB]:
    raise UserError(f"{', '.join(faults)} does not fit; more chips, or fewer prompts per device")


def _write(path: str, config, devices: int, chip: Chip, reports: list[Report]) -> None:
  found = {
    "topology": config.compile.topology,
    "devices": devices,
    "bucket": list(config.compile.bucket),
    "chip": chip._asdict(),
    "programs": [dataclasses.asdict(r) | {"work": r.work._asdict()} for r in reports],
    "seconds": math.fsum(  # of a step; few have a probe
      max(r.seconds.values(), default=0.0) for r in reports if r.name != "probe"
    ),
  }
  with open(path, "w", encoding="utf-8") as file:
    json.dump(found, file, indent=1)


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main, OPTIONS, workdir=False)


if __name__ == "__main__":
  command()

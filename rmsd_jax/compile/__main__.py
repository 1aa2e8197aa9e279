"""Compiles a run's programs for accelerators that are not there: does it fit, and what bounds it?

    JAX_PLATFORMS=cpu python -m rmsd_jax.compile --config=configs/qwen3vl_4b_rl.py \\
        --topology=v5p:2x2x4 --json=report.json

Needs no accelerator: libtpu from PyPI compiles on any x86 Linux machine, jax[cuda12] for GPUs
(--topology=h100:8). Per program it prints the memory of one device as XLA planned it, FLOPs and
HBM bytes from formulas (rmsd_jax.compile.cost; XLA's own counts miss loop turns and Pallas
kernels), collectives read off the compiled program, and the time that the slowest of the three
would take at the chip's peak.

Memory is planned for full length, every response T tokens long, and so are the seconds of the
table; a line below says the seconds for responses of a usual length (--mean_length).
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
from rmsd_jax.core.packed import Rows
from rmsd_jax.core.packing import Piece, deal
from rmsd_jax.method.carriers import Pairs, RuleTerms
from rmsd_jax.models import hf
from rmsd_jax.models.config import ModelConfig
from rmsd_jax.tasks import Rules
from rmsd_jax.training import pieces
from rmsd_jax.training import state as state_lib

GIB = 2**30
OPTIONS = {
  "topology": ("", "chips, such as v5e:4x4, v5p:2x2x4, v6e:4x4 or h100:8; else the config's"),
  "json": ("", "file to write the report to, as JSON"),
  "mean_length": ("0.3", "seconds also for responses of this mean length, a share of T; 0: not"),
}


@dataclasses.dataclass
class Report:
  """One program on one device. Bytes are per device, FLOPs of the whole batch."""

  name: str
  compile_seconds: float
  runs: int = 1  # in a step; FLOPs, HBM bytes and seconds are of all of them
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


def abstract_rows(mesh, piece: Piece, T: int) -> Rows:
  """The shapes of a piece of packed rows, split over the mesh."""
  X, P, W = len(piece.rows) * piece.deep, piece.P, piece.W
  integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  rows = Rows(
    tokens_XS=integers(X, P + W),
    positions_X3S=integers(X, 3, P + W),
    group_XS=integers(X, P + W),
    visual_XP=integers(X, P),
    response_XW=integers(X, W),
    start_XW=integers(X, W),
    from_XW=integers(X, W),
    last_XW=jax.ShapeDtypeStruct((X, W), jnp.bool_),
    longest=T,
  )
  return _split(mesh, rows)


def abstract_rewards(mesh, B: int, N: int) -> tuple[jax.ShapeDtypeStruct, RuleTerms, Pairs]:
  """What the host part of a stage 2 step hands to its programs: scores [B, N], terms, pairs."""
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  number = array(jnp.float32, B, N)
  pairs = Pairs(
    match_BN=array(jnp.int32, B, N),
    paired_BN=array(jnp.bool_, B, N),
    differs_BN=array(jnp.bool_, B, N),
    weight_BN=number,
    survivors_B=array(jnp.float32, B),
    closed_B=array(jnp.bool_, B),
    task_B=array(jnp.int32, B),
  )
  return _split(mesh, (number, RuleTerms(*(number for _ in RuleTerms.names())), pairs))


def _split(mesh, tree):
  """Abstract arrays whose prompts are split over the mesh."""
  over = NamedSharding(mesh, sharding.BATCH)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over), tree)


def lengths(bucket: Bucket, B: int, R: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of B prompts and of their R responses each: all of them full, or about `mean` of T.

  Log-normal, 2 % cut off at T, half the variance between prompts; prompts of 85 to 100 % of P. Of
  one seed, so that a plan is always the same.
  """
  if not mean:
    return np.full(B, bucket.prompt), np.full((B, R), bucket.response)
  rng = np.random.default_rng(0)
  quantile = 2.054  # of the normal distribution, above which 2 % lie
  spread = quantile - math.sqrt(quantile**2 + 2 * math.log(mean))
  centre = math.log(mean * bucket.response) - spread**2 / 2
  noise = (rng.standard_normal((B, 1)) + rng.standard_normal((B, R))) / math.sqrt(2)
  response_BR = np.clip(np.ceil(np.exp(centre + spread * noise)), 1, bucket.response)
  prompt_B = rng.integers(math.ceil(0.85 * bucket.prompt), bucket.prompt + 1, B)
  return prompt_B, response_BR.astype(int)


def planned(config, mesh, model, R: int, mean: float) -> tuple[list[Piece], cost.Size]:
  """The pieces of a batch with R responses a prompt, and how large they are."""
  bucket = Bucket(*config.compile.bucket)
  prompt_B, response_BR = lengths(bucket, config.batch, R, mean)
  if mean:  # as the loader deals them to the shards
    order = deal(prompt_B + response_BR.sum(1), sharding.batch_shards(mesh))
    prompt_B, response_BR = prompt_B[order], response_BR[order]
  sizes = pieces.sizes_of(model, bucket.prompt, bucket.response, config.row_tokens)
  plan = pieces.planned(mesh, model, prompt_B, response_BR.sum(1), sizes)
  return plan, cost.size(plan, prompt_B, response_BR)


def programs(config, mesh, mean: float = 0.0) -> dict:
  """name -> (jitted function, abstract arguments, runs in a step, Work of a step, least HBM bytes
  of one device in a step). What has pieces gets the first, which is the largest.

  Args:
    mean: of the responses' lengths, as a share of T; 0: all are T.
  """
  model, bucket = hf.load_model(**config.model), Bucket(*config.compile.bucket)
  c, B, remat, chunk = model.config, config.batch, config.model.remat, config.logit_chunk
  T = bucket.response
  passes = 3 + remat  # of each piece: forward, two products backward, the forward again
  encoding = cost.vision(c.vision, B * bucket.frames, bucket.patches)
  if config.compile.stage not in ("sft", "rl"):
    raise UserError(f"compile.stage is {config.compile.stage!r}; choose sft or rl")
  if config.compile.stage == "sft":
    state = state_lib.abstract(mesh, model, config.trained, train_sft.make_optims(config))
    steps = train_sft.make_steps(config, mesh)
    groups = abstract_groups(config, c, mesh, bucket, 1)
    visual = _split(mesh, jax.eval_shape(steps.encode, state, groups))
    plan, size = planned(config, mesh, model, 1, mean)
    grads = gradients_of(mesh, state["student"])
    arguments = (state, grads, abstract_rows(mesh, plan[0], T), groups, visual)
    figures = jax.eval_shape(steps.imitate, *arguments)[1]
    read = reading_bytes(config, mesh, state, passes * len(plan))
    return {
      "encode": (steps.encode, (state, groups), 1, encoding, 0.0),
      "imitate": (steps.imitate, arguments, len(plan), cost.sft(c, size, remat, chunk), read),
      "train": (steps.train, (state, grads, figures), 1, cost.Work(), update_bytes(mesh, state)),
    }
  N = config.rollouts.samples
  K = config.data.responses
  optims = train_rl.make_optims(config)
  state = state_lib.abstract(mesh, model, config.trained, optims, Rules(**config.tasks).names)
  steps = train_rl.make_steps(config, mesh)
  groups = abstract_groups(config, c, mesh, bucket, K)
  key = jax.eval_shape(lambda: jax.random.key(0))
  samples, visual = _split(mesh, jax.eval_shape(steps.rollout, state, groups, key))
  score_BN, terms, pairs = abstract_rewards(mesh, B, N)
  reading = functools.partial(reading_bytes, config, mesh, state)
  caches = cost.decode_bytes(c, B, bucket, N, 0) / mesh.size
  reward = (state["running"], score_BN, samples, terms, pairs)
  batch, spread, _ = jax.eval_shape(steps.reward, *reward)
  plan, size = planned(config, mesh, model, N, mean)
  grads = gradients_of(mesh, state["student"])
  improve = (state, grads, abstract_rows(mesh, plan[0], T), groups, visual, _split(mesh, batch))
  figures = jax.eval_shape(steps.improve, *improve)[1]
  update = update_bytes(mesh, state)
  made = {
    "rollout": (
      steps.rollout,
      (state, groups, key),
      1,
      cost.rollout(c, B, bucket, N),
      reading(1 + T, logits=True) + caches,
    ),
    "improve": (
      steps.improve,
      improve,
      len(plan),
      cost.policy(c, size, remat, chunk),
      reading((passes + 1) * len(plan)),
    ),
    "policy": (steps.policy, (state, grads, figures, spread), 1, cost.Work(), update),
  }
  if "discriminator" in state:
    learn = jax.ShapeDtypeStruct((), jnp.bool_)
    plan, size = planned(config, mesh, model, N + K, mean)
    grads = gradients_of(mesh, state["discriminator"])
    judge = (state, grads, abstract_rows(mesh, plan[0], T), groups, visual, pairs)
    figures = jax.eval_shape(steps.judge, *judge)[1]
    figures = figures._replace(parts=_split(mesh, figures.parts))
    work = cost.discriminator(c, size, remat)
    arguments = (state, grads, figures, groups, samples, pairs, learn)
    made["judge"] = (steps.judge, judge, len(plan), work, reading(passes * len(plan)))
    made["discriminator"] = (steps.discriminator, arguments, 1, cost.Work(), update)
  return made


def gradients_of(mesh, weights):
  """Abstract gradients, which lie as their weights do."""
  return sharding.abstract(mesh, weights, state_lib.RULES)


def compiled(name: str, program, mesh, chip: Chip) -> Report:
  """Compiles one program and reads what it takes."""
  function, arguments, runs, work, least = program
  began = time.monotonic()
  report = Report(name, 0.0, runs=runs, work=work, hbm_bytes=least)
  try:
    result = function.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    report.fault = _memory_line(str(error))
    return report
  finally:
    report.compile_seconds = time.monotonic() - began
  memory = result.memory_analysis()
  report.arguments, report.temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  report.peak = report.arguments + report.temporaries + fresh
  try:
    report.collectives = hlo.collectives(result.as_text())
  except jax.errors.JaxRuntimeError as error:  # seen with a libtpu newer than jaxlib
    report.fault = f"collectives unknown: {str(error).splitlines()[0]}"
  report.seconds = bounds(mesh, chip, work, least)
  if not report.fault:
    moved = runs * sum(size for _, size in report.collectives.values())
    report.seconds["network"] = moved / chip.link
  return report


def bounds(mesh, chip: Chip, work: Work, hbm_bytes: float) -> dict[str, float]:
  """Seconds of a step that a program cannot take less than."""
  return {"compute": work.total / mesh.size / chip.flops, "hbm": hbm_bytes / chip.hbm}


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
    moved = r.runs * sum(size for _, size in r.collectives.values()) / 1e9
    parts = ", ".join(f"{k} {v:.2f}" for k, v in r.seconds.items())
    rows.append(
      f"{r.name:<14} {r.work.total / 1e15:>8.2f} {r.hbm_bytes / 1e9:>8.1f} {moved:>9.1f} "
      f"{r.seconds[bound]:>9.2f}  {bound} ({parts})"
    )
    if r.fault:
      rows.append(f"{'':<14}   {r.fault}")
    for kind, (count, size) in r.collectives.items():
      each = f" in each of {r.runs} pieces" if r.runs > 1 else ""
      rows.append(f"{'':<14}   {kind} {count} times, {size / 1e9:.2f} GB{each}")
  return "\n".join(rows)


def at_length(config, mesh, chip: Chip, mean: float) -> tuple[str, dict[str, float]]:
  """A line and the seconds of each program for responses of a mean length: by its work and its HBM
  bytes alone, nothing is compiled. Rollouts go on to T, since some response of a batch does."""
  seconds = {
    name: max(bounds(mesh, chip, work, least).values())
    for name, (_, _, _, work, least) in programs(config, mesh, mean).items()
  }
  parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
  line = f"responses of {mean:g} T on average: {sum(seconds.values()):.1f} s a step ({parts})"
  return line, seconds


def main(config, topology: str, json: str, mean_length: str) -> None:
  """Compiles every program of the run that the config describes."""
  mean = float(mean_length)
  if not 0 <= mean < 1:
    raise UserError(f"--mean_length={mean_length}: it is a share of T, 0 to 1")
  with config.unlocked():
    config.compile.topology = topology or config.compile.topology
  kind, devices = devices_of(config.compile.topology)
  with config.unlocked():
    if config.model.attention == "auto":
      config.model.attention = ATTENTION.get(kind, "splash")
  mesh, chip = sharding.make_mesh(**config.mesh, devices=devices), CHIPS[kind]
  sharding.check_batch(mesh, config.batch, "config.batch")
  shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  print(f"{config.compile.topology}: {len(devices)} devices, mesh {shape}", flush=True)
  reports = []
  with jax.set_mesh(mesh):
    for name, program in programs(config, mesh).items():
      reports.append(compiled(name, program, mesh, chip))
      print(f"compiled {name} in {reports[-1].compile_seconds:.0f} s", flush=True)
    line, usual = at_length(config, mesh, chip, mean) if mean else ("", {})
  print("\n" + report_table(reports, chip))
  print(f"\nall responses of T: {seconds(reports):.1f} s a step" + f"\n{line}" * bool(line))
  if json:
    _write(json, config, len(devices), chip, reports, {"mean": mean, "seconds": usual})
    print(f"wrote {json}")
  if faults := [r.name for r in reports if not 0 < r.peak <= chip.memory * GIB]:
    raise UserError(f"{', '.join(faults)} does not fit; more chips, or fewer prompts per device")


def seconds(reports: list[Report]) -> float:
  """Of a step, each program at its bound."""
  return math.fsum(max(r.seconds.values(), default=0.0) for r in reports)


def _write(path: str, config, devices: int, chip: Chip, reports: list[Report], usual: dict) -> None:
  report = {
    "topology": config.compile.topology,
    "devices": devices,
    "bucket": list(config.compile.bucket),
    "chip": chip._asdict(),
    "programs": [dataclasses.asdict(r) | {"work": r.work._asdict()} for r in reports],
    "seconds": seconds(reports),  # of a step
    "usual_lengths": usual,
  }
  with open(path, "w", encoding="utf-8") as file:
    json.dump(report, file, indent=1)


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main, OPTIONS, workdir=False)


if __name__ == "__main__":
  command()

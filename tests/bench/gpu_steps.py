"""Parts of tests.bench.on_gpu that run the steps of training: seconds, memory, share of the peak.

Axes: B prompts, N rollouts, P prompt tokens, T response tokens.
"""

import collections
import contextlib
import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmsd_jax import train_rl, train_sft
from rmsd_jax.compile.__main__ import abstract_rewards, programs
from rmsd_jax.core import sharding
from rmsd_jax.models import hf
from rmsd_jax.tasks import Rules
from tests.bench.measure import GIB, Out, peak_bytes, peak_flops, seconds_of
from tests.bench.random_model import Size, make_config, make_groups, make_state, write_folder

MOST_GAP = 0.3  # nats between the log-probabilities of sampler and trainer, in bfloat16


@dataclasses.dataclass
class Program:
  """One program of a step, compiled for this device, and what was measured of it."""

  name: str
  run: Callable
  work: Any
  report: dict
  trace: str = ""  # folder for its text, see `traced`; "": no trace


def compiled_programs(config, mesh, out: Out) -> Iterator[Program]:
  """Compiles what rmsd_jax.compile plans, in its order."""
  for name, (function, arguments, work, least) in programs(config, mesh).items():
    if name == "probe":
      continue
    began = time.perf_counter()
    executable = function.lower(*arguments).compile()
    memory = executable.memory_analysis()
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes + fresh
    report = {
      "compile_seconds": time.perf_counter() - began,
      "planned_gib": planned / GIB,
      "pflop": work.total / 1e15,
      "seconds_at_peak": work.total / peak_flops(),
      "least_hbm_gb": least / 1e9,
    }
    out.say(
      f"{name}: compiled in {report['compile_seconds']:.0f} s, plan {planned / GIB:.1f} GiB, "
      f"{report['pflop']:.2f} PFLOP, {report['seconds_at_peak']:.2f} s at the chip's peak"
    )
    yield Program(name, executable, work, report, out.trace)


def measured(program: Program, seconds: float, tokens: int, what: str, out: Out) -> dict:
  """What one call took: the program's report completed."""
  program.report |= {
    "seconds": seconds,
    "tokens_per_second": tokens / seconds,
    "tokens": what,
    "share_of_peak": program.work.total / seconds / peak_flops(),
    "peak_gib": peak_bytes() / GIB,
  }
  out.say(
    f"{program.name}: {seconds:.2f} s, {tokens / seconds:,.0f} {what} tokens/s, "
    f"{program.report['share_of_peak']:.0%} of the peak; {program.report['peak_gib']:.1f} GiB held"
  )
  return program.report


def timed_updates(program: Program, call: Callable, state, repeats: int):
  """(state, metrics of the first call, median seconds) of an update that takes over the memory of
  the old state. Further calls go on from the state before: their metrics are of moved weights."""
  state, *_, metrics = call(state)
  taken = []
  for _ in range(repeats):
    jax.block_until_ready(state)
    began = time.perf_counter()
    state, *_ = call(state)
    jax.block_until_ready(state)
    taken.append(time.perf_counter() - began)
  if program.trace:
    (state, *_), program.report["trace"] = traced(program, lambda: call(state))
  return state, jax.device_get(metrics), statistics.median(taken)


def traced(program: Program, run: Callable):
  """(what a call returned, what the device did in it): {"busy_seconds", "kernels": [operation of
  the compiled program, kernel, launches, seconds]}, the longest first. The compiled program's text
  goes to the folder `trace`."""
  folder = pathlib.Path(program.trace)
  folder.mkdir(parents=True, exist_ok=True)
  text = folder / f"{program.name.replace(' ', '_')}.hlo.txt"
  text.write_text(program.run.as_text())
  found = collections.defaultdict(lambda: [0, 0.0])
  with tempfile.TemporaryDirectory() as temporary:
    with jax.profiler.trace(temporary):
      result = jax.block_until_ready(run())
    (path,) = pathlib.Path(temporary).rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines if plane.name.startswith("/device:GPU") else ():
        for event in line.events if line.name.startswith("Stream") else ():
          operation = str(dict(event.stats).get("hlo_op", ""))
          entry = found[operation, event.name]
          entry[0] += 1
          entry[1] += event.duration_ns / 1e9
  rows = [[*names, *counts] for names, counts in found.items()]
  rows.sort(key=lambda row: -row[3])
  busy = sum(row[3] for row in rows)
  for row in rows[:12]:
    print(f"    {row[3]:.3f} s {row[2]:>7} x {row[0][:40]:<40} {row[1][:60]}")
  return result, {"busy_seconds": busy, "kernels": rows[:200]}


@contextlib.contextmanager
def begun(size: Size, stage: str, trainer, out: Out) -> Iterator[tuple]:
  """(config, mesh, state of step 0) of a stage, under its mesh; `trainer` makes the optimizers."""
  with tempfile.TemporaryDirectory() as folder:
    write_folder(size, folder)
    config = make_config(size, stage, folder)
    model = hf.load_model(**config.model)
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
      optims = trainer.make_optims(config)
      state = make_state(config, mesh, model, optims, Rules(**config.tasks).names)
      out.say(f"random weights made, {peak_bytes() / GIB:.1f} GiB held")
      yield config, mesh, state


def sft(size: Size, out: Out) -> dict:
  """Stage 1's update on full rows."""
  with begun(size, "sft", train_sft, out) as (config, mesh, state):
    (program,) = compiled_programs(config, mesh, out)
    batch = sharding.put_batch(mesh, make_groups(size, 1))
    state, metrics, seconds = timed_updates(
      program, lambda state: program.run(state, batch), state, size.repeats
    )
    tokens = size.batch * (size.bucket[0] + size.bucket[1])
    found = measured(program, seconds, tokens, "row", out)
    loss = float(metrics["loss"])
    return found | {"loss": loss, "ok": bool(np.isfinite(loss))}


def rl(size: Size, out: Out) -> dict:
  """Stage 2's three programs, each on what the one before made."""
  B, N = size.batch, size.samples
  P, T, _, _ = size.bucket
  found = {}
  with begun(size, "rl", train_rl, out) as (config, mesh, state):
    groups = sharding.put_batch(mesh, make_groups(size, N))
    # Scores, rule terms and pairs of a step: random numbers, every rollout matched.
    rng = np.random.default_rng(0)
    make = lambda x: np.asarray(
      rng.random(x.shape) if x.dtype == jnp.float32 else np.zeros(x.shape), x.dtype
    )
    score_BN, terms, pairs = jax.tree.map(make, abstract_rewards(mesh, B, N))
    terms, pairs = sharding.put_batch(mesh, (terms, pairs))
    steps = compiled_programs(config, mesh, out)

    rollout = next(steps)
    key = jax.random.key(0)
    seconds = seconds_of(lambda: rollout.run(state, groups, key), min(2, size.repeats))
    samples, visual = rollout.run(state, groups, key)
    count = int(samples.length_BR.sum())
    if rollout.trace:
      _, rollout.report["trace"] = traced(rollout, lambda: rollout.run(state, groups, key))
    found["rollout"] = measured(rollout, seconds, count, "sampled", out)
    samples = samples.__class__(
      samples.responses_BRT, samples.length_BR, samples.logp_BRT, jnp.ones((B, N), bool)
    )  # as if each had ended by itself, so that all are paired

    tokens = B * (P + N * T)
    scores, learn = sharding.put_batch(mesh, score_BN), jnp.array(True)
    for program in steps:
      if program.name == "policy":
        call = lambda s, run=program.run: run(s, groups, samples, visual, scores, terms, pairs)
        row = tokens
      else:
        call = lambda s, run=program.run: run(s, groups, samples, visual, pairs, learn)
        row = tokens + B * N * T
      state, metrics, seconds = timed_updates(program, call, state, size.repeats)
      found[program.name] = measured(program, seconds, row, "row", out)
      found[program.name]["metrics"] = {
        name: float(value) for name, value in metrics.items() if not np.isnan(value)
      }
      del program
  gap = found["policy"]["metrics"]["policy/sampler_trainer_gap"]
  out.say(f"sampler against trainer: largest gap {gap:.1e} nats of a token")
  fine = np.isfinite(found["policy"]["metrics"]["policy/grad_norm"]) and gap <= MOST_GAP
  return found | {"ok": bool(fine)}

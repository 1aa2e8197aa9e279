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
from rmsd_jax.compile import cost
from rmsd_jax.compile.programs import abstract_rewards, programs
from rmsd_jax.core import sharding
from rmsd_jax.core.groups import Bucket, join_responses
from rmsd_jax.models import hf
from rmsd_jax.rollouts import generate
from rmsd_jax.tasks import Rules
from rmsd_jax.training import pieces
from tests.bench.measure import GIB, Out, peak_bytes, peak_flops, seconds_of
from tests.bench.random_model import Size, make_config, make_groups, make_state, write_folder

OVER_ROWS = {"imitate", "improve", "judge"}  # programs that a step runs once for each piece
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
  for name, program in programs(config, mesh).items():
    began = time.perf_counter()
    work = program.work
    executable = program.function.lower(*program.arguments).compile()
    memory = executable.memory_analysis()
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes + fresh
    report = {
      "compile_seconds": time.perf_counter() - began,
      "planned_gib": planned / GIB,
      "pflop": work.total / 1e15,
      "seconds_at_peak": work.total / peak_flops(),
      "least_hbm_gb": program.hbm_bytes({}) / 1e9,
    }
    out.say(
      f"{name}: compiled in {report['compile_seconds']:.0f} s, plan {planned / GIB:.1f} GiB, "
      f"{report['pflop']:.2f} PFLOP, {report['seconds_at_peak']:.2f} s at the chip's peak"
    )
    yield Program(name, executable, work, report, out.trace)


def measured(
  program: Program, seconds: float, tokens: int, fills: cost.Size | None, out: Out
) -> dict:
  """What one call took: the program's report completed.

  Args:
    tokens: that exist, of prompts and responses; for rollouts those that were sampled.
    fills: the places of the rows; None: there are none.
  """
  program.report |= {
    "seconds": seconds,
    "tokens_per_second": tokens / seconds,
    "tokens": tokens,
    "share_of_peak": program.work.total / seconds / peak_flops(),
    "peak_gib": peak_bytes() / GIB,
  }
  what = "sampled tokens/s"
  if fills is not None:
    program.report["padding"] = fills.tokens / tokens - 1
    what = f"tokens/s ({fills.tokens / tokens - 1:.0%} padding)"
  out.say(
    f"{program.name}: {seconds:.2f} s, {tokens / seconds:,.0f} {what}, "
    f"{program.report['share_of_peak']:.0%} of the peak; {program.report['peak_gib']:.1f} GiB held"
  )
  return program.report


def timed_updates(call: Callable, state, repeats: int):
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
  return state, jax.device_get(metrics), statistics.median(taken)


def traced(program: Program, *arguments):
  """What the device did in a call: {"busy_seconds", "kernels": [operation of the compiled program,
  kernel, launches, seconds]}, the longest first. The compiled program's text goes to the folder
  `trace`."""
  folder = pathlib.Path(program.trace)
  folder.mkdir(parents=True, exist_ok=True)
  text = folder / f"{program.name.replace(' ', '_')}.hlo.txt"
  is_compiled = hasattr(program.run, "as_text")
  executable = program.run if is_compiled else program.run.lower(*arguments).compile()
  text.write_text(executable.as_text())
  found = collections.defaultdict(lambda: [0, 0.0])
  with tempfile.TemporaryDirectory() as temporary:
    with jax.profiler.trace(temporary):
      jax.block_until_ready(executable(*arguments))
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
  return {"busy_seconds": busy, "kernels": rows[:200]}


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
  """Stage 1's step."""
  _, _, F, S = size.bucket
  with begun(size, "sft", train_sft, out) as (config, mesh, state):
    steps, made = programs_of(size, config, mesh, train_sft.make_steps(config, mesh), out)
    groups = make_groups(size, 1)
    state, metrics, seconds = timed_updates(
      lambda state: train_sft.train_step(config, mesh, steps, state, groups), state, size.repeats
    )
    c = steps.model.config
    fills, tokens = planned(config, mesh, steps.model, groups)
    work = cost.sft(c, fills, config.model.remat, config.logit_chunk)
    made["imitate"].work = work.plus(cost.vision(c.vision, size.batch * F, S))
    found = measured(made["imitate"], seconds, tokens, fills, out)
    loss = float(metrics["loss"])
    return found | {"loss": loss, "ok": bool(np.isfinite(loss))}


def rl(size: Size, out: Out) -> dict:
  """Stage 2's rollouts and updates, each on what the one before made."""
  B, N = size.batch, size.samples
  bucket = Bucket(*size.bucket)
  found = {}
  with begun(size, "rl", train_rl, out) as (config, mesh, state):
    host = make_groups(size, N)
    groups = sharding.put_batch(mesh, host)
    my_pairs, score_BN, terms = made_up(config, mesh)
    scores, terms, pairs = sharding.put_batch(mesh, (score_BN, terms, my_pairs))
    steps, made = programs_of(size, config, mesh, train_rl.make_steps(config, mesh), out)
    model = steps.model
    c, remat = model.config, config.model.remat

    key = jax.random.key(0)
    rollout = made["rollout"]
    seconds = seconds_of(lambda: rollout.run(state, groups, key), min(2, size.repeats))
    samples, visual = rollout.run(state, groups, key)
    length_BN = np.asarray(samples.length_BR)
    if rollout.trace:
      rollout.report["trace"] = traced(rollout, state, groups, key)
    rows = generate.rows_of_loops(B * N)
    turns = cost.turns(length_BN.reshape(1, -1), rows, model.window_of(bucket.response), bucket[1])
    rollout.work = cost.rollout(c, B, bucket, 1, turns)
    found["rollout"] = measured(rollout, seconds, int(length_BN.sum()), None, out)
    found["rollout"] |= {"mean_length": float(length_BN.mean()), "longest": int(length_BN.max())}
    # As if each had ended by itself, so that all are paired.
    samples = dataclasses.replace(samples, finished_BR=sharding.put_batch(mesh, my_pairs.paired_BN))
    students = host.with_responses(np.asarray(samples.responses_BRT), length_BN)

    rows = pieces.rows_of(mesh, model, students, config.row_tokens)
    call = lambda state: train_rl.update_policy(
      steps, state, rows, groups, samples, visual, scores, terms, pairs
    )
    state, metrics, seconds = timed_updates(call, state, size.repeats)
    fills, tokens = planned(config, mesh, model, students)
    made["improve"].work = cost.policy(c, fills, remat, config.logit_chunk)
    found["policy"] = measured(made["improve"], seconds, tokens, fills, out)
    found["policy"]["metrics"] = _numbers(metrics)
    del rows
    rows = pieces.of_pairs(
      mesh, model, host, students, my_pairs.paired_BN, my_pairs, config.row_tokens
    )
    call = lambda state: train_rl.update_discriminator(
      steps, state, rows, groups, samples, visual, pairs, jnp.array(True)
    )
    state, metrics, seconds = timed_updates(call, state, size.repeats)
    fills, tokens = planned(config, mesh, model, join_responses(students, host))
    made["judge"].work = cost.discriminator(c, fills, remat)
    found["discriminator"] = measured(made["judge"], seconds, tokens, fills, out)
    found["discriminator"]["metrics"] = _numbers(metrics)
  gap = found["policy"]["metrics"]["policy/sampler_trainer_gap"]
  out.say(f"sampler against trainer: largest gap {gap:.1e} nats of a token")
  fine = np.isfinite(found["policy"]["metrics"]["policy/grad_norm"]) and gap <= MOST_GAP
  return found | {"ok": bool(fine)}


def made_up(config, mesh):
  """(pairs, scores [B, N], rule terms) of a step, on the host: random numbers, and every rollout
  matched with the teacher response of its number."""
  B, N = config.batch, config.rollouts.samples
  rng = np.random.default_rng(0)
  make = lambda x: np.asarray(
    rng.random(x.shape) if x.dtype == jnp.float32 else np.zeros(x.shape), x.dtype
  )
  score_BN, terms, pairs = jax.tree.map(make, abstract_rewards(config, mesh))
  everyone_BN = np.ones((B, N), bool)
  slot_BN = np.broadcast_to(np.arange(N, dtype=np.int32), (B, N))
  pairs = dataclasses.replace(
    pairs, match_BN=slot_BN, paired_BN=everyone_BN, differs_BN=everyone_BN
  )
  return pairs, score_BN, terms


def programs_of(size: Size, config, mesh, steps, out: Out):
  """(steps, name -> Program). For full responses each is compiled as planned; what goes over rows
  is planned for the largest, and compiled again when called with those of a batch."""
  if size.mean:
    return steps, {
      name: Program(name, run, cost.Work(), {}, out.trace) for name, run in steps._asdict().items()
    }
  made = {program.name: program for program in compiled_programs(config, mesh, out)}
  for name in made.keys() & OVER_ROWS:
    made[name].run = getattr(steps, name)
  return steps._replace(**{name: program.run for name, program in made.items()}), made


def planned(config, mesh, model, groups) -> tuple[cost.Size, int]:
  """How large the packed rows of a batch are, and how many tokens are in them."""
  P = groups.tokens_BP.shape[1]
  _, R, T = groups.responses_BRT.shape
  prompt_B, length_BR = map(np.asarray, (groups.prompt_length_B, groups.response_length_BR))
  sizes = pieces.sizes_of(model, P, T, R, config.row_tokens)
  plan = pieces.planned(mesh, model, prompt_B, length_BR.sum(1), sizes)
  return cost.size(plan, prompt_B, length_BR), int(prompt_B.sum() + length_BR.sum())


def _numbers(metrics: dict) -> dict[str, float]:
  return {name: float(value) for name, value in metrics.items() if not np.isnan(value)}

"""Compiles a run's programs for accelerators that are not there: does it fit, and what bounds it?

    JAX_PLATFORMS=cpu python -m rmsd_jax.compile --config=configs/qwen3vl_4b_rl.py \\
        --topology=v5p:2x2x4 --json=report.json

Needs no accelerator: libtpu from PyPI compiles on any x86 Linux machine, jax[cuda12] for GPUs
(--topology=h100:8). Per program it prints the memory of one device as XLA planned it, FLOPs and
HBM bytes from formulas (rmsd_jax.compile.cost; XLA's own counts miss loop turns and Pallas
kernels), collectives and the bytes of decoding a token read off the compiled program, and the time
that the slowest of the three would take at the chip's peak.

Memory is planned for full length, every response T tokens long, and so are the seconds of the
table; a line below says the seconds for responses of a usual length (--mean_length).
"""

import dataclasses
import json
import math
import re
import time
from typing import NoReturn

import jax

from rmsd_jax import cli
from rmsd_jax.compile import cost, hlo
from rmsd_jax.compile.chips import ATTENTION, devices_of
from rmsd_jax.compile.cost import Work
from rmsd_jax.compile.programs import Program, programs
from rmsd_jax.core import sharding
from rmsd_jax.core.accelerators import CHIPS, Chip
from rmsd_jax.core.errors import UserError

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
  of_warmup: bool = False
  turns: dict = dataclasses.field(
    default_factory=dict
  )  # HBM bytes of decoding a token, by its Turn
  fault: str = ""  # why it does not compile, or what cannot be read off it


def compiled(name: str, program: Program, mesh, chip: Chip) -> Report:
  """Compiles one program and reads what it takes."""
  began = time.monotonic()
  report = Report(name, 0.0, program.runs, work=program.work, of_warmup=program.of_warmup)
  try:
    result = program.function.lower(*program.arguments).compile()
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
    text = result.as_text()
    report.collectives = hlo.collectives(
      text, program.decoding.of_loops() if program.decoding else ()
    )
    if program.decoding:
      report.turns = cost.traffic_of(program.decoding.every, hlo.turn_traffic(text))
  except jax.errors.JaxRuntimeError as error:  # seen with a libtpu newer than jaxlib
    report.fault = f"collectives unknown: {str(error).splitlines()[0]}"
  report.hbm_bytes = program.hbm_bytes(report.turns)
  report.seconds = bounds(mesh, chip, program.work, report.hbm_bytes)
  if not report.fault:
    moved = program.runs * sum(size for _, size in report.collectives.values())
    report.seconds["network"] = moved / chip.link
  return report


def bounds(mesh, chip: Chip, work: Work, hbm_bytes: float) -> dict[str, float]:
  """Seconds of a step that a program cannot take less than."""
  return {"compute": work.total / mesh.size / chip.flops, "hbm": hbm_bytes / chip.hbm}


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


def at_length(
  config, mesh, chip: Chip, mean: float, reports: list[Report]
) -> tuple[str, dict[str, float]]:
  """A line and the seconds of each program for responses of a mean length: by its work and its HBM
  bytes alone, nothing more is compiled. Rollouts go on to the longest of the batch, with fewer
  rows."""
  traffic = {report.name: report.turns for report in reports}
  planned = programs(config, mesh, mean)
  seconds = {
    name: max(bounds(mesh, chip, program.work, program.hbm_bytes(traffic[name])).values())
    for name, program in planned.items()
  }
  parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
  step = sum(value for name, value in seconds.items() if not planned[name].of_warmup)
  return f"responses of {mean:g} T on average: {step:.1f} s a step ({parts})", seconds


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
    line, usual = at_length(config, mesh, chip, mean, reports) if mean else ("", {})
  print("\n" + report_table(reports, chip))
  print(f"\nall responses of T: {seconds(reports):.1f} s a step" + f"\n{line}" * bool(line))
  if any(report.of_warmup for report in reports):
    print(f"a step of the joint warm-up: {seconds(reports, warmup=True):.1f} s")
  if json:
    _write(json, config, len(devices), chip, reports, {"mean": mean, "seconds": usual})
    print(f"wrote {json}")
  if faults := [r.name for r in reports if not 0 < r.peak <= chip.memory * GIB]:
    raise UserError(f"{', '.join(faults)} does not fit; more chips, or fewer prompts per device")


def seconds(reports: list[Report], warmup: bool = False) -> float:
  """Of a step, each program at its bound; or of one of a joint warm-up, which imitates the teacher
  in place of the policy's gradient."""
  absent = [report.name for report in reports if report.of_warmup]
  absent = ["improve"] if warmup else absent
  return math.fsum(max(r.seconds.values(), default=0.0) for r in reports if r.name not in absent)


def _write(path: str, config, devices: int, chip: Chip, reports: list[Report], usual: dict) -> None:
  report = {
    "topology": config.compile.topology,
    "devices": devices,
    "bucket": list(config.compile.bucket),
    "chip": chip._asdict(),
    "programs": [
      dataclasses.asdict(r)
      | {"work": r.work._asdict()}
      | {"turns": [[*turn, size] for turn, size in r.turns.items()]}
      for r in reports
    ],
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

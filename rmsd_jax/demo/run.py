"""The demo from nothing: pool, both stages, evaluation and report, one command after the other.

    ./launch/demo.sh [WORKDIR]
    python -m rmsd_jax.demo.run WORKDIR [--config=configs/demo.py]

Every step is a command that a user would type; it is printed before it runs. A demo that was
interrupted goes on where it stopped. WORKDIR/results.json is written last.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TextIO

import psutil

from rmsd_jax import cli
from rmsd_jax.core import checkout
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text
from rmsd_jax.core.progress import Progress
from rmsd_jax.demo import simulated_teacher

STAGES = {
  "sft": "train_sft",
  "sft_blind": "train_sft",
  "sft_continued": "train_sft",
  "rl": "train_rl",
}
FROM_SFT = ("sft_continued", "rl")
PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "ml_collections",
  "transformers",
  "numpy",
  "av",
)
WORLD = ("noise", "responses", "train_prompts", "test_prompts")  # what a drawn world depends on
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Commands:
  """Runs commands of this package, counts their seconds by phase and watches their memory.

  What was counted survives an interruption, in WORKDIR/phases.json.

  Args:
    workdir: where phases.json is.
    compiled: folder of compiled programs, which runs may share; default: WORKDIR/compiled.
    log: file to add the commands' output to; None: it goes to the terminal.
    cores: the CPU cores that the commands may use (Linux only); None: all.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    compiled: pathlib.Path | None = None,
    log: pathlib.Path | None = None,
    cores: Collection[int] | None = None,
  ):
    self._file = workdir / "phases.json"
    self._log = log
    self._cores = cores
    counted = json.loads(self._file.read_text()) if self._file.exists() else {}
    self.seconds = counted.get("seconds", {})
    self.peak_gb = counted.get("peak_gb", 0.0)
    # Kept between commands: five evaluations, or a demo that goes on, need not compile the same
    # programs again.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled or workdir / "compiled")}
    # A step's large arrays are new memory each time, and in pages of 4 KiB much of its time goes
    # into page faults (docs/results.md). Read by glibc 2.35 or later on Linux.
    huge_pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    self._environment = {"JAX_PLATFORMS": "cpu"} | huge_pages | os.environ | cache

  def __call__(self, phase: str, module: str, *arguments: str) -> None:
    """Runs `python -m rmsd_jax.MODULE ARGUMENTS`; raises UserError if it fails."""
    command = [sys.executable, "-m", f"rmsd_jax.{module}", *map(str, arguments)]
    began = time.monotonic()
    with open(self._log, "a") if self._log else contextlib.nullcontext() as out:
      print(f"\n== python {' '.join(command[1:])}", file=out, flush=True)
      status = self._run(command, out)
    self.count(phase, time.monotonic() - began)
    # 128 + 2 where the command ended by itself at Ctrl-C, the signal where it did not get to.
    if status in (130, -signal.SIGINT):
      raise KeyboardInterrupt
    if status:
      where = f"see {self._log or 'above'}"
      raise UserError(f"rmsd_jax.{module} ended with status {status}, {where}; the demo stops")

  def _run(self, command: Sequence[str], out: TextIO | None) -> int:
    """The exit status of a command, whose memory is watched while it runs."""
    # A process each, as a user would run them: their memory is given back, and JAX starts anew.
    process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=out, stderr=out)
    if self._cores:
      os.sched_setaffinity(process.pid, self._cores)  # before it starts threads: they inherit it
    watch = threading.Thread(target=self._watch, args=(process.pid,), daemon=True)
    watch.start()
    try:
      return process.wait()
    # Ctrl-C went to the command, too, which may be saving: waited for, not killed.
    except KeyboardInterrupt:
      process.wait()
      raise
    finally:
      watch.join()

  def count(self, phase: str, seconds: float) -> None:
    self.seconds[phase] = round(self.seconds.get(phase, 0.0) + seconds, 1)
    replace_text(self._file, json.dumps({"seconds": self.seconds, "peak_gb": self.peak_gb}) + "\n")

  def _watch(self, pid: int) -> None:
    """Resident memory of the process and its children together, looked at twice a second."""
    try:
      process = psutil.Process(pid)
      # A zombie is running, for psutil, until `wait` has taken its status.
      while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        family = [process, *process.children(recursive=True)]
        self.peak_gb = max(self.peak_gb, sum(_resident(p) for p in family) / 2**30)
        time.sleep(0.5)
    except psutil.NoSuchProcess:
      return


def _resident(process: psutil.Process) -> int:
  try:
    return process.memory_info().rss
  except psutil.NoSuchProcess:
    return 0


def make_pool(run: Commands, workdir: pathlib.Path, config) -> None:
  """Clips, questions and the simulated teacher's answers, then the data set built from them."""
  raw = workdir / "raw"
  began = time.monotonic()
  if (noises := simulated_teacher.NOISES.get(config.world.noise)) is None:
    known = " or ".join(simulated_teacher.NOISES)
    raise UserError(f"world.noise is {config.world.noise!r}; give {known}")
  world = {name: config.world[name] for name in WORLD} | {"seed": config.seed}
  _check_world(workdir, world)
  if not raw.exists():
    print(f"\n== drawing the demo world into {raw}", flush=True)
    # Before the world, so that none is ever there whose kind is not told.
    replace_text(workdir / "world.json", json.dumps(world) + "\n")
    bar = None
    drawn = 0

    def show(done: int, total: int) -> None:
      nonlocal bar, drawn
      bar = bar or Progress(total, "clips")
      bar.update(done - drawn)
      drawn = done

    simulated_teacher.make_pool(
      raw,
      train_prompts=config.world.train_prompts,
      test_prompts=config.world.test_prompts,
      seed=config.seed,
      teacher=simulated_teacher.Teacher(config.world.responses, *noises),
      progress=show,
    )
    bar.close()
    run.count("pool", time.monotonic() - began)
  if not (workdir / "pool").exists():
    build_pool(run, [raw / "pool.jsonl", raw / "test.jsonl"], workdir / "pool", config)


def _check_world(workdir: pathlib.Path, asked: Mapping[str, Any]) -> None:
  """Raises UserError if WORKDIR/raw is there and of another world."""
  raw, told = workdir / "raw", workdir / "world.json"
  if not raw.exists():
    return
  there = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
  if (before := raw / "noise.txt").exists():  # all that was told once
    there["noise"] = before.read_text(encoding="utf-8")
  for name, value in there.items():
    if value != asked[name]:
      key = name if name == "seed" else f"world.{name}"
      raise UserError(
        f"{raw} was made with another {key}, {value!r}, not {asked[name]!r}; give another folder"
      )


def build_pool(
  run: Commands,
  records: Sequence[pathlib.Path],
  out: pathlib.Path,
  config: Any,
  *more: str | pathlib.Path,
) -> None:
  """The data set of raw records, as the demo world has it."""
  run(
    "pool",
    "pool",
    "build",
    "--jsonl",
    *records,
    "--out",
    out,
    "--tokenizer",
    config.model.folder,
    "--buckets",
    ",".join(map(str, config.world.bucket)),
    # The clips are small already: no pixel budget changes their size.
    "--video-pixels",
    "1,1000000000",
    "--image-pixels",
    "1,1000000000",
    *more,
  )


def results(run: Commands, workdir: pathlib.Path, stages: Sequence[str]) -> dict:
  """The contents of results.json: seconds, memory, scores per run, commit and versions."""
  scores = {}
  for name in ("base", "blind", *stages):
    result = json.loads((workdir / name / "evaluate" / "test.json").read_text())
    greedy = result["greedy"]
    sampled = result.get("sampled")
    scores[name] = {
      "closed": _interval(greedy["closed"]),
      "quality": _interval((sampled or greedy)["closed"]),  # a constant answers alike each time
      "format": greedy["format"],
      "tasks": {task: _interval(score) for task, score in greedy["tasks"].items()},
    }
  phases = {phase: run.seconds.get(phase, 0.0) for phase in ("pool", "sft", "rl", "evaluate")}
  return {
    "seconds": phases | {"total": round(sum(run.seconds.values()), 1)},
    "peak_memory_gb": round(run.peak_gb, 2),
    "scores": scores,
    "commit": _commit(),
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
  }


def _interval(score: dict) -> dict:
  return {key: round(score[key], 4) for key in ("mean", "low", "high")}


def _commit() -> str:
  """The commit of the checkout, marked where files differ from it; "unknown" outside a checkout."""
  head = checkout.commit()
  return head + "+changes" * checkout.changed() if head else "unknown"


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the demo, or goes on with it."""
  parser = cli.parser_of(main)
  parser.add_argument("workdir", help="folder of the demo; made if missing")
  parser.add_argument("--config", default=str(cli.CONFIGS / "demo.py"))
  options = parser.parse_args(argv)
  workdir = pathlib.Path(options.workdir).absolute()
  file = os.path.abspath(options.config)  # the commands run in another folder
  workdir.mkdir(parents=True, exist_ok=True)
  config = cli.load_config(f"{file}:sft")
  run = Commands(workdir)
  pool = f"--config.data.pool={workdir / 'pool'}"
  make_pool(run, workdir, config)
  for name, module in STAGES.items():
    if name in config.world.stages:
      start = (f"--config.init_from={workdir / 'sft'}",) if name in FROM_SFT else ()
      run(name, module, f"--config={file}:{name}", f"--workdir={workdir / name}", pool, *start)
  for name in ("base", "blind", *config.world.stages):
    checkpoint = name if name in ("base", "blind") else "latest"
    # Trainers resume by themselves; an evaluation that is there is kept.
    if not (workdir / name / "evaluate" / "test.json").exists():
      sees = f"--config.data.blind={name == 'sft_blind'}"
      judged = name == "rl" and cli.load_config(f"{file}:rl").reward.discriminator > 0
      run(
        "evaluate",
        "evaluate",
        f"--config={file}:evaluate",
        f"--workdir={workdir / name}",
        pool,
        f"--checkpoint={checkpoint}",
        sees,
        f"--config.evaluate.discriminator={judged}",
      )
  run("report", "report", workdir)
  text = json.dumps(results(run, workdir, config.world.stages), indent=2)
  replace_text(workdir / "results.json", text + "\n")
  print(f"\n{text}\nreport: {workdir / 'report' / 'index.html'}")


if __name__ == "__main__":
  cli.run(main)

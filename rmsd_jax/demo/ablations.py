"""The paper's ablations in the demo world: a grid of rows (configs/ablations.py) and seeds.

    python -m rmsd_jax.demo.ablations WORKDIR                       every row, 3 seeds
    python -m rmsd_jax.demo.ablations WORKDIR --rows A B C D --seeds 5 --jobs 2
    python -m rmsd_jax.demo.ablations WORKDIR --show                tables of what is there, no run

A run is both stages and an evaluation of each; rows with the same stage 1 share it. A grid that was
interrupted goes on where it stopped, and may be widened by more rows or seeds; runs that another
config made are refused. A run that fails is named at the end, the others go on. After every run
WORKDIR/ablations.{md,csv,png} are written anew, and scores.jsonl.gz, by prompt, from which another
sitting can go on (--scores). Each run's output is in its log.txt.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import queue
import runpy
import signal
import threading
from collections.abc import Callable, Sequence

import psutil

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.progress import Progress
from rmsd_jax.demo import grid_tables, own_replies, simulated_teacher
from rmsd_jax.demo.run import Commands, make_pool
from rmsd_jax.training import guard

CONFIG = cli.CONFIGS / "ablations.py"
ROWS = runpy.run_path(str(CONFIG))["ROWS"]
RESULT = pathlib.Path("evaluate", "test.json")
TEACHER_SEED = 1_000  # of no student
GOES_ON_SEED = 10_000  # and on; of no other run
FRESH_WORLD = 1  # seed of a demo world other than the grid's
TEACHER_TIMES = 3  # the steps of a student
Job = tuple[str, int, str]  # row, seed, stage
STAGE_2_KEYS = (  # what stage 1 does not read
  "reward.",
  "policy.",
  "rollouts.",
  "discriminator.",
  "supervision.match_by_quality",
  "supervision.loss_by_quality",
)


def stage_1_rows() -> dict[str, str]:
  """Row -> the first row with the same stage 1, whose run it starts from."""
  first: dict[str, str] = {}
  changed = lambda row: {
    k: v for k, v in row.changes.items() if not k.startswith(STAGE_2_KEYS) and not row.goes_on
  }
  return {
    name: first.setdefault(json.dumps(changed(row), sort_keys=True), name)
    for name, row in ROWS.items()
  }


class Grid:
  """The runs of a grid under one folder: WORKDIR/runs/ROW/seedS/{sft, rl}.

  Args:
    workdir: folder of the grid, its pool made already.
    cores: the CPU cores of each job.
    noise: of the pool's teacher, a key of `simulated_teacher.NOISES`.
  """

  def __init__(self, workdir: pathlib.Path, cores: Sequence[Sequence[int]], noise: str):
    self._workdir = workdir
    self._noise = noise
    self._stopped = threading.Event()
    self._cores: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
    # A queue: who takes a share of the cores has it alone, and waits where all are out.
    for some in cores:
      self._cores.put(some)

  def folder(self, row: str, seed: int, stage: str) -> pathlib.Path:
    return self._workdir / "runs" / row / f"seed{seed}" / stage

  def missing(self, jobs: Sequence[Job]) -> list[Job]:
    """The (row, seed, stage) that have no result yet.

    Raises:
      UserError: another config than today's made the result of one.
    """
    done = {job for job in jobs if (self.folder(*job) / RESULT).exists()}
    for row, seed, stage in done:
      self.check(row, seed, stage)
    return [job for job in jobs if job not in done]

  def check(self, row: str, seed: int, stage: str) -> None:
    """Raises UserError where another config than today's made the run."""
    config = cli.load_config(f"{CONFIG}:{row}/{stage}")
    # Of the command line, or a place.
    apart = ("seed", "init_from", "data.pool", "model.folder", "policy.reference")
    config.unlock()
    config.data.first_response = seed
    config.world.noise = self._noise
    guard.guard_config(
      str(self.folder(row, seed, stage)), config, (*config.operational, *apart), write=False
    )

  def _own_pool(self, run: Commands, row: str, seed: int, start: pathlib.Path) -> pathlib.Path:
    """The pool of the answers of the student of `start`."""
    config = cli.load_config(f"{CONFIG}:{row}/rl").unlock()
    config.seed = seed
    folder, raw = self.folder(row, seed, "rl") / "own", self._workdir / "raw"
    config.data.pool = str(self._workdir / "pool")
    return own_replies.sampled_pool(run, folder, start, raw, config, f"{CONFIG}:{row}/evaluate")

  def stop(self) -> None:
    """Ends the commands that run, as Ctrl-C does, and lets no other start."""
    self._stopped.set()
    for child in psutil.Process().children(recursive=True):
      with contextlib.suppress(psutil.NoSuchProcess):
        child.send_signal(signal.SIGINT)

  def run(self, row: str, seed: int, stage: str, start: pathlib.Path | None) -> None:
    """Trains one stage of one row and evaluates it, or goes on with that."""
    folder = self.folder(row, seed, stage)
    cores = self._cores.get()
    folder.mkdir(parents=True, exist_ok=True)
    try:
      run = Commands(folder, self._workdir / "compiled", folder / "log.txt", cores)
      pool = self._workdir / "pool"
      flags = (f"--workdir={folder}", f"--config.data.pool={pool}",
               f"--config.seed={seed}", f"--config.data.first_response={seed}",
               f"--config.world.noise={self._noise}")  # fmt: skip
      begin = (f"--config.init_from={start}",) if start else ()
      if start and distils(row):
        begin += (f"--config.policy.reference={teacher_folder(self._workdir)}",)
      if start and ROWS[row].goes_on:
        # Stage 1's seed would give it stage 1's batches and targets again, in the same order.
        begin += (f"--config.seed={GOES_ON_SEED + seed}",)
      if start and ROWS[row].fresh:
        begin += (f"--config.data.pool={fresh_folder(self._workdir) / 'pool'}",)
      if start and ROWS[row].own_replies:
        begin += (f"--config.data.pool={self._own_pool(run, row, seed, start)}",)
      trainer = "train_sft" if ROWS[row].goes_on else f"train_{stage}"
      for phase, module in ((stage, trainer), ("evaluate", "evaluate")):
        if self._stopped.is_set():
          raise KeyboardInterrupt
        judged = f"--config.evaluate.discriminator={stage == 'rl' and judges(row)}"
        more = begin if phase == stage else (judged,)
        run(phase, module, f"--config={CONFIG}:{row}/{phase}", *flags, *more)
    finally:
      self._cores.put(cores)


def distils(row: str) -> bool:
  """Whether a row needs a teacher whose token probabilities are at hand."""
  return "policy.reference" in ROWS[row].changes


def judges(row: str) -> bool:
  """Whether a discriminator learns in the row's stage 2."""
  config = cli.load_config(f"{CONFIG}:{row}/rl")
  return config.reward.discriminator > 0 and not ROWS[row].goes_on


def teacher_folder(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "teacher"


def make_teacher(workdir: pathlib.Path) -> None:
  """That teacher: a student of D's stage 1 that was trained three times as long, exported."""
  folder = teacher_folder(workdir)
  if (folder / "model.safetensors").exists():
    return
  name = f"{CONFIG}:D/sft"
  config = cli.load_config(name)
  trained = workdir / "runs" / "teacher"
  trained.mkdir(parents=True, exist_ok=True)
  run = Commands(trained, workdir / "compiled", trained / "log.txt")
  given = (f"--config.data.pool={workdir / 'pool'}", f"--config.seed={TEACHER_SEED}")
  longer = f"--config.steps={TEACHER_TIMES * config.steps}"
  run("sft", "train_sft", f"--config={name}", f"--workdir={trained}", *given, longer)
  run("sft", "convert", "export", "--workdir", trained, "--base", config.model.folder,
      "--out", folder)  # fmt: skip


def fresh_folder(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "fresh"


def make_fresh_pool(workdir: pathlib.Path, row: str, noise: str) -> None:
  """The prompts about other clips of rows that have such, in place of more of stage 1's."""
  folder = fresh_folder(workdir)
  folder.mkdir(exist_ok=True)
  config = cli.load_config(f"{CONFIG}:{row}/rl").unlock()
  config.seed = FRESH_WORLD
  config.world.noise = noise
  config.world.test_prompts = 2  # asked by nobody: all rows are evaluated on the grid's
  make_pool(Commands(folder), folder, config)


def jobs_of(rows: Sequence[str], seeds: int, given: grid_tables.Found) -> list[Job]:
  """What is needed and not given, seed by seed (whole tables early), stage 1 first."""
  shared = stage_1_rows()
  lacks = lambda row, seed, stage: seed not in given.get((row, stage), {})
  jobs: list[Job] = []
  for seed in range(seeds):
    second = [row for row in rows if lacks(row, seed, "rl")]
    needed = {shared[row] for row in rows if row in second or lacks(row, seed, "sft")}
    jobs += [(row, seed, "sft") for row in ROWS if row in needed]
    jobs += [(row, seed, "rl") for row in second]
  return jobs


def run_all(
  grid: Grid,
  rows: Sequence[str],
  seeds: int,
  jobs: int,
  given: grid_tables.Found,
  done: Callable[[], None],
) -> None:
  """Runs what is missing, stage 1 before what starts from it; `done` is called after each. What is
  `given` is not run again, but for a stage 1 that a run must start from.

  Raises:
    UserError: at the end, names the runs that failed.
    KeyboardInterrupt: the commands that ran have ended.
  """
  shared = stage_1_rows()
  waiting = grid.missing(jobs_of(rows, seeds, given))
  origin = lambda job: (shared[job[0]], job[1], "sft")
  running: dict[concurrent.futures.Future, Job] = {}
  failed: dict[Job, str] = {}
  with (
    Progress(len(waiting), "runs") as bar,
    concurrent.futures.ThreadPoolExecutor(jobs) as pool,
  ):
    try:
      while waiting or running:
        # Without its stage 1 a job can never start, and the loop would not end.
        waiting = [job for job in waiting if job[2] == "sft" or origin(job) not in failed]
        # A job waits for the stage 1 it starts from; that one is done when it is neither here nor
        # there.
        blocked = set(waiting) | set(running.values())
        for job in list(waiting):
          free = job[2] == "sft" or origin(job) not in blocked
          if len(running) < jobs and free:
            waiting.remove(job)
            start = grid.folder(*origin(job)) if job[2] == "rl" else None
            running[pool.submit(grid.run, *job, start)] = job
        ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in ended:
          job = running.pop(future)
          try:
            future.result()
          except UserError as fault:
            failed[job] = str(fault)
          bar.update(1, "{} seed {} {}".format(*job))
          done()
    except KeyboardInterrupt:
      grid.stop()
      raise
  if failed:
    named = "; ".join("{} seed {} {}".format(*job) + f": {why}" for job, why in failed.items())
    raise UserError(f"{len(failed)} runs failed, and none that starts from them was run: {named}")


def grid_results(
  workdir: pathlib.Path, rows: Sequence[str], seeds: int, noise: str, given: grid_tables.Found
) -> grid_tables.Found:
  """The scores of what is there, and of `given` what is not.

  Raises:
    UserError: the pool of what is there has another teacher than `noise`.
  """
  for config in workdir.glob(f"runs/*/*/*/{guard.CONFIG_FILE}"):
    made = json.loads(config.read_text()).get("world", {}).get("noise", noise)
    if made != noise:
      raise UserError(f"{workdir} was run with --noise {made}; give it, or another folder")
  grid = Grid(workdir, (), noise)
  shared = stage_1_rows()
  results = {key: dict(runs) for key, runs in given.items()}
  for row in rows:
    for stage in ("sft", "rl"):
      for seed in range(seeds):
        path = grid.folder(shared[row] if stage == "sft" else row, seed, stage) / RESULT
        if path.exists():
          results.setdefault((row, stage), {})[seed] = _scores(path, path.stat().st_mtime_ns)
  return results


@functools.cache  # all of them are asked for again whenever a run ends
def _scores(path: pathlib.Path, changed: int) -> grid_tables.RunScores:
  return grid_tables.scores_of(json.loads(path.read_text(encoding="utf-8")))


def split_cores(jobs: int) -> list[list[int]]:
  """The cores that this process may use, dealt to `jobs` jobs."""
  if not hasattr(os, "sched_getaffinity"):
    return [[]] * jobs
  cores = sorted(os.sched_getaffinity(0))
  if jobs > len(cores):
    raise UserError(f"--jobs {jobs} on {len(cores)} cores; give at most one job a core")
  return [cores[i::jobs] for i in range(jobs)]


def _unfit(row: str, noise: str) -> str:
  """Why a row says nothing with a teacher of that noise; "": it does."""
  if ROWS[row].noise not in ("", noise):
    return f"needs --noise {ROWS[row].noise}"
  if noise == "two" and ROWS[row].changes.get("data.responses") == 1:
    return "takes one response: which of the two teachers gave it would depend on the seed"
  return ""


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a grid, or goes on with it, and writes its tables."""
  parser = cli.parser_of(main)
  parser.add_argument("workdir", help="folder of the grid; made if missing")
  parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW",
                      help=f"of {', '.join(ROWS)} (default: all that suit --noise)")  # fmt: skip
  parser.add_argument("--seeds", type=int, default=3, help="training seeds a row (default: 3)")
  parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of "
                      "the cores (default: 1)")  # fmt: skip
  parser.add_argument("--noise", choices=list(simulated_teacher.NOISES), default="questions",
                      help="which figures of the paper the teacher has: the qualities of 200 "
                      "questions, or the shares that tau keeps; or two teachers, the second one "
                      "worse (default: questions)")  # fmt: skip
  parser.add_argument("--scores", help="scores.jsonl.gz of another sitting of this grid: its runs "
                      "are not made again")  # fmt: skip
  parser.add_argument("--show", action="store_true", help="write the tables, run nothing")
  options = parser.parse_args(argv)
  for name in ("seeds", "jobs"):
    if getattr(options, name) < 1:
      raise UserError(f"--{name} {getattr(options, name)}; give 1 or more")
  workdir = pathlib.Path(options.workdir).absolute()
  unfit = {row: why for row in ROWS if (why := _unfit(row, options.noise))}
  rows = list(dict.fromkeys(options.rows or (row for row in ROWS if row not in unfit)))
  for row in rows:
    if row in unfit:
      raise UserError(f"row {row} {unfit[row]}")

  of_rows = {row: ROWS[row] for row in rows}
  given: grid_tables.Found = {}
  if options.scores:
    given = grid_tables.kept(pathlib.Path(options.scores), of_rows, options.noise)

  def show() -> None:
    results = grid_results(workdir, rows, options.seeds, options.noise, given)
    grid_tables.write_tables(workdir, of_rows, results, options.noise)

  if not options.show:
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: its commands end too
    workdir.mkdir(parents=True, exist_ok=True)
    grid = Grid(workdir, split_cores(options.jobs), options.noise)
    config = cli.load_config(f"{CONFIG}:D/sft")
    config.world.noise = options.noise
    make_pool(Commands(workdir), workdir, config)
    if any(map(distils, rows)):
      make_teacher(workdir)
    for row, _, stage in grid.missing(jobs_of(rows, options.seeds, given)):
      if stage == "rl" and ROWS[row].fresh:
        make_fresh_pool(workdir, row, options.noise)
    run_all(grid, rows, options.seeds, options.jobs, given, show)
  show()
  print((workdir / "ablations.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
  cli.run(main)

"""What both trainers do around a step: check the run, resume, read, log, save, show progress, end.

loop = Loop(config, workdir, stage=1)
with jax.set_mesh(loop.mesh), loop:
  state = loop.start(model, optims, make_state)
  for step, batch in loop.batches():
    state, metrics = ...
    loop.after(step, state, metrics, note="loss")
"""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from rmsd_jax.core import interrupts, peers, sharding
from rmsd_jax.core.errors import Interrupted, Terminated, UserError, check_least, check_within
from rmsd_jax.core.progress import Progress, rss_gb
from rmsd_jax.data import epochs, loader
from rmsd_jax.data.batch import Batch, blinded
from rmsd_jax.data.store import Pool, another_split, open_pool
from rmsd_jax.method import custom_rewards, matching, reliability
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.tasks import Rules
from rmsd_jax.training import log, optim, showing, stopping, teaching, telling, timing, trackers
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.checkpoint import Checkpoints
from rmsd_jax.training.guard import as_begun, check_alike, guard_config, part_of
from rmsd_jax.training.log import Writer
from rmsd_jax.training.profiling import Profiler

LEAST = {
  "seed": 0,
  "data.limit": 0,
  "log_every": 1,
  "save_every": 1,
  "steps": 1,
  "logit_chunk": 1,
  "row_tokens": 1,
  "max_skipped": 0,
  "evaluate.every": 0,
  "evaluate.prompts": 1,
  "evaluate.patience": 0,
  "samples.every": 0,
  "samples.prompts": 1,
}
DRAWS = ("stage", "seed")


class Limit(NamedTuple):
  """A metric beyond which a run is not worth going on with."""

  metric: str  # of the log
  unit: str
  most: float
  key: str  # of the config, that sets `most`
  remedy: str


class Loop:
  """One training run around its steps: data, log, checkpoints, end. A context manager.

  SIGTERM, the notice of a preemption, makes it save after the step that is under way and end; where
  several processes train together, one of them that gets it is enough. So does Ctrl-C where one
  process trains.

  Args:
    config: of the run; configs/default.py says what each key means.
    workdir: folder of the run; a folder with checkpoints is resumed.
    stage: 1 or 2; a stage has an order of prompts of its own (data.draws).
    limits: the run stops when a logged metric passes one of these, or is not a number.
    needs_teacher: without one teacher response that may teach there is nothing to learn.

  Raises:
    UserError: the batch does not divide over the mesh, there is no such pool, or the folder holds
      a run of another config.

  Attributes:
    mesh: the devices.
    begin: the step to go on from; 0 for a new run.
  """

  def __init__(
    self,
    config,
    workdir: str,
    stage: int,
    limits: Sequence[Limit] = (),
    needs_teacher: bool = True,
  ):
    self._limits = limits
    self._stage = stage
    self._workdir = workdir
    self._rules = Rules(**config.tasks)
    first = jax.process_index() == 0
    self.mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(self.mesh, config.batch, "config.batch")
    part = part_of(config.data.pool)
    self._pool = open_pool(config.data.pool, config.data.split, part)
    check_least(config, LEAST)
    self._held_out = None  # the pool of held-out looks
    self._apart(config)
    self._best = stopping.best_metric(config.best_metric, looks=self._held_out is not None)
    self._checkpoints = Checkpoints(workdir, config.keep, self._best or None)
    kept = {"write": first, "begun": self._checkpoints.latest() is not None}
    self._config = config = as_begun(workdir, config, kept["begun"])
    self._order = stage if config.data.draws == "stage" else 0
    known = self._guard(kept)
    # Last, since it reads all of a checkpoint; everyone starts from the step that is whole.
    self.begin = self._checkpoints.latest_whole() or 0
    # All that a stream of batches may be refused for, before weights are loaded.
    self._streams = []  # of batches, which worker processes may fill
    self._load(self.begin, config.steps, config.data.workers)
    if first:
      print(telling.beginning(stage, self.mesh, workdir, self.begin, config.steps))
      print(telling.pool_line(self._pool, config, self._rules.version))
    if needs_teacher and not (self.begin and known):
      teaching.check_teaches(self._pool, config)
    used = (config.data.tasks, config.data.limit, config.data.chat_share)
    self._per_epoch = epochs.per_epoch(self._pool, config.batch, *used)
    self._profiler = Profiler(config.profile, workdir)
    tracker = trackers.tracker_of(config.writer, workdir, config.to_dict()) if first else None
    self._writer = Writer(workdir, self.begin, first, tracker)
    self._shown = showing.Shown(workdir, self.begin, first, config.reward, **config.samples)
    self._batch: Batch | None = None  # of the step that is under way
    self._warned: dict[str, str] = {}
    self._progress = Progress(config.steps, f"stage {stage}", self.begin, first)
    self._logged, self._since = self.begin, time.monotonic()
    self.clock = timing.Clock(self._progress.say)
    # JAX agrees on a step later than the last one asked about, so it must know where a run begins.
    self._checkpoints.preempted(self.begin)
    self._optims: dict[str, optim.Optimizer] = {}
    self._look: Callable | None = None
    # What the rules read of the log; and why the run is over before its last step, "": it is not.
    looked = self._held_out is not None
    self._lines = [x for x in log.read(workdir) if looked and x["step"] <= self.begin]
    self._over = stopping.stalled(stopping.looks_of(self._lines), config.evaluate.patience)
    self._take_signals()

  def _guard(self, kept: dict) -> bool:
    """Holds config, pool and reward terms against those that the folder, and the other processes,
    belong to; True where the pool was compared with that of an earlier run."""
    config = self._config
    guard_config(self._workdir, config, config.operational, **kept)
    self._pool = _read_as(self._pool, config, self._rules)
    known = guard_config(self._workdir, self._pool.identity, file="pool.json", **kept)
    rewards = custom_rewards.of_config(config.reward).identity if self._stage == 2 else {}
    if rewards:
      guard_config(self._workdir, rewards, file="reward.json", **kept)
    # Here all processes meet, so that no row is used before each has read its part of the pool.
    alike = {"config": config.to_dict(), "pool": self._pool.identity, "reward.module": rewards}
    check_alike(alike, config.operational)
    return known

  def _take_signals(self) -> None:
    self._ends = 0  # the signal that came; where processes are joined, JAX takes SIGTERM
    self._swallowed = False  # Ctrl-C, by a library in which its exception arose
    self._handlers: dict[int, Any] = {}  # the ones before ours
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._handlers[number] = signal.signal(number, self._end)

  def _apart(self, config) -> None:
    """Sets apart what training never sees."""
    data, evaluate = config.data, config.evaluate
    if data.draws not in DRAWS:
      raise UserError(f"data.draws is {data.draws!r}; choose one of {', '.join(DRAWS)}")
    check_within(config, {"data.held_out": "[0, 1)", "data.chat_share": "[0, 1)"})
    held_out = None
    if data.held_out:
      self._pool, held_out = epochs.apart(self._pool, data.held_out)
    if not evaluate.every:
      return
    check_least(config, {"evaluate.samples": 1})
    if not data.held_out and evaluate.split in ("", data.split):
      raise UserError(
        f"evaluate.every={evaluate.every} wants prompts that training never sees: give "
        f"evaluate.split, a split other than {data.split!r}, or a share of the clips, "
        "data.held_out=0.05"
      )
    if evaluate.split and evaluate.split != data.split:
      held_out = another_split(self._pool, evaluate.split)
    self._held_out = epochs.some(held_out, evaluate.prompts, data.tasks)

  def start(
    self,
    model: Qwen3VL,
    optims: dict,
    make: Callable[[], state_lib.State],
    look: Callable,
    teacher: Qwen3VL | None = None,
  ) -> state_lib.State:
    """The state to begin with: the last checkpoint's, or that of step 0, which `make` makes.

    Args:
      optims: role -> its optimizer; the checkpoint is read straight into sharded arrays.
      look: makes what asks and grades held-out prompts, as `rollouts.looks.Look`.
      teacher: see `state.abstract`.
    """
    self._look = self._looker(model, look)
    if self.begin:
      of = (optims, self._rules.names, teacher)
      saved = state_lib.abstract(self.mesh, model, self._config.trained, *of)
      state = state_lib.restore(self._checkpoints, saved)
    else:
      state = make()
    if jax.process_index() == 0:
      print(state_lib.summary(state))
    # From here on ids are held against the model that reads them.
    self._pool = dataclasses.replace(self._pool, vocabulary=model.config.text.vocab)
    self._optims = {role: tx for role, tx in optims.items() if tx is not None}
    self._since = time.monotonic()
    return state

  def _looker(self, model: Qwen3VL, look: Callable) -> Callable | None:
    config = self._config
    if self._held_out is None:
      return None
    return look(
      dataclasses.replace(self._held_out, vocabulary=model.config.text.vocab),
      model,
      self.mesh,
      config.model.folder,
      self._rules,
      batch=config.batch,
      seed=config.seed,
      samples=config.evaluate.samples,
      rollouts=config.rollouts,
      pass_above=config.evaluate.pass_above,
      blind=config.data.blind,
      around=self.clock.around,
    )

  def around(self, steps):
    """The programs of a step, timed and, where rollouts are shown, looked at."""
    return self.clock.around(self._shown.around(steps))

  def batches(self) -> Iterator[tuple[int, Batch]]:
    """The steps still to do, each with this process's share of its batch."""
    loaded = self._load(self.begin, self._config.steps, self._config.data.workers)
    while not self._over:
      with self.clock.part("data"):
        step, batch = next(loaded, (None, None))
      if step is None:
        return
      self._profiler.before(step)
      if self._swallowed:
        raise KeyboardInterrupt
      interrupts.raise_swallowed()
      self._batch = batch
      yield step, batch

  def first_batch(self) -> Batch:
    """This process's share of the batch of step 0."""
    return next(self._load(0, 1, num_workers=0))[1]

  def _load(self, start: int, end: int, num_workers: int) -> Iterator[tuple[int, Batch]]:
    config = self._config
    loaded = loader.make(
      self._pool,
      batch_size=config.batch,
      seed=config.seed,
      start_step=start,
      end_step=end,
      k=config.data.responses,
      tasks=config.data.tasks,
      limit=config.data.limit,
      num_workers=num_workers,
      prefetch=config.data.prefetch,
      stage=self._order,
      shards=sharding.batch_shards(self.mesh),
      samples=config.rollouts.samples + config.data.responses if self._stage == 2 else 1,
      chat_share=config.data.chat_share,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    self._streams.append(loaded)
    return ((step, blinded(batch) if config.data.blind else batch) for step, batch in loaded)

  def after(
    self,
    step: int,
    state: state_lib.State,
    metrics: Mapping,
    note: str,
    replies: Sequence[Sequence[str]] = (),
  ) -> None:
    """Counts one step; logs and saves when it is time.

    Args:
      step: the step just done, from 0.
      metrics: scalars; device values are waited for only when they are logged. Those in
        log.MAY_BE_EMPTY are left out where they are NaN.
      note: name of the metric that the progress bar shows.
      replies: stage 2, texts of this process's rollouts.

    Raises:
      UserError: too many updates in a row had no finite gradient, or a limit was passed; what is
        saved is from before.
      Terminated: SIGTERM came, and the state is saved.
    """
    config = self._config
    done = step + 1
    if self._stage == 1 and step == self.begin:
      stopping.check_best(self._best, looks=True, metrics=metrics)  # in stage 2 more come
    self._profiler.after(step, metrics)
    if self._batch is not None and self._shown.due(done):
      self._writer.text(done, "rollouts", self._shown.add(done, self._batch, self._pool, replies))
    ends = (bool(self._ends) or self._checkpoints.preempted(done)) and done < config.steps
    looks = self._look is not None and (done % config.evaluate.every == 0 or done == config.steps)
    gains = False
    if done % config.log_every == 0 or done == config.steps or looks:
      metrics = {
        name: value
        for name, value in jax.device_get(dict(metrics)).items()
        if not (name.startswith(log.MAY_BE_EMPTY) and np.isnan(value))
      }
      if looks:
        metrics |= self._look(state_lib.weights(state))
      line = metrics | self._figures(done, state)
      self._writer.write(done, line)
      shown = f"{note} {float(metrics[note]):.3f}" if note in metrics else ""
      self._progress.update(done - self._logged, note=shown)
      self._logged = done
      self._warn(metrics)
      self._check_health(done, metrics)
      gains = self._follow(done, line, looks)
    if done % config.save_every == 0 or done == config.steps or ends or gains or self._over:
      # A step without a look cannot become the best, and need not say so.
      scored = looks or self._best != stopping.SCORE
      with self.clock.part("save"):
        self._checkpoints.save(done, state, metrics if scored else None)
    if ends:
      self._checkpoints.wait()
      kind = Interrupted if self._ends == signal.SIGINT else Terminated
      by = "Ctrl-C" if self._ends == signal.SIGINT else "SIGTERM"
      raise kind(f"ended by {by}: step {done} is saved; the same command goes on from it")

  def _warn(self, metrics: Mapping) -> None:
    """Says what is wrong with the rollouts, when it begins to be."""
    found = showing.warnings(metrics)
    for kind in found.keys() - self._warned.keys():
      self._progress.say(f"WARNING: {found[kind]}")
    self._warned = found

  def _follow(self, done: int, line: Mapping, looks: bool) -> bool:
    """Follows the held-out looks; whether this one is the best.

    Raises:
      UserError: the reward is being hacked.
    """
    if self._look is None:
      return False
    self._lines.append({"step": done} | {k: line[k] for k in stopping.READ if k in line})
    if not looks:
      return False
    seen = stopping.looks_of(self._lines)
    if jax.process_index() == 0:
      self._progress.say(stopping.told(line, seen))
    if self._config.evaluate.stop_hacking and (why := stopping.hacked(seen)):
      raise UserError(why)
    self._over = stopping.stalled(seen, self._config.evaluate.patience)
    return self._best == stopping.SCORE and stopping.improves(seen)

  def _figures(self, done: int, state: state_lib.State) -> dict[str, Any]:
    """What is logged beside a step's own metrics; since the line before, where it is a mean."""
    config, steps, now = self._config, done - self._logged, time.monotonic()
    taken, self._since = now - self._since, now
    self._progress.without(self.clock.compiled())
    return {
      "seconds_per_step": taken / steps,
      "prompts_per_second": config.batch * steps / taken,
      "epoch": done / self._per_epoch,
      "host_memory_gb": rss_gb(),
      **self.clock.figures(steps, taken),
      **optim.rates(self._optims, state),
    }

  def _end(self, number: int, _: object) -> None:
    # Ctrl-C ends a run at once before its first step, and where it comes a second time.
    if number == signal.SIGINT and (self._ends or self._batch is None):
      self._swallowed = True  # unless the exception comes through
      raise KeyboardInterrupt
    if number == signal.SIGINT:
      self._progress.say("saving behind the step under way; Ctrl-C again ends without saving")
    self._ends = number

  def _check_health(self, done: int, metrics: Mapping) -> None:
    for limit in self._limits:
      value = metrics.get(limit.metric, 0.0)
      if not value <= limit.most:  # a NaN is beyond any limit
        raise UserError(
          f"{limit.metric} is {value:.3g} {limit.unit} at step {done}, over "
          f"{limit.key}={limit.most}: {limit.remedy}"
        )
    config = self._config
    for name, value in metrics.items():
      if name.endswith("skipped_in_a_row") and value > config.max_skipped:
        raise UserError(
          f"{name} is {int(value)}, more than max_skipped={config.max_skipped}: the gradient is "
          "not finite, and nothing was learned from these steps; start anew from an earlier "
          "checkpoint's student (init_from) with a lower learning rate"
        )

  def _ending(self) -> str:
    reason = f"{self._over}; a higher evaluate.patience goes on" if self._over else ""
    steps = self._config.steps
    return telling.ending(self._stage, self._workdir, self._logged, steps, reason)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
    peers.ending(error)  # what follows may wait for the other processes
    with contextlib.ExitStack() as stack:  # from below: all are closed, though a disk be full
      if error is None and jax.process_index() == 0:
        stack.callback(print, self._ending())
      for number, handler in self._handlers.items():  # no signal ends the process in a save
        stack.callback(signal.signal, number, handler)
      stack.callback(self.clock.close)
      stack.callback(self._checkpoints.close)
      stack.callback(self._writer.close)
      stack.callback(self._progress.close)
      stack.callback(self._profiler.close)
      for stream in self._streams:  # an error's traceback would keep them open to the end
        stack.callback(stream.close)


def _read_as(pool: Pool, config, rules: Rules) -> Pool:
  """The pool, if it was built for this model and these rules, read as the config has it."""
  pool.check_reader(config.model.folder, rules)
  by_agreement = config.supervision.closed == matching.AGREEMENT
  agreement = (rules, config.data.responses) if by_agreement else None
  rule = config.supervision.teachers
  trust = None if rule == reliability.ALIKE else reliability.weights_in(pool, rules.closed, rule)
  if trust and jax.process_index() == 0:
    print(f"teachers, {rule} by their quality in the pool:\n{reliability.shown(trust)}")
  first = config.data.first_response
  return dataclasses.replace(pool, first_response=first, agreement=agreement, trust=trust)

"""Where the seconds of a step go, how many tokens it computes, how near that is to the chip's peak.

The devices work behind the host's back, and a step must not wait for them only to be timed. So a
thread of its own waits for the outcome of each program, in the order in which they were started:
what passes between two outcomes is the later one's time on the devices.

Axes: as in `rmsd_jax.core.packed`.
"""

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from rmsd_jax.core import accelerators, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.models import flops
from rmsd_jax.models.config import ModelConfig
from rmsd_jax.models.flops import Size, Work

# What a clock or the machine gave: names of the log that begin so differ from run to run.
OF_THE_MACHINE = (
  "seconds",
  "prompts_per_second",
  "tokens_",
  "mfu",
  "host_memory_gb",
  "device_memory_gb",
)
PARTS = {  # program of a step -> the part of the step it belongs to
  "encode": "update",
  "imitate": "update",
  "train": "update",
  "near": "targets",
  "rollout": "rollout",
  "judge": "discriminator",
  "discriminator": "discriminator",
  "improve": "policy",
  "policy": "policy",
  "probe": "probe",
  "greedy": "held_out",
  "sampled": "held_out",
}
# Programs that compute packed rows -> forward passes that their work amounts to, a backward pass
# being two, and whether logits are made. The policy has the reference's forward pass besides.
PASSES = {"imitate": (3, True), "improve": (4, True), "judge": (3, False)}
TELL_AFTER = 10.0  # seconds of compiling before the console hears of it
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
  """Adds up what steps take until `figures` is asked. Close it.

  Args:
    say: gets the lines about what is being compiled.
  """

  def __init__(self, say: Callable[[str], None] = print):
    self._say = say
    self._seconds: collections.Counter[str] = collections.Counter()
    self._tokens = 0
    self._useful = 0
    self._computed = 0
    self._work = Work()
    self._model: ModelConfig | None = None
    self._ready = 0.0  # when the latest outcome was there
    self._program = ""  # under way on this host
    self._told: threading.Timer | None = None
    self._compilations = 0
    self._queue: queue.Queue[tuple | None] = queue.Queue()
    self._thread = threading.Thread(target=self._watch, daemon=True, name="step clock")
    self._thread.start()
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def around(self, steps):
    """The programs of a step (a NamedTuple), timed."""
    self._model = steps.model.config
    timed = {
      name: self._timed(name, getattr(steps, name)) for name in PARTS if hasattr(steps, name)
    }
    return steps._replace(**timed)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Times what this host does itself."""
    began = time.monotonic()
    try:
      yield
    finally:
      self._seconds[name] += time.monotonic() - began

  def compiled(self) -> float:
    """Seconds of compiling since `figures` was last asked."""
    return self._seconds["compile"]

  def figures(self, steps: int, seconds: float) -> dict[str, float]:
    """Figures of the log since the last call, per step.

    Args:
      steps: how many there were.
      seconds: that they took in all, compiling included.
    """
    self._queue.join()  # the devices are done with these steps: the log has their metrics
    found = {f"seconds/{name}": taken / steps for name, taken in sorted(self._seconds.items())}
    working = max(seconds - self._seconds["compile"], 1e-9)
    processes = jax.process_count()
    if self._tokens:
      found["tokens_per_second"] = self._tokens * processes / working
    if self._computed:
      found["tokens_useful_share"] = self._useful / self._computed
    device = jax.local_devices()[0]
    if (peak := accelerators.peak_flops(device.device_kind)) and self._work.total:
      found["mfu"] = self._work.total / (working * peak * jax.local_device_count())
    held = [(one.memory_stats() or {}).get("peak_bytes_in_use", 0) for one in jax.local_devices()]
    if max(held):
      found["device_memory_gb"] = max(held) / 2**30
    self._seconds.clear()
    self._tokens = 0
    self._useful = 0
    self._computed = 0
    self._work = Work()
    return found

  def close(self) -> None:
    jax.monitoring.unregister_event_duration_listener(self._heard)
    self._quiet()
    self._queue.put(None)
    self._thread.join()

  def _timed(self, name: str, program: Callable) -> Callable:
    def call(*arguments):
      began, before = time.monotonic(), self._compilations
      self._program = name
      try:
        out = program(*arguments)
      finally:
        self._program = ""
        self._quiet()
      if self._compilations > before:
        now = time.monotonic()
        self._seconds["compile"] += now - began
        if now - began >= TELL_AFTER:
          self._say(f"compiled {_called(name)} in {now - began:.0f} s")
        began = now
      # The last leaf: what comes before may be given away to the next program.
      outcome = jax.tree.leaves(out)[-1:]
      self._queue.put((name, began, outcome, _lengths(name, arguments, out)))
      return out

    return call

  def _heard(self, event: str, duration: float, **_: Any) -> None:
    """JAX says what it does: a program is about to be compiled, or has been."""
    if not self._program or threading.current_thread() is self._thread:
      return
    if event == _LOWERED and self._told is None:
      line = f"compiling {_called(self._program)}; this may take minutes"
      self._told = threading.Timer(TELL_AFTER, self._say, [line])
      self._told.daemon = True
      self._told.start()
    if event == _COMPILED:
      self._compilations += 1

  def _quiet(self) -> None:
    if self._told is not None:
      self._told.cancel()
      self._told = None

  def _watch(self) -> None:
    while (job := self._queue.get()) is not None:
      try:
        self._count(*job)
      except RuntimeError:
        pass  # the device failed: whoever reads the outcome hears of it
      finally:
        del job
        self._queue.task_done()

  def _count(self, name: str, began: float, outcome: list, lengths: dict) -> None:
    jax.block_until_ready(outcome)
    now = time.monotonic()
    self._seconds[PARTS[name]] += now - max(began, self._ready)
    self._ready = now
    assert self._model is not None
    mine = {key: sharding.local_rows(x) for key, x in lengths.items()}
    if "grid_BF2" in mine:
      patches = mine["grid_BF2"].prod(-1)
      encoding = flops.vision(self._model.vision, 1, patches).vision
      self._work = self._work.plus(Work(vision=float(np.sum(encoding))))
    if "group_XS" in mine:
      size = size_of(**mine)
      self._useful += int(size.tokens)
      self._computed += mine["group_XS"].size
      passes, logits = PASSES[name]
    elif "length_BR" in mine:
      prompt_B, length_BR = mine["prompt_length_B"], mine["length_BR"]
      tokens, responses = prompt_B.sum() + length_BR.sum(), length_BR.sum()
      size = Size(float(tokens), float(responses), flops.pairs(prompt_B, length_BR), 0)
      passes, logits = 1, True
    else:
      return
    self._work = self._work.plus(flops.forward(self._model, size, logits).times(passes))
    if name in ("imitate", "rollout"):  # the tokens of a step, once
      self._tokens += int(size.tokens)


def size_of(group_XS, response_XW, start_XW, last_XW) -> Size:
  """The tokens that exist in packed rows, as numpy; see `rmsd_jax.core.packed.Rows`."""
  W = response_XW.shape[1]
  P = group_XS.shape[1] - W
  # Prompts of a shard are numbered; each lies in one row.
  prompts = max(int(group_XS.max(initial=0)) + 1, 1)
  at_XS = np.where(group_XS < 0, 0, group_XS + prompts * np.arange(len(group_XS))[:, None])
  room = prompts * len(group_XS)
  prompt_G = np.bincount(at_XS[:, :P][group_XS[:, :P] >= 0], minlength=room)
  n_R = (P + np.arange(W) - start_XW + 1)[last_XW]  # of each response, at its last token
  p_R = prompt_G[at_XS[:, P:][last_XW]]
  pairs = (prompt_G * (prompt_G + 1) / 2).sum() + (n_R * p_R + n_R * (n_R + 1) / 2).sum()
  return Size(float(prompt_G.sum() + n_R.sum()), float(n_R.sum()), float(pairs), 0)


def _called(name: str) -> str:
  """A program as the console calls it."""
  return name if PARTS[name] == name else f"{PARTS[name]}/{name}"


def _lengths(name: str, arguments: tuple, out: Any) -> dict[str, jax.Array]:
  """The arrays that say how many tokens a program computes; none of them is given away."""
  found = {}
  for one in arguments:
    if name in PASSES and isinstance(one, Rows):
      for key in ("group_XS", "response_XW", "start_XW", "last_XW"):
        found[key] = getattr(one, key)
    if name in ("encode", "rollout") and isinstance(one, PromptGroups):
      found["grid_BF2"] = one.grid_BF2
      found["prompt_length_B"] = one.prompt_length_B
  if name == "rollout" and found:
    found["length_BR"] = out[0].length_BR
  return found

"""Seconds of the parts of a step, tokens, FLOPs, learning rates: against counts of other kinds."""

import io
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict

from rmsd_jax.core import accelerators, packed, packing, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.progress import Progress
from rmsd_jax.models import flops, hf
from rmsd_jax.training import optim, timing


class Steps(NamedTuple):
  rollout: Any = None
  discriminator: Any = None
  policy: Any = None
  imitate: Any = None
  encode: Any = None
  model: Any = None


class Outcome:
  """Of a program that ends on its device at a given time."""

  def __init__(self, at: float):
    self._at = at

  def block_until_ready(self):
    time.sleep(max(self._at - time.monotonic(), 0))
    return self


@pytest.fixture
def clock():
  lines = []
  made = timing.Clock(lines.append)
  made.lines = lines
  yield made
  made.close()


def model():
  return hf.load_model(tiny_run.ROOT / "rmsd_jax" / "demo" / "tiny_base")


def groups_of(prompt_B, length_BR, grid_BF2) -> PromptGroups:
  """Ids and positions are all 0: only lengths count here."""
  B, R = length_BR.shape
  P, T = prompt_B.max(), length_BR.max()
  zeros = lambda *shape: np.zeros(shape, np.int32)
  return PromptGroups(
    zeros(B, P), zeros(B, 3, P), prompt_B, prompt_B, zeros(B, P) - 1, zeros(B, 1, 4, 3),
    np.asarray(grid_BF2, np.int32), zeros(B, R, T), length_BR,
  )  # fmt: skip


PROMPTS = np.array([5, 9, 3, 7], np.int32)
LENGTHS = np.array([[4, 2], [1, 8], [0, 6], [3, 3]], np.int32)


def pieces(prompt_B=PROMPTS, length_BR=LENGTHS) -> list[packed.Rows]:
  groups = groups_of(prompt_B, length_BR, np.ones((len(prompt_B), 1, 2)))
  sizes = packing.Sizes(8, 8, 40)
  plan = packing.plan(prompt_B, length_BR.sum(1), 2, sizes, lambda P, W: P + W)
  return [packed.pack(groups, piece, slice(0, 2), length_BR.max()) for piece in plan]


def test_parts_of_a_step_are_timed_on_the_devices_and_nobody_waits(clock):
  made = model()
  start = time.monotonic() + 0.2
  ends = {"rollout": 0.3, "discriminator": 0.9, "policy": 1.1}
  # As on a device: one after the other, while the host has given away all three long before.
  fakes = {name: lambda at=start + end: Outcome(at) for name, end in ends.items()}
  steps = clock.around(Steps(**fakes, model=made))
  for name in ends:
    getattr(steps, name)()
  with clock.part("grading"):
    time.sleep(0.15)
  assert time.monotonic() < start + ends["rollout"]
  found = clock.figures(steps=2, seconds=1.3)
  wanted = {"rollout": 0.5, "discriminator": 0.6, "policy": 0.2, "grading": 0.15}
  assert {f"seconds/{name}" for name in wanted} == {x for x in found if x.startswith("seconds/")}
  for name, seconds in wanted.items():
    assert found[f"seconds/{name}"] == pytest.approx(seconds / 2, abs=0.05), name
  assert not [name for name in clock.figures(1, 1.0) if name.startswith("seconds/")]


def test_compiling_is_told_and_belongs_to_no_part(clock, monkeypatch):
  monkeypatch.setattr(timing, "TELL_AFTER", 0.2)

  @jax.jit
  def slow_to_trace(x):
    time.sleep(0.5)
    return jnp.sin(x) + 1

  steps = clock.around(Steps(policy=slow_to_trace, model=model()))
  for _ in range(2):
    steps.policy(jnp.ones(3))
  assert 0.5 <= clock.compiled() < 5
  found = clock.figures(1, 6.0)
  assert found["seconds/compile"] >= 0.5 > found["seconds/policy"]
  assert clock.lines[-1].startswith("compiled policy in ")
  steps.policy(jnp.ones(3))
  assert "seconds/compile" not in clock.figures(1, 1.0)
  steps.policy(jnp.ones(4))  # another size
  assert clock.figures(1, 1.0)["seconds/compile"] >= 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_of_packed_rows_are_those_of_their_groups(seed):
  rng = np.random.default_rng(seed)
  prompt_B = rng.integers(2, 12, 8).astype(np.int32)
  length_BR = rng.integers(0, 9, (8, 3)).astype(np.int32)
  names = ("group_XS", "response_XW", "start_XW", "last_XW")
  found = [
    timing.size_of(*(getattr(rows, x) for x in names)) for rows in pieces(prompt_B, length_BR)
  ]
  # One token after the other: what it sees, itself included.
  pairs = sum(sum(range(1, p + 1)) for p in prompt_B.tolist())
  for p, row in zip(prompt_B.tolist(), length_BR.tolist(), strict=True):
    pairs += sum(p + t + 1 for n in row for t in range(n))
  assert sum(size.pairs for size in found) == pairs
  assert sum(size.tokens for size in found) == prompt_B.sum() + length_BR.sum()
  assert sum(size.responses for size in found) == length_BR.sum()


def test_mfu_is_useful_work_over_the_peak_without_compiling(clock, monkeypatch):
  monkeypatch.setattr(accelerators, "peak_flops", lambda kind: 1e9)
  monkeypatch.setattr(jax, "local_device_count", lambda: 4)
  made, on = model(), tiny_run.mesh()
  rows = sharding.put_batch(on, pieces())
  grid_BF2 = np.array([[(2, 4)], [(6, 6)], [(0, 0)], [(2, 2)]], np.int32)
  groups = sharding.put_batch(on, groups_of(PROMPTS, LENGTHS, grid_BF2))
  ready = lambda *_: jnp.zeros(())
  steps = clock.around(Steps(imitate=ready, encode=ready, model=made))
  steps.encode({}, groups)
  for piece in rows:
    steps.imitate({}, {}, piece, groups, None)
  found = clock.figures(1, 2.0)
  c = made.config
  tokens, responses = int(PROMPTS.sum() + LENGTHS.sum()), int(LENGTHS.sum())
  pairs = flops.pairs(PROMPTS, LENGTHS)
  once = flops.forward(c, flops.Size(tokens, responses, pairs, 0), True).total
  media = sum(flops.vision(c.vision, 1, n).total for n in (8, 36, 0, 4))
  assert found["mfu"] == pytest.approx((3 * once + media) / (2.0 * 1e9 * 4), rel=1e-6)
  assert found["tokens_per_second"] == tokens / 2
  places = sum(piece.tokens_XS.size for piece in rows)
  assert found["tokens_useful_share"] == pytest.approx(tokens / places)


@pytest.mark.parametrize(
  ("kind", "peak"),
  [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12),
   ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("cpu", None), ("TPU v2", None)],
)  # fmt: skip
def test_peaks_are_of_the_data_sheets(kind, peak):
  assert accelerators.peak_flops(kind) == peak


def test_learning_rates_are_of_updates_that_were_made():
  section = ConfigDict(dict(
    name="adamw", learning_rate=0.1, warmup_share=0.5, schedule="constant", b1=0.9, b2=0.9,
    weight_decay=0.0, clip_norm=1.0, moment_dtype="float32",
  ))  # fmt: skip
  tx, params = optim.make(section, 8), {"w": jnp.ones(2)}
  state = {"student_optim": tx.init(params), "discriminator_optim": tx.init(params)}
  roles = {"student": tx, "discriminator": tx}
  assert optim.rates({"student": tx}, state) == {}
  for gradient in (1.0, np.nan, 1.0):
    _, state["student_optim"] = tx.update(
      {"w": jnp.full(2, gradient)}, state["student_optim"], params
    )
  found = optim.rates({"student": tx}, state)
  assert found == {"learning_rate": pytest.approx(0.1 * 2 / 4)}
  found = optim.rates(roles, state | {"reference": params})
  assert found == {"policy/learning_rate": pytest.approx(0.1 * 2 / 4)}  # the other made none


def test_a_forecast_does_not_count_what_will_not_come_again():
  said = io.StringIO()
  with Progress(100, "stage 1", interval=0.0, stream=said) as progress:
    time.sleep(0.5)
    progress.without(0.45)
    progress.update(10)
  rate = float(said.getvalue().splitlines()[0].split(", ")[1].removesuffix("/s"))
  assert 60 < rate <= 200


def test_a_device_that_fails_does_not_stop_the_clock(clock):
  class Broken:
    def block_until_ready(self):
      raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")

  steps = clock.around(Steps(policy=Broken, model=model()))
  steps.policy()
  assert clock.figures(1, 1.0) is not None
  assert "step clock" in [thread.name for thread in threading.enumerate()]

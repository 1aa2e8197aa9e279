"""What the parts of a bench share: how they speak, clocks, memory, the chip's peak."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

from rmsd_jax.core import accelerators

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Out:
  """Where a part's lines go."""

  name: str
  trace: str = ""  # folder for compiled programs and the seconds of each kernel; "": none

  def say(self, line: str, ok: bool = True) -> None:
    print(f"[{self.name}] {line}{'' if ok else '   WRONG'}", flush=True)


def seconds_of(run: Callable, repeats: int) -> float:
  """Median seconds of a call, its device work included, after one that is not counted."""
  jax.block_until_ready(run())
  taken = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(run())
    taken.append(time.perf_counter() - began)
  return statistics.median(taken)


def peak_bytes() -> int:
  """Most device memory that this process has held so far; 0 where the backend does not say."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def peak_flops() -> float:
  """bfloat16 peak of the device by its data sheet; NaN for one that is not in the table."""
  return accelerators.peak_flops(jax.devices()[0].device_kind) or float("nan")


def device(out: Out) -> dict:
  """Says and returns what this runs on."""
  found = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
  out.say(f"jax {found['jax']}, {found['device']}")
  return found

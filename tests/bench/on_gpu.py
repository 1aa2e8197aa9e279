"""What one GPU makes of our programs: right, how fast, how large. No downloads, some minutes.

    python -m tests.bench.on_gpu                     all parts, Qwen3-VL-2B from random weights
    python -m tests.bench.on_gpu --size tiny         the same at toy sizes, on any device
    python -m tests.bench.on_gpu --parts attention,rl@0.3 --json found.json

Needs jax for the device, flax, optax, transformers, safetensors, absl-py, etils, psutil, tqdm, and
the small packages ml_collections and jiwer (with rapidfuzz); none of grain, tensorflow-datasets, av
and orbax. torch is used where it is there.

Each part runs in a process of its own, so that memory is its own and a part that fails, or takes
longer than what is left of --minutes, does not stop the others. Parts:

    attention       cuDNN and XLA paths against the dense oracle, values and gradients; seconds
    parity          a small model: logits and an SFT step against the CPU's, fp32 and bfloat16
    sft             stage 1's step: seconds, tokens/s, share of the chip's peak, peak memory
    rl              rollouts, discriminator and policy step, as far as memory allows
    torch_sft       transformers + torch: the same model, rows and update as `sft`
    torch_rollouts  transformers' generate: the same prompts, samples and lengths as `rl`

Every response is T tokens long, or with @0.3 behind a part's name about 0.3 T on average: the
rollouts then end by a token of which there are as many as that takes.

"plan" is what XLA planned for the program before it ran, as `rmsd_jax.compile` prints it. A share
of the peak counts the FLOPs of rmsd_jax.compile.cost. With --trace FOLDER the compiled programs are
written there, and the seconds of each kernel go to the JSON.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
SIZES = ("2b", "tiny")  # of tests.bench.random_model
# Part -> its module, imported in the part's own process: this one needs neither jax nor torch.
PARTS = {
  "attention": "gpu_parity",
  "parity": "gpu_parity",
  "sft": "gpu_steps",
  "rl": "gpu_steps",
  "torch_sft": "gpu_torch",
  "torch_rollouts": "gpu_torch",
}
ALIKE = ("attention", "parity")  # whatever the lengths


def run_part(name: str, size: str, out: str, trace: str) -> None:
  """One part in this process; its figures go to the file `out`."""
  from tests.bench import measure, random_model

  part, _, mean = name.partition("@")
  module = importlib.import_module(f"tests.bench.{PARTS[part]}")
  said = measure.Out(name, trace)
  found = {} if part.startswith("torch") else measure.device(said)
  sizes = random_model.SIZES[size]._replace(mean=float(mean or 0))
  found |= getattr(module, part)(sizes, said)
  pathlib.Path(out).write_text(json.dumps(_plain(found), allow_nan=False))


def _is_part(name: str) -> bool:
  """Whether it is a part, with or without a mean length in (0, 1] behind it."""
  part, at, mean = name.partition("@")
  has_lengths = part not in ALIKE and bool(re.fullmatch(r"0?\.\d+|1", mean))
  return part in PARTS and (has_lengths or not at)


def _plain(found):
  """Numbers that JSON does not know (a share of an unknown peak) are null."""
  if isinstance(found, dict):
    return {name: _plain(value) for name, value in found.items()}
  return None if isinstance(found, float) and not math.isfinite(found) else found


def _fine(found: dict) -> bool:
  """Whether nothing in a part's figures is marked as wrong."""
  inner = [_fine(value) for value in found.values() if isinstance(value, dict)]
  return found.get("ok", True) and all(inner)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=SIZES, default="2b", help="default: %(default)s")
  parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
  parser.add_argument("--json", default="", help="file for all figures")
  parser.add_argument("--minutes", type=float, default=8.0, help="for all; default: %(default)s")
  parser.add_argument("--trace", default="", metavar="FOLDER", help="for programs and kernels")
  parser.add_argument("--part", help=argparse.SUPPRESS)
  parser.add_argument("--out", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.part:
    run_part(options.part, options.size, options.out, options.trace)
    return
  names = options.parts.split(",")
  if unknown := [name for name in names if not _is_part(name)]:
    lengths = f"all but {' and '.join(ALIKE)} also with a mean length behind them, such as rl@0.3"
    parser.error(f"unknown parts {', '.join(unknown)}; choose of {', '.join(PARTS)}; {lengths}")
  ends = time.monotonic() + 60 * options.minutes
  # Most of the memory, taken as it is needed: the default keeps a quarter back.
  environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"} | os.environ
  found: dict[str, dict] = {}
  with tempfile.TemporaryDirectory() as folder:
    for name in names:
      out = pathlib.Path(folder, f"{name}.json")
      found[name] = _part_apart(name, options, out, ends - time.monotonic(), environment)
      if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=1))
  bad = [name for name, figures in found.items() if not _fine(figures)]
  print("all parts fine" if not bad else f"not fine: {', '.join(bad)}", flush=True)
  sys.exit(bool(bad))


def _part_apart(name: str, options, out: pathlib.Path, seconds: float, environment: dict) -> dict:
  """Runs a part in a process of its own: its figures, or why there are none."""
  if name.startswith("torch") and importlib.util.find_spec("torch") is None:
    return {"left_out": "torch is not installed"}
  if seconds <= 0:
    print(f"[{name}] left out: no time", flush=True)
    return {"ok": False, "fault": "no time was left"}
  command = [sys.executable, "-m", "tests.bench.on_gpu", "--part", name, "--size", options.size]
  command += ["--out", str(out), "--trace", options.trace]
  began = time.monotonic()
  try:
    subprocess.run(command, check=True, timeout=seconds, env=environment, cwd=ROOT)
  except subprocess.TimeoutExpired:
    print(f"[{name}] stopped after {seconds:.0f} s", flush=True)
    return {"ok": False, "fault": f"stopped after {seconds:.0f} s"}
  except subprocess.CalledProcessError as error:
    print(f"[{name}] failed, exit status {error.returncode}", flush=True)
    return {"ok": False, "fault": f"exit status {error.returncode}; see its output"}
  return json.loads(out.read_text()) | {"part_seconds": time.monotonic() - began}


if __name__ == "__main__":
  main()

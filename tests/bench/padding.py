"""What padding costs at the lengths that published video reasoners write, and how many sizes occur.

    python -m tests.bench.padding [STEPS]      500 steps by default: some minutes

Rows are planned as the 4B model's on TPU: 128 prompts of a bucket of 2,304 + 1,024 tokens, 8
rollouts, 4 teacher responses, dealt to the shards by the teacher's lengths; with the default
row_tokens, for which the bars are, and with those of the 4B presets, whose memory is short.
Overhead is planned FLOPs over those of the tokens that exist.

Axes: B prompts, R responses, 8 rollouts before 4 of the teacher.
"""

import sys

import jax.numpy as jnp
import numpy as np

from rmsd_jax import cli
from rmsd_jax.compile import cost
from rmsd_jax.compile.programs import response_lengths
from rmsd_jax.core import packing
from rmsd_jax.models.config import PRESETS
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.training import pieces

B, P, T, N, K = 128, 2304, 1024, 8, 4
MOST = cli.load_config(str(cli.CONFIGS / "default.py")).row_tokens
PRESETS_MOST = {
  program: cli.load_config(str(cli.CONFIGS / f"qwen3vl_4b_{stage}.py")).row_tokens
  for program, stage in (("policy", "rl"), ("discriminator", "rl"), ("sft", "sft"))
}
MODEL = Qwen3VL(PRESETS["4b"], dtype=jnp.bfloat16, attention="splash")
RESPONSES = {"policy": slice(0, N), "discriminator": slice(0, N + K), "sft": slice(0, 1)}

MOST_SIZES = 10  # of a program over 500 steps

# Program, shards, mean response as a share of T, share of image prompts, most overhead.
BARS = [
  ("policy", 16, 0.15, 0.0, 1.40),
  ("policy", 16, 0.3, 0.0, 1.25),
  ("policy", 16, 0.5, 0.0, 1.20),
  ("policy", 16, 0.3, 0.4, 1.45),
  ("policy", 64, 0.3, 0.0, 1.40),
  ("discriminator", 16, 0.15, 0.0, 1.40),
  ("discriminator", 16, 0.3, 0.0, 1.25),
  ("discriminator", 16, 0.5, 0.0, 1.20),
  ("discriminator", 16, 0.3, 0.4, 1.45),
  ("discriminator", 64, 0.3, 0.0, 1.40),
  ("sft", 16, 0.15, 0.0, 1.20),
  ("sft", 16, 0.3, 0.0, 1.20),
  ("sft", 16, 0.5, 0.0, 1.20),
]


def lengths(rng, mean: float, images: float) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of the prompts [B], of which those of images are short, and responses [B, R]."""
  response_BR = response_lengths(rng, B, N + K, mean, T)
  prompt_B = rng.integers(1950, 2290, B)
  picture_B = rng.random(B) < images
  return np.where(picture_B, rng.integers(300, 600, B), prompt_B), response_BR


def work(program: str, size: cost.Size) -> float:
  if program == "discriminator":
    return cost.discriminator(MODEL.config, size, "all").total
  return getattr(cost, program)(MODEL.config, size, "all", 2048).total


def overhead(program: str, shards: int, mean: float, images: float, steps: int, most: int = MOST):
  """Planned FLOPs over those of the tokens that exist, averaged over steps, and the sizes."""
  rng = np.random.default_rng(4)
  ratios, shapes = [], set()
  for _ in range(steps):
    prompt_B, response_BR = lengths(rng, mean, images)
    order = packing.deal(prompt_B + 2 * response_BR[:, N:].sum(1), shards)
    prompt_B, response_BR = prompt_B[order], response_BR[order, RESPONSES[program]]
    sizes = pieces.sizes_of(MODEL, P, T, response_BR.shape[1], most)
    plan = packing.plan(prompt_B, response_BR.sum(1), shards, sizes, MODEL.row_cost)
    shapes |= {(piece.P, piece.W, piece.deep) for piece in plan}
    tokens = prompt_B.sum() + response_BR.sum()
    pairs = cost.pairs(prompt_B, response_BR)
    real = cost.Size(tokens, response_BR.sum(), pairs, longest=10**6)  # logits in chunks, both
    planned = cost.size(plan, prompt_B, response_BR)._replace(longest=10**6)
    ratios.append(work(program, planned) / work(program, real))
  return float(np.mean(ratios)), shapes


def main() -> None:
  steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
  print(f"{steps} steps\n{'':<34}{'default rows':>16}        {'presets':>16}")
  print("program        shards  mean images  overhead  sizes   bar  row_tokens overhead  sizes")
  for program, shards, mean, images, bar in BARS:
    of = (program, shards, mean, images, steps)
    (ratio, shapes), (preset, its) = overhead(*of), overhead(*of, PRESETS_MOST[program])
    cells = f"{program:<14} {shards:>6} {mean:>5} {images:>6}  {ratio:>8.3f} {len(shapes):>6}"
    cells += f" {bar:>5.2f}  {PRESETS_MOST[program]:>10} {preset:>8.3f} {len(its):>6}"
    print(cells, flush=True)


if __name__ == "__main__":
  main()

"""What several questions about one clip could share: its encoding, and their common beginning.

    python -m tests.bench.shared_clips [--questions 3]

FLOPs of the 4B model from sizes alone, and seconds of a small model on this device, for three ways
of answering the questions: each by itself, as `evaluate` does; with the clip encoded once; with the
words before the question (the clip among them) prefilled once, too. All three give the same hidden
states, which is checked.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from rmsd_jax.compile import cost
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import prompts
from rmsd_jax.models import config as config_lib
from rmsd_jax.models.student import Qwen3VL, Visual
from tests.bench.against_torch import TOKENS, full_case

TAIL = 128  # tokens of a question with its options
CLIPS = {"paper-64f": 1024, "vlmevalkit-64f": 3072}  # patches of a pair of the 64 frames
PAIRS = 4  # of the small model's clip, of 12 x 12 visual tokens
SMALL = config_lib.ModelConfig(
  config_lib.TextConfig(3, 256, 4, 2, 768, vocab=151_936),
  config_lib.VisionConfig(3, 128, 2, 512, 256, table=24, deepstack=(0, 1, 2)),
)


def flops(preset: str, patches: int, questions: int) -> str:
  """Of media and prompts, without the replies, which are nothing beside them."""
  c = config_lib.PRESETS[preset]
  head = 32 * (patches // 4 + 12) + 32  # a time stamp before each pair
  vision = cost.vision(c.vision, 32, patches).total
  run = lambda tokens, pairs: cost.forward(c, cost.Size(tokens, 0, pairs, 0), False).total
  whole = head + TAIL
  alone = run(whole, whole * (whole + 1) / 2)
  tails = TAIL * head + TAIL * (TAIL + 1) / 2
  together = run(head + questions * TAIL, head * (head + 1) / 2 + questions * tails)
  each = questions * (vision + alone)
  return (
    f"{preset} {head:,} tokens: encoding {vision / 1e12:.0f}, prefill {alone / 1e12:.0f} TFLOP; "
    f"of {questions} questions' work remain {(vision + questions * alone) / each:.2f} with one "
    f"encoding, {(vision + together) / each:.2f} with one prefill, too"
  )


def small_groups(questions: int):
  """(a prompt for each question, one prompt with the questions as its responses)."""
  case = full_case(SMALL, (PAIRS, 12, 12), 700, seed=0)
  v = SMALL.vision
  layout = prompts.Layout(v.patch, v.merge, v.temporal, 0)
  tails_RT = np.random.default_rng(1).integers(0, 100_000, (questions, TAIL)).astype(np.int32)
  patches = [(np.concatenate(case.prompt.patches), case.grids[0])]
  of = lambda ids_P: prompts.from_arrays(ids_P, patches, (TOKENS.video,))
  each = [of(np.concatenate([case.prompt.ids_P, tail_T])) for tail_T in tails_RT]
  sizes = (PAIRS, 4 * 144)
  alone = prompts.collate(each, layout, Bucket(700 + TAIL, 1, *sizes))
  one = prompts.collate([of(case.prompt.ids_P)], layout, Bucket(700, TAIL, *sizes))
  return alone, one.with_responses(tails_RT[None], np.full((1, questions), TAIL, np.int32))


def seconds(run, *arguments) -> tuple[float, np.ndarray]:
  """The median of three calls, and what they give."""
  last = jax.block_until_ready(run(*arguments))
  taken = []
  for _ in range(3):
    began = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    taken.append(time.perf_counter() - began)
  return float(np.median(taken)), np.asarray(last)


def measured(questions: int) -> str:
  model = Qwen3VL(SMALL)
  params = jax.jit(model.init)(jax.random.key(0))
  alone, together = (jax.tree.map(jnp.asarray, groups) for groups in small_groups(questions))

  @jax.jit
  def each(params, groups):
    return model.prefill(params, groups, 1, 1)[0]

  @jax.jit
  def encoded_once(params, groups):
    one = jax.tree.map(lambda x: x[:1], groups)
    visual = jax.tree.map(lambda x: jnp.repeat(x, questions, 0), model.encode(params, one))
    return model.prefill(params, groups, 1, 1, Visual(visual.tokens_BVD, visual.deep_BnVD))[0]

  @jax.jit
  def prefilled_once(params, groups):
    return model(params, groups)[1][0, :, -1]

  base, wanted = seconds(each, params, alone)
  lines = [f"small model, {questions} questions: each by itself {base:.2f} s"]
  for name, run, groups in (
    ("encoded", encoded_once, alone),
    ("prefilled", prefilled_once, together),
  ):
    taken, got = seconds(run, params, groups)
    apart = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert apart < 1e-3, apart
    lines.append(f"{name} once {taken:.2f} s ({taken / base:.2f}; states differ by {apart:.0e})")
  return ", ".join(lines)


def main() -> None:
  command = argparse.ArgumentParser(description=__doc__)
  command.add_argument("--questions", type=int, default=3)
  questions = command.parse_args().questions
  for name, patches in CLIPS.items():
    print(f"{name}: {flops('4b', patches, questions)}")
  print(measured(questions))


if __name__ == "__main__":
  main()

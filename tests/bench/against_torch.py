"""The same small Qwen3-VL, batch and labels here and in transformers + torch, on the CPU in fp32.

    python -m tests.bench.against_torch               SFT step and sampling, ratios of paired rounds
    python -m tests.bench.against_torch --memory      peak memory of a step, each in its own process

8 layers of width 512, vocabulary 151,936; prompts of up to 288 tokens (64 of them a clip's),
responses of up to 128, in the proportion of the presets' 2,304 and 1,024. With --mean lengths are
as the plans of rmsd_jax.compile have them: torch pads a batch to its longest prompt and its longest
response, as its users do. Responses are sampled until one of some thousand tokens is drawn, so that
they are as long on average. Both learn the text weights only. Ours recomputes layers in the
backward pass, as the presets do. Memory is the largest resident size of a process that imports its
own framework alone and takes two steps; programs that were compiled before are read from disk, as
when a run resumes.
"""

import argparse
import functools
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from rmsd_jax import convert
from rmsd_jax.compile.programs import response_lengths
from rmsd_jax.core import named, sharding
from rmsd_jax.data import prompts
from rmsd_jax.method import losses
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import layers
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts.generate import generate
from rmsd_jax.training import optim, pieces

TOKENS = convert.Tokens(151_655, 151_656, 151_652, 151_653)
TOKEN_IDS = {  # of config.json
  "image_token_id": TOKENS.image,
  "video_token_id": TOKENS.video,
  "vision_start_token_id": TOKENS.start,
  "vision_end_token_id": TOKENS.end,
  "eos_token_id": 151_645,
  "pad_token_id": 151_643,
}
CONFIG = config_lib.ModelConfig(
  config_lib.TextConfig(8, 512, 8, 4, 1536, head=64, sections=(12, 10, 10)),
  config_lib.VisionConfig(6, 256, 4, 1024, 512, table=16, deepstack=(1, 3, 5)),
)
ROWS, PROMPT, RESPONSE, PAIRS = 8, 288, 128, 4
RATE = 1e-4
# Of their batches, what has a place for each token, and what stands in padding.
BY_TOKEN = {"input_ids": 151_643, "mm_token_type_ids": 0, "attention_mask": 0}


def make_rows(rows: int, mean: float) -> tuple[list[convert.Case], list[np.ndarray]]:
  """Prompts with a clip of 4 frame pairs of 4 x 4 visual tokens, and the tokens of a response.

  Args:
    mean: of the responses' lengths, as a share of RESPONSE; 0: prompts and responses are full.
  """
  rng = np.random.default_rng(9)
  least = math.ceil(0.85 * PROMPT) if mean else PROMPT
  prompts_B = rng.integers(least, PROMPT + 1, rows)
  length_B = response_lengths(rng, rows, 1, mean, RESPONSE)[:, 0] if mean else [RESPONSE] * rows
  cases = [full_case(CONFIG, (PAIRS, 4, 4), n, seed) for seed, n in enumerate(prompts_B)]
  return cases, [rng.integers(0, 100_000, n).astype(np.int32) for n in length_B]


def full_case(
  config: config_lib.ModelConfig, clip: tuple[int, int, int], tokens: int, seed: int
) -> convert.Case:
  """A prompt of exactly `tokens` tokens: one clip, then random text.

  Args:
    clip: frame pairs, rows and columns of visual tokens.
  """
  case = convert.make_case(config, TOKENS, [("video", clip)], seed)
  more = np.random.default_rng(seed).integers(0, 100_000, tokens - len(case.prompt.ids_P))
  ids_P = np.concatenate([case.prompt.ids_P, more]).astype(np.int32)
  patches = np.concatenate(case.prompt.patches), case.grids[0]
  return case._replace(prompt=prompts.from_arrays(ids_P, [patches], (TOKENS.video,)))


def groups_of(cases):
  v = CONFIG.vision
  layout = prompts.Layout(v.patch, v.merge, v.temporal, 0)
  bucket = prompts.smallest_bucket([case.prompt for case in cases], v.merge)
  return prompts.collate([case.prompt for case in cases], layout, bucket._replace(prompt=PROMPT))


def their_batch(cases, responses=()) -> dict:
  """All rows in one batch of torch tensors: prompts padded on the left, behind them the responses,
  padded on the right."""
  import torch  # in functions, so that a process that measures our memory does without

  rows = [convert.their_inputs(case, TOKENS) for case in cases]
  batch = {key: torch.cat([row[key] for row in rows]) for key in rows[0] if key not in BY_TOKEN}
  longest = max(row["input_ids"].shape[1] for row in rows)
  room = max(map(len, responses), default=0)
  for name, fill in BY_TOKEN.items():
    batch[name] = torch.full((len(rows), longest + room), fill)
    for b, row in enumerate(rows):
      ids = row[name][0] if name in row else 1
      batch[name][b, longest - row["input_ids"].shape[1] : longest] = ids
      if len(responses) and name != "mm_token_type_ids":
        tokens = torch.tensor(responses[b]).long() if name == "input_ids" else 1
        batch[name][b, longest : longest + len(responses[b])] = tokens
  if batch["attention_mask"].all():
    del batch["attention_mask"]  # which would only cost them time
  return batch


def our_step(cases, responses):
  model = Qwen3VL(CONFIG, attention="split", remat="all")
  params = jax.jit(model.init)(jax.random.key(0))
  student, frozen = named.split(params, ["text/.*"])
  settings = ConfigDict(
    dict(learning_rate=RATE, warmup_share=0.0, schedule="constant", b1=0.9, b2=0.999,
         weight_decay=0.01, clip_norm=1.0, moment_dtype="float32",
         name="adamw")
  )  # fmt: skip
  tx = optim.make(settings, 100)
  state = [student, jax.jit(tx.init)(student)]
  length_B1 = np.array([[len(response)] for response in responses], np.int32)
  padded_B1T = np.stack([[np.pad(ids, (0, RESPONSE - len(ids)))] for ids in responses])
  groups = groups_of(cases).with_responses(padded_B1T, length_B1)

  def loss_fn(student, rows, visual):
    params = named.join(frozen, student)
    hidden_XWD = losses.predictors(model.hidden(params, rows, visual), rows)
    table_VD = model.unembedding(params)
    logp_XW = losses.token_logps(hidden_XWD, table_VD, rows.targets_XW, 1.0, rows.targets_XW.size)
    loss, count = losses.sft(logp_XW, rows.mask_XW)
    return loss, optim.Figures(count, {"loss": loss})

  def update(student, opt_state, grads, figures):
    grads, metrics = optim.averaged(grads, figures)
    student, opt_state, _ = optim.apply(tx, grads, opt_state, student)
    return student, opt_state, metrics["loss"]

  # The programs of the trainer, compiled with its options.
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
  encode = jit(lambda groups: model.encode(params, groups))
  nothing = jit(optim.nothing)
  add = jit(functools.partial(optim.add, loss_fn), donate_argnums=1)
  update = jit(update, donate_argnums=(0, 1, 2))

  def run() -> float:
    visual = encode(groups)
    rows = pieces.rows_of(mesh, model, groups, 24_576)
    grads, figures = optim.over(
      rows, nothing(state[0]), lambda grads, piece: add(state[0], grads, piece, visual)
    )
    state[0], state[1], loss = update(*state, grads, figures)
    return float(loss)

  return run


def their_step(cases, responses, response_logits_only: bool):
  import torch

  model = their_model()
  for name, weight in model.named_parameters():
    weight.requires_grad_("visual" not in name)
  learned = [weight for weight in model.parameters() if weight.requires_grad]
  adam = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.01)
  batch, longest = their_batch(cases, responses), max(map(len, responses))
  keep = longest + 1 if response_logits_only else 0
  targets = torch.full((len(cases), longest), -100)
  for target, response in zip(targets, responses, strict=True):
    target[: len(response)] = torch.tensor(response).long()

  def run() -> float:
    adam.zero_grad(set_to_none=True)
    logits = model(**batch, logits_to_keep=keep, use_cache=False).logits[:, -longest - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learned, 1.0)
    adam.step()
    return float(loss)

  return run


def their_model():
  import torch
  from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

  raw = config_lib.to_hf(CONFIG, TOKEN_IDS)
  torch.manual_seed(0)
  return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**raw))


def ending_ids(vocab: int, length: float) -> list[int]:
  """Tokens to end a response at. Random weights draw all about alike and would hardly ever end: so
  many that a response has `length` tokens on average; none for 0."""
  return list(range(0, vocab, round(length))) if length else []


def our_sampler(cases, samples: int, mean: float):
  model = Qwen3VL(CONFIG, attention="split")
  params, groups = model.init(jax.random.key(0)), groups_of(cases)

  def run() -> int:
    out = generate(
      model, params, groups, jax.random.key(1), samples=samples, max_tokens=RESPONSE,
      stop_ids=tuple(ending_ids(CONFIG.text.vocab, mean * RESPONSE)), temperature=1.0,
    )  # fmt: skip
    return int(out.length_BR.sum())

  return run


def their_sampler(cases, samples: int, mean: float):
  import torch

  model, batch = their_model().eval(), their_batch(cases)
  ends = ending_ids(CONFIG.text.vocab, mean * RESPONSE) or None
  pad = BY_TOKEN["input_ids"]

  def run() -> int:
    with torch.no_grad():
      out = model.generate(
        **batch, do_sample=True, top_k=0, max_new_tokens=RESPONSE, eos_token_id=ends,
        min_new_tokens=0 if ends else RESPONSE, pad_token_id=pad, num_return_sequences=samples,
      )  # fmt: skip
    return int((out[:, batch["input_ids"].shape[1] :] != pad).sum())

  return run


def projection_floor(rows: int, repeats: int = 16) -> float:
  """Seconds of a projection of `rows` hidden states on the vocabulary, and nothing else."""
  table = jax.random.normal(jax.random.key(0), (CONFIG.text.vocab, CONFIG.text.width))
  hidden = jax.random.normal(jax.random.key(1), (rows, CONFIG.text.width))
  project = jax.jit(lambda h, t: layers.logits(h, t).max())
  jax.block_until_ready(project(hidden, table))
  began = time.perf_counter()
  for _ in range(repeats):
    jax.block_until_ready(project(hidden, table))
  return (time.perf_counter() - began) / repeats


def paired(ours, theirs, rounds: int, counted: bool = False) -> tuple[float, float, float]:
  """Medians of seconds of both and of their ratio (ours / theirs), rounds taken in turn; `counted`:
  of seconds over what a call returns, such as the tokens that it has sampled."""
  ours(), theirs()
  seconds = []
  for _ in range(rounds):
    pair = []
    for run in (ours, theirs):
      began = time.perf_counter()
      made = run()
      pair.append((time.perf_counter() - began) / (made if counted else 1))
    seconds.append((*pair, pair[0] / pair[1]))
  return tuple(statistics.median(column) for column in zip(*seconds, strict=True))


def peak_gb(which: str, mean: float) -> float:
  """Peak memory of two steps in a process of its own, the second of two alike."""
  command = [sys.executable, "-m", "tests.bench.against_torch", "--peak", which]
  command += ["--mean", str(mean)]
  with tempfile.TemporaryDirectory() as folder:
    cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for _ in range(2 if which == "ours" else 1):
      done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | cache
      )
  return float(done.stdout.split()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--mean", type=float, default=0.3, help="of the lengths; 0: all are full")
  parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
  parser.add_argument("--peak", choices=("ours", "theirs", "theirs_short"), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.peak != "ours":
    import torch

    torch.set_num_threads(2)
  cases, responses = make_rows(ROWS, options.mean)
  steps = {
    "ours": lambda: our_step(cases, responses),
    "theirs": lambda: their_step(cases, responses, False),
    "theirs_short": lambda: their_step(cases, responses, True),
  }
  if options.peak:
    step = steps[options.peak]()
    step(), step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return
  if options.memory:
    peaks = {name: peak_gb(name, options.mean) for name in steps}
    print(", ".join(f"{name} {peak:.2f} GB" for name, peak in peaks.items()))
    for name in ("theirs", "theirs_short"):
      print(f"ours / {name}: {peaks['ours'] / peaks[name]:.2f} (bar: 0.6 of the short)")
    return
  ours = steps["ours"]()
  for name in ("theirs", "theirs_short"):
    mine, other, ratio = paired(ours, steps[name](), options.rounds)
    print(
      f"SFT step: ours {mine:.2f} s, {name} {other:.2f} s: {ratio:.2f} (bar: 0.65 of the short)"
    )
  some, (R, mean) = make_rows(4, options.mean)[0], (8, options.mean)
  runs = our_sampler(some, R, mean), their_sampler(some, R, mean)
  mine, other, ratio = paired(*runs, max(1, options.rounds // 2), counted=True)
  print(f"sampling 4 x {R}: ours {1 / mine:.1f}, theirs {1 / other:.1f} tokens/s")
  print(f"{1 / ratio:.2f} times as fast (bar: at least 4)")
  print(f"floor: the vocabulary projection of a token of all takes {projection_floor(4 * R):.4f} s")


if __name__ == "__main__":
  main()

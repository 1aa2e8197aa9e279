"""Trains the tiny base: a Qwen3-VL of about one million parameters that can read the demo's clips.

It stands in for Qwen3-VL's pretraining: it learns to answer plain questions about clips and
pictures (rmsd_jax.demo.plain_texts) and never sees a task's format. The result is an ordinary
Hugging Face folder. Run once; the folder is part of the repository:

    python -m rmsd_jax.demo.base --out rmsd_jax/demo/tiny_base

A training row is one clip with R questions: the prompt group at work. The prompt is the user's turn
up to the clip; a "response" is a question, the turn's end and the reply, and only replies are
learned, so every row reads as R one-turn conversations.

Axes: B clips, R questions, P prompt tokens, T tokens of question and reply, F frame pairs, G cells,
D decoder width, n DeepStack levels.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from rmsd_jax import losses, masked, optim, sharding
from rmsd_jax.cli import Parser, run
from rmsd_jax.data import batch as batch_lib
from rmsd_jax.data import media, rows
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.processor import Processor, Prompt
from rmsd_jax.demo import tokenizer as tokenizer_lib
from rmsd_jax.demo import world
from rmsd_jax.demo.plain_texts import plain_texts
from rmsd_jax.generate import generate
from rmsd_jax.groups import Bucket
from rmsd_jax.metrics import Progress
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import hf
from rmsd_jax.models.student import Qwen3VL

TEXT = dict(
  layers=4, width=128, heads=4, kv_heads=2, mlp=256, head=32, theta=10_000.0, sections=(6, 5, 5)
)
VISION = dict(
  depth=2,
  width=64,
  heads=2,
  mlp=256,
  out=128,
  patch=world.CELL // 2,
  table=world.SIZE * 2 // world.CELL,
  deepstack=(0, 1),
)
TOKENS = {  # ids that config.json names
  "image_token_id": "<|image_pad|>",
  "video_token_id": "<|video_pad|>",
  "vision_start_token_id": "<|vision_start|>",
  "vision_end_token_id": "<|vision_end|>",
  "eos_token_id": "<|im_end|>",
  "pad_token_id": "<|endoftext|>",
}
BUCKET = Bucket(
  prompt=112, response=40, frames=world.SECONDS, patches=(world.SIZE * 2 // world.CELL) ** 2
)
CLIPS = 16  # per step
# Every fourth step has room for the longest texts; the others are short, so that little is padding.
SHAPES = ((40, 10), (40, 10), (40, 10), (60, 6))  # T, R
LEARNING_RATE = 2e-3
STILLS = 0.2  # share of pictures among the scenes
SAMPLING = media.Sampling(fps=2.0)


def model_config(vocabulary: int) -> config_lib.ModelConfig:
  return config_lib.ModelConfig(
    config_lib.TextConfig(vocab=-(-vocabulary // 8) * 8, **TEXT), config_lib.VisionConfig(**VISION)
  )


def write_folder(out: pathlib.Path) -> None:
  """The tokenizer, the config and the processor files of the new model; no weights yet."""
  tokens = tokenizer_lib.train(tokenizer_lib.corpus())
  tokenizer_lib.write(tokens, out)
  config = config_lib.to_hf(
    model_config(tokens.get_vocab_size()), {k: tokens.token_to_id(v) for k, v in TOKENS.items()}
  )
  (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class Reader:
  """Scenes as the model sees them: rendered, encoded as H.264 or PNG, decoded, cut into patches."""

  def __init__(self, folder: pathlib.Path, split: str, count: int, seed: int):
    self.processor = Processor.from_folder(
      folder, sampling=SAMPLING, video_pixels=(1, 1 << 30), image_pixels=(1, 1 << 30)
    )
    c = self.processor.video
    self.layout = rows.Layout(c.patch, c.merge, c.temporal, self.processor.tokenizer.pad)
    rng = np.random.default_rng(seed)
    self.scenes = [
      (world.make_still if rng.random() < STILLS else world.make_scene)(rng, split)
      for _ in range(count)
    ]
    with tempfile.TemporaryDirectory() as temporary:
      paths = [
        pathlib.Path(temporary) / world.media_name(s, str(i)) for i, s in enumerate(self.scenes)
      ]
      world.write_all(list(zip(paths, self.scenes, strict=True)))
      with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        self.prompts = list(pool.map(functools.partial(_read, self.processor), paths, chunksize=64))

  def batch(self, rng: np.random.Generator, clips: int, questions: int, T: int):
    """Returns groups with R = questions, learned bool [B, R, T], and labels int32 [2, B, F, G]."""
    chat = self.processor.tokenizer
    chosen = rng.integers(len(self.scenes), size=clips)
    ids_BRT = np.full((clips, questions, T), chat.pad, np.int32)
    length_BR = np.zeros((clips, questions), np.int32)
    learned_BRT = np.zeros((clips, questions, T), bool)
    labels = np.full((2, clips, BUCKET.frames, world.GRID**2), -1, np.int32)
    for b, index in enumerate(chosen):
      texts = plain_texts(self.scenes[index], rng)
      pairs = (self.encode(*texts[i]) for i in rng.permutation(len(texts)))
      fitting = (pair for pair in pairs if len(pair[0]) + len(pair[1]) <= T)
      for r, (asked, replied) in enumerate(itertools.islice(fitting, questions)):
        length_BR[b, r] = len(asked) + len(replied)
        ids_BRT[b, r, : length_BR[b, r]] = asked + replied
        learned_BRT[b, r, len(asked) : length_BR[b, r]] = True
      cells = world.cell_labels(self.scenes[index])
      labels[0, b, : len(cells.digit_FG)] = cells.digit_FG
      labels[1, b, : len(cells.colour_FG)] = cells.colour_FG
    groups = batch_lib.collate_prompts([self.prompts[i] for i in chosen], BUCKET, self.layout)
    return groups.with_responses(ids_BRT, length_BR), learned_BRT, labels

  def encode(self, question: str, reply: str) -> tuple[list[int], list[int]]:
    chat = self.processor.tokenizer
    return chat.encode_response(question)[:-1] + _turn(chat), chat.encode_response(reply)


def _read(processor: Processor, path: pathlib.Path) -> Prompt:
  """The user's turn up to and including the clip."""
  kind = "image" if path.suffix == ".png" else "video"
  prompt = processor([{"role": "user", "content": [{"type": kind, kind: str(path)}]}])
  head = len(prompt.ids_P) - len(_turn(processor.tokenizer))
  return dataclasses.replace(
    prompt, ids_P=prompt.ids_P[:head], is_visual_P=prompt.is_visual_P[:head]
  )


@functools.lru_cache(maxsize=1)
def _turn(chat: ChatTokenizer) -> list[int]:
  """What stands between a question and its reply: the end of one turn, the start of the next."""
  ids = chat.encode_messages([{"role": "user", "content": ""}])
  return ids[ids.index(chat.im_end) :]


def make_step(model: Qwen3VL, tx, steps: int):
  """The jitted training step: replies, and (fading out) what every cell shows."""

  def step(params, opt_state, count, groups, learned_BRT, labels):
    cells_weight = jnp.maximum(1.0 - 2.0 * count / steps, 0.02)

    def loss_fn(params, batch):
      groups, learned_BRT, labels = batch
      visual = model.encode(params["student"], groups)
      prompt_BPD, response_BRTD = model(params["student"], groups, visual)
      hidden = losses.predictors(prompt_BPD, groups.prompt_length_B, response_BRTD)
      logp_BRT = losses.token_logps(
        hidden, model.unembedding(params["student"]), groups.responses_BRT
      )
      (nll, tokens), _ = losses.sft(logp_BRT, learned_BRT)
      cells, right = _cells(params["cells"], visual, labels.swapaxes(0, 1))
      nll = nll / tokens  # one batch, no micro-batches: means may be added
      return (nll + cells_weight * cells, 1.0), (
        {"reply": nll, "cells": cells, "cells_right": right},
        None,
      )

    grads, metrics, _ = optim.gradients(
      loss_fn, params, (groups, learned_BRT, labels.swapaxes(0, 1)), 1
    )
    params, opt_state, health = optim.apply(tx, grads, opt_state, params)
    return params, opt_state, metrics | health

  return jax.jit(step, donate_argnums=(0, 1))


def _cells(heads: dict, visual, labels):
  """Mean cross-entropy of digits and colours read off each visual token, and the share right.

  The heads (one for the tokens, one for each DeepStack level) are thrown away after training.
  """
  levels = jnp.concatenate([visual.tokens_BVD[None], visual.deep_BnVD.swapaxes(0, 1)])
  logits = jnp.einsum("lBVD,lDC->lBVC", levels, heads["kernel"])
  digits = world.NO_DIGIT + 1
  loss, right = 0.0, True
  for part, target in ((logits[..., :digits], labels[0]), (logits[..., digits:], labels[1])):
    target_BV = target.reshape(target.shape[0], -1)
    real = target_BV >= 0
    picked = jnp.take_along_axis(
      jax.nn.log_softmax(part), jnp.maximum(target_BV, 0)[None, ..., None], -1
    )
    loss -= masked.mean(picked[..., 0], jnp.broadcast_to(real, picked.shape[:-1]))
    right &= part[0].argmax(-1) == target_BV
  shown = real & (labels[0].reshape(real.shape) != world.NO_DIGIT)
  return loss, masked.mean(right, shown)


def batches(reader: Reader, seed: int, steps: int) -> Iterator:
  """Batches made one ahead by a thread, while the devices compute."""

  def make(i: int):
    T, R = SHAPES[i % len(SHAPES)]
    return reader.batch(np.random.default_rng((seed, i)), CLIPS, R, T)

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(make, 0)
    for i in range(steps):
      ready, waiting = waiting.result(), pool.submit(make, i + 1)
      yield ready


def reading_score(
  model: Qwen3VL, params: dict, reader: Reader, clips: int = 200
) -> dict[str, float]:
  """Share of greedy replies that equal the right reply, for questions with one right wording."""
  asks = {
    "colour": lambda c: (f"What colour is the card with {c.digit}?", c.colour),
    "digit": lambda c: (f"Which digit is on the {c.colour} card?", str(c.digit)),
    "appears": lambda c: (f"When does the card with {c.digit} appear?", str(c.start)),
    "vanishes": lambda c: (f"When does the card with {c.digit} vanish?", str(c.end)),
    "place": lambda c: (f"Where is the card with {c.digit} first?", world.CELL_NAMES[c.cell]),
  }
  chat, T = reader.processor.tokenizer, 24
  run_ = jax.jit(
    lambda p, g: generate(
      model, p, g, jax.random.key(0), samples=1, tokens=T, end_id=chat.im_end, temperature=0.0
    )
  )
  right = {name: [] for name in asks}
  numbers = [i for i, scene in enumerate(reader.scenes) if not scene.still][:clips]
  for name, ask in asks.items():
    questions, answers = zip(*(ask(reader.scenes[i].cards[0]) for i in numbers), strict=True)
    prompts = [_asked(reader, i, q) for i, q in zip(numbers, questions, strict=True)]
    bucket = BUCKET._replace(prompt=BUCKET.prompt + 32)
    out = run_(params, batch_lib.collate_prompts(prompts, bucket, reader.layout))
    replies = zip(out.responses_BRT[:, 0], out.length_BR[:, 0], answers, strict=True)
    for ids, length, answer in replies:
      right[name].append(answer in chat.decode(np.asarray(ids)[: int(length)]))
  return {name: round(float(np.mean(hits)), 3) for name, hits in right.items()}


def _asked(reader: Reader, index: int, question: str) -> Prompt:
  prompt, (asked, _) = reader.prompts[index], reader.encode(question, "")
  ids = np.concatenate([prompt.ids_P, np.array(asked, np.int32)])
  visual = np.concatenate([prompt.is_visual_P, np.zeros(len(asked), bool)])
  return dataclasses.replace(prompt, ids_P=ids, is_visual_P=visual)


def train(folder: pathlib.Path, steps: int, scenes: int, seed: int, log) -> tuple[Qwen3VL, dict]:
  """Returns the model and its trained parameters; `log` is given a dict every 50 steps."""
  reader = Reader(folder, "train", scenes, seed)
  model = hf.load_model(folder, unroll=True)
  key, head_key = jax.random.split(jax.random.key(seed))
  levels, classes = 1 + len(VISION["deepstack"]), world.NO_DIGIT + 1 + world.NO_COLOUR + 1
  params = {
    "student": model.init(key),
    "cells": {"kernel": 0.02 * jax.random.normal(head_key, (levels, TEXT["width"], classes))},
  }
  settings = ConfigDict(
    dict(
      learning_rate=LEARNING_RATE,
      warmup_share=0.03,
      schedule="cosine",
      b1=0.9,
      b2=0.99,
      weight_decay=0.01,
      clip_norm=1.0,
      moment_dtype="float32",
    )
  )
  tx = optim.make(settings, steps)
  step, opt_state = make_step(model, tx, steps), jax.jit(tx.init)(params)
  with Progress(steps, "tiny base") as progress:
    for i, ready in enumerate(batches(reader, seed + 1, steps)):
      params, opt_state, metrics = step(params, opt_state, i, *ready)
      jax.block_until_ready(metrics)  # or the bar would show how fast steps are queued
      if i % 50 == 0 or i == steps - 1:
        values = {k: round(float(v), 4) for k, v in metrics.items()}
        log({"step": i, **values})
      progress.update(note=f"reply {values['reply']:.3f}, cells {values['cells_right']:.3f}")
  return model, params["student"]


def main(argv: Sequence[str] | None = None) -> None:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", required=True, help="the Hugging Face folder to write")
  parser.add_argument("--steps", type=int, default=1_000, help="of 16 clips (default 1000)")
  parser.add_argument("--scenes", type=int, default=8_000, help="training clips and pictures")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args(argv)
  out = pathlib.Path(options.out)
  write_folder(out)
  with open(out / "training.jsonl", "w", encoding="utf-8") as file:
    log = lambda line: print(json.dumps(line), file=file, flush=True)
    model, params = train(out, options.steps, options.scenes, options.seed, log)
    hf.save(out, params, out, dtype=ml_dtypes.bfloat16)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    held_out = Reader(out, "test", 400, options.seed + 2)
    scores = reading_score(model, hf.load(out, mesh), held_out)
    log({"held_out_clips_read": scores})
  print(f"wrote {out}; replies right on held-out clips: {scores}")


if __name__ == "__main__":
  run(main)

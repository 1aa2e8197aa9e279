"""Trains the tiny base: a Qwen3-VL of about one million parameters that can read the demo's clips.

It stands in for Qwen3-VL's pretraining: it learns to answer plain questions about clips and
pictures (rmsd_jax.demo.plain_texts) and never sees a task's format. The result is an ordinary
Hugging Face folder, part of the repository: made in four runs, each `--start`ed from the one
before. This makes one like it:

    python -m rmsd_jax.demo.base --out DIR
    python -m rmsd_jax.demo.base --out DIR --start DIR --steps 900 --lookups-first 300 --seed 3

A training row is one clip with R questions: the prompt group at work. The prompt is the user's turn
up to the clip; a "response" is a question, the turn's end and the reply, and only replies are
learned, so every row reads as R one-turn conversations.

Axes: B clips, R questions, P prompt tokens, T tokens of question and reply, F frame pairs, G cells,
D decoder width, n DeepStack levels, A attributes of a cell: digit, colour, row, column.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from rmsd_jax import cli
from rmsd_jax.core import masked, packed
from rmsd_jax.core.groups import Bucket
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import media, prompts
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.processor import Processor
from rmsd_jax.data.prompts import Prompt
from rmsd_jax.demo import tokenizer as tokenizer_lib
from rmsd_jax.demo import world
from rmsd_jax.demo.plain_texts import Lookup, lookups, plain_texts
from rmsd_jax.demo.questions import LETTERS
from rmsd_jax.method import losses
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import hf, layers
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts.generate import generate
from rmsd_jax.training import optim

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
# (shortest, longest text in tokens, R) of the steps, in turn. Two thirds of the texts are short;
# texts of like length share a step, so that little is padding.
SHAPES = ((0, 26, 16), (27, 60, 7), (0, 60, 7))
LOOKUPS = 2  # the shape whose texts are lookups, of which the letter alone is learned
STILLS = 0.2  # share of pictures among the scenes
CARDS = (1, 2, 2, 3, 3, 3)  # drawn from; one card alone teaches nobody to find the one asked for
# What a visual token is taught to say of its cell: one word of each list, each one token.
WORDS = (
  (*map(str, range(10)), " none"),  # in the order of world.cell_labels
  (*(f" {name}" for name in world.COLOUR_NAMES), " none"),
  tuple(f" {name}" for name in world.ROW_NAMES),
  tuple(f" {name}" for name in world.COLUMN_NAMES),
)
SAMPLING = media.Sampling(fps=2.0)


def model_config(vocabulary: int) -> config_lib.ModelConfig:
  return config_lib.ModelConfig(
    config_lib.TextConfig(vocab=-(-vocabulary // 8) * 8, **TEXT), config_lib.VisionConfig(**VISION)
  )


def write_folder(out: pathlib.Path) -> None:
  """The tokenizer, the config and the processor files of the new model; no weights yet."""
  tokens = tokenizer_lib.train(tokenizer_lib.corpus())
  tokenizer_lib.write_folder(tokens, out)
  config = config_lib.to_hf(
    model_config(tokens.get_vocab_size()), {k: tokens.token_to_id(v) for k, v in TOKENS.items()}
  )
  (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class Reader:
  """Scenes as the model sees them: rendered, encoded as H.264 or PNG, decoded, cut into patches."""

  def __init__(self, folder: pathlib.Path, split: str, count: int, seed: int):
    self.processor = Processor(
      folder, sampling=SAMPLING, video_pixels=(1, 1 << 30), image_pixels=(1, 1 << 30)
    )
    rng = np.random.default_rng(seed)
    self.scenes = [
      (world.make_still if rng.random() < STILLS else world.make_scene)(
        rng, split, cards=int(rng.choice(CARDS))
      )
      for _ in range(count)
    ]
    with tempfile.TemporaryDirectory() as temporary:
      paths = [
        pathlib.Path(temporary) / world.media_name(s, str(i)) for i, s in enumerate(self.scenes)
      ]
      world.write_all(list(zip(paths, self.scenes, strict=True)))
      with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        self.prompts = list(pool.map(functools.partial(_read, self.processor), paths, chunksize=64))

  def batch(self, rng: np.random.Generator, clips: int, shape: int):
    """Texts about random clips, of one of SHAPES.

    Returns groups with R = questions, learned bool [B, R, T], and labels int32 [A, B, F, G]."""
    shortest, T, questions = SHAPES[shape]
    chat = self.processor.tokenizer
    chosen = rng.integers(len(self.scenes), size=clips)
    ids_BRT = np.full((clips, questions, T), chat.pad, np.int32)
    length_BR = np.zeros((clips, questions), np.int32)
    learned_BRT = np.zeros((clips, questions, T), bool)
    labels = np.full((len(WORDS), clips, BUCKET.frames, world.GRID**2), -1, np.int32)
    for b, index in enumerate(chosen):
      # Drawn one by one until R of them fit, since a clip has more texts than a row takes.
      if shape == LOOKUPS:
        pairs = (self.encode_lookup(one) for one in lookups(rng, 3 * questions))
      else:
        texts = plain_texts(self.scenes[index], rng)
        pairs = (self.encode(*texts[i]) for i in rng.permutation(len(texts)))
      fitting = (pair for pair in pairs if shortest <= len(pair[0]) + len(pair[1]) <= T)
      for r, (asked, replied) in enumerate(itertools.islice(fitting, questions)):
        length_BR[b, r] = len(asked) + len(replied)
        ids_BRT[b, r, : length_BR[b, r]] = asked + replied
        learned_BRT[b, r, len(asked) : length_BR[b, r]] = True
      cells = world.cell_labels(self.scenes[index])
      row_G, column_G = np.divmod(np.arange(world.GRID**2), world.GRID)
      for attribute, label in enumerate((cells.digit_FG, cells.colour_FG, row_G, column_G)):
        labels[attribute, b, : len(cells.digit_FG)] = label
    groups = prompts.collate([self.prompts[i] for i in chosen], self.processor.layout, BUCKET)
    return groups.with_responses(ids_BRT, length_BR), learned_BRT, labels

  def encode(self, question: str, reply: str) -> tuple[list[int], list[int]]:
    chat = self.processor.tokenizer
    return chat.encode_response(question)[:-1] + _turn(chat), chat.encode_response(reply)

  def encode_lookup(self, lookup: Lookup) -> tuple[list[int], list[int]]:
    """What is given, up to what the reply says before the letter; and the letter."""
    asked, reply = self.encode(lookup.asked, lookup.said + lookup.letter)
    # Its token is the last one before the turn's end; a space before it is a token of its own.
    return asked + reply[:-2], reply[-2:-1]


def _read(processor: Processor, path: pathlib.Path) -> Prompt:
  """The user's turn up to and including the clip."""
  kind = "image" if path.suffix == ".png" else "video"
  prompt = processor.prompt([{"role": "user", "content": [{"type": kind, kind: str(path)}]}])
  # Without the end of the user's turn: R different questions follow there.
  head = len(prompt.ids_P) - len(_turn(processor.tokenizer))
  return dataclasses.replace(
    prompt, ids_P=prompt.ids_P[:head], is_visual_P=prompt.is_visual_P[:head]
  )


@functools.lru_cache(maxsize=1)
def _turn(chat: ChatTokenizer) -> list[int]:
  """What stands between a question and its reply: the end of one turn, the start of the next."""
  # Cut out of an empty message's ids, so that the template alone decides what stands there.
  ids = chat.encode_messages([{"role": "user", "content": ""}])
  return ids[ids.index(chat.im_end) :]


def make_step(model: Qwen3VL, tx, steps: int, words: list[np.ndarray]):
  """The jitted training step: replies, and (fading out) what every cell shows and where it is.

  words: the token ids of WORDS.
  """

  def step(params, opt_state, count, groups, learned_BRT, labels):
    # Half of the training teaches the tower to read, then the texts take over; 2 % stay. A
    # prototype without this still read digits at chance after 465 steps.
    cells_weight = jnp.maximum(1.0 - 2.0 * count / steps, 0.02)

    def loss_fn(params):
      visual = model.encode(params, groups)
      table_VD = model.unembedding(params)
      rows = packed.padded(groups)  # replies of a batch are about as long as each other
      hidden_XWD = losses.predictors(model.hidden(params, rows, visual), rows)
      logp_XW = losses.token_logps(hidden_XWD, table_VD, rows.targets_XW)
      logp_BRT = logp_XW.reshape(learned_BRT.shape)
      # Each reply counts alike: the long lists would drown the one word that a lookup must find.
      nll = -masked.mean(masked.mean(logp_BRT, learned_BRT, -1), learned_BRT.any(-1))
      cells, right = _cells([table_VD[ids] for ids in words], visual, labels)
      loss = nll + cells_weight * cells
      return loss, {"loss": loss, "reply": nll, "cells": cells, "cells_right": right}

    grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
    params, opt_state, health = optim.apply(tx, grads, opt_state, params)
    return params, opt_state, metrics | health

  return jax.jit(step, donate_argnums=(0, 1))


def _cells(words: list[jax.Array], visual, labels_ABFG):
  """Mean cross-entropy of each cell's words read off its visual token, and the share all right.

  The words' own embeddings read (one reading for the tokens, one for each DeepStack level), so the
  visual tokens come to speak the text's language, and a question's words find them.
  """
  # [1 + n, B, V, D], normed as the decoder's layers norm what they read.
  levels = jnp.concatenate([visual.tokens_BVD[None], visual.deep_BnVD.swapaxes(0, 1)])
  levels = layers.rms_norm(levels, jnp.ones(levels.shape[-1]), 1e-6)
  labels_ABV = labels_ABFG.reshape(*labels_ABFG.shape[:2], -1)
  real = labels_ABV[0] >= 0
  loss = 0.0
  right = True
  for table_CD, target_BV in zip(words, labels_ABV, strict=True):
    # C is the few words that can be right, not the vocabulary.
    logits = jnp.einsum("lBVD,CD->lBVC", levels, table_CD)
    picked = jnp.take_along_axis(
      # -1, a frame pair that is padding, is masked below.
      jax.nn.log_softmax(logits),
      jnp.maximum(target_BV, 0)[None, ..., None],
      -1,
    )
    loss -= masked.mean(picked[..., 0], jnp.broadcast_to(real, picked.shape[:-1]))
    right &= logits[0].argmax(-1) == target_BV
  return loss, masked.mean(right, real & (labels_ABV[0] != world.NO_DIGIT))


def batches(reader: Reader, seed: int, steps: int, lookups_first: int) -> Iterator:
  """Batches made one ahead by a thread, while the devices compute.

  The first `lookups_first` are lookups alone: among other texts the base does not find out how a
  letter is looked up (the loss stays at that of four letters), once it has it does not forget.
  """

  def make(i: int):
    shape = LOOKUPS if i < lookups_first else i % len(SHAPES)
    return reader.batch(np.random.default_rng((seed, i)), CLIPS, shape)

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(make, 0)
    for i in range(steps):
      ready = waiting.result()
      waiting = pool.submit(make, i + 1)
      yield ready


def reading_score(model: Qwen3VL, reader: Reader, clips: int = 200):
  """Returns params -> share of greedy replies that hold the right answer, by kind of question."""
  asks = {
    "colour": lambda c: (f"What colour is the card with {c.digit}?", c.colour),
    "digit": lambda c: (f"Which digit is on the {c.colour} card?", str(c.digit)),
    "appears": lambda c: (f"When does the card with {c.digit} appear?", f"at {c.start}"),
    "vanishes": lambda c: (f"When does the card with {c.digit} vanish?", f"at {c.end}"),
    "letter": _ask_letter,
    "place": lambda c: (f"Where is the card with {c.digit} first?", world.CELL_NAMES[c.cell]),
    "motion": lambda c: (
      f"Where does the card with {c.digit} go?",
      f"{c.direction}." if c.moves else "It stays",
    ),
  }
  bucket = BUCKET._replace(prompt=BUCKET.prompt + 48)
  numbers = [i for i, scene in enumerate(reader.scenes) if not scene.still][:clips]
  cards = [reader.scenes[i].cards[i % len(reader.scenes[i].cards)] for i in numbers]

  def score(params: dict) -> dict[str, float]:
    scores = {}
    for name, ask in asks.items():
      questions, answers = zip(*map(ask, cards), strict=True)
      asked = [_asked(reader, i, q) for i, q in zip(numbers, questions, strict=True)]
      groups = prompts.collate(asked, reader.processor.layout, bucket)
      out = generate(model, params, groups, max_tokens=24)
      texts = reader.processor.decode(out)
      right = [answer in text for answer, (text,) in zip(answers, texts, strict=True)]
      scores[name] = round(float(np.mean(right)), 3)
    return scores

  return score


def _ask_letter(card: world.Card) -> tuple[str, str]:
  """Which letter stands beside the card's colour in a list of four, which names it anyway."""
  names = [name for name in world.COLOUR_NAMES if name != card.colour][: len(LETTERS) - 1]
  at = card.digit % len(LETTERS)
  names.insert(at, card.colour)
  lines = "\n".join(f"{letter}. {name}" for letter, name in zip(LETTERS, names, strict=True))
  return f"{lines}\nWhich letter is {card.colour}?", LETTERS[at]


def _asked(reader: Reader, index: int, question: str) -> Prompt:
  prompt = reader.prompts[index]
  asked, _ = reader.encode(question, "")
  ids = np.concatenate([prompt.ids_P, np.array(asked, np.int32)])
  visual = np.concatenate([prompt.is_visual_P, np.zeros(len(asked), bool)])
  return dataclasses.replace(prompt, ids_P=ids, is_visual_P=visual)


def train(folder: pathlib.Path, options: argparse.Namespace, log) -> dict:
  """Returns the trained parameters. `log` is given the losses every 50 steps, and ten times the
  share of right replies on held-out clips."""
  seed = options.seed
  steps = options.steps
  reader = Reader(folder, "train", options.scenes, seed)
  held_out = Reader(folder, "test", 250, seed + 2)
  if options.start:
    params = hf.load(options.start)[1]
  else:
    params = hf.load_model(folder).init(jax.random.key(seed))
  model = hf.load_model(folder, unroll=True)
  encode = reader.processor.tokenizer.encode_response
  words = [np.array([encode(word)[0] for word in group]) for group in WORDS]
  settings = ConfigDict(
    dict(
      name="adamw",
      learning_rate=options.learning_rate,
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
  step = make_step(model, tx, steps, words)
  opt_state = jax.jit(tx.init)(params)
  score = reading_score(model, held_out)
  with Progress(steps, "tiny base") as progress:
    for i, ready in enumerate(batches(reader, seed + 1, steps, options.lookups_first)):
      params, opt_state, metrics = step(params, opt_state, i, *ready)
      jax.block_until_ready(metrics)  # or the bar would show how fast steps are queued
      if i % 50 == 0 or i == steps - 1:
        values = {k: round(float(v), 4) for k, v in metrics.items()}
        log({"step": i, **values})
      if (i + 1) % max(1, steps // 10) == 0:
        log({"step": i, "held_out_clips_read": score(params)})
      progress.update(note=f"reply {values['reply']:.3f}, cells {values['cells_right']:.3f}")
  return params


def main(argv: Sequence[str] | None = None) -> None:
  parser = cli.parser_of(main)
  parser.add_argument("--out", required=True, help="the Hugging Face folder to write")
  parser.add_argument("--start", help="a folder this command wrote, to go on from")
  parser.add_argument("--steps", type=int, default=2_400, help="of 16 clips (default 2400)")
  parser.add_argument("--lookups-first", type=int, default=0, metavar="STEPS",
                      help="of them the first that are lookups alone (default 0)")  # fmt: skip
  parser.add_argument("--scenes", type=int, default=7_000, help="training clips and pictures")
  parser.add_argument("--learning-rate", type=float, default=2e-3, help="highest (default 2e-3)")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args(argv)
  out = pathlib.Path(options.out)
  if options.start:
    if out.absolute() != pathlib.Path(options.start).absolute():
      shutil.copytree(options.start, out, dirs_exist_ok=True)  # its tokenizer, above all
  else:
    write_folder(out)
  with open(out / "training.jsonl", "a" if options.start else "w", encoding="utf-8") as file:
    log = lambda line: print(json.dumps(line), file=file, flush=True)
    keys = ("steps", "scenes", "learning_rate", "seed", "lookups_first")
    settings = {key: getattr(options, key) for key in keys}
    log(settings | {"goes_on": bool(options.start)})
    params = train(out, options, log)
  hf.save(out, params, out, dtype=ml_dtypes.bfloat16)
  print(f"wrote {out}")


if __name__ == "__main__":
  cli.run(main)

"""The tiny base's tokenizer: byte-level BPE as Qwen's, with its control tokens and chat template.

It is trained on the demo world's own texts and written as the files of a Hugging Face folder.
Digits and the letters of options are tokens of their own wherever they stand.

    python -m rmsd_jax.demo.tokenizer OUT_DIR
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from rmsd_jax import cli
from rmsd_jax.demo import simulated_teacher, world
from rmsd_jax.demo.plain_texts import plain_texts
from rmsd_jax.demo.questions import LETTERS, questions
from rmsd_jax.tasks import Rules

VOCABULARY = 576  # ids of the BPE, the 256 bytes included; the control tokens come on top
# Qwen's rule for where tokens may not join: every digit stands alone.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
CONTROL_TOKENS = (
  END_OF_TEXT,
  "<|im_start|>",
  END_OF_TURN,
  "<|vision_start|>",
  "<|vision_end|>",
  "<|image_pad|>",
  "<|video_pad|>",
)
THINK_TOKENS = ("<think>", "</think>")  # single ids, but not "special": they are text, as in Qwen

# The plain case of Qwen3-VL's template: no system prompt, no tools.
CHAT_TEMPLATE = """\
{%- for message in messages %}
  {{- '<|im_start|>' + message.role + '\\n' }}
  {%- if message.content is string %}
    {{- message.content }}
  {%- else %}
    {%- for item in message.content %}
      {%- if item.type == 'image' %}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
      {%- elif item.type == 'video' %}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
      {%- elif 'text' in item %}
        {{- item.text }}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def corpus(scenes: int = 400, seed: int = 0) -> list[str]:
  """What the tokenizer is trained on: plain texts, prompts, responses, timestamps of clips."""
  rng = np.random.default_rng(seed)
  texts = ["<0.2 seconds> user assistant"] * scenes
  for number in range(scenes):
    scene = (world.make_still if number % 6 == 0 else world.make_scene)(rng, "train")
    for pair in plain_texts(scene, rng):
      texts.extend(pair)
    for question in questions(scene, rng):
      texts.append(Rules().prompt_text(question.task, question.text, question.options))
      texts += [
        response["text"]
        for response in simulated_teacher.respond(question, simulated_teacher.Teacher(), rng)
      ]
  return texts


def train(texts: Iterable[str], vocabulary: int = VOCABULARY) -> tokenizers.Tokenizer:
  """Trains the byte-level BPE and adds the control tokens after its ids, as Qwen does.

  Letters of options are left out of what it sees, so that no merge swallows one: "B" is the same
  token in "B. red", "is B" and "<answer>B".
  """
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocabulary,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  # With the sign before it, since the BPE would merge " B" and ">B".
  unseen = re.compile("|".join([rf"[ >]?\b[{LETTERS}]\b", *map(re.escape, THINK_TOKENS)]))
  tokenizer.train_from_iterator((unseen.split(text) for text in texts), trainer)
  # After training: their ids follow those of the BPE, as in Qwen's files.
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS]
  )
  tokenizer.add_tokens(
    [tokenizers.AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS]
  )
  return tokenizer


def write_folder(tokenizer: tokenizers.Tokenizer, out_dir: str | os.PathLike) -> None:
  """Writes tokenizer.json, tokenizer_config.json, vocab.json, merges.txt and the chat template."""
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(out / "tokenizer.json"))
  tokenizer.model.save(str(out))
  added = {
    str(number): {
      "content": token.content,
      "lstrip": token.lstrip,
      "normalized": token.normalized,
      "rstrip": token.rstrip,
      "single_word": token.single_word,
      "special": token.special,
    }
    for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
  }
  config = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "added_tokens_decoder": added,
    "additional_special_tokens": [token for token in CONTROL_TOKENS if token != END_OF_TEXT],
    "bos_token": None,
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "eos_token": END_OF_TURN,
    "errors": "replace",
    "model_max_length": 4096,
    "pad_token": END_OF_TEXT,
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
  }
  text = json.dumps(config, indent=2) + "\n"
  (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
  (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def main() -> None:
  parser = cli.parser_of(main)
  parser.add_argument("out_dir", help="folder to write to; made if missing")
  write_folder(train(corpus()), parser.parse_args().out_dir)


if __name__ == "__main__":
  cli.run(main)

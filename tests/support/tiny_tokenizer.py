"""A small byte-level BPE with Qwen's pre-tokeniser, control tokens and chat template, for tests."""

import json

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

SPECIAL = (
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|vision_start|>",
  "<|vision_end|>",
  "<|image_pad|>",
  "<|video_pad|>",
)
TEMPLATE = """\
{%- for message in messages %}
  {{- '<|im_start|>' + message.role + '\n' }}
  {%- if message.content is string %}
    {{- message.content }}
  {%- else %}
    {%- for item in message.content %}
      {%- if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
      {%- elif item.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>
      {%- else %}{{ item.text }}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
  {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TEXTS = (
  "system user assistant What is the colour of the card in the clip? <1.5 seconds> seconds",
  "<think>The card shows 7 and then 3.</think><answer>B. blue</answer>",
)


def write(folder, template=TEMPLATE):
  """Trains on a few sentences and saves a folder that `AutoTokenizer` loads."""
  pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trained = tokenizers.Tokenizer(models.BPE())
  trained.pre_tokenizer = pre_tokenizer
  trained.train_from_iterator(
    TEXTS * 3,
    trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
  )
  model = json.loads(trained.to_str())["model"]
  tokenizer = transformers.Qwen2Tokenizer(
    vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]
  )
  tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
  tokenizer.add_tokens(["<think>", "</think>"])
  tokenizer.chat_template = template
  tokenizer.save_pretrained(folder)
  return folder


def write_model_folder(folder, patch=8, merge=2, temporal=2):
  """The tokenizer and a config.json with the sizes that a processor reads."""
  vision = {
    "patch_size": patch,
    "spatial_merge_size": merge,
    "temporal_patch_size": temporal,
  }
  write(folder)
  (folder / "config.json").write_text(
    json.dumps({"model_type": "qwen3_vl", "vision_config": vision}), encoding="utf-8"
  )
  return folder

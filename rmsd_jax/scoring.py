"""Sampled responses back to text, graded by the tasks' own rules: for training and evaluation.

Axes: B prompts of this process, R responses.
"""

from collections.abc import Sequence

import numpy as np

from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.errors import UserError
from rmsd_jax.generate import Samples
from rmsd_jax.sharding import local_rows
from rmsd_jax.tasks import registry, reward


def check_ends(tokenizer: ChatTokenizer, stop_ids: Sequence[int]) -> None:
  """Raises UserError unless sampling stops where the teacher's responses end."""
  if tokenizer.im_end not in stop_ids:
    raise UserError(
      f"the model stops at the tokens {list(stop_ids)}, but responses end in {tokenizer.im_end} "
      "(<|im_end|>); add it to eos_token_id in the folder's generation_config.json"
    )


def texts_of(samples: Samples, tokenizer: ChatTokenizer) -> list[list[str]]:
  """The B x R texts of this process's prompts, without control tokens."""
  ids_BRT, length_BR = local_rows(samples.responses_BRT), local_rows(samples.length_BR)
  return tokenizer.decode_groups(ids_BRT, length_BR)


def rule_terms(texts: Sequence[Sequence[str]], info: Sequence[dict], finished_BR) -> dict:
  """Grades texts: {"outer", "task", "content"}, each float32 [B, R] in [0, 1].

  Args:
    info: per prompt its task, answer and options, as `data.batch.Batch.info`.
    finished_BR: bool, False for a response that was cut off: it scores 0.
  """
  outer, inner, content = reward.rule_terms_BR(
    texts,
    [registry.get(row["task"]) for row in info],
    [row["answer"] for row in info],
    [row["options"] for row in info],
    finished_BR,
  )
  return {"outer": outer, "task": inner, "content": content}


def quality(terms: dict) -> np.ndarray:
  """valid * metric, as teachers' responses are scored (R-MSD, arXiv 2603.11423); [B, R]."""
  return terms["content"] * (terms["outer"] == 1) * (terms["task"] == 1)

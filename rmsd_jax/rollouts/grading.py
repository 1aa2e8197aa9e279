"""Sampled responses back to text, graded by the tasks' own rules: for training and evaluation.

Axes: B prompts of this process, R responses.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.sharding import local_rows
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.method import advantages
from rmsd_jax.rollouts.generate import Samples
from rmsd_jax.tasks import registry, reward

CONTROL_MARK = "(control token) "  # before a text that holds one: text before <think> is no format
DEGENERATE = (  # what a policy may slide into when the reward does not ask for an answer
  "",
  " ",
  "<think></think><answer></answer>",
  "<think>I look.</think><answer> </answer>",
  "<think></think>",
  "<answer></answer>",
  "<think><answer></answer></think>",
  "<think></think><answer></answer>" * 2,
  "<think></think><answer>A B C D</answer>",
  '<think></think><answer>{"time": [], "boxes": {}}</answer>',
  "the the the the",
)


def check_ends(tokenizer: ChatTokenizer, stop_ids: Sequence[int]) -> None:
  """Raises UserError unless the first stop id is the token that ends the teacher's responses."""
  if tokenizer.im_end not in stop_ids[:1]:
    raise UserError(
      f"the model stops at the tokens {list(stop_ids)}, but responses end in {tokenizer.im_end} "
      "(<|im_end|>); put it first in eos_token_id of the folder's generation_config.json"
    )


def texts_of(samples: Samples, tokenizer: ChatTokenizer) -> list[list[str]]:
  """The B x R texts of this process's prompts, see `ChatTokenizer.decode`.

  One with a control token in it, even inside the reasoning, is put in a form that no rule accepts:
  behind a mark. A teacher's response with one is refused.
  """
  ids_BRT, length_BR = local_rows(samples.responses_BRT), local_rows(samples.length_BR)
  mark = lambda text: CONTROL_MARK + text if tokenizer.has_control(text) else text
  return [[mark(text) for text in row] for row in tokenizer.decode_groups(ids_BRT, length_BR)]


def rule_terms(
  texts: Sequence[Sequence[str]],
  info: Sequence[dict],
  finished_BR,
  tasks: Mapping[str, registry.Task] = registry.TASKS,
) -> dict:
  """Grades texts: {"outer", "task", "content"}, each float32 [B, R] in [0, 1].

  Args:
    texts: B lists of R responses.
    info: per prompt its task, answer and options, as `data.batch.Batch.info`.
    finished_BR: bool, False for a response that was cut off: it scores 0.
    tasks: by name.
  """
  terms_3BR = np.zeros((3, *finished_BR.shape), np.float32)
  for b, (row, texts_R) in enumerate(zip(info, texts, strict=True)):
    task = registry.get(row["task"], tasks)
    for r, (text, finished) in enumerate(zip(texts_R, finished_BR[b], strict=True)):
      terms_3BR[:, b, r] = reward.rule_terms(
        task, text, row["answer"], row["options"], bool(finished)
      )
  return dict(zip(("outer", "task", "content"), terms_3BR, strict=True))


def audit(weights: Mapping[str, float], gate: bool) -> None:
  """Refuses reward weights under which saying nothing pays more than an honest wrong answer.

  For each task, `DEGENERATE` responses are graded beside the task's own wrong example, with the
  same score of the discriminator.

  Raises:
    UserError: names the task, the response and both rewards.
  """
  for name, task in registry.TASKS.items():
    reference, wrong, options = task.example
    texts = [f"<think>I look.</think><answer>{wrong}</answer>", task.instruction, *DEGENERATE]
    info = [{"task": name, "answer": reference, "options": options}]
    terms = rule_terms([texts], info, np.ones((1, len(texts)), bool))
    terms["discriminator"] = np.zeros((1, len(texts)), np.float32)
    weighted = advantages.composite(terms, weights, np.array([task.closed]), gate)
    honest, *others = np.asarray(sum(weighted.values()))[0].tolist()
    if max(others) > honest:
      text = texts[1 + others.index(max(others))]
      raise UserError(
        f"{name}: the reward of {text!r:.80} is {max(others):.3g}, that of an honest wrong answer "
        f"{honest:.3g}; set the weights in config.reward so that it does not pay to say nothing"
      )


def quality(terms: dict, valid_from: float = 1.0) -> np.ndarray:
  """valid * metric, as teachers' responses are scored (R-MSD, arXiv 2603.11423); [B, R].

  Args:
    valid_from: as of `registry.make_tasks`.
  """
  return terms["content"] * (terms["outer"] == 1) * (terms["task"] >= valid_from)

"""Sampled responses back to text, graded by the tasks' own rules: for training and evaluation.

Axes: B prompts of this process, R responses.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.method import advantages, custom_rewards, shortcuts
from rmsd_jax.method.carriers import Pairs, RuleTerms
from rmsd_jax.method.custom_rewards import CustomRewards
from rmsd_jax.rollouts.generate import Samples
from rmsd_jax.tasks import Rules

CONTROL_MARK = "(control token) "  # before a text that holds one: text before <think> is no format
NO_REWARDS = CustomRewards()
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


def replies_of(samples: Samples, tokenizer: ChatTokenizer) -> list[list[str]]:
  """The B x R texts of this process's responses, as numpy; see `ChatTokenizer.decode`.

  One with a control token in it, even inside the reasoning, gets a mark before it, with which no
  rule accepts it. A teacher's response with one is refused.
  """
  mark = lambda reply: CONTROL_MARK + reply if tokenizer.has_control(reply) else reply
  texts = tokenizer.decode_groups(samples.responses_BRT, samples.length_BR)
  return [[mark(reply) for reply in row] for row in texts]


def rule_terms(
  replies: Sequence[Sequence[str]], info: Sequence[dict], finished_BR, rules: Rules
) -> RuleTerms:
  """Grades replies.

  Args:
    replies: B lists of R texts.
    info: per prompt its task, answer and options, as `data.batch.Batch.info`.
    finished_BR: bool, False for a reply that was cut off: it scores 0.
    rules: the tasks.
  """
  terms_3BR = np.zeros((3, *finished_BR.shape), np.float32)
  for b, (row, replies_R) in enumerate(zip(info, replies, strict=True)):
    for r, (reply, finished) in enumerate(zip(replies_R, finished_BR[b], strict=True)):
      terms_3BR[:, b, r] = rules.terms(
        row["task"], reply, row["answer"], row["options"], bool(finished)
      )
  return RuleTerms(*terms_3BR)


class Grader:
  """Grades the rollouts of a step.

  Args:
    tokenizer: of the student.
    rules: the tasks.
    grade: as `rule_terms`.
    part: makes a context that times a part of the step, by its name.
    custom: the terms of a user's file.

  Attributes:
    replies: the B x R texts that it graded last.
  """

  def __init__(
    self,
    tokenizer: ChatTokenizer,
    rules: Rules,
    grade: Callable[..., RuleTerms] = rule_terms,
    part: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext,
    custom: CustomRewards = NO_REWARDS,
  ):
    self._tokenizer = tokenizer
    self._rules = rules
    self._grade = grade
    self._part = part
    self._custom = custom
    self.replies: list[list[str]] = []

  def __call__(self, mine: Samples, info: Sequence[dict]) -> RuleTerms:
    """The terms of this process's rollouts, as numpy; `info` as in `rule_terms`."""
    with self._part("texts"):
      self.replies = replies_of(mine, self._tokenizer)
    with self._part("grading"):
      terms = self._grade(self.replies, info, mine.finished_BR, rules=self._rules)
      own = self._custom.grade(self.replies, info, mine.finished_BR)
      return dataclasses.replace(terms, custom=own)


def figures(samples: Samples, terms: RuleTerms, pairs: Pairs, rules: Rules) -> dict:
  """Means over the rollouts of a step: length, finished, the rule terms, and the quality of the
  closed-ended ones (NaN where there is none)."""
  quality_BN = rules.quality(terms.outer_BN, terms.inner_BN, terms.content_BN)
  return {
    "rollout/length": samples.length_BR.mean(),
    "rollout/finished": samples.finished_BR.mean(),
    **{f"rollout/{name}": term_BN.mean() for name, term_BN in terms.by_name().items()},
    "rollout/quality": shortcuts.mean(quality_BN, pairs.closed_B[:, None]),
  }


def audit(reward: Mapping[str, Any], rules: Rules) -> None:
  """Refuses reward weights under which saying nothing pays more than an honest wrong answer, unless
  `reward.audit` is False.

  For each task, `DEGENERATE` responses are graded beside the task's own wrong example, with the
  same score of the discriminator.

  Args:
    reward: that section of the config.

  Raises:
    UserError: names the task, the response and both rewards; or a function of the user's that
      cannot grade a made-up prompt.
  """
  if not reward["audit"]:
    print("reward weights are not audited (reward.audit=False)")
    return
  custom = custom_rewards.of_config(reward)
  weights = advantages.weights_of(reward)
  for name, task in rules.tasks.items():
    truth, wrong, options = task.example
    honest_reply = f"<think>I look.</think><answer>{wrong}</answer>"
    replies = [honest_reply, task.instruction, *DEGENERATE]
    info = [{"id": "", "clip": "", "question": "", "task": name}]
    info[0] |= {"answer": truth, "options": options}
    finished_BN = np.ones((1, len(replies)), bool)
    terms = rule_terms([replies], info, finished_BN, rules)
    try:
      terms = dataclasses.replace(terms, custom=custom.grade([replies], info, finished_BN))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
      raise UserError(
        f"a function of reward.module cannot grade a made-up prompt ({error!r}): let it take any "
        "prompt, or leave the audit out with reward.audit=False"
      ) from error
    rewards = {"discriminator": np.zeros((1, len(replies)), np.float32), **terms.by_name()}
    weighted = advantages.composite(rewards, weights, np.array([task.closed]), reward["gate"])
    honest, *others = np.asarray(sum(weighted.values()))[0].tolist()
    if max(others) > honest:
      reply = replies[1 + others.index(max(others))]
      raise UserError(
        f"{name}: the reward of {reply!r:.80} is {max(others):.3g}, that of an honest wrong answer "
        f"{honest:.3g}; set the weights in config.reward so that it does not pay to say nothing, "
        "or leave this audit out with reward.audit=False"
      )

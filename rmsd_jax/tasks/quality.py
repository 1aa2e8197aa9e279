"""How far one teacher response can be relied on: quality = valid * metric (arXiv 2603.11423)."""

import dataclasses
from collections.abc import Sequence

from rmsd_jax.tasks import registry, response, reward
from rmsd_jax.tasks.registry import Task

# Stored with every pool. Raise it whenever a change in tasks/ can change a stored score.
SCORER_VERSION = "6"


def version(eps_abs: float = 0.0, eps_rel: float = 0.0, valid_from: float = 1.0) -> str:
  """The rules that make a score: SCORER_VERSION, and what of `registry.make_tasks` is set."""
  given = {"eps_abs": (eps_abs, 0), "eps_rel": (eps_rel, 0), "valid_from": (valid_from, 1)}
  set_ = [f"{name}={value:g}" for name, (value, default) in given.items() if value != default]
  return " ".join([SCORER_VERSION, *set_])


@dataclasses.dataclass(frozen=True)
class Score:
  """What a pool stores of a response; every number is in [0, 1]."""

  outer: float  # R_outer
  inner: float  # R_task, 0 when outer is 0
  content: float  # R_content, 0 for open-ended tasks
  valid: bool
  quality: float  # 0 unless valid
  rouge: float  # ROUGE-L against the ground truth of open-ended tasks; 0 for closed-ended ones


def score(
  task: Task,
  text: str,
  reference: object,
  options: Sequence[str],
  finish_reason: str = "stop",
  tokens: int = 0,
  max_tokens: int | None = None,
) -> Score:
  """Scores one response against the ground truth.

  A response is valid when it has the outer format and the task's own, all of it unless
  `Task.valid_from` is lower, and was not cut off (R-MSD). Its quality is its metric for
  closed-ended tasks. Open-ended tasks get none, since lexical overlap punishes right answers in
  other words: there every valid response has quality 1, and ROUGE-L is kept beside it for the
  ablation that supervises by it all the same.

  Args:
    reference: the ground truth, as the task's `validate` accepts it.
    finish_reason: as the teacher's server gave it; "length" means cut off.
    tokens: length of the response in tokens of the student's tokenizer, end-of-turn included.
    max_tokens: the most that training can hold; a longer response is not valid (our decision).
  """
  outer, inner, content = reward.rule_terms(task, text, reference, options)
  fits = max_tokens is None or tokens <= max_tokens
  valid = outer == 1 and inner >= task.valid_from and finish_reason != "length" and fits
  quality = (content if task.closed else 1.0) if valid else 0.0
  rouge = 0.0
  if not task.closed and outer:
    rouge = task.metric(response.parse(text).answer, options, reference)
  return Score(outer, inner, content, valid, quality, rouge)


@dataclasses.dataclass(frozen=True)
class Rules:
  """How replies are graded: the tasks, with their settings."""

  eps_abs: float = 0.0
  eps_rel: float = 0.0
  valid_from: float = 1.0

  @property
  def tasks(self):
    return registry.make_tasks(
      eps_abs=self.eps_abs, eps_rel=self.eps_rel, valid_from=self.valid_from
    )

  @property
  def names(self) -> tuple[str, ...]:
    """Of the tasks, sorted."""
    return tuple(sorted(self.tasks))

  @property
  def version(self) -> str:
    return version(**dataclasses.asdict(self))

  def task(self, name: str) -> Task:
    return registry.get(name, self.tasks)

  def terms(self, task, reply, truth, options, finished=True):
    return reward.rule_terms(self.task(task), reply, truth, options, finished)

  def is_valid(self, outer, inner):
    return (outer == 1) & (inner >= self.valid_from)

  def quality(self, outer, inner, content):
    return content * self.is_valid(outer, inner)

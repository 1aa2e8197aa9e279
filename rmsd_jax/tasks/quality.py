"""How a reply is graded: the rule terms, whether it is valid, and its quality.

R(S) = alpha * D(S) + beta * R_outer + eta * R_task + delta * R_content is the reward (R-MSD, arXiv
2603.11423); weights, discriminator and gates belong to the trainer. How far one teacher response
can be relied on is made of the same terms: quality = valid * metric.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import registry, response
from rmsd_jax.tasks.answers import visible
from rmsd_jax.tasks.registry import CHAT, Task

# Stored with every pool. Raise it whenever a change in tasks/ can change a stored score.
SCORER_VERSION = "9"
# Earlier versions whose pools can still be trained on and reported: their scores differ only where
# an error was mended since.
READABLE = ("6", "7", "8")


@dataclasses.dataclass(frozen=True)
class Score:
  """What a pool stores of a reply; every number is in [0, 1]."""

  outer: float  # R_outer
  inner: float  # R_task, 0 when outer is 0
  content: float  # R_content, 0 for open-ended tasks
  valid: bool
  quality: float  # 0 unless valid
  rouge: float  # ROUGE-L against the ground truth of open-ended tasks; 0 for closed-ended ones


@dataclasses.dataclass(frozen=True)
class Rules:
  """How replies are graded: the tasks, with their settings.

  Three numbers, a path and a word, which are compared, hashed and sent to child processes at no
  cost; the tasks made of them are kept by `registry.make_tasks`.

  Attributes:
    eps_abs, eps_rel: tolerances of `numerical`, see `answers.numeric_accuracy`; with both 0 two
      numbers are equal when they agree after rounding to 2 decimals.
    valid_from: R_task from which a reply is valid. With 1 a track that lacks one second of the
      ground truth is worth nothing; with 0.5 the right form is enough, and the metric counts the
      missing seconds.

    module: Python file with further tasks, see `registry.from_file`; "": none.
    reading: "strict", or "lenient": answers as models write them, see `tasks.lenient` and
      docs/pool.md.

  Raises:
    UserError: a tolerance is negative or NaN, valid_from is no share, there is no such reading, or
      the file is not usable.
  """

  eps_abs: float = 0.0
  eps_rel: float = 0.0
  valid_from: float = 1.0
  module: str = ""
  reading: str = "strict"

  def __post_init__(self):
    assert self.tasks  # made here, so that bad settings are refused at once
    if not 0 < self.valid_from <= 1:
      raise UserError(f"valid_from {self.valid_from}: it is an R_task, above 0 and at most 1")

  @property
  def tasks(self) -> Mapping[str, Task]:
    """All tasks by name; `CHAT` is none of them."""
    settings = {name: getattr(self, name) for name in ("eps_abs", "eps_rel", "module", "reading")}
    return registry.make_tasks(**settings)

  @property
  def names(self) -> tuple[str, ...]:
    """Of the tasks, sorted: the order in which arrays hold them."""
    return tuple(sorted(self.tasks))

  @property
  def of_records(self) -> tuple[str, ...]:
    """What a record may name as its task."""
    return (*self.names, CHAT)

  @property
  def version(self) -> str:
    """What makes a score, as pools store it: SCORER_VERSION, the settings that are changed, and a
    hash of the file of tasks, so that a pool scored by other rules is noticed."""
    settings = {"eps_abs": 0.0, "eps_rel": 0.0, "valid_from": 1.0}
    changed = [
      f"{name}={getattr(self, name):g}"
      for name, default in settings.items()
      if getattr(self, name) != default
    ]
    # Only what is changed is named, so that the versions of pools from before a setting existed are
    # those of its default.
    if self.reading != "strict":
      changed.append(f"reading={self.reading}")
    if self.module:
      contents = pathlib.Path(self.module).read_bytes()
      changed.append(f"tasks={hashlib.sha256(contents).hexdigest()[:12]}")
    return " ".join([SCORER_VERSION, *changed])

  @property
  def closed(self) -> Mapping[str, bool]:
    """Task name -> whether its answers are graded against the ground truth."""
    return {CHAT: False} | {name: task.closed for name, task in self.tasks.items()}

  def reads(self, stored: str) -> bool:
    """Whether a pool that was scored by the rules of that version can be read with these: the same
    settings, and a version of the scorer that is this one or `READABLE`."""
    version, _, settings = stored.partition(" ")
    ours = self.version.partition(" ")
    return settings == ours[2] and version in (ours[0], *READABLE)

  def parse(self, reply: str) -> response.Parsed:
    """A reply taken apart, see `response`."""
    lenient = self.reading == "lenient"
    return response.parse_lenient(reply) if lenient else response.parse(reply)

  def trimmed(self, reply: str, task: str = "") -> str:
    """A teacher's reply as it is stored and trained on: the lenient reading takes the token off
    that ends the turn, which no tokenizer would take as text. Of a conversation, without what a
    reasoning model thought before it."""
    if task == CHAT:
      opening, closing = response.TAGS[:2]
      thought, closed, said = reply.partition(closing)
      reply = said.lstrip() if closed and thought.lstrip().startswith(opening) else reply
    return response.trimmed(reply) if self.reading == "lenient" else reply

  def task(self, name: str) -> Task:
    """The task of that name; UserError names those there are."""
    return registry.get(name, self.tasks)

  def prompt_text(self, task: str, question: str, options: Sequence[str] = ()) -> str:
    """What a model is asked: the question, the options one a line, the format of the reply; in a
    conversation what is said, alone."""
    if task == CHAT:
      return question.strip()
    lines = [question.strip(), *(option.strip() for option in options)]
    return "\n".join([*lines, self.task(task).instruction])

  def validate(self, task: str, truth: object, options: Sequence[str]) -> str | None:
    """What is wrong with the ground truth of a record, in words, or None."""
    if task == CHAT:
      bare = truth is None and not options
      return None if bare else "a conversation has no truth, tolerances or options; leave them out"
    return self.task(task).validate(truth, options)

  def answer_of(self, task: str, reply: str, options: Sequence[str]) -> str:
    """The answer in a reply as its task reads it, so that "(A)" and "A" are one; where the task
    does not read it, as it is written; "" without the outer format. In a conversation all of it."""
    if task == CHAT:
      return reply
    answer = self.parse(reply).answer
    value = self.task(task).read(answer, options)
    if value is None or isinstance(value, str):
      return value or answer
    return json.dumps(value, sort_keys=True)

  def agreement(
    self, task: str, replies: Sequence[str], options: Sequence[str], truth: object = None
  ) -> list[float]:
    """How far each reply to a closed-ended question agrees with all of them: a quality for which no
    truth is needed.

        q_k = 1/K sum_j metric(T_k, T_j),  metric(T_k, T_k) = 1

    So of letters it is the share that says the same, of times and boxes the mean overlap; one that
    agrees with no other has 1/K. A reply without an answer has 0.

    Args:
      truth: of which a record's own tolerances are used, and nothing else.
    """
    kind = self.task(task)
    answers = [self.parse(reply).answer for reply in replies]
    readable = [kind.read(answer, options) is not None for answer in answers]

    def agrees(k: int, j: int) -> float:
      return 1.0 if k == j else kind.agree(answers[k], answers[j], options, truth)

    every = range(len(replies))
    return [sum(agrees(k, j) for j in every) / len(every) if readable[k] else 0.0 for k in every]

  def terms(
    self, task: str, reply: str, truth: object, options: Sequence[str], finished: bool = True
  ) -> tuple[float, float, float]:
    """(R_outer, R_task, R_content) of one reply, see `rule_terms`.

    Args:
      finished: whether the reply came to its end-of-turn token; if not, it has no format.
    """
    parsed = self.parse(reply) if finished else response.Parsed(False, "", "")
    return rule_terms(self.task(task), parsed, truth, options)

  def is_valid(self, outer, inner):
    """Whether a reply has the outer format and the task's own, all of it or `valid_from`.

    Args:
      outer, inner: R_outer and R_task, as numbers or as arrays of one shape.
    """
    # & and not `and`, which arrays do not have.
    return (outer == 1) & (inner >= self.valid_from)

  def quality(self, outer, inner, content):
    """valid * metric, of replies to closed-ended questions; of numbers or arrays as `is_valid`."""
    return content * self.is_valid(outer, inner)

  def score(
    self,
    task: str,
    reply: str,
    truth: object,
    options: Sequence[str] = (),
    finish_reason: str = "stop",
    tokens: int = 0,
    max_tokens: int | None = None,
  ) -> Score:
    """Scores one reply against the ground truth.

    A reply is valid when its formats are (`is_valid`) and it was not cut off (R-MSD). Its quality
    is its metric for closed-ended tasks. Open-ended tasks get none, since lexical overlap punishes
    right answers in other words: there every valid reply has quality 1, and ROUGE-L is kept beside
    it for the ablation that supervises by it all the same. In a conversation every whole reply
    that says something, without a think block or answer tags, is valid and as good as the next.

    Args:
      truth: the ground truth, as `validate` accepts it.
      finish_reason: as the teacher's server gave it; "length" means cut off.
      tokens: length of the reply in tokens of the student's tokenizer, end-of-turn included.
      max_tokens: the most that training can hold; a longer reply is not valid (our decision).
        None: no limit, `tokens` does not matter.
    """
    fits = max_tokens is None or tokens <= max_tokens
    if task == CHAT:
      bare = visible(reply) and not any(tag in reply for tag in response.TAGS)
      valid = bare and finish_reason != "length" and fits
      return Score(1.0, 1.0, 0.0, valid, quality=float(valid), rouge=float(valid))
    kind = self.task(task)
    parsed = self.parse(reply)
    outer, inner, content = rule_terms(kind, parsed, truth, options)
    valid = self.is_valid(outer, inner) and finish_reason != "length" and fits
    quality = (content if kind.closed else 1.0) if valid else 0.0
    # Where it is kept alone: to align two texts is slow.
    rouge = 0.0
    if not kind.closed and outer:
      rouge = kind.metric(parsed.answer, options, truth)
    return Score(outer, inner, content, valid, quality, rouge)


def rule_terms(
  task: Task, parsed: response.Parsed, truth: object, options: Sequence[str]
) -> tuple[float, float, float]:
  """(R_outer, R_task, R_content) of one reply, each in [0, 1].

  R_task is 0 when R_outer is 0 (OneThinker, arXiv 2512.03043). R_content is read from the parsed
  answer alone, so it too is 0 then; it is 0 for open-ended tasks, where R-MSD has none. A reply
  that did not finish, because it was cut off at the length limit, earns nothing (our decision).

  Args:
    parsed: the reply; without the outer format where it did not come to its end-of-turn token.
    truth: the ground truth, as the task's `validate` accepts it.
  """
  if not parsed.outer:
    return 0.0, 0.0, 0.0
  inner = task.check(parsed.answer, options, truth)
  content = task.metric(parsed.answer, options, truth) if task.closed else 0.0
  return 1.0, inner, content

"""How reliable a teacher is: the figures of R-MSD's motivation (arXiv 2603.11423, section 3).

Two kinds of variance are told apart: of the mean quality across questions, and of the samples of
one question. Axes: N questions, K responses of a question (K may differ between questions).
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rmsd_jax.data.rows import Row
from rmsd_jax.tasks import CHAT, Rules

TAUS = (0.0, 0.2, 0.3, 0.5)  # the paper's sweep
TAU = 0.3  # the paper's threshold
ALL = "all"
# What R-MSD measured of its teacher on 200 questions, by our task names.
PAPER = {
  "multiple_choice": {
    "name": "multiple choice", "mean": 0.96, "sd_across": 0.10, "sd_within": 0.07,
  },
  "ocr": {"name": "OCR", "min": 0.50, "max": 0.85},
  "open_ended": {"name": "visual QA", "mean": 0.64, "sd_across": 0.24, "sd_within": 0.15},
  "temporal_grounding": {"name": "temporal QA (the worst)", "violations": 0.10},
  ALL: {
    "name": "all", "mean": 0.75, "sd_across": 0.22, "min": 0.10, "max": 1.0, "violations": 0.01,
  },
}  # fmt: skip
PAPER_KEPT = dict(zip(TAUS, (1.0, 0.87, 0.72, 0.45), strict=True))

Figures = dict[str, dict[str, Any]]  # name of a group -> its figures
# Columns of the table: what is one number each.
_COLUMNS = (
  "questions", "responses", "violations", "cut_off", "agreement", "mean", "sd_across", "sd_within",
  "min", "max", "rouge",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Question:
  """One question and the scores of its K responses, but not their texts: a study holds them all."""

  id: str
  clip: str
  task: str
  closed: bool
  teachers: tuple[str, ...]  # K
  finish_reasons: tuple[str, ...]
  same_K: np.ndarray  # equal numbers: equal answers, see `alike`
  length_K: np.ndarray  # tokens where a pool was built, else characters
  outer_K: np.ndarray  # as are inner, content and quality: in [0, 1]
  inner_K: np.ndarray
  content_K: np.ndarray
  quality_K: np.ndarray
  valid_K: np.ndarray  # bool
  rouge_K: np.ndarray  # ROUGE-L, of open-ended responses only

  @functools.cached_property
  def mean(self) -> float:
    """Mean quality; at least one response is needed."""
    return float(self.quality_K.mean(dtype=np.float64))

  @functools.cached_property
  def spread(self) -> float:
    """Unbiased s.d. of the quality of one teacher's responses, the mean over its teachers; NaN
    where none gave several."""
    own = [self.quality_K[places] for places in self._own if len(places) > 1]
    return float(np.mean([x.std(ddof=1, dtype=np.float64) for x in own])) if own else float("nan")

  @functools.cached_property
  def agreement(self) -> float:
    """Share of pairs of responses of one teacher with the same answer, NaN where there is none."""
    pairs = sum(len(places) * (len(places) - 1) for places in self._own)
    equal = [collections.Counter(self.same_K[places].tolist()) for places in self._own]
    # Ordered pairs on both sides of the division, so that no half is lost.
    same = sum(n * (n - 1) for counts in equal for n in counts.values())
    return same / pairs if pairs else float("nan")

  @functools.cached_property
  def _own(self) -> list[list[int]]:
    """The places of each teacher's responses: where two teachers differ is no luck of a sample."""
    return [
      [k for k, name in enumerate(self.teachers) if name == teacher]
      for teacher in dict.fromkeys(self.teachers)
    ]


def of_row(row: Row, rules: Rules) -> Question:
  """The question that a row of a built pool is, with the scores that it stores."""
  columns = ("outer_K", "inner_K", "content_K", "quality_K", "valid_K", "rouge_K")
  names = ("id", "clip", "task", "closed", "teachers", "finish_reasons", *columns)
  return Question(
    same_K=alike([rules.answer_of(row.task, reply, row.options) for reply in row.texts]),
    length_K=row.tokens_K,
    **{name: getattr(row, name) for name in names},
  )


def alike(answers: Sequence[str]) -> np.ndarray:
  """int [K]: of each answer, the place of the first one that equals it.

  Case and white space do not matter; a formula or a text is compared as it is written. A response
  without an answer equals no other.
  """
  plain = [" ".join(answer.casefold().split()) for answer in answers]
  return np.array([plain.index(a) if a else k for k, a in enumerate(plain)], np.int32)


def by_task(questions: Iterable[Question], taus: Sequence[float] = TAUS) -> Figures:
  """Figures per task, and under "all" over every task.

  Args:
    questions: those without responses are left out, and conversations, which have no grade.
    taus: thresholds of the filter.

  Returns:
    name -> figures (NaN where there is nothing to measure):
      questions, responses: counts.
      violations: share of responses without the outer or the task's own format.
      no_outer: share of responses without the outer format.
      cut_off: share of responses with finish_reason "length".
      agreement: share of pairs of one teacher's responses to a question with the same answer, as
        the task reads it, averaged over questions; two responses without an answer differ.
      lengths: {share: length that this share of the responses does not exceed}.
      rouge: mean ROUGE-L of open-ended responses, for the log only.
      Of closed-ended tasks only, since open-ended ones have no graded quality:
      mean: mean over questions of their mean quality.
      sd_across: unbiased s.d. of that mean across questions.
      sd_within: mean over questions of the unbiased s.d. of one teacher's responses' quality.
      min, max: of single responses.
      kept: {tau: share of responses with quality >= tau}.
      lost: {tau: share of questions without any response of quality >= tau}.
  """
  groups: dict[str, list[Question]] = collections.defaultdict(list)
  for question in questions:
    if len(question.quality_K) and question.task != CHAT:
      groups[question.task].append(question)
      groups[ALL].append(question)
  names = [*sorted(set(groups) - {ALL}), *({ALL} & set(groups))]
  return {name: _figures(groups[name], taus) for name in names}


def by_teacher(questions: Iterable[Question], taus: Sequence[float] = TAUS) -> Figures:
  """Figures of each teacher's own responses over every task, as `by_task`; {} for one teacher."""
  questions = [question for question in questions if question.task != CHAT]
  teachers = sorted({teacher for question in questions for teacher in question.teachers})
  if len(teachers) < 2:
    return {}
  groups = {
    teacher: [_said_by(question, teacher) for question in questions if teacher in question.teachers]
    for teacher in teachers
  }
  return {teacher: _figures(group, taus) for teacher, group in groups.items()}


def means(questions: Iterable[Question]) -> np.ndarray:
  """[N] mean quality of every closed-ended question."""
  return np.array([question.mean for question in _graded(questions)])


def spreads(questions: Iterable[Question]) -> np.ndarray:
  """[N] unbiased s.d. of the quality within every closed-ended question of several responses."""
  return _known(np.array([question.spread for question in _graded(questions)]))


def table(figures: Figures, head: str = "task") -> str:
  """Figures as a Markdown table, shares and quality to 3 decimals, "-" for NaN.

  Args:
    figures: of `by_task`, or of `by_teacher`.
    head: what the groups are.
  """
  if not figures:
    return "no responses"
  lines = [[head, *_COLUMNS, *(f"kept {tau:g}" for tau in TAUS), f"lost {TAU:g}"]]
  for name, one in figures.items():
    values = [*(one[key] for key in _COLUMNS), *(one["kept"][tau] for tau in TAUS)]
    name = label(name).replace("|", r"\|") or "not named"
    lines.append([name, *map(_cell, [*values, one["lost"][TAU]])])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
    for line in lines
  )


def label(name: str, longest: int = 60) -> str:
  """A name that others gave, for a table or a figure: control signs and ends of lines as dots, and
  the middle left out of one that has more than `longest` signs."""
  name = "".join(sign if sign.isprintable() else "\N{MIDDLE DOT}" for sign in name)
  first = longest * 2 // 3
  if len(name) <= longest:
    return name
  return f"{name[:first]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - longest + first + 1 :]}"


def _cell(value: int | float) -> str:
  if isinstance(value, int):
    return str(value)
  return "-" if np.isnan(value) else f"{value:.3f}"


def _said_by(question: Question, teacher: str) -> Question:
  """The question with the responses of one teacher alone."""
  places = [k for k, name in enumerate(question.teachers) if name == teacher]
  columns = {
    field.name: getattr(question, field.name)[places]
    for field in dataclasses.fields(Question)
    if field.name.endswith("_K")
  }
  reasons = tuple(question.finish_reasons[k] for k in places)
  names = (teacher,) * len(places)
  return dataclasses.replace(question, teachers=names, finish_reasons=reasons, **columns)


def _graded(questions: Iterable[Question]) -> list[Question]:
  return [q for q in questions if q.closed and len(q.quality_K)]


def _figures(questions: Sequence[Question], taus: Sequence[float]) -> dict[str, Any]:
  outer, inner, lengths = (
    np.concatenate([getattr(q, name) for q in questions])
    for name in ("outer_K", "inner_K", "length_K")
  )
  rouge = np.concatenate([np.zeros(0), *(q.rouge_K for q in questions if not q.closed)])
  reasons = [reason for q in questions for reason in q.finish_reasons]
  quality = np.concatenate([np.zeros(0), *(q.quality_K for q in _graded(questions))])
  best_N = np.array([q.quality_K.max() for q in _graded(questions)], np.float64)
  # Over questions, not responses: a question of many samples must not count for more.
  means_N = means(questions)
  return {
    "questions": len(questions),
    "responses": len(outer),
    "violations": _mean((outer < 1) | (inner < 1)),
    "no_outer": _mean(outer < 1),
    "cut_off": _mean(np.array([reason == "length" for reason in reasons])),
    "agreement": _mean(_known(np.array([q.agreement for q in questions]))),
    "lengths": {q: float(np.quantile(lengths, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)},
    "rouge": _mean(rouge),
    "mean": _mean(means_N),
    "sd_across": float(means_N.std(ddof=1)) if len(means_N) > 1 else float("nan"),
    "sd_within": _mean(spreads(questions)),
    "min": float(quality.min()) if quality.size else float("nan"),
    "max": float(quality.max()) if quality.size else float("nan"),
    # in float32 as pools keep it, so that files and built pools say the same
    "kept": {tau: _mean(np.float32(quality) >= np.float32(tau)) for tau in taus},
    "lost": {tau: _mean(np.float32(best_N) < np.float32(tau)) for tau in taus},
  }


def _known(values: np.ndarray) -> np.ndarray:
  return values[~np.isnan(values)]


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if values.size else float("nan")

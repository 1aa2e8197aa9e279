"""How reliable a teacher is: the figures of R-MSD's motivation (arXiv 2603.11423, section 3).

Two kinds of variance are told apart: of the mean quality across questions, and of the samples of
one question. Axes: N questions, K responses of a question (K may differ between questions).
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rmsd_jax.data.rows import Row

TAUS = (0.0, 0.2, 0.3, 0.5)  # the paper's sweep
ALL = "all"


def variance(
  rows: Iterable[Row],
  answer_of: Callable[[str], str],
  taus: Sequence[float] = TAUS,
) -> dict[str, dict[str, Any]]:
  """Figures per task, and under "all" over every task.

  Args:
    rows: questions with their scored responses; those without responses are left out.
    answer_of: response text -> the answer in it, for the agreement.
    taus: thresholds of the filter.

  Returns:
    name -> figures (NaN where there is nothing to measure):
      questions, responses: counts.
      violations: share of responses without the outer or the task's own format.
      cut_off: share of responses with finish_reason "length".
      agreement: share of response pairs of one question with the same answer, averaged over
        questions. Case and white space do not matter.
      Of closed-ended tasks only, since open-ended ones have no graded quality:
      mean: mean over questions of their mean quality.
      sd_across: unbiased s.d. of that mean across questions.
      sd_within: mean over questions of the unbiased s.d. of their responses' quality.
      min, max: of single responses.
      kept: {tau: share of responses with quality >= tau}.
  """
  groups: dict[str, list[Row]] = collections.defaultdict(list)
  for row in rows:
    if row.texts:
      groups[row.task].append(_light(row))
      groups[ALL].append(groups[row.task][-1])
  return {name: _figures(groups[name], answer_of, taus) for name in sorted(groups)}


def table(figures: dict[str, dict[str, Any]]) -> str:
  """`variance` as a Markdown table, shares and quality to 3 decimals, "-" for NaN."""
  if not figures:
    return "no responses"
  names = [name for name in figures if name != ALL] + [ALL]
  taus = list(figures[ALL]["kept"])
  plain = [name for name in figures[ALL] if name != "kept"]
  head = ["task", *plain, *(f"kept {tau:g}" for tau in taus)]
  body = []
  for name in names:
    one = figures[name]
    values = [one[key] for key in plain] + [one["kept"][tau] for tau in taus]
    body.append([name, *map(_cell, values)])
  widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
  lines = [head, ["-" * width for width in widths], *body]
  return "\n".join(
    "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
    for line in lines
  )


def _cell(value: int | float) -> str:
  if isinstance(value, int):
    return str(value)
  return "-" if np.isnan(value) else f"{value:.3f}"


def _light(row: Row) -> Row:
  """The row without what a study does not need, so that a whole pool fits in memory."""
  return dataclasses.replace(row, pictures=(), responses=())


def _figures(
  rows: Sequence[Row], answer_of: Callable[[str], str], taus: Sequence[float]
) -> dict[str, Any]:
  outer = np.concatenate([row.outer_K for row in rows])
  inner = np.concatenate([row.inner_K for row in rows])
  reasons = [reason for row in rows for reason in row.finish_reasons]
  graded = [row.quality_K.astype(np.float64) for row in rows if row.closed]
  quality = np.concatenate([np.zeros(0), *graded])
  means_N = np.array([quality_K.mean() for quality_K in graded])
  spreads_N = np.array([quality_K.std(ddof=1) for quality_K in graded if len(quality_K) > 1])
  pairs_N = [_agreement([answer_of(text) for text in row.texts]) for row in rows]
  return {
    "questions": len(rows),
    "responses": len(outer),
    "violations": _mean((outer < 1) | (inner < 1)),
    "cut_off": _mean(np.array([reason == "length" for reason in reasons])),
    "agreement": _mean(np.array([share for share in pairs_N if share is not None])),
    "mean": _mean(means_N),
    "sd_across": float(means_N.std(ddof=1)) if len(means_N) > 1 else float("nan"),
    "sd_within": _mean(spreads_N),
    "min": float(quality.min()) if quality.size else float("nan"),
    "max": float(quality.max()) if quality.size else float("nan"),
    "kept": {tau: _mean(quality >= tau) for tau in taus},
  }


def _agreement(answers: Sequence[str]) -> float | None:
  """Share of pairs with the same answer; None without a pair."""
  plain = [" ".join(answer.casefold().split()) for answer in answers]
  pairs = list(itertools.combinations(plain, 2))
  return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if values.size else float("nan")

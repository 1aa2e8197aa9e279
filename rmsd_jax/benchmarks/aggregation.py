"""Scores of items -> means, breakdowns, intervals over clusters, votes and pass@k. Numpy only.

Axes: N items, C clusters, G groups of a macro mean, S samples of an item.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsd_jax.core import intervals

PASS_AT = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Row:
  """One call of one item, graded.

  Attributes:
    item, call, cluster: of the item.
    fields: what is broken down by; of several values it counts for each.
    values: of its samples, in [0, 1].
    read: what was read of each; None: unparsed.
    options: number of the item's options; 0: no choice.
    more: further figures, of each sample.
  """

  item: str
  call: str
  cluster: str
  fields: Mapping[str, str | tuple[str, ...]]
  values: tuple[float, ...]
  read: tuple[str | None, ...]
  options: int
  more: tuple[Mapping[str, float], ...] = ()

  @property
  def value(self) -> float:
    """The mean over its samples."""
    return float(np.mean(self.values))


def labels(row: Row, field: str) -> tuple[str, ...]:
  """The values of a field; an item without it has none."""
  value = row.fields.get(field, ())
  return (value,) if isinstance(value, str) else tuple(value)


def micro(rows: Sequence[Row]) -> dict[str, float]:
  """Mean over items with its interval over clusters, see `intervals.mean_interval`."""
  return intervals.mean_interval([row.value for row in rows], [row.cluster for row in rows])


def macro(
  rows: Sequence[Row], field: str, resamples: int = 2_000, level: float = 0.95
) -> dict[str, Any]:
  """Mean of the means of the groups that a field makes, and its interval: clusters are resampled
  whole, and a group that no drawn cluster has an item of is left out of that resample.

  Returns:
    {"mean", "low", "high", "n", "groups"}.
  """
  groups = sorted({label for row in rows for label in labels(row, field)})
  clusters = sorted({row.cluster for row in rows})
  sums_CG = np.zeros((len(clusters), len(groups)))
  counts_CG = np.zeros_like(sums_CG)
  for row in rows:
    for label in labels(row, field):
      place = clusters.index(row.cluster), groups.index(label)
      sums_CG[place] += row.value
      counts_CG[place] += 1
  if not groups:
    nothing = float("nan")
    return {"mean": nothing, "low": nothing, "high": nothing, "n": len(rows), "groups": 0}
  # How often each cluster is drawn, once a resample.
  drawn = np.random.default_rng(0).multinomial(
    len(clusters), np.full(len(clusters), 1 / len(clusters)), size=resamples
  )
  counts = drawn @ counts_CG
  there = counts > 0
  means = np.where(there, drawn @ sums_CG / np.maximum(counts, 1), 0).sum(1) / there.sum(1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  if len(clusters) == 1:
    low = high = np.nan
  mean = float(np.mean(sums_CG.sum(0) / counts_CG.sum(0)))
  return {
    "mean": mean, "low": float(low), "high": float(high), "n": len(rows), "groups": len(groups)
  }  # fmt: skip


def breakdown(rows: Sequence[Row], field: str) -> dict[str, dict[str, float]]:
  """Value of the field -> its mean, interval and number of items."""
  by_label = collections.defaultdict(list)
  for row in rows:
    for label in labels(row, field):
      by_label[label].append(row)
  return {label: micro(found) for label, found in sorted(by_label.items())}


def paired(ours: Sequence[Row], theirs: Sequence[Row], macro_over: str = "") -> dict[str, float]:
  """The mean difference of two runs on the same calls, ours less theirs, and its interval.

  Args:
    theirs: of the same items and calls, in any order.
    macro_over: the field of a macro mean; "": micro.
  """
  other = {(row.item, row.call): row.value for row in theirs}
  differences = [
    dataclasses.replace(row, values=(row.value - other[row.item, row.call],)) for row in ours
  ]
  return macro(differences, macro_over) if macro_over else micro(differences)


def unparsed_rate(rows: Sequence[Row]) -> float:
  """Share of replies in which no answer was read."""
  read = [one for row in rows for one in row.read]
  return sum(one is None for one in read) / len(read) if read else math.nan


def pass_curves(rows: Sequence[Row], above: float = 1.0) -> dict[str, dict[str, Any]]:
  """pass@k and majority@k for k to the number of samples, each with its interval over clusters, and
  what guessing among the options gives: chance.

  Args:
    above: the value from which a sample passes.
  """
  samples = min(len(row.values) for row in rows)
  clusters = [row.cluster for row in rows]
  passed_NS = np.array([[value >= above for value in row.values[:samples]] for row in rows])
  curves: dict[str, dict[str, Any]] = {}
  for k in [k for k in PASS_AT if k <= samples]:
    votes = [majority_at_k(row.read[:samples], passed, k) for row, passed in
             zip(rows, passed_NS.tolist(), strict=True)]  # fmt: skip
    guesses = [1 - (1 - 1 / row.options) ** k if row.options else 0.0 for row in rows]
    curves[str(k)] = {
      "pass": intervals.mean_interval(intervals.pass_at_k(passed_NS, k).tolist(), clusters),
      "majority": intervals.mean_interval(votes, clusters),
      "chance": float(np.mean(guesses)),
    }
  return curves


def majority_at_k(read: Sequence[str | None], passed: Sequence[bool], k: int) -> float:
  """Chance that the commonest answer of k of the samples is right, over all choices of k of them.

  Ties are drawn; what is unparsed has no vote. All answers that pass are one answer, however they
  are written. Exact: the numbers of samples of each answer are hypergeometric.
  """
  total = len(read)
  if k > total:
    raise ValueError(f"majority@{k} needs {k} samples, there are {total}")
  right = sum(passed)
  wrong = collections.Counter(
    one for one, good in zip(read, passed, strict=True) if not good and one is not None
  )
  silent = total - right - sum(wrong.values())
  won = 0.0
  for votes in range(1, min(right, k) + 1):
    # ways[n][t]: to choose n of the other samples, none of their answers above `votes`, t at it
    ways = {(n, 0): math.comb(silent, n) for n in range(silent + 1)}
    for count in wrong.values():
      grown: collections.Counter[tuple[int, int]] = collections.Counter()
      for (n, tied), number in ways.items():
        for more in range(min(count, votes, k - votes - n) + 1):
          grown[n + more, tied + (more == votes)] += number * math.comb(count, more)
      ways = grown
    rest = k - votes
    wins = sum(number / (1 + tied) for (n, tied), number in ways.items() if n == rest)
    won += math.comb(right, votes) * wins
  return won / math.comb(total, k)

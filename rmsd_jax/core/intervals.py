"""Means with intervals over clusters and seeds, pass@k, concordance. Numpy and scipy only."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special  # not stats, which takes seconds to import


def mean_interval(
  values: Sequence[float],
  clusters: Sequence[str],
  seed: int = 0,
  resamples: int = 2_000,
  level: float = 0.95,
) -> dict[str, float]:
  """Mean of values and its percentile bootstrap interval, clusters resampled whole.

  Questions about one clip succeed and fail together, so clips are the unit: every resample draws
  as many clips as there are, with replacement, and averages over all their values. For a paired
  comparison give differences.

  Returns:
    {"mean", "low", "high", "n"}; NaN without values, and an interval of NaN with one clip, which
    tells nothing of others.
  """
  values = np.asarray(values, np.float64)
  if not len(values):
    return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
  _, member = np.unique(np.asarray(clusters), return_inverse=True)
  # A clip enters with the sum and the number of its values, so that a resample weighs clips as the
  # mean does, by how many questions are about them.
  sums = np.bincount(member, values)
  counts = np.bincount(member)
  drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
  means = sums[drawn].sum(1) / counts[drawn].sum(1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  if len(sums) == 1:
    low = high = np.nan
  return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def crossed_interval(
  values_SN: np.ndarray, clusters: Sequence[str], level: float = 0.95
) -> dict[str, float]:
  """Mean of S training seeds' values on the same N prompts, and its interval over seeds and clips.

  The half width is the root of two squares: Student's t over S - 1 degrees of freedom times the
  standard error across seeds, and the same across clips of the values averaged over seeds
  (linearised ratio of cluster sums to cluster sizes, Cochran 1977, section 6.3). It covers the
  truth at least as often as it says, whichever of the two is larger; a t with the degrees of
  freedom of Satterthwaite (1946) covered it in 92 % where three seeds differ more than clips do.
  One seed has no variance across seeds: the interval is over clips alone. One clip tells nothing of
  others: the interval is NaN. For a paired comparison give differences.

  Returns:
    {"mean", "low", "high", "seeds", "n"}.
  """
  S, N = values_SN.shape
  mean = values_SN.mean()
  _, member = np.unique(np.asarray(clusters), return_inverse=True)
  sums = np.bincount(member, values_SN.mean(0))
  counts = np.bincount(member)
  C = len(sums)
  across_clips = C / (C - 1) * np.sum((sums - mean * counts) ** 2) / N**2 if C > 1 else np.nan
  across_seeds = values_SN.mean(1).var(ddof=1) / S if S > 1 else 0.0
  # Each part has a t of its own degrees of freedom; one seed adds a variance of 0, whatever its t.
  squared = sum(
    special.stdtrit(max(count - 1, 1), (1 + level) / 2) ** 2 * variance
    for count, variance in ((S, across_seeds), (C, across_clips))
  )
  half = np.sqrt(squared)
  return {
    "mean": float(mean), "low": float(mean - half), "high": float(mean + half), "seeds": S, "n": N
  }  # fmt: skip


def passes(quality: npt.ArrayLike, least: float) -> np.ndarray:
  """bool, of quality `least` or more. Both as float32, as qualities are stored: 0.9 of them is
  below the 0.9 of a config."""
  return np.asarray(quality, np.float32) >= np.float32(least)


def pass_at_k(passed_BN: np.ndarray, k: int) -> np.ndarray:
  """Chance that at least one of k samples passes, estimated without bias from N >= k samples.

  1 - C(N - c, k) / C(N, k) with c passes (Chen et al., arXiv 2107.03374). float [B].
  """
  N = passed_BN.shape[1]
  c_B = passed_BN.sum(1)
  if k > N:
    raise ValueError(f"pass@{k} needs {k} samples, there are {N}")
  # The product form of C(N - c, k) / C(N, k); a factor reaches 0 when N - c < k.
  failed = np.maximum(N - c_B[:, None] - np.arange(k), 0) / (N - np.arange(k))
  return 1 - failed.prod(1)


def concordance(
  score_N: np.ndarray, truth_N: np.ndarray, fits_NN: np.ndarray | None = None
) -> float:
  """How often, of two whose truths differ, the one of the higher truth has the higher score.

  The area under the ROC curve where truths are 0 and 1, Harrell's c otherwise (JAMA 1982). Equal
  scores count half; 0.5 is chance. NaN without such a pair. Of two classes, inside jit and many
  groups at once: `method.shortcuts.auc_in_groups`.

  Args:
    fits_NN: bool, the pairs that count; None: all.
  """
  higher_NN = truth_N[:, None] > truth_N
  higher_NN = higher_NN if fits_NN is None else higher_NN & fits_NN
  ranked_NN = (np.sign(score_N[:, None] - score_N) + 1) / 2
  return float(ranked_NN[higher_NN].mean()) if higher_NN.any() else float("nan")

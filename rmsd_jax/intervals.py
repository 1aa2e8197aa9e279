"""Means with bootstrap intervals over clusters, and pass@k. Numpy only."""

from collections.abc import Sequence

import numpy as np


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
    {"mean", "low", "high", "n"}; NaN without values.
  """
  values = np.asarray(values, np.float64)
  if not len(values):
    return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
  _, member = np.unique(np.asarray(clusters), return_inverse=True)
  sums, counts = np.bincount(member, values), np.bincount(member)
  drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
  means = sums[drawn].sum(1) / counts[drawn].sum(1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def pass_at_k(passed_BN: np.ndarray, k: int) -> np.ndarray:
  """Chance that at least one of k samples passes, estimated without bias from N >= k samples.

  1 - C(N - c, k) / C(N, k) with c passes (Chen et al., arXiv 2107.03374). float [B].
  """
  N, c_B = passed_BN.shape[1], passed_BN.sum(1)
  if k > N:
    raise ValueError(f"pass@{k} needs {k} samples, there are {N}")
  # The product form of C(N - c, k) / C(N, k); a factor reaches 0 when N - c < k.
  failed = np.maximum(N - c_B[:, None] - np.arange(k), 0) / (N - np.arange(k))
  return 1 - failed.prod(1)

"""Sums, means and spreads under a mask equal numpy's over the chosen values; empty gives 0."""

import numpy as np
import pytest

from rmsd_jax.core import masked

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 5)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
PLAIN = {
  masked.total: np.sum,
  masked.mean: lambda x: np.mean(x) if len(x) else 0.0,
  masked.std: lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0,
}
each = pytest.mark.parametrize("f", PLAIN, ids=lambda f: f.__name__)


@each
def test_equals_numpy_over_the_chosen_values(f):
  want = [PLAIN[f](row[mask]) for row, mask in zip(X, MASK, strict=True)]
  np.testing.assert_allclose(f(X, MASK, -1), want, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(f(X, MASK), PLAIN[f](X[MASK]), rtol=1e-5)
  columns = [PLAIN[f](row[mask]) for row, mask in zip(X.T, MASK.T, strict=True)]
  np.testing.assert_allclose(f(X, MASK, 0), columns, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(f(X, MASK, -1, keepdims=True)[:, 0], f(X, MASK, -1))


@each
def test_an_empty_mask_gives_zero(f):
  assert f(X, np.zeros_like(MASK)) == 0
  assert (np.asarray(f(X, np.zeros_like(MASK), -1)) == 0).all()


@each
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_masked_values_may_be_anything(f, junk):
  np.testing.assert_array_equal(f(np.where(MASK, X, junk), MASK, -1), f(X, MASK, -1))


@each
def test_a_mask_is_broadcast_over_the_values(f):
  """The count, too, is of broadcast values: three rows of a column mask are three values."""
  column = np.array([[True], [False], [True], [True]])
  np.testing.assert_allclose(f(X, column), PLAIN[f](X[[0, 2, 3]].ravel()), rtol=1e-5)


def test_one_value_has_no_spread():
  assert masked.std(X[:1, :1], MASK[:1, :1]) == 0

"""Hypothesis strategies that several files share."""

from hypothesis import strategies as st


def pairs(low, high):
  """Two different whole numbers as floats, in order."""
  both = st.lists(st.integers(low, high), min_size=2, max_size=2, unique=True)
  return both.map(lambda ends: tuple(map(float, sorted(ends))))

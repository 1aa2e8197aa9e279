"""Sums, means and spreads under a mask. The one place that says what an empty mask gives: 0."""

import jax
import jax.numpy as jnp


def total(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
  """Sum of x where mask is true. Masked values may be NaN, but not their derivatives."""
  # A product with the mask would turn a masked NaN or infinity into NaN.
  return jnp.sum(jnp.where(mask, x, 0), axis, keepdims=keepdims)


def mean(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
  """Mean of x where mask is true; 0 where nothing is."""
  count = jnp.sum(jnp.broadcast_to(mask, x.shape), axis, keepdims=keepdims)
  return total(x, mask, axis, keepdims) / jnp.maximum(count, 1)


def std(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
  """Unbiased standard deviation of x where mask is true; 0 for fewer than two values."""
  count = jnp.sum(jnp.broadcast_to(mask, x.shape), axis, keepdims=keepdims)
  centred = x - mean(x, mask, axis, keepdims=True)
  return jnp.sqrt(total(centred**2, mask, axis, keepdims) / jnp.maximum(count - 1, 1))

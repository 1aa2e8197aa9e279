"""What every layer is made of: weights, norms, and stacks of layers under `lax.scan`.

A weight is one line, `self.q = normal(rngs, std, D=d, N=n, H=h)`: name, axes, sizes, init.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

REMAT = ("none", "products", "all")  # what `recomputed` computes again
NEVER = -1e30  # a finite "minus infinity": a row that sees nothing yields a mean, not NaN
ATTENTION = "attention"  # name of what an attention kernel keeps for its backward pass


def normal(rngs: nnx.Rngs, std: float, **axes: int) -> nnx.Param:
  """A weight drawn from N(0, std^2), fp32, with one axis per keyword, in order."""
  return nnx.Param(std * jax.random.normal(rngs.params(), tuple(axes.values()), jnp.float32))


def ones(**axes: int) -> nnx.Param:
  return nnx.Param(jnp.ones(tuple(axes.values()), jnp.float32))


def zeros(**axes: int) -> nnx.Param:
  return nnx.Param(jnp.zeros(tuple(axes.values()), jnp.float32))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in fp32, back in x's dtype."""
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
  # The scale is applied after the cast, as transformers does: in bfloat16 the order shows.
  return x32.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float = 1e-6) -> jax.Array:
  """(x - mean) / s.d. * scale + bias over the last axis, in fp32, back in x's dtype."""
  x32 = x.astype(jnp.float32)
  x32 = x32 - jnp.mean(x32, -1, keepdims=True)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
  # Unlike in rms_norm scale and bias are applied in fp32, as in torch's LayerNorm.
  return (x32 * scale + bias).astype(x.dtype)


def project(x: jax.Array, kernel: jax.Array, inputs: int = 1) -> jax.Array:
  """x [.., I..] times kernel [I.., O..] -> [.., O..], in x's dtype; `inputs` axes are summed.

  One plain matrix product: on CPU the gradient of the batched form takes twice as long.
  """
  # [.., I..] -> [tokens, I] and [I.., O..] -> [I, O]. The weight is cast here, inside the layer, so
  # that a sharded one is gathered in the activations' type and not in fp32.
  size = math.prod(kernel.shape[:inputs])
  y = x.reshape(-1, size) @ kernel.astype(x.dtype).reshape(size, -1)
  return y.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, inputs: int = 1) -> jax.Array:
  """`project` and a bias [O..]."""
  return project(x, kernel, inputs) + bias.astype(x.dtype)


def logits(hidden, unembedding_VD):
  """hidden [.., D] -> logits fp32 [.., V]."""
  # Operands in the activations' type, sums in fp32: what a softmax over V terms is taken of.
  kernel = unembedding_VD.astype(hidden.dtype)
  hidden_MD = hidden.reshape(-1, hidden.shape[-1])
  logits_MV = jnp.einsum("MD,VD->MV", hidden_MD, kernel, preferred_element_type=jnp.float32)
  return logits_MV.reshape(*hidden.shape[:-1], -1)


def recomputed(body: Callable, remat: str) -> Callable:
  """The body of a scan over layers, which computes again in the backward pass what is not kept.

  Args:
    remat: what is not kept: "none" of it, all but the "products" with weights and the attention
      kernel's own residuals, or "all" of it.
  """
  if remat == "none":
    return body
  keep = jax.checkpoint_policies
  # A product with a weight has no batch axis (`project`), attention's own products have.
  products = keep.save_from_both_policies(
    keep.dots_with_no_batch_dims_saveable, keep.save_only_these_names(ATTENTION)
  )
  # Inside a scan XLA cannot merge the second forward pass with the first, so that the barriers
  # against it (prevent_cse) would only cost time.
  return jax.checkpoint(body, policy=products if remat == "products" else None, prevent_cse=False)


class Stack:
  """L equal layers: parameters carry a leading L axis, and one traced body runs them all.

  `make(rngs)` builds one layer (an nnx.Module). Parameters are plain nested dicts.
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
    self._make = make
    # The structure of a layer is found once, without making weights, and merged with each layer's
    # parameters in turn: per step 0.5 ms of the host for 28 layers, where nnx's own transforms took
    # 3.6 to 54 ms.
    self._graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

  def init(self, key: jax.Array, layers: int) -> dict:
    return jax.vmap(lambda k: init(self._make, k))(jax.random.split(key, layers))

  def layer(self, params: dict) -> nnx.Module:
    """The module of one layer, around the parameters of that layer."""
    return nnx.merge(self._graph, params)


def init(make: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> dict:
  """Parameters of one module as a nested dict of arrays."""
  return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

"""The smallest Qwen3-VL that can break a law, random weights for it, and a quick jit.

Every weight is random, norms and biases too, so that none of them is invisible. Widths divide over
four devices and heads over two, so that the model also lies on a mesh.
"""

import jax
import numpy as np

from rmsd_jax.core import named, packed
from rmsd_jax.method import losses
from rmsd_jax.models import layers
from rmsd_jax.models.config import ModelConfig, TextConfig, VisionConfig
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.training import optim

CONFIG = ModelConfig(
  TextConfig(
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    mlp=24,
    head=8,
    vocab=160,
    theta=100.0,
    sections=(2, 1, 1),
  ),
  VisionConfig(depth=2, width=16, heads=2, mlp=24, out=16, patch=4, table=6, deepstack=(0,)),
)
MODEL = Qwen3VL(CONFIG)
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def random_params(tree, seed=0) -> dict:
  """fp32 values for a nested dict of shapes: about N(0, 1 / inputs), norms about 1."""
  rng, flat = np.random.default_rng(seed), {}
  for name, leaf in named.flatten(tree).items():
    centre = 1.0 if name.endswith(("norm", "scale")) else 0.0
    flat[name] = np.float32(centre + 0.25 * rng.standard_normal(leaf.shape))
  return named.unflatten(flat)


def jit(f):
  """`jax.jit`, results in numpy, with hardly any optimisation: these programs run once or twice."""
  compiled = jax.jit(f, compiler_options=QUICK)
  return lambda *arguments: jax.device_get(compiled(*arguments))


def sft_loss(model: Qwen3VL):
  """The stage 1 loss as `optim.add` takes it, over a batch laid out unpacked; parts are hidden
  states and logits."""

  def loss_fn(params, groups):
    rows = packed.padded(groups)
    B, R, T = groups.responses_BRT.shape
    by_response = lambda x_BW: x_BW.reshape(B, R, T, *x_BW.shape[2:])
    hidden_BSD = model.hidden(params, rows, model.encode(params, groups))
    hidden_BWD = losses.predictors(hidden_BSD, rows)
    unembedding_VD = model.unembedding(params)
    logp_BW = losses.token_logps(hidden_BWD, unembedding_VD, rows.targets_XW)
    loss, count = losses.sft(logp_BW, rows.mask_XW)
    parts = {
      "prompt": hidden_BSD[:, : rows.P],
      "response": by_response(hidden_BSD[:, rows.P :]),
      "logits": by_response(layers.logits(hidden_BWD, unembedding_VD)),
      "logp": by_response(logp_BW),
    }
    return loss, optim.Figures(count, {"loss": loss}, parts=parts)

  return loss_fn


def gradients(loss_fn, params, *arguments):
  """Gradient of the mean loss, metrics and parts of a batch in one piece."""
  grads, figures = optim.add(loss_fn, params, optim.nothing(params), *arguments)
  return *optim.averaged(grads, figures), figures.parts


def assert_close(got, want, tolerance=1e-5):
  """Every leaf of a pytree, to `tolerance` times its largest value (1 if that is smaller)."""

  def one(path, a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f"{jax.tree_util.keystr(path)}: {a.shape} and {b.shape}"
    assert np.array_equal(np.isnan(a), np.isnan(b)), f"{jax.tree_util.keystr(path)}: NaN differ"
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    far = np.max(np.abs(a - b), initial=0)
    limit = tolerance * max(1.0, np.max(np.abs(b), initial=0))
    assert far <= limit, f"{jax.tree_util.keystr(path)} differs by {far}, limit {limit}"

  jax.tree_util.tree_map_with_path(one, got, want)

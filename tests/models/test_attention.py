"""Attention of packed rows and of decoding: every implementation is the dense mask.

Axes: X rows, P prompt places, W response places, S = P + W, Z shards; in decoding B prompts, R
responses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import assert_close, jit

from rmsd_jax.core.errors import UserError
from rmsd_jax.models import attention, flash_decoding, splash


def random_layout(P, W, prompts, responses, longest):
  """Rows of several groups: lengths of their prompts and of their responses, in order."""
  X = len(prompts)
  group_XS = np.full((X, P + W), -1, np.int32)
  start_XS = np.zeros((X, P + W), np.int32)
  for x in range(X):
    at = np.cumsum([0, *prompts[x]])
    start = P
    for g, lengths in enumerate(responses[x]):
      group_XS[x, at[g] : at[g + 1]] = g
      for n in lengths:
        group_XS[x, start : start + n] = g
        start_XS[x, start : start + n] = start
        start += n
  return attention.Layout(jnp.asarray(group_XS), jnp.asarray(start_XS), P, longest)


def random_heads(layout, head):
  """Queries, keys, values and weights of the outputs, which are 0 where padding stands."""
  rng = np.random.default_rng(1)
  shape = layout.group_XS.shape
  q, k, v, weight = (
    rng.standard_normal((*shape, heads, head)).astype(np.float32) for heads in (4, 2, 2, 4)
  )
  counts = np.asarray(layout.group_XS >= 0)[..., None, None]
  return q, k, v, weight * counts, counts  # what padding attends to is nobody's business


@pytest.mark.parametrize(
  "layout",
  [
    random_layout(12, 10, [[7, 4], [12]], [[[3, 1], [2, 2, 1]], [[4, 4]]], longest=4),
    random_layout(12, 9, [[3], [5, 5]], [[[9]], [[1], [3, 2]]], longest=9),
    random_layout(12, 16, [[3], [5, 5]], [[[]], [[5], [5, 2]]], longest=5),
    random_layout(7, 0, [[7], [3], [1]], [[[]], [[]], [[]]], longest=1),
  ],
  ids=["several groups", "one block", "blocks that cut responses", "prompts alone"],
)
def test_split_attention_equals_the_dense_mask(layout):
  """Values and gradients, with ragged prompts, and with no response at all."""
  q, k, v, weight, counts = random_heads(layout, 8)

  @jit
  def both(q, k, v):
    def one(impl):
      def value(q, k, v):
        o = attention.group_attention(q, k, v, layout, impl)
        return jnp.sum(o * weight), o * counts

      return jax.value_and_grad(value, (0, 1, 2), has_aux=True)(q, k, v)

    return one("split"), one("dense")

  split, dense = both(q, k, v)
  assert_close(split, dense)
  assert float(np.abs(dense[1][0]).max()) > 1e-2


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_the_kernels_of_tpu_and_gpu_equal_the_dense_mask(kernel):
  """Values and gradients: splash in interpret mode, cuDNN's call through its plain XLA twin.

  Several groups in a row, grouped queries, responses that begin and end inside blocks.
  """
  layout = random_layout(
    384,
    640,
    [[100, 180, 77], [301]],
    [[[90, 41, 120], [33, 150], [60, 60, 7]], [[200, 11, 64, 90]]],
    longest=200,
  )
  q, k, v, weight, counts = random_heads(layout, 16)

  def run(q, k, v):
    k_XKSH, v_XKSH = k.swapaxes(1, 2), v.swapaxes(1, 2)
    if kernel == "cudnn":
      return attention._cudnn(q / 4, k_XKSH, v_XKSH, layout, implementation="xla")
    q_XNSH = q.swapaxes(1, 2) / 4
    return splash.attention(q_XNSH, k_XKSH, v_XKSH, layout, interpret=True).swapaxes(1, 2)

  dense = lambda q, k, v: attention.group_attention(q, k, v, layout, "dense")

  def graded(f):
    value = lambda q, k, v: (jnp.sum(f(q, k, v) * weight), f(q, k, v) * counts)
    return jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))(q, k, v)

  assert_close(graded(run), graded(dense), 3e-5)


def test_splash_leaves_out_blocks_that_nothing_sees():
  """Of two groups of one response each: no block of the other group, none of the future."""
  layout = random_layout(512, 512, [[256, 256]], [[[256], [256]]], longest=256)
  forward, backward = splash.mask_infos(layout.start_XS[0], layout.group_XS[0], 512, 256)
  want = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]])
  np.testing.assert_array_equal(forward.block_mask[0], want)
  np.testing.assert_array_equal(backward.block_mask[0], want)


def test_splash_refuses_rows_it_cannot_run():
  splash.check_sizes(256, 0)
  for sizes in ((200, 256), (256, 200), (1 << 15, 128)):
    with pytest.raises(UserError, match="set model.attention to 'split'"):
      splash.check_sizes(*sizes)


def test_an_unknown_attention_is_refused_with_the_choices():
  with pytest.raises(UserError, match="'flash' is unknown; choose one of auto, split"):
    attention.resolve("flash", "bfloat16")
  assert attention.resolve("auto", "float32") == "split"


@pytest.mark.parametrize("kept, window", [([0, 1, 2, 3, 4, 5], 3), ([4, 0, 5, 2], 1)], ids=str)
def test_a_decoded_token_attends_like_the_same_place_of_a_row(kept, window):
  """In layer 1 of the caches; also where two responses have left and the others changed places."""
  layout = random_layout(5, 12, [[5], [2]], [[[4, 4, 4]]] * 2, longest=4)
  rng = np.random.default_rng(2)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  q, k, v = normal(2, 17, 4, 8), normal(2, 17, 2, 8), normal(2, 17, 2, 8)
  row_of_BRX = None if len(kept) == 6 else (np.arange(6)[:, None] == kept).reshape(2, 3, -1)
  rows = lambda x: x[:, 5:].reshape(6, 4, *x.shape[2:])[np.array(kept)]

  @jit
  def decoded(t):
    prompt = [np.stack([5 - x, x])[:, :, :5].swapaxes(2, 3) for x in (k, v)]
    own = [np.stack([5 - rows(x), rows(x)])[:, None].swapaxes(3, 4) for x in (k, v)]
    q_ZXNH, length_B = jnp.asarray(rows(q))[None, :, t], jnp.array([5, 2])
    return attention.decode_attention(q_ZXNH, prompt, own, length_B, row_of_BRX, 1, t, window)[0]

  row = rows(attention.group_attention(q, k, v, layout, "dense"))
  assert_close(jnp.stack([decoded(t) for t in range(4)], 1), row)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("queries, width", [(1, 8), (12, 128)])
def test_decoding_with_the_scores_on_the_chip_is_decoding(dtype, queries, width):
  """The kernel for TPU in interpret mode, in layer 2 of 3, behind prompts of any length."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  q, cache = normal(3, 2, queries, width), (normal(3, 3, 2, 20, width), normal(3, 3, 2, 20, width))
  given = q * width**-0.5, cache, jnp.array(2), jnp.array([1, 13, 20])
  on_chip = flash_decoding.attention(*given, interpret=True)
  want = attention._prompts(*given)
  for got, part in zip(on_chip, want, strict=True):
    assert got.dtype == part.dtype
    assert_close(got, part)
  alone = cache[1][2, 0, :, :1].astype("float32")  # all of the weight is the first place's
  assert_close(on_chip[0][0] / on_chip[2][0], jnp.broadcast_to(alone, q[0].shape))

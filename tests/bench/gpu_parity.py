"""Parts of tests.bench.on_gpu that ask whether this device computes what it should.

Axes: B prompts, P prompt tokens, R responses, T response tokens, S = P + R*T, N query heads,
K key/value heads, H head width.
"""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from rmsd_jax import train_sft
from rmsd_jax.compile import cost
from rmsd_jax.core import packed, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.models import attention as attention_lib
from rmsd_jax.models import hf
from tests.bench.measure import Out, peak_flops, seconds_of
from tests.bench.random_model import (
  SIZES,
  Size,
  make_config,
  make_groups,
  make_state,
  model_config,
  write_folder,
)

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative, of norms


def relative(ours, wanted) -> float:
  """|ours - wanted| / |wanted| over all leaves of two trees, in float64; NaN stays NaN."""
  pair = [
    np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    for tree in (ours, wanted)
  ]
  return float(np.linalg.norm(pair[0] - pair[1]) / np.linalg.norm(pair[1]))


def attention(size: Size, out: Out) -> dict:
  """Every path on bfloat16 inputs against the dense oracle in fp32 on the same numbers."""
  B, P, R, T, N, K = size.attention
  H = 128
  # Responses end to end, as long as T or a third shorter; the second row's prompt is shorter.
  rows = padded_rows(B, P, R, T, jnp.array([P, P - 37]), T - T // 3)
  layout = attention_lib.Layout.of(rows)
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(B, P + R * T, heads, H) for heads in (N, K, K, N)]
  q, k, v, weight = (
    jax.random.normal(key, s, jnp.bfloat16) for key, s in zip(keys, shapes, strict=True)
  )
  # What stands in padding is nobody's input: neither compared nor differentiated.
  counts_BS = rows.group_XS >= 0
  weight = jnp.where(counts_BS[..., None, None], weight, 0)

  def values(attend, q, k, v):
    o = attend(q, k, v)
    return (o.astype(jnp.float32) * weight).sum(), jnp.where(counts_BS[..., None, None], o, 0)

  def grads(attend, *qkv):
    (_, o), d = jax.jit(jax.value_and_grad(functools.partial(values, attend), (0, 1, 2), True))(
      *qkv
    )
    return dict(zip(("o", "dq", "dk", "dv"), (o, *d), strict=True))

  path = lambda impl: lambda q, k, v: attention_lib.group_attention(q, k, v, layout, impl)

  def xla(q, k, v):  # the cuDNN path's masks, by XLA's own attention
    o = attention_lib._cudnn(q * H**-0.5, k.swapaxes(1, 2), v.swapaxes(1, 2), layout, "xla")
    return o.astype(q.dtype)

  with jax.default_matmul_precision("highest"):
    wanted = grads(path("dense"), *(x.astype(jnp.float32) for x in (q, k, v)))
  paths = {"split": path("split"), "xla": xla}
  if jax.default_backend() == "gpu":
    paths = {"cudnn": path("cudnn")} | paths
  found = {}
  for name, attend in paths.items():
    ours = grads(attend, q, k, v)
    errors = {part: relative(ours[part], wanted[part]) for part in ours}
    ok = all(error <= TOLERANCE["bfloat16"] for error in errors.values())
    found[name] = {"relative_errors": errors, "ok": ok}
    out.say(f"{name:<6} " + ", ".join(f"{k} {e:.1e}" for k, e in errors.items()), ok)
  return found | {"seconds": _attention_seconds(size, paths, out)}


def padded_rows(B: int, P: int, R: int, T: int, prompt_B, shortest: int) -> packed.Rows:
  """Rows of one group each; of two responses one is full and the next of `shortest` tokens."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
  length_R = jnp.where(jnp.arange(R) % 2 == 0, T, shortest)
  return packed.padded(
    PromptGroups(
      tokens_BP=zeros(B, P),
      positions_B3P=zeros(B, 3, P),
      prompt_length_B=prompt_B,
      next_position_B=zeros(B),
      visual_BP=zeros(B, P) - 1,
      patches_BFSC=zeros(B, 1, 4, 1),
      grid_BF2=zeros(B, 1, 2),
      responses_BRT=zeros(B, R, T),
      response_length_BR=jnp.broadcast_to(length_R, (B, R)),
    )
  )


def _attention_seconds(size: Size, paths: dict, out: Out) -> dict:
  """Forward and backward of one layer at the size of a policy micro-batch, by path."""
  t = model_config(size).text
  P, T, _, _ = size.bucket
  B, R = size.batch // 2, size.samples
  rows = padded_rows(B, P, R, T, jnp.full(B, P), T)
  layout = attention_lib.Layout.of(rows)
  make = lambda heads: jax.random.normal(
    jax.random.key(heads), (B, P + R * T, heads, t.head), jnp.bfloat16
  )
  qkv = make(t.heads), make(t.kv_heads), make(t.kv_heads)
  flops = 3 * 4 * cost.pairs(np.full(B, P), np.full((B, R), T)) * t.heads * t.head
  seconds = {}
  for name in paths.keys() & {"cudnn", "split"}:
    attend = lambda *x, name=name: attention_lib.group_attention(*x, layout, name)
    run = jax.jit(jax.grad(lambda *x, f=attend: f(*x).astype(jnp.float32).sum(), (0, 1, 2)))
    seconds[name] = seconds_of(lambda run=run: run(*qkv), size.repeats)
    out.say(
      f"{name:<6} one layer of {B} x ({P} + {R} x {T}), forward and backward: "
      f"{1e3 * seconds[name]:.2f} ms, {flops / seconds[name] / peak_flops():.0%} of the peak"
    )
  return seconds


def parity(size: Size, out: Out) -> dict:
  """A small model's logits, and loss and gradient of one SFT step, against fp32 on the CPU."""
  small = SIZES["tiny"]
  groups = make_groups(small, 1)

  def outcome(device, dtype: str) -> dict:
    with tempfile.TemporaryDirectory() as folder, jax.default_device(device):
      write_folder(small, folder)
      config = make_config(small, "sft", folder, dtype=dtype)
      config.optim.moment_dtype = "float32"
      mesh = sharding.make_mesh(1, 1, 1, [device])
      model = hf.load_model(**config.model)
      with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        with jax.default_device(jax.devices("cpu")[0]):
          params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
        optims = train_sft.make_optims(config)
        state = make_state(config, mesh, model, optims)
        put = lambda like, x: jax.device_put(x, like.sharding)
        for part in ("student", "frozen"):
          wanted = {k: params[k] for k in state[part]}
          state[part] = jax.tree.map(put, state[part], wanted)
        batch = sharding.put_batch(mesh, groups)
        logits = model.logits(jax.device_put(params, device), batch)
        steps = train_sft.make_steps(config, mesh)
        state, metrics = train_sft.train_step(config, mesh, steps, state, groups)
        moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(
          state["student_optim"]) if "mu" in jax.tree_util.keystr(path)]  # fmt: skip
        # The first moment of the first step is the gradient up to a factor.
        return jax.device_get({"logits": logits, "loss": metrics["loss"], "gradient": moments})

  wanted = outcome(jax.devices("cpu")[0], "float32")
  found = {}
  for dtype, most in TOLERANCE.items():
    ours = outcome(jax.devices()[0], dtype)
    errors = {part: relative(ours[part], wanted[part]) for part in wanted}
    # A gradient sums many rounded numbers; 1e-1 still tells a wrong path from a right one.
    ok = all(e <= (5 * most if part == "gradient" else most) for part, e in errors.items())
    found[dtype] = {"relative_errors": errors, "ok": ok}
    out.say(f"{dtype:<9}" + ", ".join(f"{k} {e:.1e}" for k, e in errors.items()), ok)
  return found

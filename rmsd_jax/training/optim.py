"""Optimizers by name, gradients over the pieces of a batch, and updates that must not count."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rmsd_jax.core import named
from rmsd_jax.core.errors import UserError, check_within

SCHEDULES = ("cosine", "constant")
_PREFIXES = {"student": "policy/", "discriminator": "discriminator/"}  # of stage 2's metrics
WITHIN = {  # of an optimizer's section
  "learning_rate": "[0, inf)",
  "b1": "[0, 1)",
  "b2": "[0, 1)",
  "weight_decay": "[0, inf)",
  "clip_norm": "(0, inf)",
}


def schedule(optim, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up, then "cosine" to 0 at `steps`, or "constant".

  Args:
    optim: a config section with learning_rate, warmup_share (of `steps`) and schedule.
  """
  if optim.schedule not in SCHEDULES:
    raise UserError(f"optim.schedule is {optim.schedule!r}; choose one of {', '.join(SCHEDULES)}")
  if not 0 <= optim.warmup_share <= 1:
    raise UserError(f"optim.warmup_share={optim.warmup_share}: it is a share of the steps, 0 to 1")
  rate, warmup = optim.learning_rate, max(1, round(optim.warmup_share * steps))
  if optim.schedule == "cosine":
    shape = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1))
  else:
    ramp = optax.linear_schedule(0.0, rate, warmup)
    shape = optax.join_schedules([ramp, optax.constant_schedule(rate)], [warmup])
  return lambda step: shape(step + 1)  # the first update already moves


class Skipping(NamedTuple):
  """State of an optimizer that leaves out updates whose gradient is not finite."""

  inner: Any
  skipped: jax.Array  # int32, updates left out so far
  in_a_row: jax.Array  # int32, of them the latest without a good one between


def skipping(inner: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
  """`inner` on gradients clipped to a global norm; one that is not finite, or 0, changes nothing.

  Updates that are not finite are counted. A gradient is 0 where a batch has nothing to learn from,
  no pair or no target; momentum and decay alone must not move the weights then.
  optax.apply_if_finite lets updates through from a limit on, and optax.clip_by_global_norm divides
  before it multiplies, which keeps a second gradient in memory.
  """

  def init(params):
    return Skipping(inner.init(params), jnp.int32(0), jnp.int32(0))

  def update(grads, state, params):
    norm = optax.tree.norm(grads)
    finite, scale = jnp.isfinite(norm), jnp.where(norm < clip_norm, 1, clip_norm / norm)
    clipped = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    updates, after = inner.update(clipped, state.inner, params)
    moves = finite & (norm > 0)
    keep = lambda new, old: jnp.where(moves, new, old)
    count = jnp.where(finite, 0, 1)
    return (
      jax.tree.map(lambda u: jnp.where(moves, u, 0), updates),
      Skipping(
        jax.tree.map(keep, after, state.inner),
        state.skipped + count,
        (state.in_a_row + count) * count,
      ),
    )

  return optax.GradientTransformation(init, update)


def _adamw(optim, rate: optax.Schedule, decayed: Callable) -> optax.GradientTransformation:
  """Reads b1, b2, weight_decay and moment_dtype (of the first moment)."""
  if optim.moment_dtype not in ("float32", "bfloat16"):
    raise UserError(f"optim.moment_dtype is {optim.moment_dtype!r}; choose float32 or bfloat16")
  return optax.adamw(
    rate,
    b1=optim.b1,
    b2=optim.b2,
    weight_decay=optim.weight_decay,
    mu_dtype=optim.moment_dtype,
    mask=decayed,
  )


# optim.name -> what makes the optimizer of (the config section, the learning rate by step, the mask
# of the weights that may decay: params -> a tree of booleans). Clipping and the updates that must
# not count are around all of them, see `make`.
OPTIMIZERS = {"adamw": _adamw}


class Optimizer(NamedTuple):
  """An optax transformation and its learning rate by update, from 0."""

  init: Callable
  update: Callable
  rate: optax.Schedule


def make(optim, steps: int) -> Optimizer:
  """The optimizer of a config section with clipping by global norm; see `skipping`.

  Args:
    optim: the section; besides name, clip_norm and the keys of `schedule` it has what the optimizer
      of that name reads.
    steps: updates in all.
  """
  check_within(optim, WITHIN)
  if optim.name not in OPTIMIZERS:
    raise UserError(f"optim.name is {optim.name!r}; choose one of {', '.join(OPTIMIZERS)}")
  decayed = lambda params: named.unflatten(
    {name: not _never_decayed(name) for name in named.flatten(params)}
  )
  rate = schedule(optim, steps)
  inner = OPTIMIZERS[optim.name](optim, rate, decayed)
  return Optimizer(*skipping(inner, optim.clip_norm), rate)


def rates(optims: dict[str, Optimizer], state: dict) -> dict[str, jax.Array]:
  """The learning rate of each role's latest update, as the log calls it; of those that made one.

  Args:
    optims: by role.
    state: of the run.
  """
  found = {}
  prefixes = _PREFIXES if "reference" in state else {"student": ""}  # which stage 1 lacks
  for role, tx in optims.items():
    paths = jax.tree_util.tree_leaves_with_path(state[f"{role}_optim"])
    counts = [x for path, x in paths if getattr(path[-1], "name", "") == "count"]
    if counts and (made := int(counts[-1])):  # updates; Skipping leaves out those that do not count
      found[f"{prefixes[role]}learning_rate"] = tx.rate(made - 1)
  return found


def _never_decayed(name: str) -> bool:
  return name.endswith(("norm", "bias", "scale"))


class Figures(NamedTuple):
  """What pieces of a batch say of themselves; `joined` makes one of two."""

  count: jax.Array  # fp32, by which the loss and the sums are divided: tokens, or pairs
  sums: dict  # fp32, "loss" among them
  most: dict = {}  # fp32, of which the largest counts
  parts: Any = None  # arrays of the whole batch, in which each piece fills its own places; 0 else


def nothing(params: dict) -> dict:
  """Gradients to add to: zeros."""
  return jax.tree.map(jnp.zeros_like, params)


def add(loss_fn: Callable, params: dict, grads: dict, *arguments) -> tuple[dict, Figures]:
  """(grads + the gradient of a piece's loss, what the piece says of itself).

  Args:
    loss_fn: (params, *arguments) -> (sum of the loss, Figures).
  """
  more, figures = jax.grad(loss_fn, has_aux=True)(params, *arguments)
  return jax.tree.map(jnp.add, grads, more), figures


@jax.jit
def joined(a: Figures, b: Figures) -> Figures:
  """Of two pieces together."""
  plus = functools.partial(jax.tree.map, jnp.add)
  most = jax.tree.map(jnp.maximum, a.most, b.most)
  return Figures(a.count + b.count, plus(a.sums, b.sums), most, plus(a.parts, b.parts))


def over(pieces: Sequence, grads: dict, add_piece: Callable) -> tuple[dict, Figures]:
  """Adds up all pieces of a batch, one program's run after the other.

  Args:
    add_piece: (grads, piece) -> (grads, Figures).
  """
  grads, figures = add_piece(grads, pieces[0])
  for piece in pieces[1:]:
    grads, more = add_piece(grads, piece)
    figures = joined(figures, more)
  return grads, figures


def averaged(grads: dict, figures: Figures) -> tuple[dict, dict]:
  """The gradient of sum(loss) / sum(count) over all pieces, and {"loss" and every sum, divided}.

  Sums and counts are added first and divided once, so that a batch in pieces has the gradient of
  the whole.
  """
  count = jnp.maximum(figures.count, 1)
  metrics = {name: value / count for name, value in figures.sums.items()}
  return jax.tree.map(lambda g: g / count, grads), metrics | figures.most


def apply(tx: optax.GradientTransformation, grads: dict, opt_state, params: dict):
  """One update by what `make` returned.

  Returns:
    params, opt_state, {"grad_norm" before clipping, "skipped" and "skipped_in_a_row" updates}.
  """
  updates, opt_state = tx.update(grads, opt_state, params)
  counts = {"skipped": opt_state.skipped, "skipped_in_a_row": opt_state.in_a_row}
  return (
    optax.apply_updates(params, updates),
    opt_state,
    {"grad_norm": optax.tree.norm(grads)} | counts,
  )

"""Stage 1: supervised fine-tuning of the student on one teacher response per prompt.

    python -m rmsd_jax.train_sft --config=configs/demo.py:sft --workdir=runs/demo/sft

    L_SFT = -log pi_S(T_target | V, Q)  over response tokens      (R-MSD, arXiv 2603.11423)

The same command on the same folder resumes at the last checkpoint.
From here to the loss: this file, training/imitation.py, method/matching.py, method/losses.py.
Axes: B prompts, K teacher responses, R = 1 target, X packed rows of S places, W of them for
responses, D width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax
import numpy as np

from rmsd_jax import cli
from rmsd_jax.core import sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.method import matching
from rmsd_jax.models import hf
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts import looks
from rmsd_jax.training import imitation, optim, pieces
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.loop import Loop


class Steps(NamedTuple):
  """The jitted programs of stage 1. A step goes over its batch piece by piece, each piece one shape
  of packed rows: `imitate` adds its gradient, `train` makes the update."""

  encode: Callable  # (state, groups) -> the encoded media
  nothing: Callable  # (weights) -> gradients to add to
  imitate: Callable  # (state, grads, rows, groups, visual) -> (grads, figures)
  train: Callable  # (state, grads, figures) -> (state, metrics)
  near: Callable  # (state, rows, groups, visual) -> tokens near the student, of each response
  model: Qwen3VL  # that they compute


def make_steps(config, mesh) -> Steps:
  """Compiled when first called. The update gives the memory of the old state to the new one."""
  model = hf.load_model(**config.model)
  optims = make_optims(config)
  jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))

  def encode(state, groups: PromptGroups):
    # None where the tower learns: its gradient goes through the encoding, piece by piece.
    if "vision" in state["student"]:
      return None
    return model.encode(state_lib.weights(state), groups)

  def train(state, grads, figures):
    grads, metrics = optim.averaged(grads, figures)
    student, opt_state, health = optim.apply(
      optims["student"], grads, state["student_optim"], state["student"]
    )
    state = {**state, "student": student, "student_optim": opt_state}
    return state_lib.pinned(mesh, state), metrics | health

  return Steps(
    encode=jit(encode),
    nothing=jit(lambda weights: state_lib.pinned(mesh, optim.nothing(weights))),
    # keep_unused: the moments stay in memory meanwhile, so rmsd_jax.compile must count them.
    imitate=jit(imitation.imitate_step(config, model), donate_argnums=1, keep_unused=True),
    train=jit(train, donate_argnums=0),
    near=jit(imitation.near_step(config, model)),
    model=model,
  )


def train_step(config, mesh, steps: Steps, state, groups: PromptGroups):
  """One step of stage 1 from the targets of this process's prompts: (state, metrics)."""
  media = sharding.put_batch(mesh, groups)
  visual = steps.encode(state, media)
  grads, figures = optim.over(
    pieces.rows_of(mesh, steps.model, groups, config.row_tokens),
    steps.nothing(state["student"]),
    lambda grads, rows: steps.imitate(state, grads, rows, media, visual),
  )
  return steps.train(state, grads, figures)


def nearness(config, mesh, steps: Steps, state, groups: PromptGroups) -> np.ndarray:
  """Share of the tokens of each of this process's K responses that are among the likeliest of the
  student, fp32 [B, K]: for the target rule "near" (BRTS, arXiv 2605.09725)."""
  media = sharding.put_batch(mesh, groups)
  visual = steps.encode(state, media)
  rows = pieces.rows_of(mesh, steps.model, groups, config.row_tokens)
  near_BK = sum(steps.near(state, piece, media, visual) for piece in rows)
  return sharding.local_rows(near_BK) / np.maximum(groups.response_length_BR, 1)


def make_optims(config) -> dict:
  """Role -> its optimizer."""
  return {"student": optim.make(config.optim, config.steps)}


def init_state(config, mesh, model, optims: dict) -> state_lib.State:
  """The state of step 0."""
  state = state_lib.load_student(mesh, model, config.model.folder, config.init_from, config.trained)
  return state | state_lib.init_optims(mesh, optims, state)


def main(config, workdir: str) -> None:
  """Runs or resumes stage 1."""
  matching.check_supervision(**config.supervision)
  model = hf.load_model(**config.model)
  optims = make_optims(config)
  loop = Loop(config, workdir, stage=1)
  with jax.set_mesh(loop.mesh), loop:
    make = lambda: init_state(config, loop.mesh, model, optims)
    state = loop.start(model, optims, make, looks.Look)
    steps = loop.around(make_steps(config, loop.mesh))
    for step, batch in loop.batches():
      # Drawn anew at each step, so that over epochs equally good responses take turns.
      drawn = {"seed": config.seed, "step": step, **config.supervision}
      if config.supervision.target == "near":
        drawn["near_BK"] = nearness(config, loop.mesh, steps, state, batch.groups)
      groups = matching.targets(batch, **drawn)
      state, metrics = train_step(config, loop.mesh, steps, state, groups)
      length_BR = sharding.put_batch(loop.mesh, groups.response_length_BR)
      metrics["target_tokens"] = length_BR.mean()
      metrics["without_target"] = (length_BR == 0).mean()
      loop.after(step, state, metrics, note="loss")


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main)


if __name__ == "__main__":
  command()

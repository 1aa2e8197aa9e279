"""Stage 1: supervised fine-tuning of the student on one teacher response per prompt.

    python -m rmsd_jax.train_sft --config=configs/demo.py:sft --workdir=runs/demo/sft

    L_SFT = -log pi_S(T_target | V, Q)  over response tokens      (R-MSD, arXiv 2603.11423)

The same command on the same folder resumes at the last checkpoint.
From here to the loss: this file, method/matching.py, method/losses.py.
Axes: B prompts, K teacher responses, R = 1 target, P prompt tokens, T response tokens, D width.
"""

from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax

from rmsd_jax import cli
from rmsd_jax.core import named, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.method import losses, matching
from rmsd_jax.models import hf
from rmsd_jax.training import optim
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.loop import Loop


class Steps(NamedTuple):
  """The jitted program of stage 1."""

  train: Callable  # (state, groups) -> (state, metrics)


def make_steps(config, mesh) -> Steps:
  """Compiled when first called. The update gives the memory of the old state to the new one."""
  model = hf.load_model(**config.model)
  optims = make_optims(config)

  def train(state, groups: PromptGroups):
    def loss_fn(student, groups):
      params = named.join(state["frozen"], student)
      prompt_BPD, response_BRTD = model(params, groups)
      # Token t of a response is predicted one token earlier; t = 0 by the prompt's last token.
      hidden_BRTD = losses.predictors(prompt_BPD, groups.prompt_length_B, response_BRTD)
      logp_BRT = losses.token_logps(
        hidden_BRTD, model.unembedding(params), groups.responses_BRT, 1.0, config.logit_chunk
      )
      loss, metrics = losses.sft(logp_BRT, groups.response_mask_BRT)
      return loss, (metrics, None)

    grads, metrics, _ = optim.gradients(loss_fn, state["student"], groups, config.microbatches)
    student, opt_state, health = optim.apply(
      optims["student"], grads, state["student_optim"], state["student"]
    )
    state = {**state, "student": student, "student_optim": opt_state}
    return state_lib.pinned(mesh, state), metrics | health

  options = sharding.compiler_options(mesh)
  return Steps(train=jax.jit(train, donate_argnums=0, compiler_options=options))


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
  rate = optim.schedule(config.optim, config.steps)
  with jax.set_mesh(loop.mesh), loop:
    state = loop.start(model, optims, lambda: init_state(config, loop.mesh, model, optims))
    steps = make_steps(config, loop.mesh)
    for step, batch in loop.batches():
      # Drawn anew at each step, so that over epochs equally good responses take turns.
      groups = matching.targets(batch, seed=config.seed, step=step, **config.supervision)
      groups = sharding.put_batch(loop.mesh, groups)
      state, metrics = steps.train(state, groups)
      metrics["learning_rate"] = rate(step)
      metrics["target_tokens"] = groups.response_length_BR.mean()
      metrics["without_target"] = (groups.response_length_BR == 0).mean()
      loop.after(step, state, metrics, note="loss")


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main)


if __name__ == "__main__":
  command()

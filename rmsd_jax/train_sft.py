"""Stage 1: supervised fine-tuning of the student on one teacher response per prompt.

    python -m rmsd_jax.train_sft --config=configs/demo.py:sft --workdir=runs/demo/sft

    L_SFT = -log pi_S(T_target | V, Q)  over response tokens      (R-MSD, arXiv 2603.11423)

The same command on the same folder resumes at the last checkpoint.
Axes: B prompts, K teacher responses, R = 1 target, P prompt tokens, T response tokens, D width.
"""

from typing import NoReturn

import jax
import numpy as np

from rmsd_jax import cli
from rmsd_jax.core import named, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.data.batch import Batch
from rmsd_jax.method import losses, matching
from rmsd_jax.models import hf
from rmsd_jax.training import optim
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.loop import Loop


def make_steps(config, mesh):
  """The jitted program of stage 1: {"train": (state, groups) -> (state, metrics)}."""
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
  return {"train": jax.jit(train, donate_argnums=0, compiler_options=options)}


def targets(batch: Batch, step: int, seed: int, supervision) -> PromptGroups:
  """The groups with R = 1: each prompt's target response, or an empty slot where it has none.

  Drawn by (seed, step, row), so alike on any number of processes.

  Args:
    supervision: the config section.
  """
  s = supervision
  quality_BK, graded_B = matching.judged(
    batch.quality_BK, batch.rouge_BK, batch.closed_B, s.closed, s.open_ended
  )
  chosen_B = np.zeros(len(batch.row_B), np.int64)
  for b, row in enumerate(batch.row_B):
    quality_K, present_K, graded = quality_BK[b], batch.present_BK[b], bool(graded_B[b])
    keep_K = matching.survivors(quality_K, batch.valid_BK[b], present_K, graded, s.tau)
    keep_K = matching.eligible(keep_K, present_K, s.target)
    rng = matching.rng_for(seed, step, int(row))
    chosen_B[b] = matching.target(quality_K, keep_K, graded, s.target, rng)
  slot_B1 = np.maximum(chosen_B, 0)[:, None]
  responses_B1T = np.take_along_axis(batch.groups.responses_BRT, slot_B1[..., None], 1)
  length_B1 = np.take_along_axis(batch.groups.response_length_BR, slot_B1, 1)
  return batch.groups.with_responses(responses_B1T, length_B1 * (chosen_B[:, None] >= 0))


def make_optims(config) -> dict:
  """Role -> its optimizer."""
  return {"student": optim.make(config.optim, config.steps)}


def init_state(config, mesh, model, optims: dict) -> state_lib.State:
  """The state of step 0."""
  state = state_lib.load_student(mesh, model, config.model.folder, config.init_from, config.trained)
  return state | state_lib.init_optims(mesh, optims, state)


def main(config, workdir: str) -> None:
  """Runs or resumes stage 1."""
  matching.check(**config.supervision)
  model, optims = hf.load_model(**config.model), make_optims(config)
  loop = Loop(config, workdir, "stage 1")
  rate = optim.schedule(config.optim, config.steps)
  with jax.set_mesh(loop.mesh), loop:
    state = loop.start(model, optims, lambda: init_state(config, loop.mesh, model, optims))
    steps = make_steps(config, loop.mesh)
    for step, batch in loop.batches():
      groups = targets(batch, step, config.seed, config.supervision)
      groups = sharding.put_batch(loop.mesh, groups)
      state, metrics = steps["train"](state, groups)
      metrics["learning_rate"] = rate(step)
      metrics["target_tokens"] = groups.response_length_BR.mean()
      metrics["without_target"] = (groups.response_length_BR == 0).mean()
      loop.after(step, state, metrics, note="loss")


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main)


if __name__ == "__main__":
  command()

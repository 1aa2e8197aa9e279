"""Fixed pairs that the discriminator of any step scores: how far has it drifted?

Axes: B prompts, N rollouts, K teacher responses, R = N + K responses of a group.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rmsd_jax.core import sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.data.batch import Batch
from rmsd_jax.method import shortcuts
from rmsd_jax.method.carriers import Pairs
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.training import pieces
from rmsd_jax.training import state as state_lib


def probe_step(config, model):
  """(state, pieces, groups, pairs) -> metrics of fixed pairs: how far D has drifted."""
  critic = Discriminator(model)

  def probe(state, rows: list[Rows], groups: PromptGroups, pairs: Pairs):
    params = state_lib.weights(state, "discriminator")
    visual = model.encode(params, groups)
    B, N = pairs.match_BN.shape
    R = N + config.data.responses
    score_BR = sum(piece.to_responses(critic.scores(params, piece, visual), B, R) for piece in rows)
    student_BN = score_BR[:, :N]
    teacher_BN = jnp.take_along_axis(score_BR[:, N:], jnp.maximum(pairs.match_BN, 0), 1)
    margin_BN = teacher_BN - student_BN
    figures = {
      "accuracy": margin_BN > 0,
      "margin": margin_BN,
      "score_student": student_BN,
      "score_teacher": teacher_BN,
    }
    return {f"probe/{k}": shortcuts.mean(x_BN, pairs.differs_BN) for k, x_BN in figures.items()}

  return probe


def fixed_pairs(
  config, mesh, steps, state, batch: Batch, keys_of: Callable, pairs_of: Callable
) -> tuple:
  """The first batch, rollouts of the stage 1 student and their pairs: what `probe_step` looks at.

  They follow from the state of any step, so a resumed run looks at the same ones.

  Args:
    steps: the programs of stage 2.
    batch: of step 0.
    keys_of: (mesh, key, rows of the pool) -> the prompts' keys.
    pairs_of: (batch, this process's rollouts, step, config) -> pairs.

  Returns:
    The arguments of `probe_step` behind the state.
  """
  groups = sharding.put_batch(mesh, batch.groups)
  key_B = keys_of(mesh, jax.random.key(config.seed), batch.row_B)
  # In the student's types, so that the program of the rollouts is the one that there is.
  first = jax.tree.map(lambda x, now: x.astype(now.dtype), state["reference"], state["student"])
  samples, _ = steps.rollout(state | {"student": first}, groups, key_B)
  mine = jax.tree.map(sharding.local_rows, samples)
  pairs = pairs_of(batch, mine, 0, config)
  students = batch.groups.with_responses(mine.responses_BRT, mine.length_BR)
  rows = pieces.of_pairs(
    mesh, steps.model, batch.groups, students, mine.finished_BR, pairs, config.row_tokens
  )
  return rows, groups, sharding.put_batch(mesh, pairs)

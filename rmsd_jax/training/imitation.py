"""Stage 1's gradient: of stage 1, and of a warm-up of stage 2 in which the student goes on with it.

Axes: X packed rows, W places of them for responses.
"""

from collections.abc import Callable

from rmsd_jax.core import named
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.method import losses
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.training import optim


def imitate_step(config, model: Qwen3VL) -> Callable:
  """(state, grads, rows, groups, visual) -> (grads, figures): the gradient of a piece."""
  logps = losses.logps_of(model, 1.0, config.logit_chunk)

  def loss_fn(student, frozen, rows: Rows, groups: PromptGroups, visual):
    logp_XW = logps(named.join(frozen, student), rows, groups, visual)
    loss, tokens = losses.sft(logp_XW, rows.mask_XW)
    return loss, optim.Figures(tokens, {"loss": loss})

  def imitate(state, grads, rows: Rows, groups: PromptGroups, visual):
    return optim.add(loss_fn, state["student"], grads, state["frozen"], rows, groups, visual)

  return imitate

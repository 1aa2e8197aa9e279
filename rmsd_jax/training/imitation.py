"""Learning from a teacher without rewards: stage 1's gradient, of stage 1 and of a warm-up of stage
2 in which the student goes on with it; and an open teacher, as the reference of stage 2.

Axes: X packed rows, W places of them for responses.
"""

from collections.abc import Callable

from rmsd_jax.core import named
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import in_bucket
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.method import losses
from rmsd_jax.models import hf
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.training import optim
from rmsd_jax.training import state as state_lib


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


def near_step(config, model: Qwen3VL) -> Callable:
  """(state, rows, groups, visual) -> how many tokens of each response of a piece are among the
  student's `supervision.near_top` likeliest, fp32 [B, K]."""

  def near(state, rows: Rows, groups: PromptGroups, visual):
    params = state_lib.weights(state)
    predicting = losses.predicting_of(model, params, rows, groups, visual)
    top, chunk = config.supervision.near_top, config.logit_chunk
    near_XW = losses.among_likeliest(*predicting, rows.targets_XW, top, chunk)
    return rows.sums(near_XW, *groups.response_length_BR.shape)

  return near


def imitate_teacher(steps, state, rows: list[Rows], groups, visual):
  """(state, metrics): an update of stage 1, in a joint warm-up (GAD, arXiv 2511.10643): the student
  goes on with what it can do, while the discriminator learns on its current samples."""
  grads, figures = optim.over(
    rows,
    steps.nothing(state["student"]),
    lambda grads, piece: steps.imitate(state, grads, piece, groups, visual),
  )
  state, metrics = steps.policy(state, grads, figures, state["running"]["spread"])
  return state, {name.replace("policy/", "warmup/"): value for name, value in metrics.items()}


def teacher_of(config, model: Qwen3VL) -> Qwen3VL | None:
  """The model of `policy.reference`; None where the reference is the student of stage 1."""
  if not config.policy.reference:
    return None
  if in_bucket(config.policy.reference):
    raise UserError(
      f"policy.reference={config.policy.reference}: weights are read from a folder of each host; "
      "copy it there, such as under MODEL (docs/training.md)"
    )
  teacher = hf.load_model(**(dict(config.model) | {"folder": config.policy.reference}))
  if teacher.config.text.vocab != model.config.text.vocab:
    raise UserError(
      f"policy.reference={config.policy.reference} has {teacher.config.text.vocab} tokens, the "
      f"student {model.config.text.vocab}; give a model of the same tokenizer"
    )
  return teacher

"""What a discriminator's accuracy is worth: how far one gets without reading the answers.

A discriminator that tells teacher from student by length or by how a response ends has learned
nothing of use to the student (GAD, arXiv 2511.10643, on endings). These probes judge pairs by such
a feature alone; accuracy is honest where it is well above them.
Axes: B prompts, R pairs of a prompt, M = B * R.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rmsd_jax.core import masked
from rmsd_jax.method.carriers import Pairs


def by_length(margin_BR, student_BR, teacher_BR, pair_BR) -> dict:
  """Accuracy by who is longer, and that of length alone.

  Args:
    margin_BR: score of the teacher response minus that of the rollout.
    student_BR, teacher_BR: lengths in tokens.
    pair_BR: bool, pairs that count.

  Returns:
    "accuracy_teacher_longer", "accuracy_student_longer", "accuracy_equal_length": of the pairs of
      that kind, NaN without any.
    "length_only": of length alone, see `by_feature`: whether the longer or the shorter is the
      teacher's; equal lengths count half.
  """
  right_BR = margin_BR > 0
  longer_BR = teacher_BR - student_BR
  kinds = {
    "teacher_longer": longer_BR > 0,
    "student_longer": longer_BR < 0,
    "equal_length": longer_BR == 0,
  }
  accuracies = {f"accuracy_{name}": mean(right_BR, pair_BR & kind) for name, kind in kinds.items()}
  sign = jnp.sign(longer_BR)
  return accuracies | {"length_only": by_feature(-sign, sign, pair_BR)}


def by_feature(student_BR, teacher_BR, pair_BR) -> jax.Array:
  """Accuracy of telling pairs apart by one feature of each response, e.g. its last token.

  The rule is the likelihood ratio of the feature's values, counted (plus 1) on the pairs of every
  other prompt and tried on those of the others, both ways round: a rule judged by the pairs that
  it was made from would seem to find something in noise. A tie counts half. NaN where a half has no
  pairs.

  Args:
    student_BR, teacher_BR: int, the feature.
    pair_BR: bool, pairs that count.
  """
  half_BR = jnp.broadcast_to(jnp.arange(len(pair_BR))[:, None] % 2 == 0, pair_BR.shape)
  student_M, teacher_M, pair_M, half_M = (
    x.reshape(-1) for x in (student_BR, teacher_BR, pair_BR, half_BR)
  )
  fits_MM = pair_M[None] & (half_M[:, None] != half_M[None])  # [pair tried, pair counted]

  def evidence(value_M):
    """log ratio of how often teachers and students have each value, in the other half."""
    seen = lambda by_M: jnp.sum((value_M[:, None] == by_M[None]) & fits_MM, 1) + 1.0
    return jnp.log(seen(teacher_M)) - jnp.log(seen(student_M))

  margin_M = evidence(teacher_M) - evidence(student_M)
  both = jnp.any(pair_M & half_M) & jnp.any(pair_M & ~half_M)
  return jnp.where(both, mean((jnp.sign(margin_M) + 1) / 2, pair_M), jnp.nan)


ENDING = 4  # tokens: the end tag of the answer takes three in Qwen's vocabulary, and one before


def endings(ids_BRT, length_BR) -> jax.Array:
  """How each response ends: one number for the ENDING tokens before its end-of-turn token.

  Endings that differ have different numbers, but for one pair in some 2^32. int32 [B, R].
  """
  number_BR = jnp.zeros(length_BR.shape, jnp.int32)
  for back in range(2, 2 + ENDING):
    at_BR = length_BR - back
    token_BR = jnp.take_along_axis(ids_BRT, jnp.maximum(at_BR, 0)[..., None], 2)[..., 0]
    number_BR = number_BR * 1_000_003 + jnp.where(at_BR >= 0, token_BR, -1)  # wraps around
  return number_BR


def mean(x, mask) -> jax.Array:
  """Mean under a mask, NaN where nothing is: there is no accuracy of no pairs."""
  return jnp.where(jnp.any(mask), masked.mean(x, mask), jnp.nan)


def by_label(name: str, x_BR, mask_BR, label_B, labels) -> dict:
  """Means of x under the mask per label: {"NAME/LABEL"}, NaN for labels that are not there.

  Args:
    label_B: int32, index into `labels`.
  """
  of = lambda i: mask_BR & (label_B[:, None] == i)
  return {f"{name}/{label}": mean(x_BR, of(i)) for i, label in enumerate(labels)}


def of_pairs(ids_BNT, length_BN, matched_ids_BNT, matched_length_BN, margin_BN, pair_BN) -> dict:
  """How far length and endings alone would tell the pairs apart: {"pairs/NAME"}.

  Args:
    ids_BNT, length_BN: the rollouts.
    matched_ids_BNT, matched_length_BN: the teacher response that each is paired with.
    margin_BN: score of the teacher response minus that of the rollout.
    pair_BN: bool, pairs that count.
  """
  probes = by_length(margin_BN, length_BN, matched_length_BN, pair_BN)
  student_BN = endings(ids_BNT, length_BN)
  teacher_BN = endings(matched_ids_BNT, matched_length_BN)
  probes["ending_only"] = by_feature(student_BN, teacher_BN, pair_BN)
  return {f"pairs/{name}": value for name, value in probes.items()}


def auc_in_groups(score_BR, right_BR, wrong_BR) -> jax.Array:
  """How well a score ranks right rollouts above wrong ones of the same prompt: fp32 [B], the area
  under the ROC curve of each group, 0.5 for a score that knows nothing; NaN where a group has not
  both kinds. A tie counts half.

  Inside groups, since only differences there reach the policy: a score that knows which prompts
  are hard would look good over all rollouts together.
  """
  above_BRR = score_BR[:, :, None] - score_BR[:, None]
  fits_BRR = right_BR[:, :, None] & wrong_BR[:, None]
  ranked_B = masked.mean((jnp.sign(above_BRR) + 1) / 2, fits_BRR, (1, 2))
  return jnp.where(fits_BRR.any((1, 2)), ranked_B, jnp.nan)


@functools.partial(jax.jit, static_argnames=("right_from", "names"))
def of_scores(
  score_BN, counts_BN, content_BN, closed_B, task_B, right_from: float, names: tuple[str, ...]
) -> dict:
  """What the discriminator's scores say of right and wrong: "discriminator/auc" over the
  closed-ended groups with rollouts of both kinds, and by task; NaN without such groups.

  Args:
    score_BN: of the rollouts.
    counts_BN: bool, those that ended and keep their format: to know a broken format is not to know
      a wrong answer.
    right_from: content score from which a rollout is right.
    names: of the tasks, in the order of `task_B`.
  """
  right_BN = content_BN >= right_from
  counts_BN &= closed_B[:, None]
  auc_B = auc_in_groups(score_BN, right_BN & counts_BN, ~right_BN & counts_BN)
  auc_B1, known_B1 = auc_B[:, None], jnp.isfinite(auc_B)[:, None]
  return {
    "discriminator/auc": mean(auc_B1, known_B1),
    **by_label("discriminator/auc", auc_B1, known_B1, task_B, names),
  }


def of_scored_pairs(score_BN, teacher_BN, finished_BN, pairs: Pairs, names: Sequence[str]) -> dict:
  """How far the discriminator tells the pairs of a step apart: {"discriminator/NAME"}, and by task.

  Args:
    score_BN, teacher_BN: logits of the rollouts and of the teacher responses they are paired with.
    names: of the tasks, in the order of `pairs.task_B`.
  """
  paired_BN, differs_BN = jnp.asarray(pairs.paired_BN), jnp.asarray(pairs.differs_BN)
  margin_BN = jnp.where(differs_BN, teacher_BN - score_BN, jnp.nan)
  figures = {
    "pairs": jnp.mean(paired_BN),
    "identical": masked.mean(~differs_BN, paired_BN),
    "score_student": masked.mean(score_BN, finished_BN),
    "score_teacher": masked.mean(teacher_BN, paired_BN),
  } | {f"margin_q{q}": jnp.nanquantile(margin_BN, q / 100) for q in (10, 50, 90)}
  figures = {f"discriminator/{name}": value for name, value in figures.items()}
  return figures | by_task(pairs, teacher_BN > score_BN, differs_BN, names)


def by_task(pairs: Pairs, right_BN, pair_BN, names: Sequence[str]) -> dict:
  """By task: the discriminator's accuracy, teacher responses that survive per prompt, the share of
  rollouts in an effective pair (one whose two responses differ) and their mean weight, 0 without.

  Args:
    right_BN: bool, the teacher response has the higher score.
    pair_BN: bool, effective pairs.
    names: of the tasks, in the order of `pairs.task_B`.
  """
  of_task = functools.partial(by_label, label_B=pairs.task_B, labels=names)
  weight_BN = jnp.where(pair_BN, pairs.weight_BN, 0)
  everyone_BN = jnp.ones_like(pair_BN)
  return {
    **of_task("discriminator/accuracy", right_BN, pair_BN),
    **of_task("pairs/survivors", pairs.survivors_B[:, None], everyone_BN[:, :1]),
    **of_task("pairs/effective", pair_BN, everyone_BN),
    **of_task("pairs/weight", weight_BN, everyone_BN),
  }

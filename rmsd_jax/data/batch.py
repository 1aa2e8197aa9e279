"""Rows of a pool -> padded batches of prompt groups and what is known of them. Numpy only.

Axes: B prompts, K teacher responses, P prompt tokens, T response tokens, F frame pairs, S patches
of a frame pair, C values of a patch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket, PromptGroups
from rmsd_jax.data import prompts, rows
from rmsd_jax.data.processor import patches_from_picture


@dataclasses.dataclass(frozen=True)
class Batch:
  """B prompts, their K teacher responses as the groups' R, and what the pool knows of both.

  Slot k is present when the row has a k-th response that ended by itself and fits T; the slots of
  others are empty (length 0) and not valid.
  """

  groups: PromptGroups
  quality_BK: np.ndarray  # float32, 0 where not valid
  rouge_BK: np.ndarray  # float32, ROUGE-L of open-ended responses, 0 where not valid
  valid_BK: np.ndarray  # bool
  present_BK: np.ndarray  # bool
  trust_BK: np.ndarray  # float32, in proportion to which responses are drawn, see `Pool.trust`
  closed_B: np.ndarray  # bool, closed-ended task
  row_B: np.ndarray  # int64, index of the row in its split
  real_B: np.ndarray  # bool, False for repeats that fill the last batch of an evaluation
  info: list[dict[str, Any]]  # per prompt: id, clip, task, question, options, answer


def collate(
  chosen: Sequence[rows.Row],
  row_B: Sequence[int],
  bucket: Bucket,
  k: int,
  layout: prompts.Layout,
  trust: Mapping[str, Mapping[str, float]] | None = None,
) -> Batch:
  """Pads rows of one bucket to its sizes.

  Args:
    chosen: B rows.
    row_B: their indices in the split.
    bucket: the padded sizes.
    k: response slots; the first k responses of a row are used, missing ones leave empty slots.
    layout: of the pool.
    trust: task -> teacher -> weight; None: all teachers are alike.

  Raises:
    UserError: a row does not fit the bucket, or its placeholders do not match its frames.
  """
  # Unused slots keep what they are made with here: padding, length 0, quality 0, not valid.
  groups = prompts.collate([prompt_of(row, layout) for row in chosen], layout, bucket)
  responses_BKT = np.full((len(chosen), k, bucket.response), layout.pad_id, np.int32)
  length_BK = np.zeros((len(chosen), k), np.int32)
  quality_BK, rouge_BK = np.zeros((2, len(chosen), k), np.float32)
  valid_BK = np.zeros((len(chosen), k), bool)
  trust_BK = np.ones((len(chosen), k), np.float32)
  for b, row in enumerate(chosen):
    for slot, ids_T in enumerate(row.responses[:k]):
      if len(ids_T) > bucket.response:
        raise UserError(
          f"response {slot} of row {row.id!r} has {len(ids_T)} tokens, but T of bucket "
          f"{tuple(bucket)} is {bucket.response}; use the bucket that the pool gives the row"
        )
      responses_BKT[b, slot, : len(ids_T)] = ids_T
      length_BK[b, slot] = len(ids_T)
      # A response that was cut off is stored without tokens: it leaves its slot empty.
      valid_BK[b, slot] = row.valid_K[slot] and len(ids_T) > 0
      if valid_BK[b, slot]:
        quality_BK[b, slot] = row.quality_K[slot]
        rouge_BK[b, slot] = row.rouge_K[slot]
      if trust:
        trust_BK[b, slot] = trust[row.task][row.teachers[slot]]
  return Batch(
    groups=groups.with_responses(responses_BKT, length_BK),
    quality_BK=quality_BK,
    rouge_BK=rouge_BK,
    valid_BK=valid_BK,
    present_BK=length_BK > 0,
    trust_BK=trust_BK,
    closed_B=np.array([row.closed for row in chosen]),
    row_B=np.asarray(row_B, np.int64),
    real_B=np.ones(len(chosen), bool),
    info=[_info(row) for row in chosen],
  )


def blinded(batch: Batch) -> Batch:
  """The same prompts with every frame mid-grey."""
  return dataclasses.replace(batch, groups=batch.groups.without_media())


def prompt_of(row: rows.Row, layout: prompts.Layout) -> prompts.Prompt:
  """The prompt that the row was built from, its pictures decoded."""
  patches = [
    patches_from_picture(picture, grid, layout.patch, layout.merge, layout.temporal)
    for picture, grid in zip(rows.unpack(row), row.grid_F2, strict=True)
  ]
  return prompts.Prompt(row.ids_P, row.is_visual_P, row.grid_F2, tuple(patches), row.times_F2)


def _info(row: rows.Row) -> dict[str, Any]:
  # Without the teacher's texts: what the losses need of them is in the arrays.
  names = ("id", "clip", "task", "question", "options", "answer")
  return {name: getattr(row, name) for name in names}

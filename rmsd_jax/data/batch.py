"""Rows of a pool, or prompts without one -> padded batches of prompt groups. Numpy only.

Axes: B prompts, K teacher responses, P prompt tokens, T response tokens, F frame pairs, S patches
of a frame pair, C values of a patch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsd_jax import positions
from rmsd_jax.data import rows
from rmsd_jax.data.processor import Prompt, patches_from_picture
from rmsd_jax.errors import UserError
from rmsd_jax.groups import Bucket, PromptGroups


@dataclasses.dataclass(frozen=True)
class Batch:
  """B prompts, their K teacher responses as the groups' R, and what the pool knows of both.

  Slot k is present when the row has a k-th response that ended by itself and fits T; the slots of
  others are empty (length 0) and not valid.
  """

  groups: PromptGroups
  quality_BK: np.ndarray  # float32, 0 where not valid
  valid_BK: np.ndarray  # bool
  present_BK: np.ndarray  # bool
  closed_B: np.ndarray  # bool, closed-ended task
  row_B: np.ndarray  # int64, index of the row in its split
  real_B: np.ndarray  # bool, False for repeats that fill the last batch of an evaluation
  info: list[dict[str, Any]]  # per prompt: id, clip, task, question, options, answer, texts


def collate(
  chosen: Sequence[rows.Row],
  row_B: Sequence[int],
  bucket: Bucket,
  k: int,
  layout: rows.Layout,
) -> Batch:
  """Pads rows of one bucket to its sizes.

  Args:
    chosen: B rows.
    row_B: their indices in the split.
    bucket: the padded sizes.
    k: response slots; the first k responses of a row are used, missing ones leave empty slots.
    layout: of the pool.

  Raises:
    UserError: a row does not fit the bucket, or its placeholders do not match its frames.
  """
  prompts = [pad_prompt(prompt_of(row, layout), bucket, layout) for row in chosen]
  responses_BKT = np.full((len(chosen), k, bucket.response), layout.pad_id, np.int32)
  length_BK = np.zeros((len(chosen), k), np.int32)
  quality_BK = np.zeros((len(chosen), k), np.float32)
  valid_BK = np.zeros((len(chosen), k), bool)
  for b, row in enumerate(chosen):
    for slot, ids_T in enumerate(row.responses[:k]):
      if len(ids_T) > bucket.response:
        raise UserError(
          f"response {slot} of row {row.id!r} has {len(ids_T)} tokens, but T of bucket "
          f"{tuple(bucket)} is {bucket.response}; use the bucket that the pool gives the row"
        )
      responses_BKT[b, slot, : len(ids_T)] = ids_T
      length_BK[b, slot] = len(ids_T)
      valid_BK[b, slot] = row.valid_K[slot] and len(ids_T) > 0
      quality_BK[b, slot] = row.quality_K[slot] if valid_BK[b, slot] else 0
  stacked = {name: np.stack([prompt[name] for prompt in prompts]) for name in prompts[0]}
  return Batch(
    groups=PromptGroups(**stacked, responses_BRT=responses_BKT, response_length_BR=length_BK),
    quality_BK=quality_BK,
    valid_BK=valid_BK,
    present_BK=length_BK > 0,
    closed_B=np.array([row.closed for row in chosen]),
    row_B=np.asarray(row_B, np.int64),
    real_B=np.ones(len(chosen), bool),
    info=[_info(row) for row in chosen],
  )


def collate_prompts(prompts: Sequence[Prompt], bucket: Bucket, layout: rows.Layout) -> PromptGroups:
  """Prompts straight from the processor -> groups with no response slots (R = 0)."""
  padded = [pad_prompt(prompt, bucket, layout) for prompt in prompts]
  return PromptGroups(
    **{name: np.stack([prompt[name] for prompt in padded]) for name in padded[0]},
    responses_BRT=np.zeros((len(prompts), 0, bucket.response), np.int32),
    response_length_BR=np.zeros((len(prompts), 0), np.int32),
  )


def prompt_of(row: rows.Row, layout: rows.Layout) -> Prompt:
  """The prompt that the row was built from, its pictures decoded."""
  patches = [
    patches_from_picture(rows.picture(file), grid, layout.patch, layout.merge, layout.temporal)
    for file, grid in zip(row.pictures, row.grid_F2, strict=True)
  ]
  return Prompt(row.ids_P, row.is_visual_P, row.grid_F2, tuple(patches), row.times_F2)


def pad_prompt(prompt: Prompt, bucket: Bucket, layout: rows.Layout) -> Mapping[str, np.ndarray]:
  """One prompt padded to its bucket: the prompt arrays of `PromptGroups`, without B.

  Raises:
    UserError: the prompt does not fit, or its placeholders do not match its frames.
  """
  tokens, frames = len(prompt.ids_P), len(prompt.grid_F2)
  _check_fit(prompt, bucket, layout)
  features = np.arange(bucket.patches // layout.merge**2, dtype=np.int32)
  places_F = prompt.grid_F2.prod(axis=1) // layout.merge**2
  visual = [f * len(features) + features[:places] for f, places in enumerate(places_F)]
  visual_P = np.full(bucket.prompt, -1, np.int32)
  visual_P[:tokens][prompt.is_visual_P] = np.concatenate([np.zeros(0, np.int32), *visual])
  positions_3P = np.zeros((3, bucket.prompt), np.int32)
  positions_3P[:, :tokens], next_position = positions.prompt_positions(
    prompt.is_visual_P, prompt.grid_F2, layout.merge
  )
  values = 3 * layout.temporal * layout.patch**2
  patches_FSC = np.zeros((bucket.frames, bucket.patches, values), np.uint8)
  for f, patches_SC in enumerate(prompt.patches):
    patches_FSC[f, : len(patches_SC)] = patches_SC
  return {
    "tokens_BP": _pad(prompt.ids_P, bucket.prompt, layout.pad_id),
    "positions_B3P": positions_3P,
    "prompt_length_B": np.int32(tokens),
    "next_position_B": np.int32(next_position),
    "visual_BP": visual_P,
    "patches_BFSC": patches_FSC,
    "grid_BF2": np.pad(prompt.grid_F2, ((0, bucket.frames - frames), (0, 0))).astype(np.int32),
  }


def _check_fit(prompt: Prompt, bucket: Bucket, layout: rows.Layout) -> None:
  counts = [len(patches_SC) for patches_SC in prompt.patches]
  if counts != prompt.grid_F2.prod(axis=1).tolist():
    raise UserError(f"frame pairs have {counts} patches, but their grids are {prompt.grid_F2}")
  places, features = int(prompt.is_visual_P.sum()), sum(counts) // layout.merge**2
  if places != features:
    raise UserError(
      f"the prompt has {places} visual placeholders, but its frames give {features} visual tokens"
    )
  sizes = (len(prompt.ids_P), len(counts), max(counts, default=0))
  limits = (bucket.prompt, bucket.frames, bucket.patches)
  for name, size, limit in zip("PFS", sizes, limits, strict=True):
    if size > limit:
      raise UserError(
        f"{name} of the prompt is {size}, but {limit} in bucket {tuple(bucket)}; use a larger one"
      )


def _pad(ids_P: np.ndarray, length: int, pad_id: int) -> np.ndarray:
  padded_P = np.full(length, pad_id, np.int32)
  padded_P[: len(ids_P)] = ids_P
  return padded_P


def _info(row: rows.Row) -> dict[str, Any]:
  names = ("id", "clip", "task", "question", "options", "answer", "texts")
  return {name: getattr(row, name) for name in names}

"""One conversation as arrays, and conversations -> a padded batch of prompt groups. Numpy only.

Axes: B prompts, P prompt tokens, F frame pairs (a still image is one), S patches of a frame pair,
C values of a patch.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rmsd_jax.core import positions
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket, PromptGroups

ROUND_PROMPT = 128  # tokens: batches without a bucket of their own are padded to multiples of it


@dataclasses.dataclass(frozen=True)
class Layout:
  """Sizes that all prompts of a model share: how pictures become patches, what fills gaps."""

  patch: int  # pixels, side of a patch
  merge: int  # patches, side of a visual token
  temporal: int  # frames of a pair
  pad_id: int  # token id of padding, never the end of a turn


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One conversation, unpadded.

  Attributes:
    ids_P: int32 token ids, placeholders expanded, ending where the assistant starts to write.
    is_visual_P: bool, True where a visual token goes. Visual tokens stand in the order of the frame
      pairs, and frame pair f owns rows * columns / merge**2 of them.
    grid_F2: int32 rows and columns of patches of each frame pair.
    patches: F arrays of uint8 [S_f, C], S_f = rows * columns, in the order of `images.patchify`.
    times_F2: float32 presentation times in seconds of the first and last frame of each frame pair,
      on the clock of the file (a window does not shift it); NaN for still images.
  """

  ids_P: np.ndarray
  is_visual_P: np.ndarray
  grid_F2: np.ndarray
  patches: tuple[np.ndarray, ...]
  times_F2: np.ndarray


def from_arrays(
  ids_P: Sequence[int],
  media: Sequence[tuple[np.ndarray, Sequence[int]]],
  visual_ids: Sequence[int],
) -> Prompt:
  """A prompt from what transformers' processor returns, or from any arrays of that form.

  Args:
    ids_P: token ids, each placeholder repeated once per visual token.
    media: per image or clip, in the order of the ids: uint8 patches (transformers' with
      do_rescale=False, do_normalize=False) [pairs * rows * columns, C] in
      the order of `images.patchify`, and its grid (pairs, rows, columns).
    visual_ids: the ids of the image's and the clip's placeholder.

  Example:
    tokens   <|vision_start|> <|image_pad|> <|image_pad|> <|vision_end|> what ?
    media    [(patches [8, C], (1, 2, 4))]     2 x 4 patches of which 2 x 2 make one visual token

  Raises:
    UserError: patches are not uint8, or they and the grid disagree.
  """
  grids = []
  patches = []
  for number, (patches_SC, (pairs, *grid)) in enumerate(media):
    if np.asarray(patches_SC).dtype != np.uint8:
      raise UserError(f"medium {number} is {np.asarray(patches_SC).dtype}; give uint8 grey levels")
    if len(patches_SC) != pairs * grid[0] * grid[1]:
      raise UserError(
        f"medium {number} has {len(patches_SC)} patches, but its grid is {(pairs, *grid)}"
      )
    # [pairs * rows * columns, C] -> one array and one grid a frame pair: attention sees pairs
    # alone.
    grids += [grid] * pairs
    patches += np.split(np.asarray(patches_SC, np.uint8), pairs)
  ids_P = np.asarray(ids_P, np.int32)
  return Prompt(
    ids_P=ids_P,
    is_visual_P=np.isin(ids_P, visual_ids),
    grid_F2=np.array(grids, np.int32).reshape(-1, 2),
    patches=tuple(patches),
    times_F2=np.full((len(grids), 2), np.nan, np.float32),
  )


def smallest_bucket(prompts: Sequence[Prompt], merge: int) -> Bucket:
  """The sizes that hold all the prompts, and no responses: P rounded up to ROUND_PROMPT."""
  most = max((len(p.ids_P) for p in prompts), default=1)
  return Bucket(
    prompt=-(-most // ROUND_PROMPT) * ROUND_PROMPT,
    response=0,
    frames=max([1, *(len(p.grid_F2) for p in prompts)]),
    patches=max([merge**2, *(len(patches_SC) for p in prompts for patches_SC in p.patches)]),
  )


def collate(
  prompts: Sequence[Prompt], layout: Layout, bucket: Bucket | None = None
) -> PromptGroups:
  """Prompts -> groups with no response slots (R = 0).

  Args:
    bucket: the padded sizes; None: the smallest that hold all the prompts. Every new size is
      compiled anew, so give one where many batches follow.

  Raises:
    UserError: a prompt does not fit, or its placeholders do not match its frames.
  """
  bucket = smallest_bucket(prompts, layout.merge) if bucket is None else bucket
  padded = [pad(prompt, bucket, layout) for prompt in prompts]
  return PromptGroups(
    **{name: np.stack([prompt[name] for prompt in padded]) for name in padded[0]},
    responses_BRT=np.zeros((len(prompts), 0, bucket.response), np.int32),
    response_length_BR=np.zeros((len(prompts), 0), np.int32),
  )


def pad(prompt: Prompt, bucket: Bucket, layout: Layout) -> Mapping[str, np.ndarray]:
  """One prompt padded to its bucket: the prompt arrays of `PromptGroups`, without B.

  Raises:
    UserError: the prompt does not fit, or its placeholders do not match its frames.
  """
  tokens = len(prompt.ids_P)
  frames = len(prompt.grid_F2)
  check_prompt(prompt, layout.merge)
  _check_fit(prompt, bucket)
  # Where a prompt's placeholders find their visual token: the tower's output is padded too, S /
  # merge^2 tokens to every frame pair, so pair f begins at f times that, not where the pair before
  # it ends.
  features = np.arange(bucket.patches // layout.merge**2, dtype=np.int32)
  places_F = prompt.grid_F2.prod(axis=1) // layout.merge**2
  visual = [f * len(features) + features[:places] for f, places in enumerate(places_F)]
  visual_P = np.full(bucket.prompt, -1, np.int32)
  visual_P[:tokens][prompt.is_visual_P] = np.concatenate([np.zeros(0, np.int32), *visual])
  # Positions of padding are 0; nothing sees it.
  positions_3P = np.zeros((3, bucket.prompt), np.int32)
  positions_3P[:, :tokens], next_position = positions.prompt_positions(
    prompt.is_visual_P, prompt.grid_F2, layout.merge
  )
  # Bytes, and zeros where a picture is smaller than the bucket's: `grid_BF2` says which are real.
  values = 3 * layout.temporal * layout.patch**2
  patches_FSC = np.zeros((bucket.frames, bucket.patches, values), np.uint8)
  for f, patches_SC in enumerate(prompt.patches):
    patches_FSC[f, : len(patches_SC)] = patches_SC
  ids_P = np.full(bucket.prompt, layout.pad_id, np.int32)
  ids_P[:tokens] = prompt.ids_P
  return {
    "tokens_BP": ids_P,
    "positions_B3P": positions_3P,
    "prompt_length_B": np.int32(tokens),
    "next_position_B": np.int32(next_position),
    "visual_BP": visual_P,
    "patches_BFSC": patches_FSC,
    "grid_BF2": np.pad(prompt.grid_F2, ((0, bucket.frames - frames), (0, 0))).astype(np.int32),
  }


def check_prompt(prompt: Prompt, merge: int) -> None:
  """Checks that the prompt's arrays agree.

  Raises:
    UserError: patches and grids disagree, or the text has room for another number of visual tokens
      than the media give.
  """
  counts = [len(patches_SC) for patches_SC in prompt.patches]
  if counts != prompt.grid_F2.prod(axis=1).tolist():
    raise UserError(f"frame pairs have {counts} patches, but their grids are {prompt.grid_F2}")
  places = int(prompt.is_visual_P.sum())
  features = sum(counts) // merge**2
  if places != features:
    raise UserError(
      f"the prompt has {places} visual placeholders, but its media give {features} visual tokens; "
      "the chat template and the messages must name the same media"
    )


def _check_fit(prompt: Prompt, bucket: Bucket) -> None:
  most = max((len(patches_SC) for patches_SC in prompt.patches), default=0)
  sizes = (len(prompt.ids_P), len(prompt.grid_F2), most)
  limits = (bucket.prompt, bucket.frames, bucket.patches)
  for name, size, limit in zip("PFS", sizes, limits, strict=True):
    if size > limit:
      raise UserError(
        f"{name} of the prompt is {size}, but {limit} in bucket {tuple(bucket)}; use a larger one"
      )

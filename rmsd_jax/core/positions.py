"""Interleaved M-RoPE positions of a prompt, and rotary tables for text and for patches.

Qwen3-VL splits the rotary frequencies of a head among three position axes (time, row, column).
Text advances all three together; a frame pair keeps one time and counts rows and columns.
Time itself is told in words ("<0.2 seconds>"), not in positions.

Axes: B prompts, P prompt tokens, F frame pairs, S patches of a frame pair, H head width.
"""

import jax
import jax.numpy as jnp
import numpy as np


def prompt_positions(
  is_visual_P: np.ndarray, grid_F2: np.ndarray, merge: int = 2
) -> tuple[np.ndarray, int]:
  """Positions of an unpadded prompt, numpy only (as `get_rope_index` of Qwen3-VL).

      tokens      a  b  [v v v v]  c        one frame pair of 2 x 2 merged tokens
      time        0  1   2 2 2 2   4
      row         0  1   2 2 3 3   4        after vision the next position is
      column      0  1   2 3 2 3   4        start + max(rows, columns)

  Args:
    is_visual_P: bool [P], True where a token stands for a merged patch.
    grid_F2: int [F, 2], rows and columns of patches per frame pair, in order of appearance.
    merge: patches per merged token along one side.

  Returns:
    int32 [3, P], and the position at which the response starts.

  Raises:
    ValueError: the grids hold another number of tokens than the prompt has places for.
  """
  merged_F2 = np.asarray(grid_F2, np.int64).reshape(-1, 2) // merge
  places = int(np.sum(is_visual_P))
  features = int(np.sum(merged_F2[:, 0] * merged_F2[:, 1]))
  if places != features:
    raise ValueError(f"{places} visual places in the prompt, but the grids hold {features} tokens")
  # No loop over tokens: this runs for every prompt of every batch.
  rows_F, columns_F = merged_F2.T
  is_visual_P = np.asarray(is_visual_P, bool)
  ends_F = np.cumsum(rows_F * columns_F)
  starts_F = np.flatnonzero(is_visual_P)[ends_F - rows_F * columns_F]  # first token of each frame
  steps_F = np.cumsum(np.max(merged_F2, axis=1))  # how far the frames up to this one advance
  # For text: text tokens before it, and all frames before it.
  text_P = np.cumsum(~is_visual_P)
  frame_P = np.searchsorted(starts_F, np.arange(len(is_visual_P)), side="right")
  advanced = np.concatenate([[0], steps_F])
  positions_3P = np.broadcast_to(text_P - ~is_visual_P + advanced[frame_P], (3, len(text_P))).copy()
  # For a visual token: where its frame started, and its row and column in it.
  frame = frame_P[is_visual_P] - 1
  place = np.flatnonzero(is_visual_P) - starts_F[frame]
  here = text_P[is_visual_P] + advanced[frame]
  positions_3P[0, is_visual_P] = here
  positions_3P[1, is_visual_P] = here + place // columns_F[frame]
  positions_3P[2, is_visual_P] = here + place % columns_F[frame]
  return positions_3P.astype(np.int32), int(np.sum(~is_visual_P) + advanced[-1])


def mrope_angles(positions_B3P: jax.Array, head: int, theta: float, sections) -> jax.Array:
  """Rotary angles fp32 [B, P, H/2] of three-axis positions.

  Frequency i turns by the time position, except i = 1, 4, 7, .. (rows) and i = 2, 5, 8, ..
  (columns), as many of each as `sections` (time, row, column; they sum to H/2) says.
  """
  # Interleaved, not in three runs as in Qwen2-VL. The rest beyond 3 * sections turns by time.
  slot = np.arange(head // 2)
  axis = np.zeros(head // 2, np.int32)
  for which in (1, 2):
    axis[(slot % 3 == which) & (slot < 3 * sections[which])] = which
  frequency = theta ** (-2.0 * slot / head)
  return positions_B3P.astype(jnp.float32).swapaxes(1, 2)[..., axis] * jnp.float32(frequency)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Rotates pairs (i, i + H/2) of the last axis of x [..., H] by angles [..., H/2] (radians)."""
  # Only the cosines are cast: as angles in bfloat16 neighbouring positions beyond 256 fall
  # together.
  cos = jnp.cos(angles).astype(x.dtype)
  sin = jnp.sin(angles).astype(x.dtype)
  a, b = jnp.split(x, 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def patch_rows_columns(grid_F2: jax.Array, patches: int, merge: int = 2) -> jax.Array:
  """Row and column of every patch, int32 [F, S, 2], in Qwen3-VL's block-major order.

  The merge x merge patches of one merged token stand together; blocks go row by row. Patches
  beyond rows * columns are padding, and their values mean nothing.
  """
  s = jnp.arange(patches)
  block = s // merge**2
  inside = s % merge**2
  # A padding frame pair has no columns; its patches mean nothing, but must not divide by 0.
  per_row = jnp.maximum(grid_F2[:, 1:] // merge, 1)
  row = (block // per_row) * merge + inside // merge
  column = (block % per_row) * merge + inside % merge
  return jnp.stack([row, column], -1)


def patch_angles(rows_columns_FS2: jax.Array, head: int, theta: float = 10_000.0) -> jax.Array:
  """2-D rotary angles fp32 [F, S, H/2]: H/4 frequencies by row, then the same by column."""
  frequency = jnp.float32(theta ** (-np.arange(0, head // 2, 2) / (head // 2)))
  angles = rows_columns_FS2[..., None].astype(jnp.float32) * frequency  # [F, S, 2, H/4]
  return angles.reshape(*angles.shape[:-2], head // 2)


def position_taps(rows_columns_FS2: jax.Array, grid_F2: jax.Array, side: int):
  """Bilinear taps (corners aligned) into a side x side position table, for any picture size.

  Returns:
    index int32 [F, S, 4] into the flattened table, and weight fp32 [F, S, 4]; weights sum to 1.
  """
  last = jnp.maximum(grid_F2 - 1, 1)[:, None]  # a side of one patch reads the table's edge
  place = rows_columns_FS2.astype(jnp.float32) * (side - 1) / last  # row, column in the table
  low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, side - 1)
  high = jnp.minimum(low + 1, side - 1)
  part = place - low
  # [F, S, 2] each: the two neighbours along an axis; their products are the four taps.
  row = jnp.stack([low[..., 0], high[..., 0]], -1)
  column = jnp.stack([low[..., 1], high[..., 1]], -1)
  weight_row = jnp.stack([1 - part[..., 0], part[..., 0]], -1)
  weight_column = jnp.stack([1 - part[..., 1], part[..., 1]], -1)
  index = row[..., :, None] * side + column[..., None, :]
  weight = weight_row[..., :, None] * weight_column[..., None, :]
  return index.reshape(*index.shape[:-2], 4), weight.reshape(*weight.shape[:-2], 4)

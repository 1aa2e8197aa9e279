"""Pictures -> patches: how large a picture may be, the resize, the order of the patches.

Follows Qwen3-VL's processors value by value (transformers 5.23, qwen-vl-utils); numpy only.
Axes: N frames, F frame pairs, S patches of a frame pair, C values of a patch, H rows, W columns.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from rmsd_jax.core.errors import UserError

MAX_ASPECT = 200  # of the model's release; beyond it a side would be less than a pixel per token
_UTILS_MAX_TOKENS = 768  # qwen-vl-utils: visual tokens of one frame, at most
_UTILS_TOTAL_TOKENS = 128_000 * 0.9  # qwen-vl-utils: share of the context that one clip may take
_BLOCK = 64  # outputs of one matrix product in the resize; a speed matter only
_PIXELS_AT_ONCE = 2**23  # of a plane in the resize, as floats; bounds its memory

# Default (least, most) pixels in tokens of factor x factor pixels. hf_*: the released
# preprocessor files; utils_video: qwen-vl-utils.
_DEFAULT_TOKENS = {"hf_video": (4, 24_576), "hf_image": (64, 16_384), "utils_video": (128, 768)}


@dataclasses.dataclass(frozen=True)
class Budget:
  """How many pixels a picture gets.

  Attributes:
    style: what the limits count.
      "hf_video": pixels of all frames of a clip together (transformers' video processor).
      "hf_image": pixels of one image (transformers' image processor).
      "utils_video": pixels of one frame (qwen-vl-utils), of which a long clip may not use all: the
        most is lowered so that the clip fits 0.9 of 128,000 tokens, and never exceeds 768 tokens.
    min_pixels, max_pixels: the limits, in pixels after the resize.
    patch: side of a patch in pixels.
    merge: patches of a visual token on each axis. Sides are multiples of patch * merge.
    temporal: frames of a frame pair.
  """

  style: str
  min_pixels: int
  max_pixels: int
  patch: int = 16
  merge: int = 2
  temporal: int = 2

  def __post_init__(self):
    if self.style not in _DEFAULT_TOKENS:
      raise UserError(f"unknown pixel budget {self.style!r}; known: {', '.join(_DEFAULT_TOKENS)}")
    if min(self.patch, self.merge, self.temporal) < 1:
      raise UserError(
        f"patch {self.patch}, merge {self.merge}, temporal {self.temporal}: each must be at least 1"
      )
    if not 1 <= self.min_pixels <= self.max_pixels:
      raise UserError(
        f"pixel limits are {self.min_pixels} to {self.max_pixels}; needed: 1 <= least <= most"
      )
    # A clip's limits count raw frames, so that one visual token takes the pixels of both of a pair.
    least = self.factor**2 * (self.temporal if self.style == "hf_video" else 1)
    if self.max_pixels < least:
      raise UserError(
        f"at most {self.max_pixels} pixels is less than one visual token, {least} pixels; raise it"
      )

  @property
  def factor(self) -> int:
    """Side of a visual token in pixels."""
    return self.patch * self.merge

  @property
  def flavour(self) -> str:
    """The matching argument of `resize_bicubic`."""
    return "utils" if self.style == "utils_video" else "hf"

  def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
    """Height and width after the resize, multiples of patch * merge.

    Args:
      frames: frames of the clip; a clip of fewer than `temporal` counts as `temporal`, which is
        what it is filled up to. 1 for an image.
      height, width: of the source, in pixels.

    Raises:
      UserError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
      raise UserError(
        f"a picture of {height} x {width} pixels is more than {MAX_ASPECT} times longer than wide; "
        "crop it"
      )
    if self.style == "hf_video":
      return self._clip_size(max(frames, self.temporal), height, width)
    # `_limit` counts one frame for images and for qwen-vl-utils, which share limits among frames
    # first.
    if self.style == "hf_image":
      floor = 0  # a side that rounds to nothing sends the picture to the lower limit
      return self._limit(1, 1, height, width, floor, self.min_pixels, self.max_pixels)
    # The 1.05 keeps the most above the least for clips so long that their share is less.
    shared = _UTILS_TOTAL_TOKENS * self.factor**2 * self.temporal / frames
    most = max(min(_UTILS_MAX_TOKENS * self.factor**2, shared), int(self.min_pixels * 1.05))
    most = min(most, self.max_pixels)
    return self._limit(1, 1, height, width, self.factor, self.min_pixels, most)

  def _clip_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
    if min(height, width) < self.factor:
      scale = max(self.factor / height, self.factor / width)
      height = int(height * scale)
      width = int(width * scale)
    # Their rule rounds an odd clip, halves to the even pair: 5 frames count as 4, 3 as 4 as well.
    filled = round(frames / self.temporal) * self.temporal
    return self._limit(frames, filled, height, width, 0, self.min_pixels, self.max_pixels)

  def _limit(self, frames, filled, height, width, floor, least, most) -> tuple[int, int]:
    """Rounds to the factor, then shrinks or grows both sides into the limits.

    `filled` frames decide whether a limit is crossed and `frames` by how much: the two differ for
    clips with an odd number of frames, in Qwen3-VL's processor as here.
    """
    # Python's `round`, which takes halves to the even number: theirs too.
    factor = self.factor
    size = [max(floor, round(side / factor) * factor) for side in (height, width)]
    pixels = filled * size[0] * size[1]
    if pixels > most:
      ratio = math.sqrt(frames * height * width / most)
      size = [max(factor, math.floor(side / ratio / factor) * factor) for side in (height, width)]
    elif pixels < least:
      ratio = math.sqrt(least / (frames * height * width))
      size = [math.ceil(side * ratio / factor) * factor for side in (height, width)]
    return size[0], size[1]


def budget(
  style: str,
  pixels: tuple[int, int] | None = None,
  *,
  patch: int = 16,
  merge: int = 2,
  temporal: int = 2,
) -> Budget:
  """A budget with the limits (least, most) `pixels`, or where None the defaults of its style.

  The defaults in pixels, at 16-pixel patches: hf_video 4,096 to 25,165,824; hf_image 65,536 to
  16,777,216; utils_video 131,072 to 786,432. Other patch sizes scale them to the same tokens.
  """
  if pixels is None:
    if style not in _DEFAULT_TOKENS:
      raise UserError(f"unknown pixel budget {style!r}; known: {', '.join(_DEFAULT_TOKENS)}")
    pixels = tuple(tokens * (patch * merge) ** 2 for tokens in _DEFAULT_TOKENS[style])
  return Budget(style, pixels[0], pixels[1], patch, merge, temporal)


def resize_bicubic(
  frames_NHWC: np.ndarray, height: int, width: int, flavour: str = "hf"
) -> np.ndarray:
  """Antialiased bicubic resize, uint8 in and out.

  Args:
    frames_NHWC: uint8 frames.
    height, width: of the result, in pixels.
    flavour: "hf" works in 8-bit fixed point and rounds after each of the two passes, "utils" in
      float32 and rounds once: what torch's `interpolate(mode="bicubic", antialias=True)` does with
      uint8 and with float32 tensors, and so transformers and qwen-vl-utils.

  Returns:
    uint8 [N, height, width, channels].
  """
  if flavour not in ("hf", "utils"):
    raise ValueError(f"flavour is {flavour!r}; known: hf, utils")
  frames, source_height, source_width, channels = frames_NHWC.shape
  if (source_height, source_width) == (height, width):
    return frames_NHWC
  across = _taps(source_width, width, flavour)
  down = _taps(source_height, height, flavour)
  result_NHWC = np.empty((frames, height, width, channels), np.uint8)
  rows = max(1, _PIXELS_AT_ONCE // source_width)
  for frame_HWC, out_HWC in zip(frames_NHWC, result_NHWC, strict=True):
    for channel in range(channels):
      # Rows first or columns first shows in the rounding of "hf": along the width first, as torch.
      # A pass works along axis 0, so that the first one turns the plane.
      plane = np.concatenate(
        [
          _apply(across, frame_HWC[row : row + rows, :, channel].T.astype(across.matrix.dtype))
          for row in range(0, source_height, rows)
        ],
        axis=1,
      )
      plane = _apply(down, np.ascontiguousarray(plane.T))
      out_HWC[..., channel] = np.clip(np.rint(plane), 0, 255)
  return result_NHWC


@dataclasses.dataclass(frozen=True)
class _Taps:
  """Weights of one pass: a banded matrix [outputs, inputs] and the band of every block of rows.

  shift is None for floating-point weights; otherwise weights are integers in units of 2**-shift.
  """

  matrix: np.ndarray
  bands: tuple[tuple[int, int], ...]
  shift: int | None


# Kept: all frames of a clip, and most clips of a pool, are of few sizes.
@functools.lru_cache(maxsize=64)
def _taps(inputs: int, outputs: int, flavour: str) -> _Taps:
  """Weights of the antialiased cubic filter (a = -0.5), half-pixel centres, renormalised.

  Computed in the precision in which torch computes them: float64 for "hf", float32 for "utils".
  """
  real = np.float64 if flavour == "hf" else np.float32
  # When it shrinks, the filter is stretched over the source pixels that fall together (antialias).
  scale = real(inputs) / real(outputs)
  stretch = max(scale, real(1))
  centre = (np.arange(outputs, dtype=real) + real(0.5)) * scale
  # A tap reaches two source pixels to each side, times the stretch.
  first = np.maximum((centre - 2 * stretch + real(0.5)).astype(np.int64), 0)
  last = np.minimum((centre + 2 * stretch + real(0.5)).astype(np.int64), inputs)
  place = np.arange(inputs)
  distance = (place.astype(real) - centre[:, None] + real(0.5)) * (1 / stretch)
  inside = (place >= first[:, None]) & (place < last[:, None])
  weights = _cubic(distance) * inside
  weights /= weights.sum(axis=1, keepdims=True)
  shift = None
  if flavour == "hf":
    # torch's 8-bit kernel: 16-bit integer weights with as many fraction bits as the largest allows.
    largest = weights.max()
    shift = next((bits for bits in range(22) if int(largest * 2 ** (bits + 1) + 0.5) >= 2**15), 22)
    weights = np.trunc(weights * 2.0**shift + np.copysign(0.5, weights))
  # A row's weights are 0 but for a few inputs around its centre, and a block of rows shares a band.
  blocks = range(0, outputs, _BLOCK)
  bands = tuple((int(first[i]), int(last[min(i + _BLOCK, outputs) - 1])) for i in blocks)
  return _Taps(weights, bands, shift)


def _cubic(x: np.ndarray) -> np.ndarray:
  x = np.abs(x)
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _apply(taps: _Taps, plane: np.ndarray) -> np.ndarray:
  """One pass along axis 0 of [inputs, others]; only the band of each block is touched."""
  blocks = [
    taps.matrix[row * _BLOCK : (row + 1) * _BLOCK, low:high] @ plane[low:high]
    for row, (low, high) in enumerate(taps.bands)
  ]
  result = np.concatenate(blocks)
  if taps.shift is None:
    return result
  # Fixed point: half a unit is added before the fraction is cut off, and each pass clips to a byte.
  return np.clip(np.floor((result + 2.0 ** (taps.shift - 1)) * 2.0**-taps.shift), 0, 255)


def pad_to_multiple(values_N: np.ndarray, multiple: int) -> np.ndarray:
  """Repeats the last entry until the length is a multiple."""
  missing = -len(values_N) % multiple
  return np.concatenate([values_N, np.repeat(values_N[-1:], missing, axis=0)])


def patchify(frames_NHWC: np.ndarray, patch: int, temporal: int = 2, merge: int = 2) -> np.ndarray:
  """Cuts frames into patches in Qwen3-VL's order.

  The patches of a visual token (merge x merge) stand together, tokens row by row; inside a patch
  the order is channel, frame of the pair, row, column. The last frame is repeated to fill the last
  pair; a single picture thus becomes a pair of equal frames.

  Args:
    frames_NHWC: frames whose sides are multiples of patch * merge.
    patch, temporal, merge: sizes, see `Budget`.

  Returns:
    patches_FSC of the dtype of the frames, C = channels * temporal * patch**2.
  """
  frames_NHWC = pad_to_multiple(frames_NHWC, temporal)
  frames, height, width, channels = frames_NHWC.shape
  pairs = frames // temporal
  step = patch * merge
  if height % step or width % step:
    raise ValueError(f"frames of {height} x {width} pixels are not whole tokens of {step} pixels")
  blocks = frames_NHWC.reshape(
    pairs, temporal, height // step, merge, patch, width // step, merge, patch, channels
  )
  # pair, block row, block column, row in it, column in it | channel, frame, row, column
  ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
  return ordered.reshape(pairs, height * width // patch**2, channels * temporal * patch**2)


def unpatchify(
  patches_FSC: np.ndarray, grid: Sequence[int], patch: int, temporal: int = 2, merge: int = 2
) -> np.ndarray:
  """The inverse of `patchify`: [F * temporal, H, W, channels] from the rows and columns `grid`."""
  pairs = patches_FSC.shape[0]
  rows, columns = (int(side) for side in grid)
  blocks = patches_FSC.reshape(
    pairs, rows // merge, columns // merge, merge, merge, -1, temporal, patch, patch
  )
  # pair, frame | block row, row in it, pixel row | the same of columns | channel
  frames = blocks.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
  return frames.reshape(pairs * temporal, rows * patch, columns * patch, -1)

"""Which frames of a clip are read, and what times are told of them. Numpy only.

Axes: N frames.
"""

import dataclasses
import math

import numpy as np

from rmsd_jax.core.errors import UserError

TIMES = ("stamps", "index")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Which frames of a clip are read.

  Attributes:
    fps: frames per second of clip.
    min_frames, max_frames: limits on their number; a shorter clip gives all its frames.
    frames: if set, this many frames whatever the duration (all, if the clip has fewer); the three
      others are then unused.
    even: False is the rule of transformers' Qwen3-VL video processor. True is that of
      qwen-vl-utils, which evaluation harnesses use: numbers of frames are even, `frames` too, and
      frames are spread in float32. (It refuses clips shorter than `frames`, or of one frame; here
      they give what they have.)
    times: the clock. "stamps": frames are spread over the seconds of the file's time stamps, and
      those are told. "index": frames are spread over their numbers, and number / header rate is
      told: transformers' rule, whose times are wrong where the rate varies or the header lies. On
      clips of constant rate the two agree in every digit told. Windows are on the file's clock in
      both.
  """

  fps: float = 2.0
  min_frames: int = 4
  max_frames: int = 768
  frames: int | None = None
  even: bool = False
  times: str = "stamps"

  def __post_init__(self):
    if not self.fps > 0:
      raise UserError(f"sampling takes {self.fps} frames a second; it must be above 0")
    if not 1 <= self.min_frames <= self.max_frames:
      raise UserError(
        f"sampling takes {self.min_frames} to {self.max_frames} frames; needed: 1 <= least <= most"
      )
    if self.frames is not None and self.frames < 1:
      raise UserError(f"sampling takes {self.frames} frames of a clip; it must be at least 1")
    if self.times not in TIMES:
      raise UserError(f"sampling takes times {self.times!r}; known: {', '.join(TIMES)}")

  def count(self, total: int, native_fps: float) -> int:
    """Number of frames to take from `total` frames at `native_fps` frames a second."""
    if self.even:
      return self._even_count(total, native_fps)
    if self.frames is not None:
      return min(self.frames, total)
    # Cut off, not rounded, and in this order of operations: transformers' count, to the frame.
    wanted = int(total / native_fps * self.fps)
    return min(max(wanted, self.min_frames), self.max_frames, total)

  def _even_count(self, total: int, native_fps: float) -> int:
    if self.frames is not None:
      wanted = min(round(self.frames / 2) * 2, total)
    else:
      # Not cut to a whole number before the limits, as qwen-vl-utils has it; the limits become
      # even.
      wanted = max(total / native_fps * self.fps, math.ceil(self.min_frames / 2) * 2)
      wanted = min(wanted, self.max_frames, total)
    return max(math.floor(wanted / 2) * 2, min(2, total))

  def indices(self, first: int, last: int, native_fps: float) -> np.ndarray:
    """int64 numbers of the frames to take from `first` to `last`, both included; evenly spread."""
    count = self.count(last - first + 1, native_fps)
    # numpy's `round` takes halves to the even number, as torch's and transformers' does.
    places = _spread32(first, last, count) if self.even else np.linspace(first, last, count)
    return places.round().astype(np.int64)

  def spread(self, times_N: np.ndarray) -> np.ndarray:
    """int64 numbers of the frames to take where frames do not come at a constant rate.

    As `indices`, but evenly spread over seconds: the frames whose times are nearest. Frames are
    distinct, so that a stretch in which the picture stands still gives fewer; not fewer than
    `min_frames`, or `frames` where that is set.

    Args:
      times_N: float64 seconds, ascending; the first and the last differ.
    """
    total = len(times_N)
    span = times_N[-1] - times_N[0]
    count = self.count(total, (total - 1) / span)
    nearest = _nearest(times_N, np.linspace(times_N[0], times_N[-1], count))
    if self.frames is None:
      distinct = np.unique(nearest)
      least = min(self.min_frames, total)
      if len(distinct) >= least and not (self.even and len(distinct) % 2):
        return distinct
      count = max(len(distinct), least)
      # Even again, as qwen-vl-utils wants it.
      count = max(count // 2 * 2, min(2, total)) if self.even else count
      nearest = _nearest(times_N, np.linspace(times_N[0], times_N[-1], count))
    return _distinct(nearest, total)


def _nearest(times_N: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Number of the frame nearest to each wanted time; of two as near, the earlier."""
  after = np.searchsorted(times_N, wanted).clip(1, max(len(times_N) - 1, 1))
  after = np.minimum(after, len(times_N) - 1)
  before = np.maximum(after - 1, 0)
  return np.where(wanted - times_N[before] <= times_N[after] - wanted, before, after)


def _distinct(numbers: np.ndarray, total: int) -> np.ndarray:
  """Ascending numbers moved as little as needed to differ, all below `total`."""
  moved = []
  for place, number in enumerate(numbers.tolist()):
    least = moved[-1] + 1 if moved else 0
    moved.append(min(max(number, least), total - (len(numbers) - place)))
  return np.array(moved, np.int64)


def _spread32(first: int, last: int, count: int) -> np.ndarray:
  """`count` places from first to last in float32, counted from the nearer end with one rounding of
  product and sum together, as torch.linspace does."""
  # float64 holds the product of a float32 step and the number of a frame exactly.
  step = np.float64(np.float32(last - first) / np.float32(max(count - 1, 1)))
  place = np.arange(count)
  up = first + step * place
  down = last - step * (count - 1 - place)
  return (np.where(place < count // 2, up, down) if count > 1 else up).astype(np.float32)


QWEN_SAMPLING = Sampling()  # of the released model

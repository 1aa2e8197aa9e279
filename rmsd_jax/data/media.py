"""Video and image files -> RGB frames with their times.

Frames are chosen by Qwen3-VL's rule and decoded by PyAV, which jumps to the key frame before each:
64 frames of an hour cost 64 short runs of the decoder.
Axes: N frames, H rows, W columns, C colours.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from etils import epy
from PIL import Image, ImageOps

from rmsd_jax.core.errors import UserError

with epy.lazy_imports():
  import av

_SLACK = 1e-6  # seconds by which a frame may miss a window's edge, for rounding
_UNKNOWN_RATE = 24.0  # what Qwen3-VL's processor assumes of a file that gives no frame rate
_WHOLE = 0.9  # a stream that ends before this share of its stated length is cut off


class MediaError(UserError):
  """A media file that cannot be used. Attributes: path, reason."""

  def __init__(self, path: str | pathlib.Path, reason: str):
    super().__init__(str(path), reason)
    self.path = str(path)
    self.reason = reason

  def __str__(self) -> str:
    return f"{self.path}: {self.reason}"


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
  """

  fps: float = 2.0
  min_frames: int = 4
  max_frames: int = 768
  frames: int | None = None
  even: bool = False

  def __post_init__(self):
    if not self.fps > 0:
      raise UserError(f"sampling takes {self.fps} frames a second; it must be above 0")
    if not 1 <= self.min_frames <= self.max_frames:
      raise UserError(
        f"sampling takes {self.min_frames} to {self.max_frames} frames; needed: 1 <= least <= most"
      )
    if self.frames is not None and self.frames < 1:
      raise UserError(f"sampling takes {self.frames} frames of a clip; it must be at least 1")

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


@dataclasses.dataclass(frozen=True)
class Clip:
  """The chosen frames of a video.

  Attributes:
    frames_NHWC: uint8 RGB, upright; resized if `decode` was given a transform.
    times_N: float64 presentation times in seconds after the first frame of the file.
    indices_N: int64 numbers of the frames in the file, in presentation order.
    fps: average frames a second of the file.
  """

  frames_NHWC: np.ndarray
  times_N: np.ndarray
  indices_N: np.ndarray
  fps: float


@dataclasses.dataclass(frozen=True)
class _Index:
  """What a pass over the packets tells: time stamps (units of `base` seconds) of all frames."""

  stamps: np.ndarray  # int64, ascending
  keys: np.ndarray  # int64, ascending: those at which decoding can start; may be empty
  base: float
  fps: float

  @property
  def times(self) -> np.ndarray:
    """Seconds after the first frame."""
    return (self.stamps - self.stamps[0]) * self.base


def decode(
  path: str | pathlib.Path,
  start: float | None = None,
  end: float | None = None,
  sampling: Sampling = QWEN_SAMPLING,
  transform: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Clip:
  """Reads the sampled frames of a video, or of the window from `start` to `end`.

  Args:
    path: a video file.
    start, end: seconds after the first frame of the file, both included; None is the file's edge.
    sampling: which frames of the window are taken.
    transform: called with (number of frames taken, frame_HWC) for each frame as it is decoded; what
      it returns is kept instead. A resize here holds one full-size frame in memory, not all.

  Raises:
    MediaError: the file is missing, has no video stream, is cut off or cannot be decoded, or the
      window holds no frame. (A cut-off file is noticed if its header states a duration.)
  """
  return _clip(path, start, end, sampling, None, transform)


def look(
  path: str | pathlib.Path,
  start: float | None = None,
  end: float | None = None,
  sampling: Sampling = QWEN_SAMPLING,
) -> Clip:
  """As `decode`, but frames_NHWC holds the first frame only: cheap, for planning.

  Raises:
    MediaError: as `decode`, for what the headers and the first frame tell.
  """
  return _clip(path, start, end, sampling, 1, None)


def _clip(path, start, end, sampling: Sampling, most: int | None, transform) -> Clip:
  """The frames that are taken from the window; pictures of the first `most` (None: all) alone."""
  if not pathlib.Path(path).is_file():
    raise MediaError(path, "no such file")
  try:
    # Frames are numbered in the whole file: a window does not shift numbers or times.
    index = _scan(path)
    first, last = _window(path, index.times, start, end)
    indices_N = sampling.indices(first, last, index.fps)
    stamps_N = index.stamps[indices_N[:most]]
    frames = _read(path, stamps_N, index.keys, transform)
    # The second try jumps nowhere: it decodes from the start, slowly and safely.
    if frames is None:
      frames = _read(path, stamps_N, index.keys[:0], transform)
  except av.FFmpegError as error:
    raise MediaError(path, f"cannot be decoded ({error.strerror or error})") from error
  if frames is None:
    raise MediaError(path, "its frames cannot all be decoded; the file is damaged, encode it again")
  return Clip(np.stack(frames), index.times[indices_N], indices_N, index.fps)


def load_image(path: str | pathlib.Path) -> np.ndarray:
  """Reads an image as uint8 RGB [H, W, 3]: upright by its EXIF tag, transparency on white.

  Raises:
    MediaError: the file is missing or not an image that can be decoded.
  """
  if not pathlib.Path(path).is_file():
    raise MediaError(path, "no such file")
  try:
    with Image.open(path) as opened:
      image = ImageOps.exif_transpose(opened)
      # White, as qwen-vl-utils pastes it; `convert("RGB")` alone would show what lies under it.
      if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
      return np.array(image.convert("RGB"))
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise MediaError(path, f"is not a readable image ({error})") from error


def _scan(path: str | pathlib.Path) -> _Index:
  """Time stamps of all frames and key frames, from the packets alone where they carry them."""
  # 1. Packets are read, not decoded.
  stamps = []
  keys = []
  end = 0
  with _open(path) as container:
    stream = _video_stream(path, container)
    for packet in container.demux(stream):
      if packet.is_corrupt:
        raise MediaError(path, "is cut off or damaged; copy or encode it again")
      # Empty packets flush the decoder; discarded ones are decoded and not shown.
      if packet.size and not packet.is_discard:
        stamps.append(packet.pts)
        if packet.pts is not None:
          end = max(end, packet.pts + (packet.duration or 0))
          keys += [packet.pts] if packet.is_keyframe else []
    base = stream.time_base
    rate = stream.average_rate
    stated = stream.duration
  if None in stamps:
    stamps = _count(path)
    keys = []
    stated = None
  # 2. A file that was copied in part often still plays: its header tells what should be there.
  if not stamps:
    raise MediaError(path, "holds no frames")
  if stated and end - min(stamps) < _WHOLE * stated:
    raise MediaError(
      path,
      f"is cut off: it holds {float((end - min(stamps)) * base):.2f} of the "
      f"{float(stated * base):.2f} seconds that its header states; copy it again",
    )
  # 3. Packets come in the order of decoding; frames are numbered in that of showing.
  stamps = np.unique(np.asarray(stamps, np.int64))
  if not rate:
    span = float((stamps[-1] - stamps[0]) * base)
    rate = (len(stamps) - 1) / span if span else _UNKNOWN_RATE
  return _Index(stamps, np.unique(np.asarray(keys, np.int64)), float(base), float(rate))


def _count(path: str | pathlib.Path) -> list[int]:
  """Time stamps by decoding everything, for containers whose packets carry none (such as AVI)."""
  with _open(path) as container:
    stamps = [frame.pts for frame in container.decode(_video_stream(path, container))]
  if None in stamps:
    raise MediaError(path, "has frames without time stamps; convert it to MP4")
  return stamps


def _open(path: str | pathlib.Path) -> "av.container.InputContainer":
  # A title in another encoding than UTF-8 is nothing against the frames.
  return av.open(str(path), metadata_errors="replace")


def _video_stream(path: str | pathlib.Path, container) -> "av.VideoStream":
  if not container.streams.video:
    raise MediaError(path, "has no video stream")
  stream = container.streams.video[0]
  stream.thread_type = "AUTO"  # threads by frames too; PyAV's default is by slices alone
  return stream


def _window(path, times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
  """First and last frame number inside the window."""
  first = 0 if start is None else int(np.searchsorted(times, start - _SLACK, side="left"))
  last = len(times) - 1
  if end is not None:
    last = int(np.searchsorted(times, end + _SLACK, side="right")) - 1
  if first > last:
    raise MediaError(
      path,
      f"the window from {0 if start is None else start} to "
      f"{'the end' if end is None else end} seconds holds no frame; the file has {len(times)} "
      f"frames from 0 to {times[-1]:.2f} seconds",
    )
  return first, last


def _read(
  path: str | pathlib.Path, stamps_N: np.ndarray, keys: Sequence[int], transform
) -> list[np.ndarray] | None:
  """The frames with the given time stamps, or None if one of them does not come.

  Jumps to the last key frame before a wanted frame if that lies ahead; without `keys` it decodes
  from the start. A demuxer may land behind its target, hence the second try in `decode`.
  """
  frames = []
  with _open(path) as container:
    stream = _video_stream(path, container)
    decoder = container.decode(stream)
    place = None  # the stamp of the frame before
    for stamp in stamps_N.tolist():
      # Jump only where a key frame lies between: nearer frames come sooner by decoding on.
      before = int(np.searchsorted(keys, stamp, side="right")) - 1
      if before >= 0 and (place is None or keys[before] > place):
        container.seek(int(keys[before]), stream=stream)
        decoder = container.decode(stream)
      frame = next((f for f in decoder if f.pts is not None and f.pts >= stamp), None)
      # A frame with a later stamp means that the jump landed behind its target, or a damaged file.
      if frame is None or frame.pts != stamp or frame.is_corrupt:
        return None
      place = stamp
      picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
      frames.append(picture if transform is None else transform(len(stamps_N), picture))
  return frames

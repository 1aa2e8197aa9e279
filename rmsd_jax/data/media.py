"""Video and image files -> RGB frames with their times.

Frames are chosen by `sampling` and decoded by PyAV, which jumps to the key frame before each: 64
frames of an hour cost 64 short runs of the decoder.
Axes: N frames, H rows, W columns, C colours.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from etils import epy

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data import containers, pictures
from rmsd_jax.data.containers import Timeline
from rmsd_jax.data.sampling import QWEN_SAMPLING, Sampling

__all__ = ["Clip", "MediaError", "QWEN_SAMPLING", "Sampling", "decode", "load_image", "look"]

with epy.lazy_imports():
  import av

_SLACK = 1e-6  # seconds by which a frame may miss a window's edge, for rounding
_MOST_SLACK = 1e-3  # the same where the ticks of the file are coarser

load_image = pictures.load_image


@dataclasses.dataclass(frozen=True)
class Clip:
  """The chosen frames of a video.

  Attributes:
    frames_NHWC: uint8 RGB, upright; resized if `decode` was given a transform.
    times_N: float64 presentation times in seconds after the first frame of the file.
    seconds_N: float64 seconds that are told of the frames, by the clock of the sampling.
    indices_N: int64 numbers of the frames in the file, in presentation order.
    fps: average frames a second of the file, by its header where that says so.
    notes: what is odd about the clock of the file, see `oddities.NOTES`.
  """

  frames_NHWC: np.ndarray
  times_N: np.ndarray
  seconds_N: np.ndarray
  indices_N: np.ndarray
  fps: float
  notes: tuple[str, ...] = ()


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
    start, end: seconds after the first frame of the file by its time stamps, both included; None
      is the file's edge.
    sampling: which frames of the window are taken.
    transform: called with (number of frames taken, frame_HWC) for each frame as it is decoded; what
      it returns is kept instead. A resize here holds one full-size frame in memory, not all.

  Raises:
    MediaError: the file is missing, has no video stream, is cut off or cannot be decoded, or the
      window holds no frame. (A cut-off file is noticed if its header states a size or duration, or
      the cut is inside a page, packet or block: not all formats say where they end.)
  """
  return _clip(path, start, end, sampling, False, transform)


def look(
  path: str | pathlib.Path,
  start: float | None = None,
  end: float | None = None,
  sampling: Sampling = QWEN_SAMPLING,
) -> Clip:
  """As `decode`, but frames_NHWC holds the first frame only: cheap, for planning.

  Raises:
    MediaError: as `decode`, for what the headers, the first frame and the last key frame tell.
  """
  return _clip(path, start, end, sampling, True, None)


def _clip(path, start, end, sampling: Sampling, ends: bool, transform) -> Clip:
  """The frames that are taken from the window; with `ends`, the picture of the first one alone."""
  try:
    # 1. By the packets. The second try jumps nowhere: it decodes from the start, slowly and safely.
    line = containers.timeline(path)
    indices_N = _chosen(path, line, start, end, sampling)
    frames = _read(path, line, indices_N, ends, transform)
    if frames is None:
      line = dataclasses.replace(line, keys=line.keys[:0])
      frames = _read(path, line, indices_N, ends, transform)
    # 2. By decoding everything, where packets and frames are not the same.
    if frames is None:
      line = containers.timeline(path, by_decoding=True)
      indices_N = _chosen(path, line, start, end, sampling)
      frames = _read(path, line, indices_N, ends, transform)
  except av.FFmpegError as error:
    raise MediaError(path, f"cannot be decoded ({error.strerror or error})") from error
  if frames is None:
    raise MediaError(path, "its frames cannot all be decoded; the file is damaged, encode it again")
  # Rounded stamps of a constant rate are told as what they were rounded from.
  rated = sampling.times == "index" or line.constant
  times_N = line.times_N[indices_N]
  seconds_N = indices_N / line.rate if rated else times_N
  return Clip(np.stack(frames), times_N, seconds_N, indices_N, line.rate, line.notes)


def _chosen(path, line: Timeline, start, end, sampling: Sampling) -> np.ndarray:
  """Numbers of the frames to take. They count in the whole file: a window shifts no number."""
  first, last = _window(path, line, start, end)
  times_N = line.times_N
  if sampling.times == "index" or line.constant or times_N[first] == times_N[last]:
    if sampling.times == "stamps" and len(times_N) > 1 and not times_N[-1]:
      raise MediaError(
        path,
        f"has {len(times_N)} frames with one and the same time stamp; encode it again, or take the "
        "times of the header (--times index)",
      )
    return sampling.indices(first, last, line.rate)
  return first + sampling.spread(times_N[first : last + 1])


def _window(path, line: Timeline, start: float | None, end: float | None) -> tuple[int, int]:
  """First and last frame number inside the window."""
  times = line.times_N
  slack = max(_SLACK, min(float(line.base) / 2, _MOST_SLACK))
  first = 0 if start is None else int(np.searchsorted(times, start - slack, side="left"))
  last = len(times) - 1
  if end is not None:
    last = int(np.searchsorted(times, end + slack, side="right")) - 1
  if first > last:
    raise MediaError(
      path,
      f"the window from {0 if start is None else start} to "
      f"{'the end' if end is None else end} seconds holds no frame; the file has {len(times)} "
      f"frames from 0 to {times[-1]:.2f} seconds",
    )
  return first, last


def _read(
  path: str | pathlib.Path, line: Timeline, indices_N: np.ndarray, ends: bool, transform
) -> list[np.ndarray] | None:
  """The frames with these numbers, or the first one alone; None if the decoder gives other frames
  than the timeline says.

  Jumps to the last key frame before a wanted frame if that lies ahead; without keys it decodes from
  the start. A demuxer may land behind its target, and a packet may give no frame: hence every frame
  that comes, wanted or not, is held against the timeline.
  """
  taken = []
  size = None
  turns = set()
  stamps = line.stamps_N
  keys = line.keys
  reformatter = av.video.reformatter.VideoReformatter()  # keeps what it prepared for the next frame
  with containers.open_container(path) as container:
    stream = containers.video_stream(path, container)
    decoder = containers.frames_of(container, stream)
    place = -1  # the number of the frame before
    for wanted in (_ends(line, indices_N) if ends else indices_N).tolist():
      # Jump only where a key frame lies between: nearer frames come sooner by decoding on.
      before = int(np.searchsorted(keys, stamps[wanted], side="right")) - 1
      if before >= 0 and (place < 0 or keys[before] > stamps[place]):
        container.seek(int(keys[before]), stream=stream)
        decoder = _from(keys[before], containers.frames_of(container, stream))
        place = int(np.searchsorted(stamps, keys[before])) - 1
      while place < wanted:
        frame = next(decoder, None)
        place += 1
        if frame is None or not line.is_at(frame, place):
          return None
      if frame.is_corrupt:
        return None
      try:
        picture = containers.upright(frame, _rgb(frame, reformatter))
      except ValueError as error:
        raise MediaError(path, str(error)) from error
      turns.add(containers.turn_of(frame))
      if len(turns) > 1:
        raise MediaError(path, "is to be shown turned in some frames alone; encode it upright")
      size = size or picture.shape
      if picture.shape != size:
        raise MediaError(
          path,
          f"changes its size from {size[1]} x {size[0]} to {picture.shape[1]} x "
          f"{picture.shape[0]} pixels in frame {wanted}; encode it at one size",
        )
      taken.append(picture if transform is None else transform(len(indices_N), picture))
  return taken[:1] if ends else taken


def _ends(line: Timeline, indices_N: np.ndarray) -> np.ndarray:
  """The first number, and that of the last key frame among them: a size changes at key frames, and
  one of them is decoded without others."""
  keys = line.keys[line.keys <= line.stamps_N[indices_N[-1]]]
  last = np.searchsorted(line.stamps_N, keys[-1:])
  return np.concatenate([indices_N[:1], last[last > indices_N[0]]])


def _rgb(frame: "av.VideoFrame", reformatter: "av.video.reformatter.VideoReformatter"):
  """uint8 [H, W, 3], the very values that ffmpeg gives."""
  if max(part.bits for part in frame.format.components) <= 8 and not frame.interlaced_frame:
    return reformatter.reformat(frame, format="rgb24").to_ndarray()
  # Of more bits or two fields, a filter alone heeds where the colours lie between the pixels.
  graph = av.filter.Graph()
  source = graph.add_buffer(
    width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
  )
  graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
  graph.push(frame)
  return graph.pull().to_ndarray()


def _from(stamp: int, frames):
  """Without the frames before a key frame, which may lack what they are decoded from."""
  for frame in frames:
    if frame.pts is None or frame.pts >= stamp:
      yield frame

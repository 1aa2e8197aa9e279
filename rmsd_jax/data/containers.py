"""What a video file says of its frames before they are decoded: time stamps, key frames, faults.

A packet is not a frame, a header is not the file, and some formats name other files: whatever reads
a clip opens it here. Axes: N frames.
"""

import dataclasses
import fractions
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epy

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data import headers

with epy.lazy_imports():
  import av

MAX_PIXELS = 2**26  # of a frame or a picture: 8192 x 8192, some 0.2 GB as RGB
# Containers that hold their frames themselves. The others include playlists, scripts that
# concatenate, and patterns of names: they would open further files, whatever the file is called.
FORMATS = (
  "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "flv",
  "asf", "ogg", "gif", "apng", "dv", "mxf", "nut", "ivf", "wtv", "rm", "swf", "yuv4mpegpipe",
  "wav", "mp3", "flac",  # sound alone, so that it is named as such
)  # fmt: skip
UNKNOWN_RATE = 24.0  # what Qwen3-VL's processor assumes of a file that gives no frame rate
_STATE_DURATION = ("matroska", "webm", "flv", "asf")  # for the whole file; elsewhere it is a guess
_WHOLE = 0.9  # a stream that ends before this share of its stated length is cut off
_LIE = 0.05  # share by which a stated rate or duration may be off
_TICK = 1e-3  # seconds: the coarsest tick that is taken for the rounding of a constant rate
_CACHED = 32  # files whose time stamps are kept


@dataclasses.dataclass(frozen=True)
class Timeline:
  """The frames that a file shows, in the order of showing.

  Attributes:
    stamps_N: int64 time stamps in units of `base` seconds, ascending; they may repeat.
    keys: int64, ascending: stamps at which decoding can start; may be empty.
    base: seconds of a unit.
    stated_rate: average frames a second by the header; None if it says nothing.
    lies: whether the header states another rate, number of frames or duration.
    clock: which stamp of a decoded frame it is: "pts", or "dts" where the others are guesses (AVI
      with B-frames); the last frames of such a file have none.
  """

  stamps_N: np.ndarray
  keys: np.ndarray
  base: fractions.Fraction
  stated_rate: float | None
  lies: bool
  clock: str = "pts"

  @functools.cached_property
  def times_N(self) -> np.ndarray:
    """float64 seconds after the first frame."""
    # One division of whole numbers, so that 512 / 12288 s is the very float of 1 / 24 s.
    ticks = (self.stamps_N - self.stamps_N[0]) * self.base.numerator
    return ticks / self.base.denominator

  def is_at(self, frame: "av.VideoFrame", number: int) -> bool:
    """Whether a decoded frame has the stamp of this number."""
    if number >= len(self.stamps_N):
      return False
    stamp = self.stamps_N[number]
    return frame.pts == stamp if self.clock == "pts" else frame.dts in (stamp, None)

  @property
  def rate(self) -> float:
    """Average frames a second: by the header, else by the time stamps."""
    return self.stated_rate or _measured_rate(self.times_N) or UNKNOWN_RATE

  @functools.cached_property
  def constant(self) -> bool:
    """Whether all stamps are frame number / rate, rounded to ticks of the file."""
    slack = min(float(self.base), _TICK) * 1.001
    return bool(self._drift() <= slack)

  def _drift(self) -> float:
    return float(np.abs(self.times_N - np.arange(len(self.times_N)) / self.rate).max())

  @property
  def notes(self) -> tuple[str, ...]:
    """What is odd: those of `oddities.NOTES` that hold."""
    span = self.times_N[-1]
    spacing = span / max(len(self.times_N) - 1, 1)
    odd = {
      "clocks": not self.constant and self._drift() > spacing / 2,
      "stamps": bool((np.diff(self.stamps_N) == 0).any()),
      "header": self.lies,
    }
    return tuple(name for name, holds in odd.items() if holds)


def timeline(path: str | pathlib.Path, by_decoding: bool = False) -> Timeline:
  """The frames of a video file, by a pass over its packets.

  Args:
    by_decoding: decode everything instead, for files whose packets do not tell.

  Raises:
    MediaError: the file is missing, has no video stream, is cut off or cannot be read.
  """
  about = file_of(path)
  try:
    # Kept by what the file is now, for questions of one clip may follow each other.
    return _timeline(os.path.abspath(path), about.st_mtime_ns, about.st_size, by_decoding)
  except av.FFmpegError as error:
    raise MediaError(path, f"cannot be decoded ({error.strerror or error})") from error


def file_of(path: str | pathlib.Path) -> os.stat_result:
  """What the system says of a regular file.

  Raises:
    MediaError: there is none.
  """
  try:
    # A folder, a device or a pipe is no file to decode: reading one may never end.
    if os.path.isfile(path):
      return os.stat(path)
  except (OSError, ValueError):
    pass  # no name that a file could have
  raise MediaError(path, "no such file")


def open_container(path: str | pathlib.Path) -> "av.container.InputContainer":
  """Opens a video file; nothing but this file is read.

  Raises:
    MediaError: its format is not one of FORMATS.
    av.FFmpegError: the library cannot read it.
  """
  options = {
    "format_whitelist": ",".join(FORMATS),
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
  }
  try:
    # Absolute, since "concat:a|b" is an address to the library. A title in another encoding than
    # UTF-8 is nothing against the frames.
    return av.open(os.path.abspath(path), options=options, metadata_errors="replace")
  except av.ArgumentError as error:
    raise MediaError(
      path, "is in no video format that is read here (such as MP4, WebM, AVI, GIF); convert it"
    ) from error


def video_stream(path: str | pathlib.Path, container) -> "av.VideoStream":
  """The stream that is the video; cover pictures and thumbnails are not.

  Raises:
    MediaError: there is none, or its frames are too large.
  """
  still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
  streams = [stream for stream in container.streams.video if not stream.disposition & still]
  if not streams:
    pictures = len(container.streams.video)
    raise MediaError(path, "has no video stream" + (", only a cover picture" if pictures else ""))
  # The library's choice is the track that plays by default, and not one of a single frame.
  best = container.streams.best("video")
  stream = best if best in streams else streams[0]
  width = stream.codec_context.width
  height = stream.codec_context.height
  if width * height > MAX_PIXELS:
    raise MediaError(
      path, f"has frames of {width} x {height} pixels, limit {MAX_PIXELS} in all; scale it down"
    )
  stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may grow
  # Else as many columns as its memory likes are left of what the stream cuts off.
  stream.codec_context.flags |= av.codec.context.Flags.unaligned
  stream.thread_type = "AUTO"  # threads by frames too; PyAV's default is by slices alone
  return stream


def frames_of(container, stream) -> Iterator["av.VideoFrame"]:
  """The frames of a stream from where the container stands, in the order of showing."""
  for packet in container.demux(stream):
    # Empty packets repeat a picture (Theora); the one without a stamp flushes the decoder.
    if packet.size or packet.dts is None:
      yield from packet.decode()


def turn_of(frame: "av.VideoFrame") -> bytes:
  """The display matrix of a frame, b"" without one."""
  sides = [side for side in frame.side_data if side.type.name == "DISPLAYMATRIX"]
  return bytes(sides[0]) if sides else b""


def upright(frame: "av.VideoFrame", picture_HWC: np.ndarray) -> np.ndarray:
  """The picture as players show it: turned and mirrored by the frame's display matrix.

  Raises:
    ValueError: the matrix turns by other than quarters.
  """
  # Rows of 16.16 fixed point: a pixel at (x, y) is shown at (a x + c y, b x + d y).
  if not (matrix := turn_of(frame)):
    return picture_HWC
  a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] / 2**16
  straight = np.hypot(a, d)
  across = np.hypot(b, c)
  if min(straight, across) > 0.02 * max(straight, across):  # a degree, as ffmpeg has it
    raise ValueError(f"is to be shown turned by {frame.rotation} degrees; encode it upright")
  if across > straight:
    picture_HWC = picture_HWC.swapaxes(0, 1)
  mirrored = (c if across > straight else a) < 0
  flipped = (b if across > straight else d) < 0
  return picture_HWC[:: -1 if flipped else 1, :: -1 if mirrored else 1]


@functools.lru_cache(maxsize=_CACHED)
def _timeline(path: str, changed: int, size: int, by_decoding: bool) -> Timeline:
  # 1. A file that was copied in part often still plays; its headers tell what should be there.
  if size < (wanted := headers.stated_size(path)):
    raise MediaError(path, f"is cut off: it holds {size:,} of {wanted:,} bytes; copy it again")
  packets = _packets(path)
  clock = "pts"
  if packets.unstamped or by_decoding:
    clock, packets.stamps = _decoded(path)
    packets.keys = packets.keys if clock == "pts" else []
    last = (packets.stamps[-1] - packets.stamps[0]) * packets.base if packets.stamps else 0
    if by_decoding and not packets.unstamped and last < _WHOLE * packets.held:
      raise MediaError(
        path,
        f"is damaged: {float(last):.2f} of {packets.held:.2f} seconds of it can be decoded; copy "
        "it again",
      )
  if not packets.stamps:
    raise MediaError(path, "holds no frames")
  # Where all bytes are there, a duration that is not is the header's error.
  whole = packets.stated if not wanted else headers.stated_seconds(path)
  if not packets.unstamped and packets.held < _WHOLE * whole:
    raise MediaError(
      path,
      f"is cut off: it holds {packets.held:.2f} of the {whole:.2f} seconds that its header states; "
      "copy it again",
    )
  if packets.stated and packets.held < _WHOLE * packets.stated and packets.read < _WHOLE * size:
    raise MediaError(
      path,
      f"is damaged: it can be read up to {packets.held:.2f} of {packets.stated:.2f} seconds; copy "
      "it again",
    )
  if _backwards(packets.keys):
    raise MediaError(path, "has time stamps that run backwards; encode it again")
  # 2. Packets come in the order of decoding; frames are numbered in that of showing.
  stamps_N = np.sort(np.asarray(packets.stamps, np.int64))
  # A jump must land on one frame: not on a stamp that repeats, nor on one that is not shown.
  shown, times = np.unique(stamps_N, return_counts=True)
  keys = np.intersect1d(np.asarray(packets.keys, np.int64), shown[times == 1])
  made = Timeline(stamps_N, keys, packets.base, packets.rate, lies=False, clock=clock)
  return dataclasses.replace(made, lies=_lies(made, packets))


@dataclasses.dataclass
class _Packets:
  """What a pass over the packets tells."""

  stamps: list[int]  # of the packets that give a frame, in units of `base` seconds
  keys: list[int]  # of those that are key frames
  base: fractions.Fraction
  rate: float | None  # frames a second, by the header
  frames: int  # by the header; 0 if it says nothing
  stated: float  # seconds, by the header; 0 if it says nothing
  held: float  # seconds, where the packets end
  read: float  # bytes up to where the last packet ends; infinite where that tells nothing
  unstamped: bool  # some packets have no time of showing, so that it must be had by decoding


def _packets(path: str) -> _Packets:
  stamps = []
  keys = []
  ends: dict[int, Any] = {}  # of each stream, in its own units
  unstamped = False
  read = 0
  with open_container(path) as container:
    stream = video_stream(path, container)
    context = stream.codec_context
    codec = context.codec.canonical_name
    own = stream.duration  # of the track; Matroska states one duration for the whole file alone
    whole = container.duration if container.format.name.split(",")[0] in _STATE_DURATION else None
    for packet in container.demux([stream] if own or not whole else None):
      read = max(read, (packet.pos or 0) + packet.size)
      if packet.pts is not None:
        end = packet.pts + (packet.duration or 0)
        ends[packet.stream_index] = max(ends.get(packet.stream_index, end), end)
      if packet.stream_index != stream.index:
        continue
      if packet.is_corrupt:
        raise MediaError(path, "is cut off or damaged; copy or encode it again")
      # Empty packets flush the decoder; discarded ones are decoded and not shown.
      if not packet.size or packet.is_discard or headers.is_hidden(codec, memoryview(packet)):
        continue
      # Without B-frames, frames are shown in the order in which they are decoded.
      stamp = packet.dts if packet.pts is None and not context.has_b_frames else packet.pts
      unstamped = unstamped or stamp is None
      stamps.append(stamp)
      if packet.is_keyframe and stamp is not None:
        keys.append(stamp)
    # Of such a file the library leaves out the frame that is cut.
    if container.format.name == "yuv4mpegpipe" and read < container.size:
      raise MediaError(path, "is cut off inside a frame; copy it again")
    base = stream.time_base
    bases = {other.index: other.time_base for other in container.streams}
    if own:
      stated = float(own * base)
      first = min((stamp for stamp in stamps if stamp is not None), default=0)
      held = float((ends.get(stream.index, first) - first) * base)
    else:
      stated = (whole or 0) / av.time_base
      held = max((float(end * bases[index]) for index, end in ends.items()), default=0.0)
    rate = float(stream.average_rate) if stream.average_rate else None
    # Elsewhere packets may lie in any order, and much may follow them.
    read = read if whole and not own else math.inf
    return _Packets(stamps, keys, base, rate, stream.frames, stated, held, read, unstamped)


def _decoded(path: str) -> tuple[str, list[int]]:
  """Time stamps by decoding everything, and which they are (see `Timeline.clock`)."""
  with open_container(path) as container:
    frames = frames_of(container, video_stream(path, container))
    stamps = [(frame.pts, frame.dts) for frame in frames]
  pts = [stamp for stamp, _ in stamps]
  if None not in pts and not _backwards(pts):
    return "pts", pts
  # The frames that come last, when no packet is left, have no stamp of decoding: time goes on.
  dts = [stamp for _, stamp in stamps]
  while len(dts) > 2 and dts[-1] is None:
    dts.pop()
  if None not in dts and not _backwards(dts):
    step = dts[-1] - dts[-2] if len(dts) > 1 else 0
    return "dts", dts + [dts[-1] + step * (i + 1) for i in range(len(pts) - len(dts))]
  raise MediaError(path, "has frames without time stamps in order; convert it to MP4")


def _backwards(stamps: Sequence[int]) -> bool:
  return any(later < sooner for sooner, later in itertools.pairwise(stamps))


def _lies(made: Timeline, packets: _Packets) -> bool:
  """Whether the header is off in its rate, number of frames or duration."""
  frames = len(made.stamps_N)
  span = float(made.times_N[-1])
  spacing = span / max(frames - 1, 1)
  counted = bool(packets.frames) and packets.frames != frames
  off = abs((frames - 1) / packets.rate - span) if packets.rate else 0.0
  rated = off > max(spacing, _LIE * span)
  held = max(packets.held, span)
  lasted = bool(packets.stated) and abs(packets.stated - held) > max(2 * spacing, _LIE * held)
  return counted or rated or lasted


def _measured_rate(times_N: np.ndarray) -> float:
  """Frames a second by the time stamps; 0 where they do not move."""
  return (len(times_N) - 1) / float(times_N[-1]) if times_N[-1] > 0 else 0.0

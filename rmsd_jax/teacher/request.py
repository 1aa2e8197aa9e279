"""A record -> what a teacher is asked, the student's own prompt as a chat request, and its cost.

Media come first and the text last, as the student sees them. A clip is its frames with their times
between them, as Qwen3-VL reads clips, or a link:

    <0.0 seconds> JPEG <1.5 seconds> JPEG ... text          --media frames
    video_url text                                          --media url
"""

import base64
import dataclasses
import hashlib
import io
import json
import math
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children, media
from rmsd_jax.data.records import Media, Record

MEDIA = ("frames", "url")
_JPEG_QUALITY = 90
_OWN_FIELDS = ("model", "messages", "n", "stream")
# Most tokens that a request may count before the server has told: 1,120 a picture is the largest
# figure among today's services for small ones, a token of 500 pixels for large ones; a linked clip
# is taken at Qwen3-VL's limit; a token is at least a byte of text.
_PICTURE_TOKENS = 1_120
_PIXELS_OF_TOKEN = 500
_LINK_TOKENS = {"video": 24_576, "image": 16_384}
_TEMPLATE_TOKENS = 64
_TIME_TOKENS = 16
# What is likely: Qwen3-VL has a visual token for 32 x 32 pixels and two around a picture.
_SIDE_OF_TOKEN = 32
_AROUND_PICTURE = 2
_LIKELY_BYTES_OF_TOKEN = 4
_LIKELY_TEMPLATE = 10
_LIKELY_TIME = 8
_BLOCK = 2**16  # bytes; of a file for its digest, _BLOCKS of them are read
_BLOCKS = 8
_MILLION = 1e6


class Tokens(NamedTuple):
  """Numbers of tokens read and written by a model."""

  read: int
  written: int

  def __add__(self, other: "Tokens") -> "Tokens":
    return Tokens(self.read + other.read, self.written + other.written)


@dataclasses.dataclass(frozen=True)
class Budget:
  """What may be spent, over all runs of a journal.

  A call under way counts with the most it may take (`Asking.bound`), and so does an answer that did
  not come, since it may have been made. Where a service counts more for a prompt than that, the
  calls under way can exceed the caps by the difference.

  Attributes:
    price_in, price_out: of a million tokens read and written, in any currency. What a service
      takes off for cached tokens is not known here, so the sums are upper bounds.
    money: cap in that currency.
    tokens: cap on tokens read and written together.
  """

  price_in: float = 0.0
  price_out: float = 0.0
  money: float = math.inf
  tokens: float = math.inf

  def __post_init__(self):
    for name in ("price_in", "price_out", "money", "tokens"):
      if not getattr(self, name) >= 0:
        raise UserError(f"the budget's {name} is {getattr(self, name)}; it must be 0 or more")
    if self.money < math.inf and not self.price_in + self.price_out:
      raise UserError(
        f"--budget {self.money:g} needs the prices --price-in and --price-out; to cap tokens "
        "instead, give --token-budget"
      )

  def cost(self, tokens: Tokens) -> float:
    """Price of so many tokens."""
    return (tokens.read * self.price_in + tokens.written * self.price_out) / _MILLION

  def holds(self, tokens: Tokens) -> bool:
    """Whether so many tokens stay within both caps."""
    return sum(tokens) <= self.tokens and self.cost(tokens) <= self.money

  def spelled(self, tokens: Tokens) -> str:
    """What so many tokens are, in words: "cost 1.25, 31,000 tokens"."""
    cost = f"cost {self.cost(tokens):.2f}, " if self.price_in + self.price_out else ""
    return f"{cost}{sum(tokens):,} tokens"


UNBOUNDED = Budget()


@dataclasses.dataclass(frozen=True)
class Asking:
  """How a teacher is asked.

  Attributes:
    model: name of the model at the endpoint.
    teacher: label of its responses in the pool.
    temperature, top_p: of the sampling; top_p None is not sent, so the server's default holds.
    max_tokens: the most that one response may take.
    extra: further fields of the request; they replace the others, and null removes one.
    media: "frames" sends JPEG files, "url" links.
    frames: of a clip; all, if it has fewer.
    times: the clock of the times between them, see `media.Sampling`.
    max_side: pixels of a picture's longer side; larger ones are scaled down.
    url_prefix: what a record's media path is put behind to make a link.
    picture_tokens: the most that the service counts for one picture; 0: the most of any service.
  """

  model: str
  teacher: str
  temperature: float = 1.0
  top_p: float | None = None
  max_tokens: int = 4096
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  media: str = "frames"
  frames: int = 16
  times: str = "stamps"
  max_side: int = 512
  url_prefix: str = ""
  picture_tokens: int = 0

  def __post_init__(self):
    if not self.model or not self.teacher:
      raise UserError("the model or the teacher has an empty name; give --model and --teacher one")
    if not self.temperature >= 0:
      raise UserError(f"--temperature {self.temperature}: it must be 0 or more")
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise UserError(f"--top-p {self.top_p}: it must be above 0 and at most 1")
    for name, least in (("max_tokens", 1), ("frames", 1), ("max_side", 16), ("picture_tokens", 0)):
      if getattr(self, name) < least:
        flag = name.replace("_", "-")
        raise UserError(f"--{flag} {getattr(self, name)}: it must be at least {least}")
    if taken := [name for name in _OWN_FIELDS if name in self.extra]:
      raise UserError(f"--extra may not hold {taken[0]!r}, which this command sets; leave it out")
    if self.media not in MEDIA:
      raise UserError(f"--media {self.media!r}: use one of {', '.join(MEDIA)}")
    if self.media == "url" and not self.url_prefix:
      raise UserError("--media url needs --url-prefix, the address that media paths are put behind")

  def settings(self) -> dict[str, Any]:
    """What must stay the same for responses to be samples of one distribution, as JSON values.

    Prices, limits and addresses may change: a server may move.
    """
    unused = {"url_prefix", "picture_tokens"} | (
      {"frames", "times", "max_side"} if self.media == "url" else set()
    )
    kept = {name: v for name, v in dataclasses.asdict(self).items() if name not in unused}
    # Through JSON, since they are compared with what a journal holds: a tuple comes back as a list.
    return json.loads(json.dumps(kept))

  def body(self, content: list[dict[str, Any]]) -> dict[str, Any]:
    """The request for one response to a prompt that `content` made.

    It asks for one response and is sent K times. A request with n=K would be billed its prompt once
    at some services, but many servers ignore n or refuse it; and so a lost answer costs one
    response, and each has its own reason of ending and token counts. Servers that cache prefixes
    read the prompt once in either way.
    """
    fields = {
      "temperature": self.temperature,
      "top_p": self.top_p,
      "max_tokens": self.max_tokens,
      **self.extra,
    }
    messages = [{"role": "user", "content": content}]
    present = {name: value for name, value in fields.items() if value is not None}
    return {"model": self.model, "messages": messages, **present}

  def content(self, record: Record, folder: str, text: str) -> list[dict[str, Any]]:
    """The items of the one message: media, then the text.

    Args:
      record: the prompt.
      folder: what relative media paths are relative to.
      text: what the student reads for the question.

    Raises:
      media.MediaError: a file cannot be read.
      UserError: the record shows a part of a clip, and clips are sent as links.
    """
    show = self._frames if self.media == "frames" else self._link
    items = [item for medium in record.media for item in show(medium, folder)]
    return [*items, {"type": "text", "text": text}]

  def bound(self, record: Record, text: str) -> Tokens:
    """The most tokens that one request for the record may count; estimated without its files."""
    shown = sum(map(self._media_tokens, record.media))
    return Tokens(len(text.encode("utf-8")) + _TEMPLATE_TOKENS + shown, self.max_tokens)

  def likely(self, record: Record, folder: str, text: str) -> int:
    """Tokens that one request for the record reads, as Qwen3-VL counts; opens its files.

    Raises:
      media.MediaError: a file cannot be read.
    """
    tokens = len(text.encode("utf-8")) // _LIKELY_BYTES_OF_TOKEN + _LIKELY_TEMPLATE
    for medium in record.media:
      if self.media == "url":
        tokens += self._media_tokens(medium)
        continue
      frame_HWC, frames, times = self._first(medium, folder)
      height, width, _ = self._shrink(frames, frame_HWC).shape
      rows, columns = (max(1, round(side / _SIDE_OF_TOKEN)) for side in (height, width))
      picture = self.picture_tokens or rows * columns + _AROUND_PICTURE
      tokens += frames * (picture + times)
    return tokens

  def _first(self, medium: Media, folder: str) -> tuple[np.ndarray, int, int]:
    """The first frame of a medium, the number of its frames, and what the time of each takes."""
    path = pathlib.Path(folder, medium.path)
    if medium.type == "image":
      return media.load_image(path), 1, 0
    sampling = media.Sampling(frames=self.frames)
    clip = media.look(path, medium.start, medium.end, sampling)
    return clip.frames_NHWC[0], len(clip.indices_N), _LIKELY_TIME

  def _media_tokens(self, medium: Media) -> int:
    if self.media == "url":
      return _LINK_TOKENS[medium.type]
    # Services count small pictures by a flat figure and large ones by their area.
    picture = max(_PICTURE_TOKENS, self.max_side**2 // _PIXELS_OF_TOKEN)
    picture = self.picture_tokens or picture
    return picture if medium.type == "image" else self.frames * (picture + _TIME_TOKENS)

  def _frames(self, medium: Media, folder: str) -> list[dict[str, Any]]:
    path = pathlib.Path(folder, medium.path)
    if medium.type == "image":
      return [_picture(self._shrink(1, media.load_image(path)))]
    sampling = media.Sampling(frames=self.frames, times=self.times)
    clip = media.decode(path, medium.start, medium.end, sampling, transform=self._shrink)
    return [
      item
      for seconds, frame_HWC in zip(clip.seconds_N, clip.frames_NHWC, strict=True)
      # Spelled as Qwen3-VL's own prompts: teacher and student are told the same times.
      for item in ({"type": "text", "text": f"<{seconds:.1f} seconds>"}, _picture(frame_HWC))
    ]

  def _shrink(self, _: int, frame_HWC: np.ndarray) -> np.ndarray:
    picture = PIL.Image.fromarray(frame_HWC)
    # `thumbnail` keeps the aspect and never enlarges.
    picture.thumbnail((self.max_side, self.max_side), PIL.Image.Resampling.BICUBIC)
    return np.asarray(picture)

  def _link(self, medium: Media, folder: str) -> list[dict[str, Any]]:
    if medium.start is not None or medium.end is not None:
      raise UserError(
        f"{medium.path} is shown in part, which a link cannot say; use --media frames"
      )
    kind = f"{medium.type}_url"
    return [{"type": kind, kind: {"url": self.url_prefix + urllib.parse.quote(medium.path)}}]


class Reader:
  """`Asking.content`, with media decoded by a process that is killed after `limit_s` seconds.

  A decoder that hangs or crashes inside a C library costs its record alone.
  """

  def __init__(self, asking: Asking, limit_s: float):
    self._content = _Content(asking)
    self._apart = children.Worker(self._content, limit_s)

  def __call__(
    self, record: Record, folder: str, text: str
  ) -> list[dict[str, Any]] | children.Failure:
    """The content, or why there is none. Not thread-safe: one call at a time."""
    if record.media and self._content.asking.media == "frames":
      return self._apart((record, folder, text))
    try:
      return self._content((record, folder, text))
    except UserError as fault:
      return children.Failure(type(fault).__name__, str(fault))

  def close(self) -> None:
    self._apart.close()


@dataclasses.dataclass(frozen=True)
class _Content:
  """`Asking.content` as a task of `children`."""

  asking: Asking

  def __call__(self, of: tuple[Record, str, str]) -> list[dict[str, Any]]:
    return self.asking.content(*of)


def fingerprint(record: Record, text: str) -> str:
  """16 hex digits that change with what is asked: the text, or which media are shown."""
  asked = [text, [dataclasses.astuple(medium) for medium in record.media]]
  return hashlib.sha256(json.dumps(asked).encode("utf-8")).hexdigest()[:16]


def media_digest(record: Record, folder: str) -> str:
  """16 hex digits that change with the media files; empty if there are none or one is not there.

  Of a large file some blocks are read, evenly spread: clips that differ at all do so in most of
  their bytes, and a pool may have terabytes of them.
  """
  if not record.media:
    return ""
  digest = hashlib.sha256()
  try:
    for medium in record.media:
      with open(pathlib.Path(folder, medium.path), "rb") as file:
        size = file.seek(0, io.SEEK_END)
        digest.update(str(size).encode("ascii"))
        last = max(0, size - _BLOCK)
        for place in sorted({last * i // (_BLOCKS - 1) for i in range(_BLOCKS)}):
          file.seek(place)
          digest.update(file.read(_BLOCK))
  except OSError:
    return ""
  return digest.hexdigest()[:16]


def _picture(frame_HWC: np.ndarray) -> dict[str, Any]:
  file = io.BytesIO()
  PIL.Image.fromarray(frame_HWC).save(file, "JPEG", quality=_JPEG_QUALITY)
  data = base64.b64encode(file.getvalue()).decode("ascii")
  return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}

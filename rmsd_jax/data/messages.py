"""Messages of a conversation: what they may hold, and the images and clips that they name.

Axes: N frames, H rows, W columns.
"""

import base64
import binascii
import dataclasses
import io
import itertools
import math
import os
import pathlib
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import pictures, subtitles
from rmsd_jax.data.subtitles import Subtitle

_ROLES = ("system", "user", "assistant")
_ITEM_KEYS = {  # type of a content item: (allowed keys, required keys)
  "text": ({"type", "text"}, {"type", "text"}),
  "image": ({"type", "image"}, {"type", "image"}),
  "video": (
    {"type", "video", "start", "end", "times", "sample_fps", "subtitles"},
    {"type", "video"},
  ),
}
_IMAGE = "a path, a file:// address, a data: address in base64, a PIL image or uint8 [H, W, 3]"


@dataclasses.dataclass(frozen=True)
class Medium:
  """An image or a clip of a message.

  Attributes:
    kind: "image" or "video".
    source: of an image: see `image_of`. Of a clip: the path of its file, or a list of images.
    start, end: window of a file in seconds; None: its edge.
    times_N: seconds of the images of a list; None for a file.
    subtitles: of a clip, in order.
  """

  kind: str
  source: Any
  start: float | None = None
  end: float | None = None
  times_N: np.ndarray | None = None
  subtitles: tuple[Subtitle, ...] = ()


def media_of(messages: Sequence[Mapping]) -> list[Medium]:
  """Checks a conversation against the form that `Processor.prompt` describes.

  Returns:
    Its images and clips, in order.

  Raises:
    UserError: names the message, the key or the value at fault.
  """
  shown = []
  if not _is_list(messages):
    raise UserError(f"a conversation is a list of messages, not {messages!r:.80}")
  # Keys are held against a list: a template would pass over a misspelt one without a word.
  for number, message in enumerate(messages):
    if (
      not isinstance(message, Mapping)
      or set(message) != {"role", "content"}
      or message["role"] not in _ROLES
    ):
      raise UserError(
        f"message {number} is {message!r:.80}; needed are the keys 'content' and 'role', one of "
        f"{', '.join(_ROLES)}"
      )
    content = message["content"]
    if not isinstance(content, str) and not _is_list(content):
      raise UserError(f"message {number} has content {content!r:.80}; give text or a list of items")
    for item in [] if isinstance(content, str) else content:
      try:
        shown += _media_of_item(item)
      except _Unsuited as reason:
        raise UserError(f"message {number} has {reason}") from None
  if not messages or messages[-1]["role"] != "user":
    raise UserError("the last message of a prompt must have the role 'user'")
  return shown


def image_of(source: Any) -> np.ndarray:
  """An image of a message as uint8 RGB [H, W, 3].

  Raises:
    MediaError: it cannot be read.
    UserError: it is none of the forms that are known.
  """
  if isinstance(source, np.ndarray):
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3 or not source.size:
      raise UserError(f"an image is {source.dtype} {list(source.shape)}; give uint8 [H, W, 3]")
    return source
  if isinstance(source, Image.Image):
    return pictures.from_picture(source)
  if isinstance(source, str) and source.startswith("data:"):
    head, _, content = source.partition(",")
    try:
      file = base64.b64decode(content, validate=True) if head.endswith(";base64") else b""
    except binascii.Error:
      file = b""
    if not file:
      raise UserError(f"an image is {source[:40]!r}, which is no picture in base64")
    return pictures.from_file(io.BytesIO(file), head)
  return pictures.load_image(path_of(source, "an image"))


def path_of(source: Any, what: str) -> str:
  """The path that a text names, without `file://`; `what` is for messages.

  Raises:
    UserError: it is no path.
  """
  if not isinstance(source, str | os.PathLike) or isinstance(os.fspath(source), bytes):
    raise UserError(f"{what} is {source!r:.80}; give {_IMAGE}")
  text = os.fspath(source)
  scheme, _, rest = text.partition("://")
  if rest and scheme == "file":
    # Addresses spell "?", "#" and "%" otherwise; many are a path with a word before it.
    if rest.startswith("/") and os.path.exists(rest):
      return rest
    return urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
  if rest and scheme.isalnum():
    raise UserError(f"{what} is the link {text[:200]!r}; download it and give the path")
  if text.startswith("data:") or not text:
    raise UserError(f"{what} is {text[:40]!r}; give the path of a file")
  return text


class _Unsuited(Exception):
  """What is wrong with an item; `media_of` adds the number of the message."""


def _media_of_item(item: Any) -> list[Medium]:
  kind = item.get("type") if isinstance(item, Mapping) else None
  if not isinstance(kind, str) or kind not in _ITEM_KEYS:
    what = (
      f"an item of type {kind!r:.80}" if isinstance(item, Mapping) else f"the item {item!r:.80}"
    )
    raise _Unsuited(f"{what}; known: text, image, video")
  allowed, required = _ITEM_KEYS[kind]
  if not required <= set(item) <= allowed:
    raise _Unsuited(
      f"a {kind} item with keys {', '.join(sorted(map(str, item)))}; required: "
      f"{', '.join(sorted(required))}; allowed: {', '.join(sorted(allowed))}"
    )
  if kind == "text":
    if not isinstance(item["text"], str):
      raise _Unsuited(f"the text {item['text']!r:.80}; give a string")
    return []
  value = item[kind]
  if kind == "image":
    _check_image(value, "an image")
    return [Medium("image", value)]
  medium = _frames(item, value) if _is_list(value) else _file(item, value)
  try:
    return [dataclasses.replace(medium, subtitles=subtitles.from_json(item.get("subtitles", ())))]
  except ValueError as fault:
    raise _Unsuited(f"a video of which {fault}") from None


def _file(item: Mapping, value: Any) -> Medium:
  if "times" in item or "sample_fps" in item:
    raise _Unsuited("a video file with 'times' or 'sample_fps', which belong to a list of frames")
  try:
    path = path_of(value, "a video")
  except UserError as error:
    raise _Unsuited(str(error).replace(_IMAGE, "the path of a file, or a list of frames")) from None
  start, end = (_seconds(item.get(name), name) for name in ("start", "end"))
  if end is not None and end < (start or 0.0):
    raise _Unsuited(f"a video that ends at {end} s, before its start at {start or 0.0} s")
  return Medium("video", path, start, end)


def _frames(item: Mapping, value: Sequence) -> Medium:
  if "start" in item or "end" in item:
    raise _Unsuited("a list of frames with 'start' or 'end', which belong to a video file")
  if not len(value):
    raise _Unsuited("a video without frames; leave it out")
  for frame in value:
    _check_image(frame, "a frame")
  if ("times" in item) == ("sample_fps" in item):
    raise _Unsuited(
      f"a video of {len(value)} frames without their times; give 'times', the seconds of each, or "
      "'sample_fps', frames a second (one of the two)"
    )
  if "sample_fps" in item:
    fps = _seconds(item["sample_fps"], "sample_fps")
    if not fps:
      raise _Unsuited("a sample_fps of 0 or None; give frames a second, above 0")
    return Medium("video", tuple(value), times_N=np.arange(len(value)) / fps)
  stated = item["times"]
  if not _is_list(stated) or len(stated) != len(value):
    raise _Unsuited(
      f"times {stated!r:.80}; give a list of {len(value)} seconds, one for each frame"
    )
  times = [_seconds(second, "a time", required=True) for second in stated]
  if any(later < sooner for sooner, later in itertools.pairwise(times)):
    raise _Unsuited(f"times {stated!r:.80}, which do not ascend")
  return Medium("video", tuple(value), times_N=np.array(times, np.float64))


def _check_image(value: Any, what: str) -> None:
  if isinstance(value, np.ndarray | Image.Image):
    return
  if isinstance(value, str) and value.startswith("data:image/"):
    return
  try:
    path_of(value, what)
  except UserError as error:
    raise _Unsuited(str(error)) from None


def _seconds(value: Any, name: str, required: bool = False) -> float | None:
  """A number at or above 0, which may stand as text: qwen-vl-utils' examples have it so."""
  if value is None and not required:
    return None
  try:
    number = math.nan if isinstance(value, bool | np.bool_) else float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not 0 <= number < math.inf:
    raise _Unsuited(f"{name} {value!r:.80}; give a number of 0 or more")
  return number


def _is_list(value: Any) -> bool:
  """Whether it is a list of things: no text, no bytes, no path; an array of frames is."""
  if isinstance(value, np.ndarray):
    return value.ndim > 0
  return isinstance(value, Sequence) and not isinstance(value, str | bytes | pathlib.PurePath)

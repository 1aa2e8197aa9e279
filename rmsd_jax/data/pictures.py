"""Image files -> RGB, whatever their format, depth, orientation and transparency.

Axes: H rows, W columns.
"""

import os
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data.containers import MAX_PIXELS, file_of

# Pictures alone: PostScript is a program, and the rest of Pillow's formats little tested.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
_BITS_PER_SAMPLE = 258  # tags of TIFF
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_SAMPLE_FORMAT = 339
_SIGNED = 2
_ZEROS = 512  # bytes, more than a picture has in a row at its end
_TAIL = 2**20  # bytes of it that are looked at


def load_image(path: str | pathlib.Path) -> np.ndarray:
  """Reads an image as uint8 RGB [H, W, 3]: upright by its EXIF tag, transparency on white.

  Raises:
    MediaError: the file is missing, not a picture of one of FORMATS that can be decoded, too large,
      or of values that have no range.
  """
  file_of(path)
  # Opened here: given a path, Pillow maps a turned TIFF into memory with its sides swapped.
  with open(path, "rb") as file:
    return _guarded(path, lambda: _opened(file))


def from_picture(picture: Image.Image, name: str = "the given picture") -> np.ndarray:
  """As `load_image`, of a picture of Pillow; `name` is for messages."""
  return _guarded(name, lambda: _rgb(picture))


def from_file(file, name: str) -> np.ndarray:
  """As `load_image`, of an open binary file; `name` is for messages."""
  return _guarded(name, lambda: _opened(file))


_NO_RANGE = "holds {}, which have no black and white; convert it to 8 or 16 bits"


class _Unsuited(Exception):
  """What is wrong with a picture that can be decoded."""


def _guarded(name: str | pathlib.Path, read) -> np.ndarray:
  try:
    return read()
  except _Unsuited as reason:
    raise MediaError(name, str(reason)) from None
  # RuntimeError is AVIF's.
  except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
    raise MediaError(name, f"is not a readable image ({error})") from error


def _opened(file) -> np.ndarray:
  Image.init()
  known = [name for name in FORMATS if name in Image.OPEN]  # what this Pillow was built with
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
    with Image.open(file, formats=known) as opened:
      if opened.format in ("JPEG", "WEBP") and _ends_in_zeros(file, opened.format):
        raise _Unsuited(
          "ends in zeros, as a file does that was not copied to its end; copy it again"
        )
      return _rgb(opened)


def _ends_in_zeros(file, form: str) -> bool:
  """Whether the end of a picture was never written: a decoder fills it with what it had."""
  place = file.tell()
  length = file.seek(0, os.SEEK_END)
  if form == "WEBP":  # what follows the container is none of it
    file.seek(4)
    length = min(length, 8 + int.from_bytes(file.read(4), "little"))
  file.seek(max(0, length - _TAIL))
  tail = file.read(min(length, _TAIL))
  file.seek(place)
  whole = tail.rstrip(b"\0")
  # A JPEG may be padded behind its end.
  return len(tail) - len(whole) >= _ZEROS and not whole.endswith(b"\xff\xd9")


def _rgb(picture: Image.Image) -> np.ndarray:
  width, height = picture.size
  if width * height > MAX_PIXELS:
    raise _Unsuited(f"has {width} x {height} pixels, limit {MAX_PIXELS} in all; scale it down")
  # Pillow gives the bytes of 8 signed bits as if they had no sign.
  if _SIGNED in getattr(picture, "tag_v2", {}).get(_SAMPLE_FORMAT, ()):
    raise _Unsuited(_NO_RANGE.format("signed integers"))
  if picture.mode.startswith(("I", "F")):
    levels = _levels(picture)
    scaled = Image.fromarray(levels)
    scaled.info |= {"exif": picture.info["exif"]} if "exif" in picture.info else {}
    picture = scaled
  picture = ImageOps.exif_transpose(picture)
  # White, as qwen-vl-utils pastes it; `convert("RGB")` alone would show what lies under it.
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _levels(picture: Image.Image) -> np.ndarray:
  """uint8 [H, W] of a picture with one channel of more than 8 bits, scaled by its range."""
  tags = getattr(picture, "tag_v2", {})
  values = np.asarray(picture)
  most = 2**16 - 1  # to which Pillow scales the values of a PPM file, too
  if picture.mode.startswith("I;16"):
    most = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
  if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):
    # A table, since the values of a large picture as floats would take eight times its size.
    table = np.rint(np.arange(2**16) * (255 / most)).clip(0, 255).astype(np.uint8)
    levels = table[values]
  elif picture.mode == "F" and np.all((values >= 0) & (values <= 1)):  # not where one is NaN
    levels = np.rint(values * 255).astype(np.uint8)
  else:
    kind = "floating-point numbers outside 0 to 1" if picture.mode == "F" else "signed integers"
    raise _Unsuited(_NO_RANGE.format(kind))
  if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
    levels = 255 - levels
  if isinstance(clear := picture.info.get("transparency"), int):
    levels[values == clear] = 255
  return levels

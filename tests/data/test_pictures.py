"""Pictures of every depth are scaled by their range or refused; foreign formats and sizes, too."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data import children, images, media, pictures

RAMP = np.linspace(0, 65535, 256 * 4).round().astype(np.uint16).reshape(4, 256)
SCALED = np.rint(RAMP / 65535 * 255)  # right, to a level


def png(colour_type, samples, extra=b""):
  """A PNG file of 16-bit samples [H, W] or [H, W, C], written without Pillow."""

  def chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check

  head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour_type, 0, 0, 0)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
  body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


def tiff(bits, photometric, content, sample_format=1):
  """A TIFF file of 256 x 4 grey samples; photometric 0: white is zero."""
  tags = [(256, 256), (257, 4), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
          (278, 4), (279, len(content)), (339, sample_format)]  # fmt: skip
  entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
  directory = struct.pack("<H", len(tags)) + entries + bytes(4)
  return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


def saved(picture, kind, **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


SCALABLE = {
  "grey.png": png(0, RAMP),
  "grey_alpha.png": png(4, np.stack([RAMP, np.full_like(RAMP, 65535)], -1)),
  "colour.png": png(2, np.stack([RAMP] * 3, -1)),
  "grey.tif": tiff(16, 1, RAMP.astype("<u2").tobytes()),
  "pillow.tif": saved(Image.fromarray(RAMP), "TIFF"),
  "grey_8.tif": tiff(8, 1, SCALED.astype(np.uint8).tobytes()),
  "float.tif": tiff(32, 1, (RAMP / 65535).astype("<f4").tobytes(), 3),
  "grey.pgm": b"P5\n256 4\n65535\n" + RAMP.astype(">u2").tobytes(),
  "colour.ppm": b"P6\n256 4\n65535\n" + np.stack([RAMP] * 3, -1).astype(">u2").tobytes(),
  "float.pfm": b"Pf\n256 4\n-1.0\n" + (RAMP / 65535).astype("<f4")[::-1].tobytes(),
  "twelve_bits.pgm": b"P5\n256 4\n4095\n" + (RAMP // 16).astype(">u2").tobytes(),
}
INVERTED = {
  "white_is_zero.tif": tiff(16, 0, RAMP.astype("<u2").tobytes()),
  "white_is_zero_8.tif": tiff(8, 0, SCALED.astype(np.uint8).tobytes()),
  "white_is_zero_float.tif": tiff(32, 0, (RAMP / 65535).astype("<f4").tobytes(), 3),
}
REFUSED = {
  "integers.tif": saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
  "unsigned.tif": tiff(32, 1, (RAMP.astype("<u4") * 65537).tobytes()),
  "signed.tif": tiff(16, 1, RAMP.astype("<u2").tobytes(), 2),
  "signed_8.tif": tiff(8, 1, SCALED.astype(np.int8).tobytes(), 2),
  "signed_dark.tif": tiff(8, 1, bytes(256 * 4), 2),
  "celsius.tif": saved(Image.fromarray((RAMP / 1000).astype(np.float32)), "TIFF"),
  "negative.tif": saved(Image.fromarray((RAMP / 65535 - 0.5).astype(np.float32)), "TIFF"),
  "no_number.tif": saved(Image.fromarray(np.full((4, 256), np.nan, np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", SCALABLE)
def test_more_than_8_bits_are_scaled_by_their_range(tmp_path, name):
  (tmp_path / name).write_bytes(SCALABLE[name])
  image = media.load_image(tmp_path / name)
  assert image.dtype == np.uint8 and image.shape == (4, 256, 3)
  assert np.abs(image - SCALED[..., None]).max() <= 1
  assert image.min() == 0 and image.max() == 255


@pytest.mark.parametrize("name", INVERTED)
def test_white_may_be_zero(tmp_path, name):
  (tmp_path / name).write_bytes(INVERTED[name])
  assert np.abs(media.load_image(tmp_path / name) - (255 - SCALED[..., None])).max() <= 1


@pytest.mark.parametrize("name", REFUSED)
def test_values_without_a_range_are_refused(tmp_path, name):
  (tmp_path / name).write_bytes(REFUSED[name])
  with pytest.raises(MediaError, match=f"{name}: holds .* no black and white; convert it"):
    media.load_image(tmp_path / name)


def test_twelve_bits_of_a_tiff_reach_from_black_to_white(tmp_path):
  content = b"\xff" * (128 * 3) + bytes(128 * 3) + b"\x80\x08\x00" * 256
  (tmp_path / "twelve.tif").write_bytes(tiff(12, 1, content))
  image = media.load_image(tmp_path / "twelve.tif")
  assert (image[0] == 255).all() and (image[1] == 0).all()
  assert np.abs(image[2:].astype(int) - 0x800 / 4095 * 255).max() <= 1


def test_a_transparent_grey_of_16_bits_is_white(tmp_path):
  clear = struct.pack(">IHI", 2, 0, zlib.crc32(b"tRNS\0\0"))
  content = png(0, RAMP, clear[:4] + b"tRNS" + clear[4:])
  (tmp_path / "clear.png").write_bytes(content)
  image = media.load_image(tmp_path / "clear.png")
  assert (image[0, 0] == 255).all() and (image[0, 1] == 0).all()


def test_a_turned_picture_of_16_bits_is_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned a quarter clockwise
  Image.fromarray(RAMP).save(tmp_path / "turned.png", exif=exif)
  image = media.load_image(tmp_path / "turned.png")
  assert image.shape == (256, 4, 3)
  assert np.abs(image[..., 0] - np.rot90(SCALED, -1)).max() <= 1


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ("b.jpg", saved(Image.new("RGB", (9, 9)), "EPS")),
    ("c.pdf", saved(Image.new("RGB", (9, 9)), "PDF")),
    ("d.png", saved(Image.new("L", (9, 9)), "PCX")),
    ("e.png", saved(Image.new("RGB", (9, 9)), "SGI")),
  ],
)
def test_programs_and_rare_formats_are_no_pictures(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(MediaError, match="is not a readable image"):
    media.load_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF",
                                  "WEBP", "AVIF"])  # fmt: skip
def test_the_usual_formats_are_read(tmp_path, kind):
  ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
  (tmp_path / "picture").write_bytes(saved(Image.fromarray(np.stack([ramp] * 3, -1)), kind))
  image = media.load_image(tmp_path / "picture").astype(int)
  assert image.shape == (32, 64, 3) and np.abs(image - ramp[..., None]).mean() < 3


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path, recwarn):
  head = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
  chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
  content = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"
  (tmp_path / "bomb.png").write_bytes(content)
  with pytest.raises(MediaError, match="has 10000 x 10000 pixels, limit 67108864 in all; scale"):
    media.load_image(tmp_path / "bomb.png")
  assert not recwarn.list
  wide = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  chunk = struct.pack(">I", 13) + b"IHDR" + wide + struct.pack(">I", zlib.crc32(b"IHDR" + wide))
  (tmp_path / "bomb.png").write_bytes(content[:8] + chunk + struct.pack(">I", 9) + b"IDAT")
  with pytest.raises(MediaError, match="exceeds limit"):
    media.load_image(tmp_path / "bomb.png")


def test_a_resize_in_parts_is_the_same(monkeypatch):
  frames = np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), np.uint8)
  whole = images.resize_bicubic(frames, 33, 41)
  monkeypatch.setattr(images, "_PIXELS_AT_ONCE", 70 * 7)
  np.testing.assert_array_equal(images.resize_bicubic(frames, 33, 41), whole)


def take(gigabytes):
  return len(np.ones(int(gigabytes * 2**27)))


def test_a_task_that_takes_all_memory_costs_itself_alone():
  found = [made for _, made in children.run(take, [0.01, 64, 0.01], workers=1, limit_s=30.0)]
  assert found[0] == found[2] == int(0.01 * 2**27)
  assert found[1] == children.Failure("MemoryLimit", "took more than 4 GiB of memory")


def test_formats_are_a_list():
  assert not {"EPS", "PSD", "PDF", "WMF", "FPX", "ICNS"} & set(pictures.FORMATS)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_an_uncompressed_tiff_is_turned_as_a_packed_one(tmp_path, mode, turn):
  rng = np.random.default_rng(0)
  picture = Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8))
  picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
  found = []
  for name, packing in (("a.tif", None), ("b.tif", "tiff_lzw")):
    picture.save(tmp_path / name, compression=packing, tiffinfo={274: turn})
    found.append(media.load_image(tmp_path / name))
  assert found[0].shape[:2] == ((64, 48) if turn > 4 else (48, 64))
  np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
  ("name", "how"),
  [("a.jpg", {}), ("b.jpg", {"progressive": True}), ("a.webp", {}), ("b.webp", {"lossless": True})],
)
def test_a_picture_whose_end_was_not_written_is_refused(tmp_path, name, how):
  rng = np.random.default_rng(0)
  picture = Image.fromarray(rng.integers(0, 255, (96, 128, 3), np.uint8))
  picture.save(tmp_path / name, **how)
  whole = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(whole + bytes(4096))  # padded behind its end
  assert media.load_image(tmp_path / name).shape == (96, 128, 3)
  (tmp_path / name).write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
  with pytest.raises(MediaError, match="ends in zeros, as a file does that was not copied"):
    media.load_image(tmp_path / name)


def test_any_error_of_a_decoder_is_a_picture_that_cannot_be_read(monkeypatch, tmp_path):
  """AVIF's, of a file whose end was not written, is a RuntimeError."""
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

  def fail(picture):
    raise RuntimeError("Failed to decode frame 0")

  monkeypatch.setattr(pictures, "_rgb", fail)
  with pytest.raises(MediaError, match="is not a readable image .Failed to decode frame 0"):
    media.load_image(tmp_path / "a.png")

"""Halves of files whose formats state no size: Ogg, MPEG transport streams, GIF."""

import numpy as np
import PIL.Image
import pytest
from independent import ffmpeg

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data import headers, media

ALL = media.Sampling(frames=10**6)
SOURCE = ("-f", "lavfi", "-i", "testsrc2=s=96x64:d=2:r=10")
MADE = {
  "a.ogv": ("-c:v", "libvpx", "-f", "ogg"),
  "b.ogv": ("-c:v", "libtheora", "-f", "ogg"),
  "a.ts": ("-c:v", "libx264", "-f", "mpegts"),
  "b.m2ts": ("-c:v", "libx264", "-f", "mpegts", "-mpegts_m2ts_mode", "1"),
  "c.ts": ("-c:v", "mpeg2video", "-f", "mpegts"),
  "a.gif": (),
  "b.gif": ("-gifflags", "0"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("half")
  for name, how in MADE.items():
    ffmpeg(*SOURCE, *how, folder / name)
  rng = np.random.default_rng(0)
  pages = [PIL.Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(9)]
  for name, more in (("c.gif", {"loop": 0, "comment": b"9 pages"}), ("d.gif", {"interlace": 0})):
    pages[0].save(folder / name, save_all=True, append_images=pages[1:], duration=100, **more)
  return folder


NAMES = [*MADE, "c.gif", "d.gif"]


@pytest.mark.parametrize("name", NAMES)
def test_whole_files_are_read(folder, name):
  assert headers.stated_size(folder / name) == 0
  count = 9 if name in ("c.gif", "d.gif") else 20
  assert len(media.decode(folder / name, sampling=ALL).indices_N) == count


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_cut_off_files_are_refused(folder, name, share, tmp_path):
  content = (folder / name).read_bytes()
  size = int(len(content) * share)
  size += size % 188 == 0 or size % 192 == 0  # between two packets nothing tells
  cut = tmp_path / name
  cut.write_bytes(content[:size])
  with pytest.raises(MediaError, match=rf"{name}: is cut off: it holds {size:,} of "):
    media.decode(cut)


def test_what_lacks_its_end_alone_is_read(folder, tmp_path):
  """A GIF without its trailer, an Ogg recording without its last page."""
  (tmp_path / "a.gif").write_bytes((folder / "a.gif").read_bytes()[:-1])
  assert len(media.decode(tmp_path / "a.gif", sampling=ALL).indices_N) == 20
  content = (folder / "a.ogv").read_bytes()
  (tmp_path / "a.ogv").write_bytes(content[: content.rindex(b"OggS")])
  assert headers.stated_size(tmp_path / "a.ogv") == 0


def test_junk_is_no_stream(tmp_path):
  for number, content in enumerate((b"G" * 7, b"G" + bytes(999), b"GIF89a", b"OggS", b"OggS" * 9)):
    path = tmp_path / f"{number}.bin"
    path.write_bytes(content)
    with pytest.raises(MediaError):
      media.decode(path)

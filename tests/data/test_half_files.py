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


FRAGMENTS = ("-c:v", "libx264", "-g", "5", "-movflags")
STATED = {
  "live.webm": ("-c:v", "libvpx", "-live", "1"),
  "live.mkv": ("-c:v", "libx264", "-live", "1", "-cluster_time_limit", "500"),
  "a.y4m": ("-pix_fmt", "yuv420p"),
  "b.y4m": ("-pix_fmt", "yuv444p10le", "-strict", "-1"),
  "sidx.mp4": (*FRAGMENTS, "dash+frag_keyframe+global_sidx"),
  "mehd.mp4": (*FRAGMENTS, "frag_keyframe+empty_moov+default_base_moof"),
  "zeros.webm": ("-c:v", "libvpx", "-cluster_time_limit", "9000"),
}


@pytest.fixture(scope="module")
def stated(tmp_path_factory):
  folder = tmp_path_factory.mktemp("stated")
  for name, how in STATED.items():
    ffmpeg(*SOURCE, *how, folder / name)
  content = (folder / "mehd.mp4").read_bytes()
  (folder / "mehd.mp4").write_bytes(with_mehd(content, milliseconds=2000))
  return folder


def with_mehd(content, milliseconds):
  """A fragmented file whose header states the length of all fragments, as some packagers do."""
  place = content.index(b"mvhd") + 16
  units = int.from_bytes(content[place : place + 4], "big")
  length = (milliseconds * units // 1000).to_bytes(4, "big")
  box = (16).to_bytes(4, "big") + b"mehd" + bytes(4) + length
  for kind in (b"mvex", b"moov"):
    place = content.index(kind) - 4
    size = int.from_bytes(content[place : place + 4], "big") + len(box)
    content = content[:place] + size.to_bytes(4, "big") + content[place + 4 :]
  place = content.index(b"mvex") + 4
  return content[:place] + box + content[place:]


@pytest.mark.parametrize("name", STATED)
def test_whole_files_that_state_their_parts_are_read(stated, name):
  assert len(media.decode(stated / name, sampling=ALL).indices_N) == 20


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["live.webm", "live.mkv", "a.y4m", "b.y4m"])
def test_a_cut_inside_a_part_is_noticed(stated, name, share, tmp_path):
  content = (stated / name).read_bytes()
  (tmp_path / name).write_bytes(content[: int(len(content) * share)])
  for read in (media.decode, media.look):
    with pytest.raises(MediaError, match=f"{name}: is cut off"):
      read(tmp_path / name)


@pytest.mark.parametrize("fragments", [1, 2, 3])
@pytest.mark.parametrize("name", ["sidx.mp4", "mehd.mp4"])
def test_fragments_that_are_stated_must_be_there(stated, name, fragments, tmp_path):
  content = (stated / name).read_bytes()
  end = 0
  for _ in range(fragments + 1):
    end = content.index(b"moof", end + 5) - 4
  (tmp_path / name).write_bytes(content[:end])
  with pytest.raises(MediaError, match=f"{name}: is cut off: it holds "):
    media.decode(tmp_path / name)


def test_a_file_that_cannot_be_read_to_its_end_is_damaged(stated, tmp_path):
  content = bytearray((stated / "zeros.webm").read_bytes())
  start = len(content) * 3 // 10
  content[start : start + len(content) // 8] = bytes(len(content) // 8)
  (tmp_path / "zeros.webm").write_bytes(content)
  with pytest.raises(MediaError, match="zeros.webm: is damaged: it can be read up to"):
    media.decode(tmp_path / "zeros.webm")


@pytest.mark.parametrize("more", [b"\0" * 50, b"\x1a", b"\xec\xff", b"junk" * 9])
def test_what_follows_a_live_recording_is_no_fault_of_the_reader(stated, more, tmp_path):
  (tmp_path / "a.webm").write_bytes((stated / "live.webm").read_bytes() + more)
  try:
    assert len(media.decode(tmp_path / "a.webm", sampling=ALL).indices_N) == 20
  except MediaError as error:
    assert "is cut off" in str(error)


def test_a_clip_whose_end_was_not_written_is_refused(tmp_path):
  """Of its size, with all its headers: AV1 gives fewer frames, and no error."""
  path = tmp_path / "a.mp4"
  made = ("-c:v", "libaom-av1", "-cpu-used", "8", "-g", "12", "-movflags", "+faststart")
  ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:d=8:r=12", *made, path)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
  with pytest.raises(MediaError, match="damaged|cannot be decoded"):
    media.decode(path, sampling=media.Sampling(frames=16))

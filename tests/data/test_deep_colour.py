"""Clips of more than 8 bits, of two fields, cut or turned by their stream: ffmpeg's own rgb24."""

import numpy as np
import pytest
from independent import ffmpeg

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data import media

ALL = media.Sampling(frames=10**6)
BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
HDR = ("-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_trc", "smpte2084")


@pytest.mark.parametrize(
  ("name", "pixels", "codec"),
  [
    ("a.mp4", "yuv420p10le", ("libx265",)),
    ("b.mp4", "yuv420p10le", ("libx264", *BT709)),
    ("c.mkv", "yuv420p10le", ("libx265", *HDR)),
    ("d.mkv", "yuv420p10le", ("libx264", "-color_range", "pc", *BT709)),
    ("e.webm", "yuv420p10le", ("libvpx-vp9",)),
    ("f.mp4", "yuv420p12le", ("libx265",)),
    ("g.mov", "yuv422p10le", ("prores_ks",)),
    ("h.mkv", "yuv444p10le", ("libx264",)),
    ("i.mkv", "gray10le", ("ffv1",)),
    ("j.mkv", "gbrp10le", ("ffv1",)),
    ("k.mp4", "yuv420p", ("libx264", *BT709)),  # 8 bits, beside them
  ],
)
def test_frames_are_those_of_ffmpeg(name, pixels, codec, tmp_path):
  path = tmp_path / name
  source = ("-f", "lavfi", "-i", "testsrc2=s=130x98:d=0.4:r=10")
  ffmpeg(*source, "-pix_fmt", pixels, "-c:v", *codec, path)
  raw, _ = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
  wanted = np.frombuffer(raw, np.uint8).reshape(-1, 98, 130, 3)
  found = media.decode(path, sampling=ALL).frames_NHWC
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
  ("name", "codec"),
  [
    ("a.mp4", ("libx264", "-flags", "+ildct+ilme", "-x264opts", "tff=1")),
    ("b.mpg", ("mpeg2video", "-flags", "+ildct+ilme")),
  ],
)
def test_frames_of_two_fields_are_those_of_ffmpeg(name, codec, tmp_path):
  path = tmp_path / name
  source = ("-f", "lavfi", "-i", "testsrc2=s=128x96:d=1:r=50")
  ffmpeg(*source, "-vf", "tinterlace=interleave_top", "-pix_fmt", "yuv420p", "-c:v", *codec, path)
  raw, _ = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
  wanted = np.frombuffer(raw, np.uint8).reshape(-1, 96, 128, 3)
  np.testing.assert_array_equal(media.decode(path, sampling=ALL).frames_NHWC, wanted)


@pytest.mark.parametrize("cut", ["crop_left=16", "crop_left=4:crop_right=4", "crop_top=2"])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_what_a_stream_cuts_off_is_not_shown(codec, cut, tmp_path):
  path, made = tmp_path / "cut.mp4", tmp_path / "made.mp4"
  encoder = {"h264": "libx264", "hevc": "libx265"}[codec]
  source = ("-f", "lavfi", "-i", "testsrc2=s=128x96:d=1:r=5")
  ffmpeg(*source, "-pix_fmt", "yuv420p", "-c:v", encoder, made)
  ffmpeg("-i", made, "-c", "copy", "-bsf:v", f"{codec}_metadata={cut}", path)
  found = media.decode(path, sampling=ALL).frames_NHWC
  raw, _ = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
  wanted = np.frombuffer(raw, np.uint8)
  assert found[0].size * len(found) == wanted.size and found.shape[1:3] != (96, 128)
  np.testing.assert_array_equal(found, wanted.reshape(found.shape))


@pytest.mark.parametrize("how", ["rotate=180", "flip=horizontal"])
def test_a_turn_of_some_frames_alone_is_refused(how, tmp_path):
  path, made = tmp_path / "turned.mp4", tmp_path / "made.mp4"
  ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:d=1:r=5", "-c:v", "libx264", made)
  ffmpeg(
    "-i", made, "-c", "copy", "-bsf:v", f"h264_metadata=display_orientation=insert:{how}", path
  )
  with pytest.raises(MediaError, match="is to be shown turned in some frames alone"):
    media.decode(path, sampling=ALL)

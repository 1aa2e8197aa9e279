"""Clips of more than 8 bits a colour: the values of ffmpeg's own rgb24."""

import numpy as np
import pytest
from independent import ffmpeg

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

"""ffmpeg as a program: writes clips of many containers and codecs, and reads them independently."""

import fractions
import re
import subprocess

import imageio_ffmpeg
import numpy as np

_STAMP = re.compile(r"\] n: *\d+ pts: *(-?\d+) ")
_BASE = re.compile(r"config in time_base: (\d+)/(\d+)")
_SIZE = re.compile(r" s:(\d+)x(\d+) ")


def ffmpeg(*arguments):
  """Runs ffmpeg and returns (stdout, stderr)."""
  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *arguments]
  done = subprocess.run([str(one) for one in command], capture_output=True)
  assert not done.returncode, done.stderr.decode()[-2000:]
  return done.stdout, done.stderr.decode()


def frames_and_times(path):
  """Every frame that ffmpeg shows, turned by itself, and its seconds after the first one.

  Returns:
    uint8 RGB [N, H, W, 3], and float64 [N].
  """
  turned = ["-map", "0:V:0", "-fps_mode", "passthrough", "-vf", "showinfo"]
  raw, said = ffmpeg("-i", path, *turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
  base = fractions.Fraction(*map(int, _BASE.search(said).groups()))
  stamps = [int(stamp) for stamp in _STAMP.findall(said)]
  width, height = map(int, _SIZE.search(said).groups())
  frames = np.frombuffer(raw, np.uint8).reshape(len(stamps), height, width, 3)
  return frames, np.array([float((stamp - stamps[0]) * base) for stamp in stamps])

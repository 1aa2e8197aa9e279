"""Times and frames of clips of many kinds against ffmpeg, run as a program."""

import numpy as np
import pytest
from independent import ffmpeg, frames_and_times

from rmsd_jax.data import media

SOURCE = "testsrc2=s=64x48:d=2:r="
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "12")
B_FRAMES = (*X264, "-bf", "3", "-b_strategy", "0")
X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error:keyint=12")
VP8 = ("-c:v", "libvpx", "-pix_fmt", "yuv420p", "-deadline", "realtime", "-cpu-used", "8")
HIDDEN = ("-auto-alt-ref", "1", "-lag-in-frames", "16", "-arnr-maxframes", "7", "-b:v", "60k")
VP8_HIDDEN = ("-c:v", "libvpx", "-pix_fmt", "yuv420p", *HIDDEN)
VP9 = ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-cpu-used", "8", "-g", "12")
VP9_HIDDEN = (*VP9, *HIDDEN)
AV1 = ("-c:v", "libaom-av1", "-pix_fmt", "yuv420p", "-cpu-used", "8", "-g", "12")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "3", "-g", "12")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "3", "-g", "12")
MJPEG = ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p")
# 20 frames a second for a second, then 5.
VARIABLE = (
  "-vf",
  "settb=1/1000,setpts='if(lt(N,20),N/20,1+(N-20)/5)/TB'",
  "-fps_mode",
  "passthrough",
)
JITTER = ("-vf", "settb=1/1000,setpts='(N/24+0.012*mod(N*7,3))/TB'", "-fps_mode", "passthrough")
MILLI = ("-enc_time_base", "1:1000")

CONSTANT = [
  ("h264.mp4", 24, X264),
  ("b_frames.mp4", 25, B_FRAMES),
  ("ntsc.mp4", "30000/1001", B_FRAMES),
  ("h264.mov", 30, B_FRAMES),
  ("fragmented.mp4", 24, (*B_FRAMES, "-movflags", "frag_keyframe+empty_moov")),
  ("film.mkv", "24000/1001", B_FRAMES),
  ("h264.mkv", 60, X264),
  ("h264.ts", 25, B_FRAMES),
  ("h264.flv", 24, B_FRAMES),
  ("h264.avi", 24, X264),
  ("hevc.mp4", 24, X265),
  ("hevc.mkv", 30, X265),
  ("mpeg4.mp4", 25, (*MPEG4, "-bf", "2")),
  ("mpeg4.avi", 25, MPEG4),
  ("mpeg4_b.avi", 25, (*MPEG4, "-bf", "2")),
  ("mpeg2.mpg", 25, (*MPEG2, "-bf", "2")),
  ("mpeg2.ts", 25, (*MPEG2, "-bf", "2")),
  ("mpeg2.mkv", 24, MPEG2),
  ("vp8.webm", 24, VP8),
  ("vp8_hidden.webm", 24, VP8_HIDDEN),
  ("vp9.webm", 24, VP9),
  ("vp9_hidden.webm", 30, VP9_HIDDEN),
  ("vp9.mp4", 24, VP9),
  ("av1.mp4", 24, AV1),
  ("av1.webm", 24, AV1),
  ("mjpeg.avi", 15, MJPEG),
  ("mjpeg.mov", 24, MJPEG),
  ("theora.ogv", 24, ("-c:v", "libtheora", "-pix_fmt", "yuv420p", "-q:v", "7")),
  ("prores.mov", 24, ("-c:v", "prores_ks",)),
  ("ffv1.mkv", 24, ("-c:v", "ffv1", "-pix_fmt", "yuv420p")),
  ("wmv.asf", 24, ("-c:v", "wmv2", "-q:v", "3")),
  ("flv1.flv", 24, ("-c:v", "flv", "-q:v", "3")),
  ("pictures.gif", 10, ()),
  ("mpeg4.nut", 24, MPEG4),
]  # fmt: skip
VARYING = [
  ("variable.mkv", 20, (*B_FRAMES, *VARIABLE, *MILLI)),
  ("variable.mp4", 20, (*B_FRAMES, *VARIABLE, *MILLI)),
  ("variable_hevc.mp4", 20, (*X265, *VARIABLE, *MILLI)),
  ("variable.flv", 20, (*X264, *VARIABLE, *MILLI)),
  ("variable.ts", 20, (*B_FRAMES, *VARIABLE, *MILLI)),
  ("variable.webm", 20, (*VP8_HIDDEN, *VARIABLE, *MILLI)),
  ("variable_vp9.webm", 20, (*VP9_HIDDEN, *VARIABLE, *MILLI)),
  ("variable_mjpeg.mkv", 20, (*MJPEG, *VARIABLE, *MILLI)),
  ("variable.gif", 20, VARIABLE),
  ("jitter.mov", 24, (*B_FRAMES, *JITTER, *MILLI)),
  ("jitter_av1.webm", 24, (*AV1, *JITTER, *MILLI)),
]  # fmt: skip
# Made of another clip: (its name, options before it, options after it).
REMADE = [
  ("cut_in_a_gop.mp4", "b_frames.mp4", ("-ss", "0.7"), ("-c", "copy")),
  ("cut_in_a_gop.mov", "h264.mov", ("-ss", "0.9"), ("-c", "copy")),
  ("delayed.mp4", "b_frames.mp4", ("-itsoffset", "1.5"), ("-c", "copy")),
  ("no_edit_list.mp4", "b_frames.mp4", (), ("-c", "copy", "-use_editlist", "0")),
  ("turned_90.mp4", "b_frames.mp4", ("-display_rotation", "90"), ("-c", "copy")),
  ("turned_180.mov", "h264.mov", ("-display_rotation", "180"), ("-c", "copy")),
  ("turned_270.mp4", "hevc.mp4", ("-display_rotation", "270"), ("-c", "copy")),
  ("mirrored.mp4", "b_frames.mp4", ("-display_hflip",), ("-c", "copy")),
  ("flipped.mov", "h264.mov", ("-display_vflip",), ("-c", "copy")),
  ("turned_and_mirrored.mp4", "h264.mp4", ("-display_rotation", "90", "-display_hflip"),
   ("-c", "copy")),
  ("turned_and_flipped.mp4", "h264.mp4", ("-display_rotation", "270", "-display_hflip"),
   ("-c", "copy")),
]  # fmt: skip
NAMES = [case[0] for case in CONSTANT + VARYING + REMADE]


@pytest.fixture(scope="module")
def clip_of(tmp_path_factory):
  """The path of a clip by its name, made when first asked for."""
  folder = tmp_path_factory.mktemp("clips")

  def path_of(name):
    path = folder / name
    if path.exists():
      return path
    for made, rate, how in CONSTANT + VARYING:
      if made == name:
        ffmpeg("-f", "lavfi", "-i", f"{SOURCE}{rate}", *how, path)
    for made, source, before, after in REMADE:
      if made == name:
        ffmpeg(*before, "-i", path_of(source), *after, path)
    return path

  return path_of


@pytest.mark.parametrize("name", NAMES)
def test_times_and_frames_are_those_of_ffmpeg(clip_of, name):
  frames_NHWC, times_N = frames_and_times(clip_of(name))
  every = media.decode(clip_of(name), sampling=media.Sampling(frames=10**6))
  np.testing.assert_allclose(every.times_N, times_N, atol=1e-9)
  np.testing.assert_array_equal(every.frames_NHWC, frames_NHWC)
  # Few of them, by jumps.
  for sampling in (media.Sampling(frames=5), media.Sampling(fps=3.0)):
    few = media.decode(clip_of(name), sampling=sampling)
    np.testing.assert_array_equal(few.times_N, every.times_N[few.indices_N])
    np.testing.assert_array_equal(few.frames_NHWC, frames_NHWC[few.indices_N])
    np.testing.assert_allclose(few.seconds_N, few.times_N, atol=1e-3)

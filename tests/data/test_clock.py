"""Times and frames of clips of many kinds against ffmpeg, run as a program."""

import fractions

import av
import numpy as np
import pytest
from clips import RATE, write_clip
from independent import ffmpeg, frames_and_times

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data import chat, containers, media, sampling

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
  for how in (media.Sampling(frames=5), media.Sampling(fps=3.0)):
    few = media.decode(clip_of(name), sampling=how)
    np.testing.assert_array_equal(few.times_N, every.times_N[few.indices_N])
    np.testing.assert_array_equal(few.frames_NHWC, frames_NHWC[few.indices_N])
    np.testing.assert_allclose(few.seconds_N, few.times_N, atol=1e-3)


@pytest.mark.parametrize("name", [case[0] for case in CONSTANT] + ["turned_90.mp4", "delayed.mp4"])
@pytest.mark.parametrize("how", [{}, {"fps": 5.0, "min_frames": 2}, {"frames": 7}, {"even": True}])
def test_at_a_constant_rate_both_clocks_tell_the_same_digits(clip_of, name, how):
  path = clip_of(name)
  if not containers.timeline(path).constant:
    # Repeated pictures are left out, hidden ones counted, or stamps have gaps.
    assert name in ("theora.ogv", "vp8_hidden.webm")
    return
  by_stamps = media.decode(path, sampling=media.Sampling(**how))
  by_index = media.look(path, sampling=media.Sampling(**how, times="index"))
  assert by_stamps.indices_N.tolist() == by_index.indices_N.tolist()
  # Not to the digit alone, but to the last bit.
  assert chat.pair_seconds(by_stamps.seconds_N) == chat.pair_seconds(by_index.seconds_N)
  assert "clocks" not in by_stamps.notes and "stamps" not in by_stamps.notes


def test_rounded_stamps_tell_the_digits_of_their_rate(tmp_path):
  # Of 24000/1001 a second in milliseconds: pairs of frames whose rounded mean prints otherwise.
  path = tmp_path / "film.mkv"
  ffmpeg(
    "-f", "lavfi", "-i", "color=s=16x16:d=100:r=24000/1001", *X264, "-preset", "ultrafast", path
  )
  line = containers.timeline(path)
  exact = np.arange(len(line.times_N)) / line.rate
  told = [f"{seconds:.1f}" for seconds in chat.pair_seconds(line.times_N)]
  assert told != [f"{seconds:.1f}" for seconds in chat.pair_seconds(exact)]
  clip = media.look(path, sampling=media.Sampling(frames=10**6))
  assert chat.pair_seconds(clip.seconds_N) == chat.pair_seconds(exact)
  np.testing.assert_array_equal(clip.times_N, line.times_N)


def variable(tmp_path, stamps, name="variable.mkv"):
  return write_clip(tmp_path / name, frames=len(stamps), stamps=stamps)


SLOWING = [*range(20), *range(20, 120, 5)]  # 10 frames a second for 2 s, then 2, until 11.5 s


def test_frames_are_spread_over_true_seconds(tmp_path):
  path = variable(tmp_path, SLOWING)
  clip = media.decode(path, sampling=media.Sampling(fps=1.0))
  assert np.abs(np.diff(clip.times_N) - 1.15).max() <= 0.5
  assert clip.times_N[-1] == 11.5
  np.testing.assert_array_equal(clip.seconds_N, clip.times_N)
  # By number, half of them lie in the first sixth of the clip, and are told wrong times.
  by_index = media.look(path, sampling=media.Sampling(frames=10, times="index"))
  assert (by_index.times_N < 2.3).sum() == 5
  assert np.abs(by_index.seconds_N - by_index.times_N).max() > 7


@pytest.mark.parametrize("times", sampling.TIMES)
def test_a_window_is_in_seconds_of_the_file_on_both_clocks(tmp_path, times):
  path = variable(tmp_path, SLOWING)
  clip = media.decode(path, 9.0, 11.0, sampling=media.Sampling(times=times))
  assert clip.times_N[0] >= 9.0 and clip.times_N[-1] <= 11.0
  if times == "stamps":
    assert clip.seconds_N[0] == 9.0 and clip.seconds_N[-1] == 11.0


def test_a_window_edge_may_be_the_time_that_a_rounded_stamp_stands_for(tmp_path):
  path = remuxed(plain(tmp_path, 9), tmp_path / "thirds.mkv", lambda i: round(i * 1000 / 3))
  line = containers.timeline(path)
  assert line.times_N[2] == 0.667
  clip = media.decode(path, 2 / 3, 4 / 3, sampling=media.Sampling(frames=9))
  assert clip.indices_N.tolist() == [2, 3, 4]


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 4.0])
def test_a_still_stretch_gives_no_frame_twice(tmp_path, fps):
  stamps = [*range(10), *range(100, 110)]  # a second of pictures, nine of none, one more second
  clip = media.look(variable(tmp_path, stamps), sampling=media.Sampling(fps=fps, min_frames=1))
  assert (np.diff(clip.indices_N) > 0).all()
  assert clip.indices_N[0] == 0 and clip.indices_N[-1] == 19
  # Not denser than asked for, where pictures come densely.
  assert len(clip.indices_N) <= 2 * (fps + 2)


@pytest.mark.parametrize("count", [1, 2, 7, 19, 20, 25])
def test_a_fixed_number_of_frames_is_kept_where_the_picture_stands_still(tmp_path, count):
  stamps = [*range(10), *range(100, 110)]
  for even in (False, True):
    how = media.Sampling(frames=count, even=even)
    clip = media.look(variable(tmp_path, stamps), sampling=how)
    assert len(set(clip.indices_N.tolist())) == how.count(20, 2.0) == len(clip.indices_N)


def remuxed(source, target, pts_of, **options):
  """A copy of a clip whose packets have other stamps: (number) -> ticks of a millisecond."""
  with av.open(str(source)) as given, av.open(str(target), "w", **options) as made:
    stream = made.add_stream_from_template(given.streams.video[0])
    packets = [packet for packet in given.demux(given.streams.video[0]) if packet.size]
    for number, packet in enumerate(packets):
      packet.stream = stream
      packet.time_base = fractions.Fraction(1, 1000)
      packet.pts = packet.dts = pts_of(number)
      made.mux(packet)
  return target


def plain(tmp_path, frames=24):
  """A clip whose packets come in the order of showing."""
  return write_clip(tmp_path / "plain.mkv", "libvpx", frames)


def test_repeated_stamps_are_counted_and_lose_no_frame(tmp_path):
  path = remuxed(plain(tmp_path), tmp_path / "twice.mkv", lambda i: i // 2 * 200)
  clip = media.decode(path, sampling=media.Sampling(frames=24))
  assert clip.indices_N.tolist() == list(range(24))
  np.testing.assert_allclose(clip.times_N, np.arange(24) // 2 * 0.2)
  whole = media.decode(plain(tmp_path), sampling=media.Sampling(frames=24))
  np.testing.assert_array_equal(clip.frames_NHWC, whole.frames_NHWC)
  assert "stamps" in clip.notes
  few = media.decode(path, 1.0, 1.4, sampling=media.Sampling(frames=3))
  np.testing.assert_array_equal(few.frames_NHWC, whole.frames_NHWC[few.indices_N])


def test_stamps_that_never_move_need_the_other_clock(tmp_path):
  path = remuxed(plain(tmp_path), tmp_path / "still.mkv", lambda i: 0)
  with pytest.raises(MediaError, match="24 frames with one and the same time stamp.*--times index"):
    media.decode(path)
  clip = media.decode(path, sampling=media.Sampling(times="index"))
  assert len(clip.indices_N) == len(clip.frames_NHWC) >= 4
  np.testing.assert_allclose(clip.seconds_N, clip.indices_N / clip.fps)


@pytest.mark.parametrize(
  ("stamps", "notes"),
  [
    (range(30), ()),
    ([0, 1, 2, 3, 5, 6, 7, 8, 9, 10], ("clocks",)),  # a frame is missing
    (SLOWING, ("clocks", "header")),
    ([i * 3 for i in range(30)], ("clocks", "header")),  # a third of the rate that is stated
  ],
)
def test_clips_with_two_clocks_are_noted(tmp_path, stamps, notes):
  assert containers.timeline(variable(tmp_path, list(stamps))).notes == notes


def test_impossible_clocks_are_refused():
  with pytest.raises(MediaError.__base__, match="times 'pts'; known: stamps, index"):
    media.Sampling(times="pts")


def test_rate_of_the_tests_clips():
  assert RATE == 10  # which the stamps above count in

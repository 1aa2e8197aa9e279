"""media.py on small files written here, and its sampling against transformers."""

import dataclasses
import pickle
import wave

import av
import hypothesis
import numpy as np
import pytest
import torch
from clips import FRAMES, RATE, STEP, write_clip
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import containers, media, sampling


def numbers(clip):
  """Which frames the pictures themselves say they are."""
  return np.rint(clip.frames_NHWC[:, 30, 40].mean(axis=-1) / STEP).astype(int).tolist()


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
  return write_clip(
    tmp_path_factory.mktemp("media") / "clip.mp4", container_options={"movflags": "faststart"}
  )


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
  total=st.integers(1, 5000),
  native=st.sampled_from((1.0, 10.0, 23.976, 24.0, 25.0, 30000 / 1001, 60.0)),
  fps=st.sampled_from((0.5, 1.0, 2.0, 4.0)),
  limits=st.tuples(st.integers(1, 32), st.integers(0, 768)),
)
def test_frames_are_chosen_as_by_transformers(total, native, fps, limits):
  least, most = limits[0], sum(limits)
  theirs = Qwen3VLVideoProcessor(min_frames=least, max_frames=most).sample_frames(
    VideoMetadata(total_num_frames=total, fps=native), fps=fps
  )
  ours = media.Sampling(fps, least, most).indices(0, total - 1, native)
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
  ("total", "native", "options", "count"),
  [  # worked out by hand from the rule of qwen-vl-utils
    (300, 30.0, {}, 20),
    (314, 29.97, {}, 20),  # 20.95 seconds-at-2 are cut to an even number
    (329, 30.0, {}, 20),  # 21.93
    (10, 30.0, {}, 4),  # 0.67: the least
    (10, 30.0, {"min_frames": 5}, 6),  # which is made even, upwards
    (5, 30.0, {"min_frames": 6}, 4),  # but no more than there are, evenly
    (30_000, 30.0, {}, 768),
    (30_000, 30.0, {"max_frames": 33}, 32),
    (300, 30.0, {"frames": 16}, 16),
    (300, 30.0, {"frames": 13}, 12),  # 6.5 pairs, half to even
    (300, 30.0, {"frames": 15}, 16),
    (9, 30.0, {"frames": 16}, 8),
    (1, 30.0, {}, 1),
  ],
)
def test_even_sampling_counts_as_qwen_vl_utils(total, native, options, count):
  assert media.Sampling(even=True, **options).count(total, native) == count


@hypothesis.given(
  first=st.integers(0, 10**5), span=st.integers(1, 10**6), count=st.integers(1, 400)
)
def test_even_sampling_spreads_frames_as_torch(first, span, count):
  last, count = first + span, min(2 * count, span + 1)
  ours = sampling._spread32(first, last, count).round().astype(np.int64)
  theirs = torch.linspace(first, last, count).round().long().numpy()
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("wanted", [1, 2, 16, 59, 60, 64])
def test_a_fixed_number_of_frames(mp4, wanted):
  clip = media.decode(mp4, sampling=media.Sampling(frames=wanted))
  assert len(clip.indices_N) == min(wanted, FRAMES) == len(clip.frames_NHWC)
  assert clip.indices_N[0] == 0
  assert wanted == 1 or clip.indices_N[-1] == FRAMES - 1


@pytest.mark.parametrize(
  ("name", "codec"),
  [
    ("a.mp4", "libx264"),
    ("a.mkv", "libx264"),
    ("a.ts", "libx264"),
    ("a.webm", "libvpx-vp9"),
    ("a.avi", "mpeg4"),  # packets without presentation times
    ("b.avi", "mjpeg"),  # every frame a key frame
  ],
)
def test_every_frame_comes_with_its_number_and_time(tmp_path, name, codec):
  clip = media.decode(write_clip(tmp_path / name, codec), sampling=media.Sampling(frames=FRAMES))
  assert clip.fps == RATE
  assert clip.frames_NHWC.shape == (FRAMES, 48, 64, 3)
  assert clip.frames_NHWC.dtype == np.uint8
  assert clip.indices_N.tolist() == list(range(FRAMES))
  np.testing.assert_allclose(clip.times_N, np.arange(FRAMES) / RATE, atol=1e-9)
  grey = clip.frames_NHWC[:, 30, 40].mean(axis=-1)
  assert np.abs(grey - np.arange(FRAMES) * STEP).max() < STEP + 0.5
  assert (np.diff(grey) > 0).all()


def test_sparse_frames_equal_those_of_a_full_pass(mp4):
  whole = media.decode(mp4, sampling=media.Sampling(frames=FRAMES))
  for wanted in (3, 7, 20):
    sparse = media.decode(mp4, sampling=media.Sampling(frames=wanted))
    np.testing.assert_array_equal(sparse.frames_NHWC, whole.frames_NHWC[sparse.indices_N])


def test_without_seeking_the_frames_are_the_same(mp4):
  line = containers.timeline(mp4)
  wanted = np.array([3, 20, 21, 50])
  assert len(line.keys) >= 5

  def read(**changes):
    return media._read(mp4, dataclasses.replace(line, **changes), wanted, None, None)

  np.testing.assert_array_equal(read(), read(keys=line.keys[:0]))
  # A decoder that gives other frames than the timeline says is noticed.
  assert read(stamps_N=line.stamps_N + 1) is None
  assert read(stamps_N=np.delete(line.stamps_N, 2)) is None


@pytest.mark.parametrize(
  ("start", "end", "expected"),
  [
    (1.0, 2.5, [10, 15, 20, 25]),  # 16 frames at 2 a second are 3; at least 4 are taken
    (0.95, 2.55, [10, 15, 20, 25]),  # start is rounded up to a frame, end down
    (5.85, None, [59]),
    (None, 0.0, [0]),
    (None, 1e9, [0, 5, 11, 16, 21, 27, 32, 38, 43, 48, 54, 59]),
  ],
)
def test_windows(mp4, start, end, expected):
  clip = media.decode(mp4, start, end)
  assert clip.indices_N.tolist() == expected
  np.testing.assert_allclose(clip.times_N, np.array(expected) / RATE)
  assert np.abs(np.array(numbers(clip)) - expected).max() <= 1


def test_uneven_frame_times_are_the_files_own(tmp_path):
  stamps = [0, 1, 2, 10, 11, 30, 31, 32]
  path = write_clip(tmp_path / "uneven.mkv", frames=8, stamps=stamps)
  clip = media.decode(path, sampling=media.Sampling(frames=8))
  np.testing.assert_allclose(clip.times_N, np.array(stamps) / RATE, atol=1e-3)
  clip = media.decode(path, 0.9, 2.9, sampling=media.Sampling(frames=8))
  assert clip.indices_N.tolist() == [3, 4]


def test_a_transform_sees_each_frame_and_the_number_taken(mp4):
  seen = []

  def corner(count, frame_HWC):
    seen.append((count, frame_HWC.shape))
    return frame_HWC[:4, :6]

  clip = media.decode(mp4, sampling=media.Sampling(frames=5), transform=corner)
  assert seen == [(5, (48, 64, 3))] * 5
  assert clip.frames_NHWC.shape == (5, 4, 6, 3)
  assert (clip.frames_NHWC > 245).all()


def test_a_turned_clip_is_shown_upright(tmp_path):
  path = write_clip(tmp_path / "turned.mp4", frames=4, rotation=90)
  frames = media.decode(path).frames_NHWC
  assert frames.shape == (4, 64, 48, 3)
  assert (frames[0, -7:, :7] > 245).all()  # the corner has turned with the picture
  assert (frames[0, :7, :7] < 10).all()


@pytest.mark.parametrize("share", [0.02, 0.4, 0.8, 0.99])
def test_cut_off_files_are_refused(tmp_path, mp4, share):
  content = mp4.read_bytes()
  path = tmp_path / "cut.mp4"
  path.write_bytes(content[: int(len(content) * share)])
  with pytest.raises(media.MediaError, match=r"cut\.mp4: .*(cut off|no frames|no video)"):
    media.decode(path)


def test_a_file_cut_between_packets_is_refused(tmp_path, mp4):
  with av.open(str(mp4)) as container:
    places = sorted(p.pos for p in container.demux(container.streams.video[0]) if p.size)
  path = tmp_path / "cut.mp4"
  path.write_bytes(mp4.read_bytes()[: places[FRAMES // 2]])
  with pytest.raises(media.MediaError, match="cut off: it holds"):
    media.decode(path)


def test_faults_name_the_file_and_the_reason(tmp_path, mp4):
  sound, text = tmp_path / "sound.wav", tmp_path / "text.mp4"
  with wave.open(str(sound), "wb") as file:
    file.setparams((1, 2, 8000, 0, "NONE", ""))
    file.writeframes(bytes(1600))
  text.write_text("not a video", encoding="utf-8")
  for path, words in (
    (tmp_path / "none.mp4", r"none\.mp4: no such file"),
    (tmp_path, "no such file"),
    (sound, r"sound\.wav: has no video stream"),
    (text, r"text\.mp4: cannot be decoded"),
  ):
    with pytest.raises(media.MediaError, match=words):
      media.decode(path)
  for start, end in ((6.0, None), (2.0, 1.0), (1.01, 1.09), (None, -1.0)):
    with pytest.raises(media.MediaError, match="60 frames from 0 to 5.90 seconds"):
      media.decode(mp4, start, end)


def test_a_title_that_is_not_utf_8_costs_no_clip(tmp_path, mp4):
  path = tmp_path / "latin.mp4"
  with av.open(str(mp4)) as source, av.open(str(path), "w") as made:
    made.metadata["title"] = "cafe! clip"
    stream = made.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(source.streams.video[0]):
      if packet.size:
        packet.stream = stream
        made.mux(packet)
  written = path.read_bytes()
  assert written.count(b"cafe! clip") == 1
  path.write_bytes(written.replace(b"cafe! clip", "café! clip".encode("latin-1")))
  wanted = media.decode(mp4, sampling=media.Sampling(frames=4)).frames_NHWC
  found = media.decode(path, sampling=media.Sampling(frames=4)).frames_NHWC
  np.testing.assert_array_equal(found, wanted)


def test_an_error_survives_the_way_back_from_a_child_process():
  error = pickle.loads(pickle.dumps(media.MediaError("a/b.mp4", "no such file")))
  assert isinstance(error, UserError)
  assert (str(error), error.path, error.reason) == (
    "a/b.mp4: no such file",
    "a/b.mp4",
    "no such file",
  )


@pytest.mark.parametrize(
  "arguments", [{"fps": 0.0}, {"min_frames": 0}, {"min_frames": 9, "max_frames": 8}, {"frames": 0}]
)
def test_impossible_samplings_are_refused(arguments):
  with pytest.raises(UserError, match="sampling takes"):
    media.Sampling(**arguments)


def test_images_are_upright_rgb_on_white(tmp_path):
  picture = np.zeros((6, 4, 4), np.uint8)
  picture[..., 0], picture[:3, :, 3], picture[3, :, 3] = 200, 255, 51
  Image.fromarray(picture).save(tmp_path / "clear.png")
  image = media.load_image(tmp_path / "clear.png")
  assert image.shape == (6, 4, 3)
  assert image[0, 0].tolist() == [200, 0, 0]
  assert image[3, 0].tolist() == [244, 204, 204]
  assert image[5, 0].tolist() == [255, 255, 255]

  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned a quarter clockwise
  Image.new("L", (8, 2), 77).save(tmp_path / "turned.jpg", exif=exif)
  image = media.load_image(tmp_path / "turned.jpg")
  assert image.shape == (8, 2, 3)
  assert (image == 77).all()

  palette = Image.new("P", (2, 2), 0)
  palette.putpalette([9, 8, 7])
  palette.save(tmp_path / "palette.gif", transparency=1)
  assert media.load_image(tmp_path / "palette.gif")[0, 0].tolist() == [9, 8, 7]


def test_unreadable_images_are_refused(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  Image.fromarray(noise).save(tmp_path / "whole.png")
  content = (tmp_path / "whole.png").read_bytes()
  (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
  (tmp_path / "text.png").write_text("not an image", encoding="utf-8")
  for name, words in (
    ("cut.png", "readable image"),
    ("text.png", "readable"),
    ("no.png", "no such"),
  ):
    with pytest.raises(media.MediaError, match=words):
      media.load_image(tmp_path / name)

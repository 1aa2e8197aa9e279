"""Clips and pictures that two collections share, under other bytes; and what is none."""

import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest
import small_records
from PIL import Image, ImageOps

from rmsd_jax import pool
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.progress import Progress
from rmsd_jax.teacher import leaks

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SECONDS, RATE = 10, 5


def scene(seed, size=(96, 72)):
  """A smooth picture of random spots, as uint8 [72, 96, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (7, 9, 3), np.uint8)
  return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def write_clip(path, seed, shots=5):
  """A clip of so many shots, in each of which something moves."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=RATE, options={"crf": "18"})
    stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
    for n in range(SECONDS * RATE):
      picture = scene(1_000 * seed + n * shots // (SECONDS * RATE)).copy()
      picture[30:40, n : n + 8] = 255
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())
  return path


def ffmpeg(source, out, *arguments):
  subprocess.run([FFMPEG, "-v", "error", "-y", "-i", source, *arguments, out], check=True)
  return out


@pytest.fixture(scope="module")
def there(tmp_path_factory):
  """Folders "ours" (three clips and a picture) and "set" (copies of them, and others)."""
  root = tmp_path_factory.mktemp("leaks")
  ours, theirs = root / "ours", root / "set"
  ours.mkdir(), (theirs / "deep").mkdir(parents=True)
  clips = [write_clip(ours / f"{seed}.mp4", seed) for seed in (1, 2, 3)]
  Image.fromarray(scene(77)).save(ours / "still.png")
  ffmpeg(clips[0], theirs / "deep" / "small.webm", "-vf", "scale=64:48", "-crf", "50", "-b:v", "0")
  bright = "eq=brightness=0.12:contrast=0.8"
  ffmpeg(clips[1], theirs / "bright.MKV", "-vf", bright, "-r", "12", "-crf", "35")
  ffmpeg(clips[2], theirs / "mirrored.mp4", "-vf", "hflip")
  for seed in (4, 5, 6):
    write_clip(theirs / f"{seed}.mp4", seed)
  flat = "color=gray:size=96x72:duration=4:rate=5"
  subprocess.run([FFMPEG, "-v", "error", "-f", "lavfi", "-i", flat, theirs / "f.mp4"], check=True)
  Image.fromarray(scene(77)).resize((200, 150)).save(theirs / "again.jpg", quality=40)
  ImageOps.mirror(Image.fromarray(scene(77))).save(theirs / "other.png")
  (theirs / "notes.txt").write_text("not a picture")
  (theirs / "broken.mp4").write_bytes(b"not a clip")
  return ours, theirs


@pytest.fixture(scope="module")
def found(there):
  """(likenesses, looks) of the two folders."""
  looks = leaks.Looks(lambda total: Progress(total, "", write=False), workers=1)
  sides = [looks.of(leaks.collected(str(folder), None).kinds) for folder in there]
  return leaks.looking_alike(*sides), looks, sides


def names(likeness):
  return likeness.ours.rpartition("/")[2], likeness.theirs.rpartition("/")[2]


def test_copies_that_were_encoded_again_are_found_and_nothing_else(found):
  likenesses, _, _ = found
  assert {names(one): one.sure for one in likenesses} == {
    ("1.mp4", "small.webm"): True,
    ("2.mp4", "bright.MKV"): True,
    ("still.png", "again.jpg"): False,  # alike, but one picture alone says less
  }
  for one in likenesses[:2]:
    assert one.shared >= 3 and one.bits <= 24
    assert f": {one.shared} of {one.of} different frames, the closest {one.bits} bits" in str(one)


def test_what_shows_nothing_or_cannot_be_read_is_told(found):
  _, looks, (ours, theirs) = found
  by_name = {path.rpartition("/")[2]: hashes for path, hashes in theirs.items()}
  assert len(by_name["f.mp4"]) == 0 and "notes.txt" not in by_name
  assert [path.rpartition("/")[2] for path in looks.unread] == ["broken.mp4"]
  line = leaks.how_sure(looks, ours.values(), theirs.values())
  assert "1 files cannot be read, 1 show too little" in line


def test_unrelated_frames_agree_in_half_of_the_bits(found):
  """Which is why 32 of 256 is far from chance."""
  _, _, (ours, theirs) = found
  of = lambda side, *ends: np.concatenate([h for path, h in side.items() if path.endswith(ends)])
  mine, others = of(ours, "3.mp4"), of(theirs, "/4.mp4", "/5.mp4")
  apart = leaks.distances(mine, others)
  assert abs(apart.mean() - 128) < 8 and apart.min() > 2 * leaks.NEAR


def test_distances_are_those_of_the_bits():
  rng = np.random.default_rng(0)
  bits_N, bits_M = (rng.integers(0, 2, (n, 256), np.uint8) for n in (5, 7))
  words = [np.packbits(bits, axis=1).view(np.uint64) for bits in (bits_N, bits_M)]
  wanted = (bits_N[:, None] != bits_M[None]).sum(-1)
  np.testing.assert_array_equal(leaks.distances(*words), wanted)


def test_a_pool_is_checked_against_folders_and_records(there, capsys):
  ours, theirs = there
  media = [{"type": "video", "path": f"{n}.mp4"} for n in (1, 2, 3)]
  values = [
    small_records.of_task("ocr", media=[one]) | {"id": str(n), "clip": str(n)}
    for n, one in enumerate(media)
  ]
  small_records.write(ours / "pool.jsonl", values)
  again = [{"type": "video", "path": "bright.MKV"}, {"type": "video", "path": "4.mp4"}]
  small_records.write(theirs / "records.jsonl", [values[0] | {"media": again}])
  command = ["check", str(ours / "pool.jsonl"), "--workers", "1", "--against"]
  with pytest.raises(UserError, match="media files that look like one of .*: 1, such as .*2.mp4"):
    pool.main([*command, str(theirs)])  # as prepared: its records, not all its files
  out = capsys.readouterr().out
  assert "bright.MKV" in out and "compared with 2 files of it" in out and "small" not in out
  (theirs / "records.jsonl").unlink()
  with pytest.raises(UserError, match="look like one of .*: 1, such as .*1.mp4 looks like .*webm"):
    pool.main([*command, str(theirs / "deep")])
  with pytest.raises(UserError, match="--against nowhere: there is no such file"):
    pool.main([*command, "nowhere"])

"""What a teacher is shown: frames of the stated size with their times, or links."""

import base64
import contextlib
import io
import json

import numpy as np
import PIL.Image
import pytest
from clips import write_noise

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children, media, records
from rmsd_jax.teacher import request
from rmsd_jax.teacher.request import Asking, Tokens

FRAMES = Asking("m", "t", frames=3, max_side=32)
LINKS = Asking("m", "t", media="url", url_prefix="https://host/x/")


def record(*shown):
  value = {"id": "0", "task": "ocr", "question": "?", "answer": "x", "media": shown}
  return records.parse(json.dumps(value), 1, {"ocr"})


def video(path="a.mp4", **window):
  return {"type": "video", "path": path, **window}


def image(path="b.png"):
  return {"type": "image", "path": path}


def pictures(content):
  head = "data:image/jpeg;base64,"
  urls = [item["image_url"]["url"] for item in content if item["type"] == "image_url"]
  assert all(url.startswith(head) for url in urls)
  return [PIL.Image.open(io.BytesIO(base64.b64decode(url[len(head) :]))) for url in urls]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
  write_noise(folder / "a.mp4", rng)  # 12 frames of 48 x 48, 4 a second
  colours = np.zeros((30, 60, 3), np.uint8)
  colours[:, 30:] = (250, 0, 0)
  PIL.Image.fromarray(colours).save(folder / "b.png")
  return folder


def test_media_are_read_apart_within_a_time_limit(folder):
  shown = record(video(), image())
  with contextlib.closing(request.Reader(FRAMES, 60.0)) as read:
    assert read(shown, folder, "?") == FRAMES.content(shown, folder, "?")
    gone = read(record(video("gone.mp4")), folder, "?")
    assert gone.kind == "MediaError" and "gone.mp4" in gone.reason
  with contextlib.closing(request.Reader(FRAMES, 0.0)) as read:
    late = children.Failure("TimeLimit", "took more than 0 s")
    assert [read(shown, folder, "?") for _ in range(2)] == [late, late]
    assert read(record(), folder, "?") == FRAMES.content(record(), folder, "?")
  part = request.Reader(LINKS, 0.0)(record(video(end=1.0)), folder, "?")
  assert part.kind == "UserError" and "shown in part" in part.reason


def test_frames_are_jpeg_files_of_the_stated_size_with_their_times(folder):
  content = FRAMES.content(record(video(start=1.0, end=2.0), image()), folder, "What?")
  kinds = ["text", "image_url"] * 3 + ["image_url", "text"]
  assert [item["type"] for item in content] == kinds
  texts = [item["text"] for item in content if item["type"] == "text"]
  assert texts == ["<1.0 seconds>", "<1.5 seconds>", "<2.0 seconds>", "What?"]
  found = pictures(content)
  assert [picture.format for picture in found] == ["JPEG"] * 4
  assert [picture.size for picture in found] == [(32, 32)] * 3 + [(32, 16)]


def test_frames_show_the_clip_and_are_never_enlarged(folder):
  content = Asking("m", "t", frames=2, max_side=512).content(record(video(), image()), folder, "?")
  first, last, still = (np.asarray(picture).astype(int) for picture in pictures(content))
  clip = media.decode(folder / "a.mp4", sampling=media.Sampling(frames=2)).frames_NHWC
  distance = lambda a, b: abs(a - b).mean()  # levels of 255
  assert first.shape == last.shape == (48, 48, 3)
  assert distance(first, clip[0]) < 15 < 40 < distance(first, clip[1])
  assert distance(last, clip[1]) < 15 < 40 < distance(last, clip[0])
  assert still[15, 10].max() < 12 and abs(still[15, 50] - (250, 0, 0)).max() < 12


def test_links_name_the_media_behind_the_prefix():
  content = LINKS.content(record(video("a b.mp4"), image()), "/nowhere", "What?")
  assert content == [
    {"type": "video_url", "video_url": {"url": "https://host/x/a%20b.mp4"}},
    {"type": "image_url", "image_url": {"url": "https://host/x/b.png"}},
    {"type": "text", "text": "What?"},
  ]
  with pytest.raises(UserError, match="a.mp4 is shown in part, which a link cannot say"):
    LINKS.content(record(video(start=1)), "/nowhere", "What?")


def test_the_bound_grows_with_all_that_is_sent():
  least = FRAMES.bound(record(), "x" * 100)
  assert least == Tokens(164, 4096)
  assert FRAMES.bound(record(image()), "x" * 100).read == 164 + 1120
  assert FRAMES.bound(record(video()), "x" * 100).read == 164 + 3 * (1120 + 16)
  large = Asking("m", "t", frames=3, max_side=1000)
  assert large.bound(record(image()), "").read == 64 + 2000
  assert LINKS.bound(record(video()), "").read == 64 + 24_576


def test_the_fingerprint_changes_with_what_is_asked_alone():
  same = request.fingerprint(record(video()), "What?")
  assert same == request.fingerprint(record(video()), "What?") and len(same) == 16
  others = [(record(video()), "Who?"), (record(video(end=2.0)), "What?"), (record(), "What?")]
  assert same not in [request.fingerprint(*other) for other in others]


BAD = [
  ({"model": ""}, "an empty name"),
  ({"temperature": -1.0}, "--temperature -1.0: it must be 0 or more"),
  ({"temperature": float("nan")}, "--temperature nan"),
  ({"top_p": 0.0}, "--top-p 0.0: it must be above 0"),
  ({"max_tokens": 0}, "--max-tokens 0: it must be at least 1"),
  ({"max_side": 8}, "--max-side 8: it must be at least 16"),
  ({"extra": {"stream": True}}, "may not hold 'stream'"),
  ({"media": "url"}, "needs --url-prefix"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words for _, words in BAD])
def test_impossible_settings_are_refused(changes, words):
  with pytest.raises(UserError, match=words):
    Asking(**{"model": "m", "teacher": "t", **changes})

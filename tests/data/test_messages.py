"""Values of message items: what users of transformers give is read, all else is one line."""

import base64
import pathlib

import numpy as np
import pytest
import tiny_tokenizer
from clips import write_clip
from PIL import Image

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import messages, processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("messages")
  rng = np.random.default_rng(0)
  for name in ("a b.png", "1.png", "2.png", "3.png"):
    Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save(folder / name)
  Image.new("RGB", (16, 16)).save(folder / "small.png")
  write_clip(folder / "clip.mp4", frames=27)
  return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  model = tiny_tokenizer.write_model_folder(tmp_path_factory.mktemp("model"), 8, 2, 2)
  return processor.Processor(model, video_pixels=(1024, 40_000), image_pixels=(256, 3000))


def asked(*items):
  return [{"role": "user", "content": [*items, {"type": "text", "text": "?"}]}]


def image_forms(folder):
  path = folder / "a b.png"
  picture = Image.open(path)
  packed = base64.b64encode(path.read_bytes()).decode()
  uri = f"file://{folder}/a%20b.png"
  return [str(path), path, picture, np.array(picture), f"data:image/png;base64,{packed}", uri]


def test_an_image_may_be_given_in_six_forms(ours, folder):
  made = [ours.prompt(asked({"type": "image", "image": form})) for form in image_forms(folder)]
  for prompt in made[1:]:
    np.testing.assert_array_equal(prompt.ids_P, made[0].ids_P)
    np.testing.assert_array_equal(prompt.patches[0], made[0].patches[0])


def test_a_pil_image_is_read_as_its_file_is(ours):
  grey = Image.fromarray(np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64))
  prompt = ours.prompt(asked({"type": "image", "image": grey}))
  assert 0 <= prompt.patches[0].min() < 10 and 245 < prompt.patches[0].max()
  assert len(np.unique(prompt.patches[0])) > 100


@pytest.mark.parametrize(
  ("given", "seconds"),
  [
    ({"times": [0, 1.5, 7.25]}, ["0.8", "7.2"]),
    ({"times": ["0", "0.5", "2"]}, ["0.2", "2.0"]),
    ({"sample_fps": 2}, ["0.2", "1.0"]),
    ({"sample_fps": "0.5"}, ["1.0", "4.0"]),
  ],
)
def test_a_clip_may_be_a_list_of_frames_with_their_times(ours, folder, given, seconds):
  frames = [str(folder / "1.png"), Image.open(folder / "2.png"), folder / "3.png"]
  conversation = asked({"type": "video", "video": frames, **given})
  prompt = ours.prompt(conversation)
  text = ours.tokenizer._tokenizer.decode(prompt.ids_P)
  assert [part.split(" seconds>")[0] for part in text.split("<") if " seconds>" in part] == seconds
  bucket, plans = ours.plan(conversation)
  assert (
    (bucket.prompt, bucket.frames) == (len(prompt.ids_P), 2) == (bucket.prompt, len(prompt.patches))
  )
  assert plans[0].frames == 3
  pictures = ours.frame_pictures(prompt)
  array = np.stack([np.array(Image.open(folder / f"{i}.png")) for i in (1, 2, 3)])
  again = ours.prompt(asked({"type": "video", "video": array, **given}))
  np.testing.assert_array_equal(ours.frame_pictures(again)[0], pictures[0])


def test_seconds_may_stand_as_text(ours, folder):
  path = str(folder / "clip.mp4")
  one = ours.prompt(asked({"type": "video", "video": path, "start": 1.0, "end": 1.3}))
  two = ours.prompt(asked({"type": "video", "video": path, "start": "1.0", "end": "1.3"}))
  np.testing.assert_array_equal(one.ids_P, two.ids_P)
  none = {"start": None, "end": None}
  whole = ours.prompt(asked({"type": "video", "video": f"file://{path}", **none}))
  np.testing.assert_array_equal(
    whole.ids_P, ours.prompt(asked({"type": "video", "video": path})).ids_P
  )


CLIP = {"type": "video", "video": "a.mp4"}
LIST = {"type": "video", "video": ["a.png", "b.png"]}
WRONG = [
  (CLIP | {"start": -1}, "start -1; give a number of 0 or more"),
  (CLIP | {"start": True}, "start True"),
  (CLIP | {"start": "soon"}, "start 'soon'"),
  (CLIP | {"end": float("nan")}, "end nan"),
  (CLIP | {"end": [1]}, r"end \[1\]"),
  (CLIP | {"start": 3, "end": 1}, "ends at 1.0 s, before its start at 3.0 s"),
  (CLIP | {"times": [1]}, "'times' or 'sample_fps', which belong to a list"),
  (CLIP | {"video": 7}, "a video is 7; give the path of a file, or a list"),
  (CLIP | {"video": b"a"}, "a video is b'a'"),
  (CLIP | {"video": "http://host/a.mp4"}, "a video is the link .*; download it"),
  (CLIP | {"video": "data:video/mp4;base64,AAAA"}, "a video is 'data:video.*give the path"),
  (CLIP | {"video": Image.new("L", (2, 2))}, "a video is <PIL"),
  (LIST, "2 frames without their times; give 'times'"),
  (LIST | {"times": [1]}, "give a list of 2 seconds"),
  (LIST | {"times": [1, 0]}, "which do not ascend"),
  (LIST | {"times": [0, None]}, "a time None"),
  (LIST | {"times": [0, 1], "sample_fps": 1}, "one of the two"),
  (LIST | {"sample_fps": 0}, "sample_fps of 0"),
  (LIST | {"sample_fps": 1, "start": 0}, "'start' or 'end', which belong to a video file"),
  (LIST | {"video": [], "times": []}, "a video without frames"),
  (LIST | {"video": [1, 2], "times": [0, 1]}, "a frame is 1; give a path"),
  ({"type": "image", "image": None}, "an image is None; give a path"),
  ({"type": "image", "image": ["a.png"]}, r"an image is \['a.png'\]"),
  ({"type": "image", "image": "https://host/a.png"}, "an image is the link"),
  ({"type": "image", "image": "data:image/png;base64,%%%"}, "no picture in base64"),
  ({"type": "image", "image": "data:image/png;base64,AAAA"}, "is not a readable image"),
  ({"type": "image", "image": np.zeros((4, 4, 3))}, r"an image is float64 \[4, 4, 3\]; give uint8"),
  ({"type": "image", "image": ""}, "an image is ''; give the path"),
  ({"type": "text", "text": 5}, "the text 5; give a string"),
  ({"type": ["video"]}, r"type \['video'\]; known"),
  ("just text", "the item 'just text'; known"),
]


@pytest.mark.parametrize(("item", "words"), WRONG)
def test_other_values_are_one_line(ours, item, words):
  for make in (ours.prompt, ours.plan):
    with pytest.raises(UserError, match=words) as caught:
      make([{"role": "user", "content": [item]}])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("given", ["text", {"role": "user", "content": "x"}, ["text"], [["text"]],
                                   [{"role": "user", "content": None}],
                                   [{"role": "user", "content": b"x"}],
                                   [{"role": [], "content": "x"}]])  # fmt: skip
def test_what_is_no_conversation_is_one_line(ours, given):
  with pytest.raises(UserError, match="a list of messages, not|message 0 (is|has content)"):
    ours(given)


def test_frames_of_a_list_have_one_size(ours, folder):
  frames = [folder / "1.png", folder / "small.png"]
  with pytest.raises(UserError, match="frame 1 of a video has 16 x 16 pixels, the first 64 x 40"):
    ours.prompt(asked({"type": "video", "video": frames, "times": [0, 1]}))


def test_paths_of_any_kind_are_taken(tmp_path):
  assert messages.path_of(pathlib.Path("/a/b c"), "x") == "/a/b c"
  assert messages.path_of("file:///a/b%20c", "x") == "/a/b c"
  for name in ("what?.png", "q#1.png", "50%25.png"):  # a path with a word before it
    (tmp_path / name).write_bytes(b"")
    assert messages.path_of(f"file://{tmp_path}/{name}", "x") == f"{tmp_path}/{name}"
  assert messages.path_of("a:b.mp4", "x") == "a:b.mp4"

"""Subtitles among the frames of a clip: where they stand, in prompts and in records."""

import itertools
import json
import re

import numpy as np
import pytest
import tiny_tokenizer
from clips import write_clip

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import media, processor, records, rows, subtitles
from rmsd_jax.data.chat import MediaTokens, pair_seconds
from rmsd_jax.data.subtitles import Subtitle
from rmsd_jax.tasks import Rules

FRAMES = [0, 2, 4, 6]
PAIRS = [1.0, 5.0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp("clips") / "clip.mp4"
  write_clip(path, frames=40)
  return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  model = tiny_tokenizer.write_model_folder(tmp_path_factory.mktemp("model"), 8, 2, 2)
  sampling = media.Sampling(frames=5)
  return processor.Processor(model, sampling=sampling, video_pixels=(1024, 40_000))


@pytest.mark.parametrize(
  ("start", "end", "place"),
  [
    (-3.0, 0.5, 0),  # its middle is before the clip, a frame lies inside
    (-3.0, 0.0, None),  # ends with the first frame: edges do not count
    (-9.0, -5.0, None),
    (0.0, 2.0, None),  # between two frames: neither lies inside
    (0.0, 2.5, 1),
    (-0.2, 2.2, 1),  # its middle is the told time of the first pair, which stands before it
    (-0.3, 2.1, 0),
    (3.3, 3.5, None),  # half a second around 3.4
    (3.8, 3.9, 1),  # half a second around 3.85
    (1.6, 8.4, 2),  # its middle is the told time of the last pair
    (5.9, 30.0, 2),
    (6.0, 30.0, None),
    (6.4, 6.4, 2),
    (6.5, 6.5, None),
    (90.0, 95.0, None),
  ],
)
def test_a_line_stands_at_its_middle_if_a_frame_lies_inside(start, end, place):
  made = subtitles.between([Subtitle(start, end, "Hi")], FRAMES, PAIRS)
  assert made == (() if place is None else tuple("Hi\n" * (n == place) for n in range(3)))


def in_order(lines, seconds_N, seconds_F):
  """A second way: frames and shown lines as one list, sorted by time."""
  middles = itertools.accumulate(((one.start + one.end) / 2 for one in lines), max)
  events = [(second, 0, f"<{place}>") for place, second in enumerate(seconds_F)]
  for middle, one in zip(middles, lines, strict=True):
    own = (one.start + one.end) / 2
    low, high = (one.start, one.end) if one.end - one.start >= 1 else (own - 0.5, own + 0.5)
    if any(low < second < high for second in seconds_N):
      events.append((middle, 1, f"{one.text}\n"))
  return "".join(text for _, _, text in sorted(events, key=lambda event: event[:2]))


@pytest.mark.parametrize("seed", range(40))
def test_places_are_those_of_one_list_sorted_by_time(seed):
  rng = np.random.default_rng(seed)
  # Quarters of a second, so that edges, middles and frames often meet.
  seconds_N = np.sort(rng.choice(80, rng.integers(1, 13), replace=False)) / 4
  seconds_F = pair_seconds(seconds_N)
  starts = np.sort(rng.integers(-20, 100, 30)) / 4  # middles need not ascend
  lines = [Subtitle(a, a + rng.integers(0, 16) / 4, f"line {n}") for n, a in enumerate(starts)]
  made = subtitles.between(lines, seconds_N, seconds_F)
  *before, after = made or [""] * (len(seconds_F) + 1)
  text = "".join(f"{words}<{place}>" for place, words in enumerate(before)) + after
  assert text == in_order(lines, seconds_N, seconds_F)


@pytest.mark.parametrize("lines", [[], [Subtitle(0, 4, "")], [Subtitle(0, 4, " \n")]])
def test_lines_without_words_leave_the_clip_as_it_is(lines, ours, clip):
  assert subtitles.between(lines, FRAMES, PAIRS) == ()
  shown = [{"start": one.start, "end": one.end, "text": one.text} for one in lines]
  bare = {"type": "video", "video": str(clip)}
  turn = lambda item: [{"role": "user", "content": [item]}]
  with_none = ours.prompt(turn(bare | {"subtitles": shown}))
  np.testing.assert_array_equal(with_none.ids_P, ours.prompt(turn(bare)).ids_P)


def read_back(tokenizer, prompt):
  """The text of a prompt with one mark for the visual tokens of a pair."""
  text = tokenizer._tokenizer.decode(prompt.ids_P)
  return re.sub(r"<\|vision_start\|>(<\|video_pad\|>)+<\|vision_end\|>", "[pair]", text)


def test_a_prompt_has_its_lines_between_the_pairs(ours, clip):
  sampled = media.decode(clip, sampling=ours.sampling)
  assert len(sampled.seconds_N) == 5  # three pairs, the last one of one frame
  last = float(sampled.seconds_N[-1])
  lines = [
    (-1, 0.2, "First."),
    (0.3 * last, 0.45 * last, "Not."),
    (last - 1, last + 1, "Last: é\nx"),
  ]
  shown = [{"start": start, "end": end, "text": text} for start, end, text in lines]
  shown.insert(1, {"start": 0, "end": last + 5, "text": "Whole."})
  turn = [{"role": "user", "content": [
    {"type": "text", "text": "Look."},
    {"type": "video", "video": str(clip), "subtitles": shown},
    {"type": "text", "text": "What?"},
  ]}]  # fmt: skip
  prompt = ours.prompt(turn)
  text = read_back(ours.tokenizer, prompt)
  told = pair_seconds(sampled.seconds_N)
  want = in_order([Subtitle(**one) for one in shown], sampled.seconds_N, told)
  for place, second in enumerate(told):
    want = want.replace(f"<{place}>", f"<{second:.1f} seconds>[pair]")
  assert f"Look.{want}What?" in text and "First.\n<" in want and want.endswith("Last: é\nx\n")
  bucket, plans = ours.plan(turn)
  assert bucket.prompt == len(prompt.ids_P) and plans[0].frames == 5
  assert prompt.is_visual_P.sum() == plans[0].tokens


def test_a_list_of_frames_takes_them_too(ours):
  frames = np.zeros((4, 40, 64, 3), np.uint8)
  item = {"type": "video", "video": frames, "times": FRAMES}
  item["subtitles"] = [{"start": 1, "end": 4.5, "text": "Two."}]
  text = read_back(ours.tokenizer, ours.prompt([{"role": "user", "content": [item]}]))
  assert "<1.0 seconds>[pair]Two.\n<5.0 seconds>[pair]" in text


def record(**asked):
  clip = {"type": "video", "path": "a.mp4"}
  return {"id": "1", "task": "ocr", "question": "?", "answer": "x", "media": [clip], "asked": asked}


def parsed(value):
  return records.parse(json.dumps(value), 1, Rules().tasks)


LINE = {"start": -1.5, "end": 3, "text": "Hello"}


def test_a_record_hands_them_to_its_clip():
  one = parsed(record(text="Read.", subtitles=[LINE]))
  assert one.asked.subtitles == (Subtitle(-1.5, 3.0, "Hello"),)
  (turn,) = rows.messages(one, "/m", Rules())
  assert turn["content"][0] == {"type": "video", "video": "/m/a.mp4", "subtitles": [LINE]}
  assert "subtitles" in one.not_plain()
  assert parsed(record(text="Read.", subtitles=[])).not_plain() is None


WRONG = [
  ("Hello", "give a list of objects"),
  ([LINE | {"speaker": 1}], "give an object with start, end and a text"),
  ([{"start": 1, "end": 2}], "give an object with"),
  ([LINE | {"text": None}], "give an object with"),
  ([LINE | {"start": "0:01"}], "the start '0:01'; give a number"),
  ([LINE | {"end": True}], "the end True"),
  ([LINE | {"end": 10**400}], "the end 1000"),
  ([LINE | {"end": -2}], "ends at -2 s, before its start at -1.5 s"),
]


@pytest.mark.parametrize(("value", "words"), WRONG)
def test_other_values_are_one_line(value, words, ours, clip):
  with pytest.raises(records.RecordFault, match=words):
    parsed(record(text="Read.", subtitles=value))
  item = {"type": "video", "video": str(clip), "subtitles": value}
  for make in (ours.prompt, ours.plan):
    with pytest.raises(UserError, match=f"message 0 has a video of which .*{words}") as caught:
      make([{"role": "user", "content": [item]}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 2])
def test_they_belong_to_one_clip(count):
  value = record(text="Read.", subtitles=[LINE])
  value["media"] *= count
  with pytest.raises(records.RecordFault, match=f"are of one clip, not of {count}"):
    parsed(value)


def test_control_tokens_in_them_are_refused(ours, clip):
  item = {"type": "video", "video": str(clip), "subtitles": [LINE | {"text": "a<|im_end|>"}]}
  for make in (ours.prompt, ours.plan):
    with pytest.raises(UserError, match=r"a subtitle holds the control token <\|im_end\|>"):
      make([{"role": "user", "content": [item]}])
  image = {"type": "image", "image": np.zeros((8, 8, 3), np.uint8), "subtitles": []}
  with pytest.raises(UserError, match="a image item with keys"):
    ours.prompt([{"role": "user", "content": [image]}])


def test_words_are_one_more_than_the_pairs():
  with pytest.raises(ValueError, match="after the last"):
    MediaTokens("video", (1, 1), (0.0, 1.0), ("", "x"))

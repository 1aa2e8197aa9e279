"""Records: what the schema allows is kept exactly, anything else is refused by name."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import records

TASKS = ("multiple_choice", "open_ended")
GOOD = {
  "id": "7",
  "task": "multiple_choice",
  "question": "Which colour?",
  "options": ["A. red", "B. blue"],
  "answer": "B",
  "media": [{"type": "video", "path": "clips/1.mp4", "start": 0.0, "end": 12.5}],
  "responses": [{"text": "<think>..</think>", "teacher": "big", "finish_reason": "length"}],
  "source": "world",
  "split": "test",
  "clip": "one",
}


def parse(value, **changes):
  line = value if isinstance(value, str) else json.dumps({**value, **changes})
  return records.parse(line, 3, TASKS)


def test_a_full_line_is_kept():
  assert parse(GOOD) == records.Record(
    id="7",
    task="multiple_choice",
    question="Which colour?",
    answer="B",
    options=("A. red", "B. blue"),
    media=(records.Media("video", "clips/1.mp4", 0.0, 12.5),),
    responses=(records.Response("<think>..</think>", "big", "length"),),
    source="world",
    split="test",
    clip="one",
  )


def test_defaults_and_the_clip_of_a_record():
  short = {name: GOOD[name] for name in ("id", "task", "question", "answer")}
  record = parse(short)
  assert (record.options, record.media, record.responses, record.split) == ((), (), (), "train")
  assert record.clip == "7"
  assert parse(short, media=[{"type": "image", "path": "a.png"}]).clip == "a.png"
  assert parse(short, answer=None).answer is None


def test_a_placeholder_of_other_formats_is_no_question():
  for mark in ("<image>", "<video>"):
    with pytest.raises(records.RecordFault, match=f"{mark} in the question would be read as text"):
      parse(GOOD, question=f"{mark}\nWhich colour?")
  html = {"question": "What does <video> do?", "media": []}
  assert parse(GOOD, **html).question == html["question"]


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
seconds = st.floats(0, 1e6, allow_nan=False)
scalar = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | text
)
answer = st.recursive(
  scalar, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=8
)
media = st.builds(records.Media, st.just("image"), text) | st.builds(
  lambda path, start, length: records.Media("video", path, start, start + length + 1),
  text,
  seconds,
  seconds,
)
record = st.builds(
  records.Record,
  id=text, task=st.sampled_from(TASKS), question=text, answer=answer,
  options=st.lists(text).map(tuple),
  media=st.lists(media, max_size=3).map(tuple),
  responses=st.lists(
    st.builds(records.Response, st.text(st.characters(exclude_categories=["Cs"])), text,
              st.sampled_from(records.FINISH_REASONS)), max_size=3).map(tuple),
  source=text, split=st.sampled_from(records.SPLITS), clip=text,
)  # fmt: skip


@settings(deadline=None)
@given(record)
def test_a_record_survives_the_round_trip(kept):
  value = dataclasses.asdict(kept)
  for item in value["media"]:
    for name in ("start", "end"):
      if item[name] is None:
        del item[name]
  assert parse(value) == kept


REFUSED = [
  ("{", "not JSON"),
  ("[1]", "record must be an object, not a list"),
  ('{"id": "1", "id": "2"}', "key 'id' appears twice"),
  (json.dumps(GOOD).replace("12.5", "NaN"), "NaN is not a finite number"),
  (json.dumps(GOOD).replace("12.5", "1e999"), "1e999 is not a finite number"),
  (json.dumps(GOOD).replace("12.5", "1" * 5000), "too many digits"),
  ("[" * 100_000, "nested too deeply"),
  ({**GOOD, "qestion": "x"}, "unknown record key 'qestion'; known: id, task"),
  ({k: v for k, v in GOOD.items() if k != "answer"}, "record key 'answer' is missing"),
  ({**GOOD, "id": 7}, "id must be a string, not a number"),
  ({**GOOD, "id": " "}, "id is empty"),
  ({**GOOD, "question": "\ud800"}, "question holds half of a surrogate pair"),
  ({**GOOD, "answer": ["caf\ud83d"]}, "answer holds half of a surrogate pair"),
  ({**GOOD, "task": "poetry"}, "unknown task 'poetry'; known: multiple_choice, open_ended"),
  ({**GOOD, "split": "dev"}, "split 'dev' is not one of train, test"),
  ({**GOOD, "options": "A"}, "options must be a list, not a string"),
  ({**GOOD, "options": [1]}, "an option must be a string"),
  ({**GOOD, "media": None}, "media must be a list, not null"),
  ({**GOOD, "media": ["a.mp4"]}, "media must be an object, not a string"),
  ({**GOOD, "media": [{"type": "audio", "path": "a"}]}, "neither 'video' nor 'image'"),
  ({**GOOD, "media": [{"type": "image", "path": "a", "start": 1}]}, "an image has no 'start'"),
  ({**GOOD, "media": [{"type": "video", "path": "a", "fps": 2}]}, "unknown media key 'fps'"),
  ({**GOOD, "media": [{"type": "video", "path": "a", "start": True}]}, "not a boolean"),
  ({**GOOD, "media": [{"type": "video", "path": "a", "start": -1}]}, "start is -1 s"),
  ({**GOOD, "media": [{"type": "video", "path": "a", "end": 10**400}]}, "at most 1e+09"),
  ({**GOOD, "media": [{"type": "video", "path": "a", "start": 4, "end": 4}]}, "ends at 4.0 s"),
  ({**GOOD, "responses": [{"teacher": "big"}]}, "response key 'text' is missing"),
  ({**GOOD, "asked": "What?"}, "prompt under 'asked' must be an object, not a string"),
  ({**GOOD, "asked": {"text": " "}}, "'asked' has no words"),
  ({**GOOD, "asked": {"text": "x", "after": "y"}}, "unknown prompt under 'asked' key 'after'"),
  ({**GOOD, "asked": {"text": "x", "system": 3}}, "'system' of asked must be a string"),
  ({**GOOD, "benchmark": "videomme"}, "benchmark must be an object, not a string"),
  ({**GOOD, "responses": [{"text": None}]}, "response text must be a string, not null"),
  (
    {**GOOD, "responses": [{"text": "", "finish_reason": "eos"}]},
    "'eos' is not one of stop, length",
  ),
]


@pytest.mark.parametrize("value, reason", REFUSED, ids=[reason for _, reason in REFUSED])
def test_anything_else_is_refused_with_line_and_reason(value, reason):
  with pytest.raises(records.RecordFault) as caught:
    parse(value)
  assert isinstance(caught.value, UserError)
  assert str(caught.value).startswith("line 3: ") and reason in caught.value.reason
  assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.text() | answer.map(json.dumps))
def test_no_line_breaks_the_parser(line):
  with pytest.raises(records.RecordFault):
    parse(line)

"""Import of OneThinker's files: every task finds its place; what has none is counted by reason."""

import json
import pathlib

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import records
from rmsd_jax.tasks import Rules, registry
from rmsd_jax.teacher.importers import onethinker

BOXES = {"2": [0, 0, 9, 9], "3": [1, 1, 9, 9]}


def item(kind, inside, text="<video>What happens?", **changes):
  """An item in the shape of the published training file; written by hand."""
  return {
    "problem_id": 1,
    "problem": text,
    "data_type": "video",
    "problem_type": kind,
    "options": [],
    "data_source": "hand-written",
    "answer": f"<answer>{inside}</answer>",
    "videos": ["QA/clip.mp4"],
    **changes,
  }


TRAINING = [
  item("multiple choice", "B", options=["A. a cat", "B. a dog"]),
  item("numerical", "3.5"),
  item("regression", "42"),
  item("math", "\\frac{1}{2}", "<image>Solve.", data_type="image", images=["m/1.png"], videos=None),
  item("OCR", "STOP 7"),
  item("open-ended", "A dog runs."),
  item("temporal grounding", '{"time": [1.5, 4]}'),
  item("spatial grounding", '{"boxes": [1, 2, 300, 400]}'),
  item("spatial-temporal grounding", json.dumps({"time": [2, 4], "boxes": BOXES})),
  item("tracking", json.dumps({"boxes": BOXES})),
]


def convert(folder, items, name="train.json", **changes):
  (folder / name).write_text(json.dumps(items), encoding="utf-8")
  out = folder / "out" / "pool.jsonl"
  made = onethinker.convert(folder / name, out, Rules(), **changes)
  lines = out.read_text(encoding="utf-8").splitlines()
  return made, [records.parse(line, 0, registry.TASKS) for line in lines]


def refusal(folder, one, **changes):
  """Why one item is refused: (kind, reason)."""
  with pytest.raises(UserError, match="none of the 1 items of"):
    convert(folder, [one], **changes)
  assert not (folder / "out" / "pool.jsonl").exists()
  kept = folder / "out" / "pool.jsonl.quarantine.jsonl"
  (entry,) = map(json.loads, kept.read_text(encoding="utf-8").splitlines())
  return entry["kind"], entry["reason"]


def test_every_task_finds_its_place(tmp_path):
  made, found = convert(tmp_path, TRAINING)
  assert {record.task for record in found} == set(registry.TASKS)
  assert made.tasks == dict.fromkeys(sorted(registry.TASKS), 1) and made.refused == {}
  assert not (tmp_path / "out" / "pool.jsonl.quarantine.jsonl").exists()
  by_task = {record.task: record for record in found}
  assert by_task["multiple_choice"].options == ("A. a cat", "B. a dog")
  assert by_task["multiple_choice"].answer == "B"
  assert by_task["temporal_grounding"].answer == {"time": [1.5, 4]}
  assert by_task["spatiotemporal_grounding"].answer == {"time": [2, 4], "boxes": BOXES}
  assert by_task["math"].answer == "\\frac{1}{2}"
  assert by_task["math"].media[0] == records.Media("image", "../m/1.png")
  for place, record in enumerate(found, 1):
    assert record.id == f"train-{place}" and record.responses == ()
    assert record.source == "hand-written" and "<" not in record.question


def test_answers_score_full_marks_in_their_own_task(tmp_path):
  for record in convert(tmp_path, TRAINING)[1]:
    task = registry.get(record.task)
    text = registry.spelled(record.answer)
    assert task.check(text, record.options, record.answer) == 1
    assert task.metric(text, record.options, record.answer) == 1


def test_the_evaluation_form_is_read_too(tmp_path):
  one = {
    "problem_id": 9,
    "problem": "What is in both?",
    "data_type": "video-image",
    "problem_type": "open-ended",
    "path": "./clips/9.mp4",
    "additional_path": "/images/9.png",
    "solution": "<answer>A dog.</answer>",
  }
  _, (record,) = convert(tmp_path, [one], "eval.json", split="test")
  assert [(media.type, media.path) for media in record.media] == [
    ("video", "../clips/9.mp4"),
    ("image", "../images/9.png"),
  ]
  assert (record.answer, record.split, record.source) == ("A dog.", "test", "onethinker")
  (tmp_path / "lines.jsonl").write_text(json.dumps(one) + "\n\n" + json.dumps(TRAINING[1]) + "\n")
  made = onethinker.convert(tmp_path / "lines.jsonl", tmp_path / "two.jsonl", Rules())
  assert made.tasks == {"numerical": 1, "open_ended": 1}


def test_media_paths_lead_from_the_new_file_to_the_media_root(tmp_path):
  root = tmp_path / "media"
  (root / "QA").mkdir(parents=True)
  (root / "QA" / "clip.mp4").write_bytes(b"x")
  made, found = convert(tmp_path, TRAINING[1:5], media_root=root)
  assert (made.media, made.missing) == (2, 1)  # the picture is not there
  path = tmp_path / "out" / found[0].media[0].path
  assert not path.is_absolute() or path.is_file()
  assert found[0].media[0].path == "../media/QA/clip.mp4"


def test_options_without_letters_get_them(tmp_path):
  one = item("multiple choice", "B", options=["a cat", "a dog"])
  assert convert(tmp_path, [one])[1][0].options == ("A. a cat", "B. a dog")
  mixed = item("multiple choice", "B", options=["A. a cat", "a dog"])
  (tmp_path / "out" / "pool.jsonl").unlink()
  kind, reason = refusal(tmp_path, mixed)
  assert kind == "ground truth" and "'a dog' has no label" in reason
  for texts in (["S. Korea", "N. Korea"], ["I", "You"], ["C", "A"]):
    (tmp_path / "out").rename(tmp_path / texts[0])
    one = item("multiple choice", "B", options=texts)
    made = convert(tmp_path, [one])[1][0]
    assert made.options == (f"A. {texts[0]}", f"B. {texts[1]}") and made.answer == "B"


def test_placeholders_go_where_the_pool_puts_media(tmp_path):
  two = {"data_type": "image", "images": ["1.png", "2.png"], "videos": None}
  made = [
    item("numerical", "1", "<image> <image>\nHow many?", **two),
    item("numerical", "1", "How many? <image><image>", **two),
    item("numerical", "1", "How many?", **two),
  ]
  for record in convert(tmp_path, made)[1]:
    assert record.question == "How many?" and len(record.media) == 2


REFUSED = [
  (item("segmentation", "{}"), "problem_type 'segmentation'", "no task here is like"),
  (item("riddle", "x"), "problem_type 'riddle'", "no task here is like"),
  (item("numerical", "many"), "ground truth", "answer 'many' is not a finite number"),
  (item("regression", "0"), "ground truth", "answer '0' is not a finite number other than 0"),
  (item("temporal grounding", '{"time": [4, 1]}'), "ground truth", "is not"),
  (item("numerical", "1", answer="<answer>1</answer><answer>2</answer>"), "ground truth", "2 ans"),
  (item("numerical", "1", answer=None), "ground truth", "answer None is not"),
  (item("multiple choice", "A"), "ground truth", "0 options, at least 2"),
  (item("multiple choice", "A", options="A or B"), "options", "not a list of strings"),
  (item("numerical", "1", "<video><video>?"), "placeholders", "2 placeholders for 1 media"),
  (item("numerical", "1", "Is <video> long?"), "placeholders", "inside the text"),
  (item("numerical", "1", videos=[]), "media", "there is no path of any"),
  (item("numerical", "1", videos=[["1.jpg", "2.jpg"]]), "media", "is not the path of a file"),
  (item("numerical", "1", videos=["../../etc/x.mp4"]), "media", "leaves the folder"),
  (item("numerical", "1", images=["1.png"]), "media", "'images' has media that data_type 'video'"),
  (item("numerical", "1", data_type="text"), "media", "'videos' has media that data_type 'text'"),
  (item("temporal grounding", "frames 100 to 200"), "ground truth", "frames 100"),
  (item("temporal grounding", "minutes 1 to 2"), "ground truth", "minutes 1"),
  (item("temporal grounding", "not from 1 to 2"), "ground truth", "not from 1"),
  (item("spatial grounding", "1,00,200,300"), "ground truth", "1,00,200"),
  (item("spatial grounding", "[1, NaN, 200, 300]"), "ground truth", "NaN"),
  (item("tracking", '{"boxes": {"0": [0, 0, 9, 9], "0": [1, 1, 9, 9]}}'), "ground truth", "boxes"),
  (item("numerical", "1", data_type="audio"), "media", "'audio' is none of"),
  (item("numerical", "1", problem="<video> "), "record", "question is empty"),
  (item("numerical", "1", problem=None), "form", "'problem' is not a string"),
  ({"messages": []}, "form", "a conversation for SFT"),
  ("text", "form", "a str, not an object"),
]


@pytest.mark.parametrize("one, kind, reason", REFUSED, ids=[case[2] for case in REFUSED])
def test_what_has_no_place_is_refused_with_the_reason(tmp_path, one, kind, reason):
  found = refusal(tmp_path, one)
  assert found[0] == kind and reason in found[1]


def test_refusals_are_counted_and_the_others_taken(tmp_path):
  made, found = convert(tmp_path, [item("segmentation", "{}"), *TRAINING, item("segmentation", "")])
  assert made.refused == {"problem_type 'segmentation'": 2} and len(found) == 10
  assert found[0].id == "train-2"


def test_lines_are_parted_by_line_ends_alone_and_a_broken_one_is_refused_by_its_number(tmp_path):
  odd = item("OCR", "STOP\u2028\u0085 7")
  lines = ["\ufeff" + json.dumps(odd, ensure_ascii=False), "", "{", json.dumps(TRAINING[0]), ""]
  (tmp_path / "train.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
  out = tmp_path / "pool.jsonl"
  made = onethinker.convert(tmp_path / "train.jsonl", out, Rules())
  assert sum(made.tasks.values()) == 2 and made.refused == {"form": 1}
  (entry,) = map(json.loads, pathlib.Path(f"{out}.quarantine.jsonl").read_text().splitlines())
  assert entry["line"] == 3 and "not JSON" in entry["reason"]


def test_files_that_are_not_of_the_form_are_one_error(tmp_path):
  (tmp_path / "bad.json").write_text("[1")
  with pytest.raises(UserError, match="cannot be read"):
    onethinker.convert(tmp_path / "bad.json", tmp_path / "out.jsonl", Rules())
  with pytest.raises(UserError, match="nowhere.json cannot be read"):
    onethinker.convert(tmp_path / "nowhere.json", tmp_path / "out.jsonl", Rules())
  (tmp_path / "bad.json").write_text("[]")
  with pytest.raises(UserError, match="none of the 0 items.*there is none"):
    onethinker.convert(tmp_path / "bad.json", tmp_path / "out.jsonl", Rules())

"""Importers of public annotations, on small files of the same schemas written by hand."""

import json

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import records
from rmsd_jax.tasks import Rules, registry
from rmsd_jax.teacher import importers


def convert(name, source, **changes):
  out = source.parent / "out.jsonl"
  out.unlink(missing_ok=True)
  made = importers.get(name).convert(source, out, Rules(), **changes)
  return made, [records.parse(line, 0, registry.TASKS) for line in out.read_text().splitlines()]


def written(path, value):
  path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
  return path


def test_charades_sta_lines_are_moments(tmp_path):
  lines = (
    "AO8RW 0.0 6.9##a person puts a book away.\nX1 4 2##never\n\nbroken line\nB 24.3 30.4##runs"
  )
  made, found = convert("charades_sta", written(tmp_path / "train.txt", lines))
  assert made.tasks == {"temporal_grounding": 2} and made.refused == {"form": 1, "ground truth": 1}
  assert sum(made.reasons.values()) == 2
  assert found[0].answer == {"time": [0.0, 6.9]} and found[0].media[0].path == "AO8RW.mp4"
  assert "a person puts a book away." in found[0].question and found[1].id == "train-5"


def test_time_r1_in_both_forms(tmp_path):
  items = [
    {"video": "v/a.mp4", "timestamp": [1.5, 4], "sentence": "She sits.", "duration": 9.0},
    {"video": "b", "timestamp": [4, 1], "sentence": "No."},
    {"video": "c.mp4", "sentence": "No time."},
  ]
  made, (record,) = convert("time_r1", written(tmp_path / "train.json", items))
  assert record.answer == {"time": [1.5, 4]} and record.media[0].path == "v/a.mp4"
  assert made.refused == {"ground truth": 2} and record.source == "time_r1"
  both = {"v_1": {"duration": 9, "timestamps": [[0, 2], [3, 5]], "sentences": ["One.", "Two."]}}
  _, found = convert("time_r1", written(tmp_path / "val.json", both), split="test")
  assert [record.answer["time"] for record in found] == [[0, 2], [3, 5]]
  assert [record.id for record in found] == ["val-1-1", "val-1-2"]
  assert {record.clip for record in found} == {"v_1.mp4"} and found[0].split == "test"


def test_nextgqa_with_spans_and_paths_beside_it(tmp_path):
  head = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
  rows = [
    "10,900,6,4,why did he run,to play,3,CW,to rest,to play,to eat,to hide,to sing",
    "10,900,6,4,what next,4,5,TN,a,b,c,d,e",
    "11,900,6,4,which,same,1,TN,same,same,c,d,e",
  ]
  written(tmp_path / "gsub_val.json", {"10": {"location": {"3": [[1.2, 5.8], [7, 9]]}}, "11": {}})
  written(tmp_path / "map_vid_vidorID.json", {"10": "1164/10"})
  made, found = convert("nextgqa", written(tmp_path / "val.csv", head + "\n".join(rows)))
  assert made.refused == {"options": 1}
  choice, when, other = found
  assert (choice.answer, choice.options[1]) == ("B", "B. to play")
  assert choice.question == "Why did he run?" and choice.media[0].path == "1164/10.mp4"
  assert when.answer == {"answer": {"time": [1.2, 5.8]}, "alternatives": [{"time": [7, 9]}]}
  assert other.answer == "E"


def test_cgbench_asks_for_the_choice_and_its_evidence(tmp_path):
  item = {"video_uid": "u", "question": "What?", "choices": ["x", "y", "z"], "right_answer": "C",
          "answer": "z", "clue_intervals": [[3, 8]], "qid": 1}  # fmt: skip
  wrong = item | {"right_answer": "H"}
  made, found = convert("cgbench", written(tmp_path / "cgbench.json", [item, wrong]))
  assert [record.task for record in found] == ["multiple_choice", "temporal_grounding"]
  assert found[0].options == ("A. x", "B. y", "C. z") and found[0].answer == "C"
  assert found[1].answer == {"time": [3, 8]} and made.refused == {"ground truth": 1}


def test_got10k_boxes_are_thousandths_of_the_picture(tmp_path):
  folder = tmp_path / "GOT-10k_Train_000001"
  folder.mkdir()
  info = "[METAINFO]\nanno_fps: 10Hz\nresolution: (1920, 1080)\n"
  written(folder / "meta_info.ini", info)
  lines = [f"{192 + i}.0,108.0,480.0,270.0" for i in range(25)]
  written(folder / "groundtruth.txt", "\n".join(lines))
  source = written(tmp_path / "list.txt", "GOT-10k_Train_000001\nGOT-10k_Train_000002\n")
  made, (record,) = convert("got10k", source)
  assert made.tasks == {"tracking": 1} and made.refused == {"form": 1}
  assert list(record.answer["boxes"]) == ["0", "1", "2"]
  assert record.answer["boxes"]["0"] == [100.0, 100.0, 350.0, 350.0]
  assert record.media[1].path == "GOT-10k_Train_000001/00000011.jpg"


def test_llava_video_turns_are_questions(tmp_path):
  item = {
    "id": "1", "video": "academic/a.mp4", "data_source": "x",
    "conversations": [
      {"from": "human", "value": "<image>\nWhat is it?\nA. cat\nB. dog\n"
                                 "Answer with the option's letter directly."},
      {"from": "gpt", "value": "B. dog"},
      {"from": "human", "value": "Describe it."},
      {"from": "gpt", "value": "A dog sleeps."},
    ],
  }  # fmt: skip
  odd = item | {"conversations": item["conversations"][:3]}
  made, found = convert("llava_video", written(tmp_path / "v.json", [item, odd]))
  assert [record.task for record in found] == ["multiple_choice", "open_ended"]
  assert found[0].answer == "B" and found[0].options == ("A. cat", "B. dog")
  assert found[0].question == "What is it?" and found[1].question == "Describe it."
  assert made.refused == {"form": 1}


@pytest.mark.parametrize("name", importers.IMPORTERS)
def test_a_file_that_is_not_there_is_one_error(name, tmp_path):
  with pytest.raises(UserError, match="nowhere cannot be read"):
    convert(name, tmp_path / "nowhere")


def onethinker(options, answer, **changes):
  return {"problem": "Which?", "problem_type": "multiple choice", "data_type": "video",
          "options": options, "solution": f"<answer>{answer}</answer>", "path": "v.mp4",
          **changes}  # fmt: skip


def test_no_label_is_left_out_of_order(tmp_path):
  items = [
    onethinker(["B. dog", "A. cat", "C. cow"], "B"),
    onethinker(["A", "B", "C"], "C"),
    onethinker(["A", "C", "B", "D"], "B"),  # the second letter, the third option
    onethinker(["A", "C", "B", "D"], "D"),  # the fourth in both ways
    onethinker(["C", "B", "D", "E", "A", "F"], "C"),
    onethinker(["S. Korea", "N. Korea"], "A"),
  ]
  made, found = convert("onethinker", written(tmp_path / "x.json", items))
  assert made.refused == {"options": 2} and len(made.reasons) == 1
  assert [record.id for record in found] == ["x-1", "x-2", "x-4", "x-6"]
  assert found[0].options == ("A. cat", "B. dog", "C. cow")
  assert found[2].options == ("A. A", "B. C", "C. B", "D. D") and found[2].answer == "D"


def test_free_form_is_open_ended_and_times_in_words_are_times(tmp_path):
  times = ["7.0 to 11.0", "00:07 - 00:11", '{"time": [7, 11]}']
  items = [onethinker([], text, problem_type="temporal grounding") for text in times]
  items.append(onethinker([], "Wetsuit", problem_type="free-form"))
  made, found = convert("onethinker", written(tmp_path / "x.json", items))
  assert made.tasks == {"open_ended": 1, "temporal_grounding": 3}
  assert [record.answer for record in found[:3]] == [{"time": [7, 11]}] * 3


def refusal(name, source, **changes):
  """(kind, reason) of the first item of a file of which none is taken."""
  with pytest.raises(UserError, match="none of the"):
    convert(name, source, **changes)
  kept = source.parent / "out.jsonl.quarantine.jsonl"
  entry = json.loads(kept.read_text().splitlines()[0])
  return entry["kind"], entry["reason"]


def nextgqa(folder, right, *texts):
  head = "video_id,question,answer,qid,a0,a1,a2,a3,a4\n"
  return written(folder / "val.csv", head + ",".join(["1", "which", right, "1", *texts]))


@pytest.mark.parametrize(
  "right, texts, letter, first",
  [
    ("2", ["6", "7", "8", "9", "10"], "C", "A. 6"),  # a place
    ("8", ["6", "7", "8", "9", "10"], "C", "A. 6"),  # a text
    ("1", ["", "cat", "dog", "", "cow"], "A", "A. cat"),  # places count empty ones
    ("4", ["", "cat", "dog", "", "cow"], "C", "A. cat"),
    ("0", ["0", "1", "2", "3", "4"], "A", "A. 0"),  # both ways agree
  ],
)
def test_nextgqa_places_and_texts(right, texts, letter, first, tmp_path):
  _, (record,) = convert("nextgqa", nextgqa(tmp_path, right, *texts))
  assert (record.answer, record.options[0]) == (letter, first)


@pytest.mark.parametrize(
  "right, texts, reason",
  [
    ("2", ["1", "2", "3", "4", "5"], "may be a place or a text"),
    ("0", ["3", "0", "x", "y", "z"], "may be a place or a text"),
    ("0", ["", "cat", "dog", "cow", "pig"], "is empty"),
    ("B", ["", "cat", "dog", "cow", "pig"], "names none of the choices"),
    ("7", ["cow", "cat", "dog", "hen", "pig"], "names none of the choices"),
  ],
)
def test_nextgqa_refuses_what_could_be_another_choice(right, texts, reason, tmp_path):
  kind, told = refusal("nextgqa", nextgqa(tmp_path, right, *texts))
  assert kind == ("ground truth" if "none" in reason else "options") and reason in told


def cgbench(folder, choices, right):
  item = {"video_uid": "u", "question": "What?", "choices": choices, "right_answer": right}
  return written(folder / "cgbench.json", [item])


@pytest.mark.parametrize(
  "choices, right, reason",
  [
    (["B", "A", "C", "D"], "A", "may be a place or a text"),
    (["C", "B", "A"], "A", "may be a place or a text"),
    (["B. dog", "A. cat"], "A", "labels out of order"),
    (["cat", " "], "B", "is empty"),
    (["A. cat", "B."], "B", "is empty"),
    ([1, 2], "B", "not a list of texts"),
  ],
)
def test_cgbench_refuses_choices_with_two_readings(choices, right, reason, tmp_path):
  kind, told = refusal("cgbench", cgbench(tmp_path, choices, right))
  assert kind == "options" and reason in told


@pytest.mark.parametrize(
  "choices, right, options, letter",
  [
    (["A. Cat", "B. Dog"], "B", ("A. Cat", "B. Dog"), "B"),
    (["(a) Cat", "(b) Dog"], "A", ("A. Cat", "B. Dog"), "A"),
    (["A. Cat", "B. Dog"], "B. Dog", ("A. Cat", "B. Dog"), "B"),
    (["A. Cat", "", "C. Dog"], "C", ("A. Cat", "B. Dog"), "B"),
    (["Cat", "Dog"], "(b)", ("A. Cat", "B. Dog"), "B"),
    (["Cat", "Dog"], "B. dog", ("A. Cat", "B. Dog"), "B. dog"),
    (["A", "B", "C"], "B", ("A. A", "B. B", "C. C"), "B"),
    (["A. Lincoln", "Washington"], "A", ("A. A. Lincoln", "B. Washington"), "A"),
    (["B", "A", "C", "D"], "C", ("A. B", "B. A", "C. C", "D. D"), "C"),
  ],
)
def test_cgbench_labels_stand_once(choices, right, options, letter, tmp_path):
  _, (record,) = convert("cgbench", cgbench(tmp_path, choices, right))
  assert (record.options, record.answer) == (options, letter)


def llava(folder, asked, said="B. dog", **changes):
  turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
  return written(folder / "v.json", [{"video": "a.mp4", "conversations": turns} | changes])


@pytest.mark.parametrize(
  "asked, question",
  [
    (
      "Carefully watch it.\nSelect the option that best describes what he does.\nA. cat\nB. dog",
      "Carefully watch it.\nSelect the option that best describes what he does.",
    ),
    ("Choose the right option.\nA. cat\nB. dog", "Choose the right option."),
    ("What is it?\nPlease respond with only the letter.\nA. cat\nB. dog", "What is it?"),
    (
      "What is it?\nA. cat\nB. dog\nPlease provide your answer by stating the letter followed by "
      "the full option.",
      "What is it?",
    ),
    ("A. cat\nB. dog\nSelect the option he points at.", "Select the option he points at."),
    ("Which letter does he answer with?\nA. cat\nB. dog", "Which letter does he answer with?"),
  ],
)
def test_llava_video_keeps_every_line_that_asks(asked, question, tmp_path):
  _, (record,) = convert("llava_video", llava(tmp_path, asked))
  assert record.question == question and record.answer == "B"


@pytest.mark.parametrize(
  ("said", "letter"),
  [("B", "B"), ("(b)", "B"), ("B. dog.", "B"), ("dog", "B"), ("A. dog", None), ("not B", None),
   ("The answer is B.", None)],
)  # fmt: skip
def test_llava_video_truths_are_read_strictly(said, letter, tmp_path):
  source = llava(tmp_path, "What?\nA. cat\nB. dog", said)
  if letter is None:
    assert refusal("llava_video", source)[0] == "ground truth"
  else:
    (record,) = convert("llava_video", source)[1]
    assert record.answer == letter


@pytest.mark.parametrize(
  ("options", "answer"),
  [
    (["B. x", "C. y", "D. z"], "C"),
    (["O", "A", "B", "AB"], "B"),
    (["B、y", "A、x"], "B"),
    (["B - y", "A - x"], "A"),
    (["B）y", "A）x"], "B"),
    (["Option B: y", "Option A: x"], "(B)"),
  ],
)
def test_new_letters_are_not_given_where_the_answer_is_one_already(options, answer, tmp_path):
  """By its place it would mean another option than by its letter."""
  source = written(tmp_path / "x.json", [onethinker(options, answer)])
  with pytest.raises(UserError, match="may be a place or the option"):
    convert("onethinker", source)


def test_llava_video_refuses_a_letter_that_is_another_options_text(tmp_path):
  kind, told = refusal("llava_video", llava(tmp_path, "What?\nA. B\nB. A", "A"))
  assert kind == "options" and "may be a letter or a text" in told


def test_llava_video_loses_no_medium(tmp_path):
  kind, told = refusal("llava_video", llava(tmp_path, "What?", image="a.jpg"))
  assert kind == "media" and "an image and a video" in told
  _, (record,) = convert("llava_video", llava(tmp_path, "What?", image="a.jpg", video=None))
  assert record.media[0].type == "image"


@pytest.mark.parametrize(
  "line", ["50,nan,30,40", "50,,30,40", "50,20,30", "1,2,3,4,5", "x", "1,2,inf,4"]
)
def test_got10k_refuses_a_box_that_lacks_a_number(line, tmp_path):
  folder = tmp_path / "S"
  folder.mkdir()
  written(folder / "meta_info.ini", "[METAINFO]\nanno_fps: 1Hz\nresolution: (100, 100)\n")
  written(folder / "groundtruth.txt", f"1,2,30,40\n{line}")
  kind, told = refusal("got10k", written(tmp_path / "list.txt", "S"))
  assert kind == "form" and "is not x,y,width,height" in told


def test_an_item_that_gives_a_key_twice_is_refused(tmp_path):
  good = json.dumps({"video": "a.mp4", "timestamp": [1, 2], "sentence": "She sits."})
  twice = good.replace("{", '{"timestamp": [0, 1], ')
  inner = good.replace('"She sits."', '{"a": 1, "a": 2}')
  made, _ = convert("time_r1", written(tmp_path / "train.json", f"[{good}, {twice}, {inner}]"))
  assert made.refused == {"form": 2} and "a key twice" in next(iter(made.reasons))
  made, _ = convert("time_r1", written(tmp_path / "train.jsonl", f"{twice}\n{good}\n"))
  assert made.refused == {"form": 1}
  both = '{"v": {"timestamps": [[0, 1]], "sentences": ["x"]}, "v": {}}'
  with pytest.raises(UserError, match="a key twice"):
    convert("time_r1", written(tmp_path / "val.json", both))

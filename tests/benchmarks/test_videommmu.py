"""Video-MMMU: files, 14 options, open and broken truths, and its score computed a second time."""

import math
from pathlib import Path

import benchmark_files
import benchmark_media as media
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.preparing import protocol_of
from rmsd_jax.benchmarks.sets import videommmu

SET = catalogue.the("videommmu")
TRACKS = benchmark_files.TRACKS
LETTERS = "ABCDEFGHIJKLMN"


def flat(rows):
  return [(track, row) for track in TRACKS for row in rows[track]]


def asked(item, *changes, protocol="vlmevalkit-64f"):
  return SET.asks(item, protocol_of(SET, protocol, changes))[0]


@pytest.mark.parametrize("form", benchmark_files.FORMS["videommmu"])
def test_every_form_of_the_files_has_the_same_questions(form, tmp_path):
  rows = flat(benchmark_files.write_videommmu(tmp_path, form))
  items = SET.read(tmp_path)
  assert [item.fields["track"] for item in items] == [track for track, _ in rows]
  assert [item.answer for item in items] == [row["answer"] for _, row in rows]
  assert [len(item.options) for item in items] == [len(row["options"]) for _, row in rows]
  assert max(len(item.options) for item in items) == 14
  lettered = next(item for item in items if item.extra["shown"][0].startswith("A. choice 0"))
  assert lettered.options[0].startswith("choice 0")  # one letter, not two
  untyped = items[20]
  assert untyped.options and untyped.row["question_type"] == "multiple-choice"
  for (track, row), item in zip(rows, items, strict=True):
    assert len(item.media) == (2 if track == "Adaptation" else 1)
    if track == "Adaptation" and form == "parquet":
      assert item.media[1].content == row["image"]["bytes"]


def test_the_prompts_of_each_track(tmp_path):
  rows = flat(benchmark_files.write_videommmu(tmp_path))
  items = SET.read(tmp_path)
  perception, adaptation, open_ = items[1], items[16], items[17]
  options = "\n".join(f"{x}. {t}" for x, t in zip(LETTERS, rows[1][1]["options"], strict=False))
  ignore = "\nPlease ignore the Quiz question in last frame of the video."
  lmms = asked(perception, protocol="lmms-eval-64f")
  assert lmms.text == f"What of Perception 1?\n{options}{ignore}"
  learn = "You should watch and learn the video content. Then apply what you learned to answer the "
  where = "The image for this question is at the end of the video.\n<image 1> What of Adaptation "
  lmms = asked(adaptation, protocol="lmms-eval-64f")
  assert lmms.text.startswith(f"{learn}following multi-choice question. {where}0?\nA. choice 0")
  assert lmms.media == adaptation.media[:1]  # the image is the clip's last frame
  toolkit = asked(open_)
  end = "\nAdd `Answer: {Your final answer}` at the end of your reply."
  assert toolkit.text == f"{learn}following open-ended question. {where}1?{end}"
  assert toolkit.media is None and len(open_.media) == 2
  think = asked(perception, protocol="open-o3-video-64f").text
  assert f"{options}\nQuestion Category:Perception{ignore}\nYou must first think" in think
  assert think.endswith("In the answer part, respond with only the letter of the correct option.")
  final = asked(open_, protocol="open-o3-video-64f").text
  assert final.endswith("In the answer part, respond with only the final answer.")


def test_the_question_image_comes_after_the_clip(tmp_path):
  _, folder, rows = prepared("videommmu", tmp_path)
  record = records_of(folder)[16]
  assert [medium["type"] for medium in record["media"]] == ["video", "image"]
  path = folder / record["media"][1]["path"]
  assert path.read_bytes() == rows["Adaptation"][0]["image"]["bytes"]


def test_all_30_subjects_have_one_of_6_folders():
  assert len(videommmu.FOLDER_OF) == 30 and len(set(videommmu.FOLDER_OF.values())) == 6
  assert videommmu.FOLDER_OF["Architecture_and_Engineering"] == "Engineering"


def test_the_score_is_micro_over_three_tracks(tmp_path):
  _, folder, rows = prepared("videommmu", tmp_path, "vlmevalkit-64f")
  rows = flat(rows)
  right = []

  def reply(place, record):
    _, row = rows[place]
    good = place % 3 != 0
    if not row["options"]:
      # Numbers by value, a letter with a space beside it, a broken text never.
      said = row["answer"] if good else "no"
      right.append(float(good and not row["answer"].startswith("[")))
      return f"Thinking.\nAnswer: {said.strip('[')}"
    letter = row["answer"] if good else LETTERS[(LETTERS.index(row["answer"]) + 1) % 4]
    right.append(float(letter == row["answer"]))
    return f"A. is tempting\nAnswer: {letter}. It is"

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  assert card["scores"]["Video-MMMU"]["mean"] == pytest.approx(sum(right) / 24)
  tracks = card["breakdowns"]["Video-MMMU"]["track"]
  for track in TRACKS:
    own = [one for one, (name, _) in zip(right, rows, strict=True) if name == track]
    assert tracks[track]["mean"] == pytest.approx(sum(own) / 8)
  assert card["breakdowns"]["Video-MMMU"]["discipline"].keys() == {
    "Art", "Business", "Engineering", "Science"
  }  # fmt: skip
  macro = sum(tracks[track]["mean"] for track in TRACKS) / 3
  assert card["aggregates"]["macro over track"]["mean"] == pytest.approx(macro)


@pytest.mark.parametrize("kind", [None, math.nan, "null", "multi-choice", "multiple-choice"])
def test_what_has_options_is_a_choice_whatever_it_is_called(kind):
  row = {"id": "test_Physics_1", "category": "Adaptation", "question": "?", "answer": "B"}
  row |= {"options": ["x", "y"], "question_type": kind}
  assert videommmu._item(0, row, Path("f")).options == ("x", "y")
  assert videommmu._item(0, row | {"options": []}, Path("f")).options == ()
  assert videommmu._item(0, row | {"question_type": "open"}, Path("f")).options == ()


def test_an_id_without_a_subject_is_refused(tmp_path):
  rows = benchmark_files.videommmu_rows()
  rows["Perception"][0]["id"] = "test_Alchemy_3"
  media.put_parquet(tmp_path / "Perception" / "test-00000-of-00001.parquet", rows["Perception"])
  with pytest.raises(videommmu.official_files.UserError, match="'test_Alchemy_3'"):
    SET.read(tmp_path)


def test_delta_knowledge_is_what_the_lesson_adds_to_what_was_not_known(tmp_path, capsys):
  """Of 8 questions of adaptation 2 are right without the lesson and 5 with it: half of the rest."""
  for name, right in (("videommmu", 5), ("videommmu_question_only", 2)):
    here = tmp_path / name
    here.mkdir()
    root, folder, rows = prepared(name, here, "lmms-eval-64f")
    truths = {row["id"]: f"({row['answer']})" for row in rows["Adaptation"] if row["options"]}
    truths |= {row["id"]: row["answer"] for row in rows["Adaptation"] if row["answer"] == "2.83"}
    good = list(truths)[:right]

    def reply(place, record, good=good, truths=truths):
      return truths[record["clip"]] if record["clip"] in good else "nothing"

    scored(folder, answer(folder, here / "r.json", reply), here / "card")
  records = records_of(tmp_path / "videommmu_question_only" / "prepared")
  shown = {one["id"]: [medium["path"] for medium in one["media"]] for one in records}
  assert len(shown) == 8  # the short clip alone
  assert all(len(paths) == 1 and paths[0].endswith("_image.mp4") for paths in shown.values())
  capsys.readouterr()
  main(["table", str(tmp_path)])
  shown = capsys.readouterr().out
  assert "Delta knowledge of Qwen3-VL-4B step 7, lmms-eval-64f: +50.0\n" in shown
  assert "| Video-MMMU question only |" in shown

"""Video-MME: files, prompts, quirks, and its score computed a second time from the rows."""

import benchmark_files
import pyarrow.parquet
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import cards, catalogue, preparing
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.preparing import protocol_of
from rmsd_jax.core.errors import UserError

SET = catalogue.the("videomme")
# What is replied, and which letter the first capital of A to D is (None: none).
REPLIES = (("{}", 0), ("The answer is ({}).", 0), ("A cat, so {}", "A"), ("no idea", None))


def asked(item, protocol):
  return SET.asks(item, protocol_of(SET, protocol, ()))[0]


@pytest.mark.parametrize("form", benchmark_files.FORMS["videomme"])
def test_every_form_of_the_files_has_the_same_questions(form, tmp_path):
  rows = benchmark_files.write_videomme(tmp_path, form)
  items = SET.read(tmp_path)
  assert [item.question for item in items] == [row["question"] for row in rows]
  assert [item.extra["shown"] for item in items] == [row["options"] for row in rows]
  assert [item.answer for item in items] == [row["answer"] for row in rows]
  assert [item.cluster for item in items] == [row["videoID"] for row in rows]
  assert {item.fields["duration"] for item in items} == {"short", "medium", "long"}


@pytest.mark.parametrize("folder, end", [("data", ".mp4"), ("video", ".MP4"), ("videos", ".mkv")])
def test_clips_are_found_where_each_harness_has_them(folder, end, tmp_path):
  root = tmp_path / "set"
  benchmark_files.write_videomme(root, folder=folder, end=end)
  out = tmp_path / "out"

  main(["prepare", "videomme", str(root), "--protocol", "qwen-2fps", "--out", str(out)])
  paths = {record["media"][0]["path"] for record in records_of(out)}
  assert len(paths) == 8 and all((out / path).resolve().is_file() for path in paths)
  assert all(path.endswith(f"{end}") and f"set/{folder}/" in path for path in paths)


def test_prompts_are_those_of_the_harnesses(tmp_path):
  benchmark_files.write_videomme(tmp_path)
  item = SET.read(tmp_path)[0]
  options = "A. One.\nB. Two.\nC. Three.\nD. Four."
  select = (
    "Select the best answer to the following multiple-choice question based on the video. Respond "
    "with only the letter (A, B, C, or D) of the correct option."
  )
  q = "How many eggs, question 0?"
  assert asked(item, "vlmevalkit-64f").text == (
    f"\nThese are the frames of a video. {select}\nQuestion: {q}\n{options}\nAnswer: "
  )
  assert asked(item, "qwen-2fps").text == f"{select}\nQuestion: {q}\n{options}\nThe best answer is:"
  assert asked(item, "lmms-eval-64f").text == (
    f"Question: {q}\nOptions:\n{options}\nAnswer with the option letter only."
  )
  think = asked(item, "open-o3-video-64f").text
  assert think.startswith(
    f"Question:{q}\n{options}\nSelect the best answer to the multiple-choice "
  )
  assert think.endswith("respond with only the letter (A, B, C, or D) of the correct option.")
  assert "<think> </think>" in think and "MUST NOT be longer than 100 words" in think
  official = protocol_of(SET, "vlmevalkit-64f", ["prompt=official"])
  assert SET.asks(item, official)[0].text == f"{select}\n{q}\n{options}\nThe best answer is:"


def test_the_score_is_the_share_of_right_letters_in_all_2700(tmp_path):
  _, folder, rows = prepared("videomme", tmp_path, "vlmevalkit-64f")
  right, unparsed = [], 0

  def reply(place, record):
    """Right two times of three, in four forms; the letter is counted beside."""
    nonlocal unparsed
    form, letter = REPLIES[place % 4]
    said = rows[place]["answer"] if place % 3 else "D"
    read = said if letter == 0 else letter
    unparsed += read is None
    right.append(float(read == rows[place]["answer"]))
    return form.format(said)

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  assert card["scores"]["VideoMME"]["mean"] == pytest.approx(sum(right) / 24)
  assert card["unparsed"]["VideoMME"] == pytest.approx(unparsed / 24)
  assert (card["items"], card["answered"], card["size"]) == (24, 24, 2700)
  for field in ("duration", "domain", "sub_category", "task_type"):
    shown = card["breakdowns"]["VideoMME"][field]
    for value, score in shown.items():
      own = [one for one, row in zip(right, rows, strict=True) if row[field] == value]
      assert score["mean"] == pytest.approx(sum(own) / len(own)) and score["n"] == len(own)
  # A question of one video: intervals resample the 8 videos.
  assert card["scores"]["VideoMME"]["low"] <= sum(right) / 24 <= card["scores"]["VideoMME"]["high"]


def test_a_table_in_several_parts_is_read_whole(tmp_path):
  rows = benchmark_files.write_videomme(tmp_path)
  (whole,) = tmp_path.glob("videomme/*.parquet")
  table = pyarrow.parquet.read_table(whole)
  whole.unlink()
  for part, start in enumerate((0, 10)):
    name = whole.with_name(f"test-0000{part}-of-00002.parquet")
    pyarrow.parquet.write_table(table.slice(start, 10 if not part else None), name)
  assert [item.id for item in SET.read(tmp_path)] == [row["question_id"] for row in rows]


def test_a_question_may_hold_any_end_of_line_of_unicode(tmp_path):
  root, out = tmp_path / "set", tmp_path / "out"
  rows = benchmark_files.write_videomme(root, "json")
  (path,) = root.glob("*.json")
  odd = "two\u2028lines\u0085and\u2029more?"
  path.write_text(path.read_text("utf-8").replace(rows[0]["question"], odd), "utf-8")
  main(["prepare", "videomme", str(root), "--protocol", "vlmevalkit-64f", "--out", str(out)])
  assert odd in preparing.load(out).items[0].question
  replies = answer(out, tmp_path / "r.json", lambda n, record: f"A\u2028{n}")
  assert scored(out, replies, tmp_path / "card")["answered"] == 24
  assert len(cards.read_rows(tmp_path / "card")) == 24


def test_a_missing_clip_is_named_and_not_dropped(tmp_path, capsys):
  root, out = tmp_path / "set", tmp_path / "out"
  benchmark_files.write_videomme(root)
  (root / "data" / "aB3_-x.mp4").unlink()

  command = ["prepare", "videomme", str(root), "--protocol", "vlmevalkit-64f", "--out", str(out)]
  with pytest.raises(UserError, match=r"3 of 24 items cannot be shown, the first '004-1'.*aB3_-x"):
    main(command)
  assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["set"]
  main([*command, "--allow-missing"])
  assert "missing: 004-2: no file data/aB3_-x.mp4" in capsys.readouterr().out
  card = scored(out, answer(out, tmp_path / "r.json", lambda n, r: r["answer"]), tmp_path / "card")
  assert [one["id"] for one in card["missing"]] == ["004-1", "004-2", "004-3"]
  assert card["scores"]["VideoMME"]["mean"] == 1 and card["answered"] == 21
  assert card["missing_as_wrong"]["VideoMME"] == pytest.approx(21 / 24)
  assert "004-3: no file" in (tmp_path / "card" / "card.md").read_text("utf-8")

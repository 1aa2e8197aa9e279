"""The clock of a pool, from the flags to what is stored and told; and where media may lie."""

import json
import os

import pytest
import tiny_run
from clips import write_clip

from rmsd_jax import pool as command
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import oddities, store
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import audit, journal
from rmsd_jax.teacher.request import Asking

SLOWING = [*range(20), *range(20, 120, 5)]  # 10 frames a second for 2 s, then 2, until 11.5 s
COUNTED = (
  "over half a frame spacing off the time stamps: 1, such as",
  "stand still or repeat: 0",
  "than the frames have: 1, such as",
)


def record(id_, path, **window):
  text = "<think>x</think><answer>A</answer>"
  return {
    "id": id_,
    "task": "multiple_choice",
    "question": f"{id_}?",
    "options": ["A. x", "B. y"],
    "answer": "A",
    "media": [{"type": "video", "path": path, **window}],
    "responses": [{"text": text}],
  }


@pytest.fixture
def jsonl(tmp_path):
  folder = tmp_path / "records"
  folder.mkdir()
  write_clip(folder / "even.mp4", frames=20)
  write_clip(folder / "slowing.mkv", frames=len(SLOWING), stamps=SLOWING)
  values = [record("a", "even.mp4"), record("b", "slowing.mkv", start=9.0, end=11.0)]
  values.append(record("c", "slowing.mkv"))
  (folder / "pool.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
  return folder / "pool.jsonl"


def run(capsys, *arguments):
  command.main([str(argument) for argument in arguments])
  return capsys.readouterr().out


def source(jsonl):
  return ["--jsonl", jsonl, "--tokenizer", tiny_run.model_folder()]


@pytest.mark.parametrize("times", ["stamps", "index"])
def test_plan_check_and_build_count_the_clips_whose_clocks_differ(jsonl, tmp_path, capsys, times):
  flag = [] if times == "stamps" else ["--times", "index"]
  built = ["--out", tmp_path / "pool", "--buckets", "1024,128,32,4096"]
  said = [
    run(capsys, "plan", *source(jsonl), *flag),
    run(capsys, "check", jsonl, *flag),
    run(capsys, "build", *source(jsonl), *built, *flag),
    run(capsys, "check", tmp_path / "pool"),
  ]
  head = "by time stamps" if times == "stamps" else "by frame number / header rate"
  for printed in said:
    assert f"clips: 2 files, times {head}" in printed
    assert all(words in printed for words in COUNTED)
    assert "slowing.mkv" in printed
  opened = store.open_pool(tmp_path / "pool", "train")
  assert opened.times == times
  rows = {row.id: row for row in (opened[i] for i in range(len(opened)))}
  told = rows["b"].times_F2
  assert told.min() >= 9.0 and told.max() <= 11.0


def test_a_pool_of_before_means_index(jsonl, tmp_path, capsys):
  built = ["--out", tmp_path / "pool", "--buckets", "1024,128,32,4096", "--times", "index"]
  run(capsys, "build", *source(jsonl), *built)
  path = tmp_path / "pool" / "metadata.json"
  metadata = json.loads(path.read_text())
  del metadata["clips"], metadata["processor"]["sampling"]["times"], metadata["digests"]
  path.write_text(json.dumps(metadata))
  path.with_name("SHA256SUMS").unlink()  # pools of that time had none
  assert store.open_pool(tmp_path / "pool", "train").times == "index"
  assert "times by frame number / header rate" in run(capsys, "check", tmp_path / "pool")


def test_a_journal_of_before_goes_on_by_index(tmp_path):
  path = tmp_path / "pool.jsonl.journal.jsonl"
  now = Asking("m", "t", times="index").settings()
  entry = {"id": "1", "prompt": "p", "text": "x", "finish_reason": "stop", "read": 1, "written": 1}
  before = {name: value for name, value in now.items() if name != "times"}
  lines = [{"journal": 1, "settings": before}, entry]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert len(journal.read_entries(path, now)) == 1
  with pytest.raises(UserError, match="other settings .times 'index' -> 'stamps'"):
    journal.read_entries(path, Asking("m", "t").settings())
  links = Asking("m", "t", media="url", url_prefix="https://h/").settings()
  assert "times" not in links
  lines[0]["settings"] = links
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert len(journal.read_entries(path, links)) == 1


def test_the_teacher_is_told_the_same_seconds(jsonl):
  from rmsd_jax.data.records import parse

  asked = parse(json.dumps(record("b", "slowing.mkv", start=9, end=11)), 1, {"multiple_choice"})
  told = {}
  for times in ("stamps", "index"):
    content = Asking("m", "t", frames=3, times=times).content(asked, str(jsonl.parent), "?")
    told[times] = [item["text"] for item in content if item["type"] == "text"][:-1]
  assert told["stamps"] == ["<9.0 seconds>", "<10.0 seconds>", "<11.0 seconds>"]
  assert told["index"] == ["<3.4 seconds>", "<3.6 seconds>", "<3.8 seconds>"]


@pytest.mark.parametrize("how", ["relative", "absolute", "link"])
def test_media_outside_the_folder_of_their_records_must_be_allowed(jsonl, tmp_path, capsys, how):
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  write_clip(elsewhere / "far.mp4", frames=12)
  names = {"relative": "../elsewhere/far.mp4", "absolute": str(elsewhere / "far.mp4"),
           "link": "near.mp4"}  # fmt: skip
  os.symlink(elsewhere / "far.mp4", jsonl.parent / "near.mp4")
  jsonl.write_text(json.dumps(record("a", names[how])) + "\n")
  built = ["--out", tmp_path / "pool", "--buckets", "1024,128,32,4096"]
  for arguments in (["plan", *source(jsonl)], ["build", *source(jsonl), *built], ["check", jsonl]):
    with pytest.raises(UserError, match="lies outside the folder of its records; .*--media-root"):
      run(capsys, *arguments)
    capsys.readouterr()
    run(capsys, *arguments, "--media-root", elsewhere)
  # Scores read no media, and links are not read.
  assert "1 responses scored" in run(capsys, "score", jsonl, "--out", tmp_path / "scores.jsonl")


def test_check_names_clips_that_cannot_be_read(jsonl, capsys):
  (jsonl.parent / "even.mp4").write_bytes(b"no clip")
  printed = run(capsys, "check", jsonl)
  assert "clips: 1 files" in printed
  assert "clips that cannot be read: 1, such as" in printed and "even.mp4: cannot" in printed


def test_nothing_is_said_where_there_are_no_clips(tmp_path):
  assert oddities.lines(oddities.Tally().summary(), "stamps") == []
  values = record("a", "x.png") | {"media": []}
  (tmp_path / "pool.jsonl").write_text(json.dumps(values) + "\n")
  found = audit.of_files([str(tmp_path / "pool.jsonl")], Rules(), lambda total: None)
  assert found.clips == [] and found.fatal == []

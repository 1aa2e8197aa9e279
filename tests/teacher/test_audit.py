"""Checks of a pool: every fault with its line, every leak by content, nothing where all is well."""

import dataclasses
import json
import math
import os
import shutil

import numpy as np
import pytest
import small_records
from small_pool import MemoryPool, make_pool, make_row

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import records, rows
from rmsd_jax.tasks import Rules, quality
from rmsd_jax.teacher import audit


class Read:
  """Counts the files that are read."""

  def __init__(self):
    self.totals = []

  def __call__(self, total):
    self.totals.append(total)
    return Progress(total, "", write=False)


def record(id_, path="a.mp4", **changes):
  values = {"media": [{"type": "video", "path": path}], "question": f"What is {id_}?"}
  one = small_records.of_task("ocr", **values) | {"id": id_, **changes}
  one.pop("clip")
  return one | {name: changes[name] for name in ("clip",) if name in changes}


@pytest.fixture
def folder(tmp_path):
  for name, content in (("a.mp4", b"aaaa"), ("b.mp4", b"bbbb"), ("c.mp4", b"cc"), ("e.mp4", b"")):
    (tmp_path / name).write_bytes(content)
  return tmp_path


def look(folder, values, progress=None, **changes):
  path = small_records.write(folder / "pool.jsonl", values)
  return audit.of_files([str(path)], Rules(), progress or Read(), **changes)


def line_of(found, start):
  (line,) = [line for line in found.lines if line.strip().startswith(start)]
  return line.strip()


def test_a_sound_file_has_nothing_against_it(folder):
  values = [record("1"), record("2", "b.mp4"), record("3", "c.mp4", split="test")]
  found = look(folder, values)
  assert found.fatal == []
  assert found.lines[:2] == ["3 lines, 3 usable: test ocr 1, train ocr 2", "unusable lines: 0"]
  assert line_of(found, "the same question").endswith(": 0")
  assert line_of(found, "responses:") == "responses: 12, at most 4 per prompt"
  assert line_of(found, "responses cut off").endswith(": 3 (25.0%)")
  assert line_of(found, "clips in both").endswith(": 0")


def test_all_faults_are_listed_with_their_lines_and_like_ones_together(folder):
  values = [
    record("1"),
    "{",
    {"id": "x", "question": "?", "answer": 1},
    record("1", "b.mp4"),
    record("4", answer=""),
    record("5", "gone.mp4", answer=7),
    {"id": "y", "question": "?", "answer": 1},
    record("6", "e.mp4"),
    {"task": "ocr", "question": "?", "answer": 1},
    record("8", "missing.mp4"),
  ]
  found = look(folder, values)
  assert found.lines[0] == "10 lines, 1 usable: train ocr 1" and found.lines[1].endswith(": 9")
  text = "\n".join(found.lines)
  assert "schema: record key 'task' is missing: 2 (line 3, line 7)" in text
  assert "schema: record key 'id' is missing: 1 (line 9)" in text
  assert "schema: not JSON" in text and "1 (line 2)" in text
  assert "id: id '1' stands in line 1 already: 1 (line 4)" in text
  assert "ground truth: such as ocr: answer '' is not a text" in text
  assert "2 (line 5, line 6)" in text
  assert "media: such as there is no file 'gone.mp4': 2 (line 6, line 10)" in text
  assert "media: the file 'e.mp4' is empty: 1 (line 8)" in text
  (fatal,) = found.fatal
  assert "9 of 10 lines are unusable, more than the allowed share of 0.01" in fatal
  assert "; mend or drop them" in fatal
  assert look(folder, values, bad_share=0.9).fatal == []


def test_a_file_without_a_usable_record_is_unusable(folder):
  assert "no usable record" in look(folder, ["{"], bad_share=1.0).fatal[0]
  assert "no usable record" in look(folder, [], bad_share=1.0).fatal[0]
  with pytest.raises(UserError, match="no file"):
    audit.of_files(["nowhere.jsonl"], Rules(), Read())


def test_questions_asked_twice_and_responses_said_twice(folder):
  values = [
    record("1", question="What  is it?"),
    record("2", question="what is IT? "),
    record("3", "b.mp4", question="What is it?"),
    record("4", question="What is it?", media=[{"type": "video", "path": "a.mp4", "start": 1}]),
    record("5", responses=[{"text": "same"}, {"text": "same"}, {"text": "same"}, {"text": "x"}]),
    record("6", responses=[{"text": "one"}]),
  ]
  found = look(folder, values)
  assert found.fatal == []
  assert line_of(found, "the same question") == (
    "the same question about the same clip: 1 (line 2 as line 1)"
  )
  repeated = 4 * 1 + 2  # `of_task` says the right answer twice
  assert line_of(found, "responses that repeat").endswith(f": {repeated}")
  assert line_of(found, "prompts with fewer than 4").endswith(": 1 (line 6)")
  assert line_of(look(folder, values, k=5), "prompts with fewer than 5").startswith(
    "prompts with fewer than 5 responses: 6 (line 1, "
  )


def test_the_same_bytes_under_two_names_are_a_leak(folder):
  shutil.copy(folder / "a.mp4", folder / "copy.mp4")
  read = Read()
  values = [record("1"), record("2", "c.mp4"), record("3", "copy.mp4", split="test")]
  found = look(folder, values, read)
  assert line_of(found, "clips in both").endswith(": 0")
  (fatal,) = found.fatal
  assert "media files with the same content in both splits: 1" in fatal and "a.mp4" in fatal
  assert f"{folder / 'a.mp4'} is {folder / 'copy.mp4'}" in "\n".join(found.lines)
  assert read.totals == [2], "only files of equal size are read"
  values[2]["media"][0]["path"] = "b.mp4"  # as long, with other bytes
  assert look(folder, values).fatal == []


def test_a_clip_in_both_splits_is_a_leak_by_name_and_by_content(folder):
  named = [record("1", "a.mp4", clip="x"), record("2", "b.mp4", clip="x", split="test")]
  (fatal,) = look(folder, named).fatal
  assert fatal.startswith("clips in both splits: 1, such as 'x'; give all questions of a clip one")
  renamed = [record("1", clip="x"), record("2", clip="y", split="test")]
  (fatal,) = look(folder, renamed).fatal
  assert fatal.startswith("media files with the same content in both splits: 1")
  assert "split" in fatal


def test_a_file_is_one_clip_by_whatever_path_and_two_files_are_two(folder):
  other = {"split": "test", "question": "Another?"}
  found = look(folder, [record("1"), record("2", "./a.mp4", **other)])
  assert [fatal.partition(":")[0] for fatal in found.fatal][0] == "clips in both splits"
  found = look(folder, [record("1"), record("2", str(folder / "a.mp4"), **other)])
  assert found.fatal[0].startswith("clips in both splits: 1, such as 'a.mp4'")
  paths = []
  for split, content in (("train", b"one"), ("test", b"two")):
    (folder / split).mkdir()
    (folder / split / "1.mp4").write_bytes(content)
    values = [record(split, "1.mp4", split=split, question="The same?")]
    paths.append(str(small_records.write(folder / split / "pool.jsonl", values)))
  found = audit.of_files(paths, Rules(), Read())
  assert found.fatal == [] and line_of(found, "the same question").endswith(": 0")


def test_media_shared_with_another_file_are_found_by_content(folder):
  other = folder / "benchmark"
  other.mkdir()
  shutil.copy(folder / "b.mp4", other / "test 7.mp4")
  theirs = [record("z", "test 7.mp4", responses=[]), record("q", "gone.mp4"), "{"]
  against = str(small_records.write(other / "bench.jsonl", theirs))
  found = look(folder, [record("1"), record("2", "b.mp4")], against=[against])
  (fatal,) = found.fatal
  assert fatal.startswith(f"media files that {against} has, too: 1, such as ") and "b.mp4" in fatal
  assert line_of(found, "compared with") == (
    "compared with 1 files of it; 1 are not there, 1 of its lines could not be read"
  )
  assert look(folder, [record("1")], against=[against]).fatal == []
  os.unlink(other / "test 7.mp4")
  (fatal,) = look(folder, [record("1")], against=[against]).fatal
  assert "names no media file that is there, so nothing was compared" in fatal


def test_lines_of_several_files_are_told_apart(folder):
  paths = [
    str(small_records.write(folder / name, [record("1")])) for name in ("x.jsonl", "y.jsonl")
  ]
  found = audit.of_files(paths, Rules(), Read(), bad_share=1.0)
  assert f"id: id '1' stands in {paths[0]} line 1 already: 1 ({paths[1]} line 1)" in "\n".join(
    found.lines
  )


def timed(id_, task, answer, **media):
  return record(
    id_, task=task, answer=answer, responses=[], media=[{"type": "video", "path": "a.mp4", **media}]
  )


@pytest.mark.parametrize("media", [True, False])
def test_truths_outside_of_what_is_shown_are_unusable(folder, monkeypatch, media):
  """With the length of the file, 0 to 19.8 s, or by the windows alone."""
  monkeypatch.setattr(
    audit.truth_audit, "spans", lambda jsonl, rules, progress, *rest: spans_of(folder)
  )
  values = [
    timed("in", "temporal_grounding", [12, 14], start=10, end=15),
    timed("before", "temporal_grounding", [2, 4], start=10, end=15),
    timed("mostly", "temporal_grounding", [3, 12], start=10, end=15),
    timed("partly", "temporal_grounding", [12, 18], start=10, end=15),
    timed("one", "tracking", {"boxes": {"11": [0, 0, 9, 9], "90": [0, 0, 9, 9]}}, start=10, end=15),
    timed("other", "temporal_grounding", [12, 13], start=10, end=15),
    timed("beyond", "temporal_grounding", [50, 60]),
    timed("within", "temporal_grounding", [5, 6]),
  ]
  values[5] = values[5] | {"alternatives": [[1, 2]]}
  found = look(folder, values, with_media=media, bad_share=1.0)
  text = "\n".join(found.lines)
  unusable = 5 if media else 4
  assert found.lines[1] == f"unusable lines: {unusable}"
  assert "the truth from 2 to 4 s lies outside of the 10 to 15 s of the clip" in text
  assert "most of the truth from 3 to 12 s" in text and "second 90 of the truth" in text
  assert ("line 7" in text) == media
  assert line_of(found, "truths of which a part is not shown").endswith(": 1 (line 4)")


@pytest.mark.parametrize("name", ["../out/a.mp4", "linked.mp4"])
def test_clips_outside_are_not_opened(folder, tmp_path_factory, name):
  """Their spans are read where the folder is named alone."""
  outside = folder / "out"
  outside.mkdir()
  (outside / "a.mp4").write_bytes(b"no clip")
  (folder / "in").mkdir()
  (folder / "in" / "linked.mp4").symlink_to(outside / "a.mp4")
  jsonl = folder / "in" / "truths.jsonl"
  value = timed("1", "temporal_grounding", [1, 2])
  value["media"][0]["path"] = name
  jsonl.write_text(json.dumps(value) + "\n")
  given = ([str(jsonl)], Rules(), Read(), 1)
  assert audit.truth_audit.spans(*given) == {}
  (reason,) = audit.truth_audit.spans(*given, str(outside)).values()
  assert "a.mp4" in reason or "linked.mp4" in reason


def spans_of(folder):
  whole = records.Media("video", "a.mp4")
  return {(str(folder), whole): (0.0, 19.8)}


def test_annotations_are_checked_without_their_media(folder):
  values = [
    record("1", "gone.mp4"),
    record("2", "gone too.mp4", task="math", answer="even"),
    record("3", "gone.mp4", task="math", answer="12 cm"),
    record("4", "gone.mp4", task="ocr", answer="red or blue"),
    record("5", task="multiple_choice", answer="B", options=["B. x", "A. y"]),
  ]
  assert look(folder, values).fatal
  found = look(folder, values, with_media=False)
  assert found.fatal == [] and found.lines[1] == "unusable lines: 0"
  assert line_of(found, "math truths that can only").endswith(": 1 (line 2)")
  assert line_of(found, "truths that may hold several").endswith(": 1 (line 4)")
  assert line_of(found, "options that are not labelled").endswith(": 1 (line 5)")
  assert "media files were not looked at" in found.lines


def searched(monkeypatch, splits, **how):
  """What is found in a pool of these rows."""
  metadata = {"scorer": quality.SCORER_VERSION, "rows": dict.fromkeys(splits, {"ocr": 1})}
  monkeypatch.setattr(audit.store, "read_metadata", lambda folder: metadata)
  monkeypatch.setattr(audit.store, "open_pool", lambda folder, split: splits[split])
  monkeypatch.setattr(audit, "_check_row", lambda *given: None)  # held by test_pool
  return audit.of_pool("nowhere", Rules(), Read(), **how)


def test_a_built_pool_is_searched_for_frames_that_both_splits_show(monkeypatch):
  splits = {"train": make_pool(4, tasks=("ocr",)), "test": make_pool(5, seed=1, tasks=("ocr",))}
  found = searched(monkeypatch, splits, k=4)
  assert found.fatal == []
  assert found.lines[:2] == ["train: 4 rows are sound", "test: 5 rows are sound"]
  assert line_of(found, "responses:") == "responses: 27, at most 3 per prompt"
  assert line_of(found, "prompts with fewer than 4").startswith(
    "prompts with fewer than 4 responses: 9 (train 'row 0', "
  )
  splits["test"] = make_pool(5, seed=0, tasks=("ocr",))
  found = searched(monkeypatch, splits)
  assert found.fatal[0].startswith("clips with the same frames in both splits: ")
  assert json.dumps(found.lines)


def test_a_medium_that_stands_beside_others_is_found(monkeypatch):
  rng, still = np.random.default_rng(0), (math.nan, math.nan)

  def row(index, *media):
    """Of media that are each a list of frame pairs: (picture, its times)."""
    pairs = [pair for medium in media for pair in medium]
    changes = rows.pack([picture for picture, _ in pairs]) | {
      "grid_F2": np.full((len(pairs), 2), 2, np.int32),
      "times_F2": np.array([times for _, times in pairs], np.float32),
    }
    return dataclasses.replace(make_row(rng, 2 * index), **changes)

  def medium(*times):
    return [(rng.integers(0, 256, (16, 8, 3), np.uint8), pair) for pair in times]

  clip, other = (medium((0.0, 0.5), (1.0, 1.5)) for _ in range(2))
  picture, another = medium(still), medium(still)
  begun = [clip[0], medium((1.0, 1.5))[0]]  # the same first frames alone are no leak

  def leaks(train, test):
    splits = {"train": MemoryPool((row(0, *train),)), "test": MemoryPool((row(1, *test),))}
    name = "clips with the same frames in both splits: "
    return int(line_of(searched(monkeypatch, splits), name).removeprefix(name))

  assert leaks([clip, other], [clip]) == leaks([other, clip, picture], [another, clip]) == 1
  assert leaks([clip, picture, another], [another]) == leaks([picture, clip], [clip, other]) == 1
  assert leaks([clip, picture], [picture, clip]) == 2
  assert leaks([clip, picture], [other, another]) == leaks([clip], [begun]) == 0

"""Prepared sets go through `pool plan` and `build`: exact words, order of the media, one clip."""

import json

import benchmark_files
import pytest
import tiny_tokenizer
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax import pool
from rmsd_jax.data import media, records, rows
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.processor import Processor
from rmsd_jax.data.store import open_pool
from rmsd_jax.tasks import Rules


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  tiny_tokenizer.write_model_folder(folder)
  return folder


def flags(folder, root, model):
  source = ["--jsonl", str(folder / "records.jsonl"), "--tokenizer", str(model)]
  small = ["--frames", "4", "--video-pixels", "1024,8192", "--image-pixels", "1024,8192"]
  return [*source, *small, "--media-root", str(root)]


@pytest.mark.parametrize("set_", sorted(benchmark_files.WRITERS))
def test_every_record_is_one_that_a_pool_takes(set_, tmp_path):
  _, folder, _ = prepared(set_, tmp_path)
  rules = Rules()
  for number, line in enumerate((folder / "records.jsonl").read_text("utf-8").splitlines(), 1):
    record = records.parse(line, number, rules.tasks)
    assert rules.validate(record.task, record.answer, record.options) is None
    assert record.split == "test" and record.benchmark["set"] == set_
    assert {"protocol", "scorer", "item", "call", "cluster", "fields"} <= record.benchmark.keys()
    turns = rows.messages(record, str(folder), rules)
    words = [item["text"] for item in turns[-1]["content"] if item["type"] == "text"]
    assert words == [w for w in (record.asked.before, record.asked.text) if w]


def test_a_built_pool_holds_the_words_of_the_protocol(model, tmp_path):
  root, folder, _ = prepared("videommmu", tmp_path, "vlmevalkit-64f", changes=("system=Be brief.",))
  out = tmp_path / "pool"
  build = ["build", *flags(folder, root, model), "--out", str(out), "--workers", "1"]
  pool.main([*build, "--buckets", "4096,16,8,512"])
  built = open_pool(str(out), "test")
  by_id = {record["id"]: record for record in records_of(folder)}
  tokenizer = ChatTokenizer(str(model))
  assert len(built) == 24 and len({built[n].clip for n in range(24)}) == 8
  for n in range(24):
    row = built[n]
    text = tokenizer.decode(row.ids_P[~row.is_visual_P])
    asked = by_id[row.id]["asked"]
    assert "Be brief." in text and asked["text"] in text
    assert "Reply as <think>" not in text  # the task's own instruction is not asked
    pairs = 3 if row.id.startswith("Adaptation") else 2  # the question image after the clip
    assert len(row.grid_F2) == pairs
  replies = answer(folder, tmp_path / "r.json", lambda n, record: "Answer: A")
  whole = json.loads(replies.read_text("utf-8")) | {"pool_identity": built.identity}
  replies.write_text(json.dumps(whole), "utf-8")
  card = scored(folder, replies, tmp_path / "card", "--pool", str(out))
  assert card["clips"]["frame_pairs"] == {"least": 2, "mean": pytest.approx(56 / 24), "most": 3}
  assert card["clips"]["visual_tokens"]["least"] >= 2
  assert "frames 4 instead of 64" in card["differs"]
  assert "replies of at most 16 tokens instead of 16384" in card["differs"]


def test_words_before_the_clip_stand_before_it(model, tmp_path):
  _, folder, _ = prepared("mlvu", tmp_path, "vlmevalkit-64f")
  line = (folder / "records.jsonl").read_text("utf-8").splitlines()[0]
  record = records.parse(line, 1, Rules().tasks)
  processor = Processor(str(model), sampling=media.Sampling(frames=4))
  prompt = processor.prompt(rows.messages(record, str(folder), Rules()))
  first = prompt.is_visual_P.argmax()
  last = len(prompt.ids_P) - prompt.is_visual_P[::-1].argmax()
  assert "Carefully watch this video" in processor.tokenizer.decode(prompt.ids_P[:first])
  assert "Only give the best option." in processor.tokenizer.decode(prompt.ids_P[last:])


def test_what_stands_in_several_places_is_not_collected(tmp_path):
  record = {"id": "1", "task": "ocr", "question": "?", "answer": "x"}
  rules = Rules()
  plain = records.parse(json.dumps(record | {"asked": {"text": "Read."}}), 1, rules.tasks)
  assert plain.plain_prompt(rules) == "Read." and plain.not_plain() is None
  placed = records.parse(json.dumps(record | {"asked": {"before": "Look."}}), 1, rules.tasks)
  assert "cannot" not in placed.not_plain() and "not be collected" in placed.not_plain()
  bare = records.parse(json.dumps(record), 1, rules.tasks)
  assert bare.plain_prompt(rules) == rules.prompt_text("ocr", "?")

"""Pools: what goes in comes out, bad lines are set aside, half a pool is never accepted."""

import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import small_pool
import tiny_tokenizer
from array_record.python import array_record_module
from clips import write_noise
from jax._src import xla_bridge
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from rmsd_jax import cli
from rmsd_jax import pool as command
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import media, rows, store
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.processor import Processor, patches_from_picture
from rmsd_jax.tasks import Rules, quality

BUCKETS = (Bucket(500, 80, 4, 36), Bucket(400, 60, 4, 36))
GOOD = "<think>I see it.</think><answer>B</answer>"
BAD = "<answer>B</answer>"
ROOT = pathlib.Path(__file__).parents[2]


class Watch:
  """Counts lines; stands in for the command's progress line."""

  def __init__(self, total):
    self.total, self.done = total, 0

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    assert exc[0] is not None or self.done == self.total

  def update(self, n=1, note=""):
    self.done += n


def record(id_, clip="a.mp4", **changes):
  return {
    "id": id_,
    "task": "multiple_choice",
    "question": "Which colour is the card?",
    "options": ["A. red", "B. blue"],
    "answer": "B",
    "media": [{"type": "video", "path": clip}],
    "responses": [{"text": GOOD, "teacher": "big"}, {"text": BAD}],
    **changes,
  }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A tokenizer folder, three media files and a processor."""
  folder = tmp_path_factory.mktemp("world")
  (folder / "model").mkdir()
  tiny_tokenizer.write_model_folder(folder / "model")
  rng = np.random.default_rng(0)
  write_noise(folder / "a.mp4", rng)
  write_noise(folder / "b.mp4", rng)
  Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(folder / "c.png")
  (folder / "broken.mp4").write_bytes(b"not a video")
  return folder


@pytest.fixture(scope="module")
def processor(world):
  sampling = media.Sampling(fps=2.0)
  sizes = {"video_pixels": (256, 6 * 48 * 48), "image_pixels": (256, 48 * 48)}
  return Processor(world / "model", sampling=sampling, **sizes)


def write(path, values):
  path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
  return path


def build(world, out, values, processor, **changes):
  jsonl = write(world / f"{out.parent.name}.jsonl", values)
  given = {"progress": Watch, "workers": 1, **changes}
  return store.build([jsonl], out, processor, Rules(), BUCKETS, **given)


RECORDS = [
  record("0", answer={"letter": "B"}),  # not a letter: quarantine
  record("1", responses=[]),
  record("2", source="world"),
  record("3", "b.mp4", split="test", responses=[{"text": GOOD}]),
  record("4", media=[{"type": "image", "path": "c.png"}, {"type": "video", "path": "a.mp4"}]),
  record("5", "broken.mp4"),
  record("2"),  # twice
  record(
    "6",
    task="open_ended",
    options=[],
    answer="A blue card.",
    media=[],
    responses=[
      {"text": f"<think>{'x ' * 28}</think><answer>Blue.</answer>"},
      {"text": f"<think>{'x ' * 200}</think><answer>Blue.</answer>"},
      {"text": "<think>I", "finish_reason": "length"},
    ],
  ),
  {"id": "7"},
]


@pytest.fixture(scope="module")
def built(world, processor, tmp_path_factory):
  out = tmp_path_factory.mktemp("built") / "pool"
  limits = store.Limits(seconds=30, bad_share=0.5, long_share=0.5)
  return out, build(world, out, RECORDS, processor, limits=limits)


def by_id(opened):
  return {row.id: row for row in (opened[i] for i in range(len(opened)))}


def test_rows_hold_what_the_processor_and_the_scorer_gave(built, world, processor):
  out, metadata = built
  train = by_id(store.open_pool(out, "train"))
  assert sorted(train) == ["1", "2", "4", "6"]
  row = train["2"]
  question = Rules().prompt_text("multiple_choice", row.question, row.options)
  item = {"type": "video", "video": str(world / "a.mp4")}
  content = [item, {"type": "text", "text": question}]
  prompt = processor.prompt([{"role": "user", "content": content}])
  np.testing.assert_array_equal(row.ids_P, prompt.ids_P)
  np.testing.assert_array_equal(row.is_visual_P, prompt.is_visual_P)
  np.testing.assert_array_equal(row.grid_F2, prompt.grid_F2)
  np.testing.assert_array_equal(row.times_F2, prompt.times_F2)
  for picture, grid, patches in zip(rows.unpack(row), row.grid_F2, prompt.patches, strict=True):
    np.testing.assert_array_equal(patches_from_picture(picture, grid, 8, 2), patches)
  assert (row.answer, row.options, row.source, row.closed) == (
    "B",
    ("A. red", "B. blue"),
    "world",
    1,
  )
  assert (row.clip, row.texts, row.teachers) == ("a.mp4", (GOOD, BAD), ("big", ""))
  np.testing.assert_array_equal(row.quality_K, [1, 0])
  np.testing.assert_array_equal(row.valid_K, [True, False])
  for text, ids, tokens in zip(row.texts, row.responses, row.tokens_K, strict=True):
    assert ids.tolist() == processor.tokenizer.encode_response(text)
    assert len(ids) == tokens
  assert metadata["layout"] == {
    "patch": 8, "merge": 2, "temporal": 2, "pad_id": processor.tokenizer.pad
  }  # fmt: skip


def test_pictures_of_one_size_share_files_and_come_back_as_they_were(processor):
  rng = np.random.default_rng(0)
  sizes = [(8, 8)] * 19 + [(16, 8), (8, 8), (8, 8)]
  pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
  packed = rows.pack(pictures)
  assert packed["packed"].tolist() == [8, 8, 3, 1, 2] and len(packed["pictures"]) == 5
  row = dataclasses.replace(small_pool.make_row(rng, 0), **packed)
  for got, wanted in zip(rows.unpack(row), pictures, strict=True):
    np.testing.assert_array_equal(got, wanted)
  assert rows.pack([])["pictures"] == ()


def test_several_media_none_and_no_responses(built):
  train = by_id(store.open_pool(built[0], "train"))
  assert train["4"].packed.tolist() == [1, *train["2"].packed]
  assert np.isnan(train["4"].times_F2[0]).all()
  assert train["6"].pictures == () and train["6"].grid_F2.shape == (0, 2)
  assert train["1"].responses == () and train["1"].quality_K.shape == (0,)


def test_a_conversation_is_asked_and_stored_as_it_is(world, processor, tmp_path, capsys):
  said = [{"text": "Just noise."}, {"text": "Noi", "finish_reason": "length"}, {"text": "\u200b"}]
  media = [{"type": "image", "path": "c.png"}]
  chat = {"id": "8", "task": "chat", "question": "What is this?", "media": media, "responses": said}
  values = [record("2"), chat, record("9", task="chat")]
  out = tmp_path / "pool"
  build(world, out, values, processor, limits=store.Limits(bad_share=0.5))
  row = by_id(store.open_pool(out, "train"))["8"]
  tokens = ChatTokenizer(world / "model")
  asked = tokens.decode(row.ids_P)
  assert "What is this?" in asked and "<think>" not in asked and "<answer>" not in asked
  assert row.answer is None and not row.closed and row.options == ()
  assert row.valid_K.tolist() == [True, False, False]
  assert row.quality_K.tolist() == row.rouge_K.tolist() == [1.0, 0.0, 0.0]
  np.testing.assert_array_equal(row.responses[0], tokens.encode_response("Just noise."))
  refused = (out / "quarantine.jsonl").read_text()
  assert "a conversation has no truth, tolerances or options" in refused and '"9"' in refused
  command.main(["check", str(out)])
  command.main(["report", str(out)])
  assert "chat" not in capsys.readouterr().out.partition("| task")[2]


def test_a_row_takes_the_smallest_bucket_and_unusable_responses_leave_empty_slots(built):
  opened = store.open_pool(built[0], "train")
  assert opened.buckets == (BUCKETS[1], BUCKETS[0])  # smallest first
  train = by_id(opened)
  assert train["2"].bucket == 0
  row = train["6"]
  assert row.bucket == 1  # the prompt fits both, but its responses want the larger T
  assert [len(ids) for ids in row.responses] == [row.tokens_K[0], 0, 0]
  assert 60 < row.tokens_K[0] <= 80 < row.tokens_K[1]
  np.testing.assert_array_equal(row.valid_K, [True, False, False])
  assert built[1]["long_responses"] == 1 and built[1]["truncated_responses"] == 1


def test_the_index_agrees_with_the_rows(built):
  for split in ("train", "test"):
    opened = store.open_pool(built[0], split)
    stored = [opened[i] for i in range(len(opened))]
    assert [row.bucket for row in stored] == opened.bucket_N.tolist()
    assert [row.task for row in stored] == opened.task_N.tolist()
  assert built[1]["rows"] == {
    "train": {"multiple_choice": 3, "open_ended": 1}, "test": {"multiple_choice": 1}
  }  # fmt: skip
  assert built[1]["k"] == 3


def test_a_pool_can_be_sent_to_another_process(built):
  opened = store.open_pool(built[0], "train")
  sent = pickle.loads(pickle.dumps(opened))
  assert len(sent) == len(opened) and sent.buckets == opened.buckets
  np.testing.assert_array_equal(sent[1].ids_P, opened[1].ids_P)
  assert sent[1].pictures == opened[1].pictures


def test_bad_lines_are_in_quarantine_with_their_reason(built):
  lines = (built[0] / "quarantine.jsonl").read_text().splitlines()
  reasons = {entry["line"]: entry for entry in map(json.loads, lines)}
  assert sorted(reasons) == [1, 6, 7, 9]
  assert reasons[1]["reason"].startswith("answer {'letter': 'B'} is not the letter of an option")
  assert reasons[6]["kind"] == "MediaError" and "broken.mp4" in reasons[6]["reason"]
  assert "id '2' stands in" in reasons[7]["reason"] and "line 3 already" in reasons[7]["reason"]
  assert "'task' is missing" in reasons[9]["reason"]
  assert built[1]["quarantined"] == {"MediaError": 1, "RecordFault": 3}


def test_stored_order_depends_on_ids_alone(world, processor, tmp_path):
  values = [record(str(i), media=[]) for i in range(30)]
  ids = []
  for name, given in (("x", values), ("y", values[::-1])):
    build(world, tmp_path / name, given, processor)
    opened = store.open_pool(tmp_path / name, "train")
    ids.append([opened[i].id for i in range(len(opened))])
  assert ids[0] == ids[1]


def test_rows_are_the_same_bytes_whoever_writes_them(built):
  """Or a pool that is built again is another one to `evaluate`: protobuf's maps have no order."""
  (path,) = pathlib.Path(built[0]).rglob("*-train.array_record-*")
  records = array_record_module.ArrayRecordReader(str(path)).read_all()
  for content in records:
    example = tf_example_pb2.Example.FromString(content)
    assert content == example.SerializeToString(deterministic=True)
  assert len(records) > 3


def test_a_failed_build_leaves_its_reasons_and_nothing_else(world, processor, tmp_path):
  values = [record("1"), record("2", "missing.mp4"), record("3", answer="Z")]
  with pytest.raises(UserError, match="of 3 lines are unusable.*(missing.mp4|not the letter)"):
    build(world, tmp_path / "pool", values, processor)
  kept = tmp_path / "pool.quarantine.jsonl"
  assert list(tmp_path.iterdir()) == [kept]
  assert any(reason in kept.read_text() for reason in ("missing.mp4", "not the letter"))
  build(world, tmp_path / "pool", values[:1], processor)
  assert not kept.exists()


class Slow:
  """A processor that never comes back, as a decoder may."""

  def __init__(self, processor):
    self._processor = processor
    self.tokenizer, self.layout = processor.tokenizer, processor.layout

  def prompt(self, messages):
    text = messages[0]["content"][-1]["text"]
    while "hang" in text:
      pass
    assert not xla_bridge.backends_are_initialized(), "a child process woke the accelerator"
    return self._processor.prompt(messages)

  def frame_pictures(self, prompt):
    return self._processor.frame_pictures(prompt)

  def settings(self):
    return self._processor.settings()


def test_a_hanging_record_costs_its_time_limit_and_children_leave_jax_alone(
  world, processor, tmp_path
):
  values = [record("1"), record("2", question="hang"), record("3")]
  limits = store.Limits(seconds=1.5, bad_share=0.5)
  metadata = build(world, tmp_path / "pool", values, Slow(processor), limits=limits)
  assert metadata["quarantined"] == {"TimeLimit": 1}
  assert len(store.open_pool(tmp_path / "pool", "train")) == 2


REFUSED = [
  ([record("1"), record("2", split="test")], {}, "1 clips are in both splits, such as 'a.mp4'"),
  ([], {}, "no record in"),
  ([record("1", question="x " * 600)], {"limits": store.Limits(bad_share=1)}, "no record of split"),
  ([record("1", responses=[{"text": "x " * 200}])], {}, "1 of 1 responses are longer than T"),
  ([record("1")], {"workers": 0}, "0 workers"),
]


@pytest.mark.parametrize("values, changes, reason", REFUSED, ids=[case[2] for case in REFUSED])
def test_a_build_that_cannot_be_good_fails(world, processor, tmp_path, values, changes, reason):
  with pytest.raises(UserError, match=reason):
    build(world, tmp_path / "pool", values, processor, **changes)
  assert not (tmp_path / "pool").exists() and not (tmp_path / ".pool.partial").exists()


@pytest.mark.parametrize("bucket", [Bucket(0, 1, 1, 4), Bucket(8, 8, 1, 6)])
def test_impossible_buckets_are_refused(world, processor, tmp_path, bucket):
  jsonl = write(world / "one.jsonl", [record("1")])
  with pytest.raises(UserError, match="bucket"):
    store.build([jsonl], tmp_path / "p", processor, Rules(), [bucket], progress=Watch)


def test_what_exists_is_replaced_only_on_demand_and_only_if_it_is_a_pool(
  world, processor, tmp_path
):
  out = tmp_path / "pool"
  build(world, out, [record("1")], processor)
  with pytest.raises(UserError, match="exists"):
    build(world, out, [record("2")], processor)
  build(world, out, [record("2")], processor, overwrite=True)
  assert by_id(store.open_pool(out, "train")).keys() == {"2"}
  precious = tmp_path / "precious"
  precious.mkdir()
  (precious / "thesis.tex").write_text("...")
  with pytest.raises(UserError, match="not a pool, so it will not be deleted"):
    build(world, precious, [record("1")], processor, overwrite=True)
  assert (precious / "thesis.tex").exists()


def test_opening_refuses_what_is_not_a_whole_pool(world, processor, tmp_path):
  out = tmp_path / "pool"
  build(world, out, [record("1")], processor)
  with pytest.raises(UserError, match="no split 'test', only train"):
    store.open_pool(out, "test")
  metadata = json.loads((out / "metadata.json").read_text())
  (out / "metadata.json").write_text(json.dumps({**metadata, "schema": 99}))
  with pytest.raises(UserError, match=f"schema 99, needed is {store.SCHEMA}"):
    store.open_pool(out, "train")
  (out / "metadata.json").unlink()
  with pytest.raises(UserError, match="not a finished pool"):
    store.open_pool(out, "train")


def test_a_pool_may_be_moved(built, tmp_path):
  (tmp_path / "elsewhere").symlink_to(built[0])
  assert by_id(store.open_pool(tmp_path / "elsewhere", "test")).keys() == {"3"}


def run(*args):
  line = [sys.executable, "-m", "rmsd_jax.pool", *map(str, args)]
  return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_builds_without_tensorflow_and_says_what_it_left_out(world, tmp_path):
  jsonl = write(world / "command.jsonl", RECORDS)
  given = ["--jsonl", jsonl, "--out", tmp_path / "pool", "--tokenizer", world / "model"]
  given += ["--buckets", "500,80,4,36", "400,60,4,36"]
  given += ["--video-pixels", "256,13824"]
  given += ["--image-pixels", "256,2304"]
  done = run("build", *given, "--max-bad-share", 0.5, "--max-long-share", 0.5, "--workers", 1)
  assert done.returncode == 0, done.stderr
  assert "4 lines in quarantine (MediaError 1, RecordFault 3)" in done.stdout
  assert "train: 4 rows (multiple_choice 3, open_ended 1)" in done.stdout
  assert "T is 60 or 80, by the bucket" in done.stdout


def call(capsys, *args):
  parsed = command.parser().parse_args(list(map(str, args)))
  parsed.run(parsed)
  return capsys.readouterr().out


def test_check_notices_a_score_that_has_changed(built, capsys, monkeypatch):
  changed = quality.Score(1, 1, 0.5, True, 0.5, 0)
  monkeypatch.setattr(Rules, "score", lambda *given: changed)
  with pytest.raises(UserError, match="is stored with quality ., but scores 0.5 now"):
    call(capsys, "check", built[0])


def test_check_and_report(built, capsys):
  out = call(capsys, "check", built[0])
  assert "train: 4 rows are sound" in out and "test: 1 rows are sound" in out
  assert "| multiple_choice | 2 " in call(capsys, "report", built[0])
  figures = json.loads(call(capsys, "report", built[0], "--json"))
  assert figures["multiple_choice"]["kept"] == {"0.0": 1.0, "0.2": 0.5, "0.3": 0.5, "0.5": 0.5}
  assert figures["open_ended"]["mean"] is None
  assert "responses: 8, at most 3 per prompt" in out and "by the teacher's limit: 1 (" in out
  assert "clips with the same frames in both splits: 0" in out


def test_the_page_of_a_built_pool_counts_tokens(built, capsys, tmp_path):
  out = call(capsys, "report", built[0], "--html", tmp_path / "page")
  assert out.endswith(f"wrote {tmp_path / 'page' / 'index.html'}\n")
  assert "median tokens" in (tmp_path / "page" / "index.html").read_text()
  with pytest.raises(UserError, match="--against needs JSON Lines"):
    call(capsys, "check", built[0], "--against", "x.jsonl")
  with pytest.raises(UserError, match="is a folder; give one built pool, or JSON Lines"):
    call(capsys, "report", built[0], "x.jsonl")


def test_check_notices_a_changed_scorer(built, capsys, monkeypatch):
  built_by = quality.SCORER_VERSION
  monkeypatch.setattr(quality, "SCORER_VERSION", "0")
  with pytest.raises(UserError, match=f"scored by rules {built_by!r}, these are .0."):
    call(capsys, "check", built[0])


def test_a_command_that_fails_says_why_in_one_line_and_exits_with_2(
  world, tmp_path, capsys, monkeypatch
):
  jsonl = write(world / "failing.jsonl", [record("1"), {"id": "2"}])
  given = ["--jsonl", jsonl, "--out", tmp_path / "pool", "--tokenizer", world / "model"]
  line = ["pool", "build", *given, "--buckets", "500,80,4,36"]
  monkeypatch.setattr(sys, "argv", list(map(str, line)))
  with pytest.raises(SystemExit) as ended:
    cli.run(command.main)
  assert ended.value.code == 2
  (message,) = capsys.readouterr().err.splitlines()
  assert message.startswith("error: 1 of 2 lines are unusable")
  assert "line 2: record key 'task' is missing" in message


def test_bad_flags_are_named():
  for flag in ("1,2,3", "a,b,c,d"):
    with pytest.raises(UserError, match="four whole numbers P,T,F,S"):
      command.parser().parse_args(
        ["build", "--jsonl", "x", "--out", "y", "--tokenizer", "z", "--buckets", flag]
      )

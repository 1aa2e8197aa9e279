"""Cards, comparisons, tables and other harnesses' files, by the command line."""

import ast
import csv
import hashlib
import io
import json

import benchmark_files
import numpy as np
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import paper_tables
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.core.errors import UserError

FLIPPED = {"A": "B", "B": "C", "C": "D", "D": "A"}


def right_but(share):
  """Replies that are wrong in every `share`-th."""
  return lambda n, record: record["answer"] if n % share else FLIPPED[record["answer"]]


def test_a_card_says_how_it_was_obtained(tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "vlmevalkit-64f", changes=("frames=16",))
  replies = answer(folder, tmp_path / "r.json", right_but(4))
  card = scored(folder, replies, tmp_path / "card")
  assert card["protocol"]["frames"] == 16 and card["protocol"]["changed"] == ["frames"]
  assert card["run"]["weights"] == "step 7" and card["run"]["folder"] == "m/Qwen3-VL-4B"
  assert len(card["prompt_hash"]) == len(card["items_hash"]) == 16
  assert card["differs"] == [] and card["run"]["rollouts"] == {"temperature": 0.0}
  assert {"commit", "numpy", "transformers"} <= card["software"].keys()
  assert card["replies"]["samples"] == 24 and card["clips"] is None
  page = (tmp_path / "card" / "card.md").read_text("utf-8")
  assert page.startswith("# VideoMME: vlmevalkit-64f (frames=16)\n\n**VideoMME: 75.0 [")
  for words in ("24 of 24 items answered (the set has 2700)", "- frames: 16", "- judge: none",
                "changed by the user: frames", "## VideoMME by duration"):  # fmt: skip
    assert words in page
  with pytest.raises(UserError, match="has a card already; give --overwrite"):
    scored(folder, replies, tmp_path / "card")
  scored(folder, replies, tmp_path / "card", "--overwrite")


def test_the_same_replies_make_the_same_card(tmp_path):
  _, folder, _ = prepared("worldsense", tmp_path, "vlmevalkit-64f")
  replies = answer(folder, tmp_path / "r.json", right_but(3))
  for name in ("one", "two"):
    scored(folder, replies, tmp_path / name)
  for file in ("card.json", "card.md", "rows.jsonl"):
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_another_reading_is_scored_without_asking_again(tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "vlmevalkit-64f")
  replies = answer(
    folder, tmp_path / "r.json", lambda n, r: f"<think>A dog</think><answer>{r['answer']}</answer>"
  )
  plain = scored(folder, replies, tmp_path / "plain")
  change = ("--set", "extractor=span:videomme-regex")
  span = scored(folder, replies, tmp_path / "span", *change)
  share = np.mean([record["answer"] == "A" for record in records_of(folder)])
  assert plain["scores"]["VideoMME"]["mean"] == pytest.approx(share)
  assert span["scores"]["VideoMME"]["mean"] == 1
  assert span["protocol_title"] == "vlmevalkit-64f (extractor=span:videomme-regex)"
  with pytest.raises(UserError, match="--set frames: the replies are there; only extractor"):
    scored(folder, replies, tmp_path / "frames", "--set", "frames=8")


def test_replies_that_are_missing_or_of_another_set_are_refused(tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "vlmevalkit-64f")
  path = answer(folder, tmp_path / "r.json", right_but(4))
  whole = json.loads(path.read_text("utf-8"))
  part = tmp_path / "part.json"
  part.write_text(json.dumps(whole | {"prompts": whole["prompts"][1:]}), "utf-8")
  with pytest.raises(UserError, match="1 of 24 prompts have no response.*the first '001-1'"):
    scored(folder, part, tmp_path / "card")
  card = scored(folder, part, tmp_path / "card", "--allow-missing")
  assert card["missing"] == [{"id": "001-1", "reason": "no response"}] and card["answered"] == 23
  whole["prompts"][0]["id"] = "999-1"
  part.write_text(json.dumps(whole), "utf-8")
  with pytest.raises(UserError, match="answers '999-1' and 0 more that"):
    scored(folder, part, tmp_path / "card2")


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "holds no response"),
    ("no JSON", "line 1 is neither"),
    ('{"prompts": [{"id": "1"}]}', "has no greedy replies"),
    ('{"id": "1"}\n', "line 1 is neither"),
    ('{"id": "001-1", "responses": [{"text": "A"}]}\n' * 2, "'001-1' twice"),
  ],
)
def test_a_file_that_is_no_responses_is_refused(text, message, tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "vlmevalkit-64f")
  (tmp_path / "r.json").write_text(text, "utf-8")
  with pytest.raises(UserError, match=message):
    scored(folder, tmp_path / "r.json", tmp_path / "card")


def test_json_lines_of_a_collection_are_scored_too(tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "vlmevalkit-64f")
  lines = [
    record | {"responses": [{"text": record["answer"], "teacher": "big", "finish_reason": "stop"}]}
    for record in records_of(folder)
  ]
  path = tmp_path / "answers.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
  card = scored(folder, path, tmp_path / "card")
  assert card["scores"]["VideoMME"]["mean"] == 1 and card["run"]["checkpoint"] == "big"


def test_several_samples_give_pass_and_majority(tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "qwen-2fps")

  def reply(n, record):
    good, bad = record["answer"], FLIPPED[record["answer"]]
    return ([good] * 3 + [bad], [good, bad, bad, bad])[n % 2]

  path = answer(folder, tmp_path / "r.json", reply)
  card = scored(folder, path, tmp_path / "card", "--way", "sampled")
  assert card["scores"]["VideoMME"]["mean"] == pytest.approx(0.5)
  curves = card["curves"]
  assert curves["1"]["pass"]["mean"] == pytest.approx(0.5)
  assert curves["4"]["pass"]["mean"] == 1 and curves["4"]["majority"]["mean"] == 0.5
  assert curves["4"]["chance"] == pytest.approx(1 - 0.75**4)
  assert curves["2"]["pass"]["mean"] == pytest.approx((1 + 0.5) / 2)
  assert card["differs"] == []
  greedy = scored(folder, path, tmp_path / "greedy")
  assert greedy["differs"] == ["temperature 0 instead of 0.7"]
  assert "**Not as the protocol says: temperature 0 instead of 0.7.**" in (
    tmp_path / "greedy/card.md"
  ).read_text("utf-8")


def pool_of(folder, **changes):
  """What an evaluation says of a pool that was built as paper-64f has it."""
  of_file = hashlib.sha256((folder / "records.jsonl").read_bytes()).digest()
  sha256 = hashlib.sha256(of_file).hexdigest()
  sampling = {"fps": 2.0, "min_frames": 4, "max_frames": 768, "frames": 64, "times": "stamps"}
  video = {"style": "utils_video", "min_pixels": 131072, "max_pixels": 262144}
  image = {"style": "hf_image", "min_pixels": 4096, "max_pixels": 16777216}
  processor = {
    "sampling": sampling | changes.get("sampling", {}),
    "video": video | changes.get("video", {}),
    "image": image,
  }
  buckets = [[9000, 8192, 32, 512], [9000, changes.get("response", 8192), 32, 512]]
  return {"source_sha256": sha256, "processor": processor, "buckets": buckets}


@pytest.mark.parametrize(
  "changes, differs",
  [
    ({}, []),
    ({"sampling": {"frames": 16}}, ["frames 16 instead of 64"]),
    ({"sampling": {"frames": None}}, ["frames 0 instead of 64"]),
    ({"sampling": {"fps": 1.0}}, []),  # not used where frames are given
    ({"sampling": {"times": "index"}}, ["times index instead of stamps"]),
    ({"video": {"style": "hf_video"}}, ["video_style hf_video instead of utils_video"]),
    ({"video": {"max_pixels": 1024}}, ["video_max_pixels 1024 instead of 262144"]),
    ({"response": 512}, ["replies of at most 512 tokens instead of 8192"]),
  ],
)
def test_a_pool_that_is_not_the_protocols_is_told(changes, differs, tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "paper-64f")
  path = answer(folder, tmp_path / "r.json", right_but(2))
  whole = json.loads(path.read_text("utf-8"))
  path.write_text(json.dumps(whole | {"pool_identity": pool_of(folder, **changes)}), "utf-8")
  card = scored(folder, path, tmp_path / "card")
  assert card["differs"] == differs
  assert paper_tables.protocol_name(card) == "".join(
    ["paper-64f", *(f", but {d}" for d in differs)]
  )


def test_frames_do_not_matter_where_no_clip_is_shown(tmp_path):
  _, folder, _ = prepared("mathvista", tmp_path, "paper-64f")
  path = answer(folder, tmp_path / "r.json", lambda n, record: "7")
  pool = pool_of(folder, sampling={"frames": 2}, video={"max_pixels": 9}, response=16_384)
  pool["buckets"] = pool["buckets"][1:]
  whole = json.loads(path.read_text("utf-8")) | {"pool_identity": pool}
  path.write_text(json.dumps(whole), "utf-8")
  assert scored(folder, path, tmp_path / "card")["differs"] == []
  pool["processor"]["image"]["max_pixels"] = 9
  path.write_text(json.dumps(whole), "utf-8")
  card = scored(folder, path, tmp_path / "other")
  assert card["differs"] == ["image_max_pixels 9 instead of 16777216"]


def test_replies_to_the_prompts_of_another_protocol_are_refused(tmp_path):
  _, folder, _ = prepared("videomme", tmp_path, "paper-64f")
  other = tmp_path / "other"
  main(["prepare", "videomme", str(tmp_path / "set"), "--protocol", "qwen-2fps", "--out",
        str(other)])  # fmt: skip
  path = answer(folder, tmp_path / "r.json", right_but(2))
  whole = json.loads(path.read_text("utf-8")) | {"pool_identity": pool_of(folder)}
  path.write_text(json.dumps(whole), "utf-8")
  with pytest.raises(UserError, match="was not built from .*other/records.jsonl alone"):
    scored(other, path, tmp_path / "card")


def test_two_runs_are_compared_in_pairs(tmp_path, capsys):
  _, folder, _ = prepared("videomme", tmp_path, "vlmevalkit-64f")
  for name, share in (("one", 4), ("two", 2)):
    scored(folder, answer(folder, tmp_path / f"{name}.json", right_but(share)), tmp_path / name)
  main(["compare", str(tmp_path / "one"), str(tmp_path / "two")])
  shown = capsys.readouterr().out.splitlines()[-1]
  assert shown.startswith("VideoMME: 25.0 [") and shown.endswith("(vlmevalkit-64f)")
  scored(folder, tmp_path / "two.json", tmp_path / "other", "--set", "extractor=lmms-eval")
  with pytest.raises(UserError, match="rows of different protocols are not subtracted"):
    main(["compare", str(tmp_path / "one"), str(tmp_path / "other")])


def test_the_tables_have_the_papers_rows_and_ours(tmp_path, capsys):
  for frames in (8, 16):
    root = tmp_path / str(frames)
    root.mkdir()
    _, folder, _ = prepared("videomme", root, "paper-64f", changes=(f"frames={frames}",))
    replies = answer(
      folder, root / "r.json", lambda n, r: f"<think>x</think><answer>{right_but(3)(n, r)}</answer>"
    )
    scored(folder, replies, root / "card")
  cards = [str(tmp_path / str(frames) / "card") for frames in (8, 16)]
  capsys.readouterr()
  main(["table", *cards])
  shown = capsys.readouterr().out
  main_table, stars = shown.split("## V-STaR")
  assert "| R-MSD | paper's, not published | 65.3 | 58.6 | 49.2 | 58.8 | 73.2 | 72.1 | 49.3 |" in (
    main_table
  )
  assert "| Qwen3-VL-4B | paper's, not published | 21.3 | 18.5 | 22.3 | 5.0 |" in stars
  ours = [line for line in main_table.split("\n") if "step 7" in line]
  assert len(ours) == 2  # 8 and 16 frames are two protocols
  assert "| Qwen3-VL-4B step 7 | paper-64f (frames=8) | 66.7 [" in ours[0] and "]* | - |" in ours[0]
  assert "Rows of different protocols are not comparable" in shown
  main(["table", *cards, "--csv", "--out", str(tmp_path / "table.csv")])
  rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text("utf-8"))))
  assert {row["value"] for row in rows if row["column"] == "MathVerse"} == {
    "45.7", "46.8", "49.3", "-"
  }  # fmt: skip
  main(["table", str(tmp_path)])  # the cards below a folder
  assert capsys.readouterr().out.count("step 7 | paper-64f") == 2
  (tmp_path / "none").mkdir()
  with pytest.raises(UserError, match="no score card"):
    main(["table", str(tmp_path / "none")])


def test_a_score_of_some_items_alone_is_marked_by_itself():
  score = lambda n: {"mean": 1.0, "low": None, "high": None, "n": n}
  card = {"scores": {"When Chain1": score(1), "When Chain2": score(2_094)}, "differs": []}
  card |= {"answered": 2_094, "size": 2_094, "protocol_title": "paper-64f"}
  card["run"] = {"name": "mine", "way": "greedy"}
  *_, row = paper_tables.tables([card])["V-STaR"][1]
  assert row[2:] == ["100.0*", "100.0", "-", "-"]


@pytest.mark.parametrize(
  "name, file, list_of",
  [
    ("videomme", "q_Video-MME.tsv", "candidates"),
    ("worldsense", "q_WorldSense.tsv", "candidates"),
    ("longvideobench", "q_LongVideoBench.tsv", "candidates"),
    ("mlvu", "q_MLVU_MCQ.tsv", "candidates"),
    ("mathvista", "q_MathVista_MINI.tsv", "choices"),
    ("mathverse", "q_MathVerse_MINI.tsv", ""),
    ("videommmu", "q_VideoMMMU.tsv", "options"),
  ],
)
def test_predictions_in_the_form_of_vlmevalkit(name, file, list_of, tmp_path):
  _, folder, _ = prepared(name, tmp_path)
  said = lambda n, record: f'reply {n}\twith "quotes"\nand lines'
  replies = answer(folder, tmp_path / "r.json", said)
  out = ["--form", "vlmevalkit", "--model", "q", "--out", str(tmp_path / "x")]
  main(["export", str(folder), str(replies), *out])
  table = list(csv.DictReader(open(tmp_path / "x" / file, encoding="utf-8"), delimiter="\t"))
  assert [row["prediction"] for row in table] == [said(n, {}) for n in range(len(table))]
  assert all(row["question"] or row["problem_version"] == "Vision Only" for row in table)
  assert all(row["answer" if "answer" in row else "correct_choice"] for row in table)
  if list_of:
    read = json.loads if name == "videommmu" else ast.literal_eval
    assert all(isinstance(read(row[list_of]), list) for row in table)
    assert [row["index"] for row in table] or name == "mathvista"


@pytest.mark.parametrize(
  "name, tasks",
  [
    ("videomme", {"videomme": 24}),
    ("mlvu", {"mlvu_dev": 24}),
    ("videommmu", {f"video_mmmu_{t.lower()}": 8 for t in benchmark_files.TRACKS}),
  ],
)
def test_logs_in_the_form_of_lmms_eval(name, tasks, tmp_path):
  _, folder, _ = prepared(name, tmp_path, "lmms-eval-64f")
  replies = answer(folder, tmp_path / "r.json", lambda n, record: f"reply {record['id']}")
  out = ["--form", "lmms-eval", "--model", "q", "--out", str(tmp_path / "x")]
  main(["export", str(folder), str(replies), *out])
  records = iter(records_of(folder))
  for task, count in tasks.items():
    log = json.loads((tmp_path / "x" / f"{task}.json").read_text("utf-8"))
    assert log["model_configs"]["task"] == task and log["args"]["limit"] is None
    # As the model `from_log` reads it.
    found = {one["doc_id"]: one["resps"][0][0] for one in log["logs"]}
    assert found == {n: f"reply {next(records)['id']}" for n in range(count)}


def test_a_set_that_a_harness_lacks_or_a_part_is_not_exported(tmp_path):
  _, folder, _ = prepared("vstar", tmp_path)
  replies = answer(folder, tmp_path / "r.json", lambda n, record: "x")
  command = ["export", str(folder), str(replies), "--model", "q", "--out", str(tmp_path / "x")]
  with pytest.raises(UserError, match="VLMEvalKit has no V-STaR"):
    main([*command, "--form", "vlmevalkit"])
  with pytest.raises(UserError, match="lmms-eval has no V-STaR"):
    main([*command, "--form", "lmms-eval"])


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
  with pytest.raises(UserError, match="has no benchmark.json"):
    main(["score", str(tmp_path), "r.json"])
  _, folder, _ = prepared("videomme", tmp_path, "qwen-2fps")
  about = json.loads((folder / "benchmark.json").read_text("utf-8"))
  (folder / "benchmark.json").write_text(json.dumps(about | {"form": 99}), "utf-8")
  with pytest.raises(UserError, match="is of form 99, this reads 1; prepare it again"):
    main(["score", str(folder), "r.json"])

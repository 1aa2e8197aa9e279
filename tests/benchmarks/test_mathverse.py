"""MathVerse: files, versions, noisy truths, and its score computed a second time."""

import json
import re

import benchmark_files
import benchmark_media as media
import benchmark_pictures
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue, math_rules
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.preparing import protocol_of
from rmsd_jax.benchmarks.sets.mathverse import options_in
from rmsd_jax.core.errors import UserError

SET = catalogue.the("mathverse")
VERSIONS = benchmark_pictures.VERSIONS
# Right and wrong replies to the nine problems, by hand.
RIGHT = ("B", "(C)", "C, D", "False", "A. 40", "\\sqrt{12}", "35^\\circ", "12.5", "y = 1 + 2x")
WRONG = ("C", "A", "C", "True", "B", "\\sqrt{3}", "53", "25", "y = 2x")


@pytest.mark.parametrize("form", benchmark_files.FORMS["mathverse"])
def test_every_form_of_the_files_has_the_same_problems(form, tmp_path):
  rows = benchmark_pictures.write_mathverse(tmp_path, form)
  items = SET.read(tmp_path)
  assert [item.fields["problem_version"] for item in items] == [r["problem_version"] for r in rows]
  assert [item.cluster for item in items] == [row["problem_index"] for row in rows]
  assert [item.answer for item in items] == [row["answer"] for row in rows]
  assert items[0].options == ("3", "4", "5", "6")
  # Vision Only has no question; its options are those of the other versions.
  assert items[4].options == items[0].options and not items[25].options
  assert {item.fields["subject"] for item in items} == {
    "Plane Geometry", "Functions", "Solid Geometry"
  }  # fmt: skip


def test_text_only_is_kept_apart_and_its_metadata_read(tmp_path):
  rows, text_only = benchmark_pictures.verse_rows()
  media.put_json(tmp_path / "testmini_text_only.json", text_only)
  items = SET.read(tmp_path)
  assert len(items) == 9 and not any(item.media for item in items)
  assert items[0].fields["subfield"] == "Length"
  assert {item.fields["problem_version"] for item in items} == {"Text Only"}


@pytest.mark.parametrize(
  "question, options",
  [
    ("Find x.\nChoices:\nA:3\nB:4", ["3", "4"]),
    ("Find x.\nChoices:\nA. 3\nB. 4\nC. 5", ["3", "4", "5"]),
    ("Find x.\nChoice:\n(A) 3\n(B) 4", ["3", "4"]),
    ("Find x. Choices: A:3 B:4 C:5", ["3", "4", "5"]),
    ("Find x.\nChoices:\nA:3\nC:4", []),
    ("Find x.", []),
    ("", []),
  ],
)
def test_options_are_found_in_the_question(question, options):
  assert options_in(question) == options


def test_prompts_are_the_question_or_the_queries(tmp_path):
  benchmark_pictures.write_mathverse(tmp_path)
  item = SET.read(tmp_path)[0]
  text = lambda *changes: SET.asks(item, protocol_of(SET, "vlmevalkit-64f", changes))[0].text
  assert text() == item.question
  assert text("prompt=vlmevalkit-cot") == item.extra["query_cot"]
  assert text("prompt=lmms-eval") == item.extra["query_wo"]


@pytest.mark.parametrize("protocol", ["paper-64f", "lmms-eval-64f"])
def test_the_score_is_the_mean_over_five_versions(protocol, tmp_path):
  _, folder, rows = prepared("mathverse", tmp_path, protocol)
  right = []

  def reply(place, record):
    problem = int(rows[place]["problem_index"]) - 900
    good = (problem + place) % 3 != 0
    right.append(float(good))
    said = (RIGHT if good else WRONG)[problem]
    return (said, f"So x.\nThe answer is {said}", f"\\boxed{{{said}}}")[place % 3]

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  assert card["scores"]["MathVerse"]["mean"] == pytest.approx(sum(right) / 45)
  for version in VERSIONS:
    own = [x for x, row in zip(right, rows, strict=True) if row["problem_version"] == version]
    shown = card["breakdowns"]["MathVerse"]["problem_version"][version]
    assert shown["mean"] == pytest.approx(sum(own) / 9)
  assert card["unparsed"]["MathVerse"] == 0
  assert "by rules" in card["notes"][0]


def test_a_judge_says_what_rules_cannot(tmp_path, capsys):
  _, folder, _ = prepared("mathverse", tmp_path)
  replies = answer(folder, tmp_path / "r.json", lambda n, record: "two times root of three")
  main(["judge", str(folder), str(replies), "--out", str(tmp_path / "judge.jsonl")])
  assert "pool collect" in capsys.readouterr().out
  lines = records_of_file(tmp_path / "judge.jsonl")
  assert len(lines) == 45 and "True answer: B. 4\n" in lines[0]["asked"]["text"]
  for n, line in enumerate(lines):
    verdict = "1" if n < 9 else "Verdict: 0"
    line["responses"] = [{"text": verdict, "teacher": "judge-72b"}]
  write_records(tmp_path / "judged.jsonl", lines)
  judged = ("--judgements", str(tmp_path / "judged.jsonl"))
  card = scored(folder, replies, tmp_path / "card", *judged)
  assert card["scores"]["MathVerse"]["mean"] == pytest.approx(9 / 45)
  assert card["judge"] == "judge-72b"
  assert scored(folder, replies, tmp_path / "rules")["scores"]["MathVerse"]["mean"] == 0


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda lines: lines.pop(), "rated 44 of 45 replies, .* not; `pool collect` goes on where it"),
    (lambda lines: lines[0]["benchmark"].update(reply="0" * 16), "rated another reply to"),
    (lambda lines: lines[0]["benchmark"].update(record="x"), "rated 'x', which .* does not answer"),
    (lambda lines: lines[0]["responses"][0].update(text="On 0-1: 1"), "no rating of 1 .* 'On 0-1"),
    (lambda lines: lines[0]["responses"][0].update(text="2"), "no rating of 1 .*: '2'; --allow-mi"),
    (lambda lines: lines[0]["benchmark"].pop("most"), "line 1 holds no rating"),
  ],
  ids=["partly", "of another reply", "of another prompt", "two numbers", "too high", "an old file"],
)
def test_ratings_that_are_not_of_these_replies_are_refused(change, words, tmp_path):
  _, folder, _ = prepared("mathverse", tmp_path)
  replies = answer(folder, tmp_path / "r.json", lambda n, record: f"reply {n}")
  main(["judge", str(folder), str(replies), "--out", str(tmp_path / "judge.jsonl")])
  lines = records_of_file(tmp_path / "judge.jsonl")
  for line in lines:
    line["responses"] = [{"text": "<think>0 or 1?</think>1"}]
  change(lines)
  write_records(tmp_path / "judged.jsonl", lines)
  judged = ("--judgements", str(tmp_path / "judged.jsonl"))
  with pytest.raises(UserError, match=words):
    scored(folder, replies, tmp_path / "card", *judged)


def test_what_a_judge_said_that_is_no_rating_counts_as_wrong_where_that_is_allowed(tmp_path):
  _, folder, _ = prepared("mathverse", tmp_path)
  replies = answer(folder, tmp_path / "r.json", lambda n, record: f"reply {n}")
  main(["judge", str(folder), str(replies), "--out", str(tmp_path / "judge.jsonl")])
  lines = records_of_file(tmp_path / "judge.jsonl")
  for n, line in enumerate(lines):
    line["responses"] = [{"text": "Yes" if n < 2 else "1", "teacher": "big"}]
  write_records(tmp_path / "judged.jsonl", lines)
  judged = ("--judgements", str(tmp_path / "judged.jsonl"), "--allow-missing")
  card = scored(folder, replies, tmp_path / "card", *judged)
  assert card["scores"]["MathVerse"]["mean"] == pytest.approx(43 / 45)
  assert card["judge"] == "big (2 without a readable rating, counted as 0)"


@pytest.mark.parametrize(
  ("name", "options", "truth"),
  [
    ("mathvista", "Options:\nA. ", r"[A-H]\. .+|[-\d.\[]+"),
    ("mlvu", "Options:\nA. 0\nB. 3", r"[A-D]\. .+"),
    ("mathverse", "Choices:\nA:", "A. "),
  ],
)
def test_a_judge_is_told_the_options_and_the_truth_in_letter_and_words(
  name, options, truth, tmp_path
):
  _, folder, _ = prepared(name, tmp_path)
  replies = answer(folder, tmp_path / "r.json", lambda n, record: "(B)")
  main(["judge", str(folder), str(replies), "--out", str(tmp_path / "judge.jsonl")])
  asked = [line["asked"]["text"] for line in records_of_file(tmp_path / "judge.jsonl")]
  assert any(options in text for text in asked)
  assert any(re.search(rf"True answer: (?:{truth})", text) for text in asked)


def test_a_problem_without_its_picture_and_one_told_in_two_ways_are_refused(tmp_path):
  rows = benchmark_pictures.write_mathverse(tmp_path)
  path = tmp_path / "testmini.json"
  broken = [{k: v for k, v in row.items() if k != "image"} for row in json.loads(path.read_text())]
  path.write_text(json.dumps(broken))
  with pytest.raises(UserError, match="a row has no 'image'"):
    SET.read(tmp_path)
  benchmark_pictures.write_mathverse(tmp_path / "twice")
  path = tmp_path / "twice" / "testmini.json"
  twice = json.loads(path.read_text())
  path.write_text(json.dumps([*twice, twice[0]]))
  assert len(SET.read(tmp_path / "twice")) == len(rows)
  path.write_text(json.dumps([*twice, twice[0] | {"answer": "another"}]))
  with pytest.raises(UserError, match="stands there twice and differently"):
    SET.read(tmp_path / "twice")


def test_an_option_is_its_text_however_degrees_and_spaces_are_written():
  options = ("090^\\circ T", "180^\\circ T")
  for reply in ("090° T", "090°T", "$090^{\\circ}$ T", "The answer is 090° T."):
    assert math_rules.choice(reply, options, "AB") == "A", reply
  assert math_rules.mathverse_letters("090°T", options) == "A"


def records_of_file(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_records(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def test_problems_are_the_clusters(tmp_path):
  _, folder, _ = prepared("mathverse", tmp_path)
  clips = [record["clip"] for record in records_of(folder)]
  assert len(clips) == 45 and len(set(clips)) == 9

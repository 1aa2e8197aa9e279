"""MathVerse: files, versions, noisy truths, and its score computed a second time."""

import json

import benchmark_files
import benchmark_media as media
import benchmark_pictures
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.preparing import protocol_of
from rmsd_jax.benchmarks.sets.mathverse import options_in

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
  assert len(lines) == 45 and "True answer: B\n" in lines[0]["asked"]["text"]
  for n, line in enumerate(lines):
    verdict = "1" if n < 9 else "Verdict: 0"
    line["responses"] = [{"text": verdict, "teacher": "judge-72b"}]
  write_records(tmp_path / "judged.jsonl", lines)
  judged = ("--judgements", str(tmp_path / "judged.jsonl"))
  card = scored(folder, replies, tmp_path / "card", *judged)
  assert card["scores"]["MathVerse"]["mean"] == pytest.approx(9 / 45)
  assert card["judge"] == "judge-72b"
  assert scored(folder, replies, tmp_path / "rules")["scores"]["MathVerse"]["mean"] == 0


def records_of_file(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_records(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def test_problems_are_the_clusters(tmp_path):
  _, folder, _ = prepared("mathverse", tmp_path)
  clips = [record["clip"] for record in records_of(folder)]
  assert len(clips) == 45 and len(set(clips)) == 9

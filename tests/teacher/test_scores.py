"""Scores of JSON Lines: those of the scorer itself, in order; unusable lines are set aside."""

import json
import math
import os

import numpy as np
import pytest
import small_records
from small_pool import make_pool

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.progress import Progress
from rmsd_jax.tasks import Rules, answers, quality, registry, response
from rmsd_jax.teacher import scores, variance

TASKS = sorted(registry.TASKS)
RULES = Rules()
BAD = ["{", {"id": "x"}, small_records.of_task("ocr", id="no truth", answer="")]


def silent(total):
  return Progress(total, "", write=False)


def write(folder, values, **changes):
  jsonl = small_records.write(folder / "pool.jsonl", values)
  out = folder / "scores.jsonl"
  result = scores.write([str(jsonl)], out, RULES, silent, workers=1, **changes)
  return result, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Every task, two bad lines and a ground truth that its task refuses."""
  folder = tmp_path_factory.mktemp("scores")
  values = [*map(small_records.of_task, TASKS), *BAD]
  return folder, *write(folder, values, bad_share=0.5)


def test_every_response_is_scored_as_the_scorer_does_in_the_order_of_the_file(written):
  _, (responses, _), lines = written
  assert [line["id"] for line in lines] == TASKS and responses == 4 * len(TASKS)
  for line in lines:
    record = small_records.of_task(line["id"])
    assert (line["clip"], line["scorer"]) == (record["clip"], quality.SCORER_VERSION)
    for given, got in zip(record["responses"], line["responses"], strict=True):
      reason = given.get("finish_reason", "stop")
      known = (given["text"], record["answer"], record["options"], reason)
      fresh = RULES.score(line["task"], *known)
      assert (got["teacher"], got["finish_reason"]) == (given["teacher"], reason)
      for name in ("outer", "inner", "content", "valid", "quality"):
        assert got[name] == pytest.approx(getattr(fresh, name)), (line["id"], name)


def test_right_wrong_broken_and_cut_off_responses_are_told_apart(written):
  for line in written[2]:
    got = [one["quality"] for one in line["responses"]]
    expected = [1, 0, 0, 0] if registry.TASKS[line["task"]].closed else [1, 1, 0, 0]
    assert got == pytest.approx(expected), line["id"]
    assert [one["outer"] for one in line["responses"]] == [1, 1, 0, 1]


def test_rouge_is_of_open_ended_responses_alone_and_leaves_quality_alone(written):
  for line in written[2]:
    if registry.TASKS[line["task"]].closed:
      assert all("rouge" not in one for one in line["responses"])
      continue
    texts = [one["text"] for one in small_records.of_task(line["id"])["responses"]]
    truth = registry.TASKS[line["task"]].example.truth
    by_hand = [
      answers.rouge_l(response.parse(text).answer, truth) if response.parse(text).outer else 0
      for text in texts
    ]
    assert [one["rouge"] for one in line["responses"]] == pytest.approx(by_hand)
    assert by_hand[0] == 1 and by_hand[1] == 0 and line["responses"][1]["quality"] == 1


def test_unusable_lines_are_in_quarantine_with_their_reason(written):
  folder, (_, bad), _ = written
  kept = (folder / "scores.jsonl.quarantine.jsonl").read_text().splitlines()
  entries = {entry["line"]: entry["reason"] for entry in map(json.loads, kept)}
  assert sorted(entries) == [11, 12, 13] and bad == {"RecordFault": 3}
  assert "not JSON" in entries[11] and "'task' is missing" in entries[12]
  assert entries[13].startswith("answer '' is not")


def test_a_failure_leaves_no_scores_but_its_reasons(tmp_path):
  with pytest.raises(UserError, match="3 of 4 lines are unusable|2 of 4 lines are unusable"):
    write(tmp_path, [small_records.of_task("ocr"), *BAD])
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "pool.jsonl", "scores.jsonl.quarantine.jsonl"
  ]  # fmt: skip


class Deadly(Rules):
  """Rules under which a reply takes its process with it."""

  def answer_of(self, task, reply, options):
    if "crash" in reply:
      os._exit(7)
    return reply


def test_a_line_that_ends_its_process_costs_that_line_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(scores, "CHUNK", 3)
  values = [small_records.of_task("ocr", id=str(i)) for i in range(5)]
  values[1]["responses"][2]["text"] = "crash"
  path = small_records.write(tmp_path / "pool.jsonl", values)
  scored = scores.of_files([str(path)], "train", Deadly(), silent, workers=1)
  assert [question.id for question in scored.questions] == ["0", "2", "3", "4"]
  assert scored.unusable == (f"{path} line 2: its process died (exit code 7)", 1)


def test_what_exists_is_not_replaced(tmp_path):
  (tmp_path / "scores.jsonl").write_text("mine\n")
  with pytest.raises(UserError, match="scores.jsonl exists; give another name"):
    write(tmp_path, [small_records.of_task("ocr")])
  assert (tmp_path / "scores.jsonl").read_text() == "mine\n"
  with pytest.raises(UserError, match="no file .*nowhere.jsonl"):
    scores.write(["nowhere.jsonl"], tmp_path / "new.jsonl", RULES, silent, workers=1)
  with pytest.raises(UserError, match="0 workers; scoring needs at least 1"):
    scores.write(["nowhere.jsonl"], tmp_path / "new.jsonl", RULES, silent, workers=0)
  assert [path.name for path in tmp_path.glob("*new*")] == []


def test_a_report_studies_what_score_writes(written):
  folder, _, lines = written
  given = ([str(folder / "pool.jsonl")], "train", RULES, silent)
  scored = scores.of_files(*given, workers=2)
  assert [question.id for question in scored.questions] == TASKS
  assert (scored.unit, scored.unusable[1]) == ("characters", 3)
  assert "line 11: not JSON" in scored.unusable[0]
  for place, (question, line) in enumerate(zip(scored.questions, lines, strict=True)):
    assert question.quality_K.tolist() == [one["quality"] for one in line["responses"]]
    prompt = scored.prompt(place)
    record = small_records.of_task(line["id"])
    assert list(prompt.texts) == [one["text"] for one in record["responses"]]
    assert (prompt.answer, prompt.question) == (record["answer"], "What is it?")
    assert question.length_K.tolist() == [len(text) for text in prompt.texts]
    assert question.same_K.tolist() == [0, 1, 2, 0]  # the broken one has no answer


def test_only_the_split_is_studied(tmp_path):
  values = [small_records.of_task("ocr"), small_records.of_task("math", split="test")]
  path = str(small_records.write(tmp_path / "pool.jsonl", values))
  scored = scores.of_files([path], "test", RULES, silent, workers=1)
  assert [question.id for question in scored.questions] == ["math"]
  small_records.write(tmp_path / "pool.jsonl", values[:1])
  with pytest.raises(UserError, match="no record of split 'test' in .*; give another --split"):
    scores.of_files([path], "test", RULES, silent, workers=1)


def test_answers_are_alike_by_what_their_task_reads(tmp_path):
  """Math and text by what is written; case and white space do not matter."""
  same = {
    "multiple_choice": ("A", "A.", "(A)", "a"),
    "numerical": ("2", "2.0", "+2", " 2.00"),
    "temporal_grounding": ('{"time": [1, 2]}', '{"time":[1,2.0]}', '{"time": [1.0, 2]}', "x"),
    "tracking": ('{"boxes": {"0": [0, 0, 9, 9], "1": [0, 0, 9, 9]}}',
                 '{"boxes": {"1": [0,0,9,9], "0": [0,0,9,9.0]}}', "1", "2"),
    "math": ("0.5", "1/2", "0.5 ", "\\frac{1}{2}"),
  }  # fmt: skip
  wanted = {"multiple_choice": 1, "numerical": 1, "temporal_grounding": 1 / 2, "tracking": 1 / 6,
            "math": 1 / 6}  # fmt: skip
  values = [
    small_records.of_task(task, responses=[small_records.said(answer) for answer in answers])
    for task, answers in same.items()
  ]
  path = str(small_records.write(tmp_path / "pool.jsonl", values))
  found = scores.of_files([path], "train", RULES, silent, workers=1).questions
  assert {one.task: one.agreement for one in found} == pytest.approx(wanted)


def test_questions_without_a_response_are_counted(tmp_path):
  values = [small_records.of_task("ocr"), small_records.of_task("math", responses=[])]
  path = str(small_records.write(tmp_path / "pool.jsonl", values))
  scored = scores.of_files([path], "train", RULES, silent, workers=1)
  assert (len(scored.questions), scored.silent) == (1, 1)


def test_a_byte_order_mark_costs_no_question(tmp_path):
  values = [small_records.of_task("ocr"), small_records.of_task("math")]
  path = small_records.write(tmp_path / "pool.jsonl", values)
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
  scored = scores.of_files([str(path)], "train", RULES, silent, workers=1)
  assert len(scored.questions) == 2 and scored.prompt(0).question == "What is it?"


def test_a_built_pool_gives_its_stored_scores():
  stored = make_pool(7)
  scored = scores.of_pool(stored, RULES, silent)
  assert scored.unit == "tokens" and len(scored.questions) == 7
  for place, (question, row) in enumerate(zip(scored.questions, stored.stored, strict=True)):
    np.testing.assert_array_equal(question.quality_K, row.quality_K)
    np.testing.assert_array_equal(question.length_K, row.tokens_K)
    assert scored.prompt(place).texts == row.texts
  by_hand = [row.rouge_K for row in stored.stored if not row.closed]
  figures = variance.by_task(scored.questions)
  assert figures["all"]["rouge"] == pytest.approx(np.mean(by_hand)) and np.mean(by_hand) > 0
  assert math.isnan(figures["ocr"]["rouge"])

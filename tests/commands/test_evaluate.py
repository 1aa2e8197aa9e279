"""Evaluation: the file it writes, the scores in it, the blind bound, each kind of checkpoint."""

import itertools
import json

import numpy as np
import pytest
import tiny_run

from rmsd_jax import evaluate, train_sft
from rmsd_jax.core import intervals
from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import Rules

WAYS = ("greedy", "sampled")
TEST_PROMPTS = 16


def evaluated(monkeypatch, workdir, checkpoint, **changes) -> dict:
  c = tiny_run.config("evaluate", **changes)
  tiny_run.run(monkeypatch, evaluate, c, workdir, checkpoint=checkpoint)
  return json.loads((workdir / "evaluate" / f"{c.evaluate.name or 'test'}.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A stage 1 run of 2 steps."""
  workdir = tmp_path_factory.mktemp("evaluate") / "sft"
  with pytest.MonkeyPatch.context() as patch:
    c = tiny_run.config("sft", data__limit=8, save_every=1)
    tiny_run.run(patch, train_sft, c, workdir, stop_after=2)
  return workdir


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """The evaluation of the untrained weights."""
  with pytest.MonkeyPatch.context() as patch:
    return evaluated(patch, tmp_path_factory.mktemp("evaluate") / "base", "base")


def assert_interval(score):
  assert set(score) == {"mean", "low", "high", "n"}
  assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1


def test_ids_beyond_the_vocabulary_are_refused(trained, monkeypatch):
  """As in training: held against the model that reads them."""
  rows = tiny_run.model_of(tiny_run.config("evaluate")).config.text.vocab
  monkeypatch.setattr(
    "rmsd_jax.data.rows.fault_of", lambda row, vocabulary: f"has ids for {vocabulary}"
  )
  with pytest.raises(UserError, match=f"has ids for {rows}; copy the pool again"):
    evaluated(monkeypatch, trained, "latest", evaluate__name="ids")


def test_the_file_has_every_prompt_once_with_its_responses(base):
  assert (base["checkpoint"], base["step"], base["split"]) == ("base", None, "test")
  prompts = base["prompts"]
  assert len({row["id"] for row in prompts}) == len(prompts) == TEST_PROMPTS
  for row, (how, count) in itertools.product(prompts, (("greedy", 1), ("sampled", 2))):
    assert set(row) == {
      "id", "clip", "task", "question", "options", "answer", "closed", *WAYS
    }  # fmt: skip
    assert set(row[how]) == {"quality", "outer", "inner", "length", "finished", "text"}
    assert {len(values) for values in row[how].values()} == {count}
    for length, finished in zip(row[how]["length"], row[how]["finished"], strict=True):
      assert 1 <= length <= tiny_run.BUCKET.response
      assert finished or length == tiny_run.BUCKET.response


def test_the_summary_follows_from_the_prompts(base):
  prompts = base["prompts"]
  for how in WAYS:
    scores = base[how]
    assert_interval(scores["closed"])
    closed = [row for row in prompts if row["closed"]]
    assert scores["closed"]["n"] == len(closed) < len(prompts)
    assert set(scores["tasks"]) == {row["task"] for row in prompts}
    assert sum(task["n"] for task in scores["tasks"].values()) == len(prompts)
    for name in ("finished", "length"):
      wanted = np.mean([row[how][name] for row in prompts])
      assert scores[name] == pytest.approx(wanted)
    assert scores["format"] == 0  # random weights
  assert base["sampled"]["pass_at"] == {"1": 0.0, "2": 0.0} and "pass_at" not in base["greedy"]


def test_scores_and_pass_at_k_of_given_responses():
  """Two closed prompts of one clip and an open one, two responses each."""
  row = lambda task, closed, quality, inner: {
    "task": task,
    "clip": "a",
    "closed": closed,
    "sampled": {
      "quality": quality,
      "outer": [1.0, 1.0],
      "inner": inner,
      "length": [3, 5],
      "finished": [True, True],
    },
  }
  prompts = [
    row("numerical", True, [1.0, 0.0], [1.0, 1.0]),
    row("ocr", True, [0.2, 0.4], [1.0, 0.0]),
    row("open_ended", False, [0.0, 0.0], [1.0, 0.0]),
  ]
  scores = evaluate.summary(prompts, "sampled", 0.4, Rules())
  assert scores["closed"]["mean"] == pytest.approx(0.4)
  assert scores["format"] == pytest.approx(4 / 6)
  assert scores["tasks"]["open_ended"]["mean"] == 0.5  # no metric: the share in its format
  assert scores["pass_at"] == {"1": 0.5, "2": 1.0}
  assert scores["length"] == 4 and scores["finished"] == 1
  ninth = float(np.float32(0.9))  # as qualities are stored; below the 0.9 of a config
  scores = evaluate.summary([row("ocr", True, [ninth, 0.0], [1.0, 1.0])], "sampled", 0.9, Rules())
  assert scores["pass_at"]["1"] == 0.5
  with pytest.raises(UserError, match="closed-ended prompts, and there is none"):
    evaluate.blind(prompts[2:], Rules())
  scores = evaluate.summary(prompts[2:], "sampled", 0.4, Rules())  # of open-ended prompts alone
  assert np.isnan(scores["closed"]["mean"]) and "pass_at" not in scores and scores["format"] == 0.5


def test_checkpoints_are_restored_by_name(trained, base, monkeypatch):
  latest = evaluated(monkeypatch, trained, "latest")
  assert (latest["checkpoint"], latest["step"]) == ("latest", 2)
  assert [row["id"] for row in latest["prompts"]] == [row["id"] for row in base["prompts"]]
  assert latest["greedy"]["length"] != base["greedy"]["length"]
  with pytest.raises(UserError, match="step 2 -> step 1; give another --config.evaluate.name"):
    evaluated(monkeypatch, trained, "1")
  with pytest.raises(UserError, match="something else: limit 0 -> 4;"):
    evaluated(monkeypatch, trained, "latest", data__limit=4)
  first = evaluated(monkeypatch, trained, "1", evaluate__name="first")
  assert first["step"] == 1 and first["prompts"] != latest["prompts"]
  written = (trained / "evaluate").glob("*.json")
  assert sorted(path.name for path in written) == ["first.json", "test.json"]


@pytest.mark.parametrize("checkpoint, words", [("9", "step 9"), ("best", "no checkpoint has")])
def test_a_missing_checkpoint_is_refused(trained, checkpoint, words, monkeypatch):
  with pytest.raises(UserError, match=words):
    evaluated(monkeypatch, trained, checkpoint, evaluate__name="none")


def test_a_folder_without_a_run_is_refused(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="does not hold any step"):
    evaluated(monkeypatch, tmp_path, "latest")


# the blind bound


CLOSED = [
  ("multiple_choice", ["A. red", "B. blue"], ["A", "B", "B"]),
  ("numerical", [], [3, 3, 7, 9]),
  ("temporal_grounding", [], [{"time": [0, 2]}, {"time": [1, 5]}, {"time": [1, 4]}]),
]


def test_the_blind_bound_is_the_best_of_all_constant_answers():
  rows = [
    {"task": task, "options": options, "answer": answer, "closed": True, "clip": str(i)}
    for task, options, answers in CLOSED
    for i, answer in enumerate(answers)
  ]
  graded = evaluate.blind([*rows, {"task": "open_ended", "closed": False}], Rules())
  assert len(graded) == len(rows)
  for name, _, answers in CLOSED:
    asked = [row for row in rows if row["task"] == name]
    spelled = [a if isinstance(a, str) else json.dumps(a) for a in answers]
    best = 0.0
    for answer in spelled:
      text = f"<think>No clip.</think><answer>{answer}</answer>"
      terms = [Rules().terms(name, text, row["answer"], row["options"]) for row in asked]
      best = max(best, np.mean([content * (inner == 1) for _, inner, content in terms]))
    got = [row["greedy"]["quality"][0] for row in graded if row["task"] == name]
    assert np.mean(got) == pytest.approx(best)
    assert len({row["greedy"]["text"][0] for row in graded if row["task"] == name}) == 1


def test_blind_needs_no_model_and_writes_the_same_file(tmp_path, monkeypatch):
  result = evaluated(monkeypatch, tmp_path, "blind", model__folder="nowhere")
  assert "sampled" not in result and result["greedy"]["format"] == 1
  assert_interval(result["greedy"]["closed"])
  assert result["greedy"]["closed"]["mean"] > 0
  values = [row["greedy"]["quality"][0] for row in result["prompts"]]
  wanted = intervals.mean_interval(values, [row["clip"] for row in result["prompts"]])
  assert result["greedy"]["closed"] == wanted

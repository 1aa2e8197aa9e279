"""The discriminator on held-out replies: its scores, how it ranks, and the evaluation that asks."""

import json

import jax
import numpy as np
import pytest
import tiny_run
from sklearn.metrics import roc_auc_score

from rmsd_jax import evaluate, train_rl, train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import loader, store
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.rollouts import discrimination


def prompt(score, quality=(), teacher=None, task="ocr", **changes) -> dict:
  """A graded prompt of a clip of its own task."""
  sampled = {"score": score, "quality": list(quality) or [0.0] * len(score)}
  teacher = teacher or {"score": [], "length": [], "ending": []}
  row = {"clip": task, "task": task, "closed": True, "sampled": sampled, "teacher": teacher}
  sampled |= {"length": [10] * len(score), "ending": [[1, 2]] * len(score)}
  return row | changes


def test_right_over_wrong_is_the_area_under_the_roc_curve_of_what_ended():
  rng = np.random.default_rng(0)
  score, quality = rng.normal(size=9), np.float32([0.9, 0, 0.5, 0.2, 0.9, 1, 0, 0.8, 0.3])
  wanted = roc_auc_score(quality >= 0.5, score)
  got = discrimination.right_over_wrong(prompt(score.tolist(), quality.tolist()), 0.5)
  assert got == pytest.approx(wanted)
  # The tenth was cut off; 0.9 of float32 is right where 0.9 is asked for.
  row = prompt([*score.tolist(), None], [*quality.tolist(), 0.0])
  assert discrimination.right_over_wrong(row, 0.5) == pytest.approx(wanted)
  assert discrimination.right_over_wrong(row, 0.9) == pytest.approx(
    roc_auc_score(quality >= np.float32(0.9), score)
  )
  assert np.isnan(discrimination.right_over_wrong(row, 2.0))  # nobody is right


def test_truths_that_are_unknown_have_no_pairs():
  row = prompt([0.1, 0.2, 0.3])
  assert discrimination.among_sampled(row, [1.0, np.nan, 0.5]) == 0.0
  assert np.isnan(discrimination.among_sampled(row, [1.0, np.nan, np.nan]))


def test_the_favourite_is_held_against_the_mean_of_those_that_have_a_score():
  row = prompt([0.1, 0.4, 0.4, None], [0.9, 0.6, 0.0, 0.0])
  assert discrimination.best_over_mean(row) == pytest.approx(0.3 - 0.5)
  assert discrimination.best_over_mean(prompt([2.0, 1.0], [1.0, 0.0])) == 0.5
  assert np.isnan(discrimination.best_over_mean(prompt([None, None])))


def test_a_teacher_over_the_student_and_of_those_alike():
  teacher = {"score": [0.5, 0.1], "length": [11, 10], "ending": [[1, 2], [7, 7]]}
  row = prompt([0.2, 0.7, None], teacher=teacher)
  row["sampled"]["length"] = [10, 30, 10]
  # 0.5 and 0.1 against 0.2 and 0.7: one of four.
  assert discrimination.teacher_over_student(row) == 0.25
  # 11 and 10 differ by less than a tenth of the longer; others are longer or end otherwise.
  assert discrimination.teacher_over_student(row, alike=True) == 1.0
  row["teacher"]["length"] = [12, 10]
  assert np.isnan(discrimination.teacher_over_student(row, alike=True))
  assert np.isnan(discrimination.teacher_over_student(prompt([0.2])))  # no teacher answered


def test_the_ranking_is_by_task_and_leave_out_prompts_without_pairs():
  rows = [
    prompt([0.1, 0.2], [0.0, 1.0]),
    prompt([0.1, 0.2], [1.0, 0.0], task="math"),
    prompt([0.1, 0.2], [1.0, 1.0], task="math"),
    prompt([0.3, 0.2], task="open_ended", closed=False,
           teacher={"score": [0.9], "length": [10], "ending": [[1, 2]]}),
  ]  # fmt: skip
  found = discrimination.ranking(rows, 0.5)
  assert (found["right"]["mean"], found["right"]["n"]) == (0.5, 2)
  assert {task: x["mean"] for task, x in found["tasks"].items()} == {"math": 0.0, "ocr": 1.0}
  assert found["tasks"]["math"]["n"] == 1
  assert (found["best"]["mean"], found["best"]["n"]) == (0.0, 3)
  assert (found["teacher"]["mean"], found["teacher"]["n"]) == (1.0, 1)
  assert found["teacher_alike"]["mean"] == 1.0
  assert discrimination.line(found).startswith(
    "right above wrong 0.500 [0.000, 1.000] of 2 prompts"
  )


@pytest.fixture(scope="module")
def stage_2(tmp_path_factory):
  """A run of 4 steps, whose discriminator has learned in the first three."""
  workdir = tmp_path_factory.mktemp("discrimination") / "rl"
  c = tiny_run.config("rl", steps=4, reward__score="raw", discriminator__probe_every=0)
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.run(patch, train_rl, c, workdir)
  return workdir, c


def evaluated(monkeypatch, workdir, checkpoint="latest", **changes) -> dict:
  changes = {"evaluate__discriminator": True, "evaluate__samples": 4} | changes
  c = tiny_run.config("evaluate", **changes)
  tiny_run.run(monkeypatch, evaluate, c, workdir, checkpoint=checkpoint)
  return json.loads((workdir / "evaluate" / f"{c.evaluate.name or 'test'}.json").read_text())


def test_an_evaluation_has_the_scores_that_each_response_gets_alone(stage_2, monkeypatch, capsys):
  workdir, c = stage_2
  found = evaluated(monkeypatch, workdir)
  assert "discriminator: right above wrong" in capsys.readouterr().out
  assert found["discriminator"] is True and set(found["discrimination"]) == {
    "right", "tasks", "best", "teacher", "teacher_alike"
  }  # fmt: skip
  state = tiny_run.restored(workdir, train_rl, c)
  critic = jax.jit(Discriminator(tiny_run.model_of(c)))
  params = {**state["frozen"], **state["discriminator"]}
  pool = store.open_pool(c.data.pool, "test")
  rows = {row["id"]: row for row in found["prompts"]}
  compared = 0
  for batch in loader.sequential(pool, batch_size=8, k=4):
    score_BK = critic(params, batch.groups)
    for info, score_K, present_K in zip(batch.info, score_BK, batch.present_BK, strict=True):
      teacher = rows[info["id"]]["teacher"]
      np.testing.assert_allclose(teacher["score"], score_K[present_K], atol=2e-5)
      compared += len(teacher["score"])
  assert compared > 40
  for row in rows.values():
    assert [one is None for one in row["sampled"]["score"]] == [
      not ended for ended in row["sampled"]["finished"]
    ]
    assert len(row["sampled"]["ending"]) == 4 and len(row["sampled"]["text"]) == 4
  assert any(one is not None for row in rows.values() for one in row["sampled"]["score"])
  assert found["discrimination"]["teacher"]["n"] > 0


def test_a_score_is_of_the_text_that_was_sampled(stage_2, monkeypatch):
  """A reply that was sampled twice has one score, others have others."""
  rows = evaluated(monkeypatch, stage_2[0], evaluate__name="hot", rollouts__temperature=0.3)[
    "prompts"
  ]
  other = 0
  for row in rows:
    of = [
      (text, score)
      for text, score in zip(row["sampled"]["text"], row["sampled"]["score"], strict=True)
      if score is not None
    ]
    by_text = {}
    for text, score in of:
      by_text.setdefault(text, []).append(score)
    other += len({round(scores[0], 4) for scores in by_text.values()}) - 1 if by_text else 0
    assert all(max(scores) - min(scores) < 1e-5 for scores in by_text.values())
  assert other > 0


def test_scores_are_graded_anew_and_go_with_the_replies(stage_2, monkeypatch):
  workdir, _ = stage_2
  first = evaluated(monkeypatch, workdir, evaluate__name="anew")
  c = tiny_run.config("evaluate", evaluate__name="anew", evaluate__samples=4,
                      evaluate__discriminator=True, evaluate__pass_above=0.9)  # fmt: skip
  tiny_run.run(monkeypatch, evaluate, c, workdir, checkpoint="latest", rescore=True)
  again = json.loads((workdir / "evaluate" / "anew.json").read_text())
  assert again["pass_above"] == 0.9 and again["prompts"] == first["prompts"]
  with pytest.raises(UserError, match="discriminator True -> False"):
    evaluated(monkeypatch, workdir, evaluate__name="anew", evaluate__discriminator=False)


def test_a_run_without_a_discriminator_is_refused(tmp_path, monkeypatch):
  c = tiny_run.config("sft", data__limit=8, save_every=1)
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "sft", stop_after=1)
  with pytest.raises(UserError, match="step 1 of .* has no discriminator; give a run of stage 2"):
    evaluated(monkeypatch, tmp_path / "sft")


@pytest.mark.parametrize("checkpoint", ["base", "blind"])
def test_weights_without_a_discriminator_are_refused(checkpoint, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=f"--checkpoint={checkpoint} has no discriminator"):
    evaluated(monkeypatch, tmp_path, checkpoint)
  with pytest.raises(UserError, match="scores sampled replies; give evaluate.samples"):
    evaluated(monkeypatch, tmp_path, evaluate__samples=0)

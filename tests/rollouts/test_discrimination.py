"""The discriminator on held-out replies: its scores, how it ranks, and the evaluation that asks."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tiny_run
from sklearn.metrics import roc_auc_score

from rmsd_jax import evaluate, train_rl, train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import loader, reply_journal, store
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.rollouts import discrimination
from rmsd_jax.tasks import Rules
from rmsd_jax.training import state as state_lib

right_over_wrong = functools.partial(discrimination.right_over_wrong, rules=Rules())


def prompt(score, quality=(), teacher=None, task="ocr", **changes) -> dict:
  """A graded prompt of a clip of its own task, whose replies keep their format."""
  sampled = {"score": score, "quality": list(quality) or [0.0] * len(score)}
  sampled |= {"outer": [1.0] * len(score), "inner": [1.0] * len(score)}
  teacher = {"score": [], "length": [], "ending": [], "same": []} | (teacher or {})
  teacher["same"] = teacher["same"] or [[]] * len(teacher["score"])
  row = {"clip": task, "task": task, "closed": True, "sampled": sampled, "teacher": teacher}
  sampled |= {"length": [10] * len(score), "ending": [[1, 2]] * len(score)}
  return row | changes


def test_right_over_wrong_is_the_area_under_the_roc_curve_of_what_ended():
  rng = np.random.default_rng(0)
  score, quality = rng.normal(size=9), np.float32([0.9, 0, 0.5, 0.2, 0.9, 1, 0, 0.8, 0.3])
  wanted = roc_auc_score(quality >= 0.5, score)
  got = right_over_wrong(prompt(score.tolist(), quality.tolist()), 0.5)
  assert got == pytest.approx(wanted)
  # The tenth was cut off; 0.9 of float32 is right where 0.9 is asked for.
  row = prompt([*score.tolist(), None], [*quality.tolist(), 0.0])
  assert right_over_wrong(row, 0.5) == pytest.approx(wanted)
  assert right_over_wrong(row, 0.9) == pytest.approx(
    roc_auc_score(quality >= np.float32(0.9), score)
  )
  assert np.isnan(right_over_wrong(row, 2.0))  # nobody is right


def test_a_broken_format_is_told_apart_from_a_wrong_answer():
  """A score that knows formats alone knows nothing of right and wrong."""
  row = prompt([0.9, 0.9, 0.1, 0.1], [1.0, 0.0, 0.0, 0.0])
  row["sampled"]["inner"] = [1.0, 1.0, 0.0, 1.0]
  row["sampled"]["outer"] = [1.0, 1.0, 1.0, 0.0]
  assert right_over_wrong(row, 0.5) == 0.5
  assert discrimination.valid_over_invalid(row, Rules()) == 1.0
  assert np.isnan(discrimination.valid_over_invalid(prompt([0.1, 0.2]), Rules()))


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
  # The teacher's first is the student's second, token by token: no pair.
  row["teacher"]["same"] = [[1], []]
  assert discrimination.teacher_over_student(row) == pytest.approx(1 / 3)
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
  found = discrimination.ranking(rows, 0.5, Rules())
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
    "right", "tasks", "valid", "best", "teacher", "teacher_alike"
  }  # fmt: skip
  state = tiny_run.restored(workdir, train_rl, c)
  critic = jax.jit(Discriminator(tiny_run.model_of(c)))
  params = {**state["frozen"], **state["discriminator"]}
  pool = store.open_pool(c.data.pool, "test")
  rows = {row["id"]: row for row in found["prompts"]}
  compared = 0
  for batch in loader.sequential(pool, batch_size=8, k=4):
    score_BK = critic(params, batch.groups)
    for b, info in enumerate(batch.info):
      teacher, present_K = rows[info["id"]]["teacher"], batch.present_BK[b]
      np.testing.assert_allclose(teacher["score"], score_BK[b][present_K], atol=2e-5)
      length_K = batch.groups.response_length_BR[b][present_K].tolist()
      ids_KT = batch.groups.responses_BRT[b][present_K]
      assert teacher["length"] == length_K
      assert teacher["ending"] == [
        ids_T[length - 5 : length - 1].tolist()
        for ids_T, length in zip(ids_KT, length_K, strict=True)
      ]
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
  with pytest.raises(
    UserError, match="discriminator True -> False.*; give --config.evaluate.discriminator=True"
  ):
    evaluated(monkeypatch, workdir, evaluate__name="anew", evaluate__discriminator=False)


def test_replies_go_on_only_with_the_same_scores(stage_2, monkeypatch):
  """A journal that was begun with other responses of the teacher, or another discriminator."""
  workdir, _ = stage_2
  write, written = reply_journal.ReplyJournal.add, []

  def add(self, lines, seconds=0.0):
    write(self, lines, seconds)
    written.append(lines)
    raise UserError("cut")

  with monkeypatch.context() as patch, pytest.raises(UserError, match="cut"):
    patch.setattr(reply_journal.ReplyJournal, "add", add)
    evaluated(patch, workdir, evaluate__name="cut")
  assert len(written) == 1
  with pytest.raises(UserError, match="responses 4 -> 1"):
    evaluated(monkeypatch, workdir, evaluate__name="cut", data__responses=1)
  load = state_lib.load_discriminator
  with monkeypatch.context() as patch, pytest.raises(UserError, match="of other weights"):
    other = lambda *given: jax.tree.map(lambda x: x * 1.001, load(*given))
    patch.setattr(state_lib, "load_discriminator", other)
    evaluated(patch, workdir, evaluate__name="cut")
  whole = evaluated(monkeypatch, workdir, evaluate__name="cut")
  assert whole["prompts"] == evaluated(monkeypatch, workdir, evaluate__name="whole")["prompts"]


def test_held_out_prompts_need_no_teacher(stage_2, monkeypatch):
  """A pool without responses: right and wrong are known all the same."""
  monkeypatch.setattr(evaluate, "open_pool", lambda *given: _without(store.open_pool(*given)))
  found = evaluated(monkeypatch, stage_2[0], evaluate__name="alone")
  assert {len(row["teacher"]["score"]) for row in found["prompts"]} == {0}
  assert found["discrimination"]["teacher"]["n"] == 0


def _without(pool):
  return dataclasses.replace(pool, metadata=pool.metadata | {"k": 0})


def test_an_evaluation_of_before_goes_on(stage_2, monkeypatch):
  """Its file does not say that no discriminator was asked."""
  workdir, _ = stage_2
  first = evaluated(monkeypatch, workdir, evaluate__name="old", evaluate__discriminator=False)
  asked = workdir / "evaluate" / "old" / "asked.json"
  told = json.loads(asked.read_text())
  for name in ("discriminator", "responses"):
    del told["asked"][name]
  asked.write_text(json.dumps(told))
  (workdir / "evaluate" / "old.json").unlink()
  again = evaluated(monkeypatch, workdir, evaluate__name="old", evaluate__discriminator=False)
  assert again == first and "discrimination" not in first
  with pytest.raises(UserError, match="-> True.*; give --config.evaluate.discriminator=False"):
    evaluated(monkeypatch, workdir, evaluate__name="old")


def test_a_score_that_is_not_finite_is_refused(stage_2, monkeypatch):
  load = state_lib.load_discriminator
  lost = lambda *given: jax.tree.map(lambda x: x * np.nan, load(*given))
  monkeypatch.setattr(state_lib, "load_discriminator", lost)
  with pytest.raises(UserError, match="scores are not finite; give an earlier --checkpoint"):
    evaluated(monkeypatch, stage_2[0], evaluate__name="nan")


def test_a_run_without_a_discriminator_is_refused(tmp_path, monkeypatch):
  """Before anything is written that the command without it would stumble over."""
  c = tiny_run.config("sft", data__limit=8, save_every=1)
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "sft", stop_after=1)
  with pytest.raises(UserError, match="step 1 of .* has no discriminator; give a run of stage 2"):
    evaluated(monkeypatch, tmp_path / "sft")
  assert not (tmp_path / "sft" / "evaluate").exists()


@pytest.mark.parametrize("checkpoint", ["base", "blind"])
def test_weights_without_a_discriminator_are_refused(checkpoint, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=f"--checkpoint={checkpoint} has no discriminator"):
    evaluated(monkeypatch, tmp_path, checkpoint)
  with pytest.raises(UserError, match="scores sampled replies; give evaluate.samples"):
    evaluated(monkeypatch, tmp_path, evaluate__samples=0)

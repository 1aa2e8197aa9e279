"""An evaluation that is killed goes on where it stopped; stored replies are graded anew."""

import json
import random
import shutil

import drills
import numpy as np
import pytest
import tiny_run

from rmsd_jax import evaluate
from rmsd_jax.benchmarks.answered import read_responses
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import epochs, loader, reply_journal, store
from rmsd_jax.data.reply_journal import ReplyJournal

CONFIG = dict(batch=3, data__limit=11, evaluate__samples=2)  # the last of 4 batches has 2 prompts


class Killed(BaseException):
  """What a test ends an evaluation by, between two batches."""


def evaluated(monkeypatch, workdir, checkpoint="base", after=None, rescore=False, **changes):
  """The bytes of the result; with `after`, of an evaluation that is killed after so many batches,
  the files of its journal."""
  c = tiny_run.config("evaluate", **CONFIG | changes)
  add = ReplyJournal.add
  left = [after]

  def counted(self, lines, seconds):
    if left[0] == 0:
      raise Killed
    add(self, lines, seconds)
    left[0] = left[0] and left[0] - 1

  with monkeypatch.context() as patch:
    patch.setattr(ReplyJournal, "add", counted)
    try:
      tiny_run.run(patch, evaluate, c, workdir, checkpoint=checkpoint, rescore=rescore)
    except Killed:
      return sorted(path.name for path in (workdir / "evaluate" / "test").glob("part-*"))
  return (workdir / "evaluate" / "test.json").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The work folder of an evaluation that was not interrupted, and its result."""
  workdir = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    return workdir, evaluated(patch, workdir)


@pytest.fixture
def copied(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / "run")
  return tmp_path / "run"


def test_a_killed_evaluation_goes_on_where_it_stopped(whole, tmp_path, monkeypatch):
  """Twice killed: no batch is answered twice, and the result is the same, byte for byte."""
  answered = []
  ask = evaluate.answered

  def counted(ways, params, mesh, key, batch, tokenizer):
    answered.append(batch.row_B)
    return ask(ways, params, mesh, key, batch, tokenizer)

  monkeypatch.setattr(evaluate, "answered", counted)
  first = evaluated(monkeypatch, tmp_path, after=1)
  second = evaluated(monkeypatch, tmp_path, after=2)
  assert first == ["part-00000-row-000000000.jsonl"] and len(second) == 3
  assert not (tmp_path / "evaluate" / "test.json").exists()
  before = len(answered)  # 1 and 2, and in each the batch that was lost
  assert before == 5
  assert evaluated(monkeypatch, tmp_path) == whole[1]
  assert len(answered) == before + 1
  np.testing.assert_array_equal(answered[-1], [9, 10, 9])  # 2 prompts, and the first again
  assert evaluated(monkeypatch, tmp_path) == whole[1]
  assert len(answered) == before + 1


def test_a_sampled_reply_does_not_depend_on_the_batch(whole, tmp_path, monkeypatch):
  other = json.loads(evaluated(monkeypatch, tmp_path, batch=8, data__limit=0))
  texts = {row["id"]: row["sampled"]["text"] for row in other["prompts"]}
  wanted = {row["id"]: row["sampled"]["text"] for row in json.loads(whole[1])["prompts"]}
  assert len(texts) > len(wanted) and wanted == {id_: texts[id_] for id_ in wanted}
  assert len({text for pair in wanted.values() for text in pair}) > 1


def tear(path):
  path.write_bytes(path.read_bytes()[:-30])


def flip(path):
  content = bytearray(path.read_bytes())
  content[content.index(b'"text": ["') + 12] ^= 1
  path.write_bytes(content)


def append(path):
  with path.open("ab") as file:
    file.write(b'{"row": 3, "id"')


@pytest.mark.parametrize("damage", [tear, flip, append, lambda path: path.write_bytes(b"")])
def test_a_damaged_batch_is_answered_again(copied, whole, damage, monkeypatch, capfd):
  (copied / "evaluate" / "test.json").unlink()
  part = copied / "evaluate" / "test" / "part-00000-row-000000003.jsonl"
  before = part.read_bytes()
  damage(part)
  with pytest.raises(UserError, match="no whole replies to 3 of 11 prompts; run the same command"):
    evaluated(monkeypatch, copied, rescore=True)
  with pytest.raises(UserError, match="000000003.jsonl is damaged; run the evaluation again"):
    read_responses(copied / "evaluate" / "test")
  assert evaluated(monkeypatch, copied) == whole[1]
  assert f"answered again: {part.name}" in capfd.readouterr().err
  but_seconds = lambda content: content.splitlines()[:-1]
  assert but_seconds(part.read_bytes()) == but_seconds(before)


def test_rescoring_is_grading_and_needs_neither_pool_nor_model(copied, whole, monkeypatch):
  for module, name in ((evaluate, "open_pool"), (evaluate.hf, "load_model"),
                       (evaluate.sharding, "put_batch")):  # fmt: skip
    monkeypatch.setattr(module, name, None)
  assert evaluated(monkeypatch, copied, rescore=True) == whole[1]
  (copied / "evaluate" / "test.json").unlink()
  assert evaluated(monkeypatch, copied, "latest", rescore=True) != whole[1]  # by its name alone
  result = json.loads((copied / "evaluate" / "test.json").read_text())
  assert {**result, "checkpoint": "base"} == json.loads(whole[1]) and result["weights"] == "base"
  with pytest.raises(UserError, match="add --rescore to grade its replies anew"):
    monkeypatch.undo()
    evaluated(monkeypatch, copied, evaluate__pass_above=0.25)
  result = json.loads(evaluated(monkeypatch, copied, rescore=True, evaluate__pass_above=0.25))
  assert result["pass_above"] == 0.25
  result = json.loads(evaluated(monkeypatch, copied, rescore=True, tasks__reading="lenient"))
  assert result["rules"] != json.loads(whole[1])["rules"]
  assert [row["greedy"]["text"] for row in result["prompts"]] == [
    row["greedy"]["text"] for row in json.loads(whole[1])["prompts"]
  ]


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(rollouts__temperature=0.7), "rollouts.temperature 0.8 -> 0.7"),
    (dict(rollouts__top_k=5), "rollouts.top_k 0 -> 5"),
    (dict(evaluate__samples=3), "samples 2 -> 3"),
    (dict(seed=5), "seed 0 -> 5"),
    (dict(data__limit=12), "limit 11 -> 12"),
    (dict(data__blind=True), "blind False -> True"),
  ],
)
@pytest.mark.parametrize("rescore", [False, True])
def test_other_sampling_is_refused(copied, changes, words, rescore, monkeypatch):
  """By the stored replies alone: no result was written yet."""
  (copied / "evaluate" / "test.json").unlink()
  with pytest.raises(UserError) as refused:
    evaluated(monkeypatch, copied, rescore=rescore, **changes)
  assert f"something else: {words}; give another" in str(refused.value)
  assert "\n" not in str(refused.value)


def test_other_pools_and_weights_are_refused(copied, monkeypatch):
  (copied / "evaluate" / "test.json").unlink()
  identity = store.Pool.identity.fget
  with monkeypatch.context() as patch:
    patch.setattr(store.Pool, "identity", property(lambda p: identity(p) | {"sha256": "another"}))
    with pytest.raises(UserError, match=r"something else: pool_identity.sha256 .* -> another;"):
      evaluated(patch, copied)
  with pytest.raises(UserError, match="weights base -> step 3"):
    evaluated(monkeypatch, copied, "3", rescore=True)
  load = evaluate.state_lib.load_student

  def others(*arguments):  # as a folder of the same name, or a step trained anew, may hold
    state = load(*arguments)
    embed = state["student"]["text"]["embed"]
    return state | {"student": state["student"] | {"text": state["student"]["text"] | {
      "embed": embed.at[3, 4].multiply(1.0001)}}}  # fmt: skip

  with monkeypatch.context() as patch:
    patch.setattr(evaluate.state_lib, "load_student", others)
    with pytest.raises(UserError, match="replies of other weights of the same name"):
      evaluated(patch, copied)
  (copied / "evaluate" / "test" / "asked.json").unlink()
  with pytest.raises(UserError, match="asked.json is missing"):
    evaluated(monkeypatch, copied)


def test_nothing_to_rescore_is_said(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="has no replies to grade"):
    evaluated(monkeypatch, tmp_path, rescore=True)
  with pytest.raises(UserError, match="blind has no replies"):
    evaluated(monkeypatch, tmp_path, "blind", rescore=True)
  assert not list(tmp_path.iterdir())


def test_each_part_is_read_by_one_of_any_number_of_processes(tmp_path):
  """Written by 3, read by 1 and by 2."""
  for process in range(3):
    journal = ReplyJournal(tmp_path, process, 3)
    journal.begin({"asked": {}})
    journal.add([{"row": 10 * process + i} for i in range(2)])
    journal.add([])
  rows = lambda process, count: sorted(ReplyJournal(tmp_path, process, count).rows)
  assert rows(0, 1) == [0, 1, 10, 11, 20, 21]
  assert (rows(0, 2), rows(1, 2)) == ([0, 1, 20, 21], [10, 11])
  assert reply_journal.read_journal(tmp_path)[0] == {"asked": {}}


def test_batches_that_are_done_are_left_out_and_others_stay_as_they_are():
  pool = store.open_pool(str(tiny_run.pool_folder()), "test")
  rows = lambda **more: [
    b.row_B.tolist() for b in loader.sequential(pool, batch_size=5, limit=12, **more)
  ]
  everything = rows()
  assert len(everything) == 3
  assert rows(done=everything[1]) == [everything[0], everything[2]]
  assert rows(done=everything[0][1:]) == everything
  assert rows(done=epochs.in_turn(pool, limit=12).tolist()) == []


def test_score_cards_read_the_journal_and_the_result_alike(whole):
  folder, file = (whole[0] / "evaluate" / name for name in ("test", "test.json"))
  for way in ("greedy", "sampled"):
    stored, result = read_responses(folder, way), read_responses(file, way)
    assert stored.replies == result.replies and len(stored.replies) == 11
    assert stored.run.items() <= result.run.items() and stored.run["weights"] == "base"


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_result_is_the_same(kills, tmp_path):
  """Against the same command left alone."""
  c = tiny_run.config("evaluate", **CONFIG | {"batch": 1})
  config = tmp_path / "config.json"
  config.write_text(json.dumps(c.to_dict()))
  arguments = config, tmp_path, kills, random.Random(7).random()
  report = drills.run("evaluation_drill", *arguments, compiled=tmp_path / "compiled")
  assert report["killed"] == kills and 0 < report["parts"][0] < 11  # in the midst
  results = [tmp_path / name / "evaluate" / "test.json" for name in ("alone", "killed")]
  assert results[0].read_bytes() == results[1].read_bytes()

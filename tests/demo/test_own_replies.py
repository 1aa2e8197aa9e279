"""Rejection sampling: which answers become a pool, and how they stand in it."""

import json

import pytest

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError
from rmsd_jax.demo import ablations, own_replies
from rmsd_jax.tasks import Rules

MEDIA = [{"type": "video", "path": "clips/c.mp4"}]


def prompt(name, quality, text=("<answer>A</answer>", "B"), closed=True, outer=1.0):
  replies = {"quality": quality, "text": list(text), "finished": [True, False]}
  replies |= {"outer": [outer] * 2, "inner": [1.0] * 2}
  return {"id": name, "closed": closed, "sampled": replies}


@pytest.fixture
def world(tmp_path):
  """A raw pool of three prompts, and commands that leave what they would make."""
  raw = tmp_path / "raw"
  raw.mkdir()
  teacher = [{"text": "the teacher's", "teacher": "t", "finish_reason": "stop"}]
  records = [{"id": name, "task": "ocr", "media": MEDIA, "responses": teacher} for name in "abc"]
  (raw / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  return tmp_path, raw


def commands(folder, answered, asked):
  def run(phase, module, *arguments):
    asked.append((module, *map(str, arguments)))
    if module == "evaluate":
      (folder / "evaluate").mkdir(parents=True, exist_ok=True)
      (folder / "evaluate" / "replies.json").write_text(json.dumps({"prompts": answered}))
    else:
      (folder / "pool").mkdir()

  return run


def test_answers_that_are_worth_tau_become_a_pool_with_their_prompt(world):
  tmp_path, raw = world
  config = cli.load_config(f"{ablations.CONFIG}:rejection/rl")
  folder, asked = tmp_path / "own", []
  # b has no answer that is worth 0.3, and is left out; the answers of a stay, right or not.
  run = commands(folder, [prompt("a", [1.0, 0.0]), prompt("b", [0.29, 0.0])], asked)
  for _ in range(2):  # once it is there it is not made again
    pool = own_replies.sampled_pool(
      run, folder, tmp_path / "sft", raw, config, "configs/x.py:evaluate"
    )
  assert pool == folder / "pool" and [module for module, *_ in asked] == ["evaluate", "pool"]
  (record,) = map(json.loads, (folder / "pool.jsonl").read_text().splitlines())
  assert record == {
    "id": "a",
    "task": "ocr",
    "media": [{"type": "video", "path": str(raw / "clips/c.mp4")}],
    "responses": [
      {"text": "<answer>A</answer>", "teacher": "student", "finish_reason": "stop"},
      {"text": "B", "teacher": "student", "finish_reason": "length"},
    ],
  }
  # As many prompts and samples as stage 2 has.
  rl = cli.load_config(f"{ablations.CONFIG}:D/rl")
  assert f"--config.data.limit={rl.steps * rl.batch}" in asked[0]
  assert asked[1][-2:] == ("--media-root", str(raw))
  assert f"--config.evaluate.samples={rl.rollouts.samples}" in asked[0]
  assert {"--config.data.split=train", f"--workdir={tmp_path / 'sft'}", f"--out={folder}"} <= set(
    asked[0]
  )


def test_open_ended_answers_teach_by_their_format():
  """They have no metric, so that their quality in an evaluation is 0."""
  teaches = lambda **of: own_replies.teaches(prompt("a", [0.0, 0.0], **of), Rules(), 0.3)
  assert teaches(closed=False) and not teaches(closed=False, outer=0.0)
  assert not teaches(closed=True)


def test_a_student_without_a_right_answer_is_named(world):
  tmp_path, raw = world
  config = cli.load_config(f"{ablations.CONFIG}:rejection/rl")
  run = commands(tmp_path / "own", [prompt("a", [0.1, 0.0])], [])
  with pytest.raises(UserError, match="sft: no answer to 1 training prompts is worth 0.3"):
    own_replies.sampled_pool(run, tmp_path / "own", tmp_path / "sft", raw, config, "x")


def test_rows_in_which_stage_1_goes_on_train_by_its_command(tmp_path, monkeypatch):
  """From D's stage 1; on the student's own answers with a pool of its own, which is made first."""
  asked, ran = [], []

  def sampled_pool(run, folder, student, raw, config, evaluation):
    asked.append((folder, student, raw, config.seed, config.data.pool, evaluation))
    return folder / "pool"

  class Commands:
    def __init__(self, *given):
      pass

    def __call__(self, phase, module, *flags):
      ran.append((module, dict(flag.split("=", 1) for flag in flags)))

  monkeypatch.setattr(own_replies, "sampled_pool", sampled_pool)
  monkeypatch.setattr(ablations, "Commands", Commands)
  grid, student = ablations.Grid(tmp_path, [[0]], "questions"), tmp_path / "D" / "sft"
  for row in ("D", "continued", "rejection"):
    grid.run(row, 3, "rl", student)
  own = tmp_path / "runs" / "rejection" / "seed3" / "rl" / "own"
  name = f"{ablations.CONFIG}:rejection"
  assert asked == [(own, student, tmp_path / "raw", 3, str(tmp_path / "pool"), f"{name}/evaluate")]
  trained = [(module, flags) for module, flags in ran if module != "evaluate"]
  assert [module for module, _ in trained] == ["train_rl", "train_sft", "train_sft"]
  pools = [flags["--config.data.pool"] for _, flags in trained]
  assert pools == [str(pool) for pool in (tmp_path / "pool", tmp_path / "pool", own / "pool")]
  assert {flags["--config.init_from"] for _, flags in trained} == {str(student)}
  # Stage 1 that goes on sees other draws than the stage 1 before it.
  assert [flags["--config.seed"] for _, flags in trained] == ["3", "10003", "10003"]
  assert trained[2][1]["--config"] == f"{name}/rl"
  evaluated = [flags for module, flags in ran if module == "evaluate"]
  assert {flags["--config.data.pool"] for flags in evaluated} == {str(tmp_path / "pool")}


def test_a_row_in_which_stage_1_goes_on_is_of_the_demo_world():
  with pytest.raises(UserError, match="row continued is of the demo world alone"):
    cli.load_config(f"{ablations.CONFIG}:continued/rl/qwen3vl_4b_rl")
  changed = cli.load_config(f"{ablations.CONFIG}:rejection/rl").supervision
  assert changed.target == "random_survivor"
  assert cli.load_config(f"{ablations.CONFIG}:rejection/sft").supervision.target == "best"

"""A tiny run of every row of configs/ablations.py ends, resumes bit for bit, explains its figures.

Some 12 minutes: pytest -m slow tests/training/test_row_runs.py
"""

import mappings
import pytest
import tiny_run

from rmsd_jax import cli, train_rl, train_sft
from rmsd_jax.demo import ablations

pytestmark = pytest.mark.slow

ROWS = ablations.ROWS
STEPS = 6
# Rows that share a stage 1 share its run.
RUNS = [(row, "sft") for row in dict.fromkeys(ablations.stage_1_rows().values())]
RUNS += [(row, "rl") for row in ROWS]


@pytest.fixture(autouse=True)
def mappings_to_spare():
  """After each run: all of them compile more than a process can hold."""
  yield
  mappings.let_go()


def config(row: str, stage: str):
  """Of a row, made small: a longer warm-up stays one, and so does a freeze."""
  c = cli.load_config(f"{ablations.CONFIG}:{row}/{stage}").unlock()
  warmup, frozen = c.discriminator.warmup_steps, c.discriminator.frozen_after
  shorter = 1 + (warmup > 10)
  changes = {
    # Rejection's own answers are the teacher's here: a student of random weights has no right one.
    "data__pool": str(tiny_run.rows_pool_folder(ROWS[row].noise or "questions")),
    "discriminator__optim__learning_rate": 3e-3,
    "discriminator__warmup_steps": shorter,
    "discriminator__frozen_after": min(frozen, shorter + 2 * (frozen > warmup)),
    "discriminator__probe_every": min(c.discriminator.probe_every, 3),
  }
  if ROWS[row].fresh and stage == "rl":
    changes["data__pool"] = str(tiny_run.pool_folder())  # another one
  if ablations.distils(row) and stage == "rl":
    changes["policy__reference"] = str(tiny_run.teacher_folder())
  return tiny_run.small(c, **changes)


def test_no_row_is_left_out():
  assert {row for row, stage in RUNS if stage == "rl"} == set(ROWS)
  assert len({config(row, stage).to_json() for row, stage in RUNS}) == len(RUNS)


@pytest.mark.parametrize("row, stage", RUNS)
def test_a_run_of_a_row_ends_and_resumes(row, stage, tmp_path, monkeypatch):
  c = config(row, stage)
  trainer = train_sft if stage == "sft" or ROWS[row].goes_on else train_rl
  tiny_run.run(monkeypatch, trainer, c, tmp_path / "whole")
  written = tiny_run.lines(tmp_path / "whole")
  assert [line["step"] for line in written] == list(range(1, STEPS + 1))
  assert not tiny_run.unexplained(tmp_path / "whole")
  if trainer is train_rl:
    assert_who_learns_when(c, written)

  tiny_run.run(monkeypatch, trainer, c, tmp_path / "cut", stop_after=3)
  assert [line["step"] for line in tiny_run.lines(tmp_path / "cut")] == [1, 2, 3]
  tiny_run.run(monkeypatch, trainer, c, tmp_path / "cut")
  assert tiny_run.lines(tmp_path / "cut") == written
  resumed, whole = (
    tiny_run.restored(tmp_path / name, trainer, c, STEPS) for name in ("cut", "whole")
  )
  tiny_run.assert_same(resumed, whole)


def assert_who_learns_when(c, written) -> None:
  """By the figures that each update logs."""
  judges = c.reward.discriminator > 0
  waits = c.discriminator.warmup_steps if judges else 0
  joint = waits if c.discriminator.joint_warmup else 0
  learns = judges * (c.discriminator.frozen_after or STEPS)
  steps = lambda first, last: [first <= step < last for step in range(STEPS)]
  assert ["warmup/loss" in line for line in written] == steps(0, joint)
  assert ["policy/loss" in line for line in written] == steps(waits, STEPS)
  assert [line.get("discriminator/learns") == 1 for line in written] == steps(0, learns)
  if judges and c.discriminator.zero_head:  # it learns from 0, and until then every score is 0
    assert written[0]["discriminator/score_student"] == 0 != written[2]["discriminator/margin"]

"""A tiny run of every row of configs/ablations.py ends, resumes bit for bit, explains its figures.

Some 13 minutes: pytest -m slow tests/training/test_row_runs.py

Every run begins with the same random weights, also where a row's stage 2 starts from a stage 1. No
reply of theirs has a format, so that a made-up grade pays them: else no reward would tell rollouts
of a prompt apart, and the policy of rows without a discriminator would not move.
"""

import zlib

import mappings
import numpy as np
import pytest
import tiny_run

from rmsd_jax import cli, train_rl, train_sft
from rmsd_jax.demo import ablations
from rmsd_jax.method.carriers import RuleTerms

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


def loaded(row: str, stage: str):
  return cli.load_config(f"{ablations.CONFIG}:{row}/{stage}").unlock()


def config(row: str, stage: str):
  """Of a row, made small: a warm-up longer than D's stays one, and so does a freeze. What makes
  every run small (`tiny_run.small`) goes over a row's rates, samples, batch and steps."""
  c = loaded(row, stage)
  warmup, frozen = c.discriminator.warmup_steps, c.discriminator.frozen_after
  shorter = 1 + (warmup > loaded("D", stage).discriminator.warmup_steps)
  # Another world where a row has prompts of its own. Rejection's own answers are the teacher's.
  world = 4 if ROWS[row].fresh and stage == "rl" else 3
  changes = {
    "data__pool": str(tiny_run.rows_pool_folder(ROWS[row].noise or "questions", world)),
    "discriminator__optim__learning_rate": 3e-3,
    "discriminator__warmup_steps": shorter,
    "discriminator__frozen_after": min(frozen, shorter + 2 * (frozen > warmup)),
    "discriminator__probe_every": min(c.discriminator.probe_every, 3),
  }
  if ablations.distils(row) and stage == "rl":
    changes["policy__reference"] = str(tiny_run.teacher_folder())
  return tiny_run.small(c, **changes)


def grade(replies, info, finished_BR, rules) -> RuleTerms:
  """As `grading.rule_terms`, of a reply's checksum."""
  outer, inner, content = np.zeros((3, *finished_BR.shape), np.float32)
  for b, r in np.argwhere(finished_BR):
    drawn = zlib.crc32(replies[b][r].encode())
    outer[b, r] = drawn % 4 > 0
    inner[b, r] = outer[b, r] * (drawn // 4 % 3 > 0)
    content[b, r] = drawn // 12 % 5 / 4 * (info[b]["task"] != "open_ended")
  return RuleTerms(outer, inner, content)


@pytest.mark.parametrize("row, stage", RUNS)
def test_a_run_of_a_row_ends_and_resumes(row, stage, tmp_path, monkeypatch):
  c = config(row, stage)
  trainer = train_sft if stage == "sft" or ROWS[row].goes_on else train_rl
  graded = {"grade": grade} if trainer is train_rl else {}
  tiny_run.run(monkeypatch, trainer, c, tmp_path / "whole", **graded)
  written = tiny_run.lines(tmp_path / "whole")
  assert [line["step"] for line in written] == list(range(1, STEPS + 1))
  assert not tiny_run.unexplained(tmp_path / "whole")
  if trainer is train_rl:
    assert_who_learns_when(c, written)

  tiny_run.run(monkeypatch, trainer, c, tmp_path / "cut", stop_after=3, **graded)
  assert [line["step"] for line in tiny_run.lines(tmp_path / "cut")] == [1, 2, 3]
  tiny_run.run(monkeypatch, trainer, c, tmp_path / "cut", **graded)
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
  assert [line.get("policy/grad_norm", 0) > 1e-4 for line in written] == steps(waits, STEPS)
  assert [line.get("discriminator/learns") == 1 for line in written] == steps(0, learns)
  if judges and c.discriminator.zero_head:  # it learns from 0, and until then every score is 0
    assert written[0]["discriminator/score_student"] == 0
    assert written[2]["discriminator/margin"] not in (0, "nan")

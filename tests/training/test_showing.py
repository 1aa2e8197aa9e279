"""Rollouts that a run shows, and the warnings of its console."""

import functools
import json

import numpy as np
import pytest
import tiny_run

from rmsd_jax import train_rl
from rmsd_jax.data import store
from rmsd_jax.training import showing

CONFIG = functools.partial(
  tiny_run.config, "rl", discriminator__optim__learning_rate=3e-3, samples__every=2,
  samples__prompts=3,
)  # fmt: skip
FINE = {
  "rollout/outer": 0.9, "rollout/finished": 0.9, "reward/dead_groups": 0.2,
  "reward/discriminator/variance_share": 0.3, "discriminator/loss": 0.6,
}  # fmt: skip


@pytest.mark.parametrize(
  ("changes", "kinds"),
  [
    ({}, set()),
    ({"rollout/outer": 0.01}, {"outer"}),
    ({"rollout/outer": 0.0, "rollout/finished": 0.0}, {"outer", "finished"}),
    ({"reward/discriminator/variance_share": 0.01}, {"share"}),
    ({"reward/discriminator/variance_share": 0.61}, {"share"}),
    ({"reward/discriminator/variance_share": 0.0, "reward/dead_groups": 1.0}, set()),
    ({"reward/discriminator/variance_share": 0.02}, set()),
  ],
)
def test_warnings_name_what_is_wrong(changes, kinds):
  found = showing.warnings(FINE | changes)
  assert found.keys() == kinds
  assert all("\n" not in text and len(text) > 40 for text in found.values())


def test_a_run_of_the_rules_alone_is_not_warned_of_its_discriminator():
  rules = {name: value for name, value in FINE.items() if name != "discriminator/loss"}
  assert not showing.warnings(rules | {"reward/discriminator/variance_share": 0.0})


def test_stage_1_and_warm_up_have_nothing_to_warn_of():
  assert not showing.warnings({"loss": 1.0})
  assert not showing.warnings({"rollout/outer": 0.5, "rollout/finished": 0.5})


def test_a_run_shows_rollouts_as_they_were_graded_also_when_it_was_resumed(
  tmp_path, monkeypatch, capsys
):
  c = CONFIG(reward__clip=0.02, reward__per_log_length=0.1)
  tiny_run.run(monkeypatch, train_rl, c, tmp_path, stop_after=5)
  first = (tmp_path / showing.FILE).read_text()
  # A line damaged in the middle, and one torn at the end.
  (tmp_path / showing.FILE).write_text('{"step": 4, "ques\0\0\n5\n' + first + '{"step": 5, "torn')
  tiny_run.run(monkeypatch, train_rl, c, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / showing.FILE).read_text().splitlines()]
  # The warm-up of two steps shows nothing; each step once.
  assert [line["step"] for line in lines] == [4, 4, 4, 6, 6, 6]
  pool = store.open_pool(tiny_run.pool_folder(), "train")
  rows = {row.id: row for row in (pool[i] for i in range(len(pool)))}
  logged = {line["step"]: line for line in tiny_run.lines(tmp_path)}
  for line in lines:
    row = rows[line["id"]]
    assert (line["question"], line["task"], line["clip"]) == (row.question, row.task, row.clip)
    assert len(line["times"]) == len(row.times_F2)
    assert len(line["rollouts"]) == 4
    assert sum(one["advantage"] for one in line["rollouts"]) == pytest.approx(0, abs=1e-4)
    assert rows[line["id"]].id == pool[line["row"]].id
    # Inside a group the advantage is a straight line of the reward, whatever the scale.
    rewards, gains = np.array([(x["reward"], x["advantage"]) for x in line["rollouts"]]).T
    assert np.ptp(gains) == 0 or np.corrcoef(rewards, gains)[0, 1] == pytest.approx(1, abs=1e-4)
    for one in line["rollouts"]:
      assert one["terms"].keys() == {"discriminator", "outer", "inner", "content"}
      assert one["teacher"] is None or one["teacher"] in row.texts
      assert one["finished"] or one["terms"]["outer"] == 0
  assert any(one["teacher"] for line in lines for one in line["rollouts"])
  assert logged[6]["rollout/outer"] == 0 and "WARNING: rollout/outer is 0.000" in (
    capsys.readouterr().err
  )
  events = b"".join(path.read_bytes() for path in (tmp_path / "tb").iterdir())
  assert b"rollouts" in events and lines[0]["question"].encode() in events

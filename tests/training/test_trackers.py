"""Writers beside TensorBoard: a fake of Weights & Biases, and files of a user's own."""

import sys
import types

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.training import trackers
from rmsd_jax.training.log import Writer

OWN = """
class Mine:
  def __init__(self, workdir, name, config):
    self.file = open(workdir + "/mine.txt", "a")
    self.file.write(f"{name} {config['seed']} {len(config['commit'])}\\n")
  def write(self, step, values):
    self.file.write(f"{step} {sorted(values.items())}\\n")
  def close(self):
    self.file.close()

def lame(workdir, name, config):
  return object()
"""


def test_wandb_gets_name_config_commit_and_every_figure(monkeypatch, tmp_path):
  seen = []
  run = types.SimpleNamespace(
    log=lambda values, step: seen.append((step, values)), finish=lambda: seen.append("finished")
  )
  inits = []
  fake = types.SimpleNamespace(init=lambda **arguments: inits.append(arguments) or run)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  workdir = str(tmp_path / "rl")
  for step in (1, 2):  # resumed in between
    with Writer(
      workdir, step - 1, tracker=trackers.tracker_of("wandb", workdir, {"seed": 3})
    ) as writer:
      writer.write(step, {"loss": 0.5 / step})
  assert seen == [(1, {"loss": 0.5}), "finished", (2, {"loss": 0.25}), "finished"]
  first, second = inits
  assert first == second and first["resume"] == "allow"
  assert (first["name"], first["dir"], first["config"]["seed"]) == ("rl", workdir, 3)
  assert first["config"]["commit"] == trackers.commit() and len(trackers.commit()) in (0, 40)


def test_a_writer_of_ones_own_gets_the_same(tmp_path):
  (tmp_path / "own.py").write_text(OWN)
  made = trackers.tracker_of(f"{tmp_path / 'own.py'}:Mine", str(tmp_path), {"seed": 7})
  with Writer(str(tmp_path), tracker=made) as writer:
    writer.write(5, {"b": 2.0, "a": 1.0})
  length = len(trackers.commit())
  assert (tmp_path / "mine.txt").read_text().splitlines() == [
    f"{tmp_path.name} 7 {length}", "5 [('a', 1.0), ('b', 2.0)]",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("writer", "words"),
  [
    ("wandb", "install it \\(pip install wandb\\)"),
    ("tensorboard", "give wandb, or FILE.py:NAME of a file that is there"),
    ("nowhere.py:Mine", "give wandb, or FILE.py:NAME of a file that is there"),
    ("{}/own.py:Other", "own.py has no Other"),
    ("{}/own.py:lame", "what it makes has no method write()"),
  ],
)
def test_what_is_no_writer_is_named(monkeypatch, tmp_path, writer, words):
  monkeypatch.setitem(sys.modules, "wandb", None)
  (tmp_path / "own.py").write_text(OWN)
  with pytest.raises(UserError, match=words.replace("write()", r"write\(\)")):
    trackers.tracker_of(writer.format(tmp_path), str(tmp_path), {})


def test_none_is_made_where_none_is_asked_for():
  assert trackers.tracker_of("", "runs", {}) is None

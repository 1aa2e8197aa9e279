"""The recipes of docs/code.md, followed to the letter on a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "code.md").read_text("utf-8").partition("## Recipes")[2]
RECIPES = dict(re.findall(r"^\*\*([^*]+?)\.?\*\*(.*?)(?=^\*\*|\Z)", TEXT, re.MULTILINE | re.DOTALL))

CHECKS = {
  "Change the policy loss": """
import numpy as np
from rmsd_jax.method import losses
logp, old, one = np.array([[[0.0]]]), np.array([[[-1.0]]]), np.ones((1, 1, 1), bool)
(total, _), _ = losses.policy_gradient(
  logp, old, logp, np.ones((1, 1)), one, one[..., 0], 0.2, 0.0, "k3"
)
assert abs(float(total) + np.e) < 1e-5, total  # the ratio e, not 1.2
""",
  "Add a task": """
from rmsd_jax import cli, train_rl
from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import Rules
rules = Rules(module="my_tasks.py")
assert "counting" in rules.names and "counting" not in Rules().names
assert rules.score("counting", "<think>x</think><answer>3</answer>", 3).quality == 1
assert rules.validate("counting", "many", ())
assert "whole number" in rules.prompt_text("counting", "?")
assert rules.version.startswith(Rules().version + " tasks=")
flags = ["x", "--config=configs/demo.py:rl", "--config.tasks.module=my_tasks.py"]
config, _ = cli.parse_config(flags, {}, workdir=False)
train_rl.check_config(config)  # the audit grades the new task, too
try:
  Rules(module="configs/demo.py")
except UserError as error:
  assert "it needs TASKS" in str(error)
else:
  raise AssertionError("a file without TASKS was taken")
""",
  "Add a reward term": """
import numpy as np
from rmsd_jax import cli, train_rl
from rmsd_jax.method import advantages, custom_rewards
flags = ["x", "--config=configs/demo.py:rl", "--config.reward.module=my_rewards.py"]
config, _ = cli.parse_config([*flags, "--config.reward.custom=brevity=0.2"], {}, workdir=False)
train_rl.check_config(config)
assert advantages.weights_of(config.reward)["brevity"] == 0.2
replies, finished = [["x " * 40, "x " * 41, "cut"]], np.array([[True, True, False]])
terms = custom_rewards.of_config(config.reward).grade(replies, [{"task": "ocr"}], finished)
assert terms["brevity"].tolist() == [[1, 0, 0]]
""",
  "Add an importer": """
import pathlib
pathlib.Path("rmsd_jax/teacher/importers/mine.py").write_text(
  "from rmsd_jax.teacher.importers import Imported\\n"
  "def convert(source, out, rules, *, media_root, split):\\n"
  "  open(out, 'w').close()\\n"
  "  return Imported({'ocr': 3}, {}, 0, 0)\\n"
)
from rmsd_jax import pool
pool.main(["import", "x.json", "--format", "mine", "--out", "out.jsonl"])
assert pathlib.Path("out.jsonl").exists()
""",
}
# Those that show in a run are followed together: one run shows them all.
IN_A_RUN = (
  "Add a column to the pool",
  "Add an optimizer",
  "Print an array inside a step",
  "Take a profile",
)
RUN = """
import pathlib, sys
sys.path[:0] = ["tests/support", "tests"]
import conftest, jax, pytest, tiny_run
from rmsd_jax import train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import store
from rmsd_jax.training.profiling import Profiler
if __name__ == "__main__":
  row = store.open_pool(str(tiny_run.pool_folder()), "train")[0]
  assert row.characters == len(row.question) > 0
  c = tiny_run.config("sft", steps=3, save_every=3, profile="1:1", optim__name="sgd")
  tiny_run.run(pytest.MonkeyPatch(), train_sft, c, "run")
  assert list(pathlib.Path("run/tb").rglob("*.xplane.pb"))
  with pytest.raises(UserError, match="give FIRST:COUNT"):
    Profiler("10", "run")
"""
PRINTED = "log-prob of each row's first token ["


def follow(recipe: str, copy: Path) -> None:
  """Makes the changes that a recipe shows."""
  for file, lines in re.findall(r"```diff\n(\S+)\n(.*?)```", recipe, re.DOTALL):
    changes = [(line[:1], line[1:]) for line in lines.splitlines()]
    old = "\n".join(line for sign, line in changes if sign in " -")
    new = "\n".join(line for sign, line in changes if sign in " +")
    text = (copy / file).read_text("utf-8")
    assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
    (copy / file).write_text(text.replace(old, new), encoding="utf-8")
  for code in re.findall(r"```python\n(.*?)```", recipe, re.DOTALL):
    name = "my_rewards.py" if "REWARDS" in code else "my_tasks.py"
    (copy / name).write_text(code, encoding="utf-8")


def outcome(names, check: str, copy: Path) -> str:
  """What a check prints in a copy of the package that follows these recipes."""
  ignored = shutil.ignore_patterns("__pycache__")
  for folder in ("rmsd_jax", "configs", "tests"):
    shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
  for name in names:
    follow(RECIPES[name], copy)
  (copy / "check.py").write_text(check, encoding="utf-8")
  environment = os.environ | {"PYTHONPATH": str(copy), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "check.py"], cwd=copy, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_every_recipe_is_tried():
  assert sorted(RECIPES) == sorted([*CHECKS, *IN_A_RUN])


@pytest.mark.parametrize("name", CHECKS)
def test_a_recipe_does_what_it_says(name, tmp_path):
  outcome([name], CHECKS[name], tmp_path)


def test_recipes_that_show_in_a_run_do_what_they_say(tmp_path):
  assert PRINTED in outcome(IN_A_RUN, RUN, tmp_path)

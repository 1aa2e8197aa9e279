"""Configs work wherever they lie: copied alone, with their folder, installed, from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
# File and what comes after the colon.
SHIPPED = (
  ("default.py", ""),
  ("demo.py", ":rl"),
  ("demo_long.py", ":sft_continued"),
  ("ablations.py", ":C/rl"),
  ("ablations.py", ":k2/sft/qwen3vl_4b_sft"),
  ("qwen3vl_2b_sft.py", ""),
  ("qwen3vl_2b_rl.py", ""),
  ("qwen3vl_4b_sft.py", ""),
  ("qwen3vl_4b_sft_chat.py", ""),
  ("qwen3vl_4b_rl.py", ""),
  ("eval/benchmark.py", ""),
  ("eval/demo.py", ""),
  ("eval/qwen3vl.py", ""),
)


def test_all_files_are_tried():
  files = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py")}
  assert files == {file for file, _ in SHIPPED}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """The current folder is neither the checkout's nor the copy's."""
  (tmp_path / "cwd").mkdir()
  monkeypatch.chdir(tmp_path / "cwd")


@pytest.mark.parametrize(("file", "name"), SHIPPED)
@pytest.mark.parametrize("called", ["", "mine.py", "default.py", "demo.py"])
def test_a_file_copied_alone_makes_the_same_config(file, name, called, tmp_path):
  copy = tmp_path / "copies" / (called or Path(file).name)
  copy.parent.mkdir()
  shutil.copy(CONFIGS / file, copy)
  assert (
    cli.load_config(f"{copy}{name}").to_json()
    == cli.load_config(f"{CONFIGS / file}{name}").to_json()
  )


@pytest.mark.parametrize(("file", "name"), SHIPPED)
def test_the_shipped_ones_are_found_from_any_folder(file, name):
  wanted = cli.load_config(f"{CONFIGS / file}{name}")
  assert cli.load_config(f"configs/{file}{name}").to_json() == wanted.to_json()


@pytest.mark.parametrize("file", ["qwen3vl_2b_rl.py", "eval/qwen3vl.py", "demo_long.py:rl"])
def test_a_copied_folder_is_based_on_its_own_default(file, tmp_path):
  shutil.copytree(CONFIGS, tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__"))
  default = tmp_path / "mine" / "default.py"
  text = default.read_text()
  assert text.count("c.rollouts.samples = 8 ") == 1
  default.write_text(text.replace("c.rollouts.samples = 8 ", "c.rollouts.samples = 5 "))
  assert cli.load_config(f"{tmp_path / 'mine' / file}").rollouts.samples == 5
  assert cli.load_config(f"{CONFIGS / file}").rollouts.samples == 8


def test_a_file_of_the_current_folder_comes_before_a_shipped_one(tmp_path):
  own = tmp_path / "cwd" / "configs"
  own.mkdir()
  shutil.copy(CONFIGS / "qwen3vl_4b_rl.py", own / "default.py")
  assert cli.load_config("configs/default.py").steps == 938


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("base_config(__file__, 'nowhere.py')()", r"there is no .*nowhere\.py and no .*nowhere\.py"),
    ("base_config(__file__, 'empty.py')()", r"empty\.py defines no get_config"),
    # as configs were written before
    ("runpy.run_path(__file__ + '/../default.py')", "reads .*default.py, which is not there; find"),
  ],
)
def test_what_cannot_be_based_on_is_one_line(text, words, tmp_path):
  (tmp_path / "empty.py").write_text("")
  file = tmp_path / "mine.py"
  file.write_text(
    f"import runpy\nfrom rmsd_jax.cli import base_config\ndef get_config():\n  return {text}\n"
  )
  with pytest.raises(UserError, match=words) as caught:
    cli.load_config(str(file))
  assert "\n" not in str(caught.value)


def started(cwd, path, *line) -> subprocess.CompletedProcess:
  env = os.environ | {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
  return subprocess.run(
    [sys.executable, "-m", *line], cwd=cwd, env=env, capture_output=True, text=True
  )


def test_a_command_starts_with_a_copy_from_another_folder(tmp_path):
  shutil.copy(CONFIGS / "eval" / "qwen3vl.py", tmp_path / "mine.py")
  given = ("rmsd_jax.evaluate", f"--config={tmp_path / 'mine.py'}", "--workdir=run")
  done = started(tmp_path / "cwd", ROOT, *given, "--config.data.pool=nowhere")
  assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
  assert "nowhere is not a finished pool" in done.stderr


def test_an_installed_package_brings_its_configs(tmp_path):
  """As `pip install .` makes it, from a copy, so that no build folder is left in the checkout."""
  pytest.importorskip("setuptools", minversion="77", reason="pip would fetch it")
  source, target = tmp_path / "source", tmp_path / "installed"
  source.mkdir()
  for name in ("rmsd_jax", "configs"):
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=no_cache)
  shutil.copy(ROOT / "pyproject.toml", source)
  offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--quiet")
  done = started(tmp_path, source, "pip", "install", *offline, f"--target={target}", str(source))
  assert done.returncode == 0, done.stderr
  shutil.rmtree(source)
  shutil.copy(CONFIGS / "demo_long.py", tmp_path / "mine.py")
  (tmp_path / "cwd" / "show.py").write_text(
    "import sys\nfrom rmsd_jax import cli\n"
    "for config in sys.argv[1:]:\n  print(cli.load_config(config).model.folder)\n"
  )
  shown = (f"{tmp_path / 'mine.py'}:rl", "configs/ablations.py:C/rl", "configs/eval/demo.py")
  done = started(tmp_path / "cwd", target, "show", *shown)
  assert done.stdout.split() == [str(target / "rmsd_jax" / "demo" / "tiny_base")] * 3, done.stderr

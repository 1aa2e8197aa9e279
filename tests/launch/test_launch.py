"""Launch scripts and commands: they parse, documented commands have --help, bad pools exit 2."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

from rmsd_jax import cli
from rmsd_jax import pool as pool_command

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
RUNNABLE = [path for path in SCRIPTS if not path.name.startswith("_")]
DOCUMENTED = sorted(
  {
    module
    for folder in ("rmsd_jax", "configs", "launch", "docs", ".")
    for path in (ROOT / folder).glob("*" if folder == "." else "**/*")
    if path.suffix in (".py", ".sh", ".md")
    for module in re.findall(r"python -m (rmsd_jax(?:\.[a-z_]+)+)", path.read_text("utf-8"))
  }
)


def name_of(path: Path) -> str:
  return path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_are_valid_bash(script):
  done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_shellcheck_has_no_complaint(script):
  program = Path(sys.executable).with_name("shellcheck")
  done = subprocess.run([program, "-x", "-s", "bash", script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", RUNNABLE, ids=name_of)
def test_scripts_can_be_run_and_have_help(script, tmp_path):
  done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
  assert f"launch/{script.name}" in done.stdout and "#" not in done.stdout
  assert list(tmp_path.iterdir()) == []


def test_the_main_commands_are_documented():
  for name in ("train_sft", "train_rl", "evaluate", "pool", "report", "demo.run"):
    assert f"rmsd_jax.{name}" in DOCUMENTED


@pytest.mark.parametrize("module", DOCUMENTED)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_documented_command_has_help(module, monkeypatch, capsys):
  """As `python -m MODULE --help`, but in this process: starting one costs seconds."""
  monkeypatch.setattr(sys, "argv", [module, "--help"])
  with pytest.raises(SystemExit) as end:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  out, err = capsys.readouterr()
  assert (end.value.code or 0, err) == (0, "")
  assert out.startswith("usage: ") and len(out.splitlines()) > 3


# what a user gets wrong about a pool


def record(number: int, **changes) -> dict:
  text = "<think>One card.</think><answer>1</answer>"
  given = {"id": str(number), "task": "numerical", "question": "How many?", "answer": 1}
  return given | {"media": [], "responses": [{"text": text}]} | changes


CLIP = [{"type": "video", "path": "gone.mp4"}]
LONG = [{"text": f"<think>{'card ' * 90}</think><answer>1</answer>"}]
BAD_POOLS = {
  "missing clip": (json.dumps(record(1, media=CLIP)), ["1 of 2 lines", "gone.mp4"]),
  "broken line": ('{"id": "1", "task": ', ["1 of 2 lines", "line 2", "JSON"]),
  "unknown task": (json.dumps(record(1, task="chess")), ["1 of 2 lines", "line 2", "chess"]),
  "long responses": (
    json.dumps(record(1, responses=LONG)),
    ["1 of 2 responses are longer than T", "0.05", "--buckets"],
  ),
}


@pytest.mark.parametrize("fault", BAD_POOLS)
def test_a_bad_pool_is_one_line_and_exit_2_and_leaves_no_pool(fault, tmp_path, monkeypatch, capsys):
  line, words = BAD_POOLS[fault]
  (tmp_path / "pool.jsonl").write_text(f"{json.dumps(record(0))}\n{line}\n")
  command = ["pool", "build", "--jsonl", tmp_path / "pool.jsonl", "--out", tmp_path / "pool"]
  command += ["--tokenizer", tiny_run.model_folder(), "--workers", 1]
  command += ["--buckets", ",".join(map(str, tiny_run.BUCKET))]
  monkeypatch.setattr(sys, "argv", list(map(str, command)))
  with pytest.raises(SystemExit) as end:
    cli.run(pool_command.main)
  assert end.value.code == 2
  error = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
  assert len(error) == 1
  for word in words:
    assert word in error[0]
  assert not (tmp_path / "pool").exists() and not list(tmp_path.glob(".pool*"))


def test_a_command_in_a_process_of_its_own_refuses_a_config_in_one_line(tmp_path):
  command = [sys.executable, "-m", "rmsd_jax.train_sft", f"--workdir={tmp_path / 'run'}"]
  command += [f"--config={ROOT / 'configs' / 'demo.py'}:sft", "--config.optim.rate=1"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: unknown config key --config.optim.rate")
  assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()

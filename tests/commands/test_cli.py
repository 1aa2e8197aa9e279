"""Bad input ends in one line and exit 2, help in exit 0; good input reaches the command."""

import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]

CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config(name="plain"):
  config = ConfigDict()
  config.name = name
  config.lr = 1e-3
  config.steps = 10
  config.remat = True
  config.folder = placeholder(str)
  config.optim = ConfigDict({"warmup": 3, "betas": (0.9, 0.95)})
  return config
"""

COMMAND = '''
"""Trains a toy.

It prints what it was given.
"""

from absl import flags

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError


def main(config, workdir, checkpoint):
  if config.steps == 0:
    raise UserError("0 steps\\nare too few; give 1 or more")
  if config.steps == 1:
    raise KeyboardInterrupt
  if config.steps == 2:
    raise RuntimeError("a fault of ours")
  assert flags.FLAGS.is_parsed()  # Grain's workers ask for its flags
  print(config.steps, config.optim.betas, workdir, checkpoint)


if __name__ == "__main__":
  cli.config_app(main, {"checkpoint": ("latest", "STEP, best or latest")})
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
  (tmp_path / "c.py").write_text(CONFIG)
  (tmp_path / "toy.py").write_text(COMMAND)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def parse(line: str):
  return cli.parse_config(["toy", *line.split()], {"checkpoint": ("latest", "")})


def start(folder, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "toy", *arguments],
    cwd=folder,
    env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": ""},
    capture_output=True,
    text=True,
    timeout=60,
  )


def test_overrides_of_every_type_reach_the_config(folder):
  config, flags = parse(
    "--config=c.py:tiny --workdir out --checkpoint=5 --config.lr=1e-5 --config.steps 7 "
    "--noconfig.remat --config.folder=x --config.optim.betas=(0,0.5) --config.optim.warmup=9"
  )
  assert config.to_dict() == {
    "name": "tiny",
    "lr": 1e-5,
    "steps": 7,
    "remat": False,
    "folder": "x",
    "optim": {"warmup": 9, "betas": (0, 0.5)},
  }
  assert flags == {"workdir": "out", "checkpoint": "5"}
  assert config.is_locked


def test_defaults_hold_without_overrides(folder):
  config, flags = parse("--config=c.py --workdir=out")
  assert (config.name, config.steps, config.folder) == ("plain", 10, None)
  assert flags == {"workdir": "out", "checkpoint": "latest"}


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("--config.nope=1", ["--config.nope"]),
    ("--config.optim.warmpu=1", ["--config.optim.warmpu", "did you mean optim.warmup?"]),
    ("--config.warmup=1", ["did you mean optim.warmup?"]),
    ("--config.lr.x=1", ["--config.lr.x"]),
    ("--config.steps=many", ["--config.steps=many"]),
    ("--config.steps=1.5", ["--config.steps=1.5"]),
    ("--config.lr=", ["--config.lr="]),
    ("--config.remat=3", ["--config.remat=3"]),
    ("--config.optim={'warmup':1}", ["--config.optim is a section"]),
    ("--config.optim.betas=fast", ["--config.optim.betas", "'fast'", "(0.9, 0.95)"]),
    ("--config.steps", ["--config.steps"]),
    ("--chekpoint=1", ["--chekpoint", "did you mean checkpoint?"]),
    ("stray", ["'stray'"]),
    ("-- stray", ["'stray'"]),
  ],
)
def test_bad_arguments_are_named(folder, line, words):
  with pytest.raises(UserError) as caught:
    parse(f"--config=c.py --workdir=out {line}")
  for word in words:
    assert word in str(caught.value)


@pytest.mark.parametrize(
  ("line", "word"),
  [
    ("--workdir=out", "--config is missing"),
    ("--config=c.py", "--workdir is missing"),
    ("--config=no.py --workdir=out", "there is no file no.py"),
    ("--config=. --workdir=out", "there is no file ."),
    ("--config=plain.txt --workdir=out", "not a Python file"),
    ("--config=empty.py --workdir=out", "defines no get_config()"),
    ("--config=nameless.py:x --workdir=out", "takes no name"),
    ("--config=wrong.py --workdir=out", "returned a dict"),
    ("--config=staged.py --workdir=out", "give staged.py:NAME"),
  ],
)
def test_bad_config_files_are_named(folder, line, word):
  (folder / "plain.txt").write_text(CONFIG)
  (folder / "empty.py").write_text("")
  (folder / "nameless.py").write_text(CONFIG.replace('name="plain"', "").replace("= name", "= ''"))
  (folder / "staged.py").write_text("def get_config(stage):\n  return {}\n")
  (folder / "wrong.py").write_text("def get_config():\n  return {}\n")
  with pytest.raises(UserError, match=word.replace("(", r"\(").replace(")", r"\)")):
    parse(line)


def test_a_fault_inside_a_config_file_is_not_blamed_on_the_user(folder):
  (folder / "c.py").write_text("def get_config():\n  return {}['missing']\n")
  with pytest.raises(KeyError, match="missing"):
    parse("--config=c.py --workdir=out")


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("c.optim.learnin_rate = 3.0", "sets optim.learnin_rate.*did you mean optim.learning_rate?"),
    ("c.stepz = 3", "sets stepz, which nothing reads; did you mean steps?"),
    ("c.model.remat = False", r"line 4 of c.py: .*'remat'.*False.*bool"),
    ("c.model.wrong", "line 4 of c.py: .*wrong"),
  ],
)
def test_mistyped_keys_and_values_of_a_config_file_are_named(folder, line, words):
  (folder / "c.py").write_text(
    "from rmsd_jax.cli import base_config\ndef get_config():\n"
    f"  c = base_config(__file__, 'default.py')()\n  {line}\n  return c\n"
  )
  with pytest.raises(UserError, match=words):
    parse("--config=c.py --workdir=out")


def test_a_wrong_value_is_found_in_the_file_that_another_is_based_on(folder):
  head = "from rmsd_jax.cli import base_config\ndef get_config():\n"
  (folder / "base.py").write_text(
    f"{head}  c = base_config(__file__, 'default.py')()\n  c.model.remat = False\n  return c\n"
  )
  (folder / "c.py").write_text(f"{head}  return base_config(__file__, 'base.py')()\n")
  with pytest.raises(UserError, match=r"--config=c.py: line 4 of .*base.py: .*'remat'"):
    parse("--config=c.py --workdir=out")


def test_keys_of_a_users_own_pass(folder):
  (folder / "c.py").write_text(
    "from rmsd_jax.cli import base_config\ndef get_config():\n"
    "  c = base_config(__file__, 'default.py')()\n  c.reward.length = 0.1\n  c.mine = 1\n"
    "  return c\n"
  )
  config, _ = parse("--config=c.py --workdir=out")
  assert (config.reward.length, config.mine) == (0.1, 1)


def test_command_runs_and_exits_zero(folder):
  done = start(folder, "--config=c.py", "--workdir=out", "--config.steps=5")
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"5 (0.9, 0.95) {folder}/out latest\n"


def test_help_shows_docstring_and_flags_and_exits_zero(folder):
  done = start(folder, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  for word in ("usage: python -m toy", "Trains a toy.", "--workdir=DIR", "STEP, best or latest"):
    assert word in done.stdout


@pytest.mark.parametrize(
  ("override", "status", "stderr"),
  [
    ("--config.nope=1", 2, "error: unknown config key --config.nope"),
    ("--config.steps=0", 2, "error: 0 steps are too few; give 1 or more"),
    ("--config.steps=1", 130, "interrupted"),
  ],
)
def test_user_faults_are_one_line(folder, override, status, stderr):
  done = start(folder, "--config=c.py", "--workdir=out", override)
  assert done.returncode == status
  assert done.stderr.startswith(stderr) and done.stderr.count("\n") == 1


def test_own_faults_keep_their_traceback(folder):
  done = start(folder, "--config=c.py", "--workdir=out", "--config.steps=2")
  assert done.returncode == 1
  assert "Traceback" in done.stderr and "a fault of ours" in done.stderr


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "/abs/run"])
def test_absolute_workdirs_are_kept(folder, workdir, monkeypatch):
  seen = []
  monkeypatch.setattr(sys, "argv", ["toy", "--config=c.py", f"--workdir={workdir}"])
  with pytest.raises(SystemExit) as end:
    cli.config_app(lambda config, workdir: seen.append((type(config), workdir)))
  assert end.value.code == 0
  assert seen == [(ConfigDict, workdir)]


def test_commands_without_workdir(folder, monkeypatch):
  seen = []
  monkeypatch.setattr(sys, "argv", ["toy", "--config=c.py", "--topology=v5e:4x4"])
  with pytest.raises(SystemExit) as end:
    cli.config_app(
      lambda config, topology: seen.append(topology), {"topology": ("", "slice")}, workdir=False
    )
  assert end.value.code == 0
  assert seen == ["v5e:4x4"]


def test_parser_reports_in_one_line():
  parser = cli.Parser(prog="pool")
  build = parser.add_subparsers(required=True, dest="command").add_parser("build")
  build.add_argument("--workers", type=int)
  for arguments in ([], ["build", "--workers=x"], ["destroy"], ["build", "--nope"]):
    with pytest.raises(UserError, match="--help"):
      parser.parse_args(arguments)

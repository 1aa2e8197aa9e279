"""README and docs: what they name is there, and what they tell a reader to type is accepted."""

import functools
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rmsd_jax import cli
from tests.bench import path_to_loss

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_WORDS = 1000
FLAG = re.compile(r"--[a-z][\w.-]*")


def per_page(function):
  return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(function)


def typed(text: str) -> list[str]:
  """The lines of indented blocks, continued lines joined: what a reader would type."""
  lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
  return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands() -> dict[str, set[str]]:
  """Each documented command (module, and subcommand where there is one) -> its flags, anywhere."""
  found = {}
  for page in PAGES:
    for line in typed(page.read_text("utf-8")):
      for call in re.findall(r"python -m (rmsd_jax\.[^#&;|]*)", line):
        module, *words = shlex.split(call)
        named = f"{module} {words[0]}" if words and re.fullmatch("[a-z]+", words[0]) else module
        given = {flag.partition("=")[0] for flag in words if flag.startswith("--")}
        found.setdefault(named, set()).update(given)
  return found


COMMANDS = commands()


def help_of(command: str, monkeypatch, capsys) -> str:
  """As `python -m COMMAND --help`, but in this process: starting one costs seconds."""
  module, *rest = command.split()
  monkeypatch.setattr(sys, "argv", [module, *rest, "--help"])
  with pytest.raises(SystemExit) as end:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  out, _ = capsys.readouterr()
  assert not end.value.code
  return out


@functools.cache
def keys() -> set[str]:
  """Every dotted name of the config, sections included."""

  def under(config: ConfigDict, prefix: str = ""):
    for name, value in config.items():
      yield f"{prefix}{name}"
      if isinstance(value, ConfigDict):
        yield from under(value, f"{prefix}{name}.")

  return set(under(cli.load_config(str(ROOT / "configs" / "default.py"))))


def test_the_commands_of_all_four_uses_are_documented():
  uses = ("pool check", "pool score", "pool report", "pool collect", "pool plan", "pool build")
  uses += ("convert export", "convert verify", "train_sft", "train_rl", "evaluate", "report")
  assert {f"rmsd_jax.{use}" for use in uses} <= COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_flags_that_the_pages_show_exist(command, monkeypatch, capsys):
  flags = {flag for flag in COMMANDS[command] if not flag.startswith("--config.")}
  assert flags <= set(FLAG.findall(help_of(command, monkeypatch, capsys)))


@per_page
def test_config_keys_that_are_set_on_a_page_exist(page):
  named = set(re.findall(r"--config\.([\w.]+)=", page.read_text("utf-8")))
  assert named - {"key"} <= keys()  # `--config.key=value` says how it is done


@per_page
def test_config_files_and_tests_that_a_page_names_exist(page):
  text = page.read_text("utf-8")
  named = re.findall(r"\b((?:configs|tests|launch|docs)/[\w/.-]+\.(?:py|sh|md|png))", text)
  assert [name for name in named if not (ROOT / name).exists()] == []


@per_page
def test_links_lead_somewhere(page):
  headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
  anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings}
  for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
    if target.startswith("#"):
      assert target[1:] in anchors, target
    elif not target.startswith("http"):
      assert (page.parent / target).exists(), target


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text("utf-8").split()) <= README_WORDS


# docs/paper.md: step -> function -> key -> test

PAPER = (ROOT / "docs" / "paper.md").read_text("utf-8")


@pytest.mark.parametrize("named", sorted({*re.findall(r"`([\w/]+\.py:\w+)`", PAPER)}))
def test_functions_of_the_paper_exist(named):
  path, _, name = named.partition(":")
  text = (ROOT / "rmsd_jax" / path).read_text("utf-8")
  assert re.search(rf"^(?:async )?(?:def|class) {name}\b", text, re.MULTILINE), named


@pytest.mark.parametrize("named", sorted({*re.findall(r"`(test_\w+\.test_\w+)`", PAPER)}))
def test_tests_of_the_paper_exist(named):
  file, _, name = named.partition(".")
  (path,) = (ROOT / "tests").rglob(f"{file}.py")
  assert f"def {name}(" in path.read_text("utf-8"), named


def test_config_keys_of_the_paper_exist():
  rows = [line.split(" | ") for line in PAPER.splitlines() if line.startswith("| ")]
  third = {key for row in rows if len(row) == 4 for key in re.findall(r"`([\w.]+)`", row[2])}
  section = {name for name in keys() if "." not in name}
  dotted = {name for name in re.findall(r"`(\w+\.\w+)`", PAPER) if name.split(".")[0] in section}
  assert len(third) > 15
  wanted = dotted | {key for key in third if not key.startswith("test_")}
  assert wanted - keys() == set()


# docs/code.md: where ten changes are made, and how far it is from the launch to the loss

CODE = (ROOT / "docs" / "code.md").read_text("utf-8")
CHANGES = CODE.partition("## Changes, and where")[2].partition("\n## ")[0]
PLACES = [line.split(" | ") for line in CHANGES.splitlines() if line.startswith("| ")][1:]
MAX_FILES = 4
MAX_LINES = 350  # of functions, docstrings and comments included


def test_changes_are_listed():
  assert len(PLACES) >= 10


@pytest.mark.parametrize("change, places", PLACES, ids=[row[0].strip("| ") for row in PLACES])
def test_the_places_of_a_change_exist(change, places):
  names = re.findall(r"`([\w/]+(?:/|\.\w+))`", places)
  paths = [next((p for p in (ROOT / n, ROOT / "rmsd_jax" / n) if p.exists()), None) for n in names]
  assert None not in paths, names
  # A folder stands for its modules.
  files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))]
  text = "\n".join(file.read_text("utf-8") for file in files)
  for name in re.findall(r"`(\w+)`", places):
    assert re.search(rf"^(?:def |class )?{name}\b", text, re.MULTILINE), name
  assert files or "config." in places, change


@pytest.mark.parametrize("trainer", path_to_loss.PATHS)
def test_from_the_launch_to_the_loss_is_not_far(trainer):
  files = path_to_loss.PATHS[trainer]
  lines = sum(path_to_loss.lines_of(path_to_loss.PACKAGE / f, names) for f, names in files.items())
  assert len(files) <= MAX_FILES and lines <= MAX_LINES, f"{trainer}: {len(files)}, {lines}"

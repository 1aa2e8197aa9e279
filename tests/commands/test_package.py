"""The package as a stranger meets it: what it needs, how its commands start, what it exports."""

import ast
import importlib
import importlib.metadata
import pathlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Imported by one command alone, `convert verify`, which says so where it is not there.
OPTIONAL = {"torch"}


def by_name(lines):
  return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def pins(file):
  lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
  return by_name(filter(None, lines))


def imported(folder):
  """Names of the modules that the files of a folder import, without what follows a dot."""
  names = set()
  for path in folder.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names.add(node.module)
  return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
  "file, ranges",
  [
    ("requirements.txt", PROJECT["dependencies"]),
    ("tests/requirements.txt", PROJECT["optional-dependencies"]["test"]),
  ],
)
def test_every_pin_is_the_least_version_of_its_range(file, ranges):
  pinned, ranges = pins(file), by_name(ranges)
  assert pinned.keys() == ranges.keys()
  for name, pin in pinned.items():
    (only,) = pin.specifier
    assert only.operator == "==", f"{name}: {file} holds exact versions"
    assert ranges[name].specifier.contains(only.version), f"{name}=={only.version} is out of range"
    least = [one.version for one in ranges[name].specifier if one.operator == ">="]
    assert least == [only.version], f"{name}: nothing below {only.version} was tested"
    assert ranges[name].extras == pin.extras


def test_the_package_names_all_that_it_imports():
  distributions = importlib.metadata.packages_distributions()
  third_party = imported(ROOT / "rmsd_jax") - sys.stdlib_module_names - {"rmsd_jax"} - OPTIONAL
  assert "jax" in third_party
  named = by_name(PROJECT["dependencies"])
  for name in third_party:
    made_by = {canonicalize_name(one) for one in distributions[name]}
    assert made_by & named.keys(), f"rmsd_jax imports {name}, of {made_by}: not in pyproject.toml"


@pytest.mark.parametrize("script, place", PROJECT["scripts"].items())
def test_a_console_script_is_the_command_of_its_module(script, place, capsys, monkeypatch):
  module, _, name = place.partition(":")
  monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{script}", "--help"])
  with pytest.raises(SystemExit) as ended:
    getattr(importlib.import_module(module), name)()
  assert ended.value.code == 0
  assert capsys.readouterr().out.startswith(f"usage: {script} ")
  last = (ROOT / f"{module.replace('.', '/')}.py").read_text().splitlines()[-2:]
  assert last == ['if __name__ == "__main__":', f"  {name}()"], "no second way to start"


def modules_after(code: str) -> set[str]:
  line = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
  return set(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("code", ["import rmsd_jax", "import rmsd_jax.tasks.registry"])
def test_graders_start_without_jax(code):
  assert not modules_after(code) & {"jax", "flax", "transformers", "grain"}


def test_the_three_names_are_those_of_their_rooms():
  from rmsd_jax import Processor, generate, load
  from rmsd_jax.data import processor
  from rmsd_jax.models import hf
  from rmsd_jax.rollouts import generate as sampling

  assert (load, Processor, generate) == (hf.load, processor.Processor, sampling.generate)


def test_any_other_name_is_refused():
  import rmsd_jax

  with pytest.raises(AttributeError, match="no attribute 'loads'"):
    rmsd_jax.loads  # noqa: B018

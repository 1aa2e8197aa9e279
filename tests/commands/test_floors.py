"""The architecture as tests: who imports whom, how long a file may be, what is not written."""

import ast
import collections
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rmsd_jax"

# A file imports from lower floors and from its own folder.
FLOORS = {
  0: {"core"},
  1: {"models", "tasks", "data"},
  2: {"method", "teacher"},
  3: {"rollouts", "training", "benchmarks"},
  4: {"report"},
  5: {
    "cli", "train_sft", "train_rl", "evaluate", "pool", "pool_collect", "convert", "compile",
    "demo",
  },
}  # fmt: skip
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
# `cli` has the flags and errors of every command. Other commands are started, not imported; but the
# ahead-of-time compiler reads the trainers' steps, the pool's command has a part in a file of its
# own, and the laws of the demo run commands with graders of their own.
# `benchmarks run` builds pools and evaluates in one process, of steps that `training` names.
SAME_FLOOR = (
  {("compile", "train_sft"), ("compile", "train_rl"), ("pool", "pool_collect")}
  | {("demo", command) for command in ("train_sft", "train_rl", "evaluate", "pool")}
  | {("benchmarks", there) for there in ("evaluate", "pool", "training")}
)
MAX_TOP_LEVEL_FILES = 8

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_MAIN_LINES = 90  # of a command's main, or a training step
CONFIG_NAMES = {"config", "cfg", "conf"}

FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = (
  FILES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "configs").rglob("*.py"))
)


def relative(path: Path) -> str:
  return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
  """Full dotted names of everything a file imports, at the top or inside a function."""
  for node in ast.walk(tree_of(path)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
      for alias in node.names:
        name = f"{node.module}.{alias.name}"
        inside = node.module.split(".")[0] == "rmsd_jax"
        yield name if not inside or name in MODULES else node.module


def unit(module: str) -> str | None:
  """The flat file or the folder a module of the package belongs to; None for the package itself."""
  parts = module.split(".")
  return parts[1] if parts[0] == "rmsd_jax" and len(parts) > 1 else None


def per_file(files: list[Path]) -> pytest.MarkDecorator:
  return pytest.mark.parametrize("path", files, ids=relative)


def allowed(here: str, there: str, module: str) -> bool:
  """Whether a file of the unit `here` may import `module`, which is of the unit `there`."""
  if there in (here, None) or FLOOR_OF[there] < FLOOR_OF[here]:
    return True
  if here == "data" and there == "tasks":
    return True
  if there == "cli":
    return FLOOR_OF[here] == 5 or here in ("report", "benchmarks")  # commands, too
  return (here, there) in SAME_FLOOR


@per_file([path for path in FILES if unit(module_of(path))])
def test_imports_come_from_lower_floors_or_the_own_folder(path):
  here = unit(module_of(path))
  assert here in FLOOR_OF, f"{relative(path)} has no floor; give {here!r} one in {__file__}"
  for module in imports(path):
    there = unit(module)
    assert allowed(here, there, module), f"{here} (floor {FLOOR_OF[here]}) imports {module}"


def test_few_files_lie_on_the_top_level():
  assert len(list(PACKAGE.glob("*.py"))) <= MAX_TOP_LEVEL_FILES


def test_no_two_modules_share_a_name():
  names = collections.Counter(path.stem for path in FILES if not path.stem.startswith("__"))
  names.update(path.name for path in PACKAGE.rglob("*") if (path / "__init__.py").is_file())
  assert not [name for name, count in names.items() if count > 1]


def test_no_two_test_files_share_a_name():
  # pytest imports them by their bare names: of two, one is not collected.
  names = collections.Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
  assert not [name for name, count in names.items() if count > 1]


def test_a_public_function_name_stands_in_at_most_two_modules():
  homes = collections.defaultdict(set)
  for path in FILES:
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        homes[node.name].add(module_of(path))
  # The same entry points in every trainer and command, so that one who knows one knows them all.
  by_design = {"main", "command", "make_steps"}
  assert not {k: v for k, v in homes.items() if len(v) > 2 and k not in by_design}


def test_imports_form_no_circle():
  graph = {
    module_of(path): {name for name in imports(path) if name in MODULES} - {module_of(path)}
    for path in FILES
  }
  list(graphlib.TopologicalSorter(graph).static_order())


def roots(path: Path) -> set[str]:
  return {name.split(".")[0] for name in imports(path)}


@per_file(FILES)
def test_foreign_packages_stay_in_their_place(path):
  here, used = unit(module_of(path)), roots(path)
  if here != "models":
    assert "flax" not in used, "only models/ knows flax"
  if here in {"tasks", "data"}:
    assert not used & {"jax", "optax", "orbax"}, "runs in worker processes: numpy only"
  foreign = {"tensorflow"} if here == "convert" else {"torch", "tensorflow"}  # verify needs torch
  assert not used & foreign, "not a dependency at run time"
  if here is not None and FLOOR_OF[here] < 5:
    flags = {name for name in imports(path) if name.startswith(("absl.flags", "absl.app"))}
    assert not flags, "flags belong to the commands"


@per_file(ALL_FILES)
def test_files_and_functions_are_short(path):
  lines = len(path.read_text(encoding="utf-8").splitlines())
  assert lines <= MAX_FILE_LINES, f"{lines} lines"
  for node in ast.walk(tree_of(path)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      length = node.end_lineno - node.lineno + 1
      long = node.name == "main" or node.name.endswith("_step")
      limit = MAX_MAIN_LINES if long else MAX_FUNCTION_LINES
      assert length <= limit, f"{node.name} in line {node.lineno} has {length} lines"


def test_the_programs_of_a_step_are_built_without_the_libraries_of_data():
  heavy = ("av", "grain", "tensorflow_datasets", "orbax", "sympy", "matplotlib", "tensorboardX")
  heavy += ("transformers", "scipy.stats")
  code = (
    "import sys\nfrom rmsd_jax import train_rl, train_sft\nimport rmsd_jax.compile.__main__\n"
    f"sys.exit(str([name for name in {heavy} if name in sys.modules] or ''))"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
  assert done.stderr.decode().split() == []


@per_file([path for path in FILES if path.read_text(encoding="utf-8").strip()])
def test_every_file_says_what_it_is_for(path):
  assert ast.get_docstring(tree_of(path)), "a docstring at the top"


@per_file(ALL_FILES)
def test_no_exception_is_caught_blindly(path):
  for node in ast.walk(tree_of(path)):
    if isinstance(node, ast.ExceptHandler):
      assert node.type is not None, f"line {node.lineno}: bare except"
      names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
      broad = names & {"Exception", "BaseException"}
      assert not broad, f"line {node.lineno}: except {broad.pop()}"


def ends_in_config(node: ast.expr) -> bool:
  """`config`, `x.config`, `config.model`, ...: an expression that reads from a config."""
  while isinstance(node, ast.Attribute):
    if node.attr in CONFIG_NAMES:
      return True
    node = node.value
  return isinstance(node, ast.Name) and node.id in CONFIG_NAMES


@per_file(ALL_FILES)
def test_a_config_has_no_hidden_defaults(path):
  for node in ast.walk(tree_of(path)):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      hidden = node.func.attr == "get" and ends_in_config(node.func.value)
      assert not hidden, f"line {node.lineno}: .get( on a config"


@per_file(FILES)
def test_nothing_is_left_for_later(path):
  words = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
  text = path.read_text(encoding="utf-8")
  assert not [word for word in words if word in text]

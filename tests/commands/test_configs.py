"""Configs: every key is read, every file loads, every override has a type, bad ones exit 2."""

import ast
import functools
import runpy
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rmsd_jax import cli, evaluate, train_rl, train_sft
from rmsd_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
DEFAULT = CONFIGS / "default.py"
STAGES = runpy.run_path(str(CONFIGS / "demo.py"))["STAGES"]
ABLATIONS = runpy.run_path(str(CONFIGS / "ablations.py"))
SOURCES = [ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "rmsd_jax").rglob("*.py"))]
COMMANDS = {"train_sft": train_sft, "train_rl": train_rl, "evaluate": evaluate}


def flat(config: ConfigDict, prefix: str = "") -> dict:
  """Every value by its dotted name."""
  values = {}
  for key, value in config.items():
    section = isinstance(value, ConfigDict)
    values |= flat(value, f"{prefix}{key}.") if section else {f"{prefix}{key}": value}
  return values


def variants() -> list[str]:
  """FILE or FILE:STAGE of everything under configs/."""
  found = []
  for path in sorted(CONFIGS.rglob("*.py")):
    staged = "def get_config(stage" in path.read_text("utf-8")
    name = str(path.relative_to(ROOT))
    if path.name == "ablations.py":
      rows = [(row, stage) for row in ABLATIONS["ROWS"] for stage in ABLATIONS["STAGES"]]
      found += [f"{name}:{row}/{stage}" for row, stage in rows]
      has = {"gate_off", "zero_head"}  # the presets have these already
      others = sorted(
        row for row, of in ABLATIONS["ROWS"].items() if not (of.goes_on or of.demo_alone)
      )
      others = [row for row in others if row not in has]
      found += [f"{name}:{row}/rl/qwen3vl_4b_rl" for row in others]
    else:
      found += [f"{name}:{stage}" for stage in STAGES] if staged else [name]
  return found


VALUES = flat(cli.load_config(str(DEFAULT)))


def parse(*overrides: str, config: Path | str = DEFAULT) -> ConfigDict:
  return cli.parse_config(["x", f"--config={config}", "--workdir=w", *overrides], {})[0]


# every key is read


def chain(node: ast.expr) -> tuple[str, ...]:
  """("config", "a", "b") of the expression config.a.b, () of another."""
  names = []
  while isinstance(node, ast.Attribute):
    names.append(node.attr)
    node = node.value
  return (node.id, *reversed(names)) if isinstance(node, ast.Name) else ()


@functools.cache
def reads() -> tuple[set[str], set[str]]:
  """Dotted names read off a `config`, and every name that code can read a passed section by."""
  dotted, names = set(), set()
  for tree in SOURCES:
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute):
        names.add(node.attr)
        parts = chain(node)
        if parts[:1] == ("config",):
          dotted.add(".".join(parts[1:]))
      elif isinstance(node, ast.arg):
        names.add(node.arg)
      elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        names.add(node.target.id)  # a field of a dataclass
      elif isinstance(node, ast.Tuple | ast.List):
        names |= {item.value for item in node.elts if isinstance(item, ast.Constant)}
  return dotted, names


@functools.cache
def passed_whole() -> set[str]:
  """Sections that code hands on or indexes: read by a function that has another name for them."""
  sections = set()
  for tree in SOURCES:
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
      parts = chain(node) if isinstance(node, ast.Attribute) else ()
      if parts[:1] == ("config",) and not isinstance(parents[node], ast.Attribute):
        sections.add(".".join(parts[1:]))
  return sections


@pytest.mark.parametrize("key", VALUES)
def test_every_key_is_read_somewhere(key):
  dotted, names = reads()
  *_, last = key.split(".")
  parents = {key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)}
  assert key in dotted or (parents & passed_whole() and last in names), (
    f"nothing in rmsd_jax/ reads config.{key}: a dead knob"
  )


def test_a_key_that_nothing_reads_would_be_noticed():
  dotted, names = reads()
  assert "optim.nesterov" not in dotted and "nesterov" not in names
  assert {"optim", "mesh", "rollouts"} <= passed_whole() and "steps" in dotted


# files and overrides


@pytest.mark.parametrize("variant", variants())
def test_every_config_file_loads_with_the_keys_and_types_of_the_default(variant):
  values = flat(cli.load_config(str(ROOT / variant)))
  own = {key for key in values if key not in VALUES}
  assert VALUES.keys() <= values.keys() and all(key.startswith("world.") for key in own)
  for key, value in VALUES.items():
    assert type(values[key]) is type(value), key
  sections = {name.rpartition(".")[0] for name in values} | {*values}
  for prefix in values["operational"]:
    assert prefix in sections, f"operational names {prefix!r}, which is no key"


FILES = sorted({variant.partition(":")[0] for variant in variants()} - {"configs/default.py"})


@pytest.mark.parametrize("variant", FILES)
def test_every_config_file_opens_with_its_command(variant):
  docstring = ast.get_docstring(ast.parse((ROOT / variant.partition(":")[0]).read_text("utf-8")))
  assert "python -m rmsd_jax." in docstring or "./launch/" in docstring


def test_a_stage_that_does_not_exist_is_refused_with_the_choices():
  with pytest.raises(UserError, match="no stage 'dpo'; choose one of sft, .*, rl, evaluate"):
    cli.load_config(f"{CONFIGS / 'demo.py'}:dpo")


@pytest.mark.parametrize("size", ["2b", "4b"])
def test_presets_have_the_settings_of_the_method(size):
  """The table of training settings, typed a second time: rate, schedule, warm-up, clip, steps."""
  of = lambda o, steps: (o.learning_rate, o.schedule, round(o.warmup_share * steps), o.clip_norm)
  sft, rl = (cli.load_config(str(CONFIGS / f"qwen3vl_{size}_{s}.py")) for s in ("sft", "rl"))
  assert (sft.steps, *of(sft.optim, sft.steps)) == (390, 2e-6, "cosine", 8, 1.0)
  assert (rl.steps, *of(rl.optim, rl.steps)) == (938, 1e-6, "constant", 5, 0.2)
  assert of(rl.discriminator.optim, rl.steps) == (1e-6, "constant", 5, 0.2)
  assert rl.batch == sft.batch == 128
  warm = lambda c: (c.discriminator.warmup_steps, c.discriminator.joint_warmup)
  assert (*warm(rl), rl.discriminator.zero_head) == (469, True, True)
  published = cli.load_config(f"{CONFIGS / 'ablations.py'}:published/rl/qwen3vl_{size}_rl")
  assert (*warm(published), published.discriminator.zero_head) == (10, False, False)
  assert published.steps == 479 and published.reward.score == "raw"
  assert (rl.rollouts.samples, rl.rollouts.temperature, rl.policy.kl) == (8, 0.8, 0.001)


def test_an_ablation_that_does_not_exist_is_refused_with_the_choices():
  for name in ("E/rl", "A/dpo", "A"):
    with pytest.raises(UserError, match=f"no '{name}'; give ROW/STAGE, a row of A, B, C, "):
      cli.load_config(f"{CONFIGS / 'ablations.py'}:{name}")
  with pytest.raises(UserError, match="qwen3vl_5b.py; name a file"):
    cli.load_config(f"{CONFIGS / 'ablations.py'}:A/rl/qwen3vl_5b")
  with pytest.raises(UserError, match="qwen3vl_4b_rl.py is not of stage sft"):
    cli.load_config(f"{CONFIGS / 'ablations.py'}:A/sft/qwen3vl_4b_rl")
  with pytest.raises(UserError, match="row gate_off changes nothing of qwen3vl_4b_rl.py"):
    cli.load_config(f"{CONFIGS / 'ablations.py'}:gate_off/rl/qwen3vl_4b_rl")
  longer = cli.load_config(f"{CONFIGS / 'ablations.py'}:C/rl/demo_long")
  assert longer.steps == cli.load_config(f"{CONFIGS / 'demo_long.py'}:rl").steps


@pytest.mark.parametrize("key", VALUES)
def test_every_key_can_be_overridden_with_its_own_type_alone(key):
  """Or with a whole number for a float; no value is None, which could not be."""
  value = VALUES[key]
  assert type(value) in (bool, int, float, str, tuple)
  assert flat(parse(f"--config.{key}={value}"))[key] == value
  other = "('a', 'b')" if type(value) is tuple and value[:1] and type(value[0]) is int else "(1, 2)"
  wrong = {bool: "3", int: "1.5", float: "much", tuple: other}
  if type(value) in wrong and value != ():
    with pytest.raises(UserError) as caught:
      parse(f"--config.{key}={wrong[type(value)]}")
    assert key in str(caught.value)


# bad configs end in one line and exit 2, before any work


def refused(module, arguments, tmp_path, monkeypatch, capsys) -> str:
  name = Path(module.__file__).stem
  stage = {"train_sft": "sft", "train_rl": "rl", "evaluate": "evaluate"}[name]
  line = [name, f"--config={CONFIGS / 'demo.py'}:{stage}", f"--workdir={tmp_path / 'run'}"]
  monkeypatch.setattr(sys, "argv", [*line, *arguments])
  with pytest.raises(SystemExit) as end:
    cli.config_app(module.main, getattr(module, "OPTIONS", None))
  out, err = capsys.readouterr()
  assert (end.value.code, out, err.count("\n")) == (2, "", 1)
  assert not (tmp_path / "run").exists()
  return err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_key_that_does_not_exist_is_one_line(name, tmp_path, monkeypatch, capsys):
  err = refused(COMMANDS[name], ["--config.model.fodler=x"], tmp_path, monkeypatch, capsys)
  assert err.startswith("error: unknown config key --config.model.fodler")
  assert "did you mean model.folder" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_batch_that_does_not_divide_over_the_mesh_is_one_line(
  name, tmp_path, monkeypatch, capsys
):
  given = ["--config.batch=12", "--config.mesh.fsdp=4", "--config.mesh.data=2"]
  err = refused(COMMANDS[name], given, tmp_path, monkeypatch, capsys)
  assert err.startswith("error: config.batch=12 is not a multiple of 8 mesh shards")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config.mesh.data=3", "--config.mesh.fsdp=1"], "does not fit 8 devices"),
    (["--config.batch=16", "--config.data.pool=nowhere"], "nowhere is not a finished pool"),
  ],
)
def test_other_bad_configs_are_one_line(name, arguments, words, tmp_path, monkeypatch, capsys):
  assert words in refused(COMMANDS[name], arguments, tmp_path, monkeypatch, capsys)


def test_a_key_that_was_renamed_is_set_by_either_name(tmp_path):
  """On the command line and in a config file that somebody wrote before."""
  for name in ("task", "inner"):
    arguments = ["x", "--config=configs/demo.py:rl", f"--config.reward.{name}=0.7"]
    config, _ = cli.parse_config(arguments, {}, workdir=False)
    assert config.reward.inner == 0.7 and "task" not in config.reward
  (tmp_path / "mine.py").write_text(
    f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom configs import default\n"
    "def get_config():\n  c = default.get_config()\n  c.reward.task = 0.6\n  return c\n"
  )
  config = cli.load_config(str(tmp_path / "mine.py"))
  assert config.reward.inner == 0.6 and "task" not in config.reward

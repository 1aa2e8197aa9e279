"""Entry point of every command: reads the command line, turns bad input into one line and exit 2.

Exit status: 0 success, 2 bad input (`UserError`), 130 interrupted from the keyboard, 143 ended by
SIGTERM after saving (`Terminated`). Anything else that escapes a command is a fault of this
software and keeps its traceback.
"""

import argparse
import difflib
import importlib.util
import inspect
import os
import re
import runpy
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from rmsd_jax.core import interrupts, peers
from rmsd_jax.core.errors import EXIT_BAD_INPUT as EXIT_BAD_INPUT
from rmsd_jax.core.errors import EXIT_FAULT, Terminated, UserError, outcome
from rmsd_jax.core.errors import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from rmsd_jax.core.errors import EXIT_TERMINATED as EXIT_TERMINATED
from rmsd_jax.training.old_runs import RENAMED_KEYS

# What a checkout has as configs/; here it is a link to that, in an installed package a folder.
CONFIGS = (Path(__file__).parent / "configs").resolve()
_SCRIPTS = "rmsd-"  # how the names of [project.scripts] in pyproject.toml begin
_HELP_FLAGS = ("-h", "-help", "--help")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_CONFIG_HELP = "Python file with get_config(); FILE:NAME passes NAME to it"
_WORKDIR_HELP = "folder of the run: to train, made, or resumed by the same config; else it is read"


def run(main: Callable[[], object]) -> NoReturn:
  """Calls `main()` and ends the process with the exit status described at the top of this file."""
  flags.FLAGS.mark_as_parsed()  # libraries read flags of their own (Grain's workers do): defaults
  try:
    # A shell without job control starts background commands with SIGINT ignored; Ctrl-C must work.
    with interrupts.listening(), peers.Together():
      main()
  except (UserError, OSError, KeyboardInterrupt, Terminated) as error:
    line, status = outcome(error)
    if status == EXIT_FAULT:
      raise
    print(line, file=sys.stderr)
    sys.exit(status)
  sys.exit(0)


def config_app(
  main: Callable[..., object],
  options: Mapping[str, tuple[str | bool, str]] | None = None,
  workdir: bool = True,
) -> NoReturn:
  """Runs a command that is driven by an ml_collections config file; the end of its module.

  Args:
    main: called as `main(config, workdir, **options)`; config is a locked ConfigDict with every
      `--config.key=value` applied, workdir an absolute path.
    options: further flags of this command, name -> (default, help); strings, or switches where the
      default is False.
    workdir: False for a command without `--workdir`; then called as `main(config, **options)`.
  """

  def start() -> None:
    options_ = dict(options or {})
    if any(argument in _HELP_FLAGS for argument in sys.argv[1:]):
      print(_help(main, options_, workdir))
      return
    # First, so that the others hear of it where this one's command line is at fault.
    if join_processes():
      peers.join()
    config, values = parse_config(sys.argv, options_, workdir)
    folders = [_absolute(values.pop("workdir"))] if workdir else []
    main(config, *folders, **values)

  run(start)


def join_processes() -> bool:
  """Joins the processes of a run on several hosts; whether RMSD_PROCESSES says that there are more.

      RMSD_PROCESSES=auto                on each host of a TPU slice (launch/tpu_vm.sh sets it)
      RMSD_PROCESSES=4 RMSD_PROCESS=0 JAX_COORDINATOR_ADDRESS=host:port    elsewhere, with all
                                         the devices that the process can see

  Raises:
    UserError: the variables make no sense.
  """
  count = os.environ.get("RMSD_PROCESSES", "1")
  if count == "1":
    return False
  import jax  # not at the top: --help and errors of the command line should not wait for it

  if count == "auto":
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise UserError(
        f"RMSD_PROCESSES=auto: {error} JAX knows no cluster here; give a number, RMSD_PROCESS and "
        "JAX_COORDINATOR_ADDRESS"
      ) from error
    return True
  number, address = (
    os.environ.get("RMSD_PROCESS", ""),
    os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
  )
  numbers = count.isdecimal() and number.isdecimal() and int(number) < int(count)
  if not numbers or ":" not in address:
    raise UserError(
      f"RMSD_PROCESSES={count!r} RMSD_PROCESS={number!r} JAX_COORDINATOR_ADDRESS={address!r}: give "
      "'auto', or a number of processes, this process's number from 0, and process 0's HOST:PORT"
    )
  jax.distributed.initialize(
    address if int(number) == 0 else peers.relay(address),
    num_processes=int(count),
    process_id=int(number),
    cluster_detection_method="deactivate",  # Slurm's would leave each process one GPU
  )
  return True


def parse_config(
  argv: Sequence[str], options: Mapping[str, tuple[str | bool, str]], workdir: bool = True
) -> tuple[ConfigDict, dict[str, Any]]:
  """Reads `prog --config=FILE [--workdir=DIR] [--option=..] [--config.key=value ...]`.

  Returns the locked config with its overrides, and the other flags by name (workdir among them).

  Raises:
    UserError: a flag or config key that does not exist (with close matches), a value of the wrong
      type, a missing flag or file, or a stray argument.
  """
  plain = flags.FlagValues()
  required = ["config", "workdir"] if workdir else ["config"]
  for name in required:
    flags.DEFINE_string(name, None, "", flag_values=plain)
  for name, (default, text) in options.items():
    define = flags.DEFINE_boolean if isinstance(default, bool) else flags.DEFINE_string
    define(name, default, text, flag_values=plain)
  overridable = flags.FlagValues()
  try:
    rest = [_under_todays_name(argument) for argument in plain(list(argv), known_only=True)]
    for name in required:
      if not plain[name].value:
        raise UserError(f"--{name} is missing; see --help")
    config = load_config(plain["config"].value)
    overrides = _override_names(config, rest)
    # A copy: the overrides are written into the config, and their types are compared with these.
    before = config.copy_and_resolve_references()
    config_flags.DEFINE_config_dict("config", config, flag_values=overridable, sys_argv=rest)
    stray = overridable(rest)[1:]
  except flags.UnrecognizedFlagError as error:
    known = [*required, *options]
    raise UserError(
      f"unknown flag --{error.flagname}{_close(error.flagname, known)}; see --help"
    ) from error
  except flags.IllegalFlagValueError as error:
    raise UserError(f"{error}; give a value of the type the config has there") from error
  except flags.Error as error:
    raise UserError(f"{error}; see --help") from error
  if stray:
    raise UserError(f"unexpected argument {stray[0]!r}; every argument is a flag, see --help")
  _check_tuples(before, config, overrides)
  return config, {name: plain[name].value for name in [*required[1:], *options]}


def load_config(path: str) -> ConfigDict:
  """Returns `get_config()` of a Python file, or `get_config(NAME)` for the path `FILE:NAME`.

  Where there is no file "configs/X.py" it is the one that comes with rmsd_jax.
  """
  file, colon, name = path.partition(":")
  if not Path(file).is_file() and Path(file).parts[:1] == ("configs",):
    file = str(CONFIGS.joinpath(*Path(file).parts[1:]))
  if not Path(file).is_file():
    raise UserError(f"--config={path}: there is no file {file}; give the path of a config file")
  spec = importlib.util.spec_from_file_location("rmsd_jax_config", file)
  if spec is None:
    raise UserError(f"--config={path}: {file} is not a Python file; its name must end in .py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise UserError(f"--config={path}: {file} defines no get_config(); see configs/default.py")
  parameters = inspect.signature(module.get_config).parameters.values()
  takes_name = bool(parameters)
  if colon and not takes_name:
    raise UserError(f"--config={path}: get_config() of {file} takes no name; drop ':{name}'")
  if not colon and any(p.default is p.empty for p in parameters):
    raise UserError(
      f"--config={path}: {file} makes several configs; give {file}:NAME, see its head"
    )
  try:
    config = module.get_config(name) if colon else module.get_config()
  except FileNotFoundError as error:  # as configs of before did, copied elsewhere
    raise UserError(
      f"--config={path}: {file} reads {error.filename}, which is not there; find it by "
      f'base_config(__file__, "{Path(str(error.filename)).name}") of rmsd_jax.cli, as configs/ does'
    ) from error
  except (TypeError, AttributeError, KeyError) as error:
    frames = traceback.extract_tb(error.__traceback__)
    library = Path(config_dict.__file__).parent
    if Path(frames[-1].filename).parent != library:
      raise
    # ml_collections refused what a line of this file, or of one that it is based on, sets or reads.
    *_, line = (frame for frame in frames if Path(frame.filename).parent != library)
    where = file if line.filename == module.__file__ else line.filename
    raise UserError(f"--config={path}: line {line.lineno} of {where}: {error.args[0]}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"--config={path}: get_config() returned a {type(config).__name__}; return a ConfigDict"
    )
  _rename_keys(config)
  _check_names(config, path)
  return config


def _check_names(config: ConfigDict, path: str) -> None:
  """Refuses what looks like a mistyped key of configs/default.py in a config that is based on it.
  Keys of a user's own pass."""
  known = _keys(runpy.run_path(str(CONFIGS / "default.py"))["get_config"]())
  keys = _keys(config)
  if not set(known) <= set(keys):
    return
  for key in sorted(set(keys) - set(known)):
    section, _, name = key.rpartition(".")
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(name, beside, 1, cutoff=0.8):
      meant = f"{section}.{close[0]}".lstrip(".")
      raise UserError(
        f"--config={path} sets {key}, which nothing reads; did you mean {meant}? A key of your own "
        "wants a name that is less alike"
      )


def base_config(file: str, name: str) -> Callable[..., ConfigDict]:
  """`get_config` of the config that another one changes, wherever that one lies.

      c = base_config(__file__, "default.py")()

  Args:
    file: of the config that asks.
    name: path of the other from the folder of `file`, such as "../default.py". Where it is not
      there, since `file` was copied, it is that of configs/, which come with rmsd_jax.

  Raises:
    UserError: there is no such file in either place, or it makes no config.
  """
  places = (Path(file).parent / name, CONFIGS / name.removeprefix("../"))
  # A copy may have the name of what it is based on.
  found = [path for path in places if path.is_file() and not path.samefile(file)]
  if not found:
    there_is_no = " and no ".join(map(str, places))
    raise UserError(f"{file}: there is no {there_is_no}; name a file that is there")
  made = runpy.run_path(str(found[0]))
  if "get_config" not in made:
    raise UserError(f"{file}: {found[0]} defines no get_config(), so nothing can be based on it")
  return made["get_config"]


def _rename_keys(config: ConfigDict) -> None:
  """A config file that sets a key by its former name sets today's."""
  known = _keys(config)
  for old, new in RENAMED_KEYS.items():
    if old in known and new in known:
      with config.unlocked():
        config.update_from_flattened_dict({new: _value(config, old)})
        section, _, name = old.rpartition(".")
        del _value(config, section)[name]


def _under_todays_name(argument: str) -> str:
  """An override of a key that was renamed, under the name it has now."""
  match = _OVERRIDE.match(argument)
  if not match or match[1] not in RENAMED_KEYS:
    return argument
  return argument[: match.start(1)] + RENAMED_KEYS[match[1]] + argument[match.end(1) :]


class Parser(argparse.ArgumentParser):
  """argparse for commands without a config: a fault is one line and exit 2, under `run`."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; see {self.prog} --help")


def parser_of(main: Callable[..., object]) -> Parser:
  """The parser of a command, without its flags; the docstring of main's module is the help."""
  module = inspect.getmodule(main)
  return Parser(
    prog=_program(module),
    description=module.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def _program(module: types.ModuleType) -> str:
  """What a user types to start a command: its console script where that was used, or the module."""
  script = Path(sys.argv[0]).name
  if script.startswith(_SCRIPTS):
    return script
  name = module.__spec__.name if module.__spec__ else Path(module.__file__).stem
  return f"python -m {name.removesuffix('.__main__')}"


def _override_names(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
  """Dotted names of the overridden values; each must exist and hold a value, not a section."""
  known = _keys(config)
  names = [match[1] for match in map(_OVERRIDE.match, arguments) if match]
  for name in names:
    if name not in known:
      raise UserError(
        f"unknown config key --config.{name}{_close(name, known)}; "
        "configs/default.py lists every key"
      )
    if isinstance(_value(config, name), ConfigDict):
      raise UserError(f"--config.{name} is a section; override its keys, --config.{name}.KEY=VALUE")
  return names


def _check_tuples(before: ConfigDict, after: ConfigDict, names: Sequence[str]) -> None:
  """ml_collections takes any elements for a tuple: keep the element types the config had."""
  for name in names:
    old = _value(before, name)
    new = _value(after, name)
    if not isinstance(old, tuple) or not old:
      continue
    # A whole number is a fine float; type() and not isinstance, for which True is an int.
    allowed = {type(item) for item in old} | ({int} if isinstance(old[0], float) else set())
    wrong = [item for item in new if type(item) not in allowed]
    if wrong:
      raise UserError(f"--config.{name}: {wrong[0]!r} does not fit; give values like {old}")


def _value(config: ConfigDict, name: str) -> object:
  for part in name.split("."):
    config = config[part]
  return config


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
  """All dotted names of a config, those of its sections included."""
  names = []
  for key, value in config.items():
    names.append(prefix + key)
    if isinstance(value, ConfigDict):
      names += _keys(value, f"{prefix}{key}.")
  return names


def _close(name: str, known: Sequence[str]) -> str:
  """`, did you mean a or b?` for a mistyped or misplaced name, or nothing."""
  last = name.rpartition(".")[2]
  matches = difflib.get_close_matches(name, known, cutoff=0.7)
  matches += [key for key in known if key.rpartition(".")[2] == last and key not in matches]
  return f", did you mean {' or '.join(matches[:3])}?" if matches else ""


def _help(
  main: Callable[..., object], options: Mapping[str, tuple[str | bool, str]], workdir: bool
) -> str:
  """The docstring of the command's module and its flags."""
  module = inspect.getmodule(main)
  rows = [("--config=FILE", _CONFIG_HELP)]
  if workdir:
    rows.append(("--workdir=DIR", _WORKDIR_HELP))
  rows += [
    (f"--{option}", text)
    if isinstance(default, bool)
    else (f"--{option}={option.upper()}", f"{text} (default: {default or 'none'})")
    for option, (default, text) in options.items()
  ]
  rows.append(("--config.KEY=VALUE", "overrides one value of the config; may be repeated"))
  width = max(len(flag) for flag, _ in rows) + 2
  needed = "--config=FILE --workdir=DIR" if workdir else "--config=FILE"
  usage = f"usage: {_program(module)} {needed} [--flag=VALUE ...] [--config.KEY=VALUE ...]"
  table = "\n".join(f"  {flag.ljust(width)}{text}" for flag, text in rows)
  return f"{usage}\n\n{inspect.cleandoc(module.__doc__ or '')}\n\nflags:\n{table}"


def _absolute(folder: str) -> str:
  """An absolute path; the address of a bucket is absolute already."""
  return folder if "://" in folder else str(Path(folder).absolute())

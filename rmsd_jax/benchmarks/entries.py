"""What `run` is asked for: sets under protocols, how, and where the results go."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmsd_jax.benchmarks import catalogue, preparing
from rmsd_jax.benchmarks.item import Benchmark, digest
from rmsd_jax.benchmarks.model_names import NamedModel
from rmsd_jax.benchmarks.protocols import Protocol
from rmsd_jax.core.errors import UserError

STEPS = ("prepare", "build", "evaluate", "card")
_OURS = ("data.pool", "data.split", "evaluate.name", "evaluate.greedy", "evaluate.samples")
OVERRIDE = "--config."


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to run.

  Attributes:
    out: DIR.
    config: of the evaluations.
    overrides: "--config.key=value" of it.
    samples: of a prompt, where the protocol samples.
    workers: processes that decode.
    allow_missing: leave out what cannot be shown, by name.
    until: the last of STEPS to be done.
    forms: of `exports.FORMS`, to be written, too.
  """

  out: Path
  config: str = "configs/eval/benchmark.py"
  overrides: tuple[str, ...] = ()
  samples: int = 1
  workers: int = 2
  allow_missing: bool = False
  until: str = "card"
  forms: tuple[str, ...] = ()

  def __post_init__(self):
    if taken := [key for key in map(_key, self.overrides) if key in _OURS]:
      raise UserError(f"--config.{taken[0]} is set by this command; use its flags, see --help")

  @property
  def base_folder(self) -> str:
    """The Hugging Face folder that runs are of, where a user says so; else ""."""
    given = [o.partition("=")[2] for o in self.overrides if _key(o) == "model.folder"]
    return given[-1] if given else ""

  def does(self, step: str) -> bool:
    return STEPS.index(step) <= STEPS.index(self.until)


@dataclasses.dataclass(frozen=True)
class Entry:
  """A set under a protocol, and where its files are."""

  benchmark: Benchmark
  protocol: Protocol
  root: Path
  settings: Settings

  @property
  def key(self) -> str:
    changed = f"-{digest(self.protocol.to_json())[:8]}" if self.protocol.changed else ""
    return f"{self.benchmark.name}.{self.protocol.name}{changed}"

  @property
  def prepared(self) -> Path:
    return self.settings.out / "prepared" / self.key

  def pool(self, reader: str) -> Path:
    return self.settings.out / "pools" / f"{self.key}.{reader}"

  def card(self, model: NamedModel) -> Path:
    return self.settings.out / "cards" / model.name / self.key

  @property
  def ways(self) -> tuple[str, int]:
    """How it is answered ("greedy" or "sampled"), and with how many sampled replies."""
    return ("sampled", self.settings.samples) if self.protocol.temperature else ("greedy", 0)

  @property
  def title(self) -> str:
    return f"{self.benchmark.title}, {self.protocol.title}"


def roots_of(texts: Sequence[str]) -> dict[str, Path]:
  """ "SET=ROOT" each -> set -> its folder.

  Raises:
    UserError: there is no such set, or it is there twice.
  """
  found: dict[str, Path] = {}
  for text in texts:
    name, _, root = text.partition("=")
    if not root or catalogue.the(name).name in found:
      raise UserError(f"{text!r}: give SET=ROOT, each set that `list` shows once")
    found[name] = Path(root).absolute()
  return found


def entries_of(
  sets: Mapping[str, Path],
  names: Sequence[str],
  overrides: Sequence[str],
  frames: Sequence[int],
  settings: Settings,
) -> list[Entry]:
  """What is to be run: every set under every protocol, and with every number of frames.

  Args:
    sets: name -> folder.
    names: of protocols.
    overrides: "field=value" each, for all of them.
    frames: of a clip, instead of the protocol's; (): as it says. Sets of pictures alone, which have
      no frames, are run once.
  """
  found = []
  for protocol in names:
    for name, root in sets.items():
      one = catalogue.the(name)
      numbers = frames if frames and one.has_clips else [0]
      for number in numbers:
        changes = [*overrides, *([f"frames={number}"] if number else [])]
        found.append(Entry(one, preparing.protocol_of(one, protocol, changes), root, settings))
  for entry in found:
    if entry.protocol.prompt not in entry.benchmark.prompts:
      raise UserError(
        f"{entry.benchmark.name} has no prompts {entry.protocol.prompt!r} (of "
        f"{entry.protocol.name}); leave it out, or run it by itself with --set prompt=NAME"
      )
    if entry.settings.samples > 1 and not entry.protocol.temperature:
      raise UserError(
        f"{entry.settings.samples} samples, but {entry.protocol.title} is greedy: they would be "
        "alike; give --set temperature=0.7, or another protocol"
      )
  return found


def _key(override: str) -> str:
  return override.removeprefix(OVERRIDE).partition("=")[0]

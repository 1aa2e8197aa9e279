"""Sets and models to cards and the table, in one command that goes on where it stopped.

    DIR/prepared/SET.PROTOCOL/         of `prepare`
    DIR/pools/SET.PROTOCOL.READER/     of `pool build`; READER: models that read alike share one
    DIR/models/MODEL/evaluate/         of `evaluate`: replies, and what they are of
    DIR/cards/MODEL/SET.PROTOCOL/      of `score`
    DIR/exports/MODEL/FORM/            of `export`
    DIR/table.md, table.csv            of all cards here
    DIR/compiled/                      compiled programs, to be used again

Every step is that of the command of its name; a step whose result is there is left out.
"""

import dataclasses
import fcntl
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmsd_jax import cli
from rmsd_jax.benchmarks import (
  answered,
  cards,
  exports,
  model_names,
  paper_tables,
  preparing,
  scoring,
)
from rmsd_jax.benchmarks.entries import OVERRIDE, Entry, Settings
from rmsd_jax.benchmarks.item import digest
from rmsd_jax.benchmarks.model_names import NamedModel
from rmsd_jax.core import peers
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text
from rmsd_jax.data.processor import Processor

_DRAWN = ("temperature", "top_p", "top_k")


def run_all(entries: Sequence[Entry], models: Sequence[str], settings: Settings) -> None:
  """Runs entries with models to cards, and writes the table.

  Args:
    models: see `model_names`.

  Raises:
    UserError: of any step. What was done stays, and the same command goes on from there.
  """
  several = cli.join_processes()
  if several:
    peers.join()
  found = model_names.models_named(models, settings.base_folder)
  # All of them before the first step: a fault of the command line is told at once.
  runs = [(model, entry, _config(model, entry, settings)) for model in found for entry in entries]
  with _OneAtATime(settings.out, several) as first:
    if first:
      for entry in entries:
        _prepare(entry)
    readers = {model: _reader(model.folder) for model in found}
    if first and settings.does("build"):
      for entry in entries:
        for reader, model in {readers[model]: model for model in reversed(found)}.items():
          _build(entry, reader, model.folder)
    if settings.does("evaluate"):
      for number, (model, entry, config) in enumerate(runs, 1):
        if first:
          print(f"[{number}/{len(runs)}] {model.name}: {entry.title}", flush=True)
        _evaluate(model, entry, config, entry.pool(readers[model]), first)
    if first and settings.does("card"):
      _write_table(settings.out)


class _OneAtATime:
  """Holds DIR for this command; whether this is the process that writes there.

  Of several processes the others wait for the first wherever they would need what it makes.
  """

  def __init__(self, out: Path, several: bool):
    self._out = out
    self._several = several
    self._lock: Any = None

  def __enter__(self) -> bool:
    if self._several and _process():
      return False
    try:
      self._out.mkdir(parents=True, exist_ok=True)
      self._lock = open(self._out / "lock", "w", encoding="utf-8")
    except OSError as error:
      raise UserError(
        f"{self._out} cannot be written ({error.strerror}); give another --out"
      ) from error
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends, however
    except OSError as error:
      self._lock.close()
      raise UserError(f"another command is at work in {self._out}; wait for it") from error
    return True

  def __exit__(self, *exc: object) -> None:
    if self._lock is not None:
      self._lock.close()


def _process() -> int:
  import jax  # not at the top: it wakes the devices, which builds of pools do without

  return jax.process_index()


def _wait() -> None:
  """Until all processes are here."""
  from rmsd_jax.core import sharding

  sharding.gathered([])


def _prepare(entry: Entry) -> None:
  out = entry.prepared
  if not out.exists():
    print(f"prepare {entry.title}", flush=True)
    allowed = entry.settings.allow_missing
    preparing.prepare(entry.benchmark, entry.root, entry.protocol, out, allowed)
  made = preparing.load(out)
  if made.protocol != entry.protocol or made.about["root"] != str(entry.root):
    raise UserError(
      f"{out} is of {made.about['root']} and {made.protocol.title}, now {entry.root} and "
      f"{entry.protocol.title} are asked for; remove it, or give another --out"
    )
  if made.missing and not entry.settings.allow_missing:
    raise UserError(
      f"{out} lacks {len(made.missing)} items; complete {entry.root} and remove it, or give "
      "--allow-missing"
    )
  for id_, reason in made.missing.items():
    print(f"missing in {entry.benchmark.title}: {id_}: {reason}")


def _reader(folder: str) -> str:
  """8 hex digits of what of a Hugging Face folder decides how a pool is built."""
  processor = Processor(folder)
  return digest([processor.settings(), dataclasses.asdict(processor.layout)])[:8]


def _build(entry: Entry, reader: str, folder: str) -> None:
  from rmsd_jax import pool

  out = entry.pool(reader)
  if out.exists():
    return
  print(f"build {entry.title}", flush=True)
  out.parent.mkdir(exist_ok=True)
  bad = 1.0 if entry.settings.allow_missing else 0.0
  records = str(entry.prepared / preparing.RECORDS)
  pool.main(
    [
      *("build", "--jsonl", records, "--tokenizer", folder, "--media-root", str(entry.root)),
      *entry.protocol.pool_flags(),
      *("--fit", str(entry.protocol.max_tokens), "--out", str(out)),
      *("--workers", str(entry.settings.workers), "--max-bad-share", str(bad)),
    ]
  )


def _config(model: NamedModel, entry: Entry, settings: Settings) -> Any:
  """The config of an evaluation but for the pool."""
  way, samples = entry.ways
  values = {
    "data.split": "test",
    "evaluate.name": entry.key,
    "evaluate.greedy": way == "greedy",
    "evaluate.samples": samples,
    **{f"rollouts.{field}": getattr(entry.protocol, field) for field in _DRAWN},
  }
  flags = [f"{OVERRIDE}{field}={value}" for field, value in values.items()]
  given = [*flags, *settings.overrides, f"{OVERRIDE}model.folder={model.folder}"]
  config, _ = cli.parse_config(["run", f"--config={settings.config}", *given], {}, workdir=False)
  return config


def _asked_for(config: Any) -> dict[str, Any]:
  """What of a config a score depends on, for the card and for whether it is there already."""
  return {
    "seed": config.seed,
    "samples": config.evaluate.samples,
    "limit": config.data.limit,
    "blind": config.data.blind,
    "tasks": list(config.data.tasks),
    "dtype": config.model.dtype,
    "rollouts": {name: config.rollouts[name] for name in _DRAWN},
  }


def _evaluate(model: NamedModel, entry: Entry, config: Any, pool: Path, first: bool) -> None:
  """Replies of a model to an entry, and their card."""
  from rmsd_jax import evaluate
  from rmsd_jax.core import sharding

  out = entry.card(model)
  replies = entry.settings.out / "models" / model.name
  asked = _asked_for(config)
  there = _there(out, asked) if first else False
  if any(sharding.gathered([there])):
    return
  if first:
    model_names.keep_name(model, replies)
  _keep_compiled(entry.settings.out / "compiled")
  with config.unlocked():
    config.data.pool = str(pool)
  evaluate.main(config, model.workdir, model.checkpoint, out=str(replies))
  gc.collect()  # weights that are no longer used
  if first and entry.settings.does("card"):
    result = replies / "evaluate" / f"{config.evaluate.name}.json"
    _write_card(model, entry, result, pool, out, asked)
  _wait()


def _there(out: Path, asked: Mapping[str, Any]) -> bool:
  """Whether a card is there; one of other settings is refused."""
  if not (out / cards.CARD).exists():
    return False
  card = cards.read_card(out)
  if (before := card["run"].get("asked")) != asked:
    raise UserError(
      f"{out} was made with {before}, now {asked} is asked for; remove it and its replies, or give "
      "another --out"
    )
  print(f"there already: {out}")
  return True


def _keep_compiled(folder: Path) -> None:
  import jax

  if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _write_card(
  model: NamedModel,
  entry: Entry,
  result: Path,
  pool: Path,
  out: Path,
  asked: Mapping[str, Any],
) -> None:
  prepared = preparing.load(entry.prepared)
  found = answered.read_responses(result, entry.ways[0])
  run = {"name": model.name, "workdir": model.workdir, "asked": asked}
  responses = dataclasses.replace(found, run={**run, **found.run})
  rows = scoring.grade(prepared, responses, entry.protocol, entry.settings.allow_missing)
  card = scoring.card(prepared, responses, entry.protocol, rows, pool=str(pool))
  for form in entry.settings.forms:
    _export(form, prepared, responses, entry, model)
  cards.write_card(out, card, rows)  # last: what has a card is done
  print("\n".join(cards.summary_lines(card)))


def _export(
  form: str,
  prepared: preparing.Prepared,
  responses: answered.Responses,
  entry: Entry,
  model: NamedModel,
) -> None:
  to = entry.settings.out / "exports" / model.name / entry.key / form
  try:
    exports.export_for(form, prepared, responses, model.name, to)
    if form in exports.CAUTIONS:
      print(f"{form}: {exports.CAUTIONS[form]}")
  except UserError as why:
    print(f"not exported for {form}: {why}")


def _write_table(out: Path) -> None:
  """The table of all cards of DIR."""
  found = [cards.read_card(folder) for folder in cards.folders(out / "cards")]
  made = paper_tables.tables(found)
  text = paper_tables.markdown(made, paper_tables.knowledge(found))
  replace_text(out / "table.md", text)
  replace_text(out / "table.csv", paper_tables.comma_separated(made))
  print(text, end="")
  print(f"wrote {out / 'table.md'} and table.csv")

"""A set's folder -> a prepared folder: JSON Lines for `pool build`, and what scoring needs.

OUT/records.jsonl     a prompt a line, in the form of a pool: its exact words under "asked", its
                      set, protocol, scorer and breakdown under "benchmark"
OUT/items.jsonl       the items, in the set's order
OUT/benchmark.json    set, protocol, hashes, what is missing; written last
OUT/images/           pictures that stand inside the set's table
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import catalogue, protocols
from rmsd_jax.benchmarks.item import Ask, Benchmark, Item, Picture, digest, record_id
from rmsd_jax.benchmarks.official_files import Folder
from rmsd_jax.benchmarks.protocols import Protocol
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import lines_of
from rmsd_jax.data import records
from rmsd_jax.data.subtitles import Subtitle
from rmsd_jax.tasks import Rules

FORM = 1  # of a prepared folder; raise it with every change that scoring must know
RECORDS, ITEMS, ABOUT = "records.jsonl", "items.jsonl", "benchmark.json"
_NO_ANSWER = "(none)"  # where the set has none that a record may have; scoring reads items.jsonl


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A prepared folder.

  Attributes:
    folder: where it lies.
    benchmark, protocol: what was prepared, and how.
    about: the contents of benchmark.json.
    items: in the set's order, those without media included.
  """

  folder: Path
  benchmark: Benchmark
  protocol: Protocol
  about: Mapping[str, Any]
  items: tuple[Item, ...]

  @property
  def missing(self) -> dict[str, str]:
    """Item -> why it cannot be asked."""
    return {one["id"]: one["reason"] for one in self.about["missing"]}

  def ids(self) -> list[tuple[Item, str, str]]:
    """(item, call, record id) of everything that is asked."""
    asked = [item for item in self.items if item.id not in self.missing]
    return [(item, call, record_id(item, call)) for item in asked for call in self.benchmark.calls]


def prepare(
  benchmark: Benchmark, root: Path, protocol: Protocol, out: Path, allow_missing: bool = False
) -> Prepared:
  """Reads a set and writes its prepared folder.

  Args:
    root: the set's own files and media.
    out: a folder that is not there yet.
    allow_missing: go on where items lack a clip or a picture; they are named in benchmark.json.

  Raises:
    UserError: the files are not the set's, media are missing, the set lacks the protocol's prompts
      or extractor, or `out` is there.
  """
  if out.exists():
    raise UserError(f"{out} is there already; give another --out, or remove it first")
  items = _read(benchmark, root)
  benchmark.asks(items[0], protocol)
  for call in benchmark.calls:
    benchmark.grade(items[0], call, "", protocol)  # an extractor that the set lacks is told now
  draft = out.with_name(f".{out.name}.partial")
  shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
  try:
    draft.mkdir(parents=True)
  except OSError as error:
    raise UserError(f"{out} cannot be made ({error.strerror}); give another --out") from error
  try:
    lines, missing = _lines(benchmark, items, protocol, root, draft)
    if missing and not allow_missing:
      first = missing[0]
      raise UserError(
        f"{len(missing)} of {len(items)} items cannot be shown, the first {first['id']!r}: "
        f"{first['reason']}; complete {root}, or give --allow-missing to leave them out by name"
      )
    if not lines:
      raise UserError(f"none of the {len(items)} items has its media in {root}; is it the folder?")
    about = _about(benchmark, items, protocol, root, lines, missing)
    _write(draft / RECORDS, lines)
    _write(draft / ITEMS, (item.to_json() for item in items))
    (draft / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(draft, out)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return Prepared(out, benchmark, protocol, about, tuple(items))


def _read(benchmark: Benchmark, root: Path) -> list[Item]:
  try:
    return benchmark.read(root)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    # A file with the right name whose values are of other kinds than the set's.
    raise UserError(
      f"{root} holds a file that is not of {benchmark.title}'s form ({type(error).__name__}: "
      f"{error}); copy it again from the set"
    ) from error


def load(folder: Path) -> Prepared:
  """A prepared folder.

  Raises:
    UserError: it is none, or of another version of this software.
  """
  path = folder / ABOUT
  if not path.is_file():
    raise UserError(f"{folder} has no {ABOUT}; give a folder that `benchmarks prepare` made")
  try:
    about = json.loads(path.read_text("utf-8"))
    if about["form"] != FORM:
      raise UserError(f"{folder} is of form {about['form']}, this reads {FORM}; prepare it again")
    lines = lines_of((folder / ITEMS).read_text("utf-8"))
    items = tuple(Item.from_json(json.loads(line)) for line in lines)
    protocol = Protocol.from_json(about["protocol"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{folder} cannot be read ({type(error).__name__}: {error}); prepare it again"
    ) from error
  return Prepared(folder, catalogue.the(about["set"]), protocol, about, items)


def _about(
  benchmark: Benchmark,
  items: Sequence[Item],
  protocol: Protocol,
  root: Path,
  lines: Sequence[Mapping[str, Any]],
  missing: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
  known = [[item.id, item.question, list(item.options), item.answer] for item in items]
  return {
    "form": FORM,
    "set": benchmark.name,
    "title": benchmark.title,
    "size": benchmark.size,
    "items": len(items),
    "prompts": len(lines),
    "items_hash": digest(known),
    "prompt_hash": digest([[line["id"], line["asked"]] for line in lines]),
    "protocol": protocol.to_json(),
    "root": str(root.absolute()),
    "missing": list(missing),
    "kinds": sorted({medium["type"] for line in lines for medium in line["media"]}),
  }


def _lines(
  benchmark: Benchmark, items: Sequence[Item], protocol: Protocol, root: Path, draft: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
  """(records, items that cannot be shown with the reason)."""
  folder, rules = Folder(root.absolute()), Rules()
  lines, missing = [], []
  for item in items:
    asks = benchmark.asks(item, protocol)
    made = []
    try:
      subtitles = _subtitles(benchmark, item, folder, root) if protocol.subtitles else []
      for ask in asks:
        media = [_placed(one, folder, root, draft) for one in _shown(item, ask)]
        made.append(_record(benchmark, item, ask, protocol, media, subtitles, rules))
    except (_Missing, records.RecordFault) as fault:
      reason = fault.reason if isinstance(fault, records.RecordFault) else str(fault)
      missing.append({"id": item.id, "reason": reason})
      continue
    lines += made
  return lines, missing


class _Missing(Exception):
  """Why an item cannot be shown."""


def _shown(item: Item, ask: Ask) -> tuple[Picture, ...]:
  return item.media if ask.media is None else ask.media


def _subtitles(benchmark: Benchmark, item: Item, folder: Folder, root: Path) -> list[Subtitle]:
  """Of an item of a set that has them."""
  files = benchmark.subtitles
  assert files is not None  # `Benchmark.asks` refuses the protocol
  places = files.places(item)
  if not places:
    raise _Missing("its row names no file of subtitles")
  found = folder.path(places)
  if found is None:
    raise _Missing(f"no file {places[0]} in {root}")
  return files.read(item, found)


def _placed(picture: Picture, folder: Folder, root: Path, draft: Path) -> dict[str, str]:
  """A medium of a record; pictures of tables are written."""
  if picture.content:
    path = draft / picture.places[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture.content)
    return {"type": picture.type, "path": picture.places[0]}
  found = folder.path(picture.places)
  if found is None:
    raise _Missing(f"no file {picture.places[0]} in {root}")
  # The draft is renamed where it stands, so that paths from it stay what they are.
  relative = os.path.relpath(found, draft.absolute())
  return {"type": picture.type, "path": pathlib.PurePath(relative).as_posix()}


def _record(
  benchmark: Benchmark,
  item: Item,
  ask: Ask,
  protocol: Protocol,
  media: Sequence[Mapping[str, str]],
  subtitles: Sequence[Subtitle],
  rules: Rules,
) -> dict[str, Any]:
  """A record of the pool: multiple choice where the truth is one of its letters, else open."""
  answer = item.answer
  if isinstance(answer, list):
    answer = answer[-1 if protocol.gold == "last" else 0] if answer else ""
  options = item.lettered()
  asked = {
    "text": ask.text,
    "before": ask.before,
    "system": protocol.system,
    "subtitles": [dataclasses.asdict(subtitle) for subtitle in subtitles],
  }
  record: dict[str, Any] = {
    "id": record_id(item, ask.call),
    "task": "multiple_choice",
    "question": item.question if item.question.strip() else ask.text or ask.before,
    "options": options,
    "answer": answer,
    "media": list(media),
    "source": benchmark.name,
    "split": "test",
    "clip": item.cluster,
    "asked": {name: words for name, words in asked.items() if words},
    "benchmark": {
      "set": benchmark.name,
      "protocol": protocol.title,
      "scorer": protocol.extractor,
      "item": item.id,
      "call": ask.call,
      "cluster": item.cluster,
      "fields": {name: list(v) if isinstance(v, tuple) else v for name, v in item.fields.items()},
    },
  }
  if not options or rules.validate("multiple_choice", answer, options):
    text = str(answer).strip()
    usable = not rules.validate("open_ended", text, ())
    record |= {"task": "open_ended", "options": [], "answer": text if usable else _NO_ANSWER}
  records.parse(json.dumps(record, ensure_ascii=False), 0, rules.tasks)
  return record


def _write(path: Path, values: Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]]) -> None:
  with open(path, "w", encoding="utf-8") as file:
    for value in values:
      file.write(json.dumps(value, ensure_ascii=False) + "\n")


def commands(prepared: Prepared, tokenizer: str = "FOLDER") -> list[str]:
  """What to type next."""
  flags = " ".join(prepared.protocol.pool_flags())
  source = f"--jsonl {prepared.folder / RECORDS} --tokenizer {tokenizer} {flags}"
  source += f" --media-root {prepared.about['root']}"
  return [
    f"python -m rmsd_jax.pool plan {source}",
    f"python -m rmsd_jax.pool build {source} --out POOL --buckets P,T,F,S",
  ]


def protocol_of(benchmark: Benchmark, name: str, overrides: Sequence[str]) -> Protocol:
  """The protocol of a command line."""
  return protocols.protocol_named(name, benchmark.presets, overrides)

"""What every importer does: items of a file -> records, refusals counted by kind and by reason."""

import collections
import json
import os
import pathlib
import posixpath
from collections.abc import Callable, Iterable
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import json_lines, records
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher.importers import Imported


class Refused(Exception):
  """(kind, reason): why an item is not taken."""


def write(
  source: str | os.PathLike,
  out: str | os.PathLike,
  items: Iterable[tuple[int, Any]],
  made_of: Callable[[Any], list[dict[str, Any]]],
  rules: Rules,
  media_root: str | os.PathLike,
  split: str,
) -> Imported:
  """Writes the records of a file.

  An item that has no place in a pool is refused: OUT.quarantine.jsonl says which and why. The id of
  a record is the name of the file and the item's place in it, counted from 1; where an item is
  several records, they are numbered from 1, too.

  Args:
    items: (place from 1, item, or the `Refused` of one that cannot be read).
    made_of: item -> its records without id and split; raises Refused. Paths of media start from
      `media_root`.
    rules: the tasks; their `validate` must accept every answer.
    media_root: "": the folder of `source`. Records get paths relative to the folder of `out`.

  Raises:
    UserError: `out` exists, or nothing can be taken.
  """
  root = os.path.abspath(media_root or os.path.dirname(os.path.abspath(source)))
  base = os.path.dirname(os.path.abspath(out))
  folder = os.path.relpath(root, base)
  tasks = collections.Counter()
  paths = set()
  reasons = collections.Counter()
  with json_lines.new_file(out) as file, json_lines.kept_quarantine(out, 1.0) as quarantine:
    for number, item in items:
      try:
        if isinstance(item, Refused):
          raise item
        made = made_of(item)
        for k, record in enumerate(made, 1):
          part = f"-{k}" if len(made) > 1 else ""
          name = f"{pathlib.Path(source).stem}-{number}{part}"
          # All records of an item before the first is written: an item is taken whole or not at
          # all.
          made[k - 1] = _checked({"id": name} | record, number, folder, split, rules)
      except (Refused, records.RecordFault) as error:
        kind, reason = error.args if isinstance(error, Refused) else ("record", error.reason)
        quarantine.add(os.fspath(source), number, str(number), kind, reason)
        reasons[f"{kind}: {json_lines.pattern(reason)}"] += 1
        continue
      for record in made:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        tasks[record["task"]] += 1
        paths |= {media["path"] for media in record["media"]}
    refused = dict(sorted(quarantine.kinds.items()))
    if not tasks:
      raise UserError(f"none of the {sum(refused.values())} items of {source} can be taken; "
                      f"the first: {quarantine.first or 'there is none'}")  # fmt: skip
  missing = sum(not os.path.isfile(os.path.join(base, path)) for path in paths)
  return Imported(
    dict(sorted(tasks.items())), refused, len(paths), missing, dict(reasons.most_common())
  )


def _checked(
  record: dict[str, Any], number: int, folder: str, split: str, rules: Rules
) -> dict[str, Any]:
  """A record that a pool takes, its media under the folder of `out`."""
  record = record | {
    "media": [
      {**media, "path": posixpath.normpath(posixpath.join(folder, _inside(media["path"])))}
      for media in record["media"]
    ],
    "split": split,
  }
  # By the very reader of pools, so that what is written here can be built.
  read = records.parse(json.dumps(record, ensure_ascii=False), number, rules.of_records)
  if fault := rules.validate(read.task, read.answer, read.options):
    raise Refused("ground truth", f"{read.task}: {fault}")
  return record


def _inside(path: Any) -> str:
  """A path below the media root, as published code takes it: "/a" and "./a" are "a"."""
  if not isinstance(path, str) or not path.strip():
    raise Refused("media", f"{path!r} is not the path of a file")
  plain = posixpath.normpath(path.lstrip("/"))
  if plain.split("/")[0] == "..":
    raise Refused("media", f"the path {path!r} leaves the folder of the media")
  return plain


def json_items(source: str | os.PathLike) -> list[tuple[int, Any]]:
  """(place from 1, item) of a JSON list, of JSON Lines (other lines are `Refused`), or of one JSON
  object of many, whose items are (key, value).

  Raises:
    UserError: the file is missing or not of that form.
  """
  text = text_of(source)
  try:
    if text.lstrip().startswith("["):
      return [(n, _taken(item)) for n, item in enumerate(_parsed(text), 1)]
    if text.lstrip().startswith("{") and (whole := _object(text)) is not None:
      return [(n, _taken(item)) for n, item in enumerate(whole.items(), 1)]
  except (ValueError, RecursionError) as error:
    raise UserError(_unreadable(source, error)) from error
  return [(n, _line(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _object(text: str) -> dict[str, Any] | None:
  """The one object that a text is, where its values are objects, too; None of JSON Lines."""
  try:
    value = _parsed(text)
  except ValueError:
    return None
  # An object of texts and numbers is the only line of JSON Lines.
  several = value and all(isinstance(inner, dict) for inner in value.values())
  if several and isinstance(value, _Twins):
    raise ValueError(_TWICE)
  return value if several else None


class _Twins(dict):
  """An object that gives a key twice: which value holds, nobody can tell."""


_TWICE = "an object in it gives a key twice"


def _parsed(text: str) -> Any:
  def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else _Twins(values)

  return json.loads(text, object_pairs_hook=made)


def _has_twins(value: Any) -> bool:
  inner = value.values() if isinstance(value, dict) else value
  several = isinstance(value, dict | list | tuple)
  return isinstance(value, _Twins) or (several and any(map(_has_twins, inner)))


def _taken(item: Any) -> Any:
  return Refused("form", _TWICE) if _has_twins(item) else item


def loads(text: str) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: it is none, or an object in it gives a key twice.
  """
  value = _parsed(text)
  if _has_twins(value):
    raise ValueError(_TWICE)
  return value


def text_of(source: str | os.PathLike) -> str:
  """The text of a file; UserError where there is none."""
  try:
    # -sig: files from Windows begin with a mark that JSON refuses.
    return pathlib.Path(source).read_text(encoding="utf-8-sig")
  except (OSError, ValueError) as error:
    raise UserError(_unreadable(source, error)) from error


def _unreadable(source: str | os.PathLike, error: Exception) -> str:
  return (
    f"{source} cannot be read ({type(error).__name__}: {error}); give a JSON list of items, JSON "
    "Lines, or what the format has"
  )


def _line(text: str) -> Any:
  try:
    return _taken(_parsed(text))
  except (ValueError, RecursionError) as error:
    return Refused("form", f"not JSON: {error}")


def string(item: dict[str, Any], key: str) -> str:
  """The text under a key; Refused where there is none."""
  if not isinstance(item.get(key), str):
    raise Refused("form", f"{key!r} is {'missing' if key not in item else 'not a string'}")
  return item[key]

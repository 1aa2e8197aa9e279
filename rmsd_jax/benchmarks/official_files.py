"""The forms in which sets are published: parquet, JSON, JSON Lines and tables with pictures inside.

A row is a dict. A file that is not what it should be is refused with its name.
"""

import ast
import base64
import binascii
import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epy

from rmsd_jax.benchmarks.item import Item, Picture
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import lines_of

with epy.lazy_imports():
  import pyarrow
  import pyarrow.parquet

_BACK_REFERENCE = 64  # characters: a shorter picture is the index of the row that has it
_PICTURES = {
  **{b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"},
  **{b"BM": ".bmp", b"II*\x00": ".tif", b"MM\x00*": ".tif"},
}


def find(root: Path, *patterns: str) -> list[Path]:
  """The files of the first pattern that has any, sorted.

  Raises:
    UserError: none has.
  """
  if not root.is_dir():
    raise UserError(f"{root} is no folder; give the folder of the set's own files")
  for pattern in patterns:
    if found := sorted(path for path in root.glob(pattern) if path.is_file()):
      return found
  raise UserError(
    f"{root} holds none of the set's files ({', '.join(patterns)}); give the folder that the set "
    "was unpacked into"
  )


def rows(path: Path) -> list[dict[str, Any]]:
  """The rows of a parquet file, a table, JSON Lines, or a JSON list.

  Raises:
    UserError: it is not of the form that its name says.
  """
  if path.suffix == ".parquet":
    return _parquet(path)
  if path.suffix == ".tsv":
    return _table(path)
  if path.suffix == ".jsonl":
    value = [_json(line, path) for line in lines_of(_text(path))]
  else:
    value = _json(_text(path), path)
  if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
    raise UserError(f"{path} is not a list of objects; copy it again from the set")
  return value


def mapping(path: Path) -> dict[str, Any]:
  """A JSON file that is one object.

  Raises:
    UserError: it is none.
  """
  value = _json(_text(path), path)
  if not isinstance(value, dict):
    raise UserError(f"{path} is not an object of items; copy it again from the set")
  return value


def _text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({type(error).__name__}); copy it again") from error


def _json(text: str, path: Path) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not JSON ({error}); copy it again from the set") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
  try:
    return pyarrow.parquet.read_table(path).to_pylist()
  except (OSError, ValueError, pyarrow.ArrowException) as error:
    raise UserError(f"{path} is no parquet file ({error}); copy it again from the set") from error


def _table(path: Path) -> list[dict[str, Any]]:
  """A table with tabs, quoted as pandas does it; cells are texts, and empty ones are left out."""
  csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # pictures are cells
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      lines = list(csv.DictReader(file, delimiter="\t", strict=True))
  except (OSError, ValueError, csv.Error) as error:
    raise UserError(f"{path} is no table with tabs ({error}); copy it again") from error
  if bad := next((n for n, row in enumerate(lines, 2) if None in row or None in row.values()), 0):
    raise UserError(f"{path} row {bad} has more or fewer cells than the first; copy it again")
  return [{name: cell for name, cell in row.items() if cell != ""} for row in lines]


def cell(row: Mapping[str, Any], name: str, path: Path) -> Any:
  """The value of a column.

  Raises:
    UserError: the row has none.
  """
  if row.get(name) is None:
    shown = ", ".join(map(str, list(row)[:12])) or "nothing"
    raise UserError(f"{path}: a row has no {name!r}, but {shown}; is this the set's own file?")
  return row[name]


def texts(value: Any, path: Path) -> list[str]:
  """A list of texts: a list, or one written as JSON or Python do; None and "" are none.

  Raises:
    UserError: it is something else.
  """
  if isinstance(value, str) and value.strip():
    try:
      value = json.loads(value)
    except (ValueError, RecursionError):
      try:
        value = ast.literal_eval(value)
      except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{path}: {value[:60]!r} is not a list; copy it again") from None
  if value is None or value == "":
    return []
  if isinstance(value, tuple | list):
    return [str(one) for one in value]
  raise UserError(f"{path}: {str(value)[:60]!r} is not a list; copy it again from the set")


def to_number(value: Any, name: str, path: Path) -> float:
  """A number, or its text.

  Raises:
    UserError: it is none.
  """
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    raise UserError(f"{path}: {name} is {value!r}, not a number; copy it again")
  return number


def embedded(value: Any, name: str, path: Path) -> Picture:
  """A picture inside a table: base64, a struct of bytes and path, or the path of a file.

  Args:
    name: of the file that it becomes.

  Raises:
    UserError: it is none of these.
  """
  if isinstance(value, Mapping):
    if not value.get("bytes"):
      return Picture("image", (str(value["path"]),)) if value.get("path") else _no_picture(path)
    content = value["bytes"]
  elif isinstance(value, bytes):
    content = value
  elif isinstance(value, str) and len(value) <= 1_024 and Path(value).suffix:
    return Picture("image", (value,))
  elif isinstance(value, str):
    try:
      content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
      content = b""
  else:
    content = b""
  suffix = next((end for head, end in _PICTURES.items() if content.startswith(head)), "")
  if not suffix:
    _no_picture(path)
  return Picture("image", (f"images/{name}{suffix}",), content)


def _no_picture(path: Path) -> Any:
  raise UserError(
    f"{path}: a cell holds no picture (PNG, JPEG, GIF, WebP, BMP, TIFF); copy it again"
  )


def shared_pictures(table: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
  """Rows whose picture is the index of another row get that row's, as VLMEvalKit's tables have it.

  Raises:
    UserError: there is no such row.
  """
  by_index = {str(row.get("index")): row.get("image") for row in table}
  found = []
  for row in table:
    image = row.get("image")
    if isinstance(image, str) and 0 < len(image) <= _BACK_REFERENCE and not Path(image).suffix:
      image = by_index.get(image)
      if not image:
        raise UserError(f"{path}: a picture refers to row {row['image']!r}, which is not there")
    found.append(row | ({"image": image} if image is not None else {}))
  return found


def check_ids(items: Iterable[Item], path: Path) -> list[Item]:
  """The items, if no two have one id.

  Raises:
    UserError: two have, or there is none.
  """
  by_id: dict[str, Item] = {}
  for item in items:
    if item.id in by_id:
      raise UserError(f"{path}: item {item.id!r} stands there twice; copy it again from the set")
    by_id[item.id] = item
  if not by_id:
    raise UserError(f"{path} holds no item; copy it again from the set")
  return list(by_id.values())


class Folder:
  """Where a set's media lie; files that are looked for by name alone are indexed once."""

  def __init__(self, root: Path):
    self._root = root
    self._by_name: dict[str, Path] | None = None

  def path(self, places: Sequence[str]) -> Path | None:
    """The file of the first place that has it, see `Picture.places`; or None."""
    for place in places:
      if place.startswith("**/"):
        found = self._named(place[3:])
      else:
        inside = self._root / place.lstrip("/")
        found = inside if ".." not in inside.parts and inside.is_file() else None
      if found is not None:
        return found
    return None

  def _named(self, name: str) -> Path | None:
    if self._by_name is None:
      self._by_name = {}
      for folder, _, files in os.walk(self._root):
        for file in sorted(files):
          self._by_name.setdefault(file, Path(folder, file))
    return self._by_name.get(name)

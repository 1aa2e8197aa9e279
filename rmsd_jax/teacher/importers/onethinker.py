r"""Prompts for a pool, without responses, from the JSON files that OneThinker publishes.

Its files for reinforcement learning (arXiv 2512.03043) are one JSON list of

    {"problem_id": 3, "problem": "<video>When ...?", "problem_type": "temporal grounding",
     "data_type": "video", "options": [], "data_source": "...", "videos": ["QA/3.mp4"],
     "answer": "<answer>{\"time\": [1, 2.5]}</answer>"}

with "images" in place of "videos" where data_type is "image". Its files for evaluation have "path"
for the medium ("additional_path" for the image of data_type "video-image") and "solution" for the
answer; they may be JSON Lines. Read off the code that loads them, in the repository of the paper.
"""

import collections
import json
import os
import pathlib
import posixpath
import re
from collections.abc import Sequence
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import json_lines, records
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher.importers import Imported

TASKS = {
  "multiple choice": "multiple_choice",
  "numerical": "numerical",
  "regression": "regression",
  "math": "math",
  "ocr": "ocr",
  "open-ended": "open_ended",
  "temporal grounding": "temporal_grounding",
  "spatial grounding": "spatial_grounding",
  "spatial-temporal grounding": "spatiotemporal_grounding",
  "tracking": "tracking",
}
_PLACEHOLDER = re.compile(r"<(?:image|video)>")
_ENDS = re.compile(r"\A(?:\s*<(?:image|video)>)*\s*|\s*(?:<(?:image|video)>\s*)*\Z")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LABELLED_A = re.compile(r"\s*(?:\([Aa]\)|[Aa](?:[.:)]|\s*\Z))")


class _Refused(Exception):
  """(kind, reason): why an item is not taken."""


def convert(
  source: str | os.PathLike,
  out: str | os.PathLike,
  rules: Rules,
  *,
  media_root: str | os.PathLike = "",
  split: str = "train",
) -> Imported:
  """Writes a file of OneThinker's as the records of a pool.

  An item that has no place in a pool is refused: OUT.quarantine.jsonl says which and why. The id of
  a record is the name of the file and the item's place in it, counted from 1.

  Args:
    rules: the tasks; their `validate` must accept every answer.
    media_root: folder that the paths of media start from; "": the folder of `source`. Records get
      paths relative to the folder of `out`.
    split: of all records.

  Raises:
    UserError: the file is missing or not of that form, `out` exists, or nothing can be taken.
  """
  root = os.path.abspath(media_root or os.path.dirname(os.path.abspath(source)))
  folder = os.path.relpath(root, os.path.dirname(os.path.abspath(out)))
  tasks, paths = collections.Counter(), set()
  with json_lines.new_file(out) as file, json_lines.kept_quarantine(out, 1.0) as quarantine:
    for number, item in _items(source):
      try:
        if isinstance(item, _Refused):
          raise item
        record = _record(item, f"{pathlib.Path(source).stem}-{number}", folder, rules)
        record["split"] = split
        text = json.dumps(record, ensure_ascii=False)
        records.parse(text, number, rules.tasks)
      except (_Refused, records.RecordFault) as error:
        kind, reason = error.args if isinstance(error, _Refused) else ("record", error.reason)
        quarantine.add(os.fspath(source), number, str(number), kind, reason)
        continue
      file.write(text + "\n")
      tasks[record["task"]] += 1
      paths |= {media["path"] for media in record["media"]}
    refused = dict(sorted(quarantine.kinds.items()))
    if not tasks:
      raise UserError(f"none of the {sum(refused.values())} items of {source} can be taken; "
                      f"the first: {quarantine.first or 'there is none'}")  # fmt: skip
  base = os.path.dirname(os.path.abspath(out))
  missing = sum(not os.path.isfile(os.path.join(base, path)) for path in paths)
  return Imported(dict(sorted(tasks.items())), refused, len(paths), missing)


def _items(source: str | os.PathLike) -> list[tuple[int, Any]]:
  """(place from 1, item) of a JSON list, or of JSON Lines; other lines are `_Refused`."""
  try:
    text = pathlib.Path(source).read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
      return list(enumerate(json.loads(text), 1))
    return [(n, _line(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
  except (OSError, ValueError) as error:
    raise UserError(
      f"{source} cannot be read ({type(error).__name__}: {error}); give a JSON list of items, or "
      "JSON Lines"
    ) from error


def _line(text: str) -> Any:
  try:
    return json.loads(text)
  except ValueError as error:
    return _Refused("form", f"not JSON: {error}")


def _record(item: Any, id_: str, folder: str, rules: Rules) -> dict[str, Any]:
  """The record that an item is."""
  if isinstance(item, dict) and "messages" in item:
    raise _Refused("form", "a conversation for SFT; its questions are in the file for RL")
  if not isinstance(item, dict):
    raise _Refused("form", f"a {type(item).__name__}, not an object")
  kind = _string(item, "problem_type").strip().lower()
  if kind not in TASKS:
    raise _Refused(f"problem_type {kind!r}", f"no task here is like {kind!r}")
  task = TASKS[kind]
  media = _media(item)
  options = _options(item) if task == "multiple_choice" else []
  answer = _answer(item, task)
  if fault := rules.validate(task, answer, options):
    raise _Refused("ground truth", f"{task}: {fault}")
  return {
    "id": id_,
    "task": task,
    "question": _question(_string(item, "problem"), len(media)),
    "options": options,
    "answer": answer,
    "media": [
      {"type": type_, "path": posixpath.normpath(posixpath.join(folder, path))}
      for type_, path in media
    ],
    "source": item["data_source"] if isinstance(item.get("data_source"), str) else "onethinker",
  }


def _string(item: dict[str, Any], key: str) -> str:
  if not isinstance(item.get(key), str):
    raise _Refused("form", f"{key!r} is {'missing' if key not in item else 'not a string'}")
  return item[key]


def _media(item: dict[str, Any]) -> list[tuple[str, str]]:
  """(image or video, path) of each medium, in the order in which the model sees them."""
  kind = _string(item, "data_type").strip().lower()
  if kind == "text":
    return []
  if kind not in ("image", "video", "video-image"):
    raise _Refused("media", f"data_type {kind!r} is none of image, video, video-image, text")
  if kind == "video-image":
    named = [("video", item.get("path")), ("image", item.get("additional_path"))]
  elif "path" in item:
    named = [(kind, item["path"])]
  else:
    paths = item.get(f"{kind}s")
    named = [(kind, path) for path in paths] if isinstance(paths, list) else []
  if not named:
    raise _Refused("media", f"data_type is {kind!r}, but there is no path of any")
  return [(type_, _inside(path)) for type_, path in named]


def _inside(path: Any) -> str:
  """A path below the media root, as the published code takes it: "/a" and "./a" are "a"."""
  if not isinstance(path, str) or not path.strip():
    raise _Refused("media", f"{path!r} is not the path of a file")
  plain = posixpath.normpath(path.lstrip("/"))
  if plain.split("/")[0] == "..":
    raise _Refused("media", f"the path {path!r} leaves the folder of the media")
  return plain


def _question(problem: str, media: int) -> str:
  """The text without its placeholders; a pool's media stand before the text."""
  count = len(_PLACEHOLDER.findall(problem))
  if count not in (0, media):
    raise _Refused("placeholders", f"{count} placeholders for {media} media")
  text = _ENDS.sub("", problem)
  if _PLACEHOLDER.search(text):
    raise _Refused("placeholders", "a placeholder inside the text, which a pool cannot keep")
  return text


def _options(item: dict[str, Any]) -> list[str]:
  """The options, with letters where the first has none: "S. Korea" is no label."""
  options = item.get("options")
  if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
    raise _Refused("options", "'options' is not a list of strings")
  if len(options) > 26 or not options or _LABELLED_A.match(options[0]):
    return options
  return [f"{chr(ord('A') + i)}. {option.strip()}" for i, option in enumerate(options)]


def _answer(item: dict[str, Any], task: str) -> Any:
  """The ground truth: what stands in the answer tags, as an object where it is JSON."""
  value = item["answer"] if "answer" in item else item.get("solution")
  if not isinstance(value, str):
    return value
  found: Sequence[str] = _ANSWER.findall(value)
  if len(found) > 1:
    raise _Refused("ground truth", f"{len(found)} answer blocks")
  text = found[0].strip() if found else value.strip()
  if not text.startswith("{") or task in ("math", "ocr", "open_ended"):
    return text
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return text

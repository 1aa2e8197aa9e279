"""Stored responses: a result of `evaluate`, its journal, or JSON Lines of a pool with responses."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import reply_journal

WAYS = ("greedy", "sampled")
_OF_RUN = (
  *("checkpoint", "weights", "step", "folder", "pool", "split", "seed", "samples", "rollouts"),
  *("rules", "blind", "limit", "pool_identity"),
)


@dataclasses.dataclass(frozen=True)
class Reply:
  """One sample: its text, its tokens (None: not told), whether it came to its end by itself."""

  text: str
  tokens: int | None = None
  finished: bool = True


@dataclasses.dataclass(frozen=True)
class Responses:
  """What a run answered.

  Attributes:
    path: of the file.
    way: "greedy" or "sampled".
    replies: record id -> its samples.
    run: what the file says of the run: checkpoint, model folder, decoding, pool, seed.
    sha256: of the file; of a folder, of what it holds.
  """

  path: Path
  way: str
  replies: Mapping[str, tuple[Reply, ...]]
  run: Mapping[str, Any]
  sha256: str


def read_responses(path: Path, way: str = "greedy") -> Responses:
  """Reads a file of responses, or the folder WORKDIR/evaluate/NAME of an evaluation.

  Args:
    way: which replies of an evaluation; JSON Lines have one kind.

  Raises:
    UserError: it is neither, or has no replies of that way.
  """
  if way not in WAYS:
    raise UserError(f"--way {way!r}: use one of {', '.join(WAYS)}")
  if path.is_dir():
    about, lines = reply_journal.read_journal(path)
    whole = about["asked"] | {name: about[name] for name in ("pool", "step")} | {"prompts": lines}
    sha256 = hashlib.sha256(json.dumps(whole).encode()).hexdigest()
    return _evaluation(path, way, whole, sha256)
  try:
    content = path.read_bytes()
    text = content.decode("utf-8")
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path} cannot be read ({type(error).__name__}); give a file of responses"
    ) from error
  sha256 = hashlib.sha256(content).hexdigest()
  try:
    whole = json.loads(text)
  except (ValueError, RecursionError):
    whole = None
  if isinstance(whole, dict) and isinstance(whole.get("prompts"), list):
    return _evaluation(path, way, whole, sha256)
  return _records(path, text, sha256)


def _evaluation(path: Path, way: str, whole: Mapping[str, Any], sha256: str) -> Responses:
  """A result of `evaluate`: {"prompts": [{"id", "greedy": {"text": [..], "length": [..], ..}}]}"""
  replies: dict[str, tuple[Reply, ...]] = {}
  for row in whole["prompts"]:
    given = row.get(way) if isinstance(row, dict) else None
    if not isinstance(given, dict) or not given.get("text"):
      raise UserError(f"{path} has no {way} replies; give --way, or evaluate that way")
    columns = zip(given["text"], given["length"], given["finished"], strict=True)
    _add(replies, row["id"], tuple(Reply(*one) for one in columns), path)
  run = {name: whole[name] for name in _OF_RUN if name in whole}
  # A result has the folder of its replies beside it.
  journal = path if path.is_dir() else path.with_suffix("")
  if (seconds := reply_journal.seconds(journal)) is not None:
    run["seconds"] = seconds
  if way == "greedy":
    run |= {"samples": 1, "rollouts": {"temperature": 0.0}}
  return Responses(path, way, replies, run, sha256)


def _records(path: Path, text: str, sha256: str) -> Responses:
  """JSON Lines of {"id", "responses": [{"text", "teacher", "finish_reason"}]}, as of `collect`."""
  replies: dict[str, tuple[Reply, ...]] = {}
  teachers: dict[str, None] = {}
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
      given = tuple(
        Reply(str(one["text"]), None, one.get("finish_reason", "stop") != "length")
        for one in value["responses"]
      )
      teachers |= dict.fromkeys(str(one.get("teacher", "")) for one in value["responses"])
      _add(replies, str(value["id"]), given, path)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise UserError(
        f"{path} line {number} is neither of an evaluation nor a record with 'id' and 'responses' "
        f"({type(error).__name__}: {error})"
      ) from None
  kept = {id_: given for id_, given in replies.items() if given}
  if not kept:
    raise UserError(f"{path} holds no response; give what `evaluate` or `pool collect` wrote")
  way = "greedy" if max(map(len, kept.values())) == 1 else "sampled"
  return Responses(path, way, kept, {"checkpoint": ", ".join(filter(None, teachers))}, sha256)


def _add(
  replies: dict[str, tuple[Reply, ...]], id_: str, given: tuple[Reply, ...], path: Path
) -> None:
  if id_ in replies:
    raise UserError(f"{path} has the prompt {id_!r} twice; it is not of one run")
  replies[id_] = given

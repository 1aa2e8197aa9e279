"""The teacher pool's interchange form: JSON Lines, one prompt with its K responses a line.

    {"id": "7", "task": "multiple_choice", "question": "...", "options": ["A. ...", "B. ..."],
     "answer": "B", "media": [{"type": "video", "path": "clips/1.mp4", "start": 0.0, "end": 12.5}],
     "responses": [{"text": "<think>..</think><answer>B</answer>", "teacher": "big-model",
                    "finish_reason": "stop"}], "source": "...", "split": "train", "clip": "1"}

`alternatives` (further right answers) and `eps_abs`, `eps_rel` or `decimals` (how near a number
must be) may stand beside `answer`: see `tasks.truths`. `asked` replaces the words of the task (see
`Asked`); `benchmark` is a JSON object for a benchmark's scorer, which a pool passes over. Of the
task "chat" are plain conversations, which have no `answer`:

    {"id": "8", "task": "chat", "question": "What is funny here?", "media": [..],
     "responses": [{"text": "The cat wears a hat."}]}

`parse` is strict: a line is understood whole or refused with the reason.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import subtitles
from rmsd_jax.data.subtitles import Subtitle
from rmsd_jax.tasks import CHAT, Rules, truths

SPLITS = ("train", "test")
_PLACEHOLDER = re.compile(r"<(?:image|video)>")  # of other formats, where a medium stands
FINISH_REASONS = ("stop", "length")
_LONGEST = 1e9  # seconds
MAX_LINE = 16 * 2**20  # characters; a longer line is a broken file, not a record


class RecordFault(UserError):
  """A line that is not a usable record. The message is `line N: reason`."""

  def __init__(self, line_number: int, reason: str):
    super().__init__(line_number, reason)
    self.line_number = line_number
    self.reason = reason

  def __str__(self) -> str:
    return f"line {self.line_number}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Media:
  """One image, or the seconds `start` to `end` of a video (None: from its first, to its last).

  Seconds run on the time stamps of the file, from its first frame on.
  """

  type: str  # "video" or "image"
  path: str  # relative to the folder of the JSONL file, or absolute
  start: float | None = None
  end: float | None = None


@dataclasses.dataclass(frozen=True)
class Response:
  """One sample of a teacher."""

  text: str
  teacher: str = ""
  finish_reason: str = "stop"  # "length": cut off, so neither valid nor a target


@dataclasses.dataclass(frozen=True)
class Asked:
  """The words of a prompt, exactly: as a benchmark asks, not as the task would.

  {"text": "Question: ..", "before": "Carefully watch ..", "system": "You are .."}
  """

  text: str = ""  # after the media; "": all words stand before them
  before: str = ""  # before them, in the same turn; "": the media come first
  system: str = ""  # a turn of its own before it; "": none
  subtitles: tuple[Subtitle, ...] = ()  # of its one clip, among the frames, see `subtitles.between`


@dataclasses.dataclass(frozen=True)
class Record:
  """One prompt: media, question and ground truth, with the teacher's responses to it."""

  id: str
  task: str
  question: str
  # The ground truth: a JSON value of the task's shape, or several, see `tasks.truths`; None: chat.
  answer: Any
  options: tuple[str, ...] = ()
  media: tuple[Media, ...] = ()
  responses: tuple[Response, ...] = ()
  source: str = ""
  split: str = "train"
  # Questions of one clip share it. Default: the first media path (where it lies, once the file is
  # known: see json_lines.read), else the id.
  clip: str = ""
  asked: Asked | None = None  # None: question, options and the task's instruction
  benchmark: Any = None  # a JSON object, or None

  def plain_prompt(self, rules: Rules) -> str:
    """What is asked, as one text after the media; see `not_plain`."""
    if self.asked is not None:
      return self.asked.text
    return rules.prompt_text(self.task, self.question, self.options)

  def not_plain(self) -> str | None:
    """Why its prompt is more than one text after the media, or None: no more can be collected."""
    asked = self.asked or Asked()
    if not (asked.before or asked.system or asked.subtitles):
      return None
    return (
      "a system prompt, words before the media and subtitles can be built into a pool, but not be "
      "collected from an endpoint; leave them out of 'asked'"
    )


def parse(line: str, line_number: int, known_tasks: Collection[str]) -> Record:
  """Reads one line of a pool.

  Args:
    line: the JSON text.
    line_number: counted from 1; for messages only.
    known_tasks: names that a record may give as its task, see `Rules.of_records`.

  Raises:
    RecordFault: not JSON, or a key or value that the schema above does not allow.
  """
  try:
    record = _record(_load(line), known_tasks)
  except _Reason as reason:
    raise RecordFault(line_number, str(reason)) from None
  return record


class _Reason(Exception):
  """Why a value is refused; `parse` adds where."""


def _load(line: str) -> Any:
  if len(line) > MAX_LINE:
    raise _Reason(f"{len(line)} characters, limit {MAX_LINE}")
  try:
    return json.loads(
      line, object_pairs_hook=_no_twins, parse_constant=_finite, parse_float=_finite
    )
  except json.JSONDecodeError as error:
    raise _Reason(f"not JSON: {error.msg} at column {error.colno}") from None
  except ValueError:  # Python refuses integers of thousands of digits
    raise _Reason("an integer has too many digits") from None
  except RecursionError:
    raise _Reason("nested too deeply") from None


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) != len(pairs):
    names = [name for name, _ in pairs]
    raise _Reason(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice")
  return value


def _finite(literal: str) -> float:
  value = float(literal)
  if not math.isfinite(value):
    raise _Reason(f"{literal} is not a finite number")
  return value


def _record(value: Any, known_tasks: Collection[str]) -> Record:
  chat = isinstance(value, dict) and value.get("task") == CHAT
  required = ("id", "task", "question", *([] if chat else ["answer"]))
  fields = {"answer": None} | _fields(value, Record, "record", required, truths.EXTRAS)
  extras = {name: fields.pop(name) for name in truths.EXTRAS if name in fields}
  if fault := truths.fault(extras):
    raise _Reason(fault)
  fields["answer"] = truths.joined(fields["answer"], extras)
  for name in ("id", "task", "question", "source", "split", "clip"):
    if name in fields:
      _text(fields[name], name, empty=name == "source")
  if fields["task"] not in known_tasks:
    raise _Reason(f"unknown task {fields['task']!r}; known: {', '.join(sorted(known_tasks))}")
  if "split" in fields and fields["split"] not in SPLITS:
    raise _Reason(f"split {fields['split']!r} is not one of {', '.join(SPLITS)}")
  lists = {name: _list(fields.pop(name, []), name) for name in ("options", "media", "responses")}
  for option in lists["options"]:
    _text(option, "an option")
  if fields.get("asked") is not None:
    fields["asked"] = _asked(fields["asked"])
  if not isinstance(fields.get("benchmark", {}), dict | None):
    raise _Reason(f"benchmark must be an object, not {_kind(fields['benchmark'])}")
  record = Record(
    options=tuple(lists["options"]),
    media=tuple(_media(item) for item in lists["media"]),
    responses=tuple(_response(item) for item in lists["responses"]),
    **fields,
  )
  if record.media and record.asked is None and (mark := _PLACEHOLDER.search(record.question)):
    raise _Reason(
      f"{mark[0]} in the question would be read as text: media stand before it; take it out"
    )
  clips = sum(medium.type == "video" for medium in record.media)
  if record.asked is not None and record.asked.subtitles and clips != 1:
    raise _Reason(f"subtitles under 'asked' are of one clip, not of {clips}")
  try:
    _text(json.dumps(record.answer, ensure_ascii=False), "answer")
  except RecursionError:
    raise _Reason("nested too deeply") from None
  clip = record.clip or (record.media[0].path if record.media else record.id)
  return dataclasses.replace(record, clip=clip)


def _media(value: Any) -> Media:
  fields = _fields(value, Media, "media", required=("type", "path"))
  _text(fields["path"], "media path")
  if fields["type"] not in ("video", "image"):
    raise _Reason(f"media type {fields['type']!r} is neither 'video' nor 'image'")
  for name in ("start", "end"):
    if name in fields and fields["type"] == "image":
      raise _Reason(f"an image has no {name!r}")
    if name in fields and fields[name] is not None:
      fields[name] = _seconds(fields[name], name)
  media = Media(**fields)
  if media.end is not None and media.end <= (media.start or 0.0):
    raise _Reason(f"media ends at {media.end} s, not after its start at {media.start or 0.0} s")
  return media


def _asked(value: Any) -> Asked:
  fields = _fields(value, Asked, "prompt under 'asked'", required=())
  try:
    lines = subtitles.from_json(fields.pop("subtitles", ()))
  except ValueError as fault:
    raise _Reason(f"{fault} (under 'asked')") from None
  for line in lines:
    _text(line.text, "a subtitle", empty=True)
  for name in fields:
    _text(fields[name], f"{name!r} of asked", empty=True)
  asked = Asked(**fields, subtitles=lines)
  if not asked.text.strip() and not asked.before.strip():
    raise _Reason("'asked' has no words; give a 'text', or one 'before' the media")
  return asked


def _response(value: Any) -> Response:
  fields = _fields(value, Response, "response", required=("text",))
  for name in fields:
    _text(fields[name], f"response {name}", empty=name != "finish_reason")
  response = Response(**fields)
  if response.finish_reason not in FINISH_REASONS:
    allowed = ", ".join(FINISH_REASONS)
    raise _Reason(f"finish_reason {response.finish_reason!r} is not one of {allowed}")
  return response


def _fields(
  value: Any, kind: type, what: str, required: tuple[str, ...], further: tuple[str, ...] = ()
) -> dict[str, Any]:
  """The keys of a JSON object that a dataclass has, and `further` ones; any other is refused."""
  if not isinstance(value, dict):
    raise _Reason(f"a {what} must be an object, not {_kind(value)}")
  known = [*(field.name for field in dataclasses.fields(kind)), *further]
  if unknown := sorted(set(value) - set(known)):
    raise _Reason(f"unknown {what} key {unknown[0]!r}; known: {', '.join(known)}")
  if missing := [name for name in required if name not in value]:
    raise _Reason(f"{what} key {missing[0]!r} is missing")
  return dict(value)


def _list(value: Any, name: str) -> list[Any]:
  if not isinstance(value, list):
    raise _Reason(f"{name} must be a list, not {_kind(value)}")
  return value


def _text(value: Any, name: str, empty: bool = False) -> None:
  if not isinstance(value, str):
    raise _Reason(f"{name} must be a string, not {_kind(value)}")
  if not empty and not value.strip():
    raise _Reason(f"{name} is empty")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError:
    raise _Reason(f"{name} holds half of a surrogate pair, which is not a character") from None


def _seconds(value: Any, name: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _Reason(f"{name} must be a number of seconds, not {_kind(value)}")
  if not 0 <= value <= _LONGEST:
    raise _Reason(f"{name} is {value} s; it must be at least 0 and at most {_LONGEST:g}")
  return float(value)


def _kind(value: Any) -> str:
  names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
  names |= {type(None): "null", int: "a number", float: "a number"}
  return names[type(value)]

r"""Prompts for a pool, without responses, from the JSON files that OneThinker publishes.

Its files for reinforcement learning (arXiv 2512.03043) are one JSON list of

    {"problem_id": 3, "problem": "<video>When ...?", "problem_type": "temporal grounding",
     "data_type": "video", "options": [], "data_source": "...", "videos": ["QA/3.mp4"],
     "answer": "<answer>{\"time\": [1, 2.5]}</answer>"}

with "images" in place of "videos" where data_type is "image". Its files for evaluation have "path"
for the medium ("additional_path" for the image of data_type "video-image") and "solution" for the
answer; they may be JSON Lines. Read off the code that loads them, in the repository of the paper.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from rmsd_jax.tasks import Rules, answers, lenient
from rmsd_jax.teacher.importers import Imported, writing
from rmsd_jax.teacher.importers.writing import Refused, string

TASKS = {
  "multiple choice": "multiple_choice",
  "numerical": "numerical",
  "regression": "regression",
  "math": "math",
  "ocr": "ocr",
  "open-ended": "open_ended",
  "free-form": "open_ended",
  "temporal grounding": "temporal_grounding",
  "spatial grounding": "spatial_grounding",
  "spatial-temporal grounding": "spatiotemporal_grounding",
  "tracking": "tracking",
}
_PLACEHOLDER = re.compile(r"<(?:image|video)>")
_ENDS = re.compile(r"\A(?:\s*<(?:image|video)>)*\s*|\s*(?:<(?:image|video)>\s*)*\Z")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LABELLED_A = re.compile(r"\s*(?:\([Aa]\)|[Aa](?:[.:)]|\s*\Z))")
# "B", "(B) x", "B. x", "B - x", "B、x", "Option B: x"
_OWN_LETTER = re.compile(
  r"\s*(?:option\s+)?[(\[（]?\s*([A-Z])\s*(?:[.．)\]）、:：,，-]|[–—]|\Z)", re.IGNORECASE
)

_TIME = r"(?:[0-9]+(?:\.[0-9]+)?\s*(?:s|secs?|seconds?)?|(?:[0-9]+:)?[0-9]+:[0-9]{2}(?:\.[0-9]+)?)"
_SPAN = re.compile(rf"(?:from\s+)?{_TIME}\s*(?:to|-|\u2013)\s*{_TIME}\.?", re.IGNORECASE)


def convert(
  source: str | os.PathLike,
  out: str | os.PathLike,
  rules: Rules,
  *,
  media_root: str | os.PathLike = "",
  split: str = "train",
) -> Imported:
  """Writes a file of OneThinker's as the records of a pool; see `writing.write`."""
  items = writing.json_items(source)
  return writing.write(source, out, items, _records, rules, media_root, split)


def _records(item: Any) -> list[dict[str, Any]]:
  """The record that an item is."""
  if isinstance(item, dict) and "messages" in item:
    raise Refused("form", "a conversation for SFT; its questions are in the file for RL")
  if not isinstance(item, dict):
    raise Refused("form", f"a {type(item).__name__}, not an object")
  kind = string(item, "problem_type").strip().lower()
  if kind not in TASKS:
    raise Refused(f"problem_type {kind!r}", f"no task here is like {kind!r}")
  task = TASKS[kind]
  media = _media(item)
  answer = _answer(item, task)
  record = {
    "task": task,
    "question": _question(string(item, "problem"), len(media)),
    "options": _options(item, answer) if task == "multiple_choice" else [],
    "answer": answer,
    "media": [{"type": type_, "path": path} for type_, path in media],
    "source": item["data_source"] if isinstance(item.get("data_source"), str) else "onethinker",
  }
  return [record | ({} if record["source"].strip() else {"source": "onethinker"})]


def _media(item: dict[str, Any]) -> list[tuple[str, str]]:
  """(image or video, path) of each medium, in the order in which the model sees them."""
  kind = string(item, "data_type").strip().lower()
  if kind == "text":
    _check_all_shown(item, [], kind)
    return []
  if kind not in ("image", "video", "video-image"):
    raise Refused("media", f"data_type {kind!r} is none of image, video, video-image, text")
  if kind == "video-image":
    named = [("video", item.get("path")), ("image", item.get("additional_path"))]
  elif "path" in item:
    named = [(kind, item["path"])]
  else:
    paths = item.get(f"{kind}s")
    named = [(kind, path) for path in paths] if isinstance(paths, list) else []
  if not named:
    raise Refused("media", f"data_type is {kind!r}, but there is no path of any")
  _check_all_shown(item, named, kind)
  return named


def _check_all_shown(item: dict[str, Any], named: list[tuple[str, Any]], kind: str) -> None:
  shown = [path for _, path in named]
  for key in ("path", "additional_path", "images", "videos"):
    value = item.get(key) or []
    if any(path not in shown for path in (value if isinstance(value, list) else [value])):
      raise Refused("media", f"{key!r} has media that data_type {kind!r} does not show")


def _question(problem: str, media: int) -> str:
  """The text without its placeholders; a pool's media stand before the text."""
  count = len(_PLACEHOLDER.findall(problem))
  if count not in (0, media):
    raise Refused("placeholders", f"{count} placeholders for {media} media")
  text = _ENDS.sub("", problem)
  if _PLACEHOLDER.search(text):
    raise Refused("placeholders", "a placeholder inside the text, which a pool cannot keep")
  return text


def _options(item: dict[str, Any], answer: Any) -> list[str]:
  """The options with the letters A, B, C .. in this order: their own, or new ones where these are
  none ("S. Korea" is no label)."""
  options = item.get("options")
  if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
    raise Refused("options", "'options' is not a list of strings")
  letters = [chr(ord("A") + i) for i in range(len(options))]
  labels = [label[0] for label in map(answers.split_label, options) if label]
  bare = [option.strip(" ().:").upper() for option in options]
  if all(len(text) == 1 and text.isalpha() for text in bare):
    if bare == letters:
      return options
    # Letters for texts: which of them the answer means can only be told where both ways agree.
    said = answer.strip(" ().:").upper() if isinstance(answer, str) else ""
    if said in bare and letters[bare.index(said)] != said:
      raise Refused(
        "options", f"the options are letters out of order: {said!r} may be a place or a text"
      )
  elif sorted(labels) == letters:
    return sorted(options, key=lambda option: option.strip(" (").upper())
  if len(options) > 26 or not options or _LABELLED_A.match(options[0]) and len(bare[0]) > 1:
    return options
  # With new letters the answer must not be one that an option has already, in whatever dress.
  said = answer.strip(" ().:").upper() if isinstance(answer, str) else ""
  for letter, option in zip(letters, options, strict=True):
    own = _OWN_LETTER.match(option)
    if own and own[1].upper() == said != letter:
      raise Refused("options", f"{said!r} may be a place or the option {option!r:.40}")
  return [f"{letter}. {option.strip()}" for letter, option in zip(letters, options, strict=True)]


def _answer(item: dict[str, Any], task: str) -> Any:
  """The ground truth: what stands in the answer tags, as an object where it is JSON."""
  value = item["answer"] if "answer" in item else item.get("solution")
  if not isinstance(value, str):
    return value
  tagged: Sequence[str] = _ANSWER.findall(value)
  if len(tagged) > 1:
    raise Refused("ground truth", f"{len(tagged)} answer blocks")
  text = tagged[0].strip() if tagged else value.strip()
  if task == "temporal_grounding" and (ends := _interval(text)):
    return {"time": list(ends)}
  if task == "spatial_grounding" and isinstance(box := answers.strict_json(text), list):
    return {"boxes": box}
  if not text.startswith("{") or task in ("math", "ocr", "open_ended"):
    return text
  try:
    return writing.loads(text)
  except (ValueError, RecursionError):
    return text  # which no task takes


def _interval(text: str) -> answers.Interval | None:
  """Seconds as a JSON list or as "7.0 to 11.0", "00:07 - 00:11".

  A truth is not read as leniently as a reply: what other words count may not be seconds.
  """
  if isinstance(listed := answers.strict_json(text), list):
    return answers.as_interval({"time": listed})
  return lenient.interval(text) if _SPAN.fullmatch(text) else None

"""Annotations of public video data sets -> prompts: one function a format, and their table.

Read off the published files and the code that loads them; what is asked is put in words here.
"""

import configparser
import csv
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import Rules, answers
from rmsd_jax.teacher.importers import Imported, writing
from rmsd_jax.teacher.importers.writing import Refused, string

Items = Iterable[tuple[int, Any]]
MAX_OPTIONS = 26


@dataclasses.dataclass(frozen=True)
class Format:
  """How a data set's file is read: into items, and an item into records."""

  name: str
  items: Callable[[str | os.PathLike], Items]
  made_of: Callable[[Any], list[dict[str, Any]]]

  def convert(
    self,
    source: str | os.PathLike,
    out: str | os.PathLike,
    rules: Rules,
    *,
    media_root: str | os.PathLike = "",
    split: str = "train",
  ) -> Imported:
    """Writes the file as the records of a pool; see `writing.write`."""

    def made_of(item: Any) -> list[dict[str, Any]]:
      return [{"source": self.name} | record for record in self.made_of(item)]

    return writing.write(source, out, self.items(source), made_of, rules, media_root, split)


def _record(task: str, question: str, answer: Any, media: str, **more: Any) -> dict[str, Any]:
  path = media if pathlib.PurePosixPath(media).suffix else f"{media}.mp4"
  kind = "image" if path.lower().endswith((".jpg", ".jpeg", ".png", ".webp")) else "video"
  record = {"task": task, "question": question, "answer": answer}
  return record | {"media": [{"type": kind, "path": path}]} | more


def _moment(sentence: str, interval: Any, video: str) -> dict[str, Any]:
  question = f'When does this happen in the video: "{sentence.strip()}"?'
  return _record("temporal_grounding", question, {"time": interval}, video)


def _evidence(question: str, intervals: Any, video: str) -> list[dict[str, Any]]:
  """One record where there are intervals: any of them is right."""
  if not isinstance(intervals, list) or not intervals:
    return []
  first, *others = [{"time": interval} for interval in intervals]
  more = {"alternatives": others} if others else {}
  text = f'When does the video show what answers this question: "{question.strip()}"'
  return [_record("temporal_grounding", text, first, video, **more)]


def _choice(question: str, texts: Any, right: str, video: str, first: str = "A") -> dict[str, Any]:
  """A multiple-choice record of the texts that are not empty.

  Args:
    right: the place of the right one, counted from `first` ("A" or "0"), or its text.
  """
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    raise Refused("options", "the choices are not a list of texts")
  if len(texts) > MAX_OPTIONS:
    raise Refused("options", f"{len(texts)} choices, at most {MAX_OPTIONS} have a letter")
  place = _place(texts, right.strip(), first)
  texts = _unlabelled(texts)
  if place is not None and not texts[place]:
    raise Refused("options", f"the right choice, {right!r}, is empty")
  # Empty ones are left out once the places are counted.
  kept = [i for i, text in enumerate(texts) if text]
  if place is None and (first != "A" or len(kept) < len(texts)):
    raise Refused("ground truth", f"the answer {right!r} names none of the choices")
  options = [f"{_letter(k)}. {texts[i]}" for k, i in enumerate(kept)]
  answer = right if place is None else _letter(kept.index(place))
  return _record("multiple_choice", question, answer, video, options=options)


def _place(texts: list[str], right: str, first: str) -> int | None:
  """Which of the texts is right; None where neither a place nor a text fits."""
  # A choice is known by its text with and without its label.
  pairs = zip(texts, _unlabelled(texts), strict=True)
  found = [i for i, names in enumerate(pairs) if right in (names[0].strip(), names[1]) and right]
  if len(found) > 1:
    raise Refused("options", f"the answer {right!r} stands among the choices {len(found)} times")
  label = answers.split_label(right)
  name = label[0] if label and not label[1] else right  # "(b)" is B
  counted = ord(name) - ord(first) if len(name) == 1 else -1
  if not 0 <= counted < len(texts):
    return found[0] if found else None
  if found and found[0] != counted:
    raise Refused("options", f"the answer {right!r} may be a place or a text among the choices")
  return counted


def _unlabelled(texts: list[str]) -> list[str]:
  """The texts without labels, where each has that of its own place: A, B, C in order."""
  texts = [text.strip() for text in texts]
  labels = {_letter(i): answers.split_label(text) for i, text in enumerate(texts) if text}
  # Bare letters are texts; so are those behind which "A. Lincoln" stands without the others.
  if all(labels.values()) and any(label and label[1] for label in labels.values()):
    told = [label[0] for label in labels.values() if label]
    if told == list(labels):
      return [_LABEL.sub("", text).strip() for text in texts]
    if len(told) > 1 and sorted(told) == sorted(labels):
      raise Refused("options", "the choices have labels out of order: a letter may be either's")
  return texts


def _letter(place: int) -> str:
  return chr(ord("A") + place)


_LABEL = re.compile(r"\A\(?[A-Za-z](?:[.:)]+|\Z)")


def _object(item: Any) -> dict[str, Any]:
  if not isinstance(item, dict):
    raise Refused("form", f"a {type(item).__name__}, not an object")
  return item


def _time_r1(item: Any) -> list[dict[str, Any]]:
  """{"video": "a.mp4", "timestamp": [1, 2], "sentence": ".."}, or an object of
  video: {"timestamps": [[1, 2], ..], "sentences": ["..", ..]}."""
  if isinstance(item, tuple):
    video, value = item
    times, sentences = (value.get(key) for key in ("timestamps", "sentences"))
    lists = isinstance(times, list) and isinstance(sentences, list)
    if not lists or len(times) != len(sentences):
      raise Refused("form", "'timestamps' and 'sentences' are not lists of one length")
    if not all(isinstance(sentence, str) for sentence in sentences):
      raise Refused("form", "'sentences' are not texts")
    pairs = list(zip(sentences, times, strict=True))
    return [_moment(sentence, interval, video) for sentence, interval in pairs]
  item = _object(item)
  interval = item["timestamp"] if "timestamp" in item else item.get("solution")
  return [_moment(string(item, "sentence"), interval, string(item, "video"))]


def _charades_lines(source: str | os.PathLike) -> Items:
  lines = writing.text_of(source).split("\n")
  return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _charades(line: str) -> list[dict[str, Any]]:
  """A line "VIDEO 0.0 6.9##a person opens a door."."""
  match = re.fullmatch(r"\s*(\S+)\s+(\S+)\s+(\S+?)\s*##(.*)", line)
  ends = [answers.number(end) for end in match.groups()[1:3]] if match else [None]
  if match is None or None in ends:
    raise Refused("form", "not a line 'VIDEO start end##sentence'")
  return [_moment(match[4], ends, match[1])]


def _nextgqa_rows(source: str | os.PathLike) -> Items:
  """Rows of val.csv or test.csv, with the spans of gsub_val.json and the paths of
  map_vid_vidorID.json where those lie beside it."""
  beside = pathlib.Path(source).parent
  spans = {}
  paths = {}
  if (file := beside / f"gsub_{pathlib.Path(source).stem}.json").is_file():
    spans = dict(item for _, item in writing.json_items(file) if isinstance(item, tuple))
  if (file := beside / "map_vid_vidorID.json").is_file():
    paths = _flat(file)
  rows = csv.DictReader(io.StringIO(writing.text_of(source), newline=""))
  for number, row in enumerate(rows, 1):
    video = row.get("video_id") or row.get("video")
    qid = row.get("qid")
    located = spans.get(video, {}).get("location", {}).get(qid)
    yield number, row | {"path": paths.get(video, video), "spans": located}


def _flat(file: pathlib.Path) -> dict[str, str]:
  """A JSON object of texts."""
  try:
    value = writing.loads(writing.text_of(file))
  except ValueError as error:
    raise UserError(f"{file} is not JSON ({error}); copy it again, or move it away") from error
  return {key: path for key, path in _object(value).items() if isinstance(path, str)}


def _nextgqa(row: dict[str, Any]) -> list[dict[str, Any]]:
  question, video, right = (string(row, key) for key in ("question", "path", "answer"))
  texts = [row.get(f"a{i}") or "" for i in range(5)]
  question = question[:1].upper() + question[1:].rstrip("? ") + "?"
  # NExT-QA has the place, from 0; NExT-GQA the text.
  asked = _choice(question, texts, right, video, first="0")
  return [asked, *_evidence(question, row["spans"], video)]


def _cgbench(item: Any) -> list[dict[str, Any]]:
  """{"video_uid", "question", "choices": [..], "right_answer": "B", "clue_intervals": [..]}"""
  item = _object(item)
  question = string(item, "question")
  video = string(item, "video_uid")
  asked = _choice(question, item.get("choices"), string(item, "right_answer"), video)
  return [asked, *_evidence(question, item.get("clue_intervals"), video)]


def _llava(item: Any) -> list[dict[str, Any]]:
  """{"video": .., "conversations": [{"from": "human", "value": ".."}, {"from": "gpt", ..}, ..]}"""
  item = _object(item)
  if item.get("image") and item.get("video"):
    raise Refused("media", "an image and a video, of which one question shows one")
  media = string(item, "image" if item.get("image") else "video")
  turns = item.get("conversations")
  if not isinstance(turns, list) or not turns or len(turns) % 2:
    raise Refused("form", "'conversations' is not a list of questions with their answers")
  texts = [string(_object(turn), "value") for turn in turns]
  if [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
    raise Refused("form", "'conversations' do not go from human to gpt in turns")
  return [_said(asked, said, media) for asked, said in zip(texts[::2], texts[1::2], strict=True)]


def _said(asked: str, said: str, media: str) -> dict[str, Any]:
  """A multiple-choice record where the question lists options, else an open-ended one."""
  asked = re.sub(r"\s*<(?:image|video)>\s*", "", asked)
  lines = [line.strip() for line in asked.split("\n") if line.strip()]
  options = [line for line in lines if re.match(r"[A-Z][.)]\s*\S", line)]
  # A single "A. .." is an enumeration, not a choice.
  if len(options) < 2:
    return _record("open_ended", asked, said, media)
  question = "\n".join(_asking(lines, options))
  # As strictly as it can be: a truth is not guessed as a reply is.
  letters = {option[0] for option in options if _LABEL.sub("", option).strip() == said.strip()}
  letters |= {letter for letter in [answers.option_letter(said, options)] if letter}
  if len(letters) > 1:
    raise Refused("options", f"the answer {said!r} may be a letter or a text among the options")
  answer = letters.pop() if letters else said
  return _record("multiple_choice", question, answer, media, options=options)


def _asking(lines: list[str], options: list[str]) -> Iterator[str]:
  """The lines without options, and without instructions how to answer that stand after a question
  or an option."""
  asked = False
  for line in lines:
    if line not in options and not (asked and _INSTRUCTION.fullmatch(line)):
      yield line
    asked = asked or line in options or line.endswith("?")


# A line of these words alone asks for a form and for nothing that is seen.
_INSTRUCTION = re.compile(
  r"(?=.*\b(?:letter|option|choice|answer))(?:(?:please|kindly|answer|respond|reply|select|choose|pick|"
  r"provide|give|state|stating|with|only|just|the|an?|your|by|letter|letters|option|options|option's|"
  r"choices?|correct|right|best|single|one|of|from|given|listed|above|below|following|directly|"
  r"followed|full|text|in|to|for|this|question|multiple-choice|based|on|video|image|and|no|other|"
  r"words?|explanation|without|any|that)\b[\s,.:;()!]*)+",
  re.IGNORECASE,
)


def _got10k_sequences(source: str | os.PathLike) -> Items:
  """The folders that a list.txt names, beside it."""
  names = writing.text_of(source).split("\n")
  beside = pathlib.Path(source).parent
  return [(n, beside / name.strip()) for n, name in enumerate(names, 1) if name.strip()]


def _got10k(folder: pathlib.Path) -> list[dict[str, Any]]:
  """A picture a second of a sequence, at most as many as a tracking answer has boxes."""
  meta = configparser.ConfigParser()
  try:
    meta.read_string((folder / "meta_info.ini").read_text(encoding="utf-8"))
    lines = (folder / "groundtruth.txt").read_text(encoding="utf-8").split()
    size = re.findall(r"[0-9]+", meta["METAINFO"]["resolution"])
    rate = re.match(r"[0-9]+", meta["METAINFO"]["anno_fps"])
  except (OSError, ValueError, KeyError, configparser.Error) as error:
    raise Refused("form", f"{type(error).__name__} in meta_info.ini or groundtruth.txt") from error
  if len(size) != 2 or rate is None or not all(map(int, (*size, rate[0]))):
    raise Refused("form", "meta_info.ini names no resolution or anno_fps")
  boxes = {}
  media = []
  step = int(rate[0])
  for second, line in enumerate(lines[::step][: answers.MAX_TRACKED]):
    boxes[str(second)] = _corners(line, int(size[0]), int(size[1]))
    media.append({"type": "image", "path": f"{folder.name}/{1 + second * step:08d}.jpg"})
  question = (
    f"The {len(media)} pictures are one second apart. Where is the object that lies at "
    f"{boxes.get('0')} in the first of them, second 0, in each?"
  )
  return [{"task": "tracking", "question": question, "answer": {"boxes": boxes}, "media": media}]


def _corners(line: str, width: int, height: int) -> list[float]:
  """Pixels x, y, width, height -> thousandths of the picture."""
  numbers = [value for part in line.split(",") if (value := answers.number(part)) is not None]
  if len(numbers) != 4 or line.count(",") != 3:
    raise Refused("form", f"{line!r} in groundtruth.txt is not x,y,width,height")
  x, y, w, h = numbers
  corners = (x / width, y / height, (x + w) / width, (y + h) / height)
  return [round(1000 * min(max(corner, 0.0), 1.0), 1) for corner in corners]


FORMATS = {
  made.name: made
  for made in (
    Format("time_r1", writing.json_items, _time_r1),
    Format("charades_sta", _charades_lines, _charades),
    Format("nextgqa", _nextgqa_rows, _nextgqa),
    Format("got10k", _got10k_sequences, _got10k),
    Format("cgbench", writing.json_items, _cgbench),
    Format("llava_video", writing.json_items, _llava),
  )
}

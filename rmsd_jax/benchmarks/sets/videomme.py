"""Video-MME without subtitles: 900 videos, three questions of four options each.

videomme/test-00000-of-00001.parquet, or the table of VLMEvalKit, or the author's nested JSON
data/{videoID}.mp4 (lmms-eval), video/{videoID}.mp4 (VLMEvalKit), videos/{videoID}.mp4 (Qwen)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, official_files
from rmsd_jax.benchmarks.item import Ask, Benchmark, Item, Picture, without_letters
from rmsd_jax.benchmarks.protocols import Protocol

_FOLDERS = ("data", "video", "videos")
_FIELDS = ("duration", "domain", "sub_category", "task_type")


def _read(root: Path) -> list[Item]:
  """The questions of a folder, in the order of the file."""
  found = official_files.find(
    root,
    "videomme/test-*.parquet",
    "test-*.parquet",
    "Video-MME.tsv",
    "*.parquet",
    "*ideo*[mM][mM][eE]*.json",
  )
  # Several parquet files are parts of one table; of other forms there is one file.
  path = found[0]
  parts = found if path.suffix == ".parquet" else found[:1]
  rows = [row for part in parts for row in official_files.rows(part)]
  nested = path.suffix == ".json" and any("questions" in row for row in rows)
  questions = [one for video in rows for one in _of_video(video, path)] if nested else rows
  items = [_item(place, row, path) for place, row in enumerate(questions)]
  return official_files.check_ids(items, path)


def _of_video(video: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
  """The questions of one video of the nested form, each with what is said of the video."""
  about = {name: value for name, value in video.items() if name != "questions"}
  return [about | dict(one) for one in official_files.cell(video, "questions", path)]


def _item(place: int, row: Mapping[str, Any], path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  video = str(row.get("videoID") or row.get("video") or _from_url(row) or get("videoID"))
  shown = official_files.texts(row.get("options") or get("candidates"), path)
  names = [f"{folder}/{video}{end}" for folder in _FOLDERS for end in (".mp4", ".MP4", ".mkv")]
  texts = {name: str(get(name)) for name in ("duration", "domain", "sub_category", "task_type")}
  return Item(
    id=str(row.get("question_id") or row.get("index") or place),
    cluster=video,
    question=str(get("question")),
    options=without_letters(shown),
    answer=str(get("answer")).strip(),
    media=(Picture("video", (*names, f"**/{video}.mp4")),),
    fields=texts,
    extra={"shown": shown},
    row={
      "index": place,
      "video": video,
      "video_path": f"./video/{video}.mp4",
      **{name: texts[name] for name in ("duration", "domain")},
      "candidates": shown,
      **{name: texts[name] for name in ("sub_category", "task_type")},
      "subtitle_path": f"./subtitle/{video}.srt",
      "question": row["question"],
      "answer": row["answer"],
    },
  )


def _from_url(row: Mapping[str, Any]) -> str:
  """The id in the address of a video, which the nested form has alone."""
  return str(row.get("url") or "").rpartition("v=")[2].rpartition("/")[2]


def _vlmevalkit(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(f"{choices.FRAMES}Question: {choices.asked(item)}\nAnswer: ")


def _official(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(f"{choices.SELECT}\n{choices.asked(item)}\nThe best answer is:")


def _qwen(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(f"{choices.SELECT}\nQuestion: {choices.asked(item)}\nThe best answer is:")


def _lmms(item: Item, protocol: Protocol) -> list[Ask]:
  options = choices.listed(item)
  text = f"Question: {item.question}\nOptions:\n{options}\nAnswer with the option letter only."
  return choices.ask(text)


def _lmms_default(item: Item, protocol: Protocol) -> list[Ask]:
  select = choices.SELECT.replace("the video.", "the video and the subtitles.")
  return choices.ask(f"{select}\n{choices.asked(item)}\n\n{choices.DIRECTLY}")


def _open_o3(item: Item, protocol: Protocol) -> list[Ask]:
  select = choices.SELECT.replace("the following ", "the ")
  head, _, letter = select.partition(" Respond")
  if not protocol.thinking:
    return choices.ask(f"{select}\n{choices.asked(item)}\n")
  how = f"{choices.THINK} {choices.EVIDENCE} {choices.SHORT} In the answer part, respond{letter}"
  return choices.ask(f"Question:{choices.asked(item)}\n{head} {how}")


SET = Benchmark(
  name="videomme",
  title="VideoMME",
  size=2_700,
  read=_read,
  prompts={
    "vlmevalkit": _vlmevalkit,
    "official": _official,
    "qwen": _qwen,
    "lmms-eval": _lmms,
    "lmms-eval-default": _lmms_default,
    "open-o3": _open_o3,
  },
  grade=choices.grader(lambda item: "ABCD"),
  presets={"lmms-eval-64f": {"max_tokens": 16}},
  breakdowns=_FIELDS,
  vlmeval="Video-MME",
  lmms="videomme",
)

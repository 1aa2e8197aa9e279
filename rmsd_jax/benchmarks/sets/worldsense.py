"""WorldSense without sound: 1,662 videos, 3,172 questions of three or four options.

worldsense_qa.json (nested), the table WorldSense.tsv of VLMEvalKit, or lmms-lab's parquet
videos/{video}.mp4
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, official_files
from rmsd_jax.benchmarks.item import Ask, Benchmark, Item, Picture, without_letters
from rmsd_jax.benchmarks.protocols import Protocol

_SHARED = ("duration", "domain", "sub_category", "audio_class", "video_caption")


def _read(root: Path) -> list[Item]:
  """The questions of a folder, in the order of the file."""
  (path, *more) = official_files.find(
    root, "worldsense_qa.json", "WorldSense.tsv", "**/test*.parquet", "*.parquet"
  )
  if path.suffix == ".json":
    questions = [
      one
      for video, about in official_files.mapping(path).items()
      for one in _of_video(video, about, path)
    ]
  else:
    questions = [row for part in (path, *more) for row in official_files.rows(part)]
  items = [_item(place, row, path) for place, row in enumerate(questions)]
  return official_files.check_ids(items, path)


def _of_video(video: str, about: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
  if not isinstance(about, Mapping):
    raise official_files.UserError(f"{path}: {video!r} is not an object; copy it again")
  shared = {name: about[name] for name in _SHARED if name in about}
  # As VLMEvalKit takes them: all keys in which "task" stands.
  tasks = [value for key, value in about.items() if "task" in key]
  return [{"video": video, **shared, **task} for task in tasks]


def _item(place: int, row: Mapping[str, Any], path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  video = str(get("video"))
  shown = official_files.texts(get("candidates"), path)
  sounds = official_files.texts(row.get("audio_class"), path)
  one = ("duration", "domain", "sub_category", "task_domain", "task_type")
  fields = {name: str(get(name)) for name in one}
  return Item(
    id=f"{video}-{place}",
    cluster=video,
    question=str(get("question")),
    options=without_letters(shown),
    answer=str(get("answer")).strip(),
    media=(Picture("video", (f"videos/{video}.mp4", f"{video}.mp4", f"**/{video}.mp4")),),
    fields={**fields, "audio_class": tuple(sounds)},
    extra={"shown": shown},
    row={
      "index": place,
      "video": video,
      "video_path": f"./videos/{video}.mp4",
      **{name: fields[name] for name in ("duration", "domain")},
      "candidates": shown,
      "sub_category": fields["sub_category"],
      "audio_class": sounds,
      **{name: fields[name] for name in ("task_domain", "task_type")},
      "subtitle_path": f"./subtitles/{video}.srt",
      "audio_path": f"./audios/{video}.wav",
      "video_caption": row.get("video_caption", ""),
      "question": row["question"],
      "answer": row["answer"],
    },
  )


def _vlmevalkit(item: Item, protocol: Protocol) -> list[Ask]:
  text = f"{choices.FRAMES}Question: {choices.asked(item)}\nAnswer: "
  return choices.ask(text, before=choices.CAREFULLY)


def _lmms(item: Item, protocol: Protocol) -> list[Ask]:
  frames = choices.FRAMES.replace("of a video.", "of a video and the corresponding audio.")
  return choices.ask(f"{choices.CAREFULLY}{frames}{choices.asked(item)}\n")


def _open_o3(item: Item, protocol: Protocol) -> list[Ask]:
  frames = (
    "\nThese are the frames of a video. Audio transcripts of the video:\nThis video does not have "
    "audio transcripts. "
  )
  select = "\nSelect the best answer to the multiple-choice question based on the video. "
  letter = "espond with only the letter (A, B, C, or D) of the correct option. "
  how = f"R{letter}"
  if protocol.thinking:
    how = f"{choices.THINK} {choices.EVIDENCE} {choices.SHORT}In the answer part, r{letter}"
  question = f"Question: {choices.asked(item)}\n"
  return choices.ask(f"{choices.CAREFULLY}{frames}{question}{select}{how}")


SET = Benchmark(
  name="worldsense",
  title="WorldSense",
  size=3_172,
  read=_read,
  prompts={
    "vlmevalkit": _vlmevalkit,
    "qwen": _vlmevalkit,
    "lmms-eval": _lmms,
    "open-o3": _open_o3,
  },
  grade=choices.grader(lambda item: item.letters),
  presets={},
  breakdowns=("task_type", "task_domain", "domain", "sub_category", "duration", "audio_class"),
  vlmeval="WorldSense",
  lmms="worldsense",
  notes=("many items need the sound, which a model of pictures alone does not have",),
)

"""LongVideoBench, validation: 1,337 questions of two to five options.

lvb_val.json, the table of VLMEvalKit, or the parquet (option0 .. option4 with "N/A")
videos/{video_path}
subtitles/{subtitle_path}     where a protocol shows subtitles; as they come, VLMEvalKit's and
                              lmms-eval's sets of clips show none, the official protocol does
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, official_files
from rmsd_jax.benchmarks.item import LETTERS, Ask, Benchmark, Item, Picture, SubtitleFiles
from rmsd_jax.benchmarks.protocols import PAPER_BY_VLMEVALKIT, Protocol
from rmsd_jax.core.errors import UserError
from rmsd_jax.data.subtitles import Subtitle

_KEPT = (
  *("video_id", "subtitle_path", "question_wo_referring_query", "topic_category", "view_count"),
  *("duration", "starting_timestamp_for_subtitles"),
)


def _read(root: Path) -> list[Item]:
  """The questions of a folder, in the order of the file."""
  (path, *more) = official_files.find(
    root, "lvb_val.json", "LongVideoBench.tsv", "validation*.parquet", "**/validation*.parquet"
  )
  rows = [row for part in (path, *more) for row in official_files.rows(part)]
  items = [_item(place, row, path) for place, row in enumerate(rows)]
  return official_files.check_ids(items, path)


def _options(row: Mapping[str, Any], path: Path) -> list[str]:
  if row.get("candidates") is not None:
    return official_files.texts(row["candidates"], path)
  official_files.cell(row, "option0", path)
  texts = [row.get(f"option{place}") for place in range(5)]
  ended = next((n for n, text in enumerate(texts) if text in (None, "N/A")), len(texts))
  return [str(text) for text in texts[:ended]]


def _item(place: int, row: Mapping[str, Any], path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  options = _options(row, path)
  right = int(official_files.to_number(get("correct_choice"), "correct_choice", path))
  file = str(get("video_path")).removeprefix("./").removeprefix("videos/")
  return Item(
    id=str(row.get("id") or place),
    cluster=str(row.get("video_id") or file),
    question=str(get("question")),
    options=tuple(options),
    answer=LETTERS[right] if 0 <= right < len(options) else "",
    media=(Picture("video", (f"videos/{file}", file, f"**/{file}")),),
    fields={
      "duration_group": str(int(official_files.to_number(get("duration_group"), "group", path))),
      "question_category": str(get("question_category")),
      "level": str(get("level")),
    },
    row={
      "index": place,
      **{name: row[name] for name in ("id", *_KEPT) if row.get(name) is not None},
      "video_path": f"./videos/{file}",
      "question": row["question"],
      "candidates": options,
      "correct_choice": right,
      **{name: row[name] for name in ("question_category", "level", "duration_group")},
    },
  )


def _vlmevalkit(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(f"{choices.asked(item)}\n{choices.DIRECTLY}")


def _official(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(f"Question: {choices.asked(item)}\n{choices.DIRECTLY}")


def _lmms(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(f"{choices.asked(item)}\n{choices.DIRECTLY}\n")


def _subtitle_places(item: Item) -> tuple[str, ...]:
  file = str(item.row.get("subtitle_path") or "").removeprefix("./").removeprefix("subtitles/")
  return (f"subtitles/{file}", file, f"**/{file}") if file else ()


def _read_subtitles(item: Item, path: Path) -> list[Subtitle]:
  """The lines of a file, which is of the video that the clip was cut from."""
  begin = _number(item, "starting_timestamp_for_subtitles", path)
  lines = []
  for row in official_files.rows(path):
    try:
      first, last, text = _line(row)
    except (AttributeError, KeyError, TypeError, ValueError):
      raise UserError(f"{path} has the subtitle {row!r:.80}; copy the file again") from None
    # The official code puts the length of the clip for an end that is not known, and moves it so.
    start = first - begin
    end = (_number(item, "duration", path) if last is None else last) - begin
    if end < start:  # counts as every short one does: as a second around its middle
      middle = (start + end) / 2
      start = middle - 0.5
      end = middle + 0.5
    lines.append(Subtitle(start, end, text))
  return lines


def _line(row: Mapping[str, Any]) -> tuple[float, float | None, str]:
  """(start, end or None, text) of either form."""
  if "timestamp" in row:
    start, end = row["timestamp"]
    # The official code knows ends as floats alone.
    found = float(start), end if isinstance(end, float) else None, row["text"]
  else:
    found = _clock(row["start"]), _clock(row["end"]), row["line"]
  if not isinstance(found[2], str):
    raise TypeError
  return found


def _clock(text: str) -> float:
  """Seconds of HH:MM:SS.mmm."""
  hours, minutes, seconds = text.split(":")
  return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _number(item: Item, name: str, path: Path) -> float:
  if item.row.get(name) is None:
    raise UserError(f"item {item.id!r} has no {name}, which its subtitles in {path} need")
  return official_files.to_number(item.row[name], name, path)


SET = Benchmark(
  name="longvideobench",
  title="LongVideoBench",
  size=1_337,
  read=_read,
  prompts={
    "vlmevalkit": _vlmevalkit,
    "qwen": _vlmevalkit,
    "official": _official,
    "lmms-eval": _lmms,
  },
  grade=choices.grader(lambda item: "ABCDE"),
  presets={
    "paper-64f": PAPER_BY_VLMEVALKIT,
    "lmms-eval-64f": {"max_tokens": 32, "extractor": "longvideobench-lmms"},
  },
  breakdowns=("duration_group", "question_category", "level"),
  vlmeval="LongVideoBench",
  lmms="longvideobench_val_v",
  subtitles=SubtitleFiles(_subtitle_places, _read_subtitles),
)

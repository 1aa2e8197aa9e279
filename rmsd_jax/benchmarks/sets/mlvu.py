"""MLVU_MCQ (dev): seven tasks of four options; 2,175 questions in the published JSON.

json/1_plotQA.json .. 7_topic_reasoning.json, the table MLVU_MCQ.tsv of VLMEvalKit, or the
parquet of MLVU_dev, whose questions hold their options (lmms-eval asks them so)
MLVU/video/{n_task}/{video}, video/{n_task}/{video}, or {video} in any folder
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, official_files
from rmsd_jax.benchmarks.item import LETTERS, Ask, Benchmark, Item, Picture
from rmsd_jax.benchmarks.protocols import PAPER_BY_VLMEVALKIT, Protocol

_TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
_OPTIONS = re.compile(r"\n\s*(?:Options:\s*)?\(A\)")  # where those inside a question begin
_FOLDERS = {task: f"{number}_{task}" for number, task in enumerate(_TASKS, 1)}


def _read(root: Path) -> list[Item]:
  """The questions of a folder, task by task."""
  found = official_files.find(
    root,
    "json/[1-7]_*.json",
    "MLVU/json/[1-7]_*.json",
    "[1-7]_*.json",
    "MLVU_MCQ.tsv",
    "**/*.parquet",
  )
  items: list[Item] = []
  for path in found:
    # The task is the file's: "question_type" of needle is "findNeedle".
    task = path.stem.partition("_")[2] if path.suffix == ".json" else ""
    for row in official_files.rows(path):
      items.append(_item(len(items), row, task or str(_task(row, path)), path))
  return official_files.check_ids(items, found[0])


def _task(row: Mapping[str, Any], path: Path) -> str:
  return str(official_files.cell(row, "task_type", path))


def _item(place: int, row: Mapping[str, Any], task: str, path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  if task not in _FOLDERS:
    raise official_files.UserError(f"{path}: {task!r} is none of {', '.join(_TASKS)}")
  video = str(row.get("video") or get("video_name"))
  options = official_files.texts(get("candidates"), path)
  answer = str(get("answer"))
  folder = _FOLDERS[task]
  whole = str(get("question"))
  question = _OPTIONS.split(whole)[0].strip()
  places = [i for i, option in enumerate(options) if option == answer]
  if not places and len(answer.strip()) == 1 and answer.strip() in LETTERS[: len(options)]:
    places = [LETTERS.index(answer.strip())]  # the parquet has letters
  return Item(
    id=f"{task}-{place}",
    cluster=f"{folder}/{video}",
    question=question,
    options=tuple(options),
    answer=[LETTERS[i] for i in places],
    media=(
      Picture(
        "video",
        (
          *(f"{root}video/{folder}/{video}" for root in ("MLVU/", "")),
          f"{folder}/{video}",
          video,
          f"**/{video.rpartition('/')[2]}",
        ),
      ),
    ),
    fields={"task": task},
    extra={"baked": whole if question != whole else ""},
    row={
      "task_type": task,
      "prefix": f"./MLVU/video/{folder}",
      "duration": row.get("duration", ""),
      "video": video,
      "question": question,
      "answer": options[places[-1]] if places else answer,
      "candidates": options,
      "index": place,
    },
  )


def _asked(item: Item) -> str:
  return "\n".join([f"Question: {item.question}", "Options:", *item.lettered("({}) {}")])


def _vlmevalkit(item: Item, protocol: Protocol) -> list[Ask]:
  text = f"{_asked(item)}\nOnly give the best option."
  return choices.ask(text, before=choices.CAREFULLY)


def _lmms(item: Item, protocol: Protocol) -> list[Ask]:
  asked = item.extra["baked"] or _asked(item)
  return choices.ask(f"{asked}\nOnly give the best option.\nBest option: (")


def _grade(item: Item, call: str, reply: str, protocol: Protocol):
  """The letter is that of the right text; where it stands among the options twice, of one place.

  An item whose answer is no option is always wrong, as in the official code.
  """
  places = item.answer
  gold = (places[-1] if protocol.gold == "last" else places[0]) if places else ""
  read = choices.letters.letter(protocol.extractor, reply, item.letters, item.options)
  return choices.Grade(float(read is not None and read == gold), read)


SET = Benchmark(
  name="mlvu",
  title="MLVU_MCQ",
  size=2_175,
  read=_read,
  prompts={"vlmevalkit": _vlmevalkit, "qwen": _vlmevalkit, "lmms-eval": _lmms},
  grade=_grade,
  presets={
    "paper-64f": PAPER_BY_VLMEVALKIT | {"extractor": "mlvu-vlmevalkit"},
    "vlmevalkit-64f": {"extractor": "mlvu-vlmevalkit"},
    "lmms-eval-64f": {"max_tokens": 16, "aggregation": "macro"},
    "qwen-2fps": {"extractor": "mlvu-vlmevalkit"},
  },
  breakdowns=("task",),
  macro="task",
  vlmeval="MLVU_MCQ",
  lmms="mlvu_dev",
  notes=(
    "M-Avg is the macro mean of the seven tasks officially and in lmms-eval, the micro mean in "
    "VLMEvalKit; both are given",
    "items whose answer is none of the options count as wrong; lmms-eval's prompts prime the reply "
    "with '(' inside the question",
  ),
)

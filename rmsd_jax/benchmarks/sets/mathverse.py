"""MathVerse testmini: 788 problems in five versions (and Text Only, apart), by rule-v1.

testmini.json and testmini_text_only.json, the parquet of CaraJ/MathVerse (-lmmseval), or the
tables MathVerse_MINI*.tsv of VLMEvalKit, pictures inside
images_version_1-4/.., images_version_5/.., images_version_6/.. below the folder or its images/
"""

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, math_rules, official_files
from rmsd_jax.benchmarks.item import LETTERS, Ask, Benchmark, Grade, Item, Picture
from rmsd_jax.benchmarks.protocols import PAPER_BY_VLMEVALKIT, Protocol

TEXT_ONLY = "Text Only"
_OPTION = re.compile(r"\s*\(?([A-H])\)?\s*[:.)]\s*(.*)")
_MARKS = ("Choices:", "Choice:")
_SAME = ("cluster", "question", "answer", "fields")  # of one sample in several tables
_UNKNOWN = "ABCDEF"  # letters of a choice whose options stand in the picture alone


def _read(root: Path) -> list[Item]:
  """The five versions in the order of the file; Text Only where the folder has nothing else."""
  found = official_files.find(
    root,
    "testmini.json",
    "MathVerse_MINI*.tsv",
    "**/testmini*.parquet",
    "testmini_text_only.json",
  )
  rows = []
  for path in found:
    part = official_files.rows(path)
    rows += official_files.shared_pictures(part, path) if path.suffix == ".tsv" else part
  items = [_item(row, found[0]) for row in rows]
  seen = [item for item in items if item.fields["problem_version"] != TEXT_ONLY]
  # Tables of single versions may lie beside that of all.
  whole: dict[str, Item] = {}
  for item in seen or items:
    first = whole.setdefault(item.id, item)
    if any(getattr(first, name) != getattr(item, name) for name in _SAME):
      raise official_files.UserError(
        f"{root}: sample {item.id!r} stands there twice and differently; copy the set again"
      )
  return official_files.check_ids(_with_options(list(whole.values())), found[0])


def _metadata(row: Mapping[str, Any], path: Path) -> dict[str, Any]:
  """The object, which the text-only file has as Python's text of one."""
  value = row.get("metadata")
  if isinstance(value, str):
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
      raise official_files.UserError(f"{path}: metadata {value[:60]!r} is no object") from error
  if isinstance(value, Mapping):
    return dict(value)
  return {name: row[name] for name in ("split", "source", "subject", "subfield") if name in row}


def _item(row: Mapping[str, Any], path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  version, problem = str(get("problem_version")).replace("_", " "), str(get("problem_index"))
  about = _metadata(row, path)
  media: tuple[Picture, ...] = ()
  if version != TEXT_ONLY:
    # Asked without its picture, a problem would be another one.
    image = row.get("image") or row.get("image_path") or get("image")
    name = str(row.get("sample_index") or row.get("index"))
    picture = official_files.embedded(image, name, path)
    places = [f"{folder}{place}" for place in picture.places for folder in ("", "images/")]
    media = (dataclasses.replace(picture, places=tuple(places)),)
  question = str(row.get("question") or "")
  extra = {"question_type": str(get("question_type"))}
  for name in ("query_wo", "query_cot", "question_for_eval"):
    if row.get(name):
      extra[name] = str(row[name])
  return Item(
    id=str(row.get("sample_index") or row.get("index")),
    cluster=problem,
    question=question,
    options=tuple(options_in(extra.get("question_for_eval") or question)),
    answer=str(get("answer")),
    media=media,
    fields={
      "problem_version": version,
      "question_type": extra["question_type"],
      **{name: str(about[name]) for name in ("subject", "subfield", "source") if about.get(name)},
    },
    extra=extra,
    row={
      name: row[name]
      for name in (
        *("index", "sample_index", "problem_index", "problem_version", "question", "answer"),
        *("question_type", "query_wo", "query_cot", "question_for_eval"),
      )
      if row.get(name) is not None
    },
  )


def options_in(question: str) -> list[str]:
  """The options that a question lists after "Choices:", in the order of their letters.

  [] where they are not A, B, C ..: "A:3", "A. 3", "(A) 3" each in a line of its own, or all in one.
  """
  for mark in _MARKS:
    _, there, listed = question.rpartition(mark)
    if there:
      lines = [line for line in listed.strip().split("\n") if line.strip()]
      if len(lines) == 1:
        lines = re.split(r"\s+(?=\(?[B-H]\)?\s*[:.])", lines[0])
      found = [match for line in lines if (match := _OPTION.match(line))]
      letters = "".join(match[1] for match in found)
      if letters and letters == LETTERS[: len(letters)]:
        return [match[2].strip() for match in found]
  return []


def _with_options(items: Sequence[Item]) -> list[Item]:
  """Vision Only has no question: its options are those of the problem's other versions."""
  known: dict[str, Item] = {}
  for item in items:
    if item.options or item.question:
      known.setdefault(item.cluster, item)
      if item.options and not known[item.cluster].options:
        known[item.cluster] = item
  return [
    item
    if item.options or item.extra["question_type"] == "free-form" or item.cluster not in known
    else dataclasses.replace(item, options=known[item.cluster].options)
    for item in items
  ]


def _plain(item: Item, protocol: Protocol) -> list[Ask]:
  """VLMEvalKit's: the column "question", which is empty in Vision Only."""
  return choices.ask(item.question or item.extra.get("query_wo", "") or _ABOUT_PICTURE)


def _query(name: str):
  def asks(item: Item, protocol: Protocol) -> list[Ask]:
    return choices.ask(item.extra.get(name) or item.question or _ABOUT_PICTURE)

  return asks


_ABOUT_PICTURE = "Please answer the question in the picture."


def _grade(item: Item, call: str, reply: str, protocol: Protocol) -> Grade:
  """rule-v1: letters of a cleaned truth, else numbers and formulas."""
  math_rules.check_rules(protocol.extractor)
  if item.extra["question_type"] == "multi-choice":
    letters = item.letters or _UNKNOWN
    truth = math_rules.mathverse_letters(item.answer, item.options)
    if truth:
      name = math_rules.all_letters if len(truth) > 1 else math_rules.choice
      read = name(reply, item.options, letters)
      return Grade(float(read is not None and read == truth), read)
  right, read = math_rules.mathverse(reply, item.answer)
  return Grade(float(right), read)


_RULES = {"extractor": math_rules.VERSION}
SET = Benchmark(
  name="mathverse",
  title="MathVerse",
  size=3_940,
  read=_read,
  prompts={
    "vlmevalkit": _plain,
    "vlmevalkit-cot": _query("query_cot"),
    "qwen": _plain,
    "lmms-eval": _query("query_wo"),
  },
  grade=_grade,
  presets={
    "paper-64f": PAPER_BY_VLMEVALKIT | _RULES,
    "vlmevalkit-64f": _RULES,
    "lmms-eval-64f": _RULES | {"max_tokens": 16_384},
    "qwen-2fps": _RULES,
  },
  has_clips=False,
  breakdowns=("problem_version", "subject", "subfield", "question_type"),
  cluster="problem",
  vlmeval="MathVerse_MINI",
  lmms="mathverse_testmini",
  notes=(
    "by rules, offline: not to be compared with figures of a judge, and lower than those",
    "which of the set's queries the paper asks is not known",
  ),
)

"""MathVista testmini: 1,000 questions about pictures, by rule-v1 (no judge).

testmini.json (with query.json), the parquet of AI4Math/MathVista, or the table
MathVista_MINI.tsv of VLMEvalKit, pictures inside
images/{n}.jpg
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, math_rules, official_files
from rmsd_jax.benchmarks.item import LETTERS, Ask, Benchmark, Grade, Item
from rmsd_jax.benchmarks.protocols import ASSISTANT, PAPER_BY_VLMEVALKIT, Protocol

_META = ("task", "context", "grade", "source", "category", "language")
_BEFORE = {
  "text": "question and provide the correct option letter, e.g., A, B, C, D,",
  "integer": "question requiring an integer answer and provide the final value, e.g., 1, 2, 3,",
  "float1": "question requiring a floating-point number with one decimal place and provide the "
  "final value, e.g., 1.2, 1.3, 1.4,",
  "float2": "question requiring a floating-point number with two decimal places and provide the "
  "final value, e.g., 1.23, 1.34, 1.45,",
  "list": "question requiring a Python list as an answer and provide the final list, e.g., [1, 2, "
  "3], [1.2, 1.3, 1.4],",
}
_SHORT = {
  "text": choices.DIRECTLY,
  "integer": "Answer the question using a single integer number.",
  "float1": "Answer the question using a single floating-point number with one decimal place.",
  "float2": "Answer the question using a single floating-point number with two decimal places.",
  "list": "Answer the question using a Python list.",
}


def _read(root: Path) -> list[Item]:
  """The questions of a folder, in the order of the file."""
  (path, *more) = official_files.find(
    root, "testmini.json", "data/testmini.json", "MathVista_MINI.tsv", "**/testmini*.parquet"
  )
  if path.suffix == ".json":
    beside = path.with_name("query.json")
    queries = official_files.mapping(beside) if beside.is_file() else {}
    rows = [
      {"pid": pid, "query": queries.get(pid), **row}
      for pid, row in official_files.mapping(path).items()
    ]
  else:
    rows = [row for part in (path, *more) for row in official_files.rows(part)]
    rows = official_files.shared_pictures(rows, path) if path.suffix == ".tsv" else rows
  return official_files.check_ids((_item(n, row, path) for n, row in enumerate(rows)), path)


def _item(place: int, row: Mapping[str, Any], path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  table = path.suffix == ".tsv"
  name = str(row.get("pid") or row.get("index") or place)
  options = official_files.texts(row.get("choices"), path)
  about = row.get("metadata") or row
  told = about.get("skills") or []
  listed = not isinstance(told, str) or told.startswith(("[", "("))
  skills = official_files.texts(told, path) if listed else [str(told)]
  precision = row.get("precision")
  picture = row.get("decoded_image") or get("image")
  answer = str(get("answer")).strip()
  extra: dict[str, Any] = {
    "question_type": str(get("question_type")),
    "answer_type": str(get("answer_type")),
    "precision": int(official_files.to_number(precision, "precision", path)) if precision else None,
    "unit": str(row.get("unit") or ""),
  }
  if query := row.get("question") if table else row.get("query"):
    extra["query"] = str(query)
  fields: dict[str, str | tuple[str, ...]]
  fields = {name: str(about[name]) for name in _META if about.get(name)}
  fields |= {"skills": tuple(skills)} if skills else {}
  kept = ("question_type", "answer_type", "task", "precision", "unit")
  item = Item(
    id=name,
    cluster=name,
    question=str(get("question")),
    options=tuple(options),
    answer=answer,
    media=(official_files.embedded(picture, name, path),),
    fields=fields | {"answer_type": extra["answer_type"]},
    extra=extra,
  )
  letter = LETTERS[options.index(answer)] if answer in options else ""
  row_of_table = {
    "index": row.get("index", place),
    **{name: row[name] for name in kept if row.get(name) is not None},
    **{name: value for name, value in fields.items() if name in ("task", "skills")},
    "question": query_of(item),
    "choices": options,
    "answer": answer,
    "answer_option": row.get("answer_option", letter),
  }
  return Item(**{**vars(item), "row": row_of_table})


def _kind(item: Item) -> str:
  kind = item.extra["answer_type"]
  return f"float{item.extra['precision'] or 1}" if kind == "float" else kind


def query_of(item: Item) -> str:
  """The official query: hint, question, unit and choices; the set's own where it has one."""
  if "query" in item.extra:
    return item.extra["query"]
  hint = f"Hint: Please answer the {_BEFORE[_kind(item)]} at the end."
  return "\n".join([hint, *_lines(item)])


def _lines(item: Item) -> list[str]:
  unit = f" (Unit: {item.extra['unit']})" if item.extra["unit"] else ""
  listed = ["Choices:", *item.lettered("({}) {}")] if item.options else []
  return [f"Question: {item.question}{unit}", *listed]


def _vlmevalkit(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(query_of(item))


def _cot(item: Item, protocol: Protocol) -> list[Ask]:
  hint = f"Hint: Please answer the {_BEFORE[_kind(item)]} at the end."
  return choices.ask("\n".join([*_lines(item), hint]))


def _solution(item: Item, protocol: Protocol) -> list[Ask]:
  return choices.ask(_cot(item, protocol)[0].text + "\nSolution:")


def _format(item: Item, protocol: Protocol) -> list[Ask]:
  unit = f" (Unit: {item.extra['unit']})" if item.extra["unit"] else ""
  listed = item.lettered() if item.options else []
  return choices.ask("\n".join([f"{item.question}{unit}", *listed, _SHORT[_kind(item)]]))


def _grade(item: Item, call: str, reply: str, protocol: Protocol) -> Grade:
  """rule-v1: a choice by the text of the option, which may stand among the options twice."""
  math_rules.check_rules(protocol.extractor)
  if item.extra["question_type"] != "multi_choice":
    kind, precision = item.extra["answer_type"], item.extra["precision"]
    right, read = math_rules.mathvista(reply, kind, precision, item.answer)
    return Grade(float(right), read)
  nearest = protocol.extractor == math_rules.NEAREST
  read = math_rules.choice(reply, item.options, item.letters, nearest)
  text = item.options[LETTERS.index(read)].strip() if read else None
  return Grade(float(text is not None and text == item.answer), read)


_RULES = {"extractor": math_rules.VERSION}
SET = Benchmark(
  name="mathvista",
  title="MathVista",
  size=1_000,
  read=_read,
  prompts={
    "vlmevalkit": _vlmevalkit,
    "qwen": _vlmevalkit,
    "lmms-eval": _cot,
    "lmms-eval-solution": _solution,
    "lmms-eval-format": _format,
  },
  grade=_grade,
  presets={
    "paper-64f": PAPER_BY_VLMEVALKIT | _RULES,
    "vlmevalkit-64f": _RULES,
    "lmms-eval-64f": _RULES | {"max_tokens": 16_384, "system": ASSISTANT},
    "qwen-2fps": _RULES,
  },
  has_clips=False,
  breakdowns=("task", "skills", "context", "grade", "source", "answer_type"),
  cluster="picture",
  vlmeval="MathVista_MINI",
  lmms="mathvista_testmini_cot",
  notes=("by rules, offline: not to be compared with figures of a judge",),
)

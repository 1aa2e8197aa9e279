"""Video-MMMU: 300 videos, a question each of perception, comprehension and adaptation.

{Track}/test-00000-of-00001.parquet, the table VideoMMMU.tsv of VLMEvalKit, or the JSON of the
repository ({"Adaptation": {"0": {..}}, ..})
{Art|Science|..}/{id}.mp4; the question image of adaptation is in the table, or images/{id}.*
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, letters, official_files, open_answers
from rmsd_jax.benchmarks.item import LETTERS, Ask, Benchmark, Grade, Item, Picture, without_letters
from rmsd_jax.benchmarks.protocols import Protocol

TRACKS = ("Perception", "Comprehension", "Adaptation")
_FOLDERS = {
  "Art": "Art Art_Theory Design Music",
  "Science": "Biology Chemistry Geography Math Physics",
  "Humanities": "History Literature Sociology Psychology",
  "Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
  "Energy_and_Power Materials Mechanical_Engineering",
  "Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine "
  "Pharmacy Public_Health",
  "Business": "Accounting Economics Finance Manage Marketing",
}
FOLDER_OF = {subject: folder for folder, names in _FOLDERS.items() for subject in names.split()}
_CHOICE = ("multiple-choice", "perception")
_OPEN = "open"
_ANSWER_AT_END = "Add `Answer: {Your final answer}` at the end of your reply."
_LEARN = "You should watch and learn the video content. Then apply what you learned to "


def _read(root: Path) -> list[Item]:
  """The questions of a folder, track by track."""
  found = official_files.find(
    root, "*/test-*.parquet", "VideoMMMU.tsv", "*.parquet", "*ideo*[mM][mM][mM][uU]*.json"
  )
  items: list[Item] = []
  for path in found:
    if path.suffix == ".json":
      rows = [
        {"category": track, "id": key, **row}
        for track, by_number in official_files.mapping(path).items()
        for key, row in by_number.items()
      ]
    else:
      track = next((name for name in TRACKS if name in (path.parent.name, path.stem)), "")
      rows = [({"category": track} if track else {}) | row for row in official_files.rows(path)]
    items += [_item(len(items) + place, row, path) for place, row in enumerate(rows)]
  ordered = sorted(items, key=lambda item: TRACKS.index(item.fields["track"]))
  return official_files.check_ids(ordered, found[0])


def _item(place: int, row: Mapping[str, Any], path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  name = str(get("id"))
  subject = "_".join(name.split("_")[1:-1])
  track = str(get("category"))
  if subject not in FOLDER_OF or track not in TRACKS:
    raise official_files.UserError(
      f"{path}: id {name!r}, track {track!r}: the id names no subject, or there is no such track"
    )
  shown = official_files.texts(row.get("options"), path)
  folder = FOLDER_OF[subject]
  clips = (f"{folder}/{name}.mp4", f"videos/{folder}/{name}.mp4", f"**/{name}.mp4")
  media = [Picture("video", clips)]
  if track == "Adaptation":
    if row.get("image"):
      media.append(official_files.embedded(row["image"], name, path))
    else:
      media.append(Picture("image", tuple(f"images/{name}.{end}" for end in ("png", "jpg"))))
  # What has options is a choice, unless it is called open: the type may be null, NaN or missing.
  kind = str(row.get("question_type") or "")
  if kind not in (*_CHOICE, _OPEN):
    kind = "multiple-choice" if shown else _OPEN
  return Item(
    id=f"{track}-{name}",
    cluster=name,
    question=str(get("question")),
    options=() if kind == _OPEN else without_letters(shown),
    answer=str(get("answer")).strip(),
    media=tuple(media),
    fields={"track": track, "discipline": folder, "subject": subject},
    extra={"shown": _shown(shown)},
    row={
      "index": place,
      "id": name,
      "category": track,
      "question": row["question"],
      "options": shown,
      "answer": row["answer"],
      "question_type": kind,
      "video": f"videos/{folder}/{name}.mp4",
    },
  )


def _shown(options: list[str]) -> list[str]:
  """As they are where all have their letter and a full stop, else with them."""
  lettered = [f"{letter}." for letter in LETTERS[: len(options)]]
  if all(text.startswith(head) for text, head in zip(options, lettered, strict=True)):
    return options
  return [f"{head} {text}" for head, text in zip(lettered, options, strict=True)]


def _lmms_text(item: Item) -> str:
  if item.fields["track"] != "Adaptation":
    return f"{choices.asked(item)}\nPlease ignore the Quiz question in last frame of the video."
  kind = "multi-choice" if item.options else "open-ended"
  where = "The image for this question is at the end of the video."
  return f"{_LEARN}answer the following {kind} question. {where}\n{choices.asked(item)}"


def prompts_of(text: Callable[[Item], str]) -> dict[str, Callable[[Item, Protocol], list[Ask]]]:
  """The prompts of two harnesses around what is asked. lmms-eval shows the clip alone: the question
  image is its last frame."""
  lmms = lambda item, protocol: [Ask(text(item), media=item.media[:1])]
  vlmevalkit = lambda item, protocol: choices.ask(f"{text(item)}\n{_ANSWER_AT_END}")
  return {"vlmevalkit": vlmevalkit, "qwen": vlmevalkit, "lmms-eval": lmms}


def how_to_think(item: Item) -> str:
  """Open-o3-Video's sentences about the reply."""
  what = "letter of the correct option" if item.options else "final answer"
  end = f"In the answer part, respond with only the {what}."
  return f"{choices.THINK} {choices.EVIDENCE} {choices.SHORT} {end}"


def _open_o3(item: Item, protocol: Protocol) -> list[Ask]:
  track = item.fields["track"]
  about = "Please ignore the Quiz question in last frame of the video."
  if track == "Adaptation":
    about = f"{_LEARN}the question. Some key information of the question is in the input image."
  options = "\n" + choices.listed(item)
  text = f"{item.question}{options}\nQuestion Category:{track}\n{about}"
  if protocol.thinking:
    text += f"\n{how_to_think(item)}"
  return choices.ask(text)


def _grade(item: Item, call: str, reply: str, protocol: Protocol) -> Grade:
  """The letter, or MMMU's rule for open answers; a broken truth matches nothing."""
  if item.options:
    read = letters.letter(protocol.extractor, reply, item.letters, item.options)
    return Grade(float(read is not None and read == item.answer), read)
  values = open_answers.said(_open_span(reply, protocol.extractor))
  shown = "; ".join(str(value) for value in values)[:200] or None
  return Grade(float(open_answers.right(item.answer, values)), shown)


def _open_span(reply: str, extractor: str) -> str:
  """What MMMU's rule is applied to: VLMEvalKit takes what follows the last "Answer:"."""
  if extractor == "mmmu-answer":
    return reply.rpartition("Answer:")[2].strip()
  # Open-o3-Video gives the rule the whole reply, thoughts and tags included.
  return letters.answer_span(reply) if extractor.startswith("span:") else reply


SET = Benchmark(
  name="videommmu",
  title="Video-MMMU",
  size=900,
  read=_read,
  prompts=prompts_of(_lmms_text) | {"open-o3": _open_o3},
  grade=_grade,
  presets={
    "vlmevalkit-64f": {"extractor": "mmmu-answer"},
    "qwen-2fps": {"extractor": "mmmu-answer"},
    "lmms-eval-64f": {"extractor": "mmmu"},
  },
  breakdowns=("track", "discipline", "subject"),
  macro="track",
  vlmeval="VideoMMMU",
  lmms="video_mmmu_{track}",
  notes=("the question image comes after the clip, and stands in its last frame, too",),
)

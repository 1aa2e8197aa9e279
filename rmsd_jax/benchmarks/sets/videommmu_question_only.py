"""Video-MMMU's questions of adaptation without their lesson: what is known before it is watched.

    the files of Video-MMMU; clips of 2 s of the question image, question_only/{id}_image.mp4

Beside a card of Video-MMMU of the same run and protocol the table has Delta knowledge.
"""

import dataclasses
from pathlib import Path

from rmsd_jax.benchmarks import choices
from rmsd_jax.benchmarks.item import Ask, Item, Picture
from rmsd_jax.benchmarks.protocols import Protocol
from rmsd_jax.benchmarks.sets import videommmu


def _read(root: Path) -> list[Item]:
  """The questions of adaptation, in their order, each with its short clip instead of its lesson."""
  items = [item for item in videommmu.SET.read(root) if item.fields["track"] == "Adaptation"]
  return [dataclasses.replace(item, media=(_clip(item), *item.media[1:])) for item in items]


def _clip(item: Item) -> Picture:
  name = f"{item.cluster}_image.mp4"
  return Picture("video", (f"question_only/{name}", f"**/{name}"))


def _text(item: Item) -> str:
  kind = "multi-choice" if item.options else "open-ended"
  where = "The image for this question is at the end of the video."
  return f"Please answer the following {kind} question. {where}\n{choices.asked(item)}"


def _open_o3(item: Item, protocol: Protocol) -> list[Ask]:
  text = f"{_text(item)}\n{videommmu.how_to_think(item)}" if protocol.thinking else _text(item)
  return choices.ask(text)


SET = dataclasses.replace(
  videommmu.SET,
  name="videommmu_question_only",
  title="Video-MMMU question only",
  size=300,
  read=_read,
  prompts=videommmu.prompts_of(_text) | {"open-o3": _open_o3},
  breakdowns=("discipline", "subject"),
  macro="",
  vlmeval="",
  lmms="",
  notes=("no part of Video-MMMU's score: the baseline of Delta knowledge; its prompts are ours",),
)

"""What replies say of a clip, held against what it shows: a measure that no reward reads.

    python -m rmsd_jax.demo.facts WORKDIR        of every evaluated run of a demo

Rule rewards read the answer alone, and nothing of open-ended prompts but their format. Here are
read the reasoning (colours, times, places, digits that it states), and what an open-ended answer
says of each card, in whatever words; and, of runs evaluated with config.evaluate.discriminator,
whether the discriminator prefers the truer of two sampled replies. Printed, and written to
WORKDIR/facts.json.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsd_jax import cli
from rmsd_jax.core import intervals
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text
from rmsd_jax.demo import simulated_teacher, world
from rmsd_jax.rollouts import discrimination

WAYS = ("greedy", "sampled")
MEASURES = {
  "reasoning": "share of the facts in the reasoning that are true",
  "open_ended": "colours and digits of open-ended answers that are right",
  "prefers_reasoning": "how often the discriminator prefers the reasoning with more true facts",
  "prefers_open_ended": "how often it prefers the open-ended answer with more of them right",
}
PAIRS = (("rl", "no_D"), ("rl", "sft_continued"), ("rl", "sft"))
_COLOUR = "|".join(world.COLOUR_NAMES)
_CELL = "|".join(world.CELL_NAMES)
_LIST = r"(none|\d(?:, \d)*)"
_THEN = r"(\d(?:, then \d)*)"
# What the teacher's reasonings state, and so do those of students.
_STATED = (
  ("colour", rf"card with (\d) (?:is|has the colour) ({_COLOUR})\b"),
  ("direction", rf"card with (\d) (?:moves|goes|heads) ({'|'.join(world.DIRECTIONS)})\b"),
  ("first", r"\b(\d) (?:comes|appears) first\b"),
  ("first", r"\bbefore the others comes (\d)\b"),
  ("seen", rf"\b(?:cards are|shows) {_LIST}(?=[:,.] ?(?:so )?\d|$)"),
  ("seen", rf"(?<!\d, ){_LIST} can be seen, in all"),
  ("order", rf"\b(?:digits are|first|in order,) {_THEN}(?!\d)"),
  ("added", r"(\d\+\d=\d+(?:, \d+\+\d=\d+)*)"),
  ("interval", r"card with (\d) appears at (\d) and vanishes at (\d)"),
  ("interval", r"card with (\d) (?:is there|stays) from (\d) to (\d)"),
  ("cell", rf"\bthe (?:card with )?(\d) (?:is|lies) (?:at the )?({_CELL})\b"),
  ("number", r"\b(\d) cards?\b"),
)


def stated(reply: str) -> list[tuple[str, tuple[str, ...]]]:
  """The facts in the reasoning of a reply: (kind, what was said)."""
  thoughts = re.search(r"<think>(.*?)(?:</think>|$)", reply, re.DOTALL)
  text = thoughts[1] if thoughts else ""
  return [
    (kind, found.groups())
    for kind, pattern in _STATED
    for found in re.finditer(pattern, text, re.IGNORECASE)
  ]


def is_true(kind: str, said: Sequence[str], scene: world.Scene, question: str) -> bool:
  """Whether the clip shows it.

  Args:
    question: which may ask of one second.
  """
  by_digit = {str(card.digit): card for card in scene.cards}
  digits = list(by_digit)
  card = by_digit.get(said[0])
  match kind:
    case "colour":
      return card is not None and card.colour == said[1].lower()
    case "direction":
      return card is not None and card.direction == said[1].lower()
    case "first":
      return said[0] == digits[0]
    case "seen":
      second = re.search(r"at (?:second )?(\d)", question)
      shown = scene.visible(int(second[1])) if second else scene.cards
      return re.findall(r"\d", said[0]) == [str(one.digit) for one in shown]
    case "order":
      return re.findall(r"\d", said[0]) == digits
    case "added":
      first, *rest = re.findall(r"(\d+)\+(\d)=", said[0])
      return [*first, *(digit for _, digit in rest)] == digits
    case "interval":
      return card is not None and (card.start, card.end) == (int(said[1]), int(said[2]))
    case "cell":
      return card is not None and world.CELL_NAMES[card.cell] == said[1].lower()
    case "number":
      return int(said[0]) == len(scene.cards)
  raise ValueError(f"no kind of fact {kind!r}")


def reasoning_score(reply: str, scene: world.Scene, question: str) -> float:
  """Share of the stated facts that are true; NaN where none is stated."""
  facts = [is_true(kind, said, scene, question) for kind, said in stated(reply)]
  return float(np.mean(facts)) if facts else float("nan")


def description_score(reply: str, scene: world.Scene) -> float:
  """Share of the cards' colours and digits that an open-ended answer names in their order: half a
  point each, over the cards that are shown or, if they are more, said."""
  answer = re.search(r"<answer>(.*?)</answer>", reply, re.DOTALL)
  said = re.findall(rf"({_COLOUR}) (\d)", answer[1].lower() if answer else "")
  pairs = zip(said, scene.cards, strict=False)
  right = sum((a == card.colour) + (b == str(card.digit)) for (a, b), card in pairs)
  return right / 2 / max(len(said), len(scene.cards))


def scores_of(evaluation: Mapping[str, Any], seed: int) -> dict[tuple[str, str], dict[str, tuple]]:
  """(measure, way) -> prompt id -> (mean over its replies, clip).

  Args:
    evaluation: as `rmsd_jax.evaluate` writes it.
    seed: that the pool was drawn with.
  """
  found: dict[tuple[str, str], dict[str, tuple]] = {}
  for prompt in evaluation["prompts"]:
    scene, _ = simulated_teacher.scene_of(prompt["clip"], seed)
    for way in (way for way in WAYS if "text" in prompt.get(way, {})):
      replies = prompt[way]["text"]
      scores = {"reasoning": [reasoning_score(one, scene, prompt["question"]) for one in replies]}
      if prompt["task"] == "open_ended":
        scores["open_ended"] = [description_score(one, scene) for one in replies]
      if way == "sampled" and "score" in prompt[way]:
        # Of replies in the format: a preference for that is none for the truth.
        kept = np.array(prompt[way]["outer"]) == 1
        truths = {measure: np.where(kept, values, np.nan) for measure, values in scores.items()}
        scores |= {
          f"prefers_{measure}": [discrimination.among_sampled(prompt, values)]
          for measure, values in truths.items()
        }
      for measure, values in scores.items():
        known = [value for value in values if not np.isnan(value)]
        if known:
          of_way = found.setdefault((measure, way), {})
          of_way[prompt["id"]] = (float(np.mean(known)), prompt["clip"])
  return found


def mean_of(scores: Mapping[str, tuple]) -> dict[str, float]:
  """Mean with its 95 % bootstrap interval over clips."""
  values, clips = zip(*scores.values(), strict=True)
  return intervals.mean_interval(list(values), list(clips))


def paired(first: Mapping[str, tuple], second: Mapping[str, tuple]) -> dict[str, float]:
  """Of two runs, paired by prompt."""
  shared = [key for key in first if key in second]
  return mean_of({key: (first[key][0] - second[key][0], first[key][1]) for key in shared})


def study(workdir: pathlib.Path, seed: int) -> dict[str, Any]:
  """{"runs": run -> "MEASURE WAY" -> interval, "differences": "A - B" -> the same}."""
  files = sorted(workdir.glob("*/evaluate/test.json"))
  scores = {
    file.parent.parent.name: scores_of(json.loads(file.read_text(encoding="utf-8")), seed)
    for file in files
  }
  scores = {name: of_run for name, of_run in scores.items() if of_run}
  if not scores:
    raise UserError(f"{workdir} holds no evaluated run of a demo; give the folder of a demo")
  name = lambda key: " ".join(key)
  runs = {run: {name(key): mean_of(x) for key, x in of.items()} for run, of in scores.items()}
  differences = {
    f"{a} - {b}": {
      name(key): paired(scores[a][key], scores[b][key]) for key in scores[a] if key in scores[b]
    }
    for a, b in PAIRS
    if a in scores and b in scores
  }
  return {"measures": MEASURES, "runs": runs, "differences": differences}


def table(found: Mapping[str, Any]) -> str:
  """Markdown: runs and differences, a column for each measure and way."""
  rows = {**found["runs"], **found["differences"]}
  names = (f"{measure} {way}" for measure in MEASURES for way in WAYS)
  columns = [name for name in names if any(name in row for row in rows.values())]
  lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
  for name, row in rows.items():
    cells = [
      f"{row[c]['mean']:.3f} [{row[c]['low']:.3f}, {row[c]['high']:.3f}]" if c in row else "-"
      for c in columns
    ]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  parser = cli.parser_of(main)
  parser.add_argument("workdir", help="folder of a demo")
  parser.add_argument(
    "--seed", type=int, default=0, help="that its pool was drawn with (default 0)"
  )
  options = parser.parse_args(argv)
  workdir = pathlib.Path(options.workdir)
  found = study(workdir, options.seed)
  replace_text(workdir / "facts.json", json.dumps(found, indent=2) + "\n")
  print(table(found))


if __name__ == "__main__":
  cli.run(main)

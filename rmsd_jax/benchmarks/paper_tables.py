"""The paper's main table and V-STaR table with our rows beside it, each marked with its protocol.

A row is one run under one protocol. Nothing is subtracted here: the paper's protocol is not known,
and rows of two protocols say nothing about each other.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rmsd_jax.benchmarks import cards

# R-MSD (arXiv 2603.11423): 4B student, 64 frames; per cent. V-STaR of the baseline is not given.
MAIN = (
  *("VideoMME", "Video-MMMU", "WorldSense", "LongVideoBench"),
  *("MLVU_MCQ", "MathVista", "MathVerse"),
)
VSTAR = ("When Chain1", "When Chain2", "Where Chain1", "Where Chain2")
PAPER = {
  "Qwen3-VL-4B": (63.8, 55.4, 46.7, 59.3, 72.4, 69.5, 45.7),
  "original SFT + RL": (64.0, 55.9, 46.3, 57.2, 73.1, 71.2, 46.8),
  "R-MSD": (65.3, 58.6, 49.2, 58.8, 73.2, 72.1, 49.3),
}
PAPER_VSTAR = {
  "Qwen3-VL-4B": (21.3, 18.5, 22.3, 5.0),
  "R-MSD": (25.2, 23.4, 24.8, 7.0),
}
UNKNOWN = "paper's, not published"
_NOTE = (
  "Per cent with 95 % intervals over clusters; * of some items only. Rows of different protocols "
  "are not comparable, and the paper's protocol is not published. MathVerse of the paper is told "
  "differently by different summaries: 45.7 to 49.3 here, 35.6 to 39.2 elsewhere."
)
Table = tuple[tuple[str, ...], list[list[str]]]  # names of the columns, rows of cells


def run_name(card: Mapping[str, Any]) -> str:
  """Of the run that a card is of: its checkpoint and model folder."""
  run = card["run"]
  if run.get("name"):
    return str(run["name"]) + (f" ({run['way']})" if run["way"] != "greedy" else "")
  weights = str(run.get("weights") or run.get("checkpoint") or "")
  folder = str(run.get("folder") or "").rstrip("/").rpartition("/")[2]
  shown = " ".join(filter(None, (folder, weights))) or run["responses_sha256"][:8]
  return shown + (f" ({run['way']})" if run["way"] != "greedy" else "")


def protocol_name(card: Mapping[str, Any]) -> str:
  """Of a card, with what of the run was otherwise."""
  differs = "; ".join(card["differs"])
  return card["protocol_title"] + (f", but {differs}" if differs else "")


def tables(found: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
  """The main table, that of V-STaR, and one of further sets if there are cards of such."""
  titles = list(dict.fromkeys(title for card in found for title in card["scores"]))
  others = tuple(title for title in titles if title not in (*MAIN, *VSTAR))
  made = {
    "Main table": _table(MAIN, PAPER, found),
    "V-STaR": _table(VSTAR, PAPER_VSTAR, found),
  }
  return made | ({"Further sets": _table(others, {}, found)} if others else {})


def _table(
  columns: Sequence[str],
  paper: Mapping[str, Sequence[float]],
  found: Sequence[Mapping[str, Any]],
) -> Table:
  rows = [[name, UNKNOWN, *(f"{value:.1f}" for value in values)] for name, values in paper.items()]
  ours: dict[tuple[str, str], dict[str, list[str]]] = {}
  for card in found:
    scores = {title: score for title, score in card["scores"].items() if title in columns}
    if scores:
      row = ours.setdefault((run_name(card), protocol_name(card)), {})
      for title, score in scores.items():
        # Of a set with several calls each score is of the items that have an answer to its own.
        some = "*" if (score or {}).get("n", card["answered"]) < card["size"] else ""
        row.setdefault(title, []).append(cards.percent(score) + some)
  for (name, protocol), row in ours.items():
    rows.append([name, protocol, *(" / ".join(row.get(title, ["-"])) for title in columns)])
  return ("model", "protocol", *columns), rows


def knowledge(found: Sequence[Mapping[str, Any]]) -> list[str]:
  """Delta knowledge of each run and protocol that has both cards: what the lesson adds to the
  questions of adaptation, as a share of what was not known without it (Video-MMMU).

      (adaptation - question only) / (1 - question only)
  """
  adaptation: dict[tuple[str, str], float] = {}
  alone: dict[tuple[str, str], float] = {}
  for card in found:
    key = run_name(card), protocol_name(card)
    if card["title"] == "Video-MMMU":
      track = card["breakdowns"]["Video-MMMU"]["track"].get("Adaptation")
      adaptation |= {key: track["mean"]} if track else {}
    elif card["title"] == "Video-MMMU question only":
      alone[key] = card["scores"][card["title"]]["mean"]
  return [
    f"Delta knowledge of {name}, {protocol}: "
    f"{100 * (adaptation[name, protocol] - before) / (1 - before):+.1f}"
    for (name, protocol), before in alone.items()
    if (name, protocol) in adaptation and before < 1
  ]


def markdown(made: Mapping[str, Table], further: Sequence[str] = ()) -> str:
  """Tables in Markdown, `further` lines, and what must be known to read them."""
  lines = []
  for name, (columns, rows) in made.items():
    lines += [f"## {name}", "", *(_line(row) for row in (columns, ["---"] * len(columns), *rows))]
    lines += [""]
  more = [line for one in further for line in (one, "")]
  return "\n".join([*lines, *more, _NOTE]) + "\n"


def _line(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def comma_separated(made: Mapping[str, Table]) -> str:
  """Tables as one CSV: table, model, protocol, column, value."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(("table", "model", "protocol", "column", "value"))
  for name, (columns, rows) in made.items():
    for model, protocol, *cells in rows:
      writer.writerows(
        (name, model, protocol, column, cell)
        for column, cell in zip(columns[2:], cells, strict=True)
      )
  return file.getvalue()

"""Score cards: card.json, and the same as a page to read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks.aggregation import Row
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import lines_of, replace_text

CARD, PAGE, ROWS = "card.json", "card.md", "rows.jsonl"
MOST_MISSING = 20  # named on the page; card.json names all


def write_card(folder: Path, card: Mapping[str, Any], rows: Sequence[Row]) -> None:
  """Writes card.json, card.md and rows.jsonl (every graded call, for paired comparisons)."""
  lines = [
    {name: getattr(row, name) for name in ("item", "call", "cluster", "fields", "values", "read")}
    for row in rows
  ]
  text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  replace_text(folder / ROWS, text)
  replace_text(folder / PAGE, page(card))
  replace_text(folder / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
  """The contents of a card.

  Raises:
    UserError: the folder has none.
  """
  path = folder / CARD if folder.is_dir() else folder
  try:
    value = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is no score card ({type(error).__name__}); see `score`") from error
  if not isinstance(value, dict) or "protocol_hash" not in value:
    raise UserError(f"{path} is no score card; give a folder that `benchmarks score` made")
  return value


def folders(place: Path) -> list[Path]:
  """The folders of cards at or below one.

  Raises:
    UserError: there is none.
  """
  found = [place] if place.is_file() else sorted(path.parent for path in place.rglob(CARD))
  if not found:
    raise UserError(f"{place} has no score card in it; see `score`")
  return found


def summary_lines(card: Mapping[str, Any]) -> list[str]:
  """What a command says of a card: its scores, and where the run was not the protocol's."""
  lines = [f"not as {card['protocol']['name']} says: {one}" for one in card["differs"]]
  return lines + [
    f"{title}: {percent(score)} ({card['protocol_title']}; {card['answered']} items)"
    for title, score in card["scores"].items()
  ]


def read_rows(folder: Path) -> list[Row]:
  """The graded calls beside a card.

  Raises:
    UserError: they are not there.
  """
  path = folder / ROWS
  try:
    values = [json.loads(line) for line in lines_of(path.read_text("utf-8"))]
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({type(error).__name__}); score it again") from error
  return [
    Row(v["item"], v["call"], v["cluster"], v["fields"], tuple(v["values"]), tuple(v["read"]), 0)
    for v in values
  ]


def percent(score: Mapping[str, Any] | None) -> str:
  """A mean and its interval in per cent: "65.3 [63.1, 67.4]"."""
  if score is None or score["mean"] is None:
    return "-"
  low, high = score["low"], score["high"]
  inside = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
  return f"{100 * score['mean']:.1f}{inside}"


def page(card: Mapping[str, Any]) -> str:
  """A card in Markdown."""
  protocol = card["protocol"]
  lines = [f"# {card['title']}: {card['protocol_title']}", ""]
  lines += [f"**{title}: {percent(score)}**" for title, score in card["scores"].items()]
  lines += ["", *_answered(card), "", "## How it was obtained", ""]
  shown = {name: value for name, value in protocol.items() if name not in ("note", "changed")}
  lines += [f"- {name}: {_plain(value)}" for name, value in shown.items()]
  lines += [f"- changed by the user: {', '.join(protocol['changed']) or 'nothing'}"]
  lines += [f"- judge: {card['judge']}", f"- prompts: {card['prompt_hash']}"]
  lines += [f"- items: {card['items_hash']}"]
  lines += [f"- replies: {_plain(card['replies'])}"]
  lines += [f"- clips: {_plain(card['clips']) if card['clips'] else 'not looked at (--pool)'}"]
  lines += [f"- {name}: {_plain(value)}" for name, value in card["run"].items()]
  lines += [f"- {name} {version}" for name, version in card["software"].items()]
  lines += ["", "## Notes", "", *(f"- {note}" for note in card["notes"] if note)]
  lines += _figures(card) + _breakdowns(card)
  return "\n".join(lines) + "\n"


def _answered(card: Mapping[str, Any]) -> list[str]:
  missing = card["missing"]
  lines = [f"{card['answered']} of {card['items']} items answered (the set has {card['size']})."]
  if missing:
    worst = ", ".join(f"{name} {100 * v:.1f}" for name, v in card["missing_as_wrong"].items())
    lines += [f"If what is missing counted as wrong: {worst}.", "", "Missing:", ""]
    lines += [f"- {one['id']}: {one['reason']}" for one in missing[:MOST_MISSING]]
    if len(missing) > MOST_MISSING:
      lines += [f"- and {len(missing) - MOST_MISSING} more, in {CARD}"]
  lines += ["", "Unparsed, and so wrong:"]
  lines += [f"{name} {100 * (rate or 0):.1f} %" for name, rate in card["unparsed"].items()]
  if card["differs"]:
    lines += ["", f"**Not as the protocol says: {'; '.join(card['differs'])}.**"]
  return lines


def _figures(card: Mapping[str, Any]) -> list[str]:
  lines = [f"| {name} | {percent(score)} |" for name, score in card["aggregates"].items()]
  lines += [f"| {name} | {_plain(value)} |" for name, value in card["further"].items()]
  if lines:
    lines = ["", "## Further figures", "", "| | |", "|---|---|", *lines]
  if card["curves"]:
    lines += ["", "## Several samples", "", "| k | pass@k | majority@k | chance of pass@k |"]
    lines += ["|---|---|---|---|"]
    lines += [
      f"| {k} | {percent(one['pass'])} | {percent(one['majority'])} | {100 * one['chance']:.1f} |"
      for k, one in card["curves"].items()
    ]
  return lines


def _breakdowns(card: Mapping[str, Any]) -> list[str]:
  lines = []
  for title, fields in card["breakdowns"].items():
    for field, values in fields.items():
      lines += ["", f"## {title} by {field}", "", "| | score | items |", "|---|---|---|"]
      lines += [f"| {name} | {percent(score)} | {score['n']} |" for name, score in values.items()]
  return lines


def _plain(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  if isinstance(value, dict):
    return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
  return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)

"""The section of score cards: card.json files below a folder, a table for each protocol.

Nothing is subtracted or ranked here, and no table holds two protocols, judges or prompts: their
figures say nothing about each other.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rmsd_jax.benchmarks import cards, paper_tables
from rmsd_jax.core.errors import UserError
from rmsd_jax.report.page import Page, plain

# Of a protocol: told by the heading or the table already.
_TOLD = ("name", "note", "changed")


def paths_below(top: pathlib.Path) -> list[pathlib.Path]:
  """All card.json at or below a folder, hidden folders left out."""
  found = sorted(top.rglob(cards.CARD))
  hidden = lambda path: any(part.startswith(".") for part in path.relative_to(top).parts)
  return [path for path in found if path.is_file() and not hidden(path)]


def section(page: Page, top: pathlib.Path, paths: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
  """What the template shows of cards: groups of one protocol, each with a row for every score.

  A card that cannot be read is left out, and the page names it.
  """
  groups: dict[tuple[str, str, str], dict[str, Any]] = {}
  # (protocol, judge, set) -> digests of what was asked: a preset or prompt may have changed since.
  versions: dict[tuple[str, str, str], list[str]] = {}
  for path in paths:
    where = str(path.relative_to(top))
    try:
      card = cards.read_card(path)
      shown = _shown(card) | {"path": where}
    except UserError:
      page.lacks("cards", f"{where} is not a score card; score its replies again.")
      continue
    except (KeyError, TypeError, AttributeError, ValueError) as error:
      page.lacks(
        "cards",
        f"{where} is damaged or of another version ({type(error).__name__}: {error}); score its "
        "replies again.",
      )
      continue
    key = (shown["protocol"], shown["judge"], card["set"])
    hashes = versions.setdefault(key, [])
    asked = f"{card['protocol_hash']}, prompts {card['prompt_hash']}"
    if asked not in hashes:
      hashes.append(asked)
    version = asked if hashes.index(asked) else ""
    group = groups.setdefault(
      (*key[:2], version),
      {"protocol": shown["protocol"], "judge": shown["judge"], "version": version, "cards": []},
    )
    group["cards"].append(shown)
  for group in groups.values():
    group["cards"].sort(key=lambda shown: (shown["set"], shown["model"], shown["path"]))
  return [groups[key] for key in sorted(groups)]


def opening(groups: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
  """Headline and first paragraph of a page that has nothing else."""
  shown = [card for group in groups for card in group["cards"]]
  models = sorted({card["model"] for card in shown})
  named = f"Score cards of {', '.join(models)}." if models else "No score card could be read."
  return named, (
    "No run is here. Scores of benchmarks stand in their section, a table for each protocol; "
    "figures of different protocols are not comparable."
  )


def _shown(card: Mapping[str, Any]) -> dict[str, Any]:
  """One card in the words of the page.

  Raises:
    KeyError, TypeError, AttributeError, ValueError: the card lacks something.
  """
  run, protocol = card["run"], card["protocol"]
  answered, items, size = (int(card[name]) for name in ("answered", "items", "size"))
  text = lambda value: plain(str(value))
  return {
    "set": text(card["title"]),
    "model": text(paper_tables.run_name(card)),
    "protocol": text(paper_tables.protocol_name(card)),
    "judge": "" if card["judge"].startswith("none") else text(card["judge"]),
    "scores": {text(title): cards.percent(score) for title, score in card["scores"].items()},
    "answered": answered,
    "prepared": items,
    "size": size,
    "parser": text(protocol["extractor"]),
    "unparsed": ", ".join(_rate(name, rate, card) for name, rate in card["unparsed"].items()),
    "checkpoint": _checkpoint(run),
    "missing": [f"{text(one['id'])}: {text(one['reason'])}" for one in card["missing"]][
      : cards.MOST_MISSING
    ],
    "more_missing": max(0, len(card["missing"]) - cards.MOST_MISSING),
    "as_wrong": ", ".join(
      f"{text(name)} {100 * value:.1f}" for name, value in card["missing_as_wrong"].items()
    ),
    "breakdowns": [*_further(card), *_breakdowns(card)],
    "obtained": _obtained(card),
    "notes": [text(note) for note in card["notes"] if note],
  }


def _rate(name: str, rate: float | None, card: Mapping[str, Any]) -> str:
  shown = f"{100 * (rate or 0):.1f} %"
  return shown if len(card["unparsed"]) == 1 else f"{plain(name)} {shown}"


def _checkpoint(run: Mapping[str, Any]) -> str:
  """Which weights answered, and of which run or folder: the last two parts of its path."""
  weights = run.get("weights") or run.get("checkpoint") or "not told"
  place = str(run.get("workdir") or run.get("folder") or "").rstrip("/")
  return plain(f"{weights} of {'/'.join(place.split('/')[-2:])}" if place else str(weights))


def _further(card: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Figures beside the score, as one table; none where the set has none."""
  rows = [(plain(name), cards.percent(one), one["n"]) for name, one in card["aggregates"].items()]
  rows += [(plain(name), _value(value), "") for name, value in card["further"].items()]
  for k, one in card["curves"].items():
    rows += [
      (f"pass@{k}", cards.percent(one["pass"]), one["pass"]["n"]),
      (f"majority@{k}", cards.percent(one["majority"]), one["majority"]["n"]),
      (f"pass@{k} by chance", f"{100 * one['chance']:.1f}", ""),
    ]
  return [{"title": "further figures", "rows": rows}] if rows else []


def _breakdowns(card: Mapping[str, Any]) -> list[dict[str, Any]]:
  return [
    {
      "title": plain(f"{title} by {field}"),
      "rows": [(plain(name), cards.percent(one), one["n"]) for name, one in values.items()],
    }
    for title, fields in card["breakdowns"].items()
    for field, values in fields.items()
  ]


def _obtained(card: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Everything else that decides the scores, name and value."""
  protocol = {name: value for name, value in card["protocol"].items() if name not in _TOLD}
  flat = {
    **protocol,
    "changed by the user": card["protocol"]["changed"] or "nothing",
    "judge": card["judge"],
    "protocol hash": card["protocol_hash"],
    "prompts": card["prompt_hash"],
    "items": card["items_hash"],
    "replies": card["replies"],
    "clips": card["clips"] or "not looked at (--pool)",
    **{name: value for name, value in card["run"].items() if not isinstance(value, dict)},
    **card["software"],
  }
  return [(plain(str(name)), _value(value)) for name, value in flat.items() if value is not None]


def _value(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

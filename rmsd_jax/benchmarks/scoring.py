"""Prepared set and responses -> graded rows and the contents of a score card."""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmsd_jax.benchmarks import adherence, aggregation, judging, protocols
from rmsd_jax.benchmarks.aggregation import Row
from rmsd_jax.benchmarks.answered import Reply, Responses
from rmsd_jax.benchmarks.item import Benchmark, Grade, Item, digest
from rmsd_jax.benchmarks.judging import Judgements
from rmsd_jax.benchmarks.preparing import Prepared
from rmsd_jax.core import checkout
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import lines_of
from rmsd_jax.data.store import open_pool

# What of a protocol is about reading a reply: it may be changed after the fact.
OF_READING = ("extractor", "aggregation", "gold")
_VERSIONS = ("rmsd_jax", "jax", "transformers", "numpy", "sympy", "math-verify", "rapidfuzz")


def reread(protocol: protocols.Protocol, overrides: Sequence[str]) -> protocols.Protocol:
  """A prepared protocol, read in another way.

  Raises:
    UserError: a field that decides what the model saw.
  """
  fields = [text.partition("=")[0] for text in overrides]
  if other := [field for field in fields if field not in OF_READING]:
    raise UserError(
      f"--set {other[0]}: the replies are there; only {', '.join(OF_READING)} can be changed now. "
      "Prepare the set again for the others"
    )
  preset = protocols.protocol_named(protocol.name, {})
  whole = dataclasses.replace(protocol, changed=())
  changed = protocols.protocol_named(
    protocol.name, {protocol.name: _differences(whole, preset)}, overrides
  )
  names = sorted({*protocol.changed, *changed.changed})
  return dataclasses.replace(changed, changed=tuple(names))


def _differences(one: protocols.Protocol, other: protocols.Protocol) -> dict[str, Any]:
  fields = [field.name for field in dataclasses.fields(one) if field.name != "changed"]
  return {name: getattr(one, name) for name in fields if getattr(one, name) != getattr(other, name)}


def grade(
  prepared: Prepared,
  responses: Responses,
  protocol: protocols.Protocol,
  allow_missing: bool = False,
  judgements: Judgements | None = None,
) -> list[Row]:
  """Every answered call, graded.

  Raises:
    UserError: responses are of other prompts, or some are missing.
  """
  asked = prepared.ids()
  known = {id_ for _, _, id_ in asked}
  if stray := [id_ for id_ in responses.replies if id_ not in known]:
    raise UserError(
      f"{responses.path} answers {stray[0]!r} and {len(stray) - 1} more that {prepared.folder} "
      "does not ask; give the responses to this prepared set"
    )
  lacking = [id_ for id_ in dict.fromkeys(i for _, _, i in asked) if not responses.replies.get(id_)]
  if lacking and not allow_missing:
    raise UserError(
      f"{len(lacking)} of {len(asked)} prompts have no response in {responses.path}, the first "
      f"{lacking[0]!r}; finish the evaluation, or give --allow-missing to name them in the card"
    )
  if judgements:
    judging.check_judged(prepared, responses, judgements, allow_missing)
  rows = []
  for item, call, id_ in asked:
    replies = responses.replies.get(id_, ())
    grades = [
      _graded(prepared.benchmark, item, call, id_, place, reply, protocol, judgements)
      for place, reply in enumerate(replies)
    ]
    if grades and None not in grades:
      rows.append(_row(item, call, [one for one in grades if one is not None]))
  if not rows:
    raise UserError(f"{responses.path} holds no response that can be graded")
  return rows


def _graded(
  benchmark: Benchmark,
  item: Item,
  call: str,
  id_: str,
  place: int,
  reply: Reply,
  protocol: protocols.Protocol,
  judgements: Judgements | None,
) -> Grade | None:
  """None: only a judge can tell, and none has."""
  found = benchmark.grade(item, call, reply.text, protocol)
  if not judgements:
    return None if call in benchmark.judged else found
  if benchmark.judged and call not in benchmark.judged:
    return found
  rating = judgements.of(id_, place, reply.text)
  if benchmark.judged:
    return dataclasses.replace(found, value=float(rating >= 2), more={"rating": float(rating)})
  return dataclasses.replace(found, value=float(rating >= 1), read=found.read or "(judged)")


def _row(item: Item, call: str, grades: Sequence[Grade]) -> Row:
  return Row(
    item=item.id,
    call=call,
    cluster=item.cluster,
    fields=item.fields,
    values=tuple(one.value for one in grades),
    read=tuple(one.read for one in grades),
    options=len(item.options),
    more=tuple(one.more for one in grades),
  )


def card(
  prepared: Prepared,
  responses: Responses,
  protocol: protocols.Protocol,
  rows: Sequence[Row],
  judge: str = "",
  pool: str = "",
) -> dict[str, Any]:
  """The contents of card.json; all scores are shares of 1.

  Args:
    pool: tells frames and tokens as they really were, and what it could not take; "": not known.
  """
  benchmark, about = prepared.benchmark, prepared.about
  columns = benchmark.columns or {benchmark.title: benchmark.calls[0]}
  of_call = {call: [row for row in rows if row.call == call] for call in benchmark.calls}
  scores = {title: _headline(benchmark, of_call[call], protocol) for title, call in columns.items()}
  found = {
    "set": benchmark.name,
    "title": benchmark.title,
    "items_hash": about["items_hash"],
    "size": benchmark.size,
    "items": about["items"],
    "answered": len({row.item for row in rows}),
    "missing": [*about["missing"], *_unanswered(prepared, responses, _refused(pool))],
    "protocol": protocol.to_json(),
    "protocol_title": protocol.title,
    "protocol_hash": digest(protocol.to_json()),
    "prompt_hash": about["prompt_hash"],
    "scores": scores,
    "aggregates": _aggregates(benchmark, of_call[benchmark.calls[0]]),
    "missing_as_wrong": {
      title: sum(row.value for row in of_call[call]) / about["items"]
      for title, call in columns.items()
    },
    "unparsed": {
      call or benchmark.title: aggregation.unparsed_rate(found)
      for call, found in of_call.items()
      if found
    },
    "breakdowns": {
      title: {field: aggregation.breakdown(of_call[call], field) for field in benchmark.breakdowns}
      for title, call in columns.items()
    },
    "further": benchmark.further(rows) if benchmark.further else {},
    "curves": _curves(benchmark, of_call),
    "judge": judge or ("none: " + ", ".join(benchmark.judged) if benchmark.judged else "none"),
    "notes": _notes(benchmark, protocol),
    "differs": adherence.differences(prepared, responses.run, protocol),
    "replies": _lengths(responses),
    "clips": _clips(pool, prepared) if pool else None,
    "run": dict(responses.run) | {"responses_sha256": responses.sha256, "way": responses.way},
    "software": software(),
  }
  return _finite(found)


def _unanswered(
  prepared: Prepared, responses: Responses, refused: Mapping[str, str]
) -> list[dict[str, str]]:
  lacking = [id_ for _, _, id_ in prepared.ids() if not responses.replies.get(id_)]
  return [{"id": id_, "reason": refused.get(id_, "no response")} for id_ in lacking]


def _refused(pool: str) -> dict[str, str]:
  """Record -> why a pool could not take it."""
  path = Path(pool, "quarantine.jsonl")
  lines = lines_of(path.read_text("utf-8")) if pool and path.is_file() else []
  return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


def _notes(benchmark: Benchmark, protocol: protocols.Protocol) -> list[str]:
  """What a reader of the score must know."""
  shown = {True: ["with subtitles among the frames"], False: ["without subtitles"]}
  about = shown[protocol.subtitles] if benchmark.subtitles else []
  return [*about, *benchmark.notes, protocol.note]


def _headline(
  benchmark: Benchmark, rows: Sequence[Row], protocol: protocols.Protocol
) -> dict[str, float]:
  if benchmark.macro and protocol.aggregation == "macro":
    return aggregation.macro(rows, benchmark.macro)
  return aggregation.micro(rows)


def _aggregates(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
  """Both means where harnesses differ."""
  if not rows or not benchmark.macro:
    return {}
  return {
    "micro": aggregation.micro(rows),
    f"macro over {benchmark.macro}": aggregation.macro(rows, benchmark.macro),
  }


def _curves(benchmark: Benchmark, of_call: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
  """pass@k and majority@k where there are several samples of an answer that is right or wrong."""
  if len(benchmark.calls) > 1:
    return {}
  (rows,) = of_call.values()
  return aggregation.pass_curves(rows) if min(len(row.values) for row in rows) > 1 else {}


def _lengths(responses: Responses) -> dict[str, Any]:
  """Samples, their mean tokens, and the share that came to its end by itself."""
  replies = [reply for given in responses.replies.values() for reply in given]
  tokens = [reply.tokens for reply in replies if reply.tokens is not None]
  return {
    "samples": len(replies),
    "mean_tokens": float(np.mean(tokens)) if tokens else None,
    "finished": float(np.mean([reply.finished for reply in replies])),
  }


def _clips(pool: str, prepared: Prepared) -> dict[str, Any]:
  """Least, mean and most frame pairs and visual tokens that prompts had in a pool."""
  ids = {id_ for _, _, id_ in prepared.ids()}
  opened = open_pool(pool, "test")
  rows = [row for row in map(opened.__getitem__, range(len(opened))) if row.id in ids]
  if not rows:
    raise UserError(f"{pool} holds none of the prompts of {prepared.folder}; give the pool of them")
  counts = {
    "frame_pairs": [len(row.grid_F2) for row in rows],
    "visual_tokens": [int(row.is_visual_P.sum()) for row in rows],
  }
  return {
    name: {"least": min(values), "mean": float(np.mean(values)), "most": max(values)}
    for name, values in counts.items()
  }


def software() -> dict[str, str]:
  """The commit of this checkout, where it is one, and versions of what decides a score."""
  found = {}
  for name in _VERSIONS:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found | {"commit": checkout.commit() or "unknown"}


def _finite(value: Any) -> Any:
  """NaN and infinities, which JSON does not have, become null and "inf"."""
  if isinstance(value, dict):
    return {str(key): _finite(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
  return value

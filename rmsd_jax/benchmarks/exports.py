"""Responses in the files of other harnesses, so that their stock code can score them.

VLMEvalKit: {model}_{dataset}.tsv, the set's table with a column "prediction"; put it where the
toolkit would and run it with --mode eval. lmms-eval: the log that its model `from_log` reads.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks.answered import Responses
from rmsd_jax.benchmarks.preparing import Prepared
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text

FORMS = ("vlmevalkit", "lmms-eval")
# What a user of the files must know.
CAUTIONS = {
  "lmms-eval": "it finds responses by the number of the document: the set must have been prepared "
  "from the very parquet that lmms-eval reads, no other release and no part of it",
}
_TIME = "0101_0000"  # month, day, hour, minute, which from_log wants; the newest of several wins


def export_for(
  form: str, prepared: Prepared, responses: Responses, model: str, out: Path
) -> list[Path]:
  """Writes the files of a harness; the first sample of each prompt is its prediction.

  Args:
    form: one of FORMS.
    model: the name that the harness knows it by.

  Raises:
    UserError: the harness has no such set, or a response is missing.
  """
  if form not in FORMS:
    raise UserError(f"--form {form!r}: use one of {', '.join(FORMS)}")
  lacking = [id_ for _, _, id_ in prepared.ids() if not responses.replies.get(id_)]
  lacking += list(prepared.missing)
  if lacking:
    raise UserError(
      f"{len(lacking)} items have no response, the first {lacking[0]!r}: the harness would score "
      "another set; complete the run first"
    )
  files = (_vlmevalkit if form == "vlmevalkit" else _lmms)(prepared, responses, model)
  for name, text in files.items():
    replace_text(out / name, text)
  return [out / name for name in files]


def _prediction(prepared: Prepared, responses: Responses) -> Mapping[str, str]:
  return {item.id: responses.replies[id_][0].text for item, _, id_ in prepared.ids()}


def _vlmevalkit(prepared: Prepared, responses: Responses, model: str) -> dict[str, str]:
  benchmark = prepared.benchmark
  if not benchmark.vlmeval:
    raise UserError(f"VLMEvalKit has no {benchmark.title}")
  predictions = _prediction(prepared, responses)
  names = list(dict.fromkeys(name for item in prepared.items for name in item.row))
  file = io.StringIO()
  writer = csv.writer(file, delimiter="\t", lineterminator="\n")
  writer.writerow([*names, "prediction"])
  for item in prepared.items:
    cells = [_cell(benchmark.name, name, item.row.get(name, "")) for name in names]
    writer.writerow([*cells, predictions[item.id]])
  return {f"{model}_{benchmark.vlmeval}.tsv": file.getvalue()}


def _cell(benchmark: str, name: str, value: Any) -> str:
  """Lists are written as Python prints them, which the toolkit evaluates; Video-MMMU's as JSON."""
  if isinstance(value, list | tuple):
    as_json = benchmark == "videommmu"
    return json.dumps(value, ensure_ascii=False) if as_json else str(list(value))
  return str(value)


def _lmms(prepared: Prepared, responses: Responses, model: str) -> dict[str, str]:
  """One log a task; documents are numbered in the set's order."""
  benchmark = prepared.benchmark
  if not benchmark.lmms:
    raise UserError(f"lmms-eval has no {benchmark.title}")
  predictions = _prediction(prepared, responses)
  logs: dict[str, list[dict[str, Any]]] = {}
  for item in prepared.items:
    about = {name: str(value).lower() for name, value in item.fields.items()}
    entries = logs.setdefault(benchmark.lmms.format(**about), [])
    text = predictions[item.id]
    entries.append({"doc_id": len(entries), "resps": [[text]], "filtered_resps": [text]})
  return {
    f"{task}.json": json.dumps(
      {
        "args": {"model": model, "model_args": "", "limit": None},
        "model_configs": {"task": task},
        "time": _TIME,
        "logs": entries,
      },
      ensure_ascii=False,
    )
    + "\n"
    for task, entries in logs.items()
  }

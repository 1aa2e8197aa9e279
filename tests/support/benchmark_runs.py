"""From a set's folder to its card, with made-up replies, as a user would."""

import json

from benchmark_files import WRITERS

from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.core.files import lines_of


def prepared(set_, tmp_path, protocol="paper-64f", form="", changes=(), flags=()):
  """(folder of the set, prepared folder, the rows that were written)."""
  root, out = tmp_path / "set", tmp_path / "prepared"
  rows = WRITERS[set_](root, form) if form else WRITERS[set_](root)
  sets = [word for change in changes for word in ("--set", change)]
  main(["prepare", set_, str(root), "--protocol", protocol, "--out", str(out), *sets, *flags])
  return root, out, rows


def records_of(folder):
  lines = lines_of((folder / "records.jsonl").read_text("utf-8"))
  return [json.loads(line) for line in lines]


def answer(folder, path, reply_of):
  """Writes what `evaluate` would: greedy the first, sampled all of what `reply_of` gives."""
  prompts = []
  for place, record in enumerate(records_of(folder)):
    texts = reply_of(place, record)
    texts = [texts] if isinstance(texts, str) else list(texts)
    of = lambda given: {
      "quality": [0.0] * len(given),
      "length": [len(text) for text in given],
      "finished": [True] * len(given),
      "text": given,
    }
    row = {name: record[name] for name in ("id", "clip", "task", "question", "options", "answer")}
    prompts.append(row | {"closed": False, "greedy": of(texts[:1]), "sampled": of(texts)})
  drawn = {"samples": 4, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
  whole = {"weights": "step 7", "folder": "m/Qwen3-VL-4B", "seed": 0, "rollouts": drawn}
  path.write_text(json.dumps(whole | {"step": 7, "prompts": prompts}), "utf-8")
  return path


def scored(folder, responses, out, *flags):
  """The card of responses."""
  main(["score", str(folder), str(responses), "--out", str(out), *flags])
  return json.loads((out / "card.json").read_text("utf-8"))

"""A judge: a function, or a model behind an endpoint that `pool collect` asks.

`write_prompts` makes prompts of a pool, one a reply; `pool collect --splits test` asks them, with
its journal, budget and retries; `read_judgements` takes the ratings from what it wrote.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from rmsd_jax.benchmarks.answered import Responses
from rmsd_jax.benchmarks.item import Item
from rmsd_jax.benchmarks.preparing import Prepared
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import json_lines

_SCALES = {
  False: "Reply with one digit alone: 1 if the candidate answer is right, 0 if it is not.",
  True: "Rate how much the candidate answer means the same as the true one, whatever its grammar: "
  "0 not at all, 1 little, 2 largely, 3 completely. Reply with one digit alone: 0, 1, 2 or 3.",
}


@dataclasses.dataclass(frozen=True)
class Judgements:
  """Ratings of a judge: (record id, sample) -> rating. `judge` names it in the card."""

  judge: str
  ratings: Mapping[tuple[str, int], float]


Judge = Callable[[str, str, str], float]  # (question, truth, reply) -> rating


def judged_by(name: str, judge: Judge, prepared: Prepared, responses: Responses) -> Judgements:
  """The hook for a judge: asks it about every reply that a judge grades.

  Args:
    judge: (question, truth, reply) -> 1 or 0; V-STaR: 0 to 3.
  """
  ratings = {
    (id_, place): judge(item.question, str(item.answer), text)
    for item, id_, place, text in _graded_by_judges(prepared, responses)
  }
  return Judgements(name, ratings)


def _graded_by_judges(prepared: Prepared, responses: Responses) -> list[tuple[Item, str, int, str]]:
  """(item, record id, sample, reply) of what a judge grades: of V-STaR "what" alone."""
  calls = prepared.benchmark.judged or prepared.benchmark.calls
  return [
    (item, id_, place, reply.text)
    for item, call, id_ in prepared.ids()
    if call in calls
    for place, reply in enumerate(responses.replies.get(id_, ()))
  ]


def write_prompts(prepared: Prepared, responses: Responses, out: Path) -> int:
  """Writes a prompt for a judge about every reply that one grades; returns their number.

  Raises:
    UserError: `out` is there already.
  """
  scale = _SCALES[bool(prepared.benchmark.judged)]
  rows = _graded_by_judges(prepared, responses)
  with json_lines.new_file(out) as file:
    for item, id_, place, text in rows:
      truth, question = str(item.answer), item.question or item.extra.get("question_for_eval", "")
      asked = f"Question: {question}\nTrue answer: {truth}\nCandidate answer: {text}\n{scale}"
      record = {
        "id": f"{id_}#sample{place}",
        "task": "open_ended",
        "question": question or "(in the picture)",
        "answer": truth or "(none)",
        "split": "test",
        "clip": item.cluster,
        "asked": {"text": asked},
        "benchmark": {"record": id_, "sample": place},
      }
      file.write(json.dumps(record, ensure_ascii=False) + "\n")
  return len(rows)


def read_judgements(path: Path) -> Judgements:
  """Ratings from JSON Lines that `pool collect` made of `write`: the first digit of a reply.

  Raises:
    UserError: a line is none, or holds no rating.
  """
  ratings, names = {}, {}
  try:
    lines = path.read_text("utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({type(error).__name__})") from error
  for number, line in enumerate(lines, 1):
    try:
      value = json.loads(line)
      about = value["benchmark"]
      said = value["responses"][0]
      digits = [character for character in str(said["text"]) if character in "0123456789"]
      ratings[about["record"], int(about["sample"])] = float(digits[0])
      names[str(said.get("teacher", "")) or "judge"] = None
    except (ValueError, KeyError, TypeError, IndexError) as error:
      raise UserError(
        f"{path} line {number} holds no rating ({type(error).__name__}: {error}); give what `pool "
        "collect` made of `benchmarks judge`"
      ) from None
  if not ratings:
    raise UserError(f"{path} holds no rating")
  return Judgements(", ".join(names), ratings)

"""A judge: a function, or a model behind an endpoint that `pool collect` asks.

`write_prompts` makes prompts of a pool, one a reply; `pool collect --splits test` asks them, with
its journal, budget and retries; `read_judgements` takes the ratings from what it wrote.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rmsd_jax.benchmarks.answered import Responses
from rmsd_jax.benchmarks.item import Item, digest
from rmsd_jax.benchmarks.letters import answer_span
from rmsd_jax.benchmarks.preparing import Prepared
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import lines_of
from rmsd_jax.data import json_lines

_SCALES = {  # by the highest rating
  1: "Reply with one digit alone: 1 if the candidate answer is right, 0 if it is not.",
  3: "Rate how much the candidate answer means the same as the true one, whatever its grammar: "
  "0 not at all, 1 little, 2 largely, 3 completely. Reply with one digit alone: 0, 1, 2 or 3.",
}
_MAX_CHARS = 1_000  # of a judge's reply
_RATING = re.compile(r"(?<![\w.-])\d+(?![\w]|\.\d)")


@dataclasses.dataclass(frozen=True)
class Judgements:
  """Ratings of a judge.

  Attributes:
    judge: its name in the card.
    ratings: (record id, sample, digest of the reply) -> rating.
    unread: the same -> what the judge said that is no rating.
  """

  judge: str
  ratings: Mapping[tuple[str, int, str], float]
  unread: Mapping[tuple[str, int, str], str] = dataclasses.field(default_factory=dict)

  @property
  def title(self) -> str:
    """Its name, with how many replies count as wrong for want of a rating."""
    more = f" ({len(self.unread)} without a readable rating, counted as 0)" if self.unread else ""
    return self.judge + more

  def of(self, id_: str, sample: int, reply: str) -> float:
    """Of a reply that `check_judged` has seen; 0 where what the judge said is no rating."""
    return self.ratings.get((id_, sample, digest(reply)), 0.0)


Judge = Callable[[str, str, str], float]  # (question, truth, reply) -> rating


def judged_by(name: str, judge: Judge, prepared: Prepared, responses: Responses) -> Judgements:
  """The hook for a judge: asks it about every reply that a judge grades.

  Args:
    judge: (question, truth, reply) -> 1 or 0; V-STaR: 0 to 3.
  """
  ratings = {
    (id_, place, digest(text)): judge(*_question(item), text)
    for item, id_, place, text in _graded_by_judges(prepared, responses)
  }
  return Judgements(name, ratings)


def _question(item: Item) -> tuple[str, str]:
  """What a judge must know: the question with its options, and the truth in letters and words."""
  question = item.question or str(item.extra.get("question_for_eval", ""))
  if item.options and not all(option in question for option in item.options):
    question = "\n".join([question or "(in the picture)", "Options:", *item.lettered()])
  by_letter = dict(zip(item.letters, item.lettered(), strict=True))
  texts = dict(zip(item.options, item.lettered(), strict=True))
  truths = item.answer if isinstance(item.answer, list | tuple) else [item.answer]
  return question, " or ".join(by_letter.get(str(x), texts.get(str(x), str(x))) for x in truths)


def check_judged(
  prepared: Prepared, responses: Responses, judgements: Judgements, allow_missing: bool = False
) -> None:
  """Raises UserError unless every reply that a judge grades has a rating: of some alone, shares
  would be of rules and judge mixed, or of the rated ones.

  Args:
    allow_missing: what the judge said may be no rating; such a reply counts as wrong.
  """
  if judgements.unread and not allow_missing:
    (id_, place, _), said = next(iter(judgements.unread.items()))
    raise UserError(
      f"{judgements.judge} gave no rating of {len(judgements.unread)} replies, the first of "
      f"{id_!r}, sample {place}: {said!r:.80}; --allow-missing counts them as wrong, "
      "and the card says so"
    )
  wanted = {(id_, place): text for _, id_, place, text in _graded_by_judges(prepared, responses)}
  known = judgements.ratings.keys() | judgements.unread.keys()
  rated = {(id_, place) for id_, place, _ in known}
  if stray := rated - wanted.keys():
    raise UserError(
      f"{judgements.judge} rated {min(stray)[0]!r}, which {responses.path} does not answer; give "
      "the ratings of these replies"
    )
  if lacking := wanted.keys() - rated:
    raise UserError(
      f"{judgements.judge} rated {len(rated)} of {len(wanted)} replies, {min(lacking)[0]!r} not; "
      "`pool collect` goes on where it stopped"
    )
  for (id_, place), text in wanted.items():
    if (id_, place, digest(text)) not in known:
      raise UserError(
        f"{judgements.judge} rated another reply to {id_!r} than that of {responses.path}; write "
        "its prompts anew with `benchmarks judge`"
      )


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
  most = 3 if prepared.benchmark.judged else 1
  rows = _graded_by_judges(prepared, responses)
  with json_lines.new_file(out) as file:
    for item, id_, place, text in rows:
      question, truth = _question(item)
      asked = (
        f"Question: {question}\nTrue answer: {truth}\nCandidate answer: {text}\n{_SCALES[most]}"
      )
      record = {
        "id": f"{id_}#sample{place}",
        "task": "open_ended",
        "question": question or "(in the picture)",
        "answer": truth or "(none)",
        "split": "test",
        "clip": item.cluster,
        "asked": {"text": asked},
        "benchmark": {"record": id_, "sample": place, "reply": digest(text), "most": most},
      }
      file.write(json.dumps(record, ensure_ascii=False) + "\n")
  return len(rows)


def read_judgements(path: Path) -> Judgements:
  """Ratings from JSON Lines that `pool collect` made of `write_prompts`.

  Raises:
    UserError: a line is none.
  """
  ratings: dict[tuple[str, int, str], float] = {}
  unread: dict[tuple[str, int, str], str] = {}
  names: dict[str, None] = {}
  try:
    lines = lines_of(path.read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({type(error).__name__})") from error
  for number, line in enumerate(lines, 1):
    try:
      value = json.loads(line)
      about = value["benchmark"]
      said = value["responses"][0]
      key = about["record"], int(about["sample"]), about["reply"]
      rating = _rating(str(said["text"]), int(about["most"]))
      if rating is None:
        unread[key] = str(said["text"])
      else:
        ratings[key] = rating
      names[str(said.get("teacher", "")) or "judge"] = None
    except (ValueError, KeyError, TypeError, IndexError) as error:
      raise UserError(
        f"{path} line {number} holds no rating ({type(error).__name__}: {error}); give what `pool "
        "collect` made of `benchmarks judge`"
      ) from None
  if not ratings:
    raise UserError(f"{path} holds no rating")
  return Judgements(", ".join(names), ratings, unread)


def _rating(said: str, most: int) -> float | None:
  """The one number of a judge's reply, its thoughts left out; None where there is none, or several,
  or one beyond the scale."""
  numbers = set(_RATING.findall(answer_span(said)[-_MAX_CHARS:]))
  known = {str(number): float(number) for number in range(most + 1)}
  return known.get(numbers.pop()) if len(numbers) == 1 else None

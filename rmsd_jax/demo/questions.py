"""Questions about a scene, with exact answers.

Each kind of question asks for one *value*, a fact of the scene (a colour, an interval, the digits
in order ...). `answer_of` turns any value, true or mistaken, into the answer that a pool record
holds, so the ground truth and the simulated teacher share one rule. A question names a card by its
digit, and digits are distinct within a scene: every question has one correct answer.
"""

import dataclasses
import typing

import numpy as np

from rmsd_jax.demo import world

LETTERS = "ABCD"
# The same description in other words: what comes first, and what between cards. The ground truth
# has the first; ROUGE-L gives the others less for the same facts.
PHRASINGS = (
  ("", ", then "),
  ("it shows ", " and after that "),
  ("first comes ", "; next is "),
  ("the cards are ", " and then "),
)

# kind of question -> (task it belongs to, its wordings).
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
  "colour": (
    "multiple_choice",
    ("What colour is the card with {digit}?", "Which colour does the card with {digit} have?"),
  ),
  "first": ("multiple_choice", ("Which digit appears first?", "Which digit comes before all?")),
  "direction": (
    "multiple_choice",
    ("In which direction does the card with {digit} move?", "Where does the card with {digit} go?"),
  ),
  "count": ("numerical", ("How many cards appear in the clip?", "How many cards are there?")),
  "count_at": (
    "numerical",
    ("How many cards are visible at second {second}?", "How many cards are there at {second} s?"),
  ),
  "sum": ("numerical", ("What is the sum of all digits?", "What do the digits add up to?")),
  "read": ("ocr", ("Read the digits in order of appearance.", "Which digits appear, in order?")),
  "when": (
    "temporal_grounding",
    ("When is the card with {digit} visible?", "From when to when is the card with {digit} there?"),
  ),
  "where": (
    "spatial_grounding",
    ("Where is the card with {digit}?", "Find the card with {digit}."),
  ),
  "describe": ("open_ended", ("Describe the clip.", "What happens in the clip?")),
}


@dataclasses.dataclass(frozen=True)
class Question:
  """A question with its ground truth.

  value: the fact asked for. Its type depends on `kind`:
    colour, direction: name. first: digit. count, count_at, sum, read: tuple of digits.
    when: (start, end) in seconds. where: (x1, y1, x2, y2) in thousandths.
    describe: tuple of (colour, digit).
  answer: what a pool record holds, see `answer_of`. digit: the card that the text names, or -1.
  """

  kind: str
  task: str
  text: str
  options: tuple[str, ...]
  value: typing.Any
  answer: typing.Any
  digit: int = -1


def option_texts(options: tuple[str, ...]) -> list[str]:
  """("A. red", "B. blue") -> ["red", "blue"]."""
  return [option.split(". ", 1)[1] for option in options]


def letter_of(value: object, options: tuple[str, ...]) -> str:
  """The letter of the option whose text is `value`."""
  return LETTERS[option_texts(options).index(str(value))]


def described(cards: tuple[tuple[str, int], ...], phrasing: tuple[str, str] = PHRASINGS[0]) -> str:
  """The answer to an open-ended question, e.g. "a red 3, then a blue 5"."""
  named = [f"{'an' if colour == 'orange' else 'a'} {colour} {digit}" for colour, digit in cards]
  before, between = phrasing
  return before + between.join(named)


def answer_of(kind: str, value: typing.Any, options: tuple[str, ...] = ()) -> typing.Any:
  """The answer, as a JSON value, of a question of this kind that `value` answers."""
  match kind:
    case "colour" | "first" | "direction":
      return letter_of(value, options)
    case "count" | "count_at":
      return len(value)
    case "sum":
      return sum(value)
    case "read":
      return " ".join(map(str, value))
    case "when":
      return {"time": list(value)}
    case "where":
      return {"boxes": list(value)}
    case "describe":
      return described(value)
  raise ValueError(f"no kind of question {kind!r}")


def _options(rng: np.random.Generator, truth: object, others: list) -> tuple[str, ...]:
  """Four options, lettered: the truth and three of the others, shuffled."""
  wrong = rng.choice(len(others), len(LETTERS) - 1, replace=False)
  texts = [truth, *(others[i] for i in wrong)]
  order = rng.permutation(len(LETTERS))
  return tuple(f"{letter}. {texts[i]}" for letter, i in zip(LETTERS, order, strict=True))


def _ask(
  rng: np.random.Generator,
  kind: str,
  value: typing.Any,
  options: tuple[str, ...] = (),
  *,
  digit: int = -1,
  second: int = -1,
) -> Question:
  task, wordings = KINDS[kind]
  text = str(rng.choice(wordings)).format(digit=digit, second=second)
  return Question(kind, task, text, options, value, answer_of(kind, value, options), digit)


def _choices(scene: world.Scene, rng: np.random.Generator) -> list[Question]:
  """The multiple-choice questions that a clip allows."""
  asked = []
  digits = [card.digit for card in scene.cards]
  for card in scene.cards:
    others = [name for name in world.COLOUR_NAMES if name != card.colour]
    options = _options(rng, card.colour, others)
    asked.append(_ask(rng, "colour", card.colour, options, digit=card.digit))
    if card.moves:
      others = [name for name in world.DIRECTIONS if name != card.direction]
      options = _options(rng, card.direction, others)
      asked.append(_ask(rng, "direction", card.direction, options, digit=card.digit))
  if len(digits) > 1:
    # The other digits of the clip are options for sure, digits that are not shown fill up.
    absent = [digit for digit in range(10) if digit not in digits]
    fill = rng.choice(absent, len(LETTERS) - len(digits), replace=False).tolist()
    options = _options(rng, digits[0], [*digits[1:], *fill])
    asked.append(_ask(rng, "first", digits[0], options))
  return asked


def questions(scene: world.Scene, rng: np.random.Generator) -> list[Question]:
  """Every question that the scene allows, in random wordings and with shuffled options.

  A still picture allows spatial grounding, one question a card. A clip allows the other tasks;
  "first" and OCR need two cards, and "direction" a card that moves.
  """
  if scene.still:
    return [_ask(rng, "where", world.cell_box(card.cell), digit=card.digit) for card in scene.cards]
  digits = tuple(card.digit for card in scene.cards)
  # What is seen at a second may be nothing: 0 is an answer to "how many", too.
  second = int(rng.integers(scene.seconds))
  seen = tuple(card.digit for card in scene.visible(second))
  asked = _choices(scene, rng)
  asked += [_ask(rng, "count", digits), _ask(rng, "count_at", seen, second=second)]
  if len(digits) > 1:
    asked += [_ask(rng, "sum", digits), _ask(rng, "read", digits)]
  asked += [_ask(rng, "when", (card.start, card.end), digit=card.digit) for card in scene.cards]
  asked.append(_ask(rng, "describe", tuple((card.colour, card.digit) for card in scene.cards)))
  return asked

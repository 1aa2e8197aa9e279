"""What the tiny base model is taught before the demo starts: to read the clips, in plain words.

It stands in for the pretraining of Qwen3-VL. The texts teach each skill that the demo's tasks
need, in several wordings, and none of the tasks' format: no think or answer tags, no instruction
how to respond, no JSON. A test guards that.
"""

from typing import NamedTuple

import numpy as np

from rmsd_jax.demo import world
from rmsd_jax.demo.questions import LETTERS
from rmsd_jax.demo.world import DIRECTIONS

Text = tuple[str, str]  # what is asked, what is replied


class Lookup(NamedTuple):
  """A letter to be found in a list."""

  asked: str
  said: str  # the reply up to the letter: given, not learned
  letter: str  # with the space before it, where there is one


def _say(rng: np.random.Generator, *wordings: str) -> str:
  return wordings[int(rng.integers(len(wordings)))]


def _pick(rng: np.random.Generator, items: tuple | list):
  return items[int(rng.integers(len(items)))]


def _listed(items: list) -> str:
  return ", ".join(map(str, items)) if items else "none"


def _added(digits: list[int]) -> str:
  """[3, 5, 7] -> "3+5=8, 8+7=15": one step at a time, as `teacher` reasons too."""
  steps = []
  total = digits[0]
  for digit in digits[1:]:
    steps.append(f"{total}+{digit}={total + digit}")
    total += digit
  return ", ".join(steps) if steps else str(total)


def _box(cell: int) -> str:
  return ", ".join(map(str, world.cell_box(cell)))


def _lettered(rng: np.random.Generator, texts: list) -> tuple[list, str]:
  """The texts in a random order, and the list "A. red / B. blue / ..." of them, a line each."""
  order = [texts[i] for i in rng.permutation(len(texts))]
  lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, order, strict=False)]
  return order, "\n".join(lines)


def _place(card: world.Card, second: int) -> str:
  return f"{card.colour} {card.digit} {world.CELL_NAMES[card.cell_at(second)]}"


def moments(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """Readings of one second: all cards, the cards' digits, their number, one cell."""
  second = int(rng.integers(scene.seconds))
  seen = scene.visible(second)
  digits = [card.digit for card in seen]
  time = _say(rng, f"at second {second}", f"at {second} s", f"in second {second}")
  texts = [
    (
      _say(rng, f"What is there {time}?", f"Name the cards {time}.", f"What can be seen {time}?"),
      "; ".join(_place(card, second) for card in seen) or "none",
    ),
    (
      _say(rng, f"Which digits are visible {time}?", f"Digits {time}?"),
      _listed(digits),
    ),
    (
      _say(rng, f"How many cards are visible {time}?", f"Number of cards {time}?"),
      f"{_listed(digits)}: {len(digits)}",
    ),
  ]
  # Asks for a filled cell and for an empty one alike.
  by_cell = {card.cell_at(second): card for card in seen}
  filled = bool(by_cell) and rng.random() < 0.7
  cell = _pick(rng, list(by_cell)) if filled else int(rng.integers(world.GRID**2))
  name = world.CELL_NAMES[cell]
  reply = f"{by_cell[cell].colour} {by_cell[cell].digit}" if cell in by_cell else "none"
  ask = _say(rng, f"What is at the {name} {time}?", f"Which card is {name} {time}?")
  texts.append((ask, reply))
  return texts


def timelines(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """Readings of the whole clip: second by second, and card by card."""
  by_second = [
    f"{second}: {' '.join(str(card.digit) for card in scene.visible(second)) or 'none'}"
    for second in range(scene.seconds)
  ]
  by_card = [
    f"{card.colour} {card.digit}, {card.start} to {card.end}, {world.CELL_NAMES[card.cell]}"
    for card in scene.cards
  ]
  return [
    (
      _say(rng, "Name the digits second by second.", "Which digits does each second show?"),
      "; ".join(by_second),
    ),
    (
      _say(rng, "Name each card, its time and its place.", "List the cards with time and place."),
      "; ".join(by_card),
    ),
  ]


def looks(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """Colour of a digit, digit of a colour, cell of either: of every card, so that the question alone
  tells which one is meant."""
  # Where one card of a clip was asked about, the base read every cell and still did not link the
  # digit or the colour of a question to its card.
  return [text for card in scene.cards for text in _looks(card, scene.still, rng)]


def _looks(card: world.Card, still: bool, rng: np.random.Generator) -> list[Text]:
  cell = world.CELL_NAMES[card.cell]
  begin = "" if still else " first"
  return [
    (
      _say(
        rng,
        f"What colour is the card with {card.digit}?",
        f"The card with {card.digit} has which colour?",
        f"Name the colour of the {card.digit}.",
      ),
      _say(rng, f"The card with {card.digit} is {card.colour}.", card.colour),
    ),
    (
      _say(
        rng,
        f"Which digit is on the {card.colour} card?",
        f"Read the {card.colour} card.",
        f"What does the {card.colour} card show?",
      ),
      _say(rng, f"The {card.colour} card shows {card.digit}.", str(card.digit)),
    ),
    (
      _say(
        rng,
        f"Where is the card with {card.digit}{begin}?",
        f"In which cell is the {card.digit}{begin}?",
        f"Place of the {card.colour} card{begin}?",
      ),
      _say(rng, f"The card with {card.digit} is at the {cell}.", cell),
    ),
  ]


def times(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """When a card appears, when it vanishes, and both: of every card."""
  return [text for card in scene.cards for text in _times(card, rng)]


def _times(card: world.Card, rng: np.random.Generator) -> list[Text]:
  name = _say(rng, f"the card with {card.digit}", f"the {card.digit}", f"the {card.colour} card")
  start = card.start
  end = card.end
  return [
    (
      _say(rng, f"When does {name} appear?", f"At which second does {name} come?"),
      _say(rng, f"at {start}", f"The card with {card.digit} appears at {start}."),
    ),
    (
      _say(rng, f"When does {name} vanish?", f"At which second is {name} gone?"),
      _say(rng, f"at {end}", f"The card with {card.digit} vanishes at {end}."),
    ),
    (
      _say(
        rng,
        f"When is {name} visible?",
        f"From when to when is {name} there?",
        f"Which seconds have {name}?",
        f"Start and end of {name}?",
      ),
      _say(
        rng,
        f"from {start} to {end}",
        f"{start}, {end}",
        f"The card with {card.digit} appears at {start} and vanishes at {end}: {start}, {end}.",
      ),
    ),
  ]


def numbers(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """Order of the cards, their number, and sums, also of digits that no card shows."""
  digits = [card.digit for card in scene.cards]
  free = rng.integers(10, size=int(rng.integers(2, 4))).tolist()
  texts = [
    (
      _say(rng, "How many cards are there?", "Count the cards.", "How many cards appear?"),
      _say(rng, f"{_listed(digits)}: {len(digits)}", str(len(digits))),
    ),
    (
      _say(rng, "What do the digits add up to?", "Add the digits.", "What is the sum?"),
      _added(digits),
    ),
    ("What is " + "+".join(map(str, free)) + "?", _added(free)),
  ]
  if not scene.still:
    texts.append(
      (
        _say(rng, "Which digits appear, in order?", "Read the digits.", "Digits in order?"),
        _say(rng, " ".join(map(str, digits)), ", then ".join(map(str, digits))),
      )
    )
    texts.append(
      (
        _say(rng, "Describe the clip.", "What happens in the clip?", "Tell what is shown."),
        ", then ".join(f"{card.colour} {card.digit}" for card in scene.cards),
      )
    )
  if len(digits) > 1 and not scene.still:
    # Asked for in either order, so that the place in the question tells nothing.
    pair = [scene.cards[i] for i in sorted(rng.choice(len(digits), 2, replace=False))]
    named, other = (card.digit for card in (pair if rng.random() < 0.5 else pair[::-1]))
    texts.append((f"Which comes first, {named} or {other}?", f"{pair[0].digit} comes first."))
    texts.append((f"Which comes later, {named} or {other}?", f"{pair[1].digit} comes later."))
    texts.append((_say(rng, "Which digit appears first?", "First digit?"), f"{digits[0]}"))
  return texts


def motion(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """Where cards go; also that a card stays."""
  # One that moves, if any does: half of the cards rest, and their reply teaches little.
  card = _pick(rng, [card for card in scene.cards if card.moves] or scene.cards)
  name = _say(rng, f"the card with {card.digit}", f"the {card.digit}", f"the {card.colour} card")
  before = world.CELL_NAMES[card.cell]
  after = world.CELL_NAMES[card.to_cell]
  if not card.moves:
    return [(_say(rng, f"Does {name} move?", f"Where does {name} go?"), f"It stays {before}.")]
  return [
    (
      _say(rng, f"Does {name} move?", f"Where does {name} go?", f"How does {name} move?"),
      f"It moves from {before} to {after}: {card.direction}.",
    ),
    (
      _say(rng, f"In which direction does {name} move?", f"Direction of {name}?"),
      _say(rng, card.direction, f"The card with {card.digit} moves {card.direction}."),
    ),
    (
      _say(rng, f"When does {name} move?", f"At which second does {name} move?"),
      f"at {card.move_at}",
    ),
  ]


def letters(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """Which letter a text stands beside in a list, with and without looking at the clip.

  Every text of a list is asked for, so that the question alone tells which one is meant.
  """
  count = int(rng.integers(3, len(LETTERS) + 1))
  pools = (
    list(world.COLOUR_NAMES),
    list(range(10)),
    list(DIRECTIONS),
    list(world.CELL_NAMES),
  )
  pool = _pick(rng, pools)
  chosen = [pool[i] for i in rng.choice(len(pool), count, replace=False)]
  order, lines = _lettered(rng, chosen)
  # Where one text of a list was asked for, multiple choice failed on its last hop: the right fact,
  # and then a letter by chance.
  texts = []
  for letter, text in zip(LETTERS, order, strict=False):
    ask = _say(rng, f"Which letter is {text}?", f"Letter of {text}?")
    reply = _say(rng, f"{text} is {letter}.", letter, letter)  # named twice: twice as likely
    texts.append((_say(rng, f"{ask}\n{lines}", f"{lines}\n{ask}", f"{lines}\n{ask}"), reply))
  at = int(rng.integers(count))
  texts.append((f"{lines}\nWhat is {LETTERS[at]}?", f"{LETTERS[at]} is {order[at]}."))
  return texts + [_lettered_fact(rng, *fact) for fact in _facts(scene, rng)]


def lookups(rng: np.random.Generator, count: int) -> list[Lookup]:
  """Letters of texts that a reply has named, whatever the clip shows.

  The last hop of multiple choice by itself: among whole replies its one letter has little weight,
  and the base stayed at a right letter in 0.56 of the lists. Words are said as a teacher's answer
  says them, inside a sentence, since a word's token is another one at the beginning of a text.
  """
  found: list[Lookup] = []
  while len(found) < count:
    digit = int(rng.integers(10))
    ask, pool = _pick(
      rng,
      (
        (f"What colour is the card with {digit}?", list(world.COLOUR_NAMES)),
        (f"Where does the card with {digit} go?", list(DIRECTIONS)),
        ("Which digit appears first?", list(range(10))),
        (f"Where is the card with {digit}?", list(world.CELL_NAMES)),
      ),
    )
    chosen = [pool[i] for i in rng.choice(len(pool), min(len(LETTERS), len(pool)), replace=False)]
    order, lines = _lettered(rng, chosen)
    # Every text of the list, so that what is said alone tells which letter is meant.
    for letter, text in zip(LETTERS, order, strict=False):
      said = _say(
        rng, f"The card is {text}, and {text} is", f"It is {text}, which is", f"So {text} is"
      )
      asked = _say(rng, f"{ask}\n{lines}", f"{ask} Name the letter.\n{lines}")
      if rng.random() < 0.3:
        asked, said = f"{lines}\nWhich letter is {text}?", ""
      found.append(Lookup(asked, said, f" {letter}" if said else letter))
  return [found[i] for i in rng.permutation(len(found))[:count]]


def _facts(scene: world.Scene, rng: np.random.Generator) -> list[tuple[str, object, list]]:
  """Questions with one short answer each: (question, answer, wrong answers)."""
  card = _pick(rng, scene.cards)
  facts = [(f"What colour is the card with {card.digit}?", card.colour, list(world.COLOUR_NAMES))]
  if card.moves:
    facts.append((f"Where does the card with {card.digit} go?", card.direction, list(DIRECTIONS)))
  if len(scene.cards) > 1 and not scene.still:
    shown = [card.digit for card in scene.cards]
    absent = [digit for digit in range(10) if digit not in shown]
    filled = shown + rng.permutation(absent)[: len(LETTERS) - len(shown)].tolist()
    facts.append(("Which digit appears first?", shown[0], filled))
  return [(ask, truth, [text for text in pool if text != truth]) for ask, truth, pool in facts]


def _lettered_fact(rng: np.random.Generator, ask: str, truth: object, others: list) -> Text:
  wrong = [others[i] for i in rng.choice(len(others), len(LETTERS) - 1, replace=False)]
  order, lines = _lettered(rng, [truth, *wrong])
  letter = LETTERS[order.index(truth)]
  reply = _say(rng, f"{truth}, which is {letter}.", f"{truth} is {letter}.")
  return _say(rng, f"{ask} Name the letter.\n{lines}", f"{ask}\n{lines}", f"{lines}\n{ask}"), reply


def boxes(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """The numbers of a cell's box; for a still picture, also of a card's."""
  cell = int(rng.integers(world.GRID**2))
  name = world.CELL_NAMES[cell]
  texts = [
    (
      _say(rng, f"What are the numbers of the {name}?", f"Box of the {name}?"),
      _say(rng, _box(cell), f"{name}: {_box(cell)}"),
    ),
    (f"Which cell is {_box(cell)}?", name),
  ]
  if scene.still:
    for card in scene.cards:
      ask = _say(
        rng,
        f"What is the box of the card with {card.digit}?",
        f"Find the card with {card.digit}.",
        f"Numbers of the box around the {card.digit}?",
      )
      reply = _say(rng, f"{world.CELL_NAMES[card.cell]}: {_box(card.cell)}", _box(card.cell))
      texts.append((ask, reply))
  return texts


def pictures(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """Readings of a still picture: all cards, the digits, one cell."""
  by_cell = {card.cell: card for card in scene.cards}
  cell = _pick(rng, list(by_cell)) if rng.random() < 0.7 else int(rng.integers(world.GRID**2))
  name = world.CELL_NAMES[cell]
  reply = f"{by_cell[cell].colour} {by_cell[cell].digit}" if cell in by_cell else "none"
  return [
    (
      _say(rng, "What is in the picture?", "Name the cards and their places."),
      "; ".join(_place(card, 0) for card in scene.cards),
    ),
    (
      _say(rng, "Which digits are in the picture?", "Read the digits."),
      _listed([card.digit for card in scene.cards]),
    ),
    (_say(rng, f"What is at the {name}?", f"Which card is {name}?"), reply),
  ]


def plain_texts(scene: world.Scene, rng: np.random.Generator) -> list[Text]:
  """About 30 (prompt, reply) pairs for a clip and 20 for a picture: every skill."""
  if scene.still:
    skills = (pictures, looks, numbers, letters, boxes)
  else:
    skills = (moments, timelines, looks, times, numbers, motion, letters, boxes)
  return [text for skill in skills for text in skill(scene, rng)]

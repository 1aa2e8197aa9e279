"""The base's texts read the scene rightly, teach every skill, and hide the tasks' format."""

import functools
import re

import numpy as np

from rmsd_jax.demo import world
from rmsd_jax.demo.plain_texts import lookups, plain_texts
from rmsd_jax.demo.questions import LETTERS
from rmsd_jax.demo.simulated_teacher import MARKER
from rmsd_jax.tasks import registry


@functools.cache
def many():
  """300 scenes, a quarter of them pictures, each with its texts."""
  made = []
  for seed in range(300):
    rng = np.random.default_rng(seed)
    scene = (world.make_still if seed % 4 == 0 else world.make_scene)(rng, "train")
    made.append((scene, plain_texts(scene, rng)))
  return made


def pairs(pattern):
  """(scene, match of the question, reply) of the texts whose question matches."""
  found = [
    (scene, match, reply)
    for scene, texts in many()
    for ask, reply in texts
    if (match := re.search(pattern, ask))
  ]
  assert found, pattern
  return found


def card_named(scene, text):
  colours = [card for card in scene.cards if card.colour in text]
  digits = [card for card in scene.cards if re.search(rf"\b{card.digit}\b", text)]
  return (colours or digits)[0]


def test_no_text_shows_the_tasks_format_or_the_teachers_habit():
  instructions = [task.instruction for task in registry.TASKS.values()]
  for _, texts in many():
    for text in (part for pair in texts for part in pair):
      assert not re.search(r"[<>{}\[\]\"]|think|answer|Reply as", text), text
      assert MARKER not in text and not any(line in text for line in instructions)


def test_times_are_the_cards():
  for scene, match, reply in pairs(r"^(?:When is|From when|Start and end of|Which seconds) ?(.*)"):
    card = card_named(scene, match[1])
    assert re.findall(r"\d", reply)[-2:] == [str(card.start), str(card.end)]
  for scene, match, reply in pairs(r"^(?:When does|At which second does) (.*) (?:appear|come)"):
    assert reply.rstrip(".").endswith(f"at {card_named(scene, match[1]).start}")
  for scene, match, reply in pairs(r"^(?:When does|At which second is) (.*) (?:vanish|gone)"):
    assert reply.rstrip(".").endswith(f"at {card_named(scene, match[1]).end}")


def test_moments_are_what_the_labels_show():
  for scene, match, reply in pairs(r"^(?:Which digits are visible|Digits) .*(\d)"):
    shown = world.cell_labels(scene).digit_FG[int(match[1])]
    shown = {str(digit) for digit in shown if digit != world.NO_DIGIT}
    assert set(re.findall(r"\d", reply)) == shown and (reply == "none") == (not shown)
  for scene, match, reply in pairs(r"(top|middle|bottom) (left|centre|right) .*(\d)"):
    cell = world.CELL_NAMES.index(f"{match[1]} {match[2]}")
    labels, second = world.cell_labels(scene), int(match[3])
    if labels.digit_FG[second, cell] == world.NO_DIGIT:
      assert reply == "none"
    else:
      colour = world.COLOUR_NAMES[labels.colour_FG[second, cell]]
      assert reply == f"{colour} {labels.digit_FG[second, cell]}"


def test_sums_are_right_step_by_step():
  for _, match, reply in pairs(r"What is ([\d+]+)\?"):
    assert int(re.findall(r"\d+", reply)[-1]) == sum(map(int, match[1].split("+")))
  for scene, _, reply in pairs(r"add up to|Add the digits|What is the sum"):
    assert int(re.findall(r"\d+", reply)[-1]) == sum(card.digit for card in scene.cards)
    for left, right, total in re.findall(r"(\d+)\+(\d+)=(\d+)", reply):
      assert int(left) + int(right) == int(total)


def test_letters_stand_beside_their_texts():
  lettered = 0
  for _, texts in many():
    for ask, reply in texts:
      options = dict(re.findall(r"^([A-D])\. (.+)$", ask, re.MULTILINE))
      if not options:
        continue
      lettered += 1
      letter = re.findall(r"\b[A-D]\b", reply)
      assert len(letter) == 1
      told = reply.replace(letter[0], "", 1).replace("which", "")
      if re.search(r"[a-z0-9]{4,}|\d", told):
        assert options[letter[0]] in reply
      else:
        assert options[letter[0]] in ask
  assert lettered > 600


def test_lookups_hide_the_tasks_format_and_ask_for_every_letter_alike():
  drawn = lookups(np.random.default_rng(0), 2_000)
  for one in drawn:
    for text in one:
      assert not re.search(r"[<>{}\[\]\"]|think|answer|Reply as", text), text
  for letter in LETTERS:
    assert 0.22 < np.mean([one.letter.strip() == letter for one in drawn]) < 0.28


def test_lettered_facts_are_true():
  for scene, match, reply in pairs(r"What colour is the card with (\d)\?(?: Name|\n)"):
    assert reply.startswith(card_named(scene, match[1]).colour)
  for scene, _, reply in pairs(r"^Which digit appears first\?(?: Name|\n)"):
    assert reply[0] == str(scene.cards[0].digit)


def test_boxes_are_the_cells_numbers():
  for scene, match, reply in pairs(r"(?:box|Find).*(\d)"):
    box = ", ".join(map(str, world.cell_box(card_named(scene, match[1]).cell)))
    assert reply.endswith(box)
  for _, match, reply in pairs(r"(?:numbers|Box) of the (\w+ \w+)\?"):
    cell = world.CELL_NAMES.index(match[1])
    assert reply.endswith(", ".join(map(str, world.cell_box(cell))))


def test_motion_is_the_cards():
  for scene, match, reply in pairs(r"^(?:Does|Where does|How does) (.*) (?:move|go)\?$"):
    card = card_named(scene, match[1])
    if card.moves:
      assert reply.endswith(f"{world.CELL_NAMES[card.to_cell]}: {card.direction}.")
    else:
      assert reply == f"It stays {world.CELL_NAMES[card.cell]}."


def test_every_kind_of_scene_gets_enough_texts_and_every_letter():
  for scene, texts in many():
    assert len(texts) >= (13 if scene.still else 20)
  assert {reply for _, _, reply in pairs(r"^Which letter is|Which letter is .*$")} >= set(LETTERS)

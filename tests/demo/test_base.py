"""The tiny base's training rows: what is asked, what is learned, what a cell's words are."""

import re

import numpy as np
import pytest

from rmsd_jax.data.processor import Processor
from rmsd_jax.demo import base, world
from rmsd_jax.demo.run import ROOT

FOLDER = ROOT / "rmsd_jax" / "demo" / "tiny_base"


@pytest.fixture(scope="module")
def reader():
  return base.Reader(FOLDER, "train", 6, seed=3)


def test_each_word_of_a_cell_is_one_token():
  chat = Processor(FOLDER).tokenizer
  for word in {word for words in base.WORDS for word in words}:
    assert len(chat.encode_response(word)) == 2, word  # and the turn's end


def test_labels_name_each_card_of_each_second_and_nothing_after_the_clip(reader):
  rng = np.random.default_rng(0)
  reader.scenes, reader.prompts = reader.scenes[:1], reader.prompts[:1]  # one clip, drawn each time
  scene = reader.scenes[0]
  groups, _, labels_ABFG = reader.batch(rng, 2, 0)
  said = {
    (second, *(base.WORDS[a][labels_ABFG[a, 1, second, cell]].strip() for a in range(4)))
    for second in range(max(scene.seconds, 1))
    for cell in range(world.GRID**2)
  }
  shown = {
    (second, str(card.digit), card.colour, *world.CELL_NAMES[card.cell_at(second)].split())
    for second in range(max(scene.seconds, 1))
    for card in scene.visible(second)
  }
  assert shown == {line for line in said if line[1] != "none"}
  assert (labels_ABFG[:, :, max(scene.seconds, 1) :] == -1).all()
  assert groups.prompt_length_B[0] == groups.prompt_length_B[1]


@pytest.mark.parametrize("shape", [i for i in range(len(base.SHAPES)) if i != base.LOOKUPS])
def test_texts_keep_to_their_lengths_and_only_replies_are_learned(reader, shape):
  shortest, T, questions = base.SHAPES[shape]
  groups, learned_BRT, _ = reader.batch(np.random.default_rng(1), 3, shape)
  chat = reader.processor.tokenizer
  lengths_BR = np.asarray(groups.response_length_BR)
  assert lengths_BR.shape == (3, questions) and (lengths_BR > 0).any()
  turn = base._turn(chat)
  for ids_T, learned_T, length in zip(
    np.asarray(groups.responses_BRT).reshape(-1, T), learned_BRT.reshape(-1, T), lengths_BR.ravel(),
    strict=True,
  ):  # fmt: skip
    assert length == 0 or shortest <= length <= T
    if length:
      begin = int(np.argmax(learned_T))
      assert ids_T[begin - len(turn) : begin].tolist() == turn  # a reply follows the turn's start
      assert learned_T[begin:length].all() and not learned_T[length:].any()
      assert ids_T[length - 1] == chat.im_end
    else:
      assert not learned_T.any()


def test_of_a_lookup_the_letter_alone_is_learned(reader):
  groups, learned_BRT, _ = reader.batch(np.random.default_rng(2), 3, base.LOOKUPS)
  chat = reader.processor.tokenizer
  letters = set()
  length_BR = np.asarray(groups.response_length_BR)
  assert (length_BR > 0).all()
  for b, r in np.ndindex(length_BR.shape):
    assert learned_BRT[b, r].sum() == 1 and learned_BRT[b, r, length_BR[b, r] - 1]
    ids = np.asarray(groups.responses_BRT)[b, r, : length_BR[b, r]].tolist()
    text = chat._tokenizer.decode(ids).replace("<|im_end|>", "")
    options = dict(re.findall(r"^([A-D])\. (.+)$", text, re.MULTILINE))
    letters.add(text[-1])
    named = options[text[-1]]
    assert text.endswith((f" {named} is {text[-1]}", f" {named}, which is {text[-1]}")) or (
      f"Which letter is {named}?" in text
    )
  assert letters == set("ABCD")

"""The tiny base's training rows: what is asked, what is learned, what a cell's words are."""

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
  groups, _, labels_ABFG = reader.batch(rng, 2, 0, 26, 4)
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


@pytest.mark.parametrize(("shortest", "T", "questions"), base.SHAPES)
def test_texts_keep_to_their_lengths_and_only_replies_are_learned(reader, shortest, T, questions):
  groups, learned_BRT, _ = reader.batch(np.random.default_rng(1), 3, shortest, T, questions)
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

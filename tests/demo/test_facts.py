"""Facts of a reply against the clip: the teacher's own replies are the second formula."""

import json

import numpy as np
import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.demo import facts, mistakes, simulated_teacher, world
from rmsd_jax.demo.questions import questions

TEACHER = simulated_teacher.Teacher(
  truncated=0.0,
  noise={name: simulated_teacher.TaskNoise(0.5, 0.5, 0.0) for name in simulated_teacher.NOISE},
)


def many():
  """(scene, question, generator) of some 100 scenes."""
  for number in range(100):
    scene, rng = simulated_teacher.scene_of(f"train-{number:05d}", seed=1)
    for question in questions(scene, rng):
      yield scene, question, rng


def test_a_reply_to_the_truth_states_true_facts_and_a_mistaken_one_a_false_one():
  kinds = set()
  for scene, question, rng in many():
    right = simulated_teacher._respond(question, question.value, TEACHER, rng)["text"]
    assert facts.reasoning_score(right, scene, question.text) == 1, (right, scene)
    kinds |= {kind for kind, _ in facts.stated(right)}
    value = mistakes.mistake(question, rng)
    wrong = simulated_teacher._respond(question, value, TEACHER, rng)["text"]
    if question.kind == "describe":  # its reasoning tells the number of cards, which stays
      assert facts.description_score(right, scene) == 1 > facts.description_score(wrong, scene)
    elif question.kind == "where":  # a box may be off within its cell
      same = simulated_teacher._cell_of(value) == simulated_teacher._cell_of(question.value)
      assert (facts.reasoning_score(wrong, scene, question.text) == 1) == same
    elif question.kind == "sum" and len(value) == len(scene.cards) == 1:
      continue
    else:
      assert facts.reasoning_score(wrong, scene, question.text) < 1, (wrong, scene)
  assert kinds == {kind for kind, _ in facts._STATED}


def test_reasoning_without_facts_and_answers_outside_their_block_count_for_nothing():
  scene, _ = simulated_teacher.scene_of("train-00000", seed=1)
  assert np.isnan(facts.reasoning_score("<think>I look.</think><answer>A</answer>", scene, "?"))
  card = scene.cards[0]
  said = f"a {card.colour} {card.digit}"
  assert facts.description_score(f"<think>{said}</think><answer></answer>", scene) == 0
  assert np.isnan(facts.reasoning_score(said, scene, "?"))


def test_a_description_is_scored_by_place_in_any_words():
  cards = [("red", 3), ("green", 9)]
  scene = world.Scene(
    tuple(
      world.Card(digit, 0, colour, 0, 0, at, 6, 6) for at, (colour, digit) in enumerate(cards)
    ),
    6, 128, 0,
  )  # fmt: skip
  score = lambda text: facts.description_score(f"<think></think><answer>{text}</answer>", scene)
  assert score("First comes the red 3 and after it a green 9.") == 1
  assert score("a red 3, then a green 5") == 0.75
  assert score("a red 3") == 0.5
  assert score("a green 9, then a red 3") == 0
  assert score("a red 3, then a green 9, then a blue 1") == pytest.approx(2 / 3)


def test_the_study_of_a_folder(tmp_path, capsys):
  def evaluated(run, texts):
    prompts = [
      {"id": clip, "clip": clip, "task": "open_ended", "question": "Describe the clip.",
       "greedy": {"text": [text]}, "sampled": {"text": [text, "<think></think><answer></answer>"]}}
      for clip, text in texts.items()
    ]  # fmt: skip
    folder = tmp_path / run / "evaluate"
    folder.mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps({"prompts": prompts}))

  with pytest.raises(UserError, match="holds no evaluated run"):
    facts.main([str(tmp_path)])
  clips = ["test-00001", "test-00002"]
  scenes = [simulated_teacher.scene_of(clip, 0)[0] for clip in clips]
  right = {
    clip: "<think>{} cards</think><answer>{}</answer>".format(
      len(scene.cards), ", ".join(f"{card.colour} {card.digit}" for card in scene.cards)
    )
    for clip, scene in zip(clips, scenes, strict=True)
  }
  evaluated("rl", right)
  evaluated("sft", {clip: "<think>9 cards</think><answer>none</answer>" for clip in clips})
  facts.main([str(tmp_path)])
  found = json.loads((tmp_path / "facts.json").read_text())
  assert found["runs"]["rl"]["reasoning greedy"]["mean"] == 1
  assert found["runs"]["rl"]["open_ended sampled"]["mean"] == 0.5
  assert found["differences"]["rl - sft"]["open_ended greedy"]["mean"] == 1
  out = capsys.readouterr().out
  assert "| rl - sft | 1.000" in out and "prefers" not in out


def test_what_a_discriminator_prefers(tmp_path, capsys):
  """The replies of a prompt that differ in what is true: two facts, one, none; nothing stated."""
  scene, _ = simulated_teacher.scene_of("test-00001", 0)
  card, number = scene.cards[0], len(scene.cards)
  right = f"{card.colour} {card.digit}"
  reply = "<think>{} cards, the card with {} is {}</think><answer>{}</answer>".format
  texts = [
    reply(number, card.digit, card.colour, right),
    reply(9, card.digit, card.colour, right),
    reply(9, card.digit, "no colour", "?"),
    "<think>I look.</think><answer>?</answer>",
  ]
  row = {"id": "a", "clip": "test-00001", "task": "open_ended", "question": "Describe the clip."}
  # The fifth, without its tags, would be the truest of all and has the lowest score.
  sampled = {
    "text": [*texts, texts[0].removesuffix("</answer>")],
    "score": [2.0, 1.0, 3.0, 9.0, 0.0],
    "outer": [1.0, 1.0, 1.0, 1.0, 0.0],
  }
  folder = tmp_path / "rl" / "evaluate"
  folder.mkdir(parents=True)
  (folder / "test.json").write_text(json.dumps({"prompts": [row | {"sampled": sampled}]}))
  facts.main([str(tmp_path)])
  of = json.loads((tmp_path / "facts.json").read_text())["runs"]["rl"]
  # Reasoning: 1, 1/2 and 0 of the facts; the last states none. One of three pairs is ranked so.
  assert of["prefers_reasoning sampled"]["mean"] == pytest.approx(1 / 3)
  # Answers: two are alike, two others too: the first two lose to both.
  assert of["prefers_open_ended sampled"]["mean"] == 0.0
  assert "prefers_reasoning sampled" in capsys.readouterr().out

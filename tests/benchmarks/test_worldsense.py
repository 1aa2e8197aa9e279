"""WorldSense: files, prompts, items of three options, and its score computed a second time."""

import benchmark_files
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue
from rmsd_jax.benchmarks.preparing import protocol_of

SET = catalogue.the("worldsense")


@pytest.mark.parametrize("form", benchmark_files.FORMS["worldsense"])
def test_every_form_of_the_files_has_the_same_questions(form, tmp_path):
  rows = benchmark_files.write_worldsense(tmp_path, form)
  items = SET.read(tmp_path)
  assert [item.question for item in items] == [row["question"] for row in rows]
  assert [item.extra["shown"] for item in items] == [row["candidates"] for row in rows]
  assert [item.answer for item in items] == [row["answer"] for row in rows]
  assert [list(item.fields["audio_class"]) for item in items] == [r["audio_class"] for r in rows]
  assert sorted({item.letters for item in items}) == ["ABC", "ABCD"]


def test_prompts_are_those_of_the_harnesses(tmp_path):
  benchmark_files.write_worldsense(tmp_path)
  item = SET.read(tmp_path)[1]
  (ask,) = SET.asks(item, protocol_of(SET, "vlmevalkit-64f", ()))
  assert ask.before == (
    "Carefully watch this video and pay attention to every detail. Based on your observations, "
    "select the best option that accurately addresses the question."
  )
  assert ask.text.endswith(
    "of the correct option.\nQuestion: Which instrument starts in part 1 of 0?\nA. Drum\nB. Flute\n"
    "C. Piano\nAnswer: "
  )
  (lmms,) = SET.asks(item, protocol_of(SET, "lmms-eval-64f", ()))
  assert "These are the frames of a video and the corresponding audio. Select" in lmms.text
  assert lmms.text.endswith("part 1 of 0?\nA. Drum\nB. Flute\nC. Piano\n")
  (think,) = SET.asks(item, protocol_of(SET, "open-o3-video-64f", ()))
  assert "This video does not have audio transcripts. Question: Which" in think.text
  assert "longer than 100 words.In the answer part, respond with only" in think.text


def test_the_score_is_micro_over_all_questions(tmp_path):
  _, folder, rows = prepared("worldsense", tmp_path, "paper-64f")
  right = []

  def reply(place, record):
    row = rows[place]
    said = row["answer"] if place % 4 else "D"  # no letter of an item of three options
    whole = f"<think>A drum</think><answer>{said}</answer>"
    # Without the thoughts, or with more than the letter, the reply is worth nothing.
    whole = (whole, f"<answer>{said}</answer>", f"<think>x</think><answer>{said}.</answer>")[
      0 if place % 5 else 1 + place % 2
    ]
    right.append(float(said == row["answer"] and place % 5 != 0))
    return whole

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  assert card["scores"]["WorldSense"]["mean"] == pytest.approx(sum(right) / len(rows))
  for field in ("task_type", "domain", "duration"):
    for value, score in card["breakdowns"]["WorldSense"][field].items():
      own = [one for one, row in zip(right, rows, strict=True) if row[field] == value]
      assert score["mean"] == pytest.approx(sum(own) / len(own))
  sounds = card["breakdowns"]["WorldSense"]["audio_class"]
  for value in ("Music", "Speech", "Event"):
    own = [one for one, row in zip(right, rows, strict=True) if value in row["audio_class"]]
    assert sounds[value]["mean"] == pytest.approx(sum(own) / len(own))
  three = [n for n, row in enumerate(rows) if len(row["candidates"]) == 3 and n % 4 == 0]
  assert all(right[n] == 0 for n in three)


def test_the_words_before_the_clip_are_kept_apart(tmp_path):
  _, folder, _ = prepared("worldsense", tmp_path, "vlmevalkit-64f")
  record = records_of(folder)[0]
  assert record["asked"]["before"].startswith("Carefully watch")
  assert record["benchmark"]["cluster"] == "vid&X0" == record["clip"]

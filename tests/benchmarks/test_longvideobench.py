"""LongVideoBench: files, "N/A" options, prompts, and its score computed a second time."""

import benchmark_files
import benchmark_media as media
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.preparing import protocol_of

SET = catalogue.the("longvideobench")


@pytest.mark.parametrize("form", benchmark_files.FORMS["longvideobench"])
def test_every_form_of_the_files_has_the_same_questions(form, tmp_path):
  rows = benchmark_files.write_longvideobench(tmp_path, form)
  items = SET.read(tmp_path)
  assert [item.id for item in items] == [row["id"] for row in rows]
  assert [list(item.options) for item in items] == [row["candidates"] for row in rows]
  assert [item.answer for item in items] == ["ABCDE"[row["correct_choice"]] for row in rows]
  assert {len(item.options) for item in items} == {2, 3, 4, 5}
  assert all("N/A" not in item.options for item in items)


@pytest.mark.parametrize(
  "changes, start, end",
  [
    ((), "When kite 0", "choices directly."),
    (("prompt=official",), "Question: When kite 0", "choices directly."),
    (("prompt=lmms-eval",), "When kite 0", "choices directly.\n"),
  ],
)
def test_prompts_are_those_of_the_harnesses(changes, start, end, tmp_path):
  benchmark_files.write_longvideobench(tmp_path)
  item = SET.read(tmp_path)[0]
  (ask,) = SET.asks(item, protocol_of(SET, "vlmevalkit-64f", changes))
  middle = (
    " appears, what is the boy doing?\nA. running\nB. eating\nAnswer with the option's letter"
  )
  assert ask.text == f"{start}{middle} from the given {end}"


def test_the_score_is_micro_with_groups_of_length(tmp_path):
  _, folder, rows = prepared("longvideobench", tmp_path)
  right = []

  def reply(place, record):
    gold = "ABCDE"[rows[place]["correct_choice"]]
    said = gold if place % 3 else "E"
    # E of a word counts as E, whatever the item's options: the harness looks for A to E.
    word = place % 7 == 6
    right.append(float(("E" if word else said) == gold))
    return f"Every option but {said}" if word else f"{said}. {gold.lower()}"

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  assert card["scores"]["LongVideoBench"]["mean"] == pytest.approx(sum(right) / len(rows))
  groups = card["breakdowns"]["LongVideoBench"]["duration_group"]
  assert set(groups) == {"15", "60", "600", "3600"}
  for value, score in groups.items():
    own = [x for x, row in zip(right, rows, strict=True) if str(row["duration_group"]) == value]
    assert score["mean"] == pytest.approx(sum(own) / len(own))


def test_a_choice_out_of_range_is_always_wrong(tmp_path):
  rows = benchmark_files.longvideobench_rows()
  rows[3]["correct_choice"] = 7

  root = tmp_path / "set"
  for row in rows:
    media.put_clip(root / "videos" / row["video_path"])
  media.put_json(root / "lvb_val.json", rows)

  out = tmp_path / "out"
  main(["prepare", "longvideobench", str(root), "--protocol", "paper-64f", "--out", str(out)])
  broken = records_of(out)[3]
  assert broken["task"] == "open_ended" and broken["answer"] == "(none)"
  card = scored(out, answer(out, tmp_path / "r.json", lambda n, r: r["answer"]), tmp_path / "card")
  assert card["scores"]["LongVideoBench"]["mean"] == pytest.approx(21 / 22)

"""MLVU_MCQ: files, broken and double truths, both means, and the score computed a second time."""

import benchmark_files
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue
from rmsd_jax.benchmarks.preparing import protocol_of

SET = catalogue.the("mlvu")
TASKS = benchmark_files.MLVU_TASKS


def flat(rows):
  return [(task, row) for task in TASKS for row in rows[task]]


@pytest.mark.parametrize("form", benchmark_files.FORMS["mlvu"])
def test_every_form_of_the_files_has_the_same_questions(form, tmp_path):
  rows = flat(benchmark_files.write_mlvu(tmp_path, form))
  items = SET.read(tmp_path)
  assert [item.fields["task"] for item in items] == [task for task, _ in rows]
  assert [list(item.options) for item in items] == [row["candidates"] for _, row in rows]
  last = [
    max((i for i, text in enumerate(row["candidates"]) if text == row["answer"]), default=None)
    for _, row in rows
  ]
  golds = [item.answer[-1] if item.answer else None for item in items]
  assert golds == [None if place is None else "ABCD"[place] for place in last]
  assert golds.count(None) == 2  # of needle, whose answer is no option
  (ask,) = SET.asks(items[0], protocol_of(SET, "vlmevalkit-64f", ()))
  asked = 'How many times does "juggling 0" occur?'
  options = "(A) 0\n(B) 3\n(C) 6\n(D) 9\nOnly give the best option."
  assert ask.text == f"Question: {asked}\nOptions:\n{options}"
  assert items[0].row["question"] == asked and items[0].row["answer"] in rows[0][1]["candidates"]


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_the_prompt_of_lmms_eval_primes_the_reply_and_is_the_parquets_own(form, tmp_path):
  benchmark_files.write_mlvu(tmp_path, form)
  item = SET.read(tmp_path)[0]
  (ask,) = SET.asks(item, protocol_of(SET, "lmms-eval-64f", ()))
  assert ask.text.endswith("(D) 9\nOnly give the best option.\nBest option: (")
  assert ask.text.startswith("How many" if form == "parquet" else "Question: How many")


@pytest.mark.parametrize("aggregation", ["micro", "macro"])
@pytest.mark.parametrize("gold", ["last", "first"])
def test_both_means_and_both_readings_of_a_double_truth(aggregation, gold, tmp_path):
  changes = (f"aggregation={aggregation}", f"gold={gold}")
  _, folder, rows = prepared("mlvu", tmp_path, "vlmevalkit-64f", changes=changes)
  rows = flat(rows)
  right = {task: [] for task in TASKS}

  def reply(place, record):
    task, row = rows[place]
    places = [i for i, text in enumerate(row["candidates"]) if text == row["answer"]]
    wanted = (places[-1] if gold == "last" else places[0]) if places else -1
    said = 3 if place % 4 == 0 else (places[-1] if places else 0)
    right[task].append(float(said == wanted))
    return f"({'ABCD'[said]}) {row['candidates'][said]}"

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  every = [one for values in right.values() for one in values]
  means = {
    "micro": sum(every) / len(every),
    "macro": sum(sum(values) / len(values) for values in right.values()) / len(TASKS),
  }
  assert means["micro"] != pytest.approx(means["macro"])
  assert card["scores"]["MLVU_MCQ"]["mean"] == pytest.approx(means[aggregation])
  assert card["aggregates"]["micro"]["mean"] == pytest.approx(means["micro"])
  assert card["aggregates"]["macro over task"]["mean"] == pytest.approx(means["macro"])
  for task, values in right.items():
    shown = card["breakdowns"]["MLVU_MCQ"]["task"][task]
    assert shown["mean"] == pytest.approx(sum(values) / len(values))
  assert card["protocol"]["changed"] == (["aggregation"] if aggregation == "macro" else []) + (
    ["gold"] if gold == "first" else []
  )


def test_the_double_truths_differ_between_first_and_last(tmp_path):
  _, folder, rows = prepared("mlvu", tmp_path, "paper-64f")
  replies = answer(folder, tmp_path / "r.json", lambda n, record: "(B)")
  last = scored(folder, replies, tmp_path / "last")
  first = scored(folder, replies, tmp_path / "first", "--set", "gold=first")
  doubles = sum(row["candidates"].count(row["answer"]) == 2 for _, row in flat(rows))
  gained = first["aggregates"]["micro"]["mean"] - last["aggregates"]["micro"]["mean"]
  assert doubles == 2 and gained == pytest.approx(2 / 24)
  assert first["protocol_title"] == "paper-64f (gold=first)"


def test_clips_lie_below_the_number_and_name_of_their_task(tmp_path):
  _, folder, _ = prepared("mlvu", tmp_path)
  paths = [record["media"][0]["path"] for record in records_of(folder)]
  assert "../set/MLVU/video/2_needle/needle_0.mp4" in paths

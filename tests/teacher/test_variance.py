"""Studies: figures of known pools, held against the standard library."""

import dataclasses
import statistics

import numpy as np
import pytest
import small_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import variance


def make(quality_K, texts=None, **changes):
  count = len(quality_K)
  row = small_pool.make_row(np.random.default_rng(0), 0, responses=count)
  values = {"quality_K": np.array(quality_K, np.float32), "texts": texts or row.texts}
  return dataclasses.replace(row, **values, **changes)


class Whole(Rules):
  """Rules by which the whole reply is the answer."""

  def answer_of(self, task, reply, options):
    return reply


def figures(*rows, **options):
  return variance.by_task([variance.of_row(row, Whole()) for row in rows], **options)


qualities = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6)


@settings(deadline=None)
@given(st.lists(qualities, min_size=2, max_size=6))
def test_figures_are_those_of_the_statistics_module(pool):
  one = figures(*map(make, pool))["all"]
  means = [statistics.fmean(group) for group in pool]
  every = [quality for group in pool for quality in group]
  assert one["mean"] == pytest.approx(statistics.fmean(means), abs=1e-6)
  assert one["sd_across"] == pytest.approx(statistics.stdev(means), abs=1e-6)
  within = statistics.fmean(statistics.stdev(group) for group in pool)
  assert one["sd_within"] == pytest.approx(within, abs=1e-6)
  assert (one["min"], one["max"]) == (min(every), max(every))
  assert (one["questions"], one["responses"]) == (len(pool), len(every))
  kept = [one["kept"][tau] for tau in variance.TAUS]
  assert kept[0] == 1 and kept == sorted(kept, reverse=True)


def test_two_kinds_of_variance_are_told_apart():
  steady = figures(make([0.25, 0.25]), make([0.75, 0.75]))["all"]
  assert steady["sd_within"] == 0 and steady["sd_across"] == pytest.approx(0.5 / 2**0.5)
  noisy = figures(make([0.0, 1.0]), make([1.0, 0.0]))["all"]
  assert noisy["sd_across"] == 0 and noisy["sd_within"] == pytest.approx(0.5**0.5)


def test_a_threshold_keeps_what_reaches_it():
  one = figures(make([0.0, 0.25, 0.5, 0.75]), taus=(0.25, 0.5, 0.8))
  assert one["all"]["kept"] == {0.25: 0.75, 0.5: 0.5, 0.8: 0.0}


def test_agreement_counts_pairs_with_the_same_answer():
  rows = make([1, 1, 1], texts=("A  b", "a B ", "c")), make([1, 1], texts=("d", "D"))
  assert figures(*rows)["all"]["agreement"] == pytest.approx((1 / 3 + 1) / 2)
  assert np.isnan(figures(make([1.0]))["all"]["agreement"])


def test_violations_and_cut_off_responses_are_counted_by_task():
  closed = make(
    [1, 0, 0, 0],
    outer_K=np.array([1, 0, 1, 1], np.float32),
    inner_K=np.array([1, 0, 0.5, 1], np.float32),
    finish_reasons=("stop", "stop", "stop", "length"),
  )
  opened = make([1, 1], task="open_ended", closed=False)
  both = figures(closed, opened)
  assert both["ocr"]["violations"] == 0.5 and both["open_ended"]["violations"] == 0
  assert both["all"]["violations"] == pytest.approx(2 / 6)
  assert both["ocr"]["cut_off"] == 0.25


def test_open_ended_quality_stays_out_of_the_figures_of_quality():
  both = figures(make([0.25, 0.5]), make([1, 1], task="open_ended", closed=False))
  assert both["all"]["mean"] == both["ocr"]["mean"] == pytest.approx(0.375)
  assert np.isnan(both["open_ended"]["mean"]) and np.isnan(both["open_ended"]["kept"][0.0])


def test_rows_without_responses_are_left_out():
  assert figures(make([])) == {}
  assert variance.table({}) == "no responses"


def test_the_table_has_a_line_per_task_and_the_total_last():
  lines = variance.table(
    figures(make([0.25, 0.5]), make([1.0, 1.0], task="numerical"))
  ).splitlines()
  assert [line.split("|")[1].strip() for line in lines[2:]] == ["numerical", "ocr", "all"]
  assert len({len(line) for line in lines}) == 1
  assert "kept 0.3" in lines[0] and "| 0.375 |" in lines[3]
  assert lines[2].split("|")[8].strip() == "-"  # one question has no s.d. across questions


def question(quality_K, teachers=None, **changes):
  """A question as JSON Lines give it: no tokens, and a ROUGE-L where it is open-ended."""
  count = len(quality_K)
  row = make(quality_K, **{name: changes.pop(name) for name in ("texts",) if name in changes})
  made = dataclasses.replace(variance.of_row(row, Whole()), **changes)
  return dataclasses.replace(made, teachers=teachers or ("big",) * count)


def test_questions_that_lose_every_response_are_counted():
  questions = [question([0.0, 0.1]), question([0.2, 0.9]), question([0.3, 0.0]), question([0.5])]
  one = variance.by_task(questions)["all"]
  assert one["lost"] == {0.0: 0, 0.2: 0.25, 0.3: 0.25, 0.5: 0.5}
  opened = variance.by_task([question([1, 1], task="open_ended", closed=False)])["all"]
  assert all(np.isnan(share) for share in opened["lost"].values())


def test_a_teacher_is_measured_by_its_own_responses():
  questions = [
    question([0.25, 0.75, 1.0], teachers=("a", "b", "a"), texts=("x", "y", "x")),
    question([0.5, 0.0, 0.25], teachers=("b", "b", "a"), texts=("x", "x", "y")),
  ]
  figures = variance.by_teacher(questions)
  assert list(figures) == ["a", "b"]
  assert (figures["a"]["questions"], figures["a"]["responses"]) == (2, 3)
  assert figures["a"]["mean"] == pytest.approx(statistics.fmean([0.625, 0.25]))
  assert figures["a"]["sd_across"] == pytest.approx(statistics.stdev([0.625, 0.25]))
  assert figures["a"]["sd_within"] == pytest.approx(statistics.stdev([0.25, 1.0]))
  assert figures["b"]["sd_within"] == pytest.approx(statistics.stdev([0.5, 0.0]))
  assert (figures["a"]["agreement"], figures["b"]["agreement"]) == (1, 1)
  assert figures["b"]["kept"][0.5] == pytest.approx(2 / 3)
  assert variance.by_teacher([question([1, 1])]) == {}
  assert variance.table(figures, "teacher").splitlines()[2].startswith("| a ")


def test_what_two_teachers_differ_in_is_no_luck_of_a_sample():
  """Each says the same each time: nothing varies within a question, and all of a teacher agree."""
  two = question([1.0, 1.0, 0.0, 0.0], teachers=("a", "a", "b", "b"), texts=("A", "A", "B", "B"))
  one = variance.by_task([two])["all"]
  assert (one["sd_within"], one["agreement"], one["mean"]) == (0, 1, 0.5)
  mixed = question([1.0, 0.0, 0.5], teachers=("a", "b", "a"), texts=("A", "A", "B"))
  one = variance.by_task([mixed])["all"]
  assert one["sd_within"] == pytest.approx(statistics.stdev([1.0, 0.5])) and one["agreement"] == 0
  single = variance.by_task([question([1.0, 0.0], teachers=("a", "b"))])["all"]
  assert np.isnan([single["sd_within"], single["agreement"]]).all()


def test_responses_without_an_answer_agree_with_none():
  one = question([0, 0, 1], texts=("", "", "a"))
  assert variance.by_task([one])["all"]["agreement"] == 0
  assert variance.alike(["a", "", "A ", ""]).tolist() == [0, 1, 0, 3]


def test_lengths_and_rouge_are_of_all_responses():
  rouge_K = np.array([0.2, 0.4])
  opened = question([1, 1], task="open_ended", closed=False, rouge_K=rouge_K)
  one = variance.by_task(
    [
      dataclasses.replace(opened, length_K=np.array([10, 40])),
      dataclasses.replace(question([1, 1, 1]), length_K=np.array([20, 30, 50])),
    ]
  )["all"]
  assert one["rouge"] == pytest.approx(0.3)
  assert (one["lengths"][0.5], one["lengths"][0.25], one["lengths"][1.0]) == (30, 20, 50)


def test_curves_have_the_values_of_a_direct_count():
  groups = [[0.0, 0.3, 0.9], [0.6, 0.6], [0.1]]
  taus = [round(0.1 * i, 1) for i in range(11)]
  one = variance.by_task(map(question, groups), taus)["all"]
  every = [quality for group in groups for quality in group]
  for tau in taus:
    assert one["kept"][tau] == pytest.approx(sum(q >= tau for q in every) / len(every))
    lost = [all(q < tau for q in group) for group in groups]
    assert one["lost"][tau] == pytest.approx(sum(lost) / len(groups))

"""Means, intervals, pass@k and votes against brute force and simulation."""

import collections
import itertools
import random

import numpy as np
import pytest

from rmsd_jax.benchmarks import aggregation
from rmsd_jax.benchmarks.aggregation import Row


def row(number, values, read=None, cluster=None, options=4, **fields):
  read = tuple("A" if value else "B" for value in values) if read is None else tuple(read)
  return Row(str(number), "", cluster or str(number), fields, tuple(values), read, options)


def subsets(read, passed, k):
  """(pass@k, majority@k) by looking at every choice of k samples."""
  won, voted, count = 0, 0.0, 0
  for chosen in itertools.combinations(range(len(read)), k):
    count += 1
    won += any(passed[i] for i in chosen)
    votes = collections.Counter(read[i] for i in chosen if read[i] is not None)
    if votes:
      top = [one for one, number in votes.items() if number == max(votes.values())]
      right = {read[i] for i in chosen if passed[i]}
      voted += len(right & set(top)) / len(top)
  return won / count, voted / count


@pytest.mark.parametrize("seed", range(20))
def test_pass_and_majority_are_the_means_over_all_subsets(seed):
  rng = random.Random(seed)
  samples = 8
  rows = []
  for number in range(3):
    read = [rng.choice(["A", "B", "C", "D", None]) for _ in range(samples)]
    rows.append(row(number, [float(one == "B") for one in read], read))
  curves = aggregation.pass_curves(rows)
  assert list(curves) == ["1", "2", "4", "8"]
  for k, curve in curves.items():
    both = [subsets(r.read, [value == 1 for value in r.values], int(k)) for r in rows]
    assert curve["pass"]["mean"] == pytest.approx(np.mean([one for one, _ in both]))
    assert curve["majority"]["mean"] == pytest.approx(np.mean([one for _, one in both]))
    assert curve["chance"] == pytest.approx(1 - 0.75 ** int(k))


def test_guessing_is_one_in_the_options_of_each_item():
  rows = [row(0, [1.0, 0.0], options=2), row(1, [0.0, 0.0], options=10), row(2, [1, 1], options=0)]
  curves = aggregation.pass_curves(rows)
  assert curves["1"]["chance"] == pytest.approx((1 / 2 + 1 / 10) / 3)
  assert curves["2"]["chance"] == pytest.approx((1 - 1 / 4 + 1 - 0.81) / 3)


def test_all_right_answers_are_one_vote_however_they_are_written():
  read = ["1/2", "0.5", "3", "3"]
  assert aggregation.majority_at_k(read, [True, True, False, False], 4) == pytest.approx(0.5)
  assert aggregation.majority_at_k(read, [True, True, True, False], 4) == pytest.approx(1)


def test_votes_need_as_many_samples():
  with pytest.raises(ValueError, match="majority@3 needs 3 samples"):
    aggregation.majority_at_k(["A", "B"], [True, False], 3)


def test_a_macro_mean_weighs_groups_alike():
  rows = [row(n, [1.0], task="plotQA") for n in range(6)] + [row(9, [0.0], task="ego")]
  assert aggregation.macro(rows, "task")["mean"] == pytest.approx(0.5)
  assert aggregation.micro(rows)["mean"] == pytest.approx(6 / 7)
  assert aggregation.macro(rows, "task")["groups"] == 2


def test_an_item_of_several_values_counts_for_each():
  rows = [row(0, [1.0], skills=("a", "b")), row(1, [0.0], skills=("b",)), row(2, [1.0])]
  found = aggregation.breakdown(rows, "skills")
  assert {name: (one["mean"], one["n"]) for name, one in found.items()} == {
    "a": (1.0, 1), "b": (0.5, 2)
  }  # fmt: skip


@pytest.mark.parametrize("kind", ["micro", "macro", "paired"])
def test_intervals_cover_the_truth_in_95_percent_with_clusters(kind):
  """60 videos of 1 to 5 questions that share the video's own chance of success."""
  rng = np.random.default_rng(3)
  covered = 0
  trials = 200
  for _ in range(trials):
    ours, theirs = [], []
    for video in range(60):
      chance = rng.beta(1.2, 1.2)  # mean 0.5
      for number in range(1 + video % 5):
        name = f"{video}-{number}"
        one = float(rng.random() < chance)
        other = float(rng.random() < chance)
        fields = {"task": "ab"[number % 2]}
        ours.append(Row(name, "", str(video), fields, (one,), ("A",), 4))
        theirs.append(Row(name, "", str(video), fields, (other,), ("A",), 4))
    if kind == "micro":
      found, truth = aggregation.micro(ours), 0.5
    elif kind == "macro":
      found, truth = aggregation.macro(ours, "task", resamples=400), 0.5
    else:
      found, truth = aggregation.paired(ours, theirs), 0.0
    covered += found["low"] <= truth <= found["high"]
  assert 0.90 <= covered / trials <= 0.99


def test_a_paired_difference_is_of_the_same_mean_as_the_scores():
  ours = [row(n, [1.0], task="a") for n in range(6)] + [row(9, [0.0], task="b")]
  theirs = [row(9, [1.0], task="b")] + [row(n, [float(n > 2)], task="a") for n in range(6)]
  assert aggregation.paired(ours, theirs)["mean"] == pytest.approx(3 / 7 - 1 / 7)
  assert aggregation.paired(ours, theirs, "task")["mean"] == pytest.approx((0.5 - 1) / 2)


def test_clusters_make_an_interval_wider():
  rng = np.random.default_rng(0)
  values = [float(rng.random() < 0.5) for _ in range(40) for _ in range(1)]
  alone = [row(n, [value]) for n, value in enumerate(np.repeat(values, 5))]
  together = [Row(r.item, "", str(int(r.item) // 5), {}, r.values, r.read, 4) for r in alone]
  width = lambda found: found["high"] - found["low"]
  assert width(aggregation.micro(together)) > 1.8 * width(aggregation.micro(alone))


def test_unparsed_replies_are_counted():
  rows = [row(0, [1.0, 0.0], ["A", None]), row(1, [0.0, 0.0], [None, "B"])]
  assert aggregation.unparsed_rate(rows) == 0.5

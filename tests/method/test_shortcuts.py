"""Probes of the discriminator's pairs: hand cases, and what chance and a give-away score."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rmsd_jax.method import shortcuts

RNG = np.random.default_rng(0)
EVERYONE = np.ones((40, 8), bool)


def same(wanted):
  return pytest.approx(wanted, nan_ok=True)


def values(found):
  return {name: float(value) for name, value in found.items()}


def test_accuracy_by_who_is_longer_on_a_hand_case():
  margin = np.array([[1.0, -1.0, 2.0, 0.5, -0.1, 3.0]])
  student, teacher = np.array([[5, 5, 5, 5, 5, 5]]), np.array([[7, 6, 5, 4, 3, 9]])
  pair = np.array([[True, True, True, True, True, False]])
  assert values(shortcuts.by_length(margin, student, teacher, pair)) == same(
    {
      "accuracy_teacher_longer": 0.5,
      "accuracy_student_longer": 0.5,
      "accuracy_equal_length": 1.0,
      "length_only": np.nan,  # one prompt leaves no other half to make the rule from
    }
  )


def test_length_alone_tells_pairs_apart_whichever_side_is_longer():
  length = RNG.integers(10, 20, EVERYONE.shape)
  for shift in (3, -3):
    found = shortcuts.by_length(np.zeros(EVERYONE.shape), length, length + shift, EVERYONE)
    assert found["length_only"] == 1
  assert shortcuts.by_length(length * 0.0, length, length, EVERYONE)["length_only"] == 0.5


def test_a_kind_without_pairs_has_no_accuracy():
  found = values(
    shortcuts.by_length(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), EVERYONE[:1, :1])
  )
  assert np.isnan(found["accuracy_teacher_longer"]) and found["accuracy_equal_length"] == 1
  nobody = np.zeros_like(EVERYONE)
  ids = np.zeros(EVERYONE.shape, int)
  assert np.isnan(shortcuts.by_feature(ids, ids, nobody))


def test_a_feature_that_gives_the_teacher_away_is_found():
  """Teachers end in 7, students in 7 or, three times in four, in 3: half of the ties fall right."""
  teacher = np.full(EVERYONE.shape, 7)
  student = np.where(RNG.random(EVERYONE.shape) < 0.75, 3, 7)
  expected = (student == 3).mean() + (student == 7).mean() / 2
  assert shortcuts.by_feature(student, teacher, EVERYONE) == pytest.approx(expected)


def test_a_feature_that_says_nothing_is_at_chance():
  """Also where each value is rare, so that a rule fitted on the pairs it judges would be right."""
  for kinds in (4, 10_000):
    scores = [
      float(shortcuts.by_feature(*RNG.integers(0, kinds, (2, *EVERYONE.shape)), EVERYONE))
      for _ in range(20)
    ]
    assert abs(np.mean(scores) - 0.5) < 0.02


def test_lengths_that_say_nothing_are_at_chance_also_in_small_batches():
  """A rule chosen on the pairs that it judges would reach 0.6 here."""
  scores = []
  for _ in range(200):
    student, teacher = RNG.integers(10, 40, (2, 8, 4))
    found = shortcuts.by_length(np.zeros((8, 4)), student, teacher, EVERYONE[:8, :4])
    scores.append(float(found["length_only"]))
  assert abs(np.mean(scores) - 0.5) < 0.03


def test_pairs_that_do_not_count_teach_the_rule_nothing():
  teacher, student = np.full((4, 8), 7), np.full((4, 8), 3)
  pair = np.zeros((4, 8), bool)
  pair[0] = True  # the other half has no pair to learn from
  assert np.isnan(shortcuts.by_feature(student, teacher, pair))
  pair[1] = True
  assert shortcuts.by_feature(student, teacher, pair) == 1


def test_an_ending_is_what_stands_before_the_end_of_turn():
  """Alike where the four tokens before the last one are, whatever came before and comes after."""
  ids = np.array([[[8, 4, 5, 6, 7, 9, 0], [1, 8, 4, 5, 6, 7, 9], [8, 4, 5, 6, 3, 9, 0]]])
  one, later, other = shortcuts.endings(ids, np.array([[6, 7, 6]]))[0].tolist()
  assert one == later != other
  short, empty, shorter = shortcuts.endings(ids, np.array([[3, 0, 1]]))[0].tolist()
  assert short != empty == shorter


@pytest.mark.parametrize(("last", "found"), [(None, 0.5), (13, 1.0)], ids=["alike", "a full stop"])
def test_an_ending_inside_the_tag_gives_a_teacher_away(last, found):
  """Both sides end in </answer>, three tokens here; one may end its answer in a full stop."""
  answer = RNG.integers(20, 30, (*EVERYONE.shape, 5))
  tag = np.broadcast_to([2, 3, 4, 9], (*EVERYONE.shape, 4))
  teacher, student = answer.copy(), RNG.permutation(answer)
  if last:
    teacher[..., -1] = last
  ends = [
    shortcuts.endings(np.concatenate([x, tag], -1), np.full(EVERYONE.shape, 9))
    for x in (student, teacher)
  ]
  assert shortcuts.by_feature(*ends, EVERYONE) == pytest.approx(found, abs=0.07)


def test_means_by_label():
  x = np.array([[1.0, 3.0], [5.0, 7.0], [9.0, 9.0]])
  mask = np.array([[True, True], [False, True], [True, True]])
  found = shortcuts.by_label("score", x, mask, np.array([0, 0, 2]), ("a", "b", "c"))
  assert values(found) == pytest.approx(
    {"score/a": 11 / 3, "score/b": np.nan, "score/c": 9}, nan_ok=True
  )


def test_the_auc_inside_groups_is_sklearns():
  rng = np.random.default_rng(1)
  score = np.round(rng.normal(size=EVERYONE.shape), 1)  # with ties
  right, counts = rng.random(EVERYONE.shape) < 0.5, rng.random(EVERYONE.shape) < 0.9
  right[0], right[1] = True, False
  got = np.asarray(shortcuts.auc_in_groups(score, right & counts, ~right & counts))
  for b in range(len(score)):
    kinds = right[b][counts[b]]
    if kinds.all() or not kinds.any():
      assert np.isnan(got[b])
    else:
      assert got[b] == pytest.approx(roc_auc_score(kinds, score[b][counts[b]]), abs=1e-6)
  assert np.isnan(got[:2]).all() and np.isfinite(got).sum() > 30


def test_the_auc_of_scores_is_by_task_and_reads_closed_ended_rollouts_that_count():
  score = np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 9.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
  content = np.array([[1.0, 0.2, 0.4], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
  counts = np.array([[True] * 3, [True, True, False], [True] * 3, [True] * 3])
  closed, task = np.array([1, 1, 0, 1], bool), np.array([0, 1, 1, 0])
  found = shortcuts.of_scores(score, counts, content, closed, task, 0.5, ("a", "b", "c"))
  assert values(found) == same(
    {
      "discriminator/auc": 0.5,  # the third is open-ended, the fourth has nobody wrong
      "discriminator/auc/a": 1.0,
      "discriminator/auc/b": 0.0,
      "discriminator/auc/c": np.nan,
    }
  )

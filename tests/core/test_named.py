"""Names of leaves, selection by pattern, and the parameter table."""

import numpy as np
import pytest

from rmsd_jax.core import named
from rmsd_jax.core.errors import UserError

TREE = {
  "text": {"layers": {"q": np.zeros((2, 3)), "q_norm": np.zeros(3)}, "norm": np.zeros(4)},
  "vision": {"merger": {"fc1": np.zeros((5, 2))}},
}
NAMES = ["text/layers/q", "text/layers/q_norm", "text/norm", "vision/merger/fc1"]


def test_flatten_names_every_leaf_in_order_and_unflatten_undoes_it():
  flat = named.flatten(TREE)
  assert list(flat) == NAMES
  again = named.unflatten(flat)
  assert again.keys() == TREE.keys() and list(named.flatten(again)) == NAMES
  assert all(a is b for a, b in zip(named.flatten(again).values(), flat.values(), strict=True))
  assert named.flatten({}) == {} and named.unflatten({}) == {}


def test_a_pattern_must_match_the_whole_name():
  assert named.matches("text/norm", ["text/norm"])
  assert named.matches("text/norm", ["vision/.*", ".*norm"])
  assert not named.matches("text/norm", ["text", "norm", "text/nor", "ext/norm"])
  assert not named.matches("text/norm", [])


def test_split_shares_out_the_leaves_and_join_puts_them_together():
  chosen, rest = named.split(TREE, ["vision/.*", "text/norm"])
  assert list(named.flatten(chosen)) == ["text/norm", "vision/merger/fc1"]
  assert list(named.flatten(rest)) == ["text/layers/q", "text/layers/q_norm"]
  joined = named.flatten(named.join(chosen, rest))
  assert joined.keys() == set(NAMES)
  assert all(joined[name] is leaf for name, leaf in named.flatten(TREE).items())


def test_split_by_nothing_and_by_everything():
  assert named.split(TREE, [])[0] == {} and list(named.flatten(named.split(TREE, [])[1])) == NAMES
  assert named.split(TREE, [".*"])[1] == {}


def test_split_reads_its_patterns_once():
  """A generator of patterns serves both the check and the selection."""
  chosen, _ = named.split(TREE, (p for p in ["text/.*"]))
  assert list(named.flatten(chosen)) == NAMES[:3]


def test_a_pattern_that_matches_nothing_is_refused_by_name():
  with pytest.raises(UserError, match=r"'vison/\.\*' matches no parameter.*'text/layers/q'"):
    named.split(TREE, ["text/.*", "vison/.*"])


@pytest.mark.parametrize("pattern", ["text/(", "*", "[a-", "(?P<"])
def test_what_is_no_pattern_is_refused_in_one_line(pattern):
  with pytest.raises(UserError, match="is no regular expression") as error:
    named.split(TREE, [pattern])
  assert "\n" not in str(error.value)


def test_the_table_counts_by_group_and_marks_what_is_frozen():
  lines = named.count_table(TREE, frozen=["vision/.*", ".*q_norm"]).splitlines()
  rows = [line.split() for line in lines]
  assert rows == [
    ["text/layers", "6"],
    ["text/layers", "3", "frozen"],
    ["text/norm", "4"],
    ["vision/merger", "10", "frozen"],
    ["all", "23", "(10", "trained)"],
  ]
  assert len({line.index(row[1]) + len(row[1]) for line, row in zip(lines, rows, strict=True)}) == 1

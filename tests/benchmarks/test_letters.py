"""Every extractor against a table of what its harness' published code gives; hostile replies."""

import json
import pathlib
import time

import pytest
from tasks_hostile import replies

from rmsd_jax.benchmarks import letters
from rmsd_jax.core.errors import UserError

OPTIONS = ["a cat", "two dogs", "red bird", "3.5 m"]
TABLE = pathlib.Path(__file__).with_name("letter_forms.txt")


def read_table():
  """(extractor, reply, letter or None) of every cell."""
  lines = TABLE.read_text("utf-8").split("\n")
  names = lines[2].split(" ")
  rows = []
  for line in filter(None, lines[3:]):
    *values, reply = line.split(" ", len(names))
    for name, value in zip(names, values, strict=True):
      rows.append((name, json.loads(reply), None if value == "-" else value))
  return rows


ROWS = read_table()


def alphabet(name):
  return "ABCDE" if name == "longvideobench-lmms" else "ABCD"


@pytest.mark.parametrize("name", letters.EXTRACTORS)
def test_an_extractor_reads_what_its_harness_reads(name):
  rows = [(reply, value) for extractor, reply, value in ROWS if extractor == name]
  assert len({reply for reply, _ in rows}) >= 60
  assert len({value for _, value in rows}) >= (2 if name.startswith("open-o3") else 3)
  for reply, value in rows:
    assert letters.letter(name, reply, alphabet(name), OPTIONS) == value, reply


@pytest.mark.parametrize("name", letters.EXTRACTORS)
def test_nothing_that_a_model_writes_crashes_an_extractor_or_takes_long(name):
  for reply in replies():
    start = time.process_time()
    found = letters.letter(name, reply, "ABCD", OPTIONS)
    assert found is None or found in "ABCD"
    assert time.process_time() - start < 0.5, reply[:60]


@pytest.mark.parametrize(
  "reply, plain, span",
  [
    ("<think>A dog</think><answer>C</answer>", "A", "C"),
    ("<think>A dog</think>\nThe answer is D", "A", "D"),
    ("B", "B", "B"),
  ],
)
def test_the_span_is_what_follows_the_thoughts(reply, plain, span):
  assert letters.letter("videomme-regex", reply, "ABCD", OPTIONS) == plain
  assert letters.letter("span:videomme-regex", reply, "ABCD", OPTIONS) == span


@pytest.mark.parametrize("letter", "KLMN")
def test_letters_beyond_j_are_read(letter):
  options = [f"choice {n}" for n in range(14)]
  for form in ("{}", "({})", "{}. x", "The answer is {}"):
    reply = form.format(letter)
    assert letters.letter("mmmu", reply, "ABCDEFGHIJKLMN", options) == letter
  assert letters.letter("open-o3", f"<think>x</think><answer>{letter}</answer>", "ABCDEFGHIJKLMN",
                        options) == letter  # fmt: skip


@pytest.mark.parametrize("reply, letter", [("D", None), ("C", "C"), ("D, or C", "C")])
def test_items_of_three_options_have_three_letters(reply, letter):
  assert letters.letter("videomme-regex", reply, "ABC", OPTIONS[:3]) == letter


def test_an_unknown_extractor_is_named():
  with pytest.raises(UserError, match="extractor 'guess'"):
    letters.letter("guess", "A", "ABCD", OPTIONS)

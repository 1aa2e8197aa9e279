"""The outer format: what has it, what only looks as if it had, and that parsing costs little."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rmsd_jax.tasks.response import TAGS, Parsed, parse

GOOD = "<think>I see a cat.</think><answer>A</answer>"
NONE = Parsed(False, "", "")

# Texts rich in tags, so that a fair share of them is close to the format.
TAGGED = st.lists(
  st.sampled_from([*TAGS, "<Answer>", "<think", "</", " ", "\n", "\u00a0", "A", "x y"]), max_size=9
).map("".join)
NEAR = st.tuples(*[st.sampled_from(["", " ", "\n\t", "x"])] * 5).map(
  lambda s: f"{s[0]}<think>{s[1]}</think>{s[2]}<answer>{s[3]}</answer>{s[4]}"
)
INSIDE = st.text().filter(lambda text: not any(tag in text for tag in TAGS))


@pytest.mark.parametrize(
  ("text", "think", "answer"),
  [
    (GOOD, "I see a cat.", "A"),
    (f"\n  {GOOD}\n", "I see a cat.", "A"),
    ("<think>\nwhy\n</think>\n\n<answer>\n B \n</answer>", "why", "B"),
    ("<think></think><answer>7</answer>", "", "7"),
    ("<think>1 < 2 > 0 <b>bold</b></think><answer>x<y</answer>", "1 < 2 > 0 <b>bold</b>", "x<y"),
    ("<think>多</think><answer>猫\n狗</answer>", "多", "猫\n狗"),
  ],
)
def test_format_is_taken_apart(text, think, answer):
  assert parse(text) == Parsed(True, think, answer)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "A",
    "<answer>A</answer>",
    "<think>why</think>A",
    "<think>why</think>",
    "<answer>A</answer><think>why</think>",
    "<think>why<answer>A</answer></think>",
    "<think>why <answer>A</answer></think><answer>B</answer>",
    "<think>why</think><answer>A</answer><answer>B</answer>",
    "<think>why</think><answer>A</answer></answer>",
    "<think>why</think><answer><answer>A</answer>",
    "<think>a</think><think>b</think><answer>A</answer>",
    "<think>why</think><answer>A",
    "<think>why<answer>A</answer>",
    "Sure! <think>why</think><answer>A</answer>",
    "<think>why</think>so<answer>A</answer>",
    "<think>why</think><answer>A</answer>.",
    "<Think>why</Think><Answer>A</Answer>",
    "<think >why</think><answer>A</answer>",
    "<think>why</think>\u200b<answer>A</answer>",  # a zero-width space is not white space
  ],
)
def test_anything_else_has_neither_format_nor_answer(text):
  assert parse(text) == NONE


def test_empty_answer_stays_empty():
  """It must not make the whole response the graded text."""
  assert parse("<think>The answer is A</think><answer> \n</answer>") == Parsed(
    True, "The answer is A", ""
  )


@given(INSIDE, INSIDE, *[st.text(" \n\t\u00a0", max_size=3)] * 3)
def test_what_is_put_together_comes_apart(think, answer, before, between, after):
  text = f"{before}<think>{think}</think>{between}<answer>{answer}</answer>{after}"
  assert parse(text) == Parsed(True, think.strip(), answer.strip())


@given(TAGGED | NEAR | st.text())
@example(GOOD)
def test_equals_a_regular_expression_with_counted_tags(text):
  match = re.fullmatch(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", text, re.DOTALL)
  once = all(text.count(tag) == 1 for tag in TAGS)
  expected = Parsed(True, match[1].strip(), match[2].strip()) if match and once else NONE
  assert parse(text) == expected


@pytest.mark.parametrize(
  "unit", ["<think>", "</answer>", " ", "<", "<think></think>", "".join(TAGS)]
)
def test_long_hostile_texts_cost_little(unit):
  start = time.monotonic()
  assert parse(unit * 100_000) == NONE
  assert time.monotonic() - start < 2.0

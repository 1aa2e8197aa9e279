"""Replies made to break whoever reads them: those of the tasks' tests, and long ones."""

import functools
import json
import pathlib

_LONG = (
  *("<answer>", "<think>", "</think>", "<answer>A</answer>", "```json\n", "\\boxed{", "answer is "),
  *("9", "1:", "1,", "1.", "e9", "[", '{"a":', "A ", "(A) ", " ", "\n", "'", "$", "is ", "="),
  *("From 1s to ", "\u63b3", "\U0001f600", "\u0661"),
)
_SHORT = ("", " ", "\x00", "\ud800", "\ufeffB", "B\u200b", "NaN", "1e999", "-inf", "0x10", "\u2167")
_TABLE = pathlib.Path(__file__).parents[1] / "tasks" / "replies.txt"


@functools.cache
def replies():
  """Some 500 texts."""
  found = []
  for line in _TABLE.read_text("utf-8").split("\n")[3:]:
    if line and not line.startswith("== "):
      text = line.split(" ", 2)[2].removeprefix("raw ")
      found.append(json.loads(text[5:]) if text.startswith("json ") else text)
  for one in _LONG:
    found.append(one * (40_000 // len(one)))
  return [*found, *_SHORT]

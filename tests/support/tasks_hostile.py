"""Replies made to break whoever reads them: those of the tasks' tests, and long ones."""

import functools
import json
import pathlib

_TABLE = pathlib.Path(__file__).parents[1] / "tasks" / "replies.txt"


@functools.cache
def replies():
  """Some 500 texts."""
  found = []
  for line in _TABLE.read_text("utf-8").split("\n")[3:]:
    if line and not line.startswith("== "):
      text = line.split(" ", 2)[2].removeprefix("raw ")
      found.append(json.loads(text[5:]) if text.startswith("json ") else text)
  long_ = ("<answer>", "<think>", "</think>", "9", "1:", "[", '{"a":', "\\boxed{", "A ", "answer is ",
           "(A) ", " ", "\n", "1,", "1.", "e9", "```json\n", "'", "\u63b3", "$", "is ", "=",
           "From 1s to ", "\U0001f600", "\u0661", "<answer>A</answer>")  # fmt: skip
  found += [one * (40_000 // len(one)) for one in long_]
  found += [
    "",
    " ",
    "\x00",
    "\ud800",
    "\ufeffB",
    "B\u200b",
    "NaN",
    "1e999",
    "-inf",
    "0x10",
    "²",
    "Ⅷ",
  ]
  return found

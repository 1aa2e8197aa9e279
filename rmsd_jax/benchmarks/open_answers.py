"""MMMU's rule for open answers, which Video-MMMU uses: strings and numbers found at the tails of
clauses, compared with the truth."""

import re

_CUES = (
  *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are "),
  *("in total ", "total ", "identify ", "recognize ", "calculated as ", "counted as "),
  *("measured as ", "observed as ", "concluded as ", "found to be ", "equals "),
  *("determined to be ", "number of ", "value is ", "adds up to ", "have ", "has "),
)
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_GROUPED = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_DIGITS = re.compile(r"\d{400}")  # no number that a float holds, and slow to look through
_MAX_CHARS = 50_000

Said = str | float


def said(reply: str) -> list[Said]:
  """The strings and numbers that a reply may mean; [] where it says nothing.

  Of each line the shortest tail after a cue, "=" being one in the last line alone; the whole reply
  where no line has a cue. (The rule means to cut at full stops before a capital, too, but has
  made all letters small before.) Numbers are rounded to two decimals.
  """
  text = reply[-_MAX_CHARS:].strip().strip(".").lower()
  if not text or _DIGITS.search(text):
    return []
  lines = text.split("\n")
  tails = []
  for place, line in enumerate(lines):
    cues = (*_CUES, "=") if place == len(lines) - 1 else _CUES
    shortest = ""
    for cue in cues:
      if cue in line:
        tail = line.rpartition(cue)[2].strip()
        if not shortest or len(tail) < len(shortest):
          shortest = tail
    if shortest and shortest not in _TRIVIAL:
      tails.append(shortest)
  tails = tails or [text]
  numbers = [
    number
    for tail in tails
    for pattern in (_GROUPED, _SCIENTIFIC, _SIMPLE)
    for number in pattern.findall(tail)
  ]
  found = [value for text in [*tails, *numbers] for value in normalised(text)]
  return list(dict.fromkeys(found))


def normalised(text: str) -> list[Said]:
  """A number as a float of two decimals; a letter with a space before, or behind; else a text."""
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except ValueError:
    lowered = text.lower()
  return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def right(truth: str, values: list[Said]) -> bool:
  """Whether a number is the truth's, or a string holds the truth's."""
  wanted = normalised(truth)
  texts = [one for one in wanted if isinstance(one, str)]
  return any(
    any(one in value for one in texts) if isinstance(value, str) else value in wanted
    for value in values
  )

"""The outer format of a reply: `<think>...</think><answer>...</answer>`, and nothing else.

Everything that grades a reply reads its answer through `parse`, so that no reward can be had
for an answer that stands anywhere but in the one answer block.
"""

import dataclasses
import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_TAG = re.compile("(" + "|".join(TAGS) + ")")


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A reply taken apart. Without the outer format, `think` and `answer` are empty."""

  outer: bool  # R_outer of R-MSD: the reply has the outer format
  think: str  # the reasoning, white space around it removed
  answer: str  # the answer, white space around it removed; may be empty even when `outer`


def parse(reply: str) -> Parsed:
  """Takes a reply apart; never raises, and takes time linear in its length.

  The format is OneThinker's (arXiv 2512.03043), which R-MSD's R_outer follows: the two blocks in
  this order, and white space alone before, between and after them. Each of the four tags must
  occur exactly once (our decision), so an answer inside the reasoning, a second answer block and
  an unclosed block all fail. Tags are matched as written: `<Answer>` is ordinary text.
  """
  pieces = _TAG.split(reply)  # text and tags take turns: [before, tag, inside, tag, between, ...]
  if tuple(pieces[1::2]) != TAGS:
    return Parsed(False, "", "")
  before, think, between, answer, after = pieces[0::2]
  if before.strip() or between.strip() or after.strip():
    return Parsed(False, "", "")
  return Parsed(True, think.strip(), answer.strip())

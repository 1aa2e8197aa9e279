"""The outer format of a reply: `<think>...</think><answer>...</answer>`, and nothing else.

Everything that grades a reply reads its answer through `parse`, so that no reward can be had
for an answer that stands anywhere but in the one answer block.
"""

import dataclasses
import re

from rmsd_jax.tasks import answers

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_TAG = re.compile("(" + "|".join(TAGS) + ")")
# What models end a turn with, where a server leaves it in the text.
_END = re.compile(r"(?:\s*(?:<\|(?:im_end|endoftext|eot_id|end)\|>|</s>))+\s*\Z")


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


def parse_lenient(reply: str) -> Parsed:
  """As `parse`, for replies whose thoughts came apart from their content.

  The thoughts go from the first `<think>` to the last `</think>` and may quote tags ("I must answer
  as <think>..</think><answer>..</answer>"), but not end before: a reply of two blocks has answered
  twice. A token that ends a turn, and characters that take no place, may stand around the blocks.
  """
  pieces = _TAG.split(trimmed(reply))
  tags = pieces[1::2]
  if tags[:1] != ["<think>"] or tuple(tags[-3:]) != TAGS[1:]:
    return Parsed(False, "", "")
  depth = 1
  for tag in tags[1:-3]:
    depth += (tag == "<think>") - (tag == "</think>")
    if depth < 1:
      return Parsed(False, "", "")
  before = pieces[0]
  between = pieces[-5]
  after = pieces[-1]
  if any(answers.without_invisible(text).strip() for text in (before, between, after)):
    return Parsed(False, "", "")
  return Parsed(True, "".join(pieces[2:-5]).strip(), pieces[-3].strip())


def trimmed(reply: str) -> str:
  """A reply without the tokens that end a turn at its end."""
  # Looked for at the end alone: the pattern would try each white space of a long text.
  head = reply[:-200]
  tail = reply[-200:]
  return head + _END.sub("", tail)

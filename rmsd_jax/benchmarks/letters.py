"""How harnesses read the letter of an option in a reply.

An extractor is (reply, letters, options) -> one of `letters`, or None: unparsed, which counts as
wrong. `letters` are those that the harness looks for in the set; options are texts without letters.
Each follows its harness in every quirk, since figures are compared by protocol; none raises, and
each takes time linear in the reply. What is read is in tests/benchmarks/letter_forms.txt, form by
form.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from rmsd_jax.core.errors import UserError

Extractor = Callable[[str, str, Sequence[str]], str | None]

# Two of them are none: the source lacks commas between phrases, so that "The best option is" stays.
_PHRASES = (
  "The best answer is",
  "The correct answer is",
  "The answer is",
  "The answer",
  "The best option isThe correct option is",
  "Best answer:Best option:",
  "Answer:",
  "Option:",
)
_LONGVIDEOBENCH_PHRASES = (
  *_PHRASES[:4],
  *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)
_REFUSALS = (
  "Sorry, I can't help with images of people yet.",
  "I can't process this file.",
  "I'm sorry, but without the image provided",
  "Cannot determine the answer",
)
_FAILED = "Failed to obtain answer via API"
_STATED = re.compile(r"(?i:(?:correct\s+)?answer\s+is\s+\**)([A-Za-z])")
_LAST_TOKENS = 5  # as the rule is described
_LAST_TOKENS_SHIPPED = 4  # as it is published: index > tokens - 5
_LMMS_PHRASES = (
  *("the answer is", "answer is", "the correct answer is", "correct answer is"),
  *("the best answer is", "best answer is", "the correct option is", "correct option is"),
  *("the best option is", "best option is", "the choice is", "choice is"),
  *("the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
  *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:"),
  *("答案是", "答案为", "选", "答えは"),
)
_THINK, _END_THINK = "<think>", "</think>"


def tagged(reply: str) -> str | None:
  """What stands in the first `<answer>` block, without white space around it."""
  start = reply.find("<answer>")
  end = reply.find("</answer>", start) if start >= 0 else -1
  return reply[start + len("<answer>") : end].strip() if end >= 0 else None


def answer_span(reply: str) -> str:
  """The answer block, or what follows the thoughts, or all of it."""
  after = reply.rpartition(_END_THINK)[2]
  found = tagged(after)
  return after.strip() if found is None else found


def _videomme_regex(
  reply: str, letters: str, options: Sequence[str], phrases: Sequence[str] = _PHRASES
) -> str | None:
  """Video-MME's: the first capital that is a letter, be it of a word ("A cat sits" is A)."""
  text = reply.strip()
  for phrase in phrases:
    text = text.replace(phrase, "")
  return next((character for character in text if character in letters), None)


def _longvideobench_lmms(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """lmms-eval's LongVideoBench: the same with its own phrases, which lack "Answer:"."""
  return _videomme_regex(reply, letters, options, _LONGVIDEOBENCH_PHRASES)


def _tokens(reply: str) -> list[str]:
  return re.sub(r"[.()\[\],:;!*#{}]", " ", reply).split()


def _by_text(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """The one option whose text stands in a reply that is not much longer than the options."""
  texts = [option.lower() for option in options]
  if len(reply) > 2 * sum(map(len, texts)):
    return None
  found = [letter for letter, text in zip(letters, texts, strict=False) if text in reply.lower()]
  return found[0] if len(found) == 1 else None


def _can_infer(
  reply: str, letters: str, options: Sequence[str], last: int = _LAST_TOKENS
) -> str | None:
  """VLMEvalKit's: one letter alone as a token, near the end; else stated; else an option's text."""

  def by_letter(letter: str, tokens: Sequence[str]) -> str | None:
    return letter if tokens.index(letter) >= len(tokens) - last else None

  def stated() -> str | None:
    found = (one[1].upper() for one in _STATED.finditer(reply))
    first = next((letter for letter in found if letter in {*"ABCD", *letters}), "")
    return first if first and first in letters else None

  return _inferred(reply, letters, options, by_letter, stated)


def _can_infer_shipped(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """The same as it is published: the letter is one of the last four tokens."""
  return _can_infer(reply, letters, options, _LAST_TOKENS_SHIPPED)


def _can_infer_older(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """The copy in Qwen3-VL's Video-MME script: "A" among more than three tokens is an article."""

  def by_letter(letter: str, tokens: Sequence[str]) -> str | None:
    return None if "A" in tokens and len(tokens) > 3 else letter

  return _inferred(reply, letters, options, by_letter, lambda: None)


def _inferred(
  reply: str,
  letters: str,
  options: Sequence[str],
  by_letter: Callable[[str, Sequence[str]], str | None],
  stated: Callable[[], str | None],
) -> str | None:
  """What the versions of `can-infer` share.

  Args:
    by_letter: (the only letter among the tokens, the tokens) -> whether it is the answer.
    stated: what is tried next, before the text of an option.
  """
  if any(refusal in reply for refusal in _REFUSALS):
    return None
  if _FAILED in reply:
    return _by_text(reply, letters, options)
  tokens = _tokens(reply)
  there = [letter for letter in letters if letter in tokens]
  if len(there) == 1 and (found := by_letter(there[0], tokens)):
    return found
  if not there and "Z" in tokens:
    return None
  return stated() or _by_text(reply, letters, options)


def _vlmevalkit_video(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """VLMEvalKit's video sets without a judge: Video-MME's regex, else `can-infer`."""
  found = _videomme_regex(reply, letters, options)
  return found or _can_infer_shipped(reply, letters, options)


def _lmms_eval(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """lmms-eval's shared one: the kind of place that is most telling, and the last of that kind."""
  text = re.sub(r"<think>(?:(?!</?think>).)*</think>", "", reply, flags=re.DOTALL).strip()
  if not text:
    return None
  for character in ",.!?;:'\"":
    text = text.strip(character)
  padded = f" {text} "
  lowered = padded.lower()
  whole = text.strip()
  found: list[tuple[int, int, str]] = []  # (rank of the kind, place, letter)
  for form, rank in (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2)):
    places = [(rank, padded.rfind(form.format(letter)), letter) for letter in letters]
    found += [candidate for candidate in places if candidate[1] >= 0]
  for phrase in _LMMS_PHRASES:
    if (start := lowered.find(phrase)) >= 0:
      after = start + len(phrase)
      found += [(7, padded.find(x, after), x) for x in letters if padded.find(x, after) >= 0]
  for letter in letters:
    if whole.startswith(letter) and not whole[1:2].isalpha():
      found.append((10, 0, letter))
    if whole.endswith(letter) and not whole[-2:-1].isalpha():
      found.append((9, len(padded) - 1, letter))
  found = found or [(0, padded.rfind(x), x) for x in letters if x in padded]
  # Of two as good, the one that was found first.
  return max(found, key=lambda candidate: candidate[:2])[2] if found else None


def _open_o3(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """Open-o3-Video's think mode: an answer block of one letter, and a block of thoughts."""
  start = reply.find(_THINK)
  thought = start >= 0 and reply.find(_END_THINK, start) >= 0
  found = tagged(reply)
  return found if thought and found in list(letters) else None


def _open_o3_shipped(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """The same as it is published: the best of letters that all score 0 is "A"."""
  return _open_o3(reply, letters, options) or letters[:1]


def _onethinker(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """OneThinker's: the first character of the answer block."""
  found = (tagged(reply) or "")[:1]
  return found if found and found in letters else None


def _mmmu(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """MMMU's cascade: "X." and "X:", else "(X)", else "X ", else an option's text; the last of it."""
  text = reply
  for character in ",.!?;:'":
    text = text.strip(character)
  text = f" {text} "
  stops = [x for x in letters if f"{x}." in text]
  colons = [x for x in letters if f"{x}:" in text]
  if stops or colons:
    return _last(stops + colons, text, "{}." if stops else "{}:")
  if brackets := [x for x in letters if f"({x})" in text]:
    return _last(brackets, text, "({})")
  if spaced := [x for x in letters if f"{x} " in text]:
    return _last(spaced, text, " {} ")
  if len(text.split()) <= 5:
    return None
  lowered = text.lower()
  pairs = zip(letters, (option.lower() for option in options), strict=False)
  there = [(lowered.rfind(option), letter) for letter, option in pairs if option in lowered]
  return max(there, key=lambda candidate: candidate[0])[1] if there else None


def _last(candidates: Sequence[str], text: str, form: str) -> str:
  """The one whose last place in that form is furthest; of two as far, the first."""
  return max(candidates, key=lambda letter: text.rfind(form.format(letter)))


def _mmmu_answer(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """VLMEvalKit's Video-MMMU: the cascade on what follows the last "Answer:"."""
  return _mmmu(reply.rpartition("Answer:")[2].strip(), letters, options)


def _mlvu(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """MLVU's: the character before the first ")", or the whole reply, is the letter."""
  found = reply[: reply.index(")")][-1:] if ")" in reply else reply
  return found if found in list(letters) else None


def _mlvu_vlmevalkit(reply: str, letters: str, options: Sequence[str]) -> str | None:
  """VLMEvalKit's: the same, else `can-infer`."""
  return _mlvu(reply, letters, options) or _can_infer_shipped(reply, letters, options)


EXTRACTORS: Mapping[str, Extractor] = {
  "videomme-regex": _videomme_regex,
  "longvideobench-lmms": _longvideobench_lmms,
  "can-infer": _can_infer,
  "can-infer-shipped": _can_infer_shipped,
  "can-infer-older": _can_infer_older,
  "vlmevalkit-video": _vlmevalkit_video,
  "lmms-eval": _lmms_eval,
  "open-o3": _open_o3,
  "open-o3-shipped": _open_o3_shipped,
  "onethinker": _onethinker,
  "mmmu": _mmmu,
  "mmmu-answer": _mmmu_answer,
  "mlvu": _mlvu,
  "mlvu-vlmevalkit": _mlvu_vlmevalkit,
}
_SPAN = "span:"  # before a name: on the answer block, or what follows the thoughts


def letter(extractor: str, reply: str, letters: str, options: Sequence[str]) -> str | None:
  """The letter that an extractor reads, or None.

  Args:
    extractor: a name of EXTRACTORS, or "span:NAME", which reads the answer block alone (or what
      follows the thoughts): needed by what looks for any capital, where a model thinks aloud.

  Raises:
    UserError: there is no such extractor.
  """
  name = extractor.removeprefix(_SPAN)
  if name not in EXTRACTORS:
    raise UserError(
      f"extractor {extractor!r}: use one of {', '.join(EXTRACTORS)}, or {_SPAN}NAME to read the "
      "answer block alone"
    )
  return EXTRACTORS[name](answer_span(reply) if name != extractor else reply, letters, options)

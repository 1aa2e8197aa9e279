"""rule-v1: MathVista and MathVerse by rules, offline. Ours: no harness scores so.

1. The answer's span: after the thoughts; the answer block; the last \\boxed{}; what follows the
   last "answer is" or "answer:"; else the last line that is not empty.
2. Choices: the letter in the span, among the item's; else the one option whose text it is.
   MathVista alone, extractor "rule-v1:lev": else the option nearest by edit distance, as its own
   script does.
3. Numbers: without commas, currency, per cent, units and degrees, what stands behind the last "="
   or "is", or the one number of a sentence. A formula is no number: the 5 of 2\\sqrt{5} or x + 5 is
   not read. MathVista's integers are cut off, its floats rounded to the item's precision (without
   one, to the truth's decimals), and both compared as texts; of several numbers in a sentence the
   first behind "answer is", else the last one counts. MathVerse's may differ by 1e-3, or agree when
   rounded to the truth's decimals.
4. Else by `tasks.symbolic.equal`: formulas, sides of equations, lists, points and intervals.
5. Truths of MathVerse are cleaned: "(C)" is C, "C\\nD" is both, "False" the option of that text.

Figures by these rules read lower than a judge's and are not to be compared with them.
"""

import ast
import math
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from rmsd_jax.benchmarks import letters as extractors
from rmsd_jax.benchmarks.item import LETTERS
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import lines_of
from rmsd_jax.tasks import lenient, symbolic

VERSION = "rule-v1"
NEAREST = f"{VERSION}:lev"
RULES = (VERSION, NEAREST)
TOLERANCE = 1e-3  # of MathVerse's numbers, absolute and relative
_MAX_CHARS = 4_000  # of a span; a longer one is no answer
_LEAD = re.compile(r"answer(?:\s+is)?\s*[:：]|answer\s+is\b", re.IGNORECASE)
_LABEL = re.compile(r"[\s*_(\[]*([A-Z])[\s*_]*(?:[)\].:][\s*_]*|\Z)")
_ONE_MORE = re.compile(r"[\s,/&]*(?:and|or)?\s*[(*]*[A-Z]\W*")  # after a label: another one
_NUMBER = re.compile(
  r"(?<![\d.,])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?(?![\d]|,\d)"
  r"|(?<![\d.,])[-+]?\.\d+(?![\d,])"
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°|\u63b3|\bdegrees?\b")
# What a unit is raised to, and a remark in brackets: "12 cm^2", "12 m2", "3.5 (rounded)".
_RAISED = re.compile(
  r"(?<![A-Za-z\\])(units?|mm|cm|dm|km|m|in|inch(?:es)?|ft|feet|yd|mi)\s*(?:\^\s*\{?[23]\}?|[23²³])(?!\w)"
)
_REMARK = re.compile(r"\s*\([^()\d]*[A-Za-z]{2}[^()]*\)")
# Of a text with one of these a number is a part of a formula, a ratio, a point or a set; or denied.
_FORMULA = re.compile(
  r"[\\^_√π²³/*+=<>≤≥≈≠{}|]|\d\s*[-–]\s*\d|\d\s*:\s*\d|\d[a-zA-Z]|[(\[]\s*[-\d.]+\s*,"
)
_DENIED = re.compile(
  r"\b(?:not|never|no|or|neither|nor|except|isn't|aren't|negative|minus|root|log)\b"
  r"|≠|\\neq?\b",
  re.IGNORECASE,
)
_TELLS = re.compile(r"=|≈|\b(?:is|are|equals|equal to)\b", re.IGNORECASE)
_DISPLAYED = re.compile(r"(?:\$\$|\\\[)\s{0,20}([^$]{1,400}?)\s{0,20}(?:\$\$|\\\])")
_UNKNOWN = r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])"
_DRESS = re.compile(r"\\[()\[\]]|\*\*|\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}")


def check_rules(extractor: str) -> None:
  """Raises UserError where a protocol asks for other rules than these."""
  if extractor not in RULES:
    raise UserError(f"extractor {extractor!r}: this set has {', '.join(RULES)}")


def span(reply: str) -> str:
  """The part of a reply that is its answer; "" where it has none, or one of great length."""
  text = reply.rpartition("</think>")[2]
  block = extractors.tagged(text)
  text = (text if block is None else block).strip()
  if (box := _boxed(text)) is not None:
    text = box
  else:
    leads = list(_LEAD.finditer(text))
    after = _one_line(text[leads[-1].end() :][: 2 * _MAX_CHARS]) if leads else ""
    if after := after.strip(" \n*:："):
      text = after.split("\n")[0]
    elif lines := lines_of(_one_line(text[-2 * _MAX_CHARS :])):
      text = lines[-1]
  return text.strip() if len(text) <= _MAX_CHARS else ""


def _one_line(text: str) -> str:
  """With formulas that stand on lines of their own in line, as the rest of an answer is."""
  return _DISPLAYED.sub(r"$\1$", text)


def _boxed(text: str) -> str | None:
  """What stands in the last \\boxed{}, its brackets in balance."""
  start = text.rfind("\\boxed{")
  if start < 0:
    return None
  depth = 0
  for place in range(start + len("\\boxed"), len(text)):
    depth += (text[place] == "{") - (text[place] == "}")
    if not depth:
      return text[start + len("\\boxed{") : place]
  return None


def cleaned(text: str) -> str:
  """A span or truth without what is not compared: degrees, bold, LaTeX's text and brackets."""
  text = _DRESS.sub(lambda match: match[1] or "", text.replace("\\$", "").replace("$", ""))
  text = re.sub(r"(?<=[\w)])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text).replace("\u2212", "-")
  text = re.sub(r"\\text\{\s*\}", "", _DEGREES.sub("", text).replace("\\%", "%"))
  return text.strip().rstrip(".,;").strip()


def choice(reply: str, options: Sequence[str], letters: str, nearest: bool = False) -> str | None:
  """The letter of the option that a reply names, or None.

  Args:
    options: texts without letters; fewer than `letters` where they are not known.
    nearest: whether an answer that is none of them is the nearest, as MathVista's script has it.
  """
  said = span(reply)
  labelled = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
  found = lenient.option_letter(said, labelled)
  label = _LABEL.match(said)
  if label and _ONE_MORE.fullmatch(said[label.end() :]):
    label = None
  if found is None and label and label[1] in letters:
    found = label[1]
  inside = set(re.findall(r"\(([A-Z])\)", said)) & set(letters)
  if found is None and len(inside) == 1:
    found = inside.pop()
  if found is None and said:
    found = _by_value(said, options) or extractors.letter("can-infer", said, letters, options)
  if found is None and nearest and said and options:
    distances = [Levenshtein.distance(said, text) for text in options]
    found = LETTERS[distances.index(min(distances))]
  return found if found and found in letters else None


def _by_value(said: str, options: Sequence[str]) -> str | None:
  """The letter of the one option with that text, else of the one with that number."""
  for value in (_compact, lambda text: lenient.number(cleaned(text))):
    wanted = value(said)
    same = [x for x, text in zip(LETTERS, options, strict=False) if value(text) == wanted]
    if wanted is not None and len(same) == 1:
      return same[0]
  return None


def _compact(text: str) -> str:
  """Cleaned, of one case, without spaces: "090^\\circ T" and "090° T" are alike."""
  return "".join(cleaned(text).casefold().split())


def number_in(text: str) -> float | None:
  """The number that a span is or tells, see `numbers_in`; None where it tells none or several."""
  found = numbers_in(text)
  return found[0] if len(found) == 1 else None


def numbers_in(text: str) -> list[float]:
  """The number that a span is, or that stands behind its last "=" or "is"; else all of a sentence.

  [] of a formula, whose numbers are parts of it, and where words deny them or give alternatives.
  """
  text = _RAISED.sub(r" \1", _REMARK.sub("", cleaned(text)))
  if (value := lenient.number(text)) is not None:
    return [float(value)]
  if _DENIED.search(text):
    return []
  tails = [text[match.end() :] for match in _TELLS.finditer(text)]
  tail = tails[-1] if tails else text
  if _solved_for_more(text):
    return []
  if (value := lenient.number(tail)) is not None:
    return [float(value)]
  found = _NUMBER.findall(tail)
  if _FORMULA.search(tail) or any(len(digits) > 60 for digits in found):
    return []
  values = [float(digits.replace(",", "")) for digits in found]
  return [value for value in values if math.isfinite(value)]


def _solved_for_more(text: str) -> bool:
  """Whether its last "=" gives no single value: "x^2 = 4" is no 4, "x = 3, x = 5" no 5."""
  *earlier, last = re.split(r"[,;]\s+|\s+and\s+", text)
  before, equal, _ = last.rpartition("=")
  if not equal:
    return False
  if re.search(_UNKNOWN, before) and re.search(r"[\^+*/]|\d\s*[A-Za-z]|-\s*\w", before):
    return True
  concludes = re.match(r"(?:so|thus|then|hence|therefore)\b", last, re.IGNORECASE)
  solved = (one for one in earlier if re.search(rf"(?<!\d){_UNKNOWN}\s*=[^=]*\Z", one))
  given = (lenient.number(one.rpartition("=")[2]) for one in solved)
  return not concludes and any(value is not None for value in given)


def mathvista(reply: str, kind: str, precision: int | None, answer: str) -> tuple[bool, str | None]:
  """Whether a free-form reply is right, and what was read.

  Args:
    kind: "integer", "float" or "list", the set's answer_type.
    precision: decimals of a float; None: as many as the truth has.
  """
  said = span(reply)
  if kind == "list":
    found = re.search(r"\[[^\[\]]*\]", said)
    read = _listed(found[0]) if found else None
    return read is not None and read == _listed(answer), None if read is None else str(read)
  found = numbers_in(said)
  if not found:
    return False, None
  # What an answer begins with is meant, as in "5 apples out of 10"; a sentence leads up to it.
  begins = _NUMBER.match(said) and reply.strip() != said
  value = found[0] if begins else found[-1]
  if kind == "integer":
    read = str(int(value))
  else:
    decimals = len(answer.strip().partition(".")[2]) if precision is None else precision
    read = str(round(value, decimals))
  return read == answer.strip(), read


def _listed(text: str) -> list[float] | None:
  try:
    return [float(one) for one in ast.literal_eval(text)]
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None


def mathverse(reply: str, answer: str) -> tuple[bool, str | None]:
  """Whether a free-form reply is right, and what was read.

  A sentence counts by the last formula in dollars in it, or what follows its last "is".
  """
  whole = span(reply)
  if not cleaned(whole):
    return False, None
  truth = cleaned(answer)
  inside = re.findall(r"\$([^$]+)\$", whole)
  tail = whole.rpartition(" is ")[2]
  # A part of a sentence that denies it, or names two, says nothing.
  parts = () if _DENIED.search(whole) else (*inside[-1:], tail)
  spans = dict.fromkeys(map(cleaned, (whole, *parts)))
  return any(one and _same(one, truth) for one in spans), cleaned(whole)


def _same(said: str, truth: str) -> bool:
  theirs = lenient.number(truth)
  if theirs is not None and (ours := number_in(said)) is not None:
    return _near(ours, float(theirs), truth)
  return symbolic.equal(said, truth)


def _near(value: float, truth: float, written: str) -> bool:
  digits = _NUMBER.search(written)
  decimals = len(digits[0].partition(".")[2]) if digits and "." in digits[0] else None
  if decimals is not None and round(value, decimals) == round(truth, decimals):
    return True
  return math.isclose(value, truth, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def mathverse_letters(answer: str, options: Sequence[str]) -> str:
  """The letters that a truth of MathVerse names, in order: "(C)" is C, "C\\nD" is CD, "False" the
  option of that text; "" where it names none."""
  lines = [line.strip() for line in answer.split("\n") if line.strip()]
  bare = [re.fullmatch(r"\(?([A-H])\)?[.:]?", line) for line in lines]
  if lines and all(bare):
    return "".join(sorted({found[1] for found in bare if found}))
  if (label := _LABEL.match(answer)) and label.end() > 1:
    return label[1]
  plain = _compact(answer)
  return "".join(
    letter for letter, text in zip(LETTERS, options, strict=False) if _compact(text) == plain
  )


def all_letters(reply: str, options: Sequence[str], letters: str) -> str | None:
  """All letters that a reply names, in order, where a question has several right ones."""
  found = sorted(set(re.findall(r"(?<![A-Za-z])([A-Z])(?![A-Za-z])", span(reply))) & set(letters))
  return "".join(found) or choice(reply, options, letters)

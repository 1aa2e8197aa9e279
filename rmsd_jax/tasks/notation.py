"""How results are written: Unicode and LaTeX dressing taken off, lists, names and units apart.

`plain` makes one spelling of many ("12√3 cm", "$12\\sqrt{3}\\,\\mathrm{cm}$"), `taken_apart` a list
of values of one text. Nothing is computed here; steps are linear in texts of MAX_CHARS.
"""

import dataclasses
import re
import unicodedata
from fractions import Fraction

from rmsd_jax.tasks import answers, numerals, units, wording
from rmsd_jax.tasks.units import Unit

MAX_CHARS = numerals.MAX_CHARS  # a longer result is compared as text
MAX_WORDS = 4 * MAX_CHARS  # a longer text must be the same, letter by letter
MAX_PARTS = 20  # of a list

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_GREEK = dict(zip("αβγδθλμσφωπΔ", "alpha beta gamma delta theta lambda mu sigma phi omega pi Delta"
                  .split(), strict=True))  # fmt: skip
_SIGNS = {
  **{letter: f"\\{name} " for letter, name in _GREEK.items()},
  **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013", "-"),
  "×": "\\times ", "÷": "\\div ", "∞": "\\infty ", "±": "\\pm ", "≤": "\\le ", "≥": "\\ge ",
  "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "°": "^\\circ ", "º": "^\\circ ",
  "∠": "\\angle ", "△": "\\triangle ", "⊥": "\\perp ", "∥": "\\parallel ", "√": "\\sqrt ",
  "℃": "^\\circ C ", "℉": "^\\circ F ",
  "′": "'", "’": "'", "∶": ":", "、": ", ", "。": ".", "⟨": "(", "⟩": ")", "⁄": "/",
  "∅": "\\emptyset ",
  **dict.fromkeys("·⋅∙•", "\\cdot "), **dict.fromkeys("µ", "u"),
}  # fmt: skip
_DRESSING = (  # patterns of LaTeX that change looks only, and what they become
  (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])", ""),
  (r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![A-Za-z])", " "),
  (r"\\(?:display|text)style(?![A-Za-z])|\\limits(?![A-Za-z])", ""),
  (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
  (r"\\(?:mathrm|textrm|textbf|textit|textup|mathbf|mathit|mbox|operatorname)\s*(?=\{)", r"\\text"),
  (r"\\text\s+\{", r"\\text{"),
  (r"\\degrees?(?![A-Za-z])|\\textdegree(?![A-Za-z])", r"^\\circ"),
  (r"(?:\{\})?\^\s*\{?\s*\^?\s*\\circ\s*\}?", r"^\\circ "),
  (r"\^\\circ\s*(?:C|\\text\s*\{\s*C\s*\})(?![A-Za-z])", " celsius"),
  (r"\^\\circ\s*(?:F|\\text\s*\{\s*F\s*\})(?![A-Za-z])", " fahrenheit"),
  (r"(?<![A-Za-z])degrees?\s+(?:C|[Cc]elsius)(?![A-Za-z])", "celsius"),
  (r"(?<![A-Za-z])degrees?\s+(?:F|[Ff]ahrenheit)(?![A-Za-z])", "fahrenheit"),
  (r"\^\s*\\prime(?![A-Za-z])|\^\s*\{\s*\\prime\s*\}", "'"),
  (r"\^\s*\{\s*\\prime\s*\\prime\s*\}", "''"),
  (r"\A'([^']*)'\Z", r"\1"),
  (r"\^\s*\{?\s*\\(?:top|intercal)(?![A-Za-z])\s*\}?", "^T "),
  (r"\\%", "%"),
  (r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)", r"\\times "),
  (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
  ("<=", r"\\le "),
  (">=", r"\\ge "),
  ("!=", r"\\ne "),
  (r"(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
  (r"(?<![\\A-Za-z])sqrt(?=\s*[({0-9])", r"\\sqrt"),
  (rf"(?<![\\A-Za-z])({'|'.join(_GREEK.values())})(?![A-Za-z])", r"\\\1"),
  (r"(?<!\\)\\[()\[\]]", ""),
  (r"\\frac\s*([0-9])\s*([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
  (r"\\sqrt\s*([0-9]+(?:\.[0-9]+)?|[A-Za-z])", r"\\sqrt{\1}"),
)
_DRESSINGS = tuple((re.compile(pattern), text) for pattern, text in _DRESSING)
_JOINED = re.compile(r"\\text\{\s*,?\s*(and|or)\s*,?\s*\}|(?<=[\s\d)}\]])(and|or)(?=[\s\d({\[\\-])")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_ROOT = re.compile(r"\\sqrt\s*\(")
_OPENING = "([{"
_CLOSING = ")]}"

_THOUSANDS = re.compile(r"(?<![\d.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![\d,])")

# What may stand before "=": words, a variable, a segment, an angle, a function of something.
_NAME_PARTS = re.compile(
  r"_\{[^{}]*\}|_[A-Za-z0-9]|\([A-Za-z0-9, .\-]*\)|\^\{-1\}|\\angle\s*[0-9]+|\\text\{[^{}]*\}"
)
_NAME = re.compile(
  r"(?:[A-Za-z'|:\s]|\\(?:angle|triangle|overline|overrightarrow|vec|widehat|odot|sin|cos|tan|cot|"
  r"text|perp|" + "|".join(_GREEK.values()) + r")(?![A-Za-z])|(?<=[a-z])\s*\{[A-Za-z'\s]*\})+"
)
_UNIT_START = re.compile(r"(?<![A-Za-z\\])[A-Za-z]")
_PLAIN_UNIT = re.compile(r"[A-Za-z/*. ]+(?:\^ ?\{? ?-?[0-9] ?\}?[A-Za-z/*. ]*){0,3}")
_MEASURED = re.compile(r"[0-9.)}\]]\Z|\\[a-z]+\Z")  # how what stands before a unit ends
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan log ln exp".split()
_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({'|'.join(_FUNCTIONS)})(?=[\s(^_0-9\\]|[A-Za-z]\b)")
_FUNCTION_ALONE = re.compile(rf"\\(?:{'|'.join(_FUNCTIONS)})\s*\Z")
_TEXT_UNIT = re.compile(  # white space is single, so that each piece matches in one way
  r"(?P<value>[^ ].*?) ?"
  r"(?P<unit>(?:\\text\{[^{}]*\}(?: ?\^ ?\{?-?[0-9]\}?)?(?: ?(?:/|\\cdot))? ?)+)"
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_COMPOUND = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\.?\s*,?\s*(?:and\s+)?")
_HALF_OF_DAY = re.compile(r"([0-9][0-9:. ]*?)\s*([ap])\.?\s?m\.?", re.IGNORECASE)
_BY = re.compile(r"\\times|\\cdot|\*|(?<=[0-9\s])[xX](?=[\s0-9])|\sby\s")  # 1920x1080, 2 by 3


@dataclasses.dataclass(frozen=True)
class Value:
  """One value of a result: the `name` it is given ("x = "), its formula, its unit."""

  text: str
  unit: Unit | None = None
  name: str = ""
  whole: str = ""  # with the name, as an equation


@dataclasses.dataclass(frozen=True)
class Listed:
  """Several values. `brackets`: "" of a bare list, "()", "[)" and so on of a point or interval, "x"
  of a size (4 x 6). `joint`: "or" or "and", where it matters which of them joins the parts."""

  parts: tuple["Value | Listed", ...]
  ordered: bool
  brackets: str = ""
  name: str = ""
  joint: str = ""
  product: Value | None = None  # of a size that may be one: 4 \\times 6


def ascii_form(text: str) -> str:
  """Common Unicode as LaTeX: x² is x^{2}, √3 \\sqrt{3}, ½ \\frac{1}{2}, full width is ASCII."""
  if text.isascii():
    return text
  text = answers.without_invisible(text)
  text = re.sub("[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
  # Of a unit it is micro: both letters that Unicode has for it.
  text = re.sub(r"(?<=[0-9\s])μ(?=(?:m|g|s|l|L|A|V|F|C|W|J|N|Pa|Hz)(?![A-Za-z]))", "u", text)
  text = re.sub("[₀-₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
  pieces = []
  for letter in text:
    plain = unicodedata.normalize("NFKC", letter)
    if letter in _SIGNS:
      pieces.append(_SIGNS[letter])
    elif vulgar := re.fullmatch("([0-9]+)⁄([0-9]+)", plain):  # a vulgar fraction
      pieces.append(f"\\frac{{{vulgar[1]}}}{{{vulgar[2]}}}")
    else:
      pieces.append(_SIGNS.get(plain, " " if plain.isspace() else plain))
  return "".join(pieces)


def plain(text: str) -> str:
  """A result in one spelling: without dollar signs, \\boxed, spacing and a final full stop."""
  text = text.strip()
  if len(text) > MAX_WORDS:
    return text.rstrip(". ")
  # Unicode first, since all patterns below know LaTeX alone; white space last, since they make
  # some.
  text = ascii_form(text)
  text = re.sub(r"\$\$", "$", text)
  if text.count("$") - text.count("\\$") == 1 and re.match(r"\$\s*[0-9]", text):
    text = "\\" + text  # five dollars, not the beginning of a formula
  text = re.sub(r"(?<!\\)\$", "", text)
  for pattern, instead in _DRESSINGS:
    text = pattern.sub(instead, text)
  text = re.sub(r"\\text\{\s*%\s*\}", "%", text)
  # \sqrt(..) by counting: brackets stand in brackets, which no pattern can follow.
  while (root := _ROOT.search(text)) and (end := _closed_at(text, root.end() - 1, "()")) > 0:
    text = f"{text[: root.start()]}\\sqrt{{{text[root.end() : end]}}}{text[end + 1 :]}"
  text = _JOINED.sub(lambda m: f" {m[1] or m[2]} ", text)
  text = _FUNCTION.sub(r"\\\1", text)
  text = re.sub(r"\s+", " ", text)
  text = text.strip().rstrip(". ")
  # Boxes around the whole text alone: inside a formula one may mark a part of it.
  while (opening := _BOX.match(text)) and _closed_at(text, opening.end() - 1) == len(text) - 1:
    text = text[opening.end() : -1].strip().rstrip(". ")
  word = _WHOLE_TEXT.fullmatch(text)
  text = word[1] if word else text
  text = numerals.multiplied(text)
  return text.strip().rstrip(". ")


def compact(text: str) -> str:
  """A plain text without white space that means nothing.

  White space between digits stays, but where it groups thousands: 1 000 is 1000. So does that
  after commas which would group thousands without it: 1, 234 is a list.
  """
  if re.fullmatch(r"[1-9][0-9]{0,2}(?:,\s*[0-9]{3})+", text):
    return re.sub(r"\s+", " ", text)
  text = re.sub(r"(?<=[0-9])\s+(?=[0-9]{3}(?![0-9]))", "", text)
  return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)


def taken_apart(text: str) -> Value | Listed:
  """Takes a plain result apart: a list, a point or an interval, a set, or one value."""
  text = text.strip()
  # Numbers before lists: 1,234 is one number.
  if len(text) > MAX_CHARS or numerals.literal(text):
    return Value(text, whole=text)
  parts, joint = _split(text)
  if len(parts) > 1:
    inner = tuple(taken_apart(part) for part in parts[:MAX_PARTS])
    names = [part.name for part in inner if isinstance(part, Value) and part.name]
    again = len(names) > len(set(names))  # x = 3, x = 4: the solutions of one unknown
    several = len(set(names)) == len(inner)  # x = 3 and y = 4: one of each
    # Of one unknown "2 and 3" are the same solutions as "2 or 3".
    alike = all(re.search(r"[0-9]|\\(?:pi|infty)", part) for part in parts)
    alike = alike and not re.search(r"[<>]|\\(?:le|ge|ne|lt|gt|in(?![a-z]))", text)
    kept = "" if alike and (again or not several) else joint
    return Listed(inner, (not joint or several) and not again, joint=kept)
  name, value = _named(text)
  if name:
    inner = taken_apart(value)
    if isinstance(inner, Value):
      return dataclasses.replace(inner, name=name, whole=text)
    return dataclasses.replace(inner, name=name)
  if bracketed := _bracketed(text):
    return bracketed
  if text.count("\\pm") == 1:
    both = tuple(taken_apart(text.replace("\\pm", sign).lstrip("+ ")) for sign in "+-")
    return Listed(both, ordered=False)
  return _size(text) or _value(text)


def _size(text: str) -> Listed | None:
  """4 x 6, 3 m by 4 m: numbers in their order, which \\times may also multiply."""
  parts = tuple(_value(part.strip()) for part in _BY.split(text))
  # From a digit on: 2x + 1 has an x as well.
  numbers = [part for part in parts if part.text[:1].isdigit() and numerals.literal(part.text)]
  if not 2 <= len(parts) <= 4 or len(numbers) < len(parts):
    return None
  product = None if re.search(r"[xX]|by", "".join(_BY.findall(text))) else _value(text)
  return Listed(parts, True, "x", product=product)


def _split(text: str) -> tuple[list[str], str]:
  """The parts of a bare list, and the word that joins them ("or", "and"): their order is free."""
  thousands = {i for m in _THOUSANDS.finditer(text) for i in range(*m.span()) if text[i] == ","}
  parts = []
  start = 0
  depth = 0
  joint = ""
  i = 0
  while i < len(text):
    if text[i] in _OPENING:
      depth += 1
    elif text[i] in _CLOSING:
      depth -= 1
    elif not depth and text[i] in ",;" and i not in thousands:
      parts.append(text[start:i])
      start = i + 1
    elif not depth and (word := re.compile(r"\s(?:or|and)\s").match(text, i)):
      parts.append(text[start:i])
      start = word.end()
      # Of "or" and "and" in one list, neither is the word of all.
      joint = word[0].strip() if joint in ("", word[0].strip()) else "or and"
      # To the blank behind the word, which may be the one before the next: "1 or or 2".
      i = word.end() - 2
    i += 1
  parts = [part.strip() for part in [*parts, text[start:]]]
  if depth or (joint and _RUN_OF_WORDS.search(text)):
    return [text], ""  # brackets that do not match; a sentence
  kept = [part for part in parts if part]
  return (kept, joint) if kept else ([text], "")


_RUN_OF_WORDS = re.compile(r"[a-z]{3,}\s+(?:or|and)\s+[a-z]{3,}")


def _named(text: str) -> tuple[str, str]:
  """("x", "3") of "x = 3" and of "3 = x"; ("", text) where no name is given."""
  pieces = re.split(r"(?<![<>!:])=|\\in(?![a-z])|\\approx(?![a-z])|≈", text)
  if len(pieces) == 1 and (leader := re.match(r"([A-Za-z ]{3,40}):\s*(?=\S)", text)):
    return leader[1].strip(), text[leader.end() :].strip()
  if len(pieces) > 2 and all(is_name(piece) for piece in pieces[:-1]):
    pieces = [pieces[0], pieces[-1]]
  if len(pieces) != 2:
    return "", text
  left, right = (piece.strip() for piece in pieces)
  if not left and right:
    return "=", right
  if right and is_name(left):
    return _name(left), right
  if left and wording.is_symbol(re.sub(r"\s", "", right)):
    return _name(right), left
  return "", text


def is_name(text: str) -> bool:
  """Whether a text may name a value before "="."""
  bare = _NAME_PARTS.sub("w", text.strip())
  return len(text) <= 60 and bool(_NAME.fullmatch(bare)) and any(map(str.isalpha, bare))


def _name(text: str) -> str:
  bare = re.sub(r"\\text|[{}]", " ", text)
  symbol = re.sub(r"\s", "", bare)
  return symbol if wording.is_symbol(symbol) else " ".join(bare.split()) or "="


def _bracketed(text: str) -> Listed | None:
  """A point, an interval or a set that is the whole text."""
  braces = text.startswith("\\{") and text.endswith("\\}")
  inside = text[2:-2] if braces else text[1:-1]
  brackets = "{}" if braces else text[:1] + text[-1:]
  if brackets not in ("{}", "()", "[]", "[)", "(]") or "," not in inside:
    return None
  depth = 0
  for letter in inside:
    depth += (letter in _OPENING) - (letter in _CLOSING)
    if depth < 0:
      return None  # (1, 2) and (3, 4): two of them
  if depth:
    return None
  parts = [part.strip() for part in _at_commas(inside)]
  if not all(parts) or len(parts) > MAX_PARTS:
    return None
  inner = tuple(taken_apart(part) for part in parts)
  if brackets == "{}":
    # What is named twice, in any spelling, is in a set once.
    once = {_exactly(part): part for part in reversed(inner)}
    return Listed(tuple(reversed(once.values())), ordered=False)
  return Listed(inner, True, brackets)


def _exactly(part: Value | Listed) -> object:
  if isinstance(part, Listed) or not (number := numerals.literal(part.text)):
    return part
  return number[0], part.unit


def _at_commas(text: str) -> list[str]:
  parts = [""]
  depth = 0
  for letter in text:
    depth += (letter in _OPENING) - (letter in _CLOSING)
    if letter == "," and not depth:
      parts.append("")
    else:
      parts[-1] += letter
  return parts


def _closed_at(text: str, opening: int, pair: str = "{}") -> int:
  """Where the bracket at `opening` is closed, -1 if nowhere."""
  depth = 0
  for i in range(opening, len(text)):
    depth += (text[i] == pair[0]) - (text[i] == pair[1])
    if not depth:
      return i
  return -1


def _value(text: str) -> Value:
  """One value and its unit."""
  if _TRIGONOMETRIC.search(text):
    text = _in_radians(text)
  for sign in ("\\$", "€", "£", "¥"):
    if text.startswith(sign):
      return Value(text[len(sign) :].strip(), units.known(sign), whole=text)
  if (match := re.fullmatch(r"(.*[0-9])\s*(\\\$|[€£¥])", text)) and numerals.literal(match[1]):
    return Value(match[1], units.known(match[2]), whole=text)
  if match := re.fullmatch(r"(.*\S)\s*%", text):
    return Value(match[1].strip(), units.PERCENT, whole=text)
  if match := re.fullmatch(r"(.*\S)\s*\^\\circ\s*", text):
    return Value(match[1].strip(), units.DEGREE, whole=text)
  if (match := _TEXT_UNIT.fullmatch(text)) and match["value"]:
    inside = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", match["unit"]).strip()
    if unit := units.named(inside):
      return _same_inside(match["value"].strip(), unit, text)
  text = re.sub(r"(?<=[0-9)}])\s*\\text\{([^{}]*)\}", r" \1 ", text).strip()
  if match := _HALF_OF_DAY.fullmatch(text):
    return Value(match[1], Unit(Fraction(1), ((f"{match[2].lower()}.m.", 1),)), whole=text)
  if compound := _sum(text):
    return Value(*compound, whole=text)
  for start in _UNIT_START.finditer(text):
    value = text[: start.start()]
    name = text[start.start() :]
    if not _PLAIN_UNIT.fullmatch(name) or not _MEASURED.search(value.rstrip()):
      continue
    if _FUNCTION_ALONE.search(value):  # of the sine of A, which is no ampere
      continue
    spaced = value.endswith(" ")
    long = len(re.sub("[^A-Za-z]", "", name)) > 1
    # "5m" may be a product, so that a single letter needs a blank before it.
    unit = units.known(name) if spaced or long else None
    # Behind a number any word counts what there is: 3 apples.
    if unit is None and spaced and numerals.literal(value):
      unit = units.named(name)
    if unit is not None:
      return Value(value.strip(), unit, whole=text)
  return Value(text, whole=text)


def _in_radians(text: str) -> str:
  """Degrees under a sine and its like are those of its angle, and no unit of the result."""
  text = re.sub(
    r"\s*\\text\{\s*degrees?\s*\}|\s*(?<![A-Za-z])degrees?(?![A-Za-z])", r"^\\circ", text
  )
  angle = r"([0-9]+(?:\.[0-9]+)?|[A-Za-z])\s*\^\\circ"
  return re.sub(angle, r"(\\frac{\1\\pi}{180})", text).strip()


def _same_inside(value: str, unit: Unit, whole: str) -> Value:
  """5 m + 100 with the unit m is 105 m where the units inside are the same; else it stays whole."""
  inner = [m[1] for m in re.finditer(r"\\text\{([^{}]*)\}", value)]
  if not inner:
    return Value(value, unit, whole=whole)
  if all(units.named(name.strip()) == unit for name in inner):
    return Value(re.sub(r"\s*\\text\{[^{}]*\}", "", value), unit, whole=whole)
  compound = _sum(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", whole))
  return Value(*compound, whole=whole) if compound else Value(whole, whole=whole)


def _sum(text: str) -> tuple[str, Unit] | None:
  """("165", minutes) of "2 hours 45 minutes": the sum in the last unit."""
  terms = []
  place = 0
  while place < len(text) and (term := _COMPOUND.match(text, place)):
    unit = units.known(term[2])
    if unit is None:
      return None
    terms.append((Fraction(term[1]), unit))
    place = term.end()
  if place < len(text) or len(terms) < 2 or len({unit.powers for _, unit in terms}) > 1:
    return None
  if any(a.factor <= b.factor for (_, a), (_, b) in zip(terms, terms[1:], strict=False)):
    return None  # not from large to small: two quantities
  total = sum(number * unit.factor for number, unit in terms) / terms[-1][1].factor
  return f"{total.numerator}/{total.denominator}", terms[-1][1]

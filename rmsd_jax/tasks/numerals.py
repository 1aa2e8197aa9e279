"""Numbers as they are written: 1,234.5, 1 1/2, 1.6 \\times 10^{-19}, 0.\\overline{3}, 1.5 million;
and the numbers of times, scores, ranges and dates, which stand for themselves.
"""

import math
import re
from fractions import Fraction

from rmsd_jax.tasks import units

MAX_CHARS = 200  # of a number
MAX_EXPONENT = 400  # of ten

_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?: [0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"([+-]?)\s*({_DIGITS}?)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{{1,4}}))?")
_SCIENTIFIC = re.compile(
  r"(?:([^\\*{}^]{1,60}?)\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*\{?\s*([+\-]?[0-9]{1,4})\s*\}?"
)
_FRACTION = re.compile(
  r"([+-]?)\s*(?:([0-9]{1,15})\s*)?\\frac\s*\{\s*([+-]?[0-9]{1,15})\s*\}\s*\{\s*([0-9]{1,15})\s*\}"
  r"|([+-]?)\s*(?:([0-9]{1,15})\s+)?([0-9]{1,15})\s*/\s*([0-9]{1,15})"
)
_MULTIPLIED = re.compile(  # "1.5 million", in LaTeX too
  rf"(?<![\w.,^/])({_DIGITS}(?:\.[0-9]{{1,20}})?)\s*(\\text\{{\s*)?"
  rf"({'|'.join(units.MULTIPLIERS)})s?(?![A-Za-z])\s*(\}})?",
  re.IGNORECASE,
)
_FIGURE = rf"{_DIGITS}(?:\.[0-9]+)?"
_FIGURES = re.compile(
  rf"{_FIGURE}(?:\s*[-:]\s*{_FIGURE})+"
  r"|[0-9]+(?:\.[0-9]+)?(?: [0-9]+(?:\.[0-9]+)?)+|[0-9]+(?:/[0-9]+){2,}|[0-9]+(?:\.[0-9]+){2,}"
)
_CLOCK = re.compile(r"[0-9]{1,2}(?::[0-9]{2}){1,2}(?:\.[0-9]+)?")
_REPEATING = re.compile(
  r"([+-]?)([0-9]{0,15})\.([0-9]{0,15})\\(?:overline|dot)\s*\{([0-9]{1,15})\}"
)


def literal(text: str) -> tuple[Fraction, int | None] | None:
  """The exact value of a number or fraction, and its decimals (None of a fraction); else None."""
  text = text.strip()
  if len(text) > MAX_CHARS:
    return None
  if match := _FRACTION.fullmatch(text):
    # The pattern has two forms of four groups each, \frac{a}{b} and a / b.
    sign, whole, over, under = match.groups()[:4] if match[3] else match.groups()[4:]
    if not int(under):
      return None
    value = int(whole or 0) + Fraction(int(over), int(under))
    return (-value if sign == "-" else value), None
  if match := _REPEATING.fullmatch(text):
    sign, whole, once, again = match.groups()
    tail = Fraction(int(again), 10 ** len(again) - 1)
    value = int(whole or 0) + (int(once or 0) + tail) / 10 ** len(once)
    return (-value if sign == "-" else value), None
  if match := re.fullmatch(r"([0-9]{1,2})\s*!", text):
    return Fraction(math.factorial(int(match[1]))), 0
  if match := _SCIENTIFIC.fullmatch(text):
    inner = _decimal(match[1].strip()) if match[1] else (Fraction(1), 0)
    power = int(match[2])
    if inner is None or abs(power) > MAX_EXPONENT:
      return None
    return inner[0] * Fraction(10) ** power, max(inner[1] - power, 0)
  return _decimal(text)


def _decimal(text: str) -> tuple[Fraction, int] | None:
  match = _DECIMAL.fullmatch(text)
  if match is None or not (match[2] or match[3]):
    return None
  digits = re.sub("[, ]", "", match[2])
  decimals = match[3] or ""
  power = int(match[4] or 0)
  if abs(power) > MAX_EXPONENT:
    return None
  value = Fraction(int(digits + decimals or "0")) / 10 ** len(decimals) * Fraction(10) ** power
  return (-value if match[1] == "-" else value), max(len(decimals) - power, 0)


def multiplied(text: str) -> str:
  """A text with "1.5 million" in digits, 1500000; a long one, which is no number, as it is."""
  if len(text) > MAX_CHARS:
    return text
  for _ in range(2):  # 5 hundred thousand
    text = _MULTIPLIED.sub(_multiplied, text)
  return text


def _multiplied(match: re.Match[str]) -> str:
  number, opening, word, closing = match.groups(default="")
  product = Fraction(re.sub("[, ]", "", number)) * units.MULTIPLIERS[word.lower()]
  if product.denominator > 1 or (closing and not opening):
    return match[0]
  return f"{product.numerator} " + (opening if opening and not closing else "")


def figures(text: str) -> tuple[str, tuple[Fraction, ...]] | None:
  """What joins the numbers of a time, a score, a range or a date, and the numbers: these are what
  is meant, and not what they would amount to; None of anything else."""
  if not _FIGURES.fullmatch(text):
    return None
  joints = re.findall(r"\s*[-:/]\s*|\s+", text) or ["."]
  numbers = text.split(".") if joints == ["."] else re.split(r"\s*[-:/]\s*|\s+", text)
  return "".join(joint.strip() or " " for joint in joints), tuple(
    Fraction(re.sub("[, ]", "", number)) for number in numbers
  )


def quotient(text: str) -> Fraction | None:
  """The value of a ratio a:b that can be no time of the day, or of a fraction; else None."""
  if (told := figures(text)) and told[0] == ":" and told[1][1] and not _CLOCK.fullmatch(text):
    return told[1][0] / told[1][1]
  exact = literal(text)
  return exact[0] if exact and exact[1] is None else None

"""Units of measure behind a number: which are the same, and by which factor they differ.

Only what answers to questions about pictures and clips have; other nouns in the plural count as
units of their own name ("12 apples").
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 40  # a longer text is no unit


class Unit(NamedTuple):
  """factor times a product of powers of base units; percent is 1/100 of nothing at all."""

  factor: Fraction
  powers: tuple[tuple[str, int], ...]  # sorted; (): a pure number


NONE = Unit(Fraction(1), ())
PERCENT = Unit(Fraction(1, 100), ())
DEGREE = Unit(Fraction(1), (("degree", 1),))
_WORD = "word "
_KNOWN: dict[str, tuple[Fraction, str, int]] = {}  # name -> factor, base, power of the base
_PREFIXES = {"": "1", "k": "1000", "d": "1/10", "c": "1/100", "m": "1/1000", "u": "1/1000000",
             "n": "1/1000000000", "M": "1000000", "G": "1000000000"}  # fmt: skip
_LONG_PREFIXES = {"": "", "kilo": "k", "deci": "d", "centi": "c", "milli": "m", "micro": "u",
                  "nano": "n", "mega": "M", "giga": "G"}  # fmt: skip
# Symbol: the names that are written out, what it is of a base unit, and the base unit.
_PREFIXED: Mapping[str, tuple[str, str, str, int]] = {
  "m": ("meter metre", "1", "m", 1),
  "g": ("gram gramme", "1", "g", 1),
  "L": ("liter litre", "1/1000", "m", 3),
  "l": ("", "1/1000", "m", 3),
  "N": ("newton", "1", "N", 1),
  "J": ("joule", "1", "J", 1),
  "W": ("watt", "1", "W", 1),
  "V": ("volt", "1", "V", 1),
  "A": ("amp ampere", "1", "A", 1),
  "Pa": ("pascal", "1", "Pa", 1),
  "Hz": ("hertz", "1", "Hz", 1),
}
_PLAIN = """s sec second=1 s|ms millisecond=1/1000 s|min minute=60 s|h hr hour=3600 s|day=86400 s
week=604800 s|month=1/12 year|year yr=1 year|in inch inches=0.0254 m|ft foot feet=0.3048 m
yd yard=0.9144 m|mi mile=1609.344 m|lb lbs=453.59237 g|oz ounce=28.349523125 g|t ton tonne=1000000 g
deg degree ^\\circ °=1 degree|rad radian=1 radian|K kelvin=1 K|celsius=1 celsius
fahrenheit=1 fahrenheit|mph=0.44704 m/s|kph kmh=5/18 m/s
$ \\$ dollar usd=1 dollar|€ euro eur=1 euro|£ gbp=1 pound|¥ yuan rmb yen=1 yuan|cent=1/100 dollar
unit=1 unit|px pixel=1 px|fps=1 frame/s"""
_COUNTED = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}  # before a unit
_SQUARED = {"squared": 2, "cubed": 3}  # behind one
_TOKEN = re.compile(
  r"(?P<power>\^\s*\{?\s*[+-]?[0-9]\s*\}?)|(?P<over>/|\bper\b)"
  r"|(?P<name>\^\\circ|\\\$|[A-Za-z]+|[%°$€£¥])|(?P<gap>[\s.*]|\\cdot|\\times)"
)
MULTIPLIERS = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6,
               "billion": 10**9, "trillion": 10**12}  # fmt: skip
# Words that say another number, or join, doubt, deny and compare answers, are in no unit: "12 or
# more" names no number, and "5 halves" another one.
NO_UNITS = frozenset(
  """or and not no non to is are was has as if but than then maybe perhaps about except unless wrong
  false incorrect untrue negative positive opposite never none nor either neither cannot without
  between from until vs versus also times plus minus over because so yes the i it answer option
  choose pick any all both other another others correct right more less fewer least most below under
  above beyond exceeds equals
  zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
  sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
  first second third half halve quarter tenth score pair couple single double triple trio root
  reciprocal inverse nil lakh crore gross myriad mil k m b bn""".split()
)
# Closed classes: plurals without an s, and what may stand for a noun ("12 in total").
_PLURALS = frozenset("people men women children mice teeth geese sheep fish deer total".split())
_PREPOSITIONS = ("per", "of", "in")


def _fill() -> None:
  for symbol, (names, factor, base, power) in _PREFIXED.items():
    for prefix, size in _PREFIXES.items():
      entry = (Fraction(size) * Fraction(factor), base, power)
      _KNOWN[prefix + symbol] = entry
      for long, short in _LONG_PREFIXES.items():
        if short == prefix:
          for name in names.split():
            _KNOWN[long + name] = _KNOWN[long + name + "s"] = entry
  for line in re.split(r"[|\n]", _PLAIN):
    names, _, value = line.partition("=")
    number, base = value.split()
    for name in names.split():
      _KNOWN[name] = (Fraction(number), base, 1)
      if len(name) > 2:
        _KNOWN[name + "s"] = _KNOWN[name]
  for symbol in ("m", "g"):  # often written so; Mm is another unit
    _KNOWN[f"K{symbol}"] = _KNOWN[f"K{symbol.upper()}"] = _KNOWN[f"k{symbol}"]
  _KNOWN["cc"] = (Fraction(1, 10**6), "m", 3)


_fill()


def known(text: str) -> Unit | None:
  """The unit that a text is ("cm", "km/h", "square meters", "m s^{-2}", "%"), or None."""
  if len(text) > MAX_CHARS:
    return None
  if text.strip().casefold() in ("%", "percent", "per cent", "percents"):
    return PERCENT
  factor = Fraction(1)
  powers = dict[str, int]()
  # The unit read last: a power behind it ("m^2") is of that one alone.
  last: tuple[Fraction, str, int] | None = None
  place = 0
  sign = 1
  count = 1
  named = 0
  while place < len(text):
    token = _TOKEN.match(text, place)
    if token is None:
      return None
    place = token.end()
    name = token["name"]
    if token["power"] or name in _SQUARED:
      times = _SQUARED[name] if name else int(re.sub(r"[^0-9-]", "", token["power"]))
      if last is None or not 0 < abs(times) <= 6:
        return None
      size, base, power = last  # once already, so times - 1 more
      factor *= size ** (times - 1)
      powers[base] += power * (times - 1)
      last = None
    elif token["over"]:
      sign = -1
    elif name in _COUNTED:
      count = _COUNTED[name]
    elif name:
      entry = _entry(name)
      if entry is None:
        return None
      size, base, power = entry
      factor *= size ** (sign * count)
      powers[base] = powers.get(base, 0) + sign * count * power
      last = (size**sign, base, sign * power)
      sign = 1
      count = 1
      named += 1
  if not named or named > 4:
    return None
  return _of(factor, powers)


def _of(factor: Fraction, powers: dict[str, int]) -> Unit:
  split: dict[str, int] = {}
  for base, power in powers.items():  # "m/s" as a base of the table
    over, _, under = base.partition("/")
    split[over] = split.get(over, 0) + power
    if under:
      split[under] = split.get(under, 0) - power
  return Unit(factor, tuple(sorted((base, power) for base, power in split.items() if power)))


def _entry(name: str) -> tuple[Fraction, str, int] | None:
  """As it is written, since mm and Mm differ; else words alone by any case."""
  if name in _KNOWN:
    return _KNOWN[name]
  return _KNOWN.get(name.lower()) if len(name) > 2 or name == "CM" else None


def named(text: str) -> Unit | None:
  """`known`, or up to three words around a noun in the plural as a unit of their own."""
  if unit := known(text):
    return unit
  words = re.findall(r"[a-z]+", text.casefold())
  if not 1 <= len(words) <= 3 or len(text) > MAX_CHARS or re.sub(r"[A-Za-z\s-]", "", text):
    return None
  if any(map(_no_unit, words)) or not _is_plural(_head(words)):
    return None
  # "apples" and "apple" are one unit; short words keep their s (gas, bus).
  name = " ".join(word.removesuffix("s") if len(word) > 3 else word for word in words)
  return Unit(Fraction(1), ((_WORD + name, 1),))


def _no_unit(word: str) -> bool:
  bare = word.removesuffix("s")
  # Twentieths, and millions in many languages: "milliards", "millones".
  large = re.match(r"(?:[mbt]r?ill?i[oa]|millon|" + "|".join(MULTIPLIERS) + ")", word)
  return bool({word, bare, word.removesuffix("es")} & NO_UNITS or large or word.endswith("ths"))


def _head(words: list[str]) -> str:
  """The noun of "students per class" and of "red apples"."""
  place = next((i for i, word in enumerate(words) if i and word in _PREPOSITIONS), len(words))
  return words[place - 1]


def _is_plural(word: str) -> bool:
  """A multiplier, a denial and most other words that change a number have no plural."""
  if word in _PLURALS or word.endswith("men"):
    return True
  return len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))


def alike(a: Unit, b: Unit) -> bool:
  """Whether two units measure the same thing, so that their factors tell them apart."""
  if a.powers == b.powers:
    return True
  # "30 degrees" is said of angles and of temperatures.
  return {a.powers, b.powers} in (
    {DEGREE.powers, (("celsius", 1),)},
    {DEGREE.powers, (("fahrenheit", 1),)},
  )

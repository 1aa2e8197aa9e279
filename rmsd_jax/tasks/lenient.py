"""The lenient reading: answers as models write them, read as the values of the strict reading.

Each reader first takes what the strict one takes, so that nothing is worth less, and then what is
the same answer in other dress. What names two answers, or none, is None in both readings. None of
the readers raises, and their cost is bounded.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from rmsd_jax.tasks import answers, notation, numerals, units, wording

MAX_CHARS = 1_000  # of an answer that is no JSON

_PAIRS = (("**", "**"), ("__", "__"), ("*", "*"), ("`", "`"), ("$$", "$$"), ("$", "$"),
          ("\\(", "\\)"), ("\\[", "\\]"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"),
          ("「", "」"), ("【", "】"))  # fmt: skip
_CALL = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{")
_FENCE = re.compile(r"```[A-Za-z]*\s*\n?((?:(?!```).)*)```", re.DOTALL)
_LEAD = re.compile(
  r"(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the\s+|my\s+)?(?:(?:correct|final|best|right)\s+)*"
  r"(?:(?:answer|option|choice|result|value)\s*)+(?:is|are|would\s+be|=|:)?\s*:?\s+(?=\S)"
  r"|(?:(?:final\s+)?answer)\s*[:=]\s*(?=\S)|(?:答案|选项?)(?:是|为)?\s*[::]?\s*(?=\S)",
  re.IGNORECASE,
)
_ABOUT = re.compile(
  r"(?:about|approximately|approx\.?|around|roughly|≈|~|\\approx|\\sim)\s*(?=[^a-z\s])", re.I
)
_LETTER = re.compile(  # a sign or a dot before a digit belongs to what follows
  r"[(\[]?([A-Za-z])[)\]]?!?("
  r"\s*[,.:)\u3001]+(?:\s+|(?=[^\W\d])|\Z)"
  r"|\s+[-\u2013\u2014]+\s+|\s*[-\u2013\u2014]+\s*(?=[^\W\d]{2})|\s+|\Z)(.*)",
  re.DOTALL,
)
_STOPS = ".。,，;；:： \n\t"
_FACTORIAL = re.compile(r"(?:[\d)}\]]|(?<![^\W\d_])[A-Za-z])[\"'*$`_]*\Z")

_SECONDS = r"\s*(?:s|secs?|seconds?)?"
_MINUTES = r"\s*(?:minutes?|mins?|m)"
_AMOUNT = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,7})"
_TIME = (
  rf"(?:[0-9]{{1,3}}:)?[0-9]{{1,4}}:[0-9]{{1,2}}(?:\.[0-9]+)?{_SECONDS}"
  rf"|[0-9]{{1,4}}{_MINUTES}\s*[0-9]{{1,2}}(?:\.[0-9]+)?\s*(?:s|secs?|seconds?)"
  rf"|[0-9]{{1,4}}\s*(?:minutes?|mins?)"
  rf"|{_AMOUNT}(?:\.[0-9]{{0,9}})?{_SECONDS}"
)
_SPAN = re.compile(
  rf"(?P<lead>[A-Za-z ,:'\"]{{0,80}}?)[\[(<]?\s*(?:start(?:_time)?\s*[:=]\s*)?(?P<start>{_TIME})\s*"
  rf"(?:to|and|until|till|through|-+>?|[\u2013\u2014~\u2192,])\s*"
  rf"(?:end(?:_time)?\s*[:=]\s*)?(?P<end>{_TIME})\s*[\])>]?[.\u3002]?",
  re.IGNORECASE,
)
# Words that may stand before an interval. Any other one may deny it, or name another unit.
_LEADS = frozenset(
  """a an the it its this that and of in on at from between during within is are was be takes take
  place happens happen happened occurs occur occurred starts start begins begin lasts appears appear
  shown seen visible can found located corresponding relevant described target query event events
  action activity moment scene clip segment video interval span window period range part portion
  time times timestamp timestamps second seconds s sec final correct answer so thus therefore hence
  about approximately around roughly end""".split()
)
_TIME_KEYS = frozenset("time times timestamp timestamps interval span segment window".split())
_ENDS = (("start", "end"), ("start_time", "end_time"), ("begin", "end"))
# Not box_2d, which is Gemini's with y before x.
_BOX_KEYS = frozenset("boxes box bbox bboxes bbox_2d bounding_box".split())
_SECOND_KEYS = frozenset("time second seconds t timestamp".split())
_GLUED = re.compile(r"([-+]?[0-9][0-9,]*(?:\.[0-9]+)?)([smghLlNJWVAK])")
_LABELS = frozenset("label event description query caption object name sentence".split())
_CORNER = r"(-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{0,19})?|-?\.[0-9]{1,19})"  # not the 00 of 1,00
_CORNERS = re.compile(r"[\s(\[<]*" + r"([\s,()\[\]]+)".join([_CORNER] * 4) + r"[\s)\]>]*")
_BOXES = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_LEADING = re.compile(  # how what stands before a box ends
  r"(?:\A|=|\\approx|(?<![\\A-Za-z])[^\W\d_]{2,}[,.:]?)(?:[\s$*`\"'(:\uff1a]|\\[\[(])*\Z"
)
_DOUBTS = frozenset(
  """not no never none nor neither wrong incorrect false cannot without except unlike rather instead
  or if maybe perhaps possibly either half twice double times cdot div ne neq lt gt le leq ge geq
  less more than least most under over above below""".split()
)
_MARKUP = re.compile(r"<\|?/?[a-z_]{1,20}\|?>")


class Percent(float):
  """A number that was written with "%": it stands for itself and for its hundredth."""

  def values(self) -> tuple[float, float]:
    """Both."""
    return float(self), float(Fraction(repr(float(self))) / 100)


def narrow(text: str) -> str:
  """A text in Unicode's compatible form (full-width, bold letters) but for raised and lowered
  letters and fractions: x\u00b2 is not x2."""
  if text.isascii():
    return text
  return "".join(
    letter
    if unicodedata.decomposition(letter).startswith(("<super", "<sub", "<frac", "<square"))
    else unicodedata.normalize("NFKC", letter)
    for letter in answers.composed(text)
  )


def unwrapped(text: str) -> str:
  """A text without what only dresses it: a code fence, bold, quotes, $..$, \\boxed{..}."""
  text = answers.without_invisible(text).strip()
  # Dress in dress, **$5$**; bounded, since each turn reads the whole text.
  for _ in range(6):
    inner = _undressed(text)
    if inner == text:
      break
    text = inner
  return text


def _undressed(text: str) -> str:
  if fence := _FENCE.fullmatch(text):
    return fence[1].strip()
  if (call := _CALL.match(text)) and text.endswith("}"):
    depth = 1
    for i in range(call.end(), len(text)):
      depth += (text[i] == "{") - (text[i] == "}")
      if not depth:
        return text[call.end() : i].strip() if i == len(text) - 1 else text
  for opening, closing in _PAIRS:
    inner = text[len(opening) : len(text) - len(closing)]
    both = text.startswith(opening) and text.endswith(closing) and inner.strip()
    if both and opening not in inner and closing not in inner:
      return inner.strip()
  return text


def said(text: str) -> str:
  """`unwrapped`, and without "The answer is", "Option", "Answer:" before it and stops behind it."""
  if len(text) > MAX_CHARS:
    return text
  text = unwrapped(narrow(text))
  for _ in range(3):
    inner = unwrapped(_LEAD.sub("", text, count=1) if _LEAD.match(text) else text)
    inner = unwrapped(_without_stops(inner)) or inner
    if inner == text:
      break
    text = inner
  return text


def _without_stops(text: str) -> str:
  """Without what ends a sentence; "!" behind a number, a bracket or a variable is a factorial."""
  bare = text.rstrip(_STOPS)
  behind = bare.rstrip("!")
  if behind == bare or _FACTORIAL.search(behind[-20:]):
    return bare
  return behind.rstrip(_STOPS + "!")


def option_letter(answer_text: str, options: Sequence[str]) -> str | None:
  """As `answers.option_letter`; also "**B**", "\\boxed{B}", "Option B", "The answer is (B).",
  "[B]", "B - dog", "B" with any stop behind it, and the text of one option alone."""
  if strict := answers.option_letter(answer_text, options):
    return strict
  if len(answer_text) > MAX_CHARS:
    return None
  labels = [label for label in map(answers.split_label, options) if label]
  # The very text of an option before anything is taken off it: "Option A" may be B's.
  whole = _written(answer_text)
  exact = [name for name, option in labels if option and _written(option) == whole]
  if len(exact) == 1 and answers.split_label(whole) is None:
    return exact[0]
  text = said(answer_text)
  plain = _alike(text)
  # All letters that the text may mean, by every way to read it; more than one is no answer.
  letters = {letter for letter, option in labels if option and _alike(option) == plain}
  if strict := answers.option_letter(text, options):
    letters.add(strict)
  if match := _LETTER.fullmatch(text):
    letter = match[1].upper()
    rest = _alike(match[3])
    # "B - 3" may say -3, so that this is to be no other option's text.
    signed = "".join(_written(match[2] + match[3]).split())
    letters |= {name for name, option in labels if name == letter and rest in ("", _alike(option))}
    if any(name != letter and "".join(option.split()) == signed for name, option in labels):
      return None
  return letters.pop() if len(letters) == 1 else None


def _alike(text: str) -> str:
  return _without_stops(_written(text))


def _written(text: str) -> str:
  """A text as options are compared: of any case, with one kind of minus, in Unicode's letters."""
  return " ".join(unwrapped(narrow(text)).replace("\u2212", "-").casefold().split())


def number(text: str) -> float | None:
  """As `answers.number`; also "$12$", "12 cm", "$12", "3/4", "x = 12", "about 12", "1.2 × 10^3".

  A unit is left out, since a number has none to compare it with; "50%" is a `Percent`. Several
  numbers, a range or a formula are None.
  """
  if (strict := answers.number(text)) is not None:
    return strict
  if len(text) > MAX_CHARS:
    return None
  bare = _ABOUT.sub("", said(answers.without_invisible(text)), count=1)
  # A unit of one letter may stand next to its number, where a formula would have a variable.
  if (glued := _GLUED.fullmatch(bare)) and units.known(glued[2]):
    bare = f"{glued[1]} {glued[2]}"
  plain = notation.plain(bare)
  value = notation.taken_apart(plain)
  # A text that is not there was computed (2 h 30 min): no number that somebody wrote.
  if not isinstance(value, notation.Value) or value.text not in plain:
    return None
  if not wording.is_heading(value.name):
    return None
  parsed = numerals.literal(value.text)
  if parsed is None:
    return None
  try:
    exact = float(parsed[0])
  except OverflowError:
    return None
  return Percent(exact) if value.unit == units.PERCENT else exact


def text(answer_text: str) -> str | None:
  """A text that shows something, without the dress around it, in Unicode's compatible form."""
  plain = answers.composed(unwrapped(answer_text), "NFKC")
  return plain if answers.visible(plain) else None


def result(answer_text: str) -> str:
  """A mathematical result without what stands around it: "The answer is", all but its one box."""
  if len(answer_text) > MAX_CHARS:
    return answer_text
  boxes = list(_BOXES.finditer(answer_text))
  if not boxes:
    return said(answer_text)
  before = answer_text[: boxes[-1].start()]
  if len({box[1] for box in boxes}) > 1 or not _leads_to_a_value(before):
    return answer_text
  behind = re.sub(r"\A(?:[\s.$*]|\\[\])])+", "", answer_text[boxes[-1].end() :])
  return f"{boxes[-1][1]} {behind}".strip()  # \\boxed{12} cm


def _leads_to_a_value(before: str) -> bool:
  """Whether a sentence leads up to a box with its result, by a word or "=": "2 + ..", "2x = .." and
  what denies it do not."""
  words = set(re.findall("[a-z']+", before.casefold()))
  if not _LEADING.search(before) or words & _DOUBTS or "n't" in before:
    return False
  equation = re.split(r"[,.;:$\n]|(?<![\\A-Za-z])[A-Za-z]{2,}", before.rstrip("$*( "))[-1]
  unknown = re.search("[A-Za-z]", equation) and re.search(r"\d|\A\s*-", equation)
  return not (equation.endswith("=") and unknown)


def loose_json(text: str) -> object | None:
  """The value of JSON in a code fence, with single quotes or with a last comma too many; the rest
  is as strict as `answers.strict_json`."""
  if len(text) > answers.MAX_CHARS:
    return None
  text = unwrapped(text)
  # Where there are double quotes, single ones are apostrophes.
  if '"' not in text:
    text = text.replace("'", '"')
  return answers.strict_json(re.sub(r",\s*([}\]])", r"\1", text))


def interval(text: str) -> answers.Interval | None:
  """As `answers.interval`; also fenced JSON, {"start": .., "end": ..}, a bare pair, "00:12 - 00:20"
  and "from 2.5s to 7.1s" with words before it."""
  if strict := answers.interval(text):
    return strict
  value = loose_json(text)
  if value is not None:
    return _interval_of(value)
  text = unwrapped(text)
  if len(text) > MAX_CHARS or not (span := _SPAN.fullmatch(text)):
    return None
  lead = re.findall("[a-z']+", span["lead"].casefold())
  ends = [span["start"], span["end"]]
  # 1 to 2:30, 1 to 2 min: seconds or minutes? And 2,500 is one number.
  bare = any(not re.search("[a-z:]", end, re.I) for end in ends)
  minutes = any(re.search("[m:]", end, re.I) for end in ends)
  joint = text[span.end("start") : span.start("end")]
  one = joint == "," and re.fullmatch("[0-9]{3}", span["end"])
  if (bare and minutes) or one or not _LEADS.issuperset(lead):
    return None
  return answers.as_interval({"time": [_seconds(end) for end in ends]})


def _interval_of(value: object) -> answers.Interval | None:
  if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list | dict):
    value = value[0]
  if isinstance(value, dict):
    value = _field(value, _TIME_KEYS, _ENDS)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
      value = value[0]
    if isinstance(value, str):
      return interval(value) if len(value) < MAX_CHARS and "{" not in value else None
  if not isinstance(value, list) or len(value) != 2:
    return None
  return answers.as_interval({"time": [_seconds(end) for end in value]})


def _field(value: Mapping[str, Any], keys: frozenset[str], ends: Sequence[Sequence[str]]) -> object:
  """What stands under the one key of `keys`, or the list of what stands under `ends`; None where
  anything but a label stands beside it."""
  plain = {key.strip().casefold(): inner for key, inner in value.items()}
  if len(plain) < len(value):
    return None
  # Labels beside the value are harmless; anything else may be a second answer.
  told = {key: x for key, x in plain.items() if not (key in _LABELS and isinstance(x, str))}
  for names in ends:
    if told.keys() == set(names):
      return [told[name] for name in names]
  return next(iter(told.values())) if len(told) == 1 and told.keys() <= keys else None


def _seconds(value: object) -> float | None:
  """A number of seconds, or a text such as "12.5s", "00:12", "1m 20s"."""
  if not isinstance(value, str):
    return answers.as_number(value)
  if len(value) > 40:
    return None
  text = re.sub(r"\s*(?:s|secs?|seconds?)\s*\Z", "", value.strip(), flags=re.I)
  if re.fullmatch(rf"{_AMOUNT}(?:\.[0-9]*)?", text):
    return float(text.replace(",", ""))
  parts = re.split(rf"{_MINUTES}\s*", text, flags=re.I) if ":" not in text else []
  if parts[1:] == [""]:
    parts = [parts[0], "0"]
  parts = parts if len(parts) == 2 else text.split(":")
  fits = 2 <= len(parts) <= 3 and all(re.fullmatch(r"[0-9]{1,4}(?:\.[0-9]+)?", p) for p in parts)
  if not fits or any("." in part for part in parts[:-1]) or any(float(p) >= 60 for p in parts[1:]):
    return None
  return math.fsum(float(part) * 60**i for i, part in enumerate(reversed(parts)))


def box(text: str) -> answers.Box | None:
  """As `answers.box`; also fenced JSON, a bare list, "bbox_2d", [{"bbox_2d": .., "label": ..}],
  "(x1, y1), (x2, y2)"."""
  if strict := answers.box(text):
    return strict
  value = loose_json(text)
  if value is not None:
    return _box_of(value)
  plain = _MARKUP.sub(" ", unwrapped(text)) if len(text) <= MAX_CHARS else ""
  corners = _CORNERS.fullmatch(plain)
  # Four numbers by commas, or by blanks, or two pairs: "1,100 2,200" may be two numbers.
  if not corners or (not corners[4].strip() and (corners[2] + corners[6]).strip()):
    return None
  return answers.as_box({"boxes": [answers.number(corner) for corner in corners.groups()[::2]]})


def _box_of(value: object) -> answers.Box | None:
  if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list | dict):
    value = value[0]
  if isinstance(value, dict):
    value = _field(value, _BOX_KEYS, [("x1", "y1", "x2", "y2")])
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
      value = value[0]
  if not isinstance(value, list):
    return None
  if len(value) == 2 and all(isinstance(corner, list) and len(corner) == 2 for corner in value):
    value = [*value[0], *value[1]]
  return answers.as_box({"boxes": value})


def track(text: str) -> answers.Boxes | None:
  """As `answers.track`; also fenced JSON, the bare object, [{"time": 0, "bbox_2d": [..]}, ..], and
  seconds written as "0.0", "0s" or "00:00"."""
  return answers.track(text) or _checked(_boxes_of(loose_json(text)))


def _checked(boxes: dict[str, list[float]] | None) -> answers.Boxes | None:
  return answers.as_track({"boxes": boxes}) if boxes else None


def _boxes_of(value: object) -> dict[str, list[float]] | None:
  """Boxes by second in the strict form, None where one is unclear or a second comes twice."""
  if isinstance(value, dict) and len(value) == 1 and next(iter(value)).casefold() in _BOX_KEYS:
    value = next(iter(value.values()))
  pairs: list[tuple[object, object]] = []
  if isinstance(value, dict):
    pairs = list(value.items())
  elif isinstance(value, list):
    for entry in value:
      if not isinstance(entry, dict):
        return None
      when = [key for key in entry if key.casefold() in _SECOND_KEYS]
      if len(when) != 1:
        return None
      pairs.append((entry[when[0]], {key: x for key, x in entry.items() if key != when[0]}))
  by_second: dict[str, list[float]] = {}
  for key, corners in pairs:
    second = _seconds(key)
    corner = _box_of(corners)
    if second is None or second != int(second) or corner is None or str(int(second)) in by_second:
      return None
    by_second[str(int(second))] = list(corner)
  return by_second or None


def tube(text: str) -> tuple[answers.Interval, answers.Boxes] | None:
  """As `answers.tube`, with time and boxes as in `interval` and `track`."""
  if strict := answers.tube(text):
    return strict
  value = loose_json(text)
  if not isinstance(value, dict):
    return None
  when = [key for key in value if key.casefold() in _TIME_KEYS]
  where = [key for key in value if key.casefold() in _BOX_KEYS]
  if len(value) != 2 or len(when) != 1 or len(where) != 1:
    return None
  ends = _interval_of({"time": value[when[0]]})
  boxes = _boxes_of(value[where[0]])
  return answers.as_tube({"time": list(ends), "boxes": boxes}) if ends and boxes else None

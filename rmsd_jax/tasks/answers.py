"""What the tasks measure: readers of answers, and metrics in [0, 1] on what they read.

A reader (`option_letter`, `number`, `interval`, `box`) takes the text of an answer and gives a
value, or None for whatever is not exactly that: it never raises, never guesses, and its cost is
bounded whatever a model writes. A metric takes two values and gives a float in [0, 1].
Sources: R-MSD (arXiv 2603.11423) names the metric of each task; details are ours where noted.
"""

import decimal
import functools
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, cast

import jiwer

MAX_CHARS = 4_000  # a longer number or JSON answer is refused unread
MAX_WORDS = 400  # of a text that is aligned with another
MAX_MARKS = 30  # on one letter, as in Unicode's stream-safe form; more make normalising quadratic
MAX_BRACKETS = 256  # opening brackets of a JSON answer; bounds its nesting as well
MAX_TRACKED = 32  # boxes of a tracking answer (OneThinker, arXiv 2512.03043)

Interval = tuple[float, float]  # start, end in seconds
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in thousandths of the picture
Boxes = dict[int, Box]  # by second of the clip

_LABEL = re.compile(r"(?:\(([A-Za-z])\)[.:]?|([A-Za-z])(?:[.:)]+|\Z))\s*(.*)", re.DOTALL)
_NUMBER = re.compile(
  r"[+-]?(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
)

_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_UNSEEN = frozenset("Zs Zl Zp Cc Cf Mn Mc Me".split())  # spaces, controls, marks alone
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"  # letters and symbols that show nothing


def split_label(text: str) -> tuple[str, str] | None:
  """Splits "B. two cats" into ("B", "two cats"); None where the text has no option label.

  A label is one letter as "B", "(B)", "B.", "B)" or "B:"; a bare letter must be the whole text,
  so that "A cat" has no label. The letter is given in upper case, and what follows it in lower
  case, with runs of white space as one space and without a final full stop.
  """
  match = _LABEL.fullmatch(text.strip())
  if match is None:
    return None
  letter = (match[1] or match[2]).upper()
  return letter, " ".join(match[3].casefold().split()).rstrip(". ")


def option_letter(answer_text: str, options: Sequence[str]) -> str | None:
  """The letter that a multiple-choice answer names, in upper case, or None.

  The one normaliser of option letters (our decision). Accepted is a label as in `split_label`,
  alone or followed by the text of the very option it labels: with options "A. cat" and "B. dog",
  "A", "a", "(A)", "A." and "A. cat" are A. Refused are letters that no option has, "A. dog",
  "A or B", "A, B", "the answer is A" and "cat".
  """
  texts = dict(filter(None, map(split_label, options)))
  label = split_label(answer_text)
  if label is None or label[0] not in texts:
    return None
  letter, text = label
  return letter if text in ("", texts[letter]) else None


def number(text: str) -> float | None:
  """The number that a text consists of, or None.

  A decimal number in ASCII digits (a typographic minus is read as "-"), with or without an
  exponent; commas may stand between groups of three digits, and only there: "1,234.5" is a
  number, "1,23" and "0,123" are not. Units, currencies, NaN, infinity and numbers too large for
  a float are refused.
  """
  text = text.strip().replace("\u2212", "-")
  if len(text) > MAX_CHARS or _NUMBER.fullmatch(text) is None:
    return None
  return _finite(float(text.replace(",", "")))


def strict_json(text: str) -> object | None:
  """The JSON value in a text, every number a float; None unless it is strictly JSON and small.

  Refused are texts of more than MAX_CHARS characters or MAX_BRACKETS opening brackets, NaN and
  Infinity, and objects that give one key twice (a way to answer twice). Numbers beyond the range
  of a float become infinite: readers check.
  """
  if len(text) > MAX_CHARS or text.count("[") + text.count("{") > MAX_BRACKETS:
    return None
  try:
    return json.loads(
      text, parse_int=float, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
    )
  except ValueError:  # json.JSONDecodeError is one
    return None


def interval(text: str) -> Interval | None:
  """(start, end) in seconds from exactly `{"time": [start, end]}`, 0 <= start < end, or None."""
  return as_interval(strict_json(text))


def as_interval(value: object) -> Interval | None:
  """The same from decoded JSON. Booleans are not numbers, and the object has no other key."""
  ends = _numbers(value, "time", 2)
  if ends is None or not 0 <= ends[0] < ends[1]:
    return None
  return cast(Interval, ends)


def box(text: str) -> Box | None:
  """(x1, y1, x2, y2) from exactly `{"boxes": [x1, y1, x2, y2]}`, or None.

  Coordinates are relative, 0 to 1000 from the top left, with x1 < x2 and y1 < y2.
  """
  return as_box(strict_json(text))


def as_box(value: object) -> Box | None:
  """The same from decoded JSON."""
  corners = _numbers(value, "boxes", 4)
  if corners is None:
    return None
  x1, y1, x2, y2 = corners
  return cast(Box, corners) if 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000 else None


def track(text: str) -> Boxes | None:
  """The boxes of exactly `{"boxes": {"0": [x1, y1, x2, y2], ..}}`, or None; keys are seconds.

  1 to MAX_TRACKED boxes as in `box`; a key is a whole number as JSON writes it, so that no second
  can be given twice ("1" and "01").
  """
  return as_track(strict_json(text))


def as_track(value: object) -> Boxes | None:
  """The same from decoded JSON."""
  if not isinstance(value, dict) or set(value) != {"boxes"}:
    return None
  boxes = _boxes(value["boxes"])
  return boxes if boxes and len(boxes) <= MAX_TRACKED else None


def tube(text: str) -> tuple[Interval, Boxes] | None:
  """Interval and boxes of exactly `{"time": [start, end], "boxes": {"3": [..], ..}}`, or None."""
  return as_tube(strict_json(text))


def as_tube(value: object) -> tuple[Interval, Boxes] | None:
  """The same from decoded JSON."""
  if not isinstance(value, dict) or set(value) != {"time", "boxes"}:
    return None
  ends = as_interval({"time": value["time"]})
  boxes = _boxes(value["boxes"])
  return (ends, boxes) if ends and boxes else None


def _boxes(value: object) -> Boxes | None:
  """Boxes by second, or None where a key is no second or a box none."""
  if not isinstance(value, dict):
    return None
  # Six digits are eleven days: no clip has more seconds.
  seconds = [int(key) for key in value if re.fullmatch(r"0|[1-9][0-9]{0,5}", key)]
  boxes = [as_box({"boxes": corners}) for corners in value.values()]
  if len(seconds) < len(value) or None in boxes:
    return None
  return dict(zip(seconds, cast(list[Box], boxes), strict=True))


def numeric_accuracy(
  a: float, b: float, *, eps_abs: float = 0.0, eps_rel: float = 0.0, decimals: int | None = None
) -> float:
  """1.0 where `a` is as good as the ground truth `b`, else 0.0.

  abs(a - b) <= max(eps_abs, eps_rel * abs(b)), with eps_abs in the unit of the numbers and eps_rel
  a share of the ground truth. With both 0: equality after rounding to 2 decimals (our decision), or
  to `decimals` where the truth states its precision. Rounded are the decimal numbers as they are
  written, half away from zero: 0.125 is 0.13.
  """
  if eps_abs == 0 and eps_rel == 0:
    places = 2 if decimals is None else decimals
    return float(_rounded(a, places) == _rounded(b, places))
  # Of the numbers as they are written, too: 0.3 is within 0.1 of 0.2.
  error = abs(Fraction(repr(a)) - Fraction(repr(b)))
  # Fractions are exact, infinity has none: with it every number is near enough.
  return float(error <= max(_share(eps_abs), _share(eps_rel) * abs(Fraction(repr(b)))))


def _rounded(value: float, places: int) -> decimal.Decimal:
  step = decimal.Decimal(1).scaleb(-places)
  # As many digits as a float can have before its point and behind it.
  return decimal.Decimal(repr(value)).quantize(
    step, decimal.ROUND_HALF_UP, context=decimal.Context(prec=400 + places)
  )


def _share(eps: float) -> Fraction | float:
  return eps if math.isinf(eps) else Fraction(repr(eps))


def mean_relative_accuracy(prediction: float, truth: float) -> float:
  """Share of the thresholds theta = 0.50, 0.55 .. 0.95 with abs(p - t) / abs(t) < 1 - theta.

  The measure of VSI-Bench (arXiv 2412.14171), of the numbers as they are written: exact fractions,
  multiplied out to 20 * abs(p - t) < k * abs(t) for k = 1 .. 10, so that no rounding decides a case
  on the edge. For t = 0, where the relative error is undefined, only p = 0 scores (our decision).
  """
  p = Fraction(repr(float(prediction)))
  t = Fraction(repr(float(truth)))
  if t == 0:
    return float(p == 0)
  error = 20 * abs(p - t)
  return sum(error < k * abs(t) for k in range(1, 11)) / 10


def ocr_accuracy(hypothesis: str, truth: str) -> float:
  """clip(1 - word error rate, 0, 1) of a transcript. Words are split at white space; case counts.

  Both are compared in Unicode's composed form (NFC) and without characters that take no place, such
  as zero-width spaces: the same letters are the same text. A transcript with twice the words of the
  truth, or more, has an error rate of at least 1 and is not aligned at all, which bounds the cost;
  nor is one of many times its characters (`transcribed`). An empty truth matches only an empty
  transcript (a pool never has one).
  """
  if not transcribed(hypothesis, truth):
    return 0.0
  truth_words, words = (composed(text).split() for text in (truth, hypothesis))
  if not truth_words:
    return float(not words)
  if len(words) >= 2 * len(truth_words):
    return 0.0
  return min(1.0, max(0.0, 1.0 - jiwer.wer(" ".join(truth_words), " ".join(words))))


def transcribed(hypothesis: str, truth: str) -> bool:
  """Whether a text is short enough to be a transcript; asked before anything reads all of it."""
  return len(hypothesis) <= 4 * len(truth) + MAX_CHARS


def composed(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
  """A text in NFC or NFKC without invisible characters, in linear time."""
  if text.isascii():
    return text
  kept = []
  marks = 0
  for letter in without_invisible(text):
    marks = marks + 1 if unicodedata.category(letter)[0] == "M" else 0
    if marks <= MAX_MARKS:
      kept.append(letter)
  return unicodedata.normalize(form, "".join(kept))


def visible(text: str) -> bool:
  """Whether there is anything to see: not white space, marks without a letter, fillers alone."""
  return any(
    unicodedata.category(letter) not in _UNSEEN and letter not in _FILLERS for letter in text
  )


def without_invisible(text: str) -> str:
  """Without what takes no place: zero-width spaces, soft hyphens, marks of direction."""
  return text if text.isascii() else _INVISIBLE.sub("", text)


def temporal_iou(a: Interval, b: Interval) -> float:
  """Intersection over union of two intervals (start, end) with start < end."""
  overlap = min(a[1], b[1]) - max(a[0], b[0])
  if overlap <= 0:
    return 0.0
  return overlap / (max(a[1], b[1]) - min(a[0], b[0]))  # what overlaps has its hull as its union


def box_iou(a: Box, b: Box) -> float:
  """Intersection over union of two boxes (x1, y1, x2, y2) with x1 < x2 and y1 < y2."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  if width <= 0 or height <= 0:
    return 0.0
  shared = width * height
  union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
  return shared / union if union > 0 else 0.0  # 0 where the areas underflow


def mean_box_iou(boxes: Boxes, truth: Boxes) -> float:
  """Mean IoU over the seconds of the ground truth. A second that is not given counts 0, so leaving
  out the hard ones gains nothing; a second that the truth lacks counts nothing."""
  shared = truth.keys() & boxes.keys()
  return sum(box_iou(boxes[second], truth[second]) for second in shared) / len(truth)


def tube_iou(a: tuple[Interval, Boxes], b: tuple[Interval, Boxes]) -> float:
  """0.5 temporal IoU + 0.5 mean box IoU over the seconds of the ground truth b."""
  return 0.5 * temporal_iou(a[0], b[0]) + 0.5 * mean_box_iou(a[1], b[1])


def covered(boxes: Boxes, truth: Boxes) -> float:
  """Share of the ground truth's seconds for which a box is given."""
  return len(truth.keys() & boxes.keys()) / len(truth)


def rouge_l(hypothesis: str, truth: str) -> float:
  """ROUGE-L F-measure, as in the package rouge_score without stemming.

  Logged for open-ended answers and never part of their quality: R-MSD found that lexical overlap
  punishes right answers in other words. Only the first MAX_WORDS words of each text count, since
  the alignment is quadratic. The package keeps ASCII letters and digits alone, so a text
  in another script scores 0.
  """
  first = lambda text: " ".join(text[:MAX_CHARS].split()[:MAX_WORDS])
  score = _rouge().score(first(truth), first(hypothesis))
  return float(score["rougeL"].fmeasure)


@functools.cache
def _rouge():
  from rouge_score import rouge_scorer  # here, as it imports nltk, which takes seconds

  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _numbers(value: object, key: str, count: int) -> tuple[float, ...] | None:
  """The `count` finite numbers of `{key: [...]}`, or None."""
  if not isinstance(value, dict) or set(value) != {key}:
    return None
  items = value[key]
  if not isinstance(items, list) or len(items) != count:
    return None
  numbers = tuple(as_number(item) for item in items)
  return None if None in numbers else cast(tuple[float, ...], numbers)


def as_number(value: object) -> float | None:
  """A finite float from a decoded JSON number; None for all else, booleans among it."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    return _finite(float(value))
  except OverflowError:  # an int beyond the range of a float
    return None


def _refuse_constant(name: str) -> float:
  raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
  items = dict(pairs)
  if len(items) < len(pairs):
    raise ValueError("a key is given twice")
  return items

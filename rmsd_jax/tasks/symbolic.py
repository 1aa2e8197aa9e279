"""Whether two mathematical results are the same: by words, as numbers, or by math-verify.

SymPy can be sent into computations that neither end nor can be interrupted (9^{9^9}), so what a
model wrote is judged in a process of its own, which ends after SECONDS of work, and only if it is
made of harmless pieces; anything else must equal the ground truth as text. What took too long is
not asked again: rollouts repeat each other.
"""

import atexit
import functools
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
from fractions import Fraction

from rmsd_jax.tasks import answers, notation, numerals, units, wording

SECONDS = 2.0  # of CPU time for one question, on a busy machine too; the process is then replaced
WAIT_SECONDS = 60.0  # for its verdict, by the clock
START_SECONDS = 300.0  # for the process to import SymPy, which takes some 4 s of CPU time
MAX_CHARS = notation.MAX_CHARS
MAX_EXPONENT = 20
MAX_BRACKETS = 20
MAX_TERMS = 2_000  # of a formula whose brackets are multiplied out
MAX_ROOTS = 4  # inside each other
MEMORY = 4 << 30  # bytes of address space for the process
TOLERANCE = 1e-6  # relative, between numbers

_COMMANDS = """frac dfrac tfrac sqrt pi cdot times div pm le leq ge geq ne neq infty cup cap in left
right text mathrm sin cos tan cot sec csc arcsin arccos arctan log ln exp circ degree alpha beta
gamma delta theta lambda mu sigma phi omega begin end pmatrix bmatrix""".split()
_HARMLESS = re.compile(
  r"(?:[0-9A-Za-z \n.,;:+\-*/=<>()\[\]{}|^_%&']|\\(?:" + "|".join(_COMMANDS) + r")(?![A-Za-z])"
  r"|\\[{}%,;!: \\])*"
)
_TEXT = r"\\(?:text|mathrm)\s*\{"
_WORDS = re.compile(_TEXT + r"[^{}]*\}|\\(?:begin|end)\{[pb]matrix\}")
_BOMBS = re.compile(
  r"[0-9]{16}|[0-9]\s*[_']|(?<![\\A-Za-z])[A-Za-z]{4}"  # long numbers, their bases, words
  r"|[0-9.]\s*[eE]\s*[+\-]?[0-9]{3}"  # 9E999
  r"|\*\*|\^\s*(?:[0-9]+|[A-Za-z]|\\[A-Za-z]+)\s*\^|\^\s*[{(][^{}()]*[\^{(]"  # powers of powers
)
_PARTS = re.compile(  # brackets, with the power of a closing one, and signs
  r"(\\?[{(\[])|(\\?[})\]])(?:\s*\^\s*\{?\s*([0-9]{1,3})(?:\s*\})?)?|([+\-])"
)
_EXPONENT = re.compile(r"([)}\]])?\s*\^\s*[{(]?\s*[+\-]?\s*([0-9]+)")


def equal(answer: str, truth: str, *, eps_abs: float = 0.0, eps_rel: float = 0.0) -> bool:
  """Whether an answer gives the value of the ground truth; never raises.

  Both are brought to one spelling (`notation.plain`) and taken apart (`notation.taken_apart`):
  - words as text, of any case; letters are no product of variables;
  - bare lists, points and intervals value by value, as many and in their order; sets, values
    joined by "or" and the solutions of one unknown in any order; "x = 3, y = 4" by name;
  - a value may be given a name ("x = 3" is "3"), but not that of another unknown;
  - a unit, where both have one, must measure the same thing and counts with its size (1 m is
    100 cm); where one side alone has one it is left out; 50% is 0.5, not 50;
  - numbers that are whole exactly, others within a relative tolerance of 1e-6 and the decimals of
    the coarser one, or within `eps_abs` and `eps_rel` where they are given, as in
    `answers.numeric_accuracy`; other formulas by math-verify, for which R and r are two.
  """
  ours = notation.plain(answer)
  theirs = notation.plain(truth)
  if not answers.visible(ours):
    return False
  # `plain` leaves a text of this length as it is; nothing finer can be asked of it.
  if max(len(ours), len(theirs)) > notation.MAX_WORDS:
    return ours == theirs
  # Cheap answers first: most right ones are the truth letter by letter, and need no judge.
  if notation.compact(ours) == notation.compact(theirs):
    return True
  said = wording.words(ours)
  wanted = wording.words(theirs)
  if said and said == wanted:
    return True
  if max(len(ours), len(theirs)) > MAX_CHARS:
    return False
  return _same(notation.taken_apart(ours), notation.taken_apart(theirs), (eps_abs, eps_rel))


def text_only(truth: str) -> bool:
  """Whether a ground truth, or a part of it, can only be compared as text."""
  if len(plain := notation.plain(truth)) > MAX_CHARS:
    return True
  return any(
    numerals.literal(value.text) is None
    and (wording.words(value.text) is not None or not harmless(value.text))
    for value in _values(notation.taken_apart(plain))
  )


_Side = notation.Value | notation.Listed


def _values(side: _Side) -> list[notation.Value]:
  """All values of a result, whatever lists they stand in."""
  if isinstance(side, notation.Value):
    return [side]
  return [value for part in side.parts for value in _values(part)]


def _same(ours: _Side, theirs: _Side, eps: tuple[float, float]) -> bool:
  """`ours` is the answer's."""
  # The truth means its value, whatever it calls it; a word of the answer's own may deny its value.
  if not wording.is_heading(ours.name) and ours.name.casefold() != theirs.name.casefold():
    return False
  if isinstance(ours, notation.Listed) and isinstance(theirs, notation.Value):
    ours = ours.product or ours
  if isinstance(ours, notation.Value) and isinstance(theirs, notation.Value):
    return _same_value(ours, theirs, eps)
  if isinstance(ours, notation.Value) or isinstance(theirs, notation.Value):
    return False
  if len(ours.parts) != len(theirs.parts) or ours.brackets != theirs.brackets:
    return False
  if ours.joint and theirs.joint and ours.joint != theirs.joint:
    return False
  by_name = [_by_name(side) for side in (ours, theirs)]
  if all(by_name) and by_name[0].keys() == by_name[1].keys():
    return all(_same_value(value, by_name[1][name], eps) for name, value in by_name[0].items())
  # What is a set, in the truth's eyes; or values that the answer itself calls alternatives, which
  # those of several unknowns cannot be.
  if theirs.ordered and (ours.ordered or ours.brackets or by_name[1]):
    return all(_same(a, b, eps) for a, b in zip(ours.parts, theirs.parts, strict=True))
  return _in_any_order(list(ours.parts), list(theirs.parts), eps)


def _in_any_order(ours: list[_Side], theirs: list[_Side], eps: tuple[float, float]) -> bool:
  """Each part of the one has its own of the other."""
  for part in ours:
    place = next((i for i, other in enumerate(theirs) if _same(part, other, eps)), None)
    if place is None:
      return False
    theirs.pop(place)
  return True


def _by_name(side: notation.Listed) -> dict[str, notation.Value]:
  """The values of "x = 3, y = 4" by their names, {} where not each has one of its own."""
  named = {part.name: part for part in side.parts if isinstance(part, notation.Value) and part.name}
  return named if len(named) == len(side.parts) else {}


def _same_value(ours: notation.Value, theirs: notation.Value, eps: tuple[float, float]) -> bool:
  names = {value.name for value in (ours, theirs) if wording.is_symbol(value.name)}
  # y may be f(x), but neither z nor g(x).
  if len(names) > 1 and sum(name.endswith(")") for name in names) != 1:
    return False
  ratio = Fraction(1)
  if ours.unit and theirs.unit and not units.alike(ours.unit, theirs.unit):
    return False
  if ours.unit and theirs.unit:
    ratio = ours.unit.factor / theirs.unit.factor
  elif units.PERCENT in (ours.unit, theirs.unit):  # a number, not something measured
    ratio = (ours.unit or units.NONE).factor / (theirs.unit or units.NONE).factor
  a = numerals.literal(ours.text)
  b = numerals.literal(theirs.text)
  if a is not None and b is not None:
    # In another unit the decimals that were written say nothing about the precision.
    return _same_number((a[0] * ratio, a[1] if ratio == 1 else None), b, eps)
  if numerals.figures(ours.text) or numerals.figures(theirs.text):
    return ratio == 1 and _same_figures(ours.text, theirs.text)
  # Before the judge, for which "cat" would be the product c * a * t.
  said = wording.words(ours.text)
  wanted = wording.words(theirs.text)
  if said is not None or wanted is not None:
    # H_{2}O is H2O, which one of the two may have written as a formula.
    a, b = (re.sub(r"[_{}\s]", "", wording.folded(value.text)) for value in (ours, theirs))
    return ratio == 1 and (said == wanted or (None in (said, wanted) and a == b))
  left = ours.text
  right = theirs.text
  if "=" in left + right:
    equations = ours.whole.count("=") == theirs.whole.count("=") == 1
    left, right = (v.whole if equations else _last_side(v.text) for v in (ours, theirs))
    if not equations and "=" in left + right:
      return False
  if ratio != 1:
    left = f"\\frac{{{ratio.numerator}}}{{{ratio.denominator}}} ({left})"
  if not harmless(left) or not harmless(right):
    return notation.compact(left) == notation.compact(right)
  return _judged(_marked(left), _marked(right))


# Marks that the judge drops, and symbols that it keeps apart: derivatives and images of points, the
# transpose (or a power T), the inverse of a function.
_PRIMED = re.compile(r"(?<=[A-Za-z)}])'{1,3}")
_TRANSPOSED = re.compile(r"\^\s*(?:T(?![A-Za-z])|\{\s*(?:T|\\text\{\s*T\s*\})\s*\})")
_INVERSE = re.compile(r"(?<![A-Za-z\\])([fgh])\s*\^\s*\{\s*-1\s*\}(?=\s*\()")


def _marked(text: str) -> str:
  """A formula whose primes, transposes and inverse functions are symbols of their own."""
  primes = lambda match: f"_{{99{len(match[0])}}}"
  text = _INVERSE.sub(r"\1_{989}", _TRANSPOSED.sub("^{t_{990}}", text))
  return _PRIMED.sub(primes, text)


def _last_side(text: str) -> str:
  """The 5 of "a + b = 5", "2 + 3 = 5", "S = ab/2 = 5"; the whole of other equations, such as
  "x + 1 = 5" and "6 = 5", which do not give a value."""
  *sides, last = text.split("=")
  for i, side in enumerate(sides):
    unknown = re.search(r"(?<![\\A-Za-z])[A-Za-z]", side)
    given = i or not re.search(r"[0-9]|\A\s*-", side) if unknown else _equal_sides(side, last)
    if not given:
      return text
  return last.strip()


def _equal_sides(a: str, b: str) -> bool:
  return harmless(a) and harmless(b) and "=" not in a + b and _judged(a, b)


def _same_figures(ours: str, theirs: str) -> bool:
  """Times, scores and ranges, by their numbers; a ratio may be written as a fraction."""
  a, b = map(numerals.figures, (ours, theirs))
  if a and b:
    return a == b
  c, d = map(numerals.quotient, (ours, theirs))
  return c is not None and c == d


def _same_number(
  a: tuple[Fraction, int | None], b: tuple[Fraction, int | None], eps: tuple[float, float]
) -> bool:
  """Two exact values with their decimals (None: a fraction, which may have no end)."""
  error = abs(a[0] - b[0])
  size = abs(b[0])
  if any(eps):
    eps_abs, eps_rel = (Fraction(str(bound)) for bound in eps)
    return error <= max(eps_abs, eps_rel * size)
  if not error:
    return True
  endless = None in (a[1], b[1])
  # A whole number is meant exactly, and these two differ.
  if a[0].denominator == 1 or b[0].denominator == 1:
    return False
  decimals = min(a[1] or 0, b[1] or 0)
  near = error <= Fraction(str(TOLERANCE)) * size
  return near and (endless or 2 * error < Fraction(10) ** -decimals)


def harmless(text: str) -> bool:
  """Made of few, known pieces, without words and with small numbers in exponents."""
  if len(text) > MAX_CHARS or sum(map(text.count, "[({|")) > MAX_BRACKETS:
    return False
  if not _HARMLESS.fullmatch(text) or _BOMBS.search(_WORDS.sub("", text)):
    return False
  if _terms(text) > MAX_TERMS or _roots(text) > MAX_ROOTS:
    return False
  powers = [(bool(bracket), int(power)) for bracket, power in _EXPONENT.findall(text)]
  # Powers of brackets multiply where one stands in the other: ((x^9)^9)^9 is x^729.
  of_brackets = math.prod(max(power, 1) for bracket, power in powers if bracket)
  return max([of_brackets, *(power for _, power in powers)]) <= MAX_EXPONENT


def _terms(text: str) -> int:
  """An upper bound of the terms of a formula whose brackets are multiplied out.

  n terms to the power k have C(n + k - 1, k). Every bracket counts as a factor of its term.
  """
  sums = [0]  # by depth: the terms until here
  factors = [1]  # by depth: the terms that the one being read will expand to
  for opened, closed, power, sign in _PARTS.findall(text):
    if opened:
      sums.append(0)
      factors.append(1)
    elif closed and len(sums) > 1:
      inside = sums.pop() + factors.pop()
      k = int(power or 1)
      # Beyond MAX_TERMS the formula is refused whatever its power is, and to compute these
      # binomials would itself take long.
      factors[-1] *= math.comb(inside + k - 1, k) if inside <= MAX_TERMS else inside
    elif sign:
      sums[-1] += factors[-1]
      factors[-1] = 1
  return sum(sums) + sum(factors)


def _roots(text: str) -> int:
  """How deep roots stand inside each other: what is below them is squared as often."""
  deepest = 0
  waits = False  # whether the next bracket belongs to a root
  inside = []  # of each open bracket, whether it is a root's
  for root, bracket in re.findall(r"(\\sqrt)|([{(\[\])}])", text):
    if root:
      waits = True
    elif bracket in "{([":
      inside.append(waits and bracket != "[")
      waits &= bracket == "["  # the order of the root comes first
    elif inside:
      inside.pop()
    deepest = max(deepest, sum(inside))
  return deepest


@functools.lru_cache(maxsize=20_000)
def _judged(answer: str, truth: str) -> bool:
  """The judge's verdict; False, and no second try in this process, where there was none."""
  try:
    return _judge_of(os.getpid()).ask(answer, truth)
  except TimeoutError:
    return False


@functools.cache
def _judge_of(process: int) -> "_Judge":
  del process  # a fork does not share its parent's pipes
  return _Judge()


class _Judge:
  """A child process that compares formulas; started when first asked, and again when it hung."""

  def __init__(self):
    self._child = None
    self._lock = threading.Lock()
    atexit.register(self.close)

  def ask(self, answer: str, truth: str) -> bool:
    """Whether they are the same; TimeoutError where the child fails or works over SECONDS."""
    # Threads share the one pipe, and an answer is told from another by its turn alone.
    with self._lock:
      if self._child is None or self._child.poll() is not None:
        self.close()  # the pipes of one that ended by itself
        self._start()
      try:
        self._child.stdin.write(json.dumps([answer, truth]).encode() + b"\n")
        self._child.stdin.flush()
        verdict = self._line(WAIT_SECONDS)
      except BrokenPipeError:
        verdict = None
      # A verdict that comes too late must not be read as that on the next question.
      if verdict not in (b"true\n", b"false\n"):
        self.close()
        raise TimeoutError(f"no verdict on {answer!r} and {truth!r}")
      return verdict == b"true\n"

  def close(self) -> None:
    if self._child is not None:
      self._child.kill()
      self._child.communicate()
      self._child = None

  def _start(self) -> None:
    self._child = subprocess.Popen(
      # not -m: the package imports this module, which would then run a second time
      [sys.executable, "-c", "from rmsd_jax.tasks import symbolic; symbolic._serve()"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if self._line(START_SECONDS) != b"ready\n":
      self.close()
      raise RuntimeError("the process that compares formulas does not start; is math-verify there?")

  def _line(self, seconds: float) -> bytes | None:
    ready, _, _ = select.select([self._child.stdout], [], [], seconds)
    return self._child.stdout.readline() if ready else None


def _serve() -> None:
  """The child: [answer, truth] a line in, true or false a line out."""
  import logging
  import resource
  import signal

  import latex2sympy2_extended
  import math_verify
  import sympy
  from latex2sympy2_extended.latex2sympy2 import ConversionConfig

  # A process that has taken a profile ignores the signal of the time limit, and so would its child.
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  logging.disable(logging.CRITICAL)
  # What the libraries print must not stand among the verdicts.
  verdicts = sys.stdout
  sys.stdout = sys.stderr
  # Units were taken off before: the library would take variables for some, and 3ab for 3.
  config = latex2sympy2_extended.NormalizationConfig(malformed_operators=True, nits=True)
  # By default R and r are one symbol, and the library has no argument for it.
  math_verify.parser.latex2sympy = functools.partial(
    latex2sympy2_extended.latex2sympy, conversion_config=ConversionConfig(lowercase_symbols=False)
  )
  # One formula, whole: nothing is searched for in a text.
  read = functools.partial(
    math_verify.parse,
    extraction_config=[math_verify.LatexExtractionConfig(normalization_config=config)],
    fallback_mode="no_fallback",
    extraction_mode="first_match",
    parsing_timeout=None,
  )
  for pair in (("$(x+1)^2$", "$x^2+2x+1$"), ("$\\sqrt{8}$", "$[1,2)$")):  # slow the first time
    math_verify.verify(*map(read, pair), timeout_seconds=None)
  print("ready", file=verdicts, flush=True)
  for line in sys.stdin:
    # CPU time, not the clock: on a busy machine the same formula must not fail now and then.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends this process
    answer, truth = (read(f"${text}$") for text in json.loads(line))
    same = bool(answer and truth)
    same = same and math_verify.verify(truth, answer, timeout_seconds=None)
    sides = [side[0] for side in (answer, truth) if side and isinstance(side[0], sympy.Expr)]
    if same and len(sides) == 2 and all(side.is_number for side in sides):
      # The library compares six decimals: all small numbers would be equal.
      a, b = (sympy.N(side.doit()) for side in sides)
      same = bool(abs(b) > 1e-3) or bool(abs(a - b) <= TOLERANCE * abs(b))
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps(bool(same)), file=verdicts, flush=True)

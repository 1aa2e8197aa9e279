"""Whether two mathematical results are the same: by their text, as numbers, or by math-verify.

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

from rmsd_jax.tasks import answers

SECONDS = 2.0  # of CPU time for one question, on a busy machine too; the process is then replaced
WAIT_SECONDS = 60.0  # for its verdict, by the clock
START_SECONDS = 300.0  # for the process to import SymPy, which takes some 4 s of CPU time
MAX_CHARS = 200
MAX_EXPONENT = 20
MAX_BRACKETS = 20
MAX_TERMS = 2_000  # of a formula whose brackets are multiplied out
MAX_ROOTS = 4  # inside each other
MEMORY = 4 << 30  # bytes of address space for the process
TOLERANCE = 1e-6  # relative, between numbers

_WRAPPINGS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}"))
_SCIENTIFIC = re.compile(
  r"(?:(.{1,40}?)\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*\{?\s*([+\-]?[0-9]{1,3})\s*\}?"
)

_COMMANDS = """frac dfrac tfrac sqrt pi cdot times div pm le leq ge geq ne neq infty cup cap in left
right text mathrm sin cos tan cot sec csc arcsin arccos arctan log ln exp circ degree alpha beta
gamma delta theta lambda mu sigma phi omega begin end pmatrix bmatrix""".split()
_HARMLESS = re.compile(
  r"(?:[0-9A-Za-z \n.,;:+\-*/=<>()\[\]{}|^_%&']|\\(?:" + "|".join(_COMMANDS) + r")(?![A-Za-z])"
  r"|\\[{}%,;!: \\])*"
)
_TEXT = r"\\(?:text|mathrm)\s*\{"
_WORDS = re.compile(_TEXT + r"[^{}]*\}|\\(?:begin|end)\{[pb]matrix\}")
_WORD = re.compile(_TEXT + r"([^{}]*)\}")  # alone
_UNIT = re.compile(  # behind a number, a letter or a bracket, with its power
  r"(?<=[0-9A-Za-z})\]])(?:\\[,;: !])?\s*"
  + _TEXT
  + r"[^{}0-9]*\}(?:\s*\^\s*(?:\{[+\-]?[0-9]\}|[0-9]))?"
)
_LISTED = re.compile(_TEXT + r"\s*,?\s*(?:and|or)\s*,?\s*\}")
_BOMBS = re.compile(
  r"[0-9]{16}|(?<![\\A-Za-z])[A-Za-z]{4}"  # long numbers, words
  r"|[0-9.]\s*[eE]\s*[+\-]?[0-9]{3}"  # 9E999
  r"|\*\*|\^\s*(?:[0-9]+|[A-Za-z]|\\[A-Za-z]+)\s*\^|\^\s*[{(][^{}()]*[\^{(]"  # powers of powers
)
_MIXED = re.compile(r"([+\-]?)([0-9]{1,9})\s+([0-9]{1,9})/([0-9]{1,9})")  # 1 1/2
_PARTS = re.compile(  # brackets, with the power of a closing one, and signs
  r"(\\?[{(\[])|(\\?[})\]])(?:\s*\^\s*\{?\s*([0-9]{1,3})(?:\s*\})?)?|([+\-])"
)
_EXPONENT = re.compile(r"([)}\]])?\s*\^\s*[{(]?\s*[+\-]?\s*([0-9]+)")


def equal(answer: str, truth: str) -> bool:
  """Whether an answer gives the value of the ground truth; never raises.

  Texts are compared after removing dollar signs, `\\boxed`, a final full stop and white space (not
  between digits: 1 1/2 is 3/2). Then, without units, numbers by a relative tolerance of 1e-6 and
  other formulas by math-verify: as sets where they list several values ("3, 4" is "4, 3"), and by
  their value where they are equations ("x = 3" is "3").
  """
  ours, theirs = _improper(plain(answer)), _improper(plain(truth))
  if not ours or _compact(ours) == _compact(theirs):
    return bool(ours)
  ours, theirs = _bare(ours), _bare(theirs)
  a, b = _number(ours), _number(theirs)
  if a is not None and b is not None:
    return abs(a - b) <= TOLERANCE * abs(b)
  if not harmless(ours) or not harmless(theirs):
    return False
  return _judged(ours, theirs)


def plain(text: str) -> str:
  """A result without its wrapping: $..$, \\(..\\), \\boxed{..}, a final full stop."""
  text = text.strip().rstrip(". ")
  if len(text) > answers.MAX_CHARS:
    return text
  for opening, closing in _WRAPPINGS:
    if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
      text = text[len(opening) : -len(closing)].strip().rstrip(". ")
  word = _WORD.fullmatch(text)
  return word[1].strip() if word else text


def _bare(text: str) -> str:
  """Without units: 2\\text{ cm} is 2, and 30\\text{ or }150 is 30, 150. math-verify would leave out
  all that stands between the first word and the last."""
  if len(text) > MAX_CHARS:
    return text
  return _UNIT.sub("", _LISTED.sub(", ", text)).strip()


def _improper(text: str) -> str:
  """A mixed number as a fraction: 1 1/2 is 3/2; anything else as it is."""
  if not (found := _MIXED.fullmatch(text)):
    return text
  whole, over, under = (int(part) for part in found.groups()[1:])
  return f"{found[1]}{whole * under + over}/{under}"


def harmless(text: str) -> bool:
  """Made of few, known pieces, without words and with small numbers in exponents."""
  if len(text) > MAX_CHARS or sum(map(text.count, "[({|")) > MAX_BRACKETS:
    return False
  if not _HARMLESS.fullmatch(text) or _BOMBS.search(_WORDS.sub("", text)):
    return False
  if _terms(text) > MAX_TERMS or _roots(text) > MAX_ROOTS:
    return False
  powers = [(bool(bracket), int(power)) for bracket, power in _EXPONENT.findall(text)]
  of_brackets = math.prod(max(power, 1) for bracket, power in powers if bracket)
  return max([of_brackets, *(power for _, power in powers)]) <= MAX_EXPONENT


def _terms(text: str) -> int:
  """An upper bound of the terms of a formula whose brackets are multiplied out.

  n terms to the power k have C(n + k - 1, k). Every bracket counts as a factor of its term.
  """
  sums, factors = [0], [1]  # by depth: the terms until here, and those of the term that is read
  for opened, closed, power, sign in _PARTS.findall(text):
    if opened:
      sums.append(0)
      factors.append(1)
    elif closed and len(sums) > 1:
      inside, k = sums.pop() + factors.pop(), int(power or 1)
      factors[-1] *= math.comb(inside + k - 1, k) if inside <= MAX_TERMS else inside
    elif sign:
      sums[-1] += factors[-1]
      factors[-1] = 1
  return sum(sums) + sum(factors)


def _roots(text: str) -> int:
  """How deep roots stand inside each other: what is below them is squared as often."""
  deepest, waits, inside = 0, False, []  # inside: of each open bracket, whether it is a root's
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


def _number(text: str) -> float | None:
  """A number as in `metrics.number`, or with a power of ten: 1.6 \\times 10^{-19}."""
  found = _SCIENTIFIC.fullmatch(text) if len(text) <= MAX_CHARS else None
  if not found:
    return answers.number(text)
  return answers.number(f"{found[1] or 1}e{found[2]}")


def _compact(text: str) -> str:
  # White space between digits stays, but where it groups thousands: 1 000 is 1000. So does that
  # after commas which would group thousands without it: 1, 234 is a list.
  if re.fullmatch(r"[1-9][0-9]{0,2}(?:,\s*[0-9]{3})+", text):
    return re.sub(r"\s+", " ", text)
  text = re.sub(r"(?<=[0-9])\s+(?=[0-9]{3}(?![0-9]))", "", text)
  return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)


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
    self._child, self._lock = None, threading.Lock()
    atexit.register(self.close)

  def ask(self, answer: str, truth: str) -> bool:
    """Whether they are the same; TimeoutError where the child fails or works over SECONDS."""
    with self._lock:
      if self._child is None or self._child.poll() is not None:
        self._start()
      try:
        self._child.stdin.write(json.dumps([answer, truth]).encode() + b"\n")
        self._child.stdin.flush()
        verdict = self._line(WAIT_SECONDS)
      except BrokenPipeError:
        verdict = None
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

  import math_verify
  import sympy

  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  logging.disable(logging.CRITICAL)
  verdicts, sys.stdout = sys.stdout, sys.stderr
  # One formula, whole: nothing is searched for in a text.
  read = functools.partial(
    math_verify.parse,
    extraction_config=[math_verify.LatexExtractionConfig()],
    fallback_mode="no_fallback",
    extraction_mode="first_match",
    parsing_timeout=None,
  )
  for pair in (("$(x+1)^2$", "$x^2+2x+1$"), ("$\\sqrt{8}$", "$[1,2)$")):  # slow the first time
    math_verify.verify(*map(read, pair), timeout_seconds=None)
  print("ready", file=verdicts, flush=True)
  for line in sys.stdin:
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

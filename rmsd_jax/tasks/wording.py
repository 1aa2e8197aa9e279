"""Which results are words, compared as text, and which names of a value say nothing against it."""

import re

_RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+")
# No product has its number behind its letters: H2O, D3, 3 to 4; 1.6e-19 is a number.
_NUMBER_BEHIND = re.compile(r"(?<![\\A-Za-z])(?!(?<=\d)[eE]\d)[A-Za-z]+\s*\d")
_CHAIN = re.compile(r"([/-])[\s()]*[A-Za-z][\s()]*\1")  # A-C-B, an order rather than a difference
_SYMBOL = re.compile(
  r"[A-Za-z]'{0,3}(?:\([^()]*\))?|[A-Z]{2,3}|\\[a-z]+|m?\\angle[A-Z0-9]+|[A-Za-z]_\w+"
)
# All but the primes of points and functions: A'B'C' is not ABC.
_QUOTES = re.compile(r"[\"“”]|(?<!\b[A-Za-z])(?<!\b[A-Za-z]')'")
# Words that may stand in a name; any other one may deny or change what it names ("half = 12").
_HEADINGS = frozenset(
  """the a an my our so thus hence therefore is are be of in for its final correct right best exact
  answer answers result results value values solution solutions total sum number count amount area
  perimeter circumference length width height depth radius diameter volume surface speed velocity
  distance time duration angle arc side base slope measure size cost price ratio probability degree
  mass weight age mean average median mode range maximum minimum""".split()
)


def words(text: str) -> str | None:
  """A plain text as words, by which it is compared; None where it is a formula.

  Letters alone are words, of any case: "rag", "AB"; but x/y and x-y are formulas. So are runs of
  letters inside a formula that no product of variables is written as: "cat2" is, "2xyz" is not; and
  what has a number behind letters: "3 to 4", "H2O".
  """
  text = re.sub(r"\\(?:begin|end)\{[a-z]*\}", " ", text)
  bare = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
  written = folded(text)
  if written == "n/a":  # not available, rather than n by a
    return written
  letters = re.sub(r"[\s\-,.!?'\"_()/&]", "", bare)
  if len(letters) > 1 and letters.isalpha():
    return None if _of_single_letters(bare) else written
  outside = re.sub(r"\\text\{[^{}]*\}", " ", text)
  for run in _RUN.findall(outside):
    # Three letters in the order of the alphabet are a product (xyz, abc), others a word (cat).
    ascending = all(a < b for a, b in zip(run, run[1:], strict=False))
    if len(run) > 3 or (len(run) == 3 and not ascending):
      return written
  return written if not text.isascii() or _NUMBER_BEHIND.search(outside) else None


def folded(text: str) -> str:
  """A plain text as it is compared with words: of any case, without quotes and stops."""
  bare = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
  return " ".join(_QUOTES.sub("", bare).casefold().split()).rstrip(".!?,; ")


def _of_single_letters(text: str) -> bool:
  """A difference or quotient of variables: x-y, (a-b)/c."""
  letters = re.findall(r"[^\W\d_]+", text)
  return max(map(len, letters)) == 1 and bool(re.search("[/-]", text)) and not _CHAIN.search(text)


def is_symbol(name: str) -> bool:
  """Whether a name is one of mathematics ("x", "AB"), so that another one means something else."""
  return bool(_SYMBOL.fullmatch(name))


def is_heading(name: str) -> bool:
  """Whether a name only says what its value is: "x", "\\angle A", "The area". Any other word, such
  as "not" or "half", may turn it round."""
  if name.casefold() in ("no", "not", "non"):
    return False
  runs = re.findall(r"(?<![\\A-Za-z_])[A-Za-z]{2,}", re.sub(r"_\s*\S+", "", name))
  told = [run for run in runs if not (run.isupper() and len(run) < 4)]
  return all(run.casefold() in _HEADINGS for run in told)

"""Mathematical results: equal in other words, different in spite of looks, and bombs."""

import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.tasks import notation, numerals, symbolic, wording

SAME = [
  ("Even", "even"),
  ("\\text{Yes}", "yes."),
  ("100 cm", "1\\text{ m}"),
  ("12 square centimeters", "12 \\mathrm{~cm}^{2}"),
  ("5 m/s", "5 \\mathrm{~m} / \\mathrm{s}"),
  ("2 hours 30 minutes", "150 min"),
  ("\\$5", "5 dollars"),
  ("0.1", "10%"),
  ("12\u221a3 cm", "12 \\sqrt{3} \\mathrm{~cm}"),
  ("x\u00b2+1", "x^2+1"),
  ("1\u00bd", "3/2"),
  ("3\u00d710\u2074", "30000"),
  ("\u22203 = 50\u00b0", "50"),
  ("(-\u221e,3]\u222a[5,\u221e)", "(-\\infty,3] \\cup [5,\\infty)"),
  ("50.27", "Circumference $=50.27 \\mathrm{~cm}$"),
  ("2x+1 = y", "y=2x+1"),
  ("x=3, y=4", "y=4, x=3"),
  ("x=3 or x=4", "x=4, x=3"),
  ("9007199254740993", "9007199254740993"),
  ("0.333333", "1/3"),
  ("1/2", "\\frac{1}{2}"),
  ("0.5", "\\dfrac{1}{2}"),
  ("$\\frac12$", "0.5"),
  ("(x+1)^2", "x^2+2x+1"),
  ("2\\sqrt{2}", "\\sqrt{8}"),
  ("3,4", "3, 4"),
  ("234, 5", "234,5"),
  ("0,100,200", "0, 100, 200"),
  ("(1, 234)", "(1,  234)"),
  ("\\{2, 1\\}", "\\{1,2\\}"),
  ("x = 3", "3"),
  ("\\boxed{3}", "3"),
  ("\\( 7 \\).", "7"),
  ("1,234", "1234"),
  ("50\\%", "0.5"),
  ("12 \\text{ cm}", "12"),
  ("\\sin(x)^2 + \\cos(x)^2", "1"),
  ("[1, 2)", "[1,2)"),
  ("1.6 \\times 10^{-19}", "1.6e-19"),
  ("$2\\cdot10^3$", "2000"),
  ("10^{-3}", "0.001"),
  ("\\frac{1}{4000}", "0.00025"),
  ("yes", "yes"),
  ("\u56db", "\u56db"),  # not understood, but the same text
  ("5\\text{ m}+100\\text{ m}", "105"),
  ("5, 12", "5\\text{ cm}, 12\\text{ cm}"),
  ("x=3\\text{ cm}, y=4\\text{ cm}", "3, 4"),
  ("30\\text{ or }150", "30, 150"),
  ("12\\text{ cm}^2", "12"),
  ("\\text{Alice}", "Alice"),
  ("3x^2y^3", "3x^{2}y^{3}"),
  ("2^3 \\cdot 3^2", "72"),
  ("30^\\circ, 60^\\circ", "30, 60"),
  ("\\sqrt{3+\\sqrt{5}}", "\\sqrt{\\sqrt{5}+3}"),
]
DIFFERENT = [
  ("gra", "rag"),
  ("on", "no"),
  ("C, B, A", "A, B, C"),
  ("3 ape", "3 pea"),
  ("999999", "1000000"),
  ("1000000.4", "1000000"),
  ("9007199254740993", "9007199254740992"),
  ("123456.5", "123456.6"),
  ("12 m", "12 cm"),
  ("12 cm", "12 cm^2"),
  ("5 dollars", "5 euros"),
  ("12 apples", "12 pears"),
  ("10", "10%"),
  ("10%", "10"),
  ("12 is wrong", "12"),
  ("3, 3, 4", "3, 4"),
  ("x=4, y=3", "x=3, y=4"),
  ("x = 3", "y = 3"),
  ("AB = 5", "AC = 5"),
  ("(1,2)", "1, 2"),
  ("\\boxed{3}\\boxed{4}", "4"),
  ("4, 3", "3,4"),
  ("5, 234", "234, 5"),
  ("3", "4"),
  ("3 or 4", "3"),
  ("3, 4", "3"),
  ("(4, 3)", "(3, 4)"),
  ("11/2", "1 1/2"),
  ("1 1/2", "11/2"),
  ("3 4", "34"),
  ("1, 234", "1,234"),
  ("1,234", "1, 234"),
  ("5" + " " * 4_001 + "and also 7", "5"),
  ("[1, 2]", "[1,2)"),
  ("0.333", "\\frac{1}{3}"),
  ("x", "y"),
  ("3$ $4", "4"),
  ("|x|", "x"),
  ("", "3"),
  (".", "3"),
  ("9.1 \\times 10^{-31}", "1.6 \\times 10^{-19}"),
  ("0", "1.6 \\times 10^{-19}"),
  ("\\frac{1}{10000000}", "\\frac{1}{20000000}"),
  ("0.0000001", "\\frac{\\pi}{10000000}"),
  ("yes", "no"),
  ("\u56db", "4"),
  ("2\\text{ hours } 45\\text{ minutes}", "2\\text{ hours } 30\\text{ minutes}"),
  ("2\\text{ h}", "2\\text{ hours } 30\\text{ minutes}"),
  ("5\\text{ m}+100\\text{ m}", "5"),
  ("5", "5\\text{ cm}, 12\\text{ cm}"),
  ("30150", "30\\text{ or }150"),
]
BOMBS = [
  "9^{9^{9}}",
  "9^9^9",
  "9^{(9^9)}",
  "9**9**9",
  "((((9^9)^9)^9)^9)^9",
  "((10^{20})^{20})^{20}",
  "$" * 3_999 + "x",
  "((9!)!)!",
  "2^{100000}",
  "(x+1)^{1000}",
  "(a+b+c+d+e+f+g)^{20}",
  "((a+b+c)^{4}+d-f)^{5}",
  "(a+b+c+d+e)(a+b-c+d+e)(a-b+c+d+e)(a+b+c+d-e)(a+b+c-d+e)",
  "\\sum_{n=1}^{10^9} n",
  "\\int x^{x^x}",
  "\\frac{1}{" * 1_000,
  "9" * 100_000,
  "x" * 100_000,
  "((((((((((((((((((((((((((1))))))))))))))))))))))))))",
  "\\input{/etc/passwd}",
  "9E999999+x",
  "9^99^9",
  "\\sqrt{2-" * 12 + "3" + "}" * 12,
  "10^" + " " * 32_000 + "x",
  "{" * 190,
  "1" + "+1" * 50_000,
  "\x00",
  "\ud800",
]


@pytest.mark.parametrize(("answer", "truth"), SAME)
def test_the_same_result_in_other_words(answer, truth):
  assert symbolic.equal(answer, truth)


@pytest.mark.parametrize(("answer", "truth"), DIFFERENT)
def test_a_different_result(answer, truth):
  assert not symbolic.equal(answer, truth)


@pytest.mark.parametrize("bomb", BOMBS, ids=[repr(bomb[:16]) for bomb in BOMBS])
def test_a_bomb_is_not_even_judged(bomb):
  seconds = []
  for _ in range(3):  # the machine may be busy
    began = time.perf_counter()
    assert not symbolic.equal(bomb, "\\frac{1}{2}")
    seconds.append(time.perf_counter() - began)
  assert min(seconds) < 0.05 and not symbolic.harmless(bomb)


def test_a_judge_that_hangs_is_replaced(monkeypatch):
  monkeypatch.setattr(symbolic, "harmless", lambda text: True)
  began = time.perf_counter()
  assert not symbolic.equal("9^{9^{9^{9}}}", "\\frac{1}{3}")
  assert time.perf_counter() - began < symbolic.WAIT_SECONDS + symbolic.START_SECONDS
  assert symbolic.equal("\\frac{2}{6}", "\\frac{1}{3}")


def test_a_pair_without_a_verdict_is_not_judged_again(monkeypatch):
  """Eight rollouts that repeat each other must not cost eight time limits."""
  asked = []

  class Hung:
    def ask(self, answer, truth):
      asked.append(answer)
      raise TimeoutError

  monkeypatch.setattr(symbolic, "_judge_of", lambda process: Hung())
  assert not any(symbolic.equal("\\sqrt{7}+\\sqrt{11}", "\\frac{1}{7}") for _ in range(8))
  assert len(asked) == 1


TERMS = [("x", 1), ("a+b", 2), ("(a+b)(c-d)", 4), ("(x+1)^{3} + 5", 5), ("\\frac{a+b}{2}", 2),
         ("((a+b)^2+c)^{2}", 10), ("{1, 2}", 1), (")) + ((", 4)]  # fmt: skip


@pytest.mark.parametrize(("text", "most"), TERMS)
def test_terms_of_a_formula_multiplied_out(text, most):
  assert symbolic._terms(text) == most


FRACTIONS = st.fractions(-50, 50, max_denominator=40)
WRITTEN = {
  "slash": lambda f: f"{f.numerator}/{f.denominator}",
  "latex": lambda f: f"\\frac{{{f.numerator}}}{{{f.denominator}}}",
  "sum": lambda f: f"{f.numerator // f.denominator} + \\frac{{{f.numerator % f.denominator}}}"
                   f"{{{f.denominator}}}",
  "times": lambda f: f"{3 * f.numerator} \\div {3 * f.denominator}",
}  # fmt: skip
FORMS = st.sampled_from(sorted(WRITTEN))


@settings(max_examples=1_000, deadline=None)
@given(FRACTIONS, FRACTIONS | st.none(), FORMS, FORMS)
def test_rational_results_are_equal_as_their_fractions_are(a, b, form, other):
  """The second formula: exact fractions. Half of the pairs are equal."""
  b = a if b is None else b
  assert symbolic.equal(WRITTEN[form](a), WRITTEN[other](b)) == (a == b)


@pytest.mark.parametrize("profiled", [False, True], ids=["", "after a profile was taken"])
def test_a_judge_works_for_its_time_and_ends_by_itself(profiled):
  """Also as the child of a process that took a profile, which ignores SIGPROF from then on."""
  code = "from rmsd_jax.tasks import symbolic; symbolic.SECONDS = 0.2; symbolic._serve()"
  # Set by a process between: this one may have taken a profile, whose timer would end it.
  handler = "SIG_IGN" if profiled else "SIG_DFL"
  between = f"""if True:
    import os, signal, sys
    signal.signal(signal.SIGPROF, signal.{handler})
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])"""
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  judge = subprocess.Popen([sys.executable, "-c", between, code], **pipes)
  try:
    assert judge.stdout.readline() == b"ready\n"
    judge.stdin.write(b'["\\\\frac{2}{6}", "\\\\frac{1}{3}"]\n')
    judge.stdin.flush()
    assert judge.stdout.readline() == b"true\n"
    time.sleep(0.5)
    assert judge.poll() is None, "idle is not hung"
    judge.stdin.write(b'["9^{9^{9^{9}}}", "\\\\frac{1}{3}"]\n')
    judge.stdin.flush()
    assert judge.wait(timeout=60) == -signal.SIGPROF
  finally:
    judge.kill()
    judge.communicate()


TEXTS = {"even", "Yes", "\\triangle ABC", "\u2205", "6 or more", "x is odd"}
FORMULAS = {"5.0 \\mathrm{~m}", "m\u22201=50\u00b0", "(2\u221a3,2)",
            "$S = 4 \\pi \\mathrm{~cm}^{2}$", "k>2", "20%", "x = -1 \u00b1 \u221a5",
            "(6+2\u221a3)cm", "sin(x)", "3+4i", "14.5cm", "8 units"}  # fmt: skip


@pytest.mark.parametrize("truth", sorted(TEXTS | FORMULAS))
def test_what_can_only_be_compared_as_text_is_known(truth):
  assert symbolic.text_only(truth) == (truth in TEXTS)


HOSTILE = ["1" + " a" * 99 + "=", "\\text{a}" * 22 + "=", "\\text{ }  " * 18 + "=", "x=3," * 49,
           "12 cm " * 33, "\u221a(" * 90, "\u00bd" * 100,
           "1,111" * 39, "3 or " * 39 + "3", "f(" * 90,
           "5 million " * 20, "1-" * 100, "1,000-" * 33 + "1", "3x" * 100, "1 000 x " * 25,
           "111 " * 49 + "x", "1,111 " * 33 + "x", "111 111-" * 24 + "x", "1 am" * 50,
           "\\boxed{" * 24, "\\pm" * 60, "a_{" * 60, "x:" * 90]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_taking_apart_costs_little(text):
  seconds = []
  for _ in range(3):
    began = time.perf_counter()
    plain = notation.plain(text)
    wording.words(plain), notation.taken_apart(plain), numerals.figures(plain)
    seconds.append(time.perf_counter() - began)
  assert min(seconds) < 0.05


DIFFERENT = [
  ("\\frac{m}{M}", "\\frac{M}{m}"), ("R-r", "r-R"), ("0", "R-r"), ("1", "\\frac{m}{M}"),
  ("\\pi(R^2-r^2)", "0"), ("\\frac{Mv}{M+m}", "\\frac{v}{2}"), ("\\pi R^2", "\\pi r^2"),
  ("f'(x)", "f(x)"), ("y''", "y'"), ("y'+y", "2y"), ("A'B'C'", "ABC"), ("A'", "A"),
  ("A^{\\prime}", "A"), ("A^T", "A"), ("2^T", "2"), ("f^{-1}(x)", "\\frac{1}{f(x)}"),
  ("P(A)=0.5", "P(B)=0.5"), ("f(x)=2x", "g(x)=2x"), ("v(t)=3t", "a(t)=3t"), ("y=2x", "z=2x"),
  ("25 °C", "25 °F"), ("3.464", "3.46"), ("x_{1}'+1", "x_{1}+1"),
]  # fmt: skip
ALIKE = [
  ("R+r", "r+R"), ("A^T", "A^{T}"), ("f'(x)", "f^{\\prime}(x)"), ("y'+y", "y+y'"),
  ("f(x)=2x", "f(x) = 2x"), ("y=2x", "f(x)=2x"), ("2x", "f(x)=2x"), ("0.5", "P(A)=0.5"),
  ("5 µm", "5 μm"), ("5 μm", "5"), ("25 °C", "25 degrees Celsius"), ("25 °C", "25"),
  ("25^\\circ\\text{C}", "25°C"), ("A'B'C'", "A′B′C′"), ("'A'", "A"), ("ABC", "abc"),
  ("n/a", "N/A"), ("\\frac{E}{I}", "\\frac{E}{I}"), ("3+4i", "4i+3"), ("don't", "dont"),
  ("2^{T+1}", "2^{1+T}"), ("A^{T}A", "A^T A"), ("2^{T-1}+3", "3+2^{T-1}"), ("A^T", "A^\\top"),
  ("20°", "20°C"), ("20 degrees", "20 °C"), ("20℃", "20 °C"),
  ("\\sin A", "\\sin(A)"), ("SI/2", "\\frac{SI}{2}"), ("C_1 e^{x}", "C_1e^x"),
]  # fmt: skip


@pytest.mark.parametrize(("truth", "answer"), DIFFERENT)
def test_case_primes_transposes_and_names_tell_formulas_apart(truth, answer):
  assert not symbolic.equal(answer, truth) and not symbolic.equal(truth, answer)


@pytest.mark.parametrize(("truth", "answer"), ALIKE)
def test_and_one_formula_may_be_written_in_several_ways(truth, answer):
  assert symbolic.equal(answer, truth) and symbolic.equal(truth, answer)

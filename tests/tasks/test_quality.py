"""How replies are graded: rule terms, validity, quality, and the rules as one object."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import Rules, quality, registry, truths
from rmsd_jax.tasks.quality import Score

RULES = Rules()
LOOSE = Rules(eps_abs=0.5, eps_rel=0.1, valid_from=0.5)
OPTIONS = ("A. cat", "B. dog")
CASES = {  # task: (truth, [(answer, R_task, metric)])
  "multiple_choice": ("B", [("B", 1, 1), ("(b)", 1, 1), ("A", 1, 0), ("C", 0, 0), ("dog", 0, 0)]),
  "numerical": (1234.5, [("1,234.5", 1, 1), ("1234.501", 1, 1), ("1235", 1, 0), ("many", 0, 0)]),
  "regression": (100, [("100", 1, 1), ("80", 1, 0.6), ("49", 1, 0), ("100 m", 0, 0)]),
  "math": ("\\frac{1}{2}", [("0.5", 1, 1), ("2/4", 1, 1), ("2", 1, 0), ("half", 1, 0), ("", 0, 0)]),
  "ocr": ("3 7 1 1", [("3 7 1 1", 1, 1), ("3 7 1", 1, 0.75), ("no", 1, 0), ("", 0, 0)]),
  "temporal_grounding": (
    [2, 4],
    [('{"time": [2, 4]}', 1, 1), ('{"time": [3, 5]}', 1, 1 / 3), ('{"time": [4, 2]}', 0, 0)],
  ),
  "spatial_grounding": (
    [0, 0, 100, 100],
    [('{"boxes": [0, 0, 100, 50]}', 1, 0.5), ('{"boxes": [0, 0, 2000, 50]}', 0, 0)],
  ),
  "spatiotemporal_grounding": (  # half for the interval, a quarter for each of two boxes
    {"time": [2, 4], "boxes": {"2": [0, 0, 10, 10], "3": [0, 0, 10, 10]}},
    [
      ('{"time": [2, 4], "boxes": {"2": [0, 0, 10, 10], "3": [0, 0, 10, 10]}}', 1, 1),
      ('{"time": [3, 5], "boxes": {"2": [0, 0, 10, 5], "3": [0, 0, 10, 10]}}', 1, 1 / 6 + 3 / 8),
      ('{"time": [2, 4], "boxes": {"3": [0, 0, 10, 10], "9": [0, 0, 9, 9]}}', 0.75, 0.75),
      ('{"time": [2, 4], "boxes": {}}', 0, 0),
      ('{"boxes": {"2": [0, 0, 10, 10], "3": [0, 0, 10, 10]}}', 0, 0),
    ],
  ),
  "tracking": (
    {"boxes": {"0": [0, 0, 10, 10], "5": [0, 0, 10, 10]}},
    [
      ('{"boxes": {"0": [0, 0, 10, 10], "5": [0, 0, 10, 10]}}', 1, 1),
      ('{"boxes": {"0": [0, 0, 10, 5], "5": [0, 0, 10, 10], "6": [0, 0, 1, 1]}}', 1, 0.75),
      ('{"boxes": {"5": [0, 0, 10, 10]}}', 0.75, 0.5),
      ('{"boxes": {"7": [0, 0, 10, 10]}}', 0.5, 0),
      ('{"boxes": {"05": [0, 0, 10, 10]}}', 0, 0),
      ('{"boxes": {"0": [0, 0, 10, 10], "0": [0, 0, 10, 10]}}', 0, 0),
      ('{"boxes": [0, 0, 10, 10]}', 0, 0),
    ],
  ),
  "open_ended": ("A cat.", [("A cat.", 1, 0), ("Something else", 1, 0), ("", 0, 0)]),
}
ROWS = [(name, truth, *row) for name, (truth, rows) in CASES.items() for row in rows]


def render(answer, think="why"):
  return f"<think>{think}</think>\n<answer>{answer}</answer>"


REPLIES = st.text(max_size=30) | st.text(max_size=30).map(render)
UNHURRIED = settings(deadline=None)  # the first formula waits for a process that imports SymPy


def test_every_task_has_cases_here():
  assert set(CASES) == set(registry.TASKS)


# the rule terms


@pytest.mark.parametrize(
  ("task", "reply", "terms"),
  [
    ("multiple_choice", render("B"), (1, 1, 1)),
    ("multiple_choice", render("A"), (1, 1, 0)),
    ("multiple_choice", render("dog"), (1, 0, 0)),
    ("multiple_choice", "B", (0, 0, 0)),
    ("multiple_choice", "<think>why</think>B", (0, 0, 0)),
    ("multiple_choice", render("B") + "<answer>A</answer>", (0, 0, 0)),
    ("multiple_choice", render("A", think="<answer>B</answer>"), (0, 0, 0)),
    ("open_ended", render("anything at all"), (1, 1, 0)),
    ("open_ended", render("B"), (1, 1, 0)),  # the truth itself: open-ended has no content term
    ("open_ended", render(""), (1, 0, 0)),
  ],
)
def test_terms(task, reply, terms):
  assert RULES.terms(task, reply, "B", OPTIONS) == terms


def test_partial_content():
  assert RULES.terms("ocr", render("3 8"), "3 7", ()) == (1.0, 1.0, 0.5)


def test_an_empty_answer_does_not_make_the_reply_the_graded_text():
  assert RULES.terms("ocr", render("", think="3 7"), "3 7", ()) == (1.0, 0.0, 0.0)


@given(REPLIES)
def test_an_unfinished_reply_earns_nothing(reply):
  terms = RULES.terms("multiple_choice", reply, "B", OPTIONS, finished=False)
  assert terms == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", sorted(CASES))
@UNHURRIED
@given(reply=REPLIES)
def test_terms_are_bounded_and_each_needs_the_one_before(name, reply):
  outer, inner, content = RULES.terms(name, reply, CASES[name][0], OPTIONS)
  assert outer in (0.0, 1.0)
  assert 0.0 <= inner <= outer
  assert 0.0 <= content <= 1.0
  assert inner > 0 or content == 0


def test_a_bad_truth_stops_instead_of_grading_zero():
  with pytest.raises(UserError, match="multiple_choice"):
    RULES.terms("multiple_choice", render("A"), "Z", OPTIONS)


# validity and quality


@pytest.mark.parametrize(("name", "truth", "answer", "inner", "content"), ROWS)
def test_quality_is_valid_times_metric(name, truth, answer, inner, content):
  score = RULES.score(name, render(answer), truth, OPTIONS)
  assert (score.outer, score.inner, score.valid) == (1.0, inner, inner == 1)
  assert score.content == pytest.approx(content)
  expected = score.content if RULES.closed[name] else 1.0
  assert score.quality == (expected if score.valid else 0.0)


@pytest.mark.parametrize(("name", "truth", "answer", "inner", "content"), ROWS)
def test_without_the_outer_format_nothing_counts(name, truth, answer, inner, content):
  del inner, content
  for reply in (answer, f"<answer>{answer}</answer>", render(answer) + "!"):
    assert RULES.score(name, reply, truth, OPTIONS) == Score(0.0, 0.0, 0.0, False, 0.0, 0.0)


@pytest.mark.parametrize(
  ("finish_reason", "tokens", "max_tokens", "valid"),
  [
    ("stop", 0, None, True),
    ("stop", 10_000, None, True),
    ("stop", 0, 0, True),
    ("stop", 1, 0, False),
    ("stop", 56, 56, True),
    ("stop", 57, 56, False),
    ("length", 10, 56, False),
    ("length", 0, None, False),
  ],
)
@pytest.mark.parametrize("name", ["multiple_choice", "open_ended"])
def test_a_cut_off_or_too_long_reply_is_not_valid(name, finish_reason, tokens, max_tokens, valid):
  score = RULES.score(name, render("B"), "B", OPTIONS, finish_reason, tokens, max_tokens)
  assert score.valid is valid
  assert score.quality == float(valid)
  assert score.content == float(RULES.closed[name])  # what it says is kept for the report


@pytest.mark.parametrize("name", sorted(CASES))
@UNHURRIED
@given(reply=REPLIES, length=st.booleans())
def test_bounds_and_implications(name, reply, length):
  score = RULES.score(name, reply, CASES[name][0], OPTIONS, "length" if length else "stop")
  for value in (score.outer, score.inner, score.content, score.quality, score.rouge):
    assert isinstance(value, float) and 0.0 <= value <= 1.0
  assert not score.valid or (score.outer == score.inner == 1.0 and not length)
  assert score.quality == 0.0 or score.valid
  assert not RULES.closed[name] or score.quality <= score.content


def test_open_ended_replies_keep_their_rouge_beside_a_quality_that_ignores_it():
  score = RULES.score("open_ended", render("a red card"), "the red card")
  assert score.quality == 1.0 and score.content == 0.0
  assert score.rouge == pytest.approx(2 / 3)  # 2 of 3 words on either side
  assert RULES.score("ocr", render("a red card"), "a red card").rouge == 0.0


@given(st.text(max_size=30).map(render))
def test_teacher_and_student_are_graded_alike(reply):
  score = RULES.score("ocr", reply, "a b")
  assert (score.outer, score.inner, score.content) == RULES.terms("ocr", reply, "a b", ())


def test_a_second_that_lacks_costs_what_is_set():
  """All of a nearly right track, as R-MSD's rule is read, or that second alone."""
  boxes = {str(second): [0, 0, 100 + second, 100] for second in range(4)}
  reply = render(json.dumps({"boxes": {k: boxes[k] for k in "012"}}))
  for rules, wanted in ((RULES, (False, 0.0)), (Rules(valid_from=0.5), (True, 0.75))):
    score = rules.score("tracking", reply, {"boxes": boxes})
    assert (score.valid, score.quality, score.inner) == (*wanted, 0.875)
    assert rules.quality(score.outer, score.inner, score.content) == wanted[1]


@pytest.mark.parametrize("rules", [RULES, LOOSE, Rules(valid_from=0.75)], ids=lambda r: r.version)
@pytest.mark.parametrize("xp", [np, jnp])
def test_arrays_are_valid_where_their_single_replies_are(rules, xp):
  """All tasks in one array, right and wrong and without their formats, of any shape."""
  table = [rules.terms(*row) for row in ((n, render(a), t, OPTIONS) for n, t, a, _, _ in ROWS)]
  table += [(0.0, 0.0, 0.0), (1.0, 0.5, 0.25), (1.0, 0.75, 1.0)]
  outer, inner, content = (xp.asarray(column, xp.float32) for column in zip(*table, strict=True))
  valid = rules.is_valid(outer, inner)
  assert valid.dtype == bool and valid.tolist() == [rules.is_valid(o, i) for o, i, _ in table]
  assert 0 < valid.sum() < len(table)
  np.testing.assert_allclose(
    rules.quality(outer, inner, content), [rules.quality(*terms) for terms in table]
  )
  column = rules.quality(outer[:, None], inner[:, None], content[:, None])
  assert column.shape == (len(table), 1) and column.dtype == xp.float32


# the rules as one object


def test_rules_are_small_equal_hashable_values_that_a_child_process_can_be_sent():
  for rules in (RULES, LOOSE):
    assert rules.tasks is rules.tasks  # made once
    copy = pickle.loads(pickle.dumps(rules))
    assert copy == rules and hash(copy) == hash(rules) and copy.tasks is rules.tasks
    assert len(pickle.dumps(rules)) < 200
  assert RULES != LOOSE


def test_the_version_names_what_is_not_the_default():
  scorer = quality.SCORER_VERSION
  assert RULES.version == Rules(eps_abs=0, eps_rel=0, valid_from=1).version == scorer
  assert Rules(eps_rel=0.05).version == f"{scorer} eps_rel=0.05"
  assert LOOSE.version == f"{scorer} eps_abs=0.5 eps_rel=0.1 valid_from=0.5"


def test_the_reading_is_part_of_the_version_and_older_scores_can_be_read():
  lenient = Rules(reading="lenient", eps_abs=1)
  scorer = quality.SCORER_VERSION
  assert lenient.version == f"{scorer} eps_abs=1 reading=lenient"
  assert RULES.reads(scorer) and RULES.reads("7") and lenient.reads("6 eps_abs=1 reading=lenient")
  assert not RULES.reads("0") and not RULES.reads(lenient.version) and not lenient.reads("6")
  reply = render("B") + "<|im_end|>\n"
  assert (RULES.trimmed(reply), lenient.trimmed(reply)) == (reply, render("B"))
  with pytest.raises(UserError, match="reading 'loose': it is one of strict, lenient"):
    Rules(reading="loose")


@pytest.mark.parametrize("wrong", [0.0, 1.5, float("nan")])
def test_bad_settings_are_refused(wrong):
  with pytest.raises(UserError, match="valid_from .*: it is an R_task, above 0 and at most 1"):
    Rules(valid_from=wrong)
  for name in ("eps_abs", "eps_rel"):
    with pytest.raises(UserError, match=f"{name} -1: a tolerance must be 0 or more"):
      Rules(**{name: -1})


def test_tolerances_reach_the_numerical_task_alone():
  loose = Rules(eps_rel=0.1)
  for rules, quality_ in ((RULES, 0.0), (loose, 1.0)):
    assert rules.score("numerical", render("109"), 100).quality == quality_
  for name in set(CASES) - {"numerical"}:
    assert loose.task(name) == RULES.task(name)


def test_an_unknown_task_is_refused_by_every_method():
  for call in (
    lambda: RULES.task("riddle"),
    lambda: RULES.prompt_text("riddle", "?", ()),
    lambda: RULES.validate("riddle", "B", ()),
    lambda: RULES.answer_of("riddle", "B", ()),
    lambda: RULES.terms("riddle", "B", "B", ()),
    lambda: RULES.score("riddle", "B", "B"),
  ):
    with pytest.raises(UserError, match="'riddle' is unknown; use one of .*numerical"):
      call()


def test_only_open_ended_questions_are_not_closed():
  assert RULES.closed == {name: name != "open_ended" for name in CASES} | {"chat": False}


def test_a_prompt_has_question_options_and_format_each_on_a_line():
  lines = RULES.prompt_text("multiple_choice", " Which? ", OPTIONS).split("\n")
  assert lines[:-1] == ["Which?", *OPTIONS]
  for name in CASES:
    text = RULES.prompt_text(name, "Which?")
    assert text.startswith("Which?\nReply as <think>") and text.count("\n") == 1
    assert "</think><answer>" in text and "</answer>" in text


@pytest.mark.parametrize(
  ("task", "answer", "read"),
  [
    ("multiple_choice", "(b)", "B"),
    ("multiple_choice", "B. dog", "B"),
    ("multiple_choice", "dog", "dog"),  # not read: as it is written
    ("numerical", "1,234.50", "1234.5"),
    ("temporal_grounding", '{"time":[2, 4.0]}', "[2.0, 4.0]"),
    ("ocr", " 3 7 ", "3 7"),
  ],
)
def test_the_answer_of_a_reply_is_as_its_task_reads_it(task, answer, read):
  assert RULES.answer_of(task, render(answer), OPTIONS) == read
  assert RULES.answer_of(task, f"<answer>{answer}</answer>", OPTIONS) == ""


def test_agreement_is_the_mean_metric_against_the_other_answers():
  reply = "<think>I look.</think><answer>{}</answer>".format
  options = ("A. red", "B. blue", "C. green")
  said = [*map(reply, ("A", "A", "B")), "no format"]
  assert Rules().agreement("multiple_choice", said, options) == [0.5, 0.5, 0.25, 0.0]
  spans = [(0, 4), (2, 4), (6, 8)]
  replies = [reply(json.dumps({"time": span})) for span in spans]

  def overlap(one, two):
    shared = max(0, min(one[1], two[1]) - max(one[0], two[0]))
    return shared / (one[1] - one[0] + two[1] - two[0] - shared)

  wanted = [np.mean([overlap(a, b) for b in spans]) for a in spans]
  assert Rules().agreement("temporal_grounding", replies, ()) == pytest.approx(wanted)
  # 0 has no relative error, so it could not be a truth; it agrees with itself.
  assert Rules().agreement("regression", [reply("0"), reply("5")], ()) == [0.5, 0.5]
  assert Rules().agreement("math", [reply("1/2"), reply("0.5"), reply("2")], ()) == pytest.approx(
    [2 / 3, 2 / 3, 1 / 3]
  )
  assert Rules().agreement("ocr", [], ()) == []


@pytest.mark.parametrize("name", registry.TASKS)
def test_replies_that_are_alike_agree_wholly_and_nothing_crashes(name):
  example = registry.TASKS[name].example
  right = f"<think>x</think><answer>{registry.spelled(example.truth)}</answer>"
  assert Rules().agreement(name, [right] * 3, example.options) == pytest.approx([1.0] * 3)
  hostile = [right, "", "<answer>", "<think>x</think><answer>[]{}\\</answer>", right]
  got = Rules().agreement(name, hostile, example.options)
  assert all(0 <= q <= 1 for q in got) and got[0] == got[4] >= 0.4


@pytest.mark.parametrize(
  ("task", "said", "options"),
  [
    ("temporal_grounding", ["from 2s to 4s"] * 3, ()),
    ("numerical", ["12 cm"] * 3, ()),
    ("spatial_grounding", ["[0,0,100,100]"] * 3, ()),
    ("numerical", ["50%", "50", "0.5"], ()),
    ("multiple_choice", ["Option B", "B", "**B**"], ("A. red", "B. blue")),
  ],
)
def test_what_the_lenient_reading_takes_agrees_as_it_reads_it(task, said, options):
  replies = [f"<think>I look.</think><answer>{answer}</answer>" for answer in said]
  got = Rules(reading="lenient").agreement(task, replies, options)
  assert got[0] == 1.0 and min(got) >= 2 / 3  # 50 and 0.5 differ, 50% is both


def test_a_records_own_tolerances_hold_between_its_answers():
  replies = [f"<think>I look.</think><answer>{n}</answer>" for n in (100, 101, 103, 120)]
  truth = truths.joined(7, {"eps_abs": 5})
  assert Rules().agreement("numerical", replies, (), truth) == [0.75, 0.75, 0.75, 0.25]
  assert Rules().agreement("numerical", replies, ()) == [0.25] * 4


def test_a_conversation_has_no_think_block():
  rules = Rules()
  thought = "<think>The user greets.</think>Good day."
  assert rules.trimmed(thought, "chat") == "Good day." and rules.trimmed(thought, "ocr") == thought
  assert rules.score("chat", "Good day.", None).valid
  for reply in (thought, "<answer>2</answer>", "<think>half", " "):
    assert not rules.score("chat", reply, None).valid

"""The teacher's page: complete in one file, its numbers those of the study, nothing invented."""

import html
import json
import math
import re
import statistics

import numpy as np
import pytest
import small_records

from rmsd_jax.data import records
from rmsd_jax.report import teacher_page, teacher_plots
from rmsd_jax.tasks import Rules, registry
from rmsd_jax.teacher import scores, variance

LEVELS = ["one two three four", "one two three x", "one two x x", "x x x x"]  # 1, 3/4, 1/2, 0


class Line:
  """Stands in for a line of a file."""

  number = 1

  def __init__(self, value):
    self.value = value

  def read(self, rules):
    return records.parse(json.dumps(self.value), self.number, rules.tasks)


def judged(value):
  """A record's question as `scores.Scorer` makes it, without processes."""
  return scores.Scorer(Rules()).question(Line(value))


def scored(values, unusable=("", 0)):
  lines = [Line(value) for value in values]

  def prompt(place):
    record = lines[place].read(Rules())
    texts = tuple(response.text for response in record.responses)
    return scores.Prompt(record.question, record.options, record.answer, texts)

  return scores.Scored([judged(value) for value in values], prompt, "characters", 0, unusable)


def several():
  values = [
    small_records.ocr("steady", [LEVELS[1]] * 4),
    small_records.ocr("wild", [LEVELS[0], LEVELS[3], LEVELS[0], LEVELS[3]]),
    small_records.ocr("mild", [LEVELS[0], LEVELS[1], LEVELS[2], LEVELS[2]]),
    small_records.of_task("open_ended", question="What is <b>?"),
    small_records.of_task("math"),
  ]
  return values


def test_a_page_is_complete_and_shows_the_figures_of_the_study(tmp_path):
  of = scored(several(), ("pool.jsonl line 3: not JSON", 2))
  path = teacher_page.write_page(str(tmp_path / "new" / "page"), "pool.jsonl", of)
  page = path.read_text()
  assert path == tmp_path / "new" / "page" / "index.html"
  assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "nothing outside the file is needed"
  made = {one.stem for one in path.parent.glob("*.png")}
  assert made == {"pool", "spreads", "tasks", "thresholds", "faults", "lengths", "teachers"}
  assert page.count("data:image/png") == len(made)
  assert "2 unusable lines are not counted here, the first: pool.jsonl line 3" in page
  figures = variance.by_task(of.questions)
  for name in ("mean", "sd_across", "sd_within", "violations", "agreement"):
    assert f">{figures['ocr'][name]:.3f}<" in page, name
  for tau, share in figures["all"]["lost"].items():
    assert f">{share:.3f}<" in page, tau
  assert "What is &lt;b&gt;?" not in page, "open-ended questions have no quality to differ in"
  assert "<td>small</td>" in page and "<td>big</td>" in page
  assert not re.search(r"\bnan\b", re.sub(r'data:[^"]*', "", page), re.IGNORECASE)


def test_the_figures_are_those_of_the_statistics_module():
  """Recomputed from the worth of each transcript, by hand."""
  worth = {"steady": [0.75] * 4, "wild": [1, 0, 1, 0], "mild": [1, 0.75, 0.5, 0.5]}
  one = variance.by_task(scored(several()[:3]).questions)["ocr"]
  means = [statistics.fmean(values) for values in worth.values()]
  every = [value for values in worth.values() for value in values]
  assert one["mean"] == pytest.approx(statistics.fmean(means))
  assert one["sd_across"] == pytest.approx(statistics.stdev(means))
  assert one["sd_within"] == pytest.approx(statistics.fmean(map(statistics.stdev, worth.values())))
  assert one["kept"] == {tau: sum(v >= tau for v in every) / 12 for tau in variance.TAUS}
  assert one["lost"] == dict.fromkeys(variance.TAUS, 0.0)
  assert one["violations"] == one["cut_off"] == 0
  assert one["agreement"] == pytest.approx((1 + 2 / 6 + 1 / 6) / 3)
  texts = [one["text"] for value in several()[:3] for one in value["responses"]]
  assert one["lengths"][0.5] == statistics.median(map(len, texts))
  assert math.isnan(one["rouge"])


def test_examples_are_the_questions_whose_responses_differ_most():
  of = scored([*several(), small_records.ocr("third", [LEVELS[0], LEVELS[3]])])
  shown = teacher_page.examples(of)
  assert [one["id"] for one in shown] == ["third", "math", "wild"]  # two of a task
  assert shown[0]["spread"] == pytest.approx(statistics.stdev([1, 0]))
  assert [one["quality"] for one in shown[2]["teachers"]] == [1, 0, 1, 0]
  assert shown[2]["teachers"][0]["text"].endswith("<answer>one two three four</answer>")
  assert shown[1]["answer"] == registry.TASKS["math"].example.truth
  steady = scored(several()[:1])
  assert teacher_page.examples(steady) == []


def test_the_first_paragraph_says_what_was_measured():
  figures = variance.by_task(scored(several()).questions)
  text, everything = teacher_page.lead(figures), figures["all"]
  assert text.startswith("20 responses to 5 questions. Mean quality of closed-ended questions is ")
  assert f"{everything['kept'][0.3]:.0%} of the responses survive" in text
  assert f"{everything['cut_off']:.1%} were cut off" in text
  opened = teacher_page.lead(variance.by_task(scored(several()[3:4]).questions))
  assert "their quality cannot be measured" in opened and "nan" not in opened
  alone = variance.by_task(scored([small_records.ocr("1", LEVELS[:1])]).questions)
  assert "across questions by an s.d. of -" in teacher_page.lead(alone)


def test_what_cannot_be_shown_is_said(tmp_path):
  page = teacher_page.write_page(str(tmp_path), "open", scored(several()[3:4])).read_text()
  for line in ("no quality to draw", "no threshold applies", "No closed-ended question has"):
    assert line in page
  one_teacher = teacher_page.write_page(str(tmp_path), "x", scored(several()[:1])).read_text()
  assert "One teacher, so there is nothing" in one_teacher


def test_the_threshold_curve_marks_the_papers_points_as_the_papers():
  figures = variance.by_task(scored(several()).questions, teacher_page.CURVE)
  figure = teacher_plots.thresholds(figures, variance.PAPER_KEPT, variance.ALL)
  left, right = figure.axes
  lines = {line.get_label(): line for line in left.get_lines()}
  assert list(lines["paper"].get_xdata()) == [0.0, 0.2, 0.3, 0.5]
  assert list(lines["paper"].get_ydata()) == [1.0, 0.87, 0.72, 0.45]
  assert "paper" not in {line.get_label() for line in right.get_lines()}
  curve = dict(zip(lines["all"].get_xdata(), lines["all"].get_ydata(), strict=True))
  direct = variance.by_task(scored(several()).questions)["all"]["kept"]
  assert {tau: curve[tau] for tau in direct} == direct
  assert np.all(np.diff(lines["all"].get_ydata()) <= 0)


def test_histograms_hold_every_question():
  questions = scored(several()).questions
  means, spreads = variance.means(questions), variance.spreads(questions)
  left, right = teacher_plots.spreads(means, spreads).axes
  assert sum(bar.get_height() for bar in left.patches) == len(means) == 4
  assert sum(bar.get_height() for bar in right.patches) == len(spreads) == 4
  widest = variance.spreads([judged(small_records.ocr("1", [LEVELS[0], LEVELS[3]]))])
  _, right = teacher_plots.spreads(means, widest).axes
  assert sum(bar.get_height() for bar in right.patches) == 1, "the widest spread is in a bin"


NAMES = {  # name -> as a figure shows it
  r"$\frac{": r"$\frac{",
  "$x": "$x",
  r"a_b^c\d": r"a_b^c\d",
  "ocr": "ocr",
  "_begins": "_begins",
  "<b>bold</b>&amp;": "<b>bold</b>&amp;",
  "two\nlines\x00\x1b[31m": "two\N{MIDDLE DOT}lines\N{MIDDLE DOT}\N{MIDDLE DOT}[31m",
  "\N{RIGHT-TO-LEFT OVERRIDE}gpt": "\N{MIDDLE DOT}gpt",
  "模型": "模型",
  "0123456789" * 30 + "end": "012345678901234567\N{HORIZONTAL ELLIPSIS}456789end",
}


def test_teachers_are_shown_by_any_name(tmp_path, recwarn):
  values = [small_records.ocr(f"q{i}", [LEVELS[i % 2]] * 2) for i, _ in enumerate(NAMES)]
  for value, name in zip(values, NAMES, strict=True):
    value["responses"] = [answer | {"teacher": name} for answer in value["responses"]]
  of = scored(values)
  page = teacher_page.write_page(str(tmp_path), "names", of).read_text()
  assert not [str(one.message) for one in recwarn if "rmsd_jax" in one.filename]
  assert {path.name for path in tmp_path.glob("*.png")} >= {"teachers.png", "faults.png"}
  by_teacher = variance.by_teacher(of.questions)
  figure = teacher_plots.teachers(by_teacher)
  drawn = {text.get_text() for text in figure.axes[0].get_yticklabels()}
  assert drawn == set(NAMES.values())
  # The page has them whole, but for what no page can show.
  for name in set(NAMES) - {"two\nlines\x00\x1b[31m", "\N{RIGHT-TO-LEFT OVERRIDE}gpt"}:
    assert f"<td>{html.escape(name)}</td>" in page
  assert "\x00" not in page and "\x1b" not in page and "<b>bold" not in page
  rows = variance.table(by_teacher, "teacher").split("\n")
  assert len(rows) == 2 + len(NAMES) and len({len(row) for row in rows}) == 1

"""The page on how reliable a teacher is: the paper's variance study and what else can be seen.

It stands alone, for people who never train; the report of a run shows the study as one section.
"""

import json
import math
import pathlib
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from rmsd_jax.core.files import replace_text
from rmsd_jax.report import plots, teacher_plots
from rmsd_jax.report.page import Page, plain, render
from rmsd_jax.teacher import scores, variance

TEMPLATE = "teacher.html.jinja"
CURVE = tuple(np.linspace(0, 1, 101).round(2).tolist())  # thresholds of the curves
MAX_EXAMPLES = 8
MAX_PER_TASK = 2


def study_section(
  page: Page, figures: variance.Figures, teachers: Collection[str]
) -> dict[str, Any]:
  """The paper's study: its figure goes to the page, its tables to the template."""
  page.figure("pool", "pool", plots.teacher_study(figures, variance.PAPER, variance.PAPER_KEPT),
    "Bars: this pool. Diamonds: what the paper measured of its teacher, where it says. Two kinds "
    "of spread matter: across questions (hard and easy ones), and within one question, which is "
    "the luck of a single sample and the reason for drawing several. The filter's threshold keeps "
    "fewer responses the higher it is.",
    "The pool has no closed-ended task, so there is no quality to draw.")  # fmt: skip
  simulated = any(name.startswith("simulated") for name in teachers)
  return {"figures": figures, "paper": variance.PAPER, "paper_kept": variance.PAPER_KEPT,
          "simulated": simulated, "teachers": sorted(filter(None, teachers)),
          "taus": variance.TAUS}  # fmt: skip


def write_page(folder: str, title: str, scored: scores.Scored) -> pathlib.Path:
  """Writes FOLDER/index.html, complete in one file, and its pictures as PNG files beside it.

  Args:
    title: what was looked at.
    scored: its questions, at least one.
  """
  page = Page(pathlib.Path(folder))
  page.folder.mkdir(parents=True, exist_ok=True)
  figures = variance.by_task(scored.questions)
  by_teacher = variance.by_teacher(scored.questions)
  teachers = {name for question in scored.questions for name in question.teachers}
  section = study_section(page, figures, teachers)
  _spreads(page, scored.questions, figures)
  _faults(page, figures, by_teacher, scored.unit)
  html = render(
    TEMPLATE, title=title, lead=lead(figures, scored.silent), study=section, by_teacher=by_teacher,
    everything=variance.ALL, tau=variance.TAU, unit=scored.unit, examples=examples(scored),
    unusable=scored.unusable, figures=page.figures, missing=page.missing,
    made=time.strftime("%Y-%m-%d %H:%M"),
  )  # fmt: skip
  replace_text(page.folder / "index.html", html)
  return page.folder / "index.html"


def _spreads(page: Page, questions: Sequence[variance.Question], figures: variance.Figures) -> None:
  """Histograms over questions, and the curves over the threshold."""
  page.figure("spread", "spreads",
    teacher_plots.spreads(variance.means(questions), variance.spreads(questions)),
    "Closed-ended questions. Left: what a question's responses are worth on average; what piles up "
    "at 0 are questions the teacher cannot answer (or whose ground truth is wrong). Right: how far "
    "the responses of one question differ; what lies at 0 would lose nothing by a single sample. "
    "Dashed: the mean, which the paper gives as 0.75 on the left and 0.07 to 0.15 on the right.",
    "No closed-ended task, so there is no quality to draw.")  # fmt: skip
  tasks = [name for name in figures if name != variance.ALL]
  of_task = {task: [q for q in questions if q.task == task] for task in tasks}
  page.figure("spread", "tasks",
    teacher_plots.task_histograms({task: variance.means(of_task[task]) for task in tasks}),
    "The left histogram by task, the mean dashed.",
    "Fewer than two closed-ended tasks, so the histogram by task would show nothing new."
  )  # fmt: skip
  page.figure("tau", "thresholds",
    teacher_plots.thresholds(variance.by_task(questions, CURVE), variance.PAPER_KEPT, variance.ALL),
    "Diamonds are the paper's figures of its own teacher, not of this one: 100, 87, 72 and 45 % of "
    "responses at tau 0, 0.2, 0.3 and 0.5. Right: questions without a survivor teach nothing in "
    "stage 1 and give the discriminator no pair.",
    "No closed-ended task, so no threshold applies.")  # fmt: skip


def _faults(page: Page, figures: variance.Figures, by_teacher: variance.Figures, unit: str) -> None:
  """What is wrong with responses apart from being wrong, and how long they are."""
  page.figure("faults", "faults", teacher_plots.faults(figures, variance.PAPER),
    "Left: a response without the outer blocks, or without the task's own format inside them, is "
    "not valid and has quality 0, whatever it says; a response that was cut off is not valid "
    "either. Diamonds: the paper's teacher. Right: how often two responses of one teacher to a "
    "question give the same answer, by its value where the task reads one, else by its text (case "
    "and white space apart); among right and wrong ones alike.",
    "No responses.")  # fmt: skip
  page.figure("faults", "lengths", teacher_plots.lengths(figures, unit),
    "Dot: median; thick: the middle half; thin: 5 to 95 %. Reasoning included.",
    "No responses.")  # fmt: skip
  page.figure("teachers", "teachers", teacher_plots.teachers(by_teacher),
    "Each teacher by its own responses, over all tasks. They are comparable only where the "
    "teachers answered the same questions.",
    "One teacher, so there is nothing to set side by side.")  # fmt: skip


def examples(scored: scores.Scored) -> list[dict[str, Any]]:
  """The closed-ended questions whose responses differ most in quality, a few per task."""
  spread = {
    place: question.spread
    for place, question in enumerate(scored.questions)
    if question.closed and question.spread > 0
  }
  chosen: list[int] = []
  taken: dict[str, int] = {}
  for place in sorted(spread, key=lambda place: (-spread[place], scored.questions[place].id)):
    task = scored.questions[place].task
    if taken.get(task, 0) < MAX_PER_TASK and len(chosen) < MAX_EXAMPLES:
      taken[task] = taken.get(task, 0) + 1
      chosen.append(place)
  return [_example(scored, place, spread[place]) for place in chosen]


def _example(scored: scores.Scored, place: int, spread: float) -> dict[str, Any]:
  question = scored.questions[place]
  prompt = scored.prompt(place)
  answer = prompt.answer if isinstance(prompt.answer, str) else json.dumps(prompt.answer)
  said = [
    {"text": plain(text), "teacher": teacher, "valid": bool(valid), "quality": float(quality)}
    for text, teacher, valid, quality in zip(
      prompt.texts, question.teachers, question.valid_K, question.quality_K, strict=True
    )
  ]
  return {
    "question": prompt.question, "options": prompt.options, "answer": answer, "spread": spread,
    "id": question.id, "clip": question.clip, "task": question.task, "closed": question.closed,
    "teachers": said,
  }  # fmt: skip


def lead(figures: variance.Figures, silent: int = 0) -> str:
  """What was found, in words, from the numbers alone; `silent` questions have no response."""
  everything = figures[variance.ALL]
  text = [f"{everything['responses']:,} responses to {everything['questions']:,} questions."]
  if math.isnan(everything["mean"]):
    text.append("None of the questions is closed-ended, so their quality cannot be measured.")
  else:
    across = everything["sd_across"]
    within = everything["sd_within"]
    text.append(
      f"Mean quality of closed-ended questions is {everything['mean']:.2f}; it differs across "
      f"questions by an s.d. of {_number(across)}, and between samples of one question by "
      f"{_number(within)}. At tau = {variance.TAU:g}, {everything['kept'][variance.TAU]:.0%} of "
      f"the responses survive and {everything['lost'][variance.TAU]:.1%} of the questions lose "
      "them all."
    )
  text.append(
    f"{everything['violations']:.1%} of all responses miss the format, {everything['cut_off']:.1%} "
    "were cut off."
  )
  if silent:
    text.append(f"{silent:,} questions have no response and are left out.")
  return " ".join(text)


def _number(value: float) -> str:
  return "-" if math.isnan(value) else f"{value:.2f}"

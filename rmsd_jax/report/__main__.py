"""One page that shows what a folder of runs did: python -m rmsd_jax.report DIR

DIR holds runs as the demo makes them (base, blind, sft, sft_continued, rl, or any other names), and
a pool; a run has metrics.jsonl, evaluate/test.json or both; or DIR is one run. Score cards of
benchmarks (card.json) are found anywhere below it. Written are DIR/report/index.html, complete in
one file, and its pictures as PNG files beside it. What is not there is left out, and the page says
so.
"""

import functools
import json
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import in_bucket, replace_text
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import rows, store
from rmsd_jax.data.prompts import Layout
from rmsd_jax.report import browser, curves, findings, plots, score_cards, teacher_page
from rmsd_jax.report.findings import NAMES, WAYS, Run, scores
from rmsd_jax.report.page import Page, plain, render, spread
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import variance
from rmsd_jax.teacher.scores import of_pool
from rmsd_jax.training import guard, log

TEMPLATE = "report.html.jinja"
MAX_COLUMNS = 8  # frame pairs shown of an example


def result_tables(runs: Sequence[Run]) -> tuple[list[str], dict[str, dict[str, dict]]]:
  """Columns (the closed-ended mean, graded tasks, others), and way -> run -> column -> interval."""
  evaluated = [run for run in runs if run.evaluation]
  prompts = [row for run in evaluated for row in run.evaluation["prompts"]]
  graded = {row["task"]: row["closed"] for row in prompts}
  tasks = sorted(graded, key=lambda task: (not graded[task], task))
  names = {task: plots.pretty(task) + ("" if graded[task] else " (format)") for task in tasks}
  tables: dict[str, dict[str, dict]] = {}
  for way in WAYS:
    for run in evaluated:
      if way not in run.evaluation:
        continue
      figures = run.evaluation[way]
      cells = {"all closed": figures["closed"]} | {
        names[task]: figures["tasks"][task] for task in figures["tasks"]
      }
      tables.setdefault(way, {})[run.name] = cells
  return ["all closed", *names.values()], tables


def results(page: Page, runs: Sequence[Run], differences: Sequence[Mapping]) -> dict[str, Any]:
  """The section on scores: tables for the template, figures for the page."""
  names = {run.name: run.label for run in runs}
  colours = {run.name: run.colour for run in runs}
  columns, tables = result_tables(runs)
  page.figure("results", "results", plots.result_bars(tables, columns, names, colours),
    "Held-out prompts by task. Look for the blue bars standing clear of the grey and yellow ones: "
    "what stage 1 gained. Whether orange differs from green is a question for the paired "
    "differences below, since overlapping bars of the same prompts hide most of what can be told. "
    "Whiskers: 95 % bootstrap over clips. Open-ended prompts are not graded; their bar is the "
    "share in the right format.",
    "No run has been evaluated: no evaluate/*.json of the asked name.")  # fmt: skip
  page.figure("results", "differences", plots.difference_forest(differences, colours, WAYS),
    "Each prompt is compared with itself, so the luck of the clips cancels. A bar that crosses the "
    "line at 0 shows no difference that can be told. The fair question to stage 2 is the row "
    "against continued SFT, which had as many further steps.",
    "No two runs that belong together were evaluated on the same prompts.")  # fmt: skip
  rates = {
    run.name: {int(k): rate for k, rate in run.evaluation["sampled"]["pass_at"].items()}
    for run in runs
    if run.evaluation and "pass_at" in run.evaluation.get("sampled", {})
  }
  page.figure("results", "pass_at_k", plots.pass_curves(rates, names, colours),
    "Share of prompts with at least one good answer (quality at or above the evaluation's "
    "pass_above) among k samples. A line that is higher on the left and meets the others on the "
    "right makes good answers likelier, but finds no new ones.",
    "No evaluation has more than one sample per prompt, so there is no pass@k.")  # fmt: skip
  evaluated = {run.name for run in runs if run.evaluation}
  lacking = [name for name in NAMES if name not in evaluated]
  if lacking and evaluated:
    page.lacks("results", f"Not evaluated here, nor compared with: {', '.join(lacking)}.")
  return {"columns": columns, "tables": tables}


def learning(page: Page, runs: Sequence[Run]) -> None:
  """The sections on both stages."""
  supervised = [run for run in runs if run.stage == 1]
  page.figure("stage_1", *curves.stage_1(supervised),
    "No metrics of a supervised run (sft/metrics.jsonl).")  # fmt: skip
  chosen = [run for run in runs if run.stage == 2]
  if not chosen:
    page.lacks("stage_2", "No metrics of a run with rollouts (rl/metrics.jsonl).")
  for run in chosen:
    for shown in curves.stage_2(run):
      page.figure("stage_2", *shown, f"{run.label}: nothing was logged for {shown.name}.png.")


def open_split(page: Page, runs: Sequence[Run], section: str, split: str) -> store.Pool | None:
  """The pool beside the page's folder, else the one that the evaluations name; None if neither."""
  built = page.pool(run.evaluation["pool"] for run in runs if run.evaluation)
  if built is None:
    beside = page.folder.parent / "pool"
    page.lacks(section, f"No pool: looked for {beside} and the pools the evaluations used.")
    return None
  try:
    return store.open_pool(built, split)
  except UserError as error:
    page.lacks(section, f"The pool cannot be read: {error}.")
    return None


def rules_of(runs: Sequence[Run]) -> Rules:
  """The tasks of the runs, those of a file of one's own among them."""
  for run in runs:
    if (run.folder / guard.CONFIG_FILE).is_file():
      return Rules(**guard.read_config(str(run.folder))["tasks"])
  return Rules()


def teacher_study(page: Page, runs: Sequence[Run]) -> dict[str, Any] | None:
  """The section on the teacher: figures per task beside the paper's."""
  opened = open_split(page, runs, "pool", "train")
  if opened is None:
    return None
  bar = functools.partial(Progress, label="teacher's figures")
  try:
    questions = of_pool(opened, rules_of(runs), bar).questions
  except UserError as error:
    page.lacks("pool", f"The teacher's answers cannot be read: {error}.")
    return None
  if not questions:
    page.lacks("pool", "The pool holds no teacher responses.")
    return None
  teachers = {name for question in questions for name in question.teachers}
  figures = variance.by_task(questions)
  return teacher_page.study_section(page, figures, teachers)


def choose(runs: Sequence[Run], seed: int = 0) -> dict[str, str]:
  """Prompt id -> why it is shown: one per task drawn blindly, and two where the stages differ."""
  answered = [run for run in runs if run.evaluation and run.name != "blind"]
  if not answered:
    return {}
  rng = np.random.default_rng(seed)
  rows_ = [row for row in answered[-1].evaluation["prompts"] if "text" in row["greedy"]]
  # By id: the draw must be the same whatever order the evaluation wrote.
  rows_.sort(key=lambda row: row["id"])
  chosen = {}
  for task in sorted({row["task"] for row in rows_}):
    ids = [row["id"] for row in rows_ if row["task"] == task]
    chosen[ids[rng.integers(len(ids))]] = "drawn blindly, one per task"
  by_name = {run.name: run for run in runs}
  if "rl" in by_name and "sft" in by_name:
    after = scores(by_name["rl"], "greedy")
    before = scores(by_name["sft"], "greedy")
    both = [row["id"] for row in rows_ if row["id"] in after and row["id"] in before]
    gain = {key: after[key][0] - before[key][0] for key in both}
    for sign, word in ((1, "better"), (-1, "worse")):
      ids = [key for key, value in gain.items() if sign * value > 0 and key not in chosen]
      if ids:
        chosen[ids[rng.integers(len(ids))]] = f"picked because stage 2 is {word} than stage 1 here"
  return chosen


def examples(page: Page, runs: Sequence[Run]) -> list[dict]:
  """The section of examples: prompts, frames, teacher responses, and the response of each run."""
  chosen = choose(runs)
  if not chosen:
    page.lacks("examples", "No run has been evaluated, so there are no responses to show.")
    return []
  evaluation = next(run.evaluation for run in reversed(runs) if run.evaluation)
  opened = open_split(page, runs, "examples", evaluation["split"])
  stored: dict[str, rows.Row] = {}
  for index in range(len(opened) if opened is not None else 0):
    row = opened[index]
    if row.id in chosen:
      stored[row.id] = row
    # A row is decoded to be read, so that a search goes on no longer than it must.
    if len(stored) == len(chosen):
      break
  if opened is not None and len(stored) < len(chosen):
    lost = ", ".join(sorted(set(chosen) - set(stored)))
    page.lacks("examples", f"Not in the pool, so without frames and teacher: {lost}.")
  shown = []
  for number, (key, why) in enumerate(chosen.items(), 1):
    example = _example(key, why, runs)
    if key in stored:
      example |= _from_pool(page, f"example_{number}", stored[key], opened.layout)
    shown.append(example)
  return shown


def _example(key: str, why: str, runs: Sequence[Run]) -> dict[str, Any]:
  """The prompt and what each run answered."""
  prompt = {}
  answers = []
  for run in runs:
    for row in run.evaluation["prompts"] if run.evaluation else ():
      if row["id"] != key or "text" not in row["greedy"]:
        continue
      prompt = row
      sampled = row.get("sampled")
      answers.append({
        "label": run.label, "colour": run.colour, "text": plain(row["greedy"]["text"][0]),
        "quality": row["greedy"]["quality"][0] if row["closed"] else None,
        "format": row["greedy"]["outer"][0] == 1 == row["greedy"]["inner"][0],
        "sampled": float(np.mean(sampled["quality"])) if sampled and row["closed"] else None,
      })  # fmt: skip
  answer = prompt["answer"] if isinstance(prompt["answer"], str) else json.dumps(prompt["answer"])
  named = {name: prompt[name] for name in ("id", "clip", "task", "question", "options", "closed")}
  return named | {"why": why, "answer": answer, "answers": answers, "teachers": [], "uri": ""}


def _from_pool(page: Page, name: str, row: rows.Row, layout: Layout) -> dict[str, Any]:
  """Frames with their times, and the teacher's responses."""
  teachers = [
    {"text": plain(text), "teacher": teacher, "valid": bool(valid), "quality": float(quality)}
    for text, teacher, valid, quality in zip(
      row.texts, row.teachers, row.valid_K, row.quality_K, strict=True
    )
  ]
  if not row.pictures:
    return {"teachers": teachers}
  pictures = rows.unpack(row)
  kept = spread(len(pictures), MAX_COLUMNS)
  columns = [
    np.split(pictures[f], len(pictures[f]) // (layout.patch * int(row.grid_F2[f][0]))) for f in kept
  ]
  boxes = row.answer.get("boxes") if isinstance(row.answer, dict) else None
  box = boxes if isinstance(boxes, list) and len(boxes) == 4 else None
  times = [
    "picture" if np.isnan(first) else f"{first:.1f}\N{EN DASH}{last:.1f} s"
    for first, last in row.times_F2[kept]
  ]
  uri = page.picture(name, plots.film(columns, box=box))
  return {"teachers": teachers, "uri": uri, "times": times, "boxed": box is not None}


def overview(runs: Iterable[Run]) -> list[dict[str, Any]]:
  """One line per run: what it is and what of it is there."""
  return [
    {
      "name": run.name, "label": run.label, "colour": run.colour,
      "steps": int(run.lines[-1]["step"]) if run.lines else None,
      "seconds": run.lines[-1]["time"] - run.lines[0]["time"] if run.lines else None,
      "evaluated": _which(run.evaluation) if run.evaluation else None,
      "closed": _closed(run.evaluation) if run.evaluation else None,
    }
    for run in runs
  ]  # fmt: skip


def _closed(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float] | None]:
  """Way -> the interval over closed-ended prompts, or None where the run was not asked that way."""
  return {way: evaluation[way]["closed"] if way in evaluation else None for way in WAYS}


def _which(evaluation: Mapping[str, Any]) -> str:
  step = evaluation["step"]
  return evaluation["checkpoint"] if step is None else f"step {step}"


def write_report(directory: str, name: str) -> tuple[pathlib.Path, str]:
  """Writes the page of a folder; returns its path and its first paragraph.

  Raises:
    UserError: the folder is not there or holds no run, pool or score card; a file is broken.
  """
  top = pathlib.Path(directory)
  if in_bucket(directory):
    raise UserError(
      f"{directory} is in a bucket, and the page is made from local files; copy the runs without "
      f"their checkpoints: gcloud storage rsync -r -x '.*checkpoints/.*' {directory} runs"
    )
  if not top.is_dir():
    raise UserError(f"{directory} is not a folder; give the folder that holds the runs")
  runs = findings.find_runs(top, name)
  found = score_cards.paths_below(top)
  if not runs and not found and not (top / "pool" / "metadata.json").is_file():
    raise UserError(
      f"{directory} holds no run: no {log.FILE} and no evaluate/{name}.json in it or in a "
      "folder of it, no pool and no score card; give the folder that holds the runs, or train or "
      "evaluate first"
    )
  page = Page(top / "report")
  # After the checks, so that a wrong folder is not left with an empty report in it.
  page.folder.mkdir(exist_ok=True)
  differences = findings.compare({run.name: run for run in runs})
  said = findings.headline(runs, differences), findings.lead(runs, differences)
  read = score_cards.section(page, top, found)
  headline, text = said if runs or not found else score_cards.opening(read)
  learning(page, runs)
  samples = browser.entries(page, runs)
  films = browser.films(page, runs, samples)
  html = render(
    TEMPLATE,
    title=top.resolve().name, headline=headline, lead=text,
    runs=overview(runs), differences=differences, ways=WAYS,
    labels={run.name: run for run in runs}, results=results(page, runs, differences),
    study=teacher_study(page, runs), examples=examples(page, runs), figures=page.figures,
    missing=page.missing,
    cards=read, samples=samples, films=films,
    made=time.strftime("%Y-%m-%d %H:%M"),
  )  # fmt: skip
  replace_text(page.folder / "index.html", html)
  return page.folder / "index.html", text


def main() -> None:
  parser = cli.parser_of(main)
  parser.add_argument("directory", metavar="DIR", help="a folder of runs, or one run")
  parser.add_argument(
    "--evaluation",
    default="test",
    metavar="NAME",
    help="read evaluate/NAME.json of each run (default: %(default)s)",
  )
  args = parser.parse_args()
  path, text = write_report(args.directory, args.evaluation)
  print(f"{text}\nwrote {path}")


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.run(main)


if __name__ == "__main__":
  command()

"""What a folder of runs holds, and what can be said of it: paired comparisons, and in words.

Scores are qualities, valid * metric, in [0, 1]; intervals are 95 % bootstrap over clips.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsd_jax.core import intervals
from rmsd_jax.core.errors import UserError
from rmsd_jax.report import plots
from rmsd_jax.training import log, old_runs

WAYS = ("greedy", "sampled")
NAMES = {
  "base": "base",
  "blind": "best constant answers",
  "sft": "stage 1",
  "sft_continued": "continued SFT",
  "rl": "stage 2",
}
PAIRS = (
  ("sft", "blind"),
  ("sft", "base"),
  ("rl", "sft"),
  ("rl", "sft_continued"),
  ("sft_continued", "sft"),
)

# The comparisons that a page opens with: those of the last stage that was evaluated. Stage 2 must
# stand against continued SFT, too, which had as many further steps.
HEADLINES = {"rl": ("sft", "sft_continued"), "sft": ("base", "blind")}


@dataclasses.dataclass(frozen=True)
class Run:
  """What one folder holds. `stage` is 1 or 2 by what its metrics tell, 0 without metrics."""

  name: str
  label: str
  colour: str
  folder: pathlib.Path
  lines: list[dict[str, float]]
  stage: int
  evaluation: dict[str, Any] | None


def find_runs(directory: pathlib.Path, name: str) -> list[Run]:
  """The runs in a folder, or the folder itself where it is one; known names first.

  Args:
    name: of the evaluation to read, evaluate/NAME.json.
  """
  folders = [directory, *(path for path in directory.iterdir() if path.is_dir())]
  by_run = {
    path.resolve().name: path
    for path in folders
    if (path / log.FILE).is_file() or (path / "evaluate" / f"{name}.json").is_file()
  }
  others = sorted(set(by_run) - set(NAMES))
  ordered = [known for known in NAMES if known in by_run] + others
  return [_read_run(by_run[run], run, others, name) for run in ordered]


def _read_run(folder: pathlib.Path, run: str, others: Sequence[str], name: str) -> Run:
  try:
    lines = log.read(str(folder))
  except ValueError as error:
    raise UserError(
      f"{folder / log.FILE} has a line that is not JSON ({error}); remove the line"
    ) from error
  keys = set().union(*lines)
  # By what was logged and not by the folder's name, which is the user's.
  stage = 2 if "rollout/length" in keys else int("loss" in keys)
  label = NAMES.get(run, run)
  colour = plots.colour_of(run, others)
  path = folder / "evaluate" / f"{name}.json"
  return Run(run, label, colour, folder, lines, stage, _read_evaluation(path))


def _read_evaluation(path: pathlib.Path) -> dict[str, Any] | None:
  if not path.is_file():
    return None
  try:
    result = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path} is not JSON ({error}); run rmsd_jax.evaluate again") from error
  needed = ("greedy", "prompts", "pool", "split")
  lacking = [key for key in needed if not isinstance(result, dict) or not result.get(key)]
  if lacking:
    raise UserError(f"{path} has no {lacking[0]!r}; run rmsd_jax.evaluate again")
  return old_runs.evaluation_now(result)


def scores(run: Run, way: str, task: str = "") -> dict[str, tuple[float, str]]:
  """Prompt id -> mean quality over its responses, and its clip; closed-ended prompts only.

  Constant answers are the same however they are drawn, so "blind" has one score for both ways.
  """
  if run.evaluation is None:
    return {}
  way = "greedy" if run.name == "blind" else way
  return {
    row["id"]: (float(np.mean(row[way]["quality"])), row["clip"])
    for row in run.evaluation["prompts"]
    if row["closed"] and way in row and task in ("", row["task"])
  }


def difference(first: Run, second: Run, way: str, task: str = "") -> dict[str, float] | None:
  """Mean of first - second over the prompts both answered, with its 95 % interval over clips."""
  a = scores(first, way, task)
  b = scores(second, way, task)
  # Paired: a prompt that one of the two lacks says nothing of their difference.
  shared = [key for key in a if key in b]
  if not shared:
    return None
  values = [a[key][0] - b[key][0] for key in shared]
  return intervals.mean_interval(values, [a[key][1] for key in shared])


def verdict(interval: Mapping[str, float]) -> str:
  """What an interval of a difference allows to say."""
  if interval["low"] > 0:
    return "better"
  return "worse" if interval["high"] < 0 else "no difference can be told"


def signed(value: float) -> str:
  return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def compare(by_name: Mapping[str, Run]) -> list[dict]:
  """The paired differences that can be taken: label, per way an interval or None, and by task."""
  result = []
  for first, second in PAIRS:
    if first not in by_name or second not in by_name:
      continue
    runs = by_name[first], by_name[second]
    by_way = {way: difference(*runs, way) for way in WAYS}
    if not any(by_way.values()):
      continue
    tasks = sorted({row["task"] for row in runs[0].evaluation["prompts"] if row["closed"]})
    label = f"{runs[0].label} \N{MINUS SIGN} {runs[1].label}"
    per_task = {task: {way: difference(*runs, way, task) for way in WAYS} for task in tasks}
    said = f"{runs[0].label[0].upper()}{runs[0].label[1:]} minus {_the(runs[1])}"
    result.append(
      {"first": first, "second": second, "label": label, "said": said, "tasks": per_task, **by_way}
    )
  return result


def _the(run: Run) -> str:
  return f"the {run.label}" if run.name in ("base", "blind") else run.label


def headline(runs: Sequence[Run], differences: Sequence[Mapping]) -> str:
  """What came out, in one sentence: the last stage against what it started from."""
  labels = {run.name: _the(run) for run in runs}
  for first, seconds in HEADLINES.items():
    beside = {row["second"]: row for row in differences if row["first"] == first}
    chosen = [beside[second] for second in seconds if second in beside]
    if chosen:
      subjects = [labels[first]] + ["it"] * (len(chosen) - 1)
      said = [
        _comparison(row, who, labels[row["second"]])
        for row, who in zip(chosen, subjects, strict=True)
      ]
      return _sentence("; ".join(said))
  graded = [run for run in runs if scores(run, "greedy")]
  if not graded:
    return "Nothing was evaluated here on closed-ended prompts."
  means = ", ".join(f"{_the(run)} {_mean(run):.3f}" for run in graded)
  return _sentence(f"no stage was evaluated beside what it started from; quality of {means}")


def _comparison(row: Mapping, first: str, second: str) -> str:
  """e.g. "stage 2 is better than stage 1 by +0.120 [+0.090, +0.150] (greedy)".

  The other way of answering is told where it says something else.
  """
  way, *others = [way for way in WAYS if row[way]]
  said = verdict(row[way])
  ways = [way] + [
    f"{other}, {verdict(row[other])}: {_interval(row[other])}"
    for other in others
    if verdict(row[other]) != said
  ]
  shown = f"{_interval(row[way])} ({'; '.join(ways)})"
  if said in ("better", "worse"):
    return f"{first} is {said} than {second} by {shown}"
  return f"whether {first} is better than {second} cannot be told: {shown}"


def _sentence(text: str) -> str:
  return f"{text[0].upper()}{text[1:]}."


def lead(runs: Sequence[Run], differences: Sequence[Mapping]) -> str:
  """What came out, in words, from the numbers alone."""
  graded = [run for run in runs if scores(run, "greedy")]
  if not graded:
    return (
      "No evaluation with closed-ended prompts was found here, so nothing can be said about how "
      "good the student is on held-out clips. What else is here is shown below."
    )
  counts = {run.name: len(scores(run, "greedy")) for run in graded}
  clips = {clip for run in graded for _, clip in scores(run, "greedy").values()}
  means = [f"{_mean(run):.3f} for {_the(run)}" for run in graded]
  listed = ", ".join(means[:-1]) + " and " + means[-1] if len(means) > 1 else means[0]
  text = [
    f"Quality of greedy answers to {max(counts.values())} closed-ended prompts about {len(clips)} "
    f"held-out clips: {listed}."
  ]
  if len(set(counts.values())) > 1:
    text.append("The runs were not evaluated on the same number of prompts.")
  # What was unlike is said here, where the figures are, since they look comparable.
  unlike = lambda name: any(run.evaluation.get(name) != first.get(name) for run in graded)
  first = graded[0].evaluation
  if unlike("pool_identity"):
    text.append(
      "The runs were evaluated on pools of different contents (frames, pixels, questions or "
      "rules), so differences are the pools', too."
    )
  if any(map(unlike, ("rollouts", "samples", "pass_above"))):
    text.append(
      "They were sampled in different ways (temperature, number of samples, or what passes), so "
      "sampled scores and pass@k cannot be compared."
    )
  for row in differences:
    parts = [f"{_interval(row[way])} {way}: {verdict(row[way])}" for way in WAYS if row[way]]
    said = [verdict(row[way]) for way in WAYS if row[way]]
    if len(said) == 2 and said[0] == said[1]:
      parts = [f"{_interval(row['greedy'])}: {said[0]} (sampled {signed(row['sampled']['mean'])})"]
    text.append(f"{row['said']}: {'; '.join(parts)}.")
  if differences and len(clips) < 30:
    text.append(f"With only {len(clips)} clips the intervals themselves are rough.")
  if differences:
    text.append(
      "Brackets are 95 % intervals over clips; they do not hold the luck of the training seed."
    )
  return " ".join(text)


def _mean(run: Run) -> float:
  return float(np.mean([quality for quality, _ in scores(run, "greedy").values()]))


def _interval(interval: Mapping[str, float]) -> str:
  return f"{signed(interval['mean'])} [{signed(interval['low'])}, {signed(interval['high'])}]"

"""What a grid of ablations came to: Markdown, CSV and a plot, from the evaluations of its runs.

Scores are on the same held-out prompts in every run: closed-ended ones, but for the measures that
say otherwise. Intervals are over training seeds and clips (`intervals.crossed_interval`),
differences are paired by seed and prompt.
Axes: S seeds, N prompts.
"""

import csv
import functools
import gzip
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsd_jax.core import intervals
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text
from rmsd_jax.demo import facts, simulated_teacher
from rmsd_jax.report import plots
from rmsd_jax.rollouts import discrimination
from rmsd_jax.tasks import Rules

# Of sampled replies. Facts are what no reward reads (rmsd_jax.demo.facts): of the reasoning to all
# prompts the share that is true, 0 where none is stated; of open-ended answers what they name.
OPEN_ENDED = "open-ended ROUGE-L"
OPEN_FACTS = "open-ended facts"
REASONING = "facts in the reasoning"
MEASURES = ("greedy", "sampled", "pass@1", "pass@8", OPEN_ENDED, OPEN_FACTS, REASONING)
PASS_ABOVE = 0.5  # quality from which a sample passes
STAGES = {"sft": "stage 1", "rl": "stage 2"}
COMPARED = (  # (row, stage) minus (row, stage), and the question that it answers
  (("B", "rl"), ("A", "rl"), "do more samples help (B - A)"),
  (("C", "rl"), ("B", "rl"), "does the filter help (C - B)"),
  (("D", "rl"), ("C", "rl"), "does weighting help (D - C)"),
  (("B", "sft"), ("A", "sft"), "B - A after stage 1"),
  (("C", "sft"), ("B", "sft"), "C - B after stage 1"),
  (("D", "sft"), ("C", "sft"), "D - C after stage 1"),
  (("D", "rl"), ("A", "rl"), "R-MSD against one sample (D - A)"),
  (("D", "rl"), ("D", "sft"), "stage 2 against stage 1, of D"),
  (("D", "rl"), ("no_D", "rl"), "with a discriminator against without (D - no_D)"),
  (("learned", "rl"), ("no_D_fresh", "rl"), "one that has learned against none, on fresh prompts"),
  (("D", "rl"), ("continued", "rl"), "stage 2 against stage 1 that goes on"),
  (("D", "rl"), ("rejection", "rl"), "stage 2 against rejection sampling"),
  (("rejection", "rl"), ("continued", "rl"), "own answers against the teacher's again"),
  (("weighed", "sft"), ("D", "sft"), "two teachers, weighed against alike, after stage 1"),
  (("weighed", "rl"), ("D", "rl"), "the same after both"),
  (("best_teacher", "sft"), ("D", "sft"), "the better of two teachers against both, after stage 1"),
  (("best_teacher", "rl"), ("D", "rl"), "the same after both"),
  (("C", "rl"), ("C_tau0.5", "rl"), "tau = 0.3 against 0.5, a random survivor as target"),
  (("C", "sft"), ("C_tau0.5", "sft"), "the same after stage 1"),
  (("D", "sft"), ("A", "sft"), "R-MSD's stage 1 against one sample's (D - A)"),
  (("D", "rl"), ("sft_rl", "rl"), "R-MSD against SFT + RL"),
  (("D", "rl"), ("gad", "rl"), "R-MSD against GAD"),
  (("D", "rl"), ("frozen", "rl"), "online discriminator against a frozen one"),
  (("warm", "rl"), ("warm_frozen", "rl"), "online against frozen, 300 updates of a raw score"),
  (("gad_warm", "rl"), ("gad", "rl"), "GAD with a longer warm-up against without"),
  (("D", "rl"), ("gate_off", "rl"), "with the content gate against without"),
  (("D", "rl"), ("closed_uniform", "rl"), "closed-ended by ground truth against uniform"),
  (("D", "rl"), ("open_graded", "rl"), "open-ended uniform against by ROUGE-L"),
)

# What the study set out to answer, written down before its runs (docs/results.md); the intervals
# are corrected for their number (Bonferroni). All else is exploratory.
PRIMARY = (  # (row, stage) minus (row, stage), the measure, the question
  (("D", "rl"), ("A", "rl"), "sampled", "R-MSD against one sample: quality"),
  (("D", "rl"), ("no_D", "rl"), OPEN_FACTS, "with a discriminator: open-ended facts"),
  (("warm", "rl"), ("warm_frozen", "rl"), "sampled", "online against frozen: quality"),
  (("D", "rl"), ("open_graded", "rl"), OPEN_FACTS, "open-ended uniform: open-ended facts"),
  (("C", "rl"), ("C_tau0.5", "rl"), "sampled", "tau = 0.3 against 0.5: quality"),
)
PRIMARY_LEVEL = 1 - 0.05 / len(PRIMARY)


class RunScores(NamedTuple):
  """What the evaluation of a run came to, prompt by prompt."""

  values: Mapping[str, Mapping[str, float]]  # measure -> prompt id, sorted -> value
  clips: Mapping[str, str]  # prompt id -> clip
  tasks: Mapping[str, str]  # prompt id -> task
  format: float  # share of sampled replies that keep the format
  length: float  # their mean, tokens
  ranking: Mapping[str, float] = {}  # by a discriminator: means of `discrimination.ranking`


Runs = Mapping[int, RunScores]  # by training seed
Found = Mapping[tuple[str, str], Runs]  # by row and stage


def scores_of(result: Mapping[str, Any], world_seed: int = 0) -> RunScores:
  """Of an evaluation, as `rmsd_jax.evaluate` writes it.

  Args:
    world_seed: that the pool was drawn with.
  """
  rows = sorted(result["prompts"], key=lambda row: row["id"])
  asked = {
    measure: [
      row
      for row in rows
      if measure == REASONING or row["closed"] == (measure not in (OPEN_ENDED, OPEN_FACTS))
    ]
    for measure in MEASURES
  }
  values = {
    measure: {row["id"]: round(_value(row, measure, world_seed), 6) for row in some}
    for measure, some in asked.items()
  }
  sampled = result["sampled"]
  of = lambda name: {row["id"]: row[name] for row in rows}
  found = result.get("discrimination", {})
  # One without such pairs has no mean.
  ranking = {name: found[name]["mean"] for name in discrimination.RANKED if name in found}
  ranking = {name: round(mean, 6) for name, mean in ranking.items() if not np.isnan(mean)}
  return RunScores(values, of("clip"), of("task"), sampled["format"], sampled["length"], ranking)


def matrix(runs: Runs, measure: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
  """values_SN of a measure, seeds in order, and (id, clip) of each of the N prompts.

  Raises:
    UserError: the runs were evaluated on different prompts.
  """
  of = [runs[seed].values[measure] for seed in sorted(runs)]
  names = list(of[0])
  if any(list(values) != names for values in of):
    raise UserError("the runs of a grid were evaluated on different prompts; evaluate them again")
  values_SN = np.array([[values[name] for name in names] for values in of])
  clips = runs[min(runs)].clips
  return values_SN, [(name, clips[name]) for name in names]


def _value(row: Mapping, measure: str, world_seed: int) -> float:
  replies = row["sampled"]["text"]
  if measure == OPEN_ENDED:
    return float(np.mean([_rouge(reply, row["answer"]) for reply in replies]))
  if measure == OPEN_FACTS:
    scene = _scene(row["clip"], world_seed)
    return float(np.mean([facts.description_score(reply, scene) for reply in replies]))
  if measure == REASONING:
    scene = _scene(row["clip"], world_seed)
    scores = [facts.reasoning_score(reply, scene, row["question"]) for reply in replies]
    return float(np.nan_to_num(scores).mean())
  if not measure.startswith("pass@"):
    return float(np.mean(row[measure]["quality"]))
  passed_BN = intervals.passes([row["sampled"]["quality"]], PASS_ABOVE)
  return float(intervals.pass_at_k(passed_BN, int(measure.removeprefix("pass@"))).mean())


@functools.cache  # asked for each measure of each run
def _scene(clip: str, world_seed: int):
  return simulated_teacher.scene_of(clip, world_seed)[0]


@functools.cache  # the same answers are sampled again and again
def _rouge(reply: str, truth: str) -> float:
  return Rules().score("open_ended", reply, truth).rouge


def score(runs: Runs, measure: str) -> dict[str, float]:
  """Mean over seeds and prompts, with its interval."""
  values_SN, prompts = matrix(runs, measure)
  return intervals.crossed_interval(values_SN, [clip for _, clip in prompts])


def difference(
  first: Runs, second: Runs, measure: str, level: float = 0.95, task: str = ""
) -> dict[str, float] | None:
  """Interval of first - second over the seeds both have; None without one.

  Args:
    task: of the prompts that count; "": all.
  """
  seeds = sorted(set(first) & set(second))
  if not seeds:
    return None
  (a_SN, prompts), (b_SN, others) = (
    matrix({seed: runs[seed] for seed in seeds}, measure) for runs in (first, second)
  )
  if prompts != others:
    raise UserError("the runs of a grid were evaluated on different prompts; evaluate them again")
  tasks = first[seeds[0]].tasks
  kept = [n for n, (name, _) in enumerate(prompts) if task in ("", tasks[name])]
  clips = [prompts[n][1] for n in kept]
  return intervals.crossed_interval((a_SN - b_SN)[:, kept], clips, level)


def markdown(rows: Mapping[str, Any], results: Found) -> str:
  """The tables: scores by row, and the differences that answer the paper's questions."""
  first = next(iter(results.values()), None)
  if not first:
    return "No run of this grid has ended yet.\n"
  benchmarks = list(dict.fromkeys(name for row in rows.values() for name in row.paper))
  head = ["row", "", "seeds", "stage 1 greedy", "stage 1 sampled", *MEASURES,
          "s.d. of seeds, sampled", *(f"paper: {name}" for name in benchmarks)]  # fmt: skip
  table = [head, ["---"] * len(head)]
  for name, row in rows.items():
    before, after = _stages(results, name)
    cells = [_plain(before, measure) for measure in ("greedy", "sampled")]
    cells += [_cell(score(after, measure)) if after else "-" for measure in MEASURES]
    cells.append(_spread(after, "sampled"))
    papers = [f"{row.paper[b]:g}" if b in row.paper else "-" for b in benchmarks]
    table.append([name, row.label, str(len(after)), *cells, *papers])
  closed, others = (len(matrix(first, measure)[1]) for measure in ("greedy", OPEN_ENDED))
  text = [
    f"Quality on {closed} held-out closed-ended prompts of the demo world after stage 2 (stage 1 "
    f"where it says so), ROUGE-L and the facts named on {others} open-ended ones, the facts in the "
    "reasoning on all; means over training seeds; 95 % "
    "intervals over seeds and clips, with one seed over clips alone. The paper's figures are "
    "accuracies of a 4B student on real benchmarks: not the same scale.",
    _lines(table),
    "Differences, paired by seed and prompt, with 95 % intervals:",
    _lines(_differences(results)),
  ]
  if len(tasks := _by_task(results)) > 2:
    text += ["Sampled quality by task, paired, with 95 % intervals:", _lines(tasks)]
  if len(ranked := _ranked(results)) > 2:
    text += [
      "How their discriminators rank held-out replies after stage 2 (0.5 is chance, of the "
      "favourite 0): means over seeds, and the lowest and highest seed:",
      _lines(ranked),
    ]
  if len(primary := _primary(results)) > 2:
    share = 100 * PRIMARY_LEVEL
    text += [f"The study's primary comparisons, with {share:g} % intervals:", _lines(primary)]
  return "\n\n".join(text) + "\n"


def _stages(results: Found, row: str) -> tuple[Runs, Runs]:
  """A row's runs of stage 1 and of stage 2; of stage 1 the seeds that stage 2 has, if it has any.

  Rows share their stage 1, so there may be more of it.
  """
  before = results.get((row, "sft"), {})
  after = results.get((row, "rl"), {})
  return {seed: run for seed, run in before.items() if not after or seed in after}, after


def _differences(results: Found) -> list[list[str]]:
  table = [["question", "seeds", *MEASURES], ["---"] * (2 + len(MEASURES))]
  for row, baseline, question in COMPARED:
    if row in results and baseline in results:
      cells = {m: difference(results[row], results[baseline], m) for m in MEASURES}
      if all(cells.values()):
        seeds = str(cells["greedy"]["seeds"])
        table.append([question, seeds, *(_cell(cells[m], signed=True) for m in MEASURES)])
  return table


def _by_task(results: Found) -> list[list[str]]:
  """Where the gain over one sample is: does it follow the teacher's spread, as the paper says?"""
  pairs = [
    (f"D - A after {STAGES[stage]}", results[("D", stage)], results[("A", stage)])
    for stage in STAGES
    if set(results.get(("D", stage), {})) & set(results.get(("A", stage), {}))
  ]
  table = [["task", *(name for name, _, _ in pairs)], ["---"] * (1 + len(pairs))]
  if not pairs:
    return table
  run = next(iter(pairs[0][1].values()))
  for task in sorted({run.tasks[name] for name in run.values["sampled"]}):
    cells = [difference(a, b, "sampled", task=task) for _, a, b in pairs]
    table.append([task, *(_cell(cell, signed=True) for cell in cells if cell)])
  return table


def _ranked(results: Found) -> list[list[str]]:
  """Of the runs of stage 2 whose discriminators were asked (`config.evaluate.discriminator`)."""
  table = [
    ["row", "seeds", *discrimination.RANKED.values()],
    ["---"] * (2 + len(discrimination.RANKED)),
  ]
  for (row, _), runs in results.items():
    asked = [run.ranking for run in runs.values() if run.ranking]
    of = {name: [one[name] for one in asked if name in one] for name in discrimination.RANKED}
    cells = [
      f"{np.mean(some):.3f}" + f" [{min(some):.3f}, {max(some):.3f}]" * (len(some) > 1)
      if some
      else "-"
      for some in of.values()
    ]
    if asked:
      table.append([row, str(len(asked)), *cells])
  return table


def _primary(results: Found) -> list[list[str]]:
  table = [["question", "measure", "seeds", "difference"], ["---"] * 4]
  for row, baseline, measure, question in PRIMARY:
    if row in results and baseline in results:
      found = difference(results[row], results[baseline], measure, PRIMARY_LEVEL)
      if found:
        table.append([question, measure, str(found["seeds"]), _cell(found, signed=True)])
  return table


def _plain(runs: Mapping, measure: str) -> str:
  return f"{matrix(runs, measure)[0].mean():.3f}" if runs else "-"


def _spread(runs: Runs, measure: str) -> str:
  """Standard deviation over seeds of a run's mean."""
  return f"{matrix(runs, measure)[0].mean(1).std(ddof=1):.3f}" if len(runs) > 1 else "-"


def _cell(interval: Mapping[str, float], signed: bool = False) -> str:
  form = "+.3f" if signed else ".3f"
  mean, low, high = (format(interval[name], form) for name in ("mean", "low", "high"))
  return f"{mean} [{low}, {high}]"


def _lines(table: Sequence[Sequence[str]]) -> str:
  return "\n".join("| " + " | ".join(line) + " |" for line in table)


def table_csv(results: Found) -> str:
  """One line a run: row, stage, seed, the means of all measures, format rate and mean length."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(["row", "stage", "seed", *MEASURES, "format", "length"])
  for (row, stage), runs in results.items():
    for seed, result in sorted(runs.items()):
      means = [f"{matrix({seed: result}, measure)[0].mean():.4f}" for measure in MEASURES]
      extra = [f"{result.format:.4f}", f"{result.length:.4f}"]
      writer.writerow([row, stage, seed, *means, *extra])
  return out.getvalue()


def figure(rows: Mapping[str, Any], results: Found):
  """Scores by row with intervals and single seeds, the paper's beside them on their own scale."""
  done = [name for name in rows if (name, "rl") in results]
  if not done:
    return None
  height = 0.9 + 0.34 * len(done)
  with plots.styled(1, 3, height) as (made, axes):
    for ax, measure in zip(axes, ("greedy", "sampled"), strict=False):
      for place, name in enumerate(done):
        styles = (("sft", "#8b8f94", 0.18), ("rl", "#d55e00", -0.18))
        for (stage, colour, shift), runs in zip(styles, _stages(results, name), strict=True):
          if runs:
            span = score(runs, measure)
            ax.plot([span["low"], span["high"]], [place - shift] * 2, color=colour, linewidth=1.4)
            seeds = matrix(runs, measure)[0].mean(1)
            ax.plot(seeds, [place - shift] * len(seeds), ".", color=colour, markersize=3)
            label = STAGES[stage] if place == 0 else None
            ax.plot(span["mean"], place - shift, "o", color=colour, markersize=5, label=label)
      ax.set_title(f"{measure} quality, here")
    for benchmark, marker in (("VideoMME", "s"), ("Video-MMMU", "D")):
      points = [(rows[n].paper[benchmark], p) for p, n in enumerate(done)
                if benchmark in rows[n].paper]  # fmt: skip
      if points:
        axes[2].plot(*zip(*points, strict=True), marker, color="#0072b2", markersize=5,
                     fillstyle="full" if marker == "s" else "none", label=benchmark)  # fmt: skip
    axes[2].set_title("the paper, 4B: another scale")
    for ax in axes:
      ax.set_yticks(range(len(done)), done if ax is axes[0] else [])
      ax.set_ylim(len(done) - 0.5, -0.5)
    named = {}
    for ax in (axes[0], axes[2]):
      handles, labels = ax.get_legend_handles_labels()
      named |= dict(zip(labels, handles, strict=True))
    made.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
  return made


def write_tables(
  workdir: pathlib.Path, rows: Mapping[str, Any], results: Found, noise: str
) -> None:
  """Writes WORKDIR/ablations.md, .csv, scores.jsonl.gz and, with a run of stage 2, .png."""
  replace_text(workdir / "ablations.md", markdown(rows, results))
  replace_text(workdir / "ablations.csv", table_csv(results))
  keep(workdir / "scores.jsonl.gz", rows, results, noise)
  if (made := figure(rows, results)) is not None:
    (workdir / "ablations.png").write_bytes(plots.png(made))


def keep(file: pathlib.Path, rows: Mapping[str, Any], results: Found, noise: str) -> None:
  """Writes the scores of every run, a line each, so that another grid can go on from them.

  Args:
    noise: of the pool's teacher, a key of `simulated_teacher.NOISES`.
  """
  lines = [
    json.dumps({"row": row, "stage": stage, "seed": seed, "changes": _changed(rows[row], stage),
                "noise": noise} | scores._asdict()) + "\n"
    for (row, stage), runs in results.items()
    for seed, scores in sorted(runs.items())
  ]  # fmt: skip
  # mtime: the same scores give the same bytes.
  file.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def _changed(row: Any, stage: str) -> dict[str, Any]:
  return {**row.changes, **(row.second if stage == "rl" else {})}


def kept(file: pathlib.Path, rows: Mapping[str, Any], noise: str) -> Found:
  """The scores that `keep` wrote, of the rows that are asked for.

  Raises:
    UserError: it is no such file, is of another teacher, or a row changed other keys when it was
      run.
  """
  results: dict[tuple[str, str], dict[int, RunScores]] = {}
  try:
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    for line in map(json.loads, lines):
      row, stage, seed, changes = (line.pop(key) for key in ("row", "stage", "seed", "changes"))
      if "tasks" not in line:
        raise UserError(f"{file} is of an earlier version of rmsd_jax; run its rows again")
      if (made := line.pop("noise")) != noise:
        raise UserError(f"{file} is of --noise {made}, this grid of {noise}; give the same")
      if row in rows:
        if changes != json.loads(json.dumps(_changed(rows[row], stage))):
          raise UserError(f"{file}: row {row} was run with other changes; run it again")
        results.setdefault((row, stage), {})[seed] = RunScores(**line)
  except (OSError, ValueError, KeyError, TypeError) as fault:
    raise UserError(
      f"{file} holds no scores of a grid ({fault}); give its scores.jsonl.gz"
    ) from fault
  return results

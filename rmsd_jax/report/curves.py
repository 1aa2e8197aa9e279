"""Learning curves of both stages, from logged metrics: what is drawn, and what to look for.

Figures come with the sentences that stand below them in the report; nothing is read or written.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmsd_jax.report import plots
from rmsd_jax.report.findings import Run

TERMS = ("content", "discriminator", "outer", "inner")  # of the method
_A_TERM = re.compile("reward/[^/]+/mean")


class Shown(NamedTuple):
  """A figure (None: nothing was logged) and its caption."""

  name: str
  figure: Figure | None
  caption: str


class Curve(NamedTuple):
  """One metric of one run: `key` of the lines of its metrics.jsonl."""

  lines: Sequence[Mapping[str, float]]
  key: str
  label: str
  colour: str
  shift: int = 0  # added to the steps: a run that continues another


class Panel(NamedTuple):
  """Axes of curves over training steps."""

  title: str
  unit: str
  curves: Sequence[Curve]
  level: float | None = None  # a dashed line to compare with
  share: bool = False  # the axis covers 0 to 1
  log: bool = False
  band: tuple[Curve, Curve] | None = None  # filled between


def series(lines: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of a metric, where it was logged and is finite."""
  pairs = [(line["step"], line[key]) for line in lines if key in line]
  pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
  steps, values = zip(*pairs, strict=True) if pairs else ((), ())
  return np.array(steps, float), np.array(values, float)


def smoothed(values: np.ndarray) -> np.ndarray:
  """Centred running mean over about a tenth of a curve; short curves stay as they are."""
  half = len(values) // 20
  if not half:
    return values
  total = np.concatenate([[0.0], np.cumsum(values)])
  middle = np.arange(len(values))
  # Windows shrink at both ends, where there is nothing to average with.
  low = np.maximum(middle - half, 0)
  high = np.minimum(middle + half + 1, len(values))
  return (total[high] - total[low]) / (high - low)


def curves(panels: Sequence[Panel]) -> Figure | None:
  """Panels in two columns; those of which nothing was logged are left out."""
  logged = lambda curve: len(series(curve.lines, curve.key)[0]) > 0
  panels = [panel for panel in panels if any(map(logged, panel.curves))]
  if not panels:
    return None
  columns = min(2, len(panels))
  with plots.styled(math.ceil(len(panels) / columns), columns, 2.75) as (figure, axes):
    for ax, panel in zip(axes, panels, strict=False):
      _panel(ax, panel, [curve for curve in panel.curves if logged(curve)])
    for ax in axes[len(panels) :]:
      ax.remove()
  return figure


def _panel(ax: Axes, panel: Panel, drawn: Sequence[Curve]) -> None:
  several = len(drawn) > 1 or panel.band is not None
  ax.set_title(f"{panel.title} [{panel.unit}]", pad=20)
  ax.set_xlabel("training step")
  if panel.level is not None:
    ax.axhline(panel.level, color=plots.MUTED, linewidth=1, linestyle=(0, (4, 3)))
  if panel.band is not None:
    # Both ends are logged in the same steps; where one was not finite, no band can be drawn.
    (x, low), (_, high) = (series(curve.lines, curve.key) for curve in panel.band)
    if len(low) == len(high):
      lower = panel.band[0]
      ax.fill_between(x, low, high, color=lower.colour, alpha=0.16, linewidth=0, label=lower.label)
  for curve in drawn:
    x, y = series(curve.lines, curve.key)
    # Marks show how few points a short run has; a long one shows its raw values faintly behind.
    mark = "o" if len(x) < 12 else ""
    if len(x) >= 20:
      ax.plot(x + curve.shift, y, color=curve.colour, alpha=0.22, linewidth=1)
    ax.plot(
      x + curve.shift, smoothed(y), color=curve.colour, label=curve.label, linewidth=1.8,
      marker=mark, markersize=3.5,
    )  # fmt: skip
  if panel.share:
    ax.set_ylim(-0.03, 1.03)
  if panel.log and min(series(curve.lines, curve.key)[1].min() for curve in drawn) > 0:
    ax.set_yscale("log")
  if several:
    ax.legend(**plots.LEGEND, ncols=5 if len(drawn) < 6 else 3, handlelength=1.1, columnspacing=0.9)


def stage_1(runs: Sequence[Run]) -> Shown:
  """Learning curves of supervised runs; one that continues stage 1 is drawn after its end."""
  # Continued SFT counts its steps from 0 again.
  ends = {run.name: int(run.lines[-1]["step"]) for run in runs}
  shift = {run.name: ends.get("sft", 0) if run.name == "sft_continued" else 0 for run in runs}
  of = lambda key: [Curve(r.lines, key, r.label, r.colour, shift[r.name]) for r in runs]
  panels = [
    Panel("Loss on the target response", "nats per token", of("loss")),
    Panel("Learning rate", "per step", of("learning_rate")),
    Panel("Quality on held-out prompts", "0 to 1, sampled", of("held_out/sampled/quality")),
    Panel("Gradient norm before clipping", "2-norm", of("grad_norm"), log=True),
    Panel("Throughput", "prompts per second", of("prompts_per_second")),
  ]
  return Shown("stage_1", curves(panels),
    "The loss should fall and flatten as the learning rate runs out: a stage 1 that is stopped "
    "early makes anything trained after it look good. Continued SFT is drawn after the end of "
    "stage 1, where it started. Without held-out looks (evaluate.every) stage 1 samples nothing "
    "while it trains; its quality is in the results. The first point of the throughput "
    "includes compilation.")  # fmt: skip


def stage_2(run: Run) -> list[Shown]:
  """The figures of a run with rollouts."""

  def of(key: str, label: str = "", colour: str = "") -> Curve:
    return Curve(run.lines, key, label or run.label, colour or run.colour)

  return [draw(run, of) for draw in (_rollouts, _reward, _discriminator, _running)]


def _terms(run: Run) -> dict[str, str]:
  """Term of the reward -> its colour: those of the method, then a user's own."""
  names = {name for line in run.lines for name in line}
  own = sorted({name.split("/")[1] for name in names if _A_TERM.fullmatch(name)} - set(TERMS))
  colours = itertools.cycle(plots.OTHER_COLOURS)
  return {term: plots.TERM_COLOURS[term] for term in TERMS} | dict(zip(own, colours, strict=False))


def _rollouts(run: Run, of: Callable[..., Curve]) -> Shown:
  graded = {term: colour for term, colour in _terms(run).items() if term != "discriminator"}
  rules = [of(f"rollout/{term}", term, colour) for term, colour in graded.items()]
  sampled = lambda end: of(f"held_out/sampled/{end}", "95 % interval")
  looks = [
    of("held_out/sampled/quality", "sampled"),
    of("held_out/greedy/quality", "greedy", plots.INK),
  ]
  panels = [
    Panel("Quality of rollouts", "0 to 1, closed-ended", [of("rollout/quality")]),
    Panel("Quality on held-out prompts", "0 to 1", looks, band=(sampled("low"), sampled("high"))),
    Panel("Rule scores of rollouts", "0 to 1", rules, share=True),
    Panel("KL to the stage 1 student", "nats per token", [of("policy/kl")]),
    Panel("Policy loss", "per token", [of("policy/loss")], level=0),
  ]
  return Shown(f"{run.name}_rollouts", curves(panels),
    "Quality is that of responses sampled on training prompts, a different batch at every step, so "
    "look at the smoothed line over many steps. Where it, or the reward, rises and that on "
    "held-out prompts falls, the reward is being exploited. KL grows as the student "
    "leaves stage 1; a jump means it is running away. The policy loss hovers around 0 by "
    "construction and says little. Steps without a policy curve trained the "
    "discriminator alone.")  # fmt: skip


def _reward(run: Run, of: Callable[..., Curve]) -> Shown:
  terms = _terms(run)
  by_term = lambda what: [of(f"reward/{term}/{what}", term, terms[term]) for term in terms]
  total = [of("reward/std_in_group", "sum", plots.INK)]
  idle = [
    of("reward/dead_groups", "dead groups, of prompts", plots.MUTED),
    of("policy/tied_share", "tied groups, of sum |advantage|", run.colour),
  ]
  panels = [
    Panel("Weighted terms, mean", "reward", by_term("mean")),
    Panel("Spread inside a prompt's group", "s.d. of reward", by_term("std_in_group") + total),
    Panel("Share of the variance inside groups", "sums to 1", by_term("variance_share"), level=0),
    Panel("Dead and tied groups", "share", idle, share=True),
  ]
  return Shown(f"{run.name}_reward", curves(panels),
    "Only differences inside a group of rollouts teach anything, so the spread and its share, not "
    "the mean, tell which term drives the policy. A term whose spread is near 0 is inert; where "
    "all rollouts earn the same from the rules, division by the group's s.d. scales its noise up "
    "to an s.d. of 1. Dead groups, whose rewards are all alike, teach nothing. In tied groups all "
    "answers to a closed-ended question are right alike or wrong alike: where much of the summed "
    "absolute advantage is in them, the policy learns from format and the discriminator, not from "
    "being right.")  # fmt: skip


def _discriminator(run: Run, of: Callable[..., Curve]) -> Shown:
  colour = plots.TERM_COLOURS["discriminator"]
  key = lambda name: f"discriminator/{name}"
  band = of(key("margin_q10"), "10 to 90 %", colour), of(key("margin_q90"), "", colour)
  median = [of(key("margin_q50"), "median", colour)]
  shares = [
    of(key("pairs"), "rollouts with a pair", plots.MUTED),
    of(key("identical"), "pairs of identical texts", colour),
  ]
  # Steps without a pair have no margin, and their accuracy of 0 says nothing.
  differing = [line for line in run.lines if math.isfinite(line.get(key("margin_q50"), math.nan))]
  accuracy = [
    Curve(differing, key("accuracy"), "", colour),  # it reads 0 where there was no pair
    of("pairs/length_only", "by length alone", plots.MUTED),
    of("pairs/ending_only", "by the last tokens alone", plots.OTHER_COLOURS[1]),
  ]
  lengths = [
    of(f"pairs/accuracy_{kind}", kind.replace("_", " "), plots.OTHER_COLOURS[i])
    for i, kind in enumerate(("teacher_longer", "student_longer", "equal_length"))
  ]
  fixed = [of("probe/score_teacher", "teacher", plots.INK), of("probe/score_student", "student")]
  panels = [
    Panel("Accuracy on differing pairs", "share", accuracy, level=0.5, share=True),
    Panel("Margin, teacher minus student", "logit", median, level=0, band=band),
    Panel(
      "Accuracy by task", "share", _by_task(run, "discriminator/accuracy"), level=0.5, share=True
    ),
    Panel("Accuracy by who is longer", "share", lengths, level=0.5, share=True),
    Panel("Pairs", "share", shares, share=True),
    Panel("Pair loss", "nats, weighted by quality", [of(key("loss"), "", colour)]),
    Panel("Scores of the first step's pairs", "logit", fixed),
    Panel("Teacher responses that supervise", "of K", _by_task(run, "pairs/survivors")),
  ]
  return Shown(f"{run.name}_discriminator", curves(panels),
    "0.5 (dashed) is guessing. A useful discriminator sits above it without reaching 1: at 1 it "
    "has found something that gives every rollout away. Where length, or the last tokens before "
    "the end of turn, tell the pairs apart as well, it may have learned no more than that. Pairs "
    "of identical texts "
    "cannot be told apart and count neither in the loss nor in the accuracy; where they are many, "
    "student and teacher already write alike. The pairs of the first step never change, so their "
    "scores move with the discriminator alone.")  # fmt: skip


def _by_task(run: Run, name: str) -> list[Curve]:
  """A curve for each task that "NAME/TASK" was logged of."""
  prefix = f"{name}/"
  tasks = sorted(
    {key.removeprefix(prefix) for line in run.lines for key in line if key.startswith(prefix)}
  )
  colours = (*plots.OTHER_COLOURS, *plots.RUN_COLOURS.values())
  return [
    Curve(run.lines, f"{name}/{task}", plots.pretty(task), colours[i % len(colours)])
    for i, task in enumerate(tasks)
  ]


def _running(run: Run, of: Callable[..., Curve]) -> Shown:
  norms = [
    of("policy/grad_norm", "student", run.colour),
    of("discriminator/grad_norm", "discriminator", plots.TERM_COLOURS["discriminator"]),
  ]
  panels = [
    Panel("Length of rollouts", "tokens", [of("rollout/length")]),
    Panel("Finished rollouts", "share", [of("rollout/finished")], share=True),
    Panel("Throughput", "prompts per second", [of("prompts_per_second")]),
    Panel("Gradient norm before clipping", "2-norm", norms, log=True),
  ]
  largest = lambda key: max(series(run.lines, key)[1], default=0.0)
  # Running totals: their last values are the sums.
  counts = [series(run.lines, f"{net}/skipped")[1] for net in ("policy", "discriminator")]
  skipped = sum(int(count[-1]) for count in counts if len(count))
  return Shown(f"{run.name}_running", curves(panels),
    "Rollouts that grow without end, or stop finishing, are the usual sign of a reward being "
    f"exploited. In all {skipped} updates were skipped for a gradient norm that "
    "was not finite, and the log-probabilities of sampler and trainer differed by at most "
    f"{largest('policy/sampler_trainer_gap'):.1e} nats (rounding, if all is well).")  # fmt: skip

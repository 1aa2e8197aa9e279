"""The figures of the page on a teacher: spreads, thresholds, faults, lengths. No files, no words.

Every function returns None where it was given nothing to draw. Axes: N questions.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmsd_jax.report.plots import (
  INK,
  LEGEND,
  LIGHT_BLUE,
  MUTED,
  OTHER_COLOURS,
  PAPER,
  RUN_COLOURS,
  pretty,
  styled,
  task_bars,
)
from rmsd_jax.teacher.variance import label

BLUE = RUN_COLOURS["sft"]
ORANGE = RUN_COLOURS["rl"]
BINS = np.linspace(0, 1, 21)
COLUMNS = 3  # small histograms in a row


def spreads(means_N: np.ndarray, spreads_N: np.ndarray) -> Figure | None:
  """Histograms over questions: their mean quality, and the s.d. of their responses' quality."""
  if not len(means_N):
    return None
  with styled(1, 2, 3.0) as (figure, (left, right)):
    _histogram(left, means_N, BINS, BLUE)
    left.set_title("Mean quality of a question")
    left.set_xlabel("quality, 0 to 1")
    left.set_ylabel("questions")
    right.set_title("Spread within a question")
    if not len(spreads_N):
      right.set_axis_off()
      right.text(0.5, 0.5, "one response per question", ha="center", transform=right.transAxes)
      return figure
    # No unbiased s.d. of values in [0, 1] is above that of 0 and 1.
    _histogram(right, spreads_N, np.linspace(0, math.sqrt(0.5), 21), ORANGE)
    right.set_xlabel("s.d. of the quality of its responses")
  return figure


def task_histograms(means: Mapping[str, np.ndarray]) -> Figure | None:
  """Mean quality of the questions of each task, one small histogram a task."""
  drawn = {task: means_N for task, means_N in means.items() if len(means_N)}
  if len(drawn) < 2:
    return None
  rows = math.ceil(len(drawn) / COLUMNS)
  with styled(rows, COLUMNS, 1.9) as (figure, axes):
    for ax, (task, means_N) in zip(axes, drawn.items(), strict=False):
      _histogram(ax, means_N, BINS, BLUE)
      ax.set_title(pretty(task))
    for ax in axes[len(drawn) :]:
      ax.set_axis_off()
    axes[0].set_ylabel("questions")
  return figure


def thresholds(
  figures: Mapping[str, Mapping], paper_kept: Mapping[float, float], everything: str
) -> Figure | None:
  """Over tau: the share of responses kept, and of questions that lose every response.

  Args:
    figures: as `teacher.variance.by_task` returns for many taus.
    paper_kept: the paper's share kept, by tau.
    everything: the name of the group of all tasks.
  """
  graded = [name for name in figures if not math.isnan(figures[name]["mean"])]
  if not graded:
    return None
  with styled(1, 2, 3.4) as (figure, (left, right)):
    for ax, key in ((left, "kept"), (right, "lost")):
      for place, name in enumerate(graded):
        values = figures[name][key]
        bold = name == everything
        colour = INK if bold else _colour(place)
        ax.plot(
          list(values), list(values.values()), color=colour, linewidth=2.4 if bold else 1.1,
          label=pretty(name), zorder=3 if bold else 2,
        )  # fmt: skip
      ax.set_xlabel("threshold tau on quality")
      ax.set_ylim(-0.02, 1.05)
    taus = list(paper_kept)
    shares = list(paper_kept.values())
    left.plot(taus, shares, "D", color=PAPER, markersize=5, label="paper", zorder=4)
    left.set_title("Responses kept [share]")
    right.set_title("Questions left without a response [share]")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
  return figure


def faults(figures: Mapping[str, Mapping], paper: Mapping[str, Mapping]) -> Figure:
  """By task: format violations and truncated responses, and agreement between samples."""
  with styled(1, 2, 1.0 + 0.32 * len(figures)) as (figure, (left, right)):
    columns = {
      "violations": ("wrong format", BLUE),
      "no_outer": ("no think and answer blocks", LIGHT_BLUE),
      "cut_off": ("cut off", ORANGE),
    }
    task_bars(left, "Unusable responses [share]", figures, paper, list(figures), columns)
    left.set_title("Unusable responses [share]", pad=34)
    left.legend(**LEGEND, ncols=2, handlelength=1.2)
    agreement = {"agreement": ("same answer", BLUE)}
    task_bars(right, "Agreement [share of pairs]", figures, {}, list(figures), agreement)
    right.set_xlim(0, 1)
  return figure


def teachers(figures: Mapping[str, Mapping]) -> Figure | None:
  """Teachers side by side; None for one."""
  if len(figures) < 2:
    return None
  with styled(1, 2, 1.2 + 0.45 * len(figures)) as (figure, (left, right)):
    shown = lambda name: label(name, longest=28) or "not named"
    quality = {"mean": ("mean", BLUE), "sd_within": ("s.d. within a question", LIGHT_BLUE)}
    task_bars(left, "Quality [0 to 1]", figures, {}, list(figures), quality, shown)
    faulty = {"violations": ("wrong format", BLUE), "cut_off": ("cut off", ORANGE)}
    task_bars(right, "Unusable responses [share]", figures, {}, list(figures), faulty, shown)
  return figure


def lengths(figures: Mapping[str, Mapping], unit: str) -> Figure | None:
  """Lengths of responses by task: median, middle half, and 5 to 95 %."""
  if not figures:
    return None
  with styled(1, 1, 1.0 + 0.32 * len(figures)) as (figure, (ax,)):
    # From thin to thick to a dot: the outer quantiles, the middle half, the median.
    for y, of_task in enumerate(figures.values()):
      at = of_task["lengths"]
      ax.plot([at[0.05], at[0.95]], [y, y], color=LIGHT_BLUE, linewidth=3)
      ax.plot([at[0.25], at[0.75]], [y, y], color=BLUE, linewidth=6, solid_capstyle="butt")
      ax.plot(at[0.5], y, "o", color="white", markeredgecolor=BLUE, markersize=5, zorder=3)
    ax.set_yticks(range(len(figures)), [pretty(name) for name in figures])
    ax.tick_params(axis="y", labelcolor=INK, length=0)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    ax.set_title(f"Length of a response [{unit}]")
  return figure


def _histogram(ax: Axes, values_N: np.ndarray, bins: np.ndarray, colour: str) -> None:
  ax.hist(values_N, bins, color=colour, rwidth=0.92)
  if len(values_N):
    ax.axvline(values_N.mean(), color=MUTED, linewidth=1, linestyle="--")
  ax.grid(axis="x", visible=False)


def _colour(place: int) -> str:
  palette: Sequence[str] = (*RUN_COLOURS.values(), *OTHER_COLOURS)
  return palette[place % len(palette)]

"""The figures of a report, from logged metrics, evaluations and a pool's study. No files, no words.

Colours belong to runs and reward terms, and are the same in every figure and on the page. Every
function returns None where it was given nothing to draw.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageDraw

# Okabe and Ito's palette, which the colour-blind can tell apart.
RUN_COLOURS = {
  "base": "#8b8f94",
  "blind": "#d9a520",
  "sft": "#0072b2",
  "sft_continued": "#009e73",
  "rl": "#d55e00",
}
OTHER_COLOURS = ("#cc79a7", "#56b4e9", "#7a5c3e", "#5b5fc7", "#333333")
TERM_COLOURS = {
  "content": "#117a4b",
  "discriminator": "#7b4fa3",
  "outer": "#d99a00",
  "inner": "#4aa3d8",
}
LIGHT_BLUE = "#9cc6e4"  # beside the blue of RUN_COLOURS["sft"]
PAPER = "#1b1b1b"  # figures of the paper, not of this run
INK = "#22262b"
MUTED = "#6a7178"
GRID = "#e4e6e8"
WIDTH = 9.2  # inches; the page shows a figure 920 CSS pixels wide
STYLE = {
  "text.parse_math": False,  # names of teachers may hold a $
  "font.family": "DejaVu Sans",
  "font.size": 9,
  "axes.titlesize": 10,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.titlepad": 8,
  "axes.labelcolor": MUTED,
  "axes.edgecolor": "#b9bec3",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "grid.linewidth": 0.8,
  "text.color": INK,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "legend.frameon": False,
  "legend.fontsize": 8,
  "figure.facecolor": "white",
  "savefig.dpi": 160,
}
LEGEND = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0}


def colour_of(run: str, others: Sequence[str] = ()) -> str:
  """The colour of a run; `others` are the runs without a fixed one, in order."""
  if run in RUN_COLOURS:
    return RUN_COLOURS[run]
  return OTHER_COLOURS[list(others).index(run) % len(OTHER_COLOURS)]


def pretty(task: str) -> str:
  """A task's name for people."""
  return "OCR" if task == "ocr" else task.replace("_", " ")


def _two_lines(name: str) -> str:
  return name.replace(" (", "\n(") if "(" in name else name.replace(" ", "\n", 1)


def png(figure: Figure) -> bytes:
  """A figure as a PNG file."""
  # The style is set again, since matplotlib reads the resolution when it saves.
  file = io.BytesIO()
  with matplotlib.rc_context(STYLE), warnings.catch_warnings():
    # Names may be in any script; the page has them as text.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    figure.savefig(file, format="png")
  return file.getvalue()


@contextmanager
def styled(rows: int, columns: int, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
  """A figure of rows x columns axes, `height` inches a row."""
  with matplotlib.rc_context(STYLE):
    # Not pyplot's, which keeps its figures until they are closed and looks for a display.
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def result_bars(
  tables: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
  columns: Sequence[str],
  names: Mapping[str, str],
  colours: Mapping[str, str],
) -> Figure | None:
  """Grouped bars with intervals, one panel per way to respond.

  Args:
    tables: way -> run -> column -> {"mean", "low", "high"}; a column may be missing.
    columns: in order, from left to right.
    names, colours: of runs.
  """
  tables = {way: runs for way, runs in tables.items() if runs}
  if not tables:
    return None
  runs = list(dict.fromkeys(run for table in tables.values() for run in table))
  width = 0.82 / len(runs)
  with styled(len(tables), 1, 2.9) as (figure, axes):
    for ax, (way, table) in zip(axes, tables.items(), strict=True):
      for place, run in enumerate(runs):
        # Bars of a column stand side by side around its tick, one a run, also where a run has none.
        cells = [(c, table[run][c]) for c in columns if run in table and c in table[run]]
        # (place - middle) * width: the group of bars is centred on its tick, however many runs it
        # has.
        x = [columns.index(c) + (place - (len(runs) - 1) / 2) * width for c, _ in cells]
        mean = np.array([cell["mean"] for _, cell in cells])
        ends = np.array(
          [[cell["mean"] - cell["low"], cell["high"] - cell["mean"]] for _, cell in cells]
        )
        ax.bar(x, mean, width * 0.9, color=colours[run], label=names[run])
        # Rounding may put an end on the wrong side of its mean, and matplotlib refuses that.
        if cells:
          error = np.maximum(ends.T, 0)
          ax.errorbar(x, mean, error, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.8)
      ax.set_xticks(range(len(columns)), [_two_lines(name) for name in columns])
      ax.axvline(0.5, color=MUTED, linewidth=0.8)
      ax.set_ylim(0, 1.03)
      ax.grid(axis="x", visible=False)
      ax.set_title(f"Quality of {way} responses [0 to 1]", pad=20 if ax is axes[0] else 8)
    axes[0].legend(**LEGEND, ncols=len(runs), handlelength=1, columnspacing=1.4)
  return figure


def difference_forest(
  differences: Sequence[Mapping], colours: Mapping[str, str], ways: Sequence[str]
) -> Figure | None:
  """Paired differences with their intervals; filled marks for the first way, open for the second.

  Args:
    differences: {"label", "first" (a run), and per way {"mean", "low", "high"} or None}.
  """
  if not differences:
    return None
  with styled(1, 1, 0.75 + 0.5 * len(differences)) as (figure, (ax,)):
    for row, difference in enumerate(differences):
      colour = colours[difference["first"]]
      for place, way in enumerate(ways):
        if difference[way] is None:
          continue
        mean, low, high = (difference[way][name] for name in ("mean", "low", "high"))
        y = row + (place - (len(ways) - 1) / 2) * 0.3
        ax.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
        face = "white" if place else colour
        ax.plot(mean, y, "o", color=colour, markerfacecolor=face, markersize=6)
        text = f"  {mean:+.3f}".replace("-", "\N{MINUS SIGN}")
        ax.text(high, y, text, va="center", ha="left", fontsize=7.5, color=MUTED)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(differences)), [difference["label"] for difference in differences])
    ax.tick_params(axis="y", labelcolor=INK, length=0)
    # Upside down: the first difference stands at the top, as in the table.
    ax.set_ylim(len(differences) - 0.5, -0.5)
    ax.margins(x=0.1)
    ax.grid(axis="y", visible=False)
    ax.set_title("Paired difference of closed-ended quality [quality, 0 to 1]", pad=20)
    ax.set_xlabel("worse  \N{LEFTWARDS ARROW}  0  \N{RIGHTWARDS ARROW}  better")
    marks = [
      Line2D([], [], marker="o", color=MUTED, markerfacecolor=face, linewidth=2, label=way)
      for way, face in zip(ways, (MUTED, "white"), strict=False)
    ]
    ax.legend(handles=marks, **LEGEND, ncols=2)
  return figure


def pass_curves(
  rates: Mapping[str, Mapping[int, float]], names: Mapping[str, str], colours: Mapping[str, str]
) -> Figure | None:
  """pass@k over k, one line per run."""
  if not rates:
    return None
  with styled(1, 1, 3.1) as (figure, (ax,)):
    ks = sorted({k for rate in rates.values() for k in rate})
    for run, rate in rates.items():
      ax.plot(list(rate), list(rate.values()), "o-", color=colours[run], label=names[run])
    # 1, 2, 4, 8 at equal distances: each is twice the samples.
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("k, samples that may be tried")
    ax.set_title("pass@k of closed-ended prompts [share of prompts]", pad=20)
    ax.legend(**LEGEND, ncols=len(rates), handlelength=1.4, columnspacing=1.4)
  return figure


def teacher_study(
  figures: Mapping[str, Mapping], paper: Mapping[str, Mapping], paper_kept: Mapping[float, float]
) -> Figure | None:
  """A pool's quality, its two spreads, what each tau keeps and the format violations.

  Args:
    figures: as `teacher.variance.by_task` returns, "all" last.
    paper: the paper's figures by the same names, as far as it gives them.
    paper_kept: the paper's share kept by tau.
  """
  graded = [name for name in figures if not math.isnan(figures[name]["mean"])]
  if not graded:
    return None
  blue = RUN_COLOURS["sft"]
  with styled(2, 2, 3.0) as (figure, axes):
    task_bars(axes[0], "Mean quality [0 to 1]", figures, paper, graded, {"mean": ("mean", blue)})
    spreads = {
      "sd_across": ("across", blue),
      "sd_within": ("within a question", LIGHT_BLUE),
    }
    task_bars(axes[1], "Spread of quality [s.d.]", figures, paper, graded, spreads)
    violations = {"violations": ("share of responses", blue)}
    task_bars(
      axes[2], "Format violations [share]", figures, paper, list(figures), violations
    )  # fmt: skip
    ax = axes[3]
    kept = figures[graded[-1]]["kept"]  # of "all"
    ax.plot(list(kept), list(kept.values()), "o-", color=blue, label="this pool")
    ax.plot(
      list(paper_kept), list(paper_kept.values()), "D--", color=PAPER, label="paper", linewidth=1,
      markersize=4.5,
    )  # fmt: skip
    ax.set_ylim(0, 1.05)
    ax.set_xlabel("threshold tau on quality")
    ax.set_title("Kept by the filter [share]", pad=20)
    ax.legend(**LEGEND, ncols=2)
  return figure


def task_bars(
  ax: Axes,
  title: str,
  figures: Mapping[str, Mapping],
  paper: Mapping[str, Mapping],
  names: Sequence[str],
  columns: Mapping[str, tuple[str, str]],
  shown: Callable[[str], str] = pretty,
) -> None:
  """One group of bars per task, and a diamond where the paper gives the figure.

  Args:
    names: of the groups, from top to bottom; `shown` says how they are written.
  """
  width = 0.8 / len(columns)
  for place, (key, (label, colour)) in enumerate(columns.items()):
    shift = (place - (len(columns) - 1) / 2) * width
    y = np.arange(len(names)) + shift
    ax.barh(y, [figures[name][key] for name in names], width * 0.9, color=colour, label=label)
    known = [(y[i], paper[name][key]) for i, name in enumerate(names) if key in paper.get(name, {})]
    if known:
      at, values = zip(*known, strict=True)
      said = "paper" if place == 0 else None
      ax.plot(values, at, "D", color=PAPER, markersize=4.5, label=said, clip_on=False)
  ax.set_yticks(range(len(names)), [shown(name) for name in names])
  ax.tick_params(axis="y", labelcolor=INK, length=0)
  # Bars are drawn from below, tables are read from above.
  ax.invert_yaxis()
  ax.set_xlim(left=0)
  ax.grid(axis="y", visible=False)
  ax.set_title(title, pad=20)
  ax.legend(**LEGEND, ncols=3, handlelength=1.2)


def film(
  columns: Sequence[Sequence[np.ndarray]], height: int = 144, box: Sequence[float] | None = None
) -> bytes:
  """Frames as one PNG: a column per frame pair, its frames one below the other.

  Small frames are enlarged by whole factors without smoothing, so that every pixel can be seen.

  Args:
    columns: frames uint8 [h, w, 3]; sizes may differ.
    height: of a frame in the result, pixels; about, since factors are whole.
    box: x1, y1, x2, y2 in thousandths of a frame, outlined on every frame.
  """
  gap = 4  # pixels between frames
  tallest = max(frame.shape[0] for column in columns for frame in column)
  # Whole factors only where frames grow; what shrinks is smoothed in any case.
  scale = max(1, height // tallest) if tallest <= height else height / tallest
  drawn = [[_scaled(frame, scale, box) for frame in column] for column in columns]
  size_h = max(picture.height for column in drawn for picture in column) + gap
  size_w = max(picture.width for column in drawn for picture in column) + gap
  rows = max(map(len, drawn))
  sheet = Image.new("RGB", (size_w * len(drawn) - gap, size_h * rows - gap), "white")
  for x, column in enumerate(drawn):
    for y, picture in enumerate(column):
      sheet.paste(picture, (x * size_w, y * size_h))
  file = io.BytesIO()
  sheet.save(file, "PNG")
  return file.getvalue()


def _scaled(frame: np.ndarray, scale: float, box: Sequence[float] | None) -> Image.Image:
  h = round(frame.shape[0] * scale)
  w = round(frame.shape[1] * scale)
  how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
  picture = Image.fromarray(frame).resize((w, h), how)
  if box is not None:
    # Pillow's rectangles include their far corner, hence the - 1.
    x1, y1, x2, y2 = (value / 1000 * side for value, side in zip(box, (w, h, w, h), strict=True))
    ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), outline="white", width=2)
  return picture

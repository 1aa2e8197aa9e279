"""A page of a report: what it collects, and how it becomes HTML in one file with PNGs beside it."""

import base64
import dataclasses
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from rmsd_jax.core.progress import duration
from rmsd_jax.report import findings, plots


@dataclasses.dataclass
class Page:
  """Collects what the template shows; pictures are written as they come."""

  folder: pathlib.Path
  figures: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
  missing: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  def lacks(self, section: str, line: str) -> None:
    self.missing.setdefault(section, []).append(line)

  def picture(self, name: str, png: bytes) -> str:
    """Writes a PNG beside the page; returns it as a data URI."""
    (self.folder / f"{name}.png").write_bytes(png)
    return data_uri(png)

  def pool(self, named: Iterable[str]) -> str | None:
    """The folder of a built pool: beside the page's folder, else the first that is there of those
    named; None if none is."""
    folders = [self.folder.parent / "pool", *map(pathlib.Path, named)]
    return next((str(f) for f in folders if (f / "metadata.json").is_file()), None)

  def figure(
    self, section: str, name: str, figure: Figure | None, caption: str, absent: str
  ) -> None:
    """Adds a figure; for None the line `absent` instead."""
    if figure is None:
      self.lacks(section, absent)
      return
    shown = {"name": name, "uri": self.picture(name, plots.png(figure)), "caption": caption}
    self.figures.setdefault(section, []).append(shown)


def data_uri(png: bytes) -> str:
  """A PNG as part of the page."""
  return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def spread(count: int, most: int) -> list[int]:
  """At most `most` places of `count`, evenly from the first to the last and without repeats."""
  return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()


def render(template: str, **values: Any) -> str:
  """A page as HTML, from a file of templates/."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {
    "number": lambda x: "\N{EN DASH}" if x is None or math.isnan(x) else f"{x:.3f}",
    "pretty": plots.pretty,
    "plain": plain,
    "signed": findings.signed,
    "signed_or_none": lambda x: "\N{EN DASH}" if x is None else findings.signed(x),
    "verdict": findings.verdict,
    "duration": duration,
  }
  return environment.get_template(template).render(**values)


def plain(text: str, limit: int = 600) -> str:
  """A response for the eye: control characters made visible, what is beyond `limit` cut."""
  text = "".join(c if c.isprintable() or c == "\n" else "\N{MIDDLE DOT}" for c in text)
  return text if len(text) <= limit else text[:limit] + " \N{HORIZONTAL ELLIPSIS}"

"""The demo's world: clips and still pictures of coloured cards with real handwritten digits.

A scene is a 3 x 3 board of cells of 16 pixels; a card at rest fills one cell exactly, so that with
patches of 8 pixels and 2 x 2 merging one visual token is one cell. Axes: N frames, H, W pixels,
C colour channels, F frame pairs (one a second), G cells in reading order.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image
from sklearn.datasets import load_digits

from rmsd_jax.core.errors import UserError

GRID = 3  # cells a side
CELL = 16  # pixels a side of a cell, and of a card
SIZE = GRID * CELL  # pixels a side of a frame
FPS = 4  # frames a second
SECONDS = 6  # length of a clip
NO_DIGIT = 10  # label of a cell without a card
TRAIN_DIGITS = 1300  # of load_digits' 1,797 pictures; the others are held out
SPLITS = ("train", "test")
NOISE = 16  # largest change of a pixel's brightness, of 255
ENCODER = {"preset": "ultrafast", "crf": "28"}  # digits stay readable, a clip takes some 20 kB

# White digits must stand out, so every colour is of middle brightness or darker.
COLOURS = {
  "red": (196, 34, 40),
  "green": (34, 136, 52),
  "blue": (36, 68, 204),
  "orange": (214, 116, 16),
  "purple": (136, 44, 168),
  "brown": (104, 62, 30),
}
COLOUR_NAMES = tuple(COLOURS)
NO_COLOUR = len(COLOUR_NAMES)  # label of a cell without a card
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
ROW_NAMES = ("top", "middle", "bottom")
COLUMN_NAMES = ("left", "centre", "right")
CELL_NAMES = tuple(f"{row} {column}" for row in ROW_NAMES for column in COLUMN_NAMES)


@dataclasses.dataclass(frozen=True)
class Card:
  """One card. It is seen from second `start` up to, and without, second `end`.

  glyph: row of scikit-learn's `load_digits`. cell, to_cell: 0..8 in reading order; the card rests
  in `cell` before second `move_at` and in `to_cell` from then on. A card that stays has
  `to_cell == cell` and `move_at == end`.
  """

  digit: int
  glyph: int
  colour: str
  cell: int
  to_cell: int
  start: int
  end: int
  move_at: int

  @property
  def moves(self) -> bool:
    return self.to_cell != self.cell

  @property
  def direction(self) -> str:
    """left, right, up or down; "none" for a card that stays."""
    step = (self.to_cell // GRID - self.cell // GRID, self.to_cell % GRID - self.cell % GRID)
    return next((name for name, delta in DIRECTIONS.items() if delta == step), "none")

  def visible(self, second: int) -> bool:
    return self.start <= second < self.end

  def cell_at(self, second: int) -> int:
    return self.to_cell if second >= self.move_at else self.cell


@dataclasses.dataclass(frozen=True)
class Scene:
  """Cards in order of appearance; a still picture has `seconds == 0` and all its cards at once.

  By construction no two cards of a scene share a digit, a colour, a cell or, in a clip, the second
  at which they appear, so that each of these names one card.
  """

  cards: tuple[Card, ...]
  seconds: int
  grey: int  # 0..255, brightness of the background
  noise_seed: int

  @property
  def still(self) -> bool:
    return self.seconds == 0

  def visible(self, second: int) -> tuple[Card, ...]:
    return tuple(card for card in self.cards if card.visible(second))


@functools.lru_cache(maxsize=1)
def glyphs() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
  """Returns (opacity float32 [1797, 16, 16] in 0..1, digit int [1797], split -> rows of it).

  The pictures are scikit-learn's `load_digits`, enlarged twice; the split is a fixed shuffle.
  """
  digits = load_digits()
  opacity = (digits.images / 16.0).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)
  # A digit's picture is in one split only, so that held-out clips show handwriting never seen.
  order = np.random.default_rng(0).permutation(len(opacity))
  rows = {"train": np.sort(order[:TRAIN_DIGITS]), "test": np.sort(order[TRAIN_DIGITS:])}
  return opacity, digits.target, rows


@functools.cache
def _glyph_rows(split: str, digit: int) -> np.ndarray:
  """Rows of `load_digits` that show `digit` and belong to `split`."""
  _, target, rows = glyphs()
  return rows[split][target[rows[split]] == digit]


def _check_split(split: str) -> None:
  if split not in SPLITS:
    raise UserError(f"split {split!r} is not one of {', '.join(SPLITS)}; name one of them")


def _neighbours(cell: int) -> list[int]:
  row, column = divmod(cell, GRID)
  near = [(row + down, column + across) for down, across in DIRECTIONS.values()]
  return [r * GRID + c for r, c in near if 0 <= r < GRID and 0 <= c < GRID]


def _draw_look(rng: np.random.Generator, split: str, count: int) -> list[dict]:
  """Digit, glyph and colour of `count` cards, all digits and all colours distinct."""
  digits = rng.choice(10, count, replace=False)
  colours = rng.choice(len(COLOUR_NAMES), count, replace=False)
  return [
    {
      "digit": int(digit),
      "glyph": int(rng.choice(_glyph_rows(split, int(digit)))),
      "colour": COLOUR_NAMES[colour],
    }
    for digit, colour in zip(digits, colours, strict=True)
  ]


def _draw_place(rng: np.random.Generator, taken: set[int], moving: bool) -> tuple[int, int]:
  """A free cell, and where the card ends: a free neighbour if it is to move, else the same cell."""
  cell = int(rng.choice([c for c in range(GRID * GRID) if c not in taken]))
  free = [c for c in _neighbours(cell) if c not in taken]
  to_cell = int(rng.choice(free)) if moving and free else cell
  taken.update((cell, to_cell))  # for the whole clip, so that cards never meet
  return cell, to_cell


def make_scene(
  rng: np.random.Generator, split: str, *, cards: int | None = None, moving: float = 0.5
) -> Scene:
  """A clip of SECONDS seconds with 1 to 3 cards, each seen for at least 2 seconds.

  split: "train" or "test", whose digit pictures are used. cards: their number, drawn if None.
  moving: chance that a card moves by one cell, at a whole second inside its time.
  """
  _check_split(split)
  count = int(rng.integers(1, 4)) if cards is None else cards
  # Different seconds, so that "first" has one answer; none in the last second, since a card is seen
  # for two.
  starts = np.sort(rng.choice(SECONDS - 1, count, replace=False))
  taken: set[int] = set()
  drawn = []
  for look, start in zip(_draw_look(rng, split, count), starts, strict=True):
    end = min(int(start) + int(rng.integers(2, 5)), SECONDS)
    cell, to_cell = _draw_place(rng, taken, bool(rng.random() < moving))
    move_at = int(rng.integers(start + 1, end)) if to_cell != cell else end
    drawn.append(
      Card(**look, cell=cell, to_cell=to_cell, start=int(start), end=end, move_at=move_at)
    )
  return Scene(tuple(drawn), SECONDS, int(rng.integers(90, 166)), int(rng.integers(2**31)))


def make_still(rng: np.random.Generator, split: str, *, cards: int | None = None) -> Scene:
  """A still picture with 1 to 3 resting cards, in reading order."""
  _check_split(split)
  count = int(rng.integers(1, 4)) if cards is None else cards
  cells = np.sort(rng.choice(GRID * GRID, count, replace=False)).tolist()
  drawn = tuple(
    Card(**look, cell=cell, to_cell=cell, start=0, end=1, move_at=1)
    for look, cell in zip(_draw_look(rng, split, count), cells, strict=True)
  )
  return Scene(drawn, 0, int(rng.integers(90, 166)), int(rng.integers(2**31)))


def cell_box(cell: int) -> tuple[int, int, int, int]:
  """(x1, y1, x2, y2) of a cell in thousandths of the picture's width and height."""
  row, column = divmod(cell, GRID)
  edges = [round(1000 * i / GRID) for i in range(GRID + 1)]
  return edges[column], edges[row], edges[column + 1], edges[row + 1]


def _corner(card: Card, frame: int) -> tuple[int, int]:
  """(row, column) in pixels of a card's corner. It is half-way in the frame before `move_at`."""
  here = card.cell_at(frame // FPS)
  there = card.cell_at((frame + 1) // FPS)
  # The mean of two cells, of which one is the next: half a cell is a whole number of pixels.
  rows = here // GRID + there // GRID
  columns = here % GRID + there % GRID
  # Multiplied first: half of an odd number of cells is lost otherwise.
  return rows * CELL // 2, columns * CELL // 2


def render(scene: Scene) -> np.ndarray:
  """Returns frames_NHWC uint8 RGB, [24, 48, 48, 3] for a clip and [1, 48, 48, 3] for a picture."""
  opacity = glyphs()[0]
  count = 1 if scene.still else scene.seconds * FPS
  frames = np.full((count, SIZE, SIZE, 3), scene.grey, np.int16)
  for card in scene.cards:
    alpha = opacity[card.glyph][..., None]
    # White on the card's colour, by the opacity of each pixel.
    tile = np.rint(np.float32(COLOURS[card.colour]) * (1 - alpha) + 255 * alpha)
    for frame in range(count):
      if card.visible(frame // FPS):
        row, column = _corner(card, frame)
        frames[frame, row : row + CELL, column : column + CELL] = tile
  noise = np.random.default_rng(scene.noise_seed).integers(
    # One draw for the three colours: the noise is grey.
    -NOISE,
    NOISE + 1,
    frames.shape[:3],
    np.int8,
  )
  return np.clip(frames + noise[..., None], 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class CellLabels:
  """What each cell shows, for teaching the vision tower. F frame pairs, G cells."""

  digit_FG: np.ndarray  # int32, 0..9, NO_DIGIT where no card rests
  colour_FG: np.ndarray  # int32, index into COLOUR_NAMES, NO_COLOUR where no card rests


def cell_labels(scene: Scene) -> CellLabels:
  """Labels of each second: the frame pairs of a clip that is sampled at 2 frames a second.

  Returns arrays [6, 9] for a clip and [1, 9] for a picture.
  """
  count = max(scene.seconds, 1)
  digit_FG = np.full((count, GRID * GRID), NO_DIGIT, np.int32)
  colour_FG = np.full((count, GRID * GRID), NO_COLOUR, np.int32)
  for second in range(count):
    for card in scene.visible(second):
      digit_FG[second, card.cell_at(second)] = card.digit
      colour_FG[second, card.cell_at(second)] = COLOUR_NAMES.index(card.colour)
  return CellLabels(digit_FG, colour_FG)


def write_clip(path: str | os.PathLike, frames_NHWC: np.ndarray) -> None:
  """Writes RGB frames as an H.264 file (yuv420p, FPS frames a second), the same bytes each time."""
  height, width = frames_NHWC.shape[1:3]
  reformatter = VideoReformatter()  # one for all frames: making one costs more than using it
  with av.open(os.fspath(path), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=FPS, options=dict(ENCODER))
    stream.width = width
    stream.height = height
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1  # or the bytes would depend on the machine
    for picture in frames_NHWC:
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      container.mux(stream.encode(reformatter.reformat(frame, format="yuv420p", threads=1)))
    container.mux(stream.encode(None))  # the frames that the encoder still holds


def media_name(scene: Scene, stem: str) -> str:
  """The file name of a scene: stem.mp4, or stem.png for a still picture."""
  return f"{stem}.png" if scene.still else f"{stem}.mp4"


def write_media(path: str | os.PathLike, scene: Scene) -> None:
  """Renders a scene to a file: PNG for a still picture, H.264 for a clip."""
  frames = render(scene)
  if scene.still:
    Image.fromarray(frames[0]).save(path, format="PNG")
  else:
    write_clip(path, frames)


def _write_chunk(chunk: Sequence[tuple[str, Scene]]) -> int:
  for path, scene in chunk:
    write_media(path, scene)
  return len(chunk)


def write_all(
  jobs: Sequence[tuple[str | os.PathLike, Scene]],
  *,
  workers: int = 2,
  chunk: int = 64,
  progress: Callable[[int], None] = lambda count: None,
) -> None:
  """Writes many scenes. `progress` is told the number of files just written.

  Up to one chunk, or with workers < 2, it works in this process; otherwise in fresh child
  processes (not forked: a forked JAX process can lock up).
  """
  named = [(os.fspath(pathlib.Path(path)), scene) for path, scene in jobs]
  chunks = [named[i : i + chunk] for i in range(0, len(named), chunk)]
  if workers < 2 or len(chunks) < 2:
    for part in chunks:
      progress(_write_chunk(part))
    return
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as executor:
    for count in executor.map(_write_chunk, chunks):
      progress(count)

"""Media that two collections share: by their bytes, and by how sampled frames look.

A frame's look is imagehash's perceptual hash: of 256 low frequencies of its brightness, which are
above their median. Copies that were encoded again, resized, recompressed or brightened keep nearly
all of these bits; unrelated frames agree in half. Not found are mirrored or cropped copies, and
excerpts none of whose sampled frames falls into the shot of one of the other's.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from etils import epy

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children, json_lines, media, records
from rmsd_jax.tasks import Rules

with epy.lazy_imports():
  import imagehash
  from PIL import Image

BITS = 256
NEAR = 32  # bits in which two frames may differ and count as alike
ENOUGH = 3  # different frames that two clips share, after which they count as the same
PLAIN = 6.0  # standard deviation of brightness, of 255: frames that show less tell nothing
SAMPLING = media.Sampling(fps=0.5, min_frames=8, max_frames=64)
SECONDS = 60.0  # for one file
_RECORDS = "records.jsonl"  # of a folder that `benchmarks prepare` made
_VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".flv", ".wmv", ".mpg", ".mpeg")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_AT_A_TIME = 1 << 22  # pairs of frames


@dataclasses.dataclass(frozen=True)
class Collected:
  """The media of a file of records, or of a folder.

  Attributes:
    kinds: path -> "video" or "image"; the files that are there.
    missing, faulty: numbers of files that are not there, and of lines that cannot be read.
  """

  kinds: Mapping[str, str]
  missing: int = 0
  faulty: int = 0


@dataclasses.dataclass(frozen=True)
class Likeness:
  """Two media that look alike.

  Attributes:
    ours, theirs: their paths.
    shared: different frames of ours that theirs has, too.
    of: the most that they could share.
    bits: in which the closest two frames differ, of BITS.
  """

  ours: str
  theirs: str
  shared: int
  of: int
  bits: int

  @property
  def sure(self) -> bool:
    """Whether they count as the same; a single picture or a still clip may look alike by chance."""
    return self.of > 1 and self.shared >= min(ENOUGH, self.of)

  def __str__(self) -> str:
    frames = f"{self.shared} of {self.of} different frames, the closest {self.bits} bits apart"
    return f"{self.ours} looks like {self.theirs}: {frames}"


def collected(source: str, rules: Rules) -> Collected:
  """The media of a JSON Lines file, of a prepared set, or of all files of a folder.

  Raises:
    UserError: there is no such file or folder.
  """
  if not os.path.isdir(source):
    return _of_records(source, rules)
  if os.path.isfile(os.path.join(source, _RECORDS)):
    return _of_records(os.path.join(source, _RECORDS), rules)
  found = {}
  for folder, _, names in os.walk(source):
    for name in names:
      end = os.path.splitext(name)[1].lower()
      if end in (*_VIDEOS, *_IMAGES):
        kind = "video" if end in _VIDEOS else "image"
        found[os.path.normpath(os.path.join(os.path.abspath(folder), name))] = kind
  return Collected(found)


def _of_records(path: str, rules: Rules) -> Collected:
  kinds, faulty = {}, 0
  folder = os.path.dirname(os.path.abspath(path))
  for _, _, _, record in json_lines.read(path, rules, json_lines.common_folder([path])):
    if isinstance(record, records.RecordFault):
      faulty += 1
      continue
    kinds |= {os.path.normpath(os.path.join(folder, one.path)): one.type for one in record.media}
  there = {path: kind for path, kind in kinds.items() if os.path.isfile(path)}
  return Collected(there, len(kinds) - len(there), faulty)


class Looks:
  """Perceptual hashes of files, each read once.

  Args:
    progress: called with the number of files to read.
    workers: child processes that decode.

  Attributes:
    unread: path -> why it cannot be read.
  """

  def __init__(self, progress: Callable[[int], json_lines.Progress], workers: int = 2):
    self.progress = progress
    self._workers = workers
    self._known: dict[str, np.ndarray] = {}
    self.unread: dict[str, str] = {}

  def of(self, kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Path -> uint64 [n, 4], the hashes of its frames that differ from one another."""
    new = [path for path in sorted(kinds) if path not in self._known and path not in self.unread]
    if new:
      with self.progress(len(new)) as bar:
        tasks = [(path, kinds[path]) for path in new]
        for (path, _), made in children.run(_Hash(), tasks, self._workers, SECONDS):
          if isinstance(made, children.Failure):
            self.unread[path] = made.reason
          else:
            self._known[path] = made
          bar.update(1)
    return {path: self._known[path] for path in sorted(kinds) if path in self._known}


@dataclasses.dataclass(frozen=True)
class _Hash:
  """(path, kind) -> hashes; runs in children."""

  def __call__(self, task: tuple[str, str]) -> np.ndarray:
    path, kind = task
    if kind == "video":
      frames_NHWC = media.decode(path, sampling=SAMPLING, transform=_small).frames_NHWC
    else:
      frames_NHWC = _small(1, media.load_image(path))[None]
    kept = np.zeros((0, BITS // 64), np.uint64)
    for frame_HWC in frames_NHWC:
      picture = Image.fromarray(frame_HWC).convert("L")
      if np.asarray(picture).std() < PLAIN:
        continue
      bits = imagehash.phash(picture, hash_size=16).hash.ravel()
      words = np.packbits(bits).view(np.uint64)[None]
      if not len(kept) or distances(words, kept).min() > NEAR:
        kept = np.concatenate([kept, words])
    return kept


def _small(count: int, frame_HWC: np.ndarray) -> np.ndarray:
  """What the hash makes of a frame first, so that no large one is kept."""
  side = (64, 64)
  return np.asarray(Image.fromarray(frame_HWC).resize(side, Image.Resampling.LANCZOS))


def distances(ours_NW: np.ndarray, theirs_MW: np.ndarray) -> np.ndarray:
  """uint16 [N, M]: bits in which hashes of 64-bit words differ."""
  differ_NM = np.zeros((len(ours_NW), len(theirs_MW)), np.uint16)
  for ours_N, theirs_M in zip(ours_NW.T, theirs_MW.T, strict=True):
    differ_NM += np.bitwise_count(ours_N[:, None] ^ theirs_M)
  return differ_NM


def looking_alike(
  ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> list[Likeness]:
  """Pairs that share a frame, the surest first.

  Args:
    ours, theirs: see `Looks.of`.
  """
  names = list(theirs)
  owner_M = np.repeat(np.arange(len(names)), [len(theirs[name]) for name in names])
  if not len(owner_M):
    return []
  theirs_MW = np.concatenate([theirs[name] for name in names])
  found = []
  for path, ours_NW in ours.items():
    # Frames by frames of all of theirs: a clip has few, and theirs are cut into pieces.
    closest_NT = np.full((len(ours_NW), len(names)), BITS, np.uint16)
    step = max(1, _AT_A_TIME // max(1, len(ours_NW)))
    for start in range(0, len(owner_M), step):
      piece_NM = distances(ours_NW, theirs_MW[start : start + step])
      n, m = np.nonzero(piece_NM <= NEAR)
      np.minimum.at(closest_NT, (n, owner_M[start + m]), piece_NM[n, m])
    for t in np.flatnonzero((closest_NT <= NEAR).any(0)):
      shared = int((closest_NT[:, t] <= NEAR).sum())
      most = min(len(ours_NW), len(theirs[names[t]]))
      bits = int(closest_NT[:, t].min())
      found.append(Likeness(path, names[t], min(shared, most), most, bits))
  return sorted(found, key=lambda one: (not one.sure, -one.shared, one.bits, one.ours))


def how_sure(looks: Looks, ours: Collection[np.ndarray], theirs: Collection[np.ndarray]) -> str:
  """What was compared, and what a comparison can tell."""
  frames = [sum(map(len, side)) for side in (ours, theirs)]
  silent = sum(not len(hashes) for side in (ours, theirs) for hashes in side)
  unread = f"{len(looks.unread)} files cannot be read, " if looks.unread else ""
  return (
    f"  looks: {frames[0]:,} different frames of {len(ours):,} files with {frames[1]:,} of "
    f"{len(theirs):,}; {unread}{silent} show too little. Alike is at most {NEAR} of {BITS} bits "
    f"apart (unrelated frames: {BITS // 2} +- 8), the same is {ENOUGH} such frames, or all. Not "
    "found are copies that are mirrored or cropped, and excerpts between two sampled frames (one "
    f"every {1 / SAMPLING.fps:g} s, at most {SAMPLING.max_frames} a clip)"
  )


def sources_checked(sources: Sequence[str]) -> None:
  """Raises UserError for one that is not there, before anything is read."""
  for source in sources:
    if not os.path.exists(source):
      raise UserError(
        f"--against {source}: there is no such file; give JSON Lines, a set that `benchmarks "
        "prepare` made, or a folder of media"
      )

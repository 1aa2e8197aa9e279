"""The clips of a pool's files, held against their own headers before anything is built."""

from collections.abc import Callable, Sequence

from rmsd_jax.data import children, containers, json_lines, oddities

SECONDS = 60.0  # for one clip


def of_clips(
  paths: Sequence[str],
  times: str,
  progress: Callable[[int], json_lines.Progress],
  workers: int = 2,
) -> list[str]:
  """What is odd about the clocks of video files, in lines for people.

  Args:
    paths: of the files.
    times: the clock that a pool is to be built with, see `media.Sampling`.
    progress: called with the number of files.
    workers: child processes that read them.
  """
  tally = oddities.Tally()
  unread = []
  if not paths:
    return []
  with progress(len(paths)) as bar:
    for path, made in children.run(_notes, paths, workers, SECONDS):
      if isinstance(made, children.Failure):
        unread.append(made.reason if path in made.reason else f"{path}: {made.reason}")
      else:
        tally.notes[path] = made
      bar.update(1)
  told = oddities.lines(tally.summary(), times)
  if unread:
    told.append(f"clips that cannot be read: {len(unread)}, such as {unread[0]}")
  return told


def _notes(path: str) -> tuple[str, ...]:
  return containers.timeline(path).notes

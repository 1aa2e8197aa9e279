"""The browser of the rollouts that stage 2 showed: samples.jsonl of runs -> entries of the page.

An entry is one rollout beside the teacher's reply that it was matched with. The page filters and
sorts entries itself; which of many are in it is decided here, so that it stays of a readable size.
"""

import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import complete_lines
from rmsd_jax.data import rows, store
from rmsd_jax.report.findings import Run
from rmsd_jax.report.page import Page, data_uri, plain, spread
from rmsd_jax.training import guard, showing

MAX_ENTRIES = 240  # of the page
MAX_STEPS = 6  # of a run, the first and the last among them
MAX_FRAMES = 8  # of a film
FRAME_HEIGHT = 96  # pixels, at most
# Characters of a reply: its beginning and, since the answer stands there, its end.
HEAD = 2000
TAIL = 800


def entries(page: Page, runs: Sequence[Run]) -> list[dict[str, Any]]:
  """Rollouts of the runs of stage 2 in the order of runs and steps, as the template shows them.

  Args:
    page: is told what is not shown and why.
  """
  found = {
    run.label: read_rollouts(page, run.folder / showing.FILE) for run in runs if run.stage == 2
  }
  for run in runs:
    if run.stage == 2 and not found[run.label]:
      page.lacks(
        "samples",
        f"{run.name}/{showing.FILE} shows no rollout: samples.every is 0, or the run has not come "
        "to such a step.",
      )
  found = {label: shown for label, shown in found.items() if shown}
  kept = []
  for label, shown in found.items():
    kept += [one | {"run": label} for one in thinned(shown, MAX_ENTRIES // len(found))]
  total = sum(map(len, found.values()))
  if len(kept) < total:
    page.lacks(
      "samples",
      f"{total - len(kept)} of {total} rollouts, so that the page stays small: at most "
      f"{MAX_STEPS} steps of a run, and of those the best, the worst and the largest D.",
    )
  return kept


def read_rollouts(page: Page, path: pathlib.Path) -> list[dict[str, Any]]:
  """Every rollout of a file; damaged lines are left out, and the page names file and line."""
  shown: list[dict[str, Any]] = []
  damaged = []
  for number, text in enumerate(complete_lines(epath.Path(path)), 1):
    try:
      shown += _of_line(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
      damaged.append(number)
  if damaged:
    lines = f"line {damaged[0]}" if len(damaged) == 1 else f"{len(damaged)} lines"
    first = "" if len(damaged) == 1 else f", the first is line {damaged[0]}"
    name = f"{path.resolve().parent.name}/{path.name}"
    page.lacks("samples", f"{name} is damaged in {lines}{first}.")
  steps = {one["step"] for one in shown}
  for one in shown:
    one["rank"] = rank(one)
    one["first"] = one["step"] == min(steps)
    one["last"] = one["step"] == max(steps) and len(steps) > 1
  return shown


def _of_line(line: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The rollouts of one prompt.

  Raises:
    KeyError, TypeError, AttributeError, ValueError: the line is not as `showing.Shown` writes it.
  """
  answer = line["answer"] if isinstance(line["answer"], str) else json.dumps(line["answer"])
  prompt = {
    "step": int(line["step"]),
    "row": int(line.get("row", -1)),
    "task": plain(str(line["task"])),
    "id": plain(str(line["id"])),
    "clip": plain(str(line["clip"])),
    "question": shortened(str(line["question"])),
    "options": [plain(str(option)) for option in line["options"]],
    "answer": shortened(answer),
    "times": _times(line["times"]),
  }
  return [prompt | _rollout(one) for one in line["rollouts"]]


def _rollout(one: Mapping[str, Any]) -> dict[str, Any]:
  teacher = one["teacher"]
  # A rollout that was cut off has no end at which the discriminator reads a score.
  score = _finite(one["terms"].get("discriminator")) if one["finished"] else None
  terms = {plain(str(name)): _finite(value) for name, value in one["terms"].items()}
  return {
    "reply": shortened(str(one["reply"])),
    "teacher": None if teacher is None else shortened(str(teacher)),
    "tokens": int(one["tokens"]),
    "finished": bool(one["finished"]),
    "terms": terms | ({"discriminator": score} if "discriminator" in terms else {}),
    "score": score,
    "reward": _finite(one.get("reward")),  # runs of earlier versions did not store it
    "advantage": _finite(one["advantage"]),
  }


def _finite(value: Any) -> float | None:
  return None if value is None or not math.isfinite(float(value)) else float(value)


def _times(times_F2: Sequence[Sequence[float | None]]) -> str:
  """e.g. "8 frame pairs, 0.0 to 7.5 s"; "" for a picture, which has no time."""
  flat = [float(time) for pair in times_F2 for time in pair if time is not None]
  flat = [time for time in flat if math.isfinite(time)]
  pairs = f"{len(times_F2)} frame pair{'s' if len(times_F2) > 1 else ''}"
  return f"{pairs}, {min(flat):.1f} to {max(flat):.1f} s" if flat else ""


def shortened(text: str) -> str:
  """A text for the eye; of a long one the middle is left out, and how much of it is told."""
  text = plain(text, len(text))
  left_out = len(text) - HEAD - TAIL
  if left_out <= 0:
    return text
  return f"{text[:HEAD]}\n[\N{HORIZONTAL ELLIPSIS} {left_out:,} characters]\n{text[-TAIL:]}"


def rank(one: Mapping[str, Any]) -> float:
  """What "best" and "worst" go by: the reward, or the advantage where no reward was stored."""
  values = (one["reward"], one["advantage"], 0.0)
  return next(value for value in values if value is not None)


def thinned(shown: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
  """At most `most` rollouts, in their order: of steps spread evenly from the first to the last, and
  of a step with too many those with the largest D and the highest and lowest rewards."""
  steps = sorted({one["step"] for one in shown})
  if len(steps) > MAX_STEPS:
    steps = [steps[place] for place in spread(len(steps), MAX_STEPS)]
  kept: list[dict[str, Any]] = []
  for step in steps:
    of_step = [one for one in shown if one["step"] == step]
    room = max(1, most // len(steps))
    if len(of_step) > room:
      order = sorted(range(len(of_step)), key=lambda place: rank(of_step[place]))
      ends = [place for pair in zip(order[::-1], order, strict=True) for place in pair]
      wanted = dict.fromkeys([_largest_score(of_step), *ends])
      of_step = [of_step[place] for place in sorted(list(wanted)[:room])]
    kept += of_step
  return kept


def _largest_score(shown: Sequence[Mapping[str, Any]]) -> int:
  scores = [-math.inf if one["score"] is None else one["score"] for one in shown]
  return scores.index(max(scores))


def films(page: Page, runs: Sequence[Run], shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """The frames of the prompts that are shown, each once: {"uri", "width", "height"}, and in each
  entry under "film" the place of its own; -1 where there are none.

  Without the run's pool the page says that frames are missing; another pool's rows have none.
  """
  made: list[dict[str, Any]] = []
  places: dict[tuple[str, int, str], int] = {}
  pools = {run.label: _pool_of(page, run) for run in runs if run.stage == 2}
  for one in shown:
    key = (one["run"], one["row"], one["id"])
    if key not in places:
      film = _film(pools.get(one["run"]), one["row"], one["id"])
      places[key] = len(made) if film else -1
      made += [film] if film else []
    one["film"] = places[key]
  return made


def _pool_of(page: Page, run: Run) -> store.Pool | None:
  """The split of the pool that a run was trained on: beside the page's folder, or where the run's
  config has it; None if it is not there."""
  data = {"pool": "", "split": "train"}
  if (run.folder / guard.CONFIG_FILE).is_file():
    data = guard.read_config(str(run.folder))["data"]
  try:
    return store.open_pool(page.pool([]) or data["pool"], data["split"])
  except UserError as error:
    why = f"its pool cannot be read: {error}"
    page.lacks("samples", f"Frames of {run.name}'s prompts, since {why}.")
    return None


def _film(pool: store.Pool | None, place: int, name: str) -> dict[str, Any] | None:
  """Some frames of a row side by side; None without pictures, or where the row is another one."""
  if pool is None or not 0 <= place < len(pool):
    return None
  row = pool[place]
  if plain(row.id) != name or not row.pictures:
    return None
  pictures = rows.unpack(row)
  kept = spread(len(pictures), MAX_FRAMES)
  frames = [_small(pictures[f], int(row.grid_F2[f][0]) * pool.layout.patch) for f in kept]
  strip = PIL.Image.new("RGB", (sum(frame.width for frame in frames), frames[0].height))
  left = 0
  for frame in frames:
    strip.paste(frame, (left, 0))
    left += frame.width
  file = io.BytesIO()
  strip.save(file, "PNG")
  return {"uri": data_uri(file.getvalue()), "width": strip.width, "height": strip.height}


def _small(pair_HWC: np.ndarray, height: int) -> PIL.Image.Image:
  """The first frame of a pair, at most FRAME_HEIGHT high."""
  frame = PIL.Image.fromarray(pair_HWC[:height])
  frame.thumbnail((16 * FRAME_HEIGHT, FRAME_HEIGHT))
  return frame

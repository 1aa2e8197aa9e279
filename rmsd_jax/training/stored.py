"""Which steps lie in a run's folder, which of them are whole, and what becomes of the others.

A step is whole when Orbax marked it and all its items committed, all files of its list of digests
(`rmsd_jax.core.digests`) are there, and, once it has been read, agree with it. Other steps are:

    torn remains of a deletion, older than a whole step   removed at the next start
    damaged or copied in part, newer than any whole one   moved to WORKDIR/damaged, and the run
                                                          goes on from the newest whole step

Steps of earlier versions have no digests: they are read as they are.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from rmsd_jax.core import digests, sharding
from rmsd_jax.core.digests import DamageError
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import in_bucket

FOLDER = "checkpoints"
DAMAGED = "damaged"  # beside it: what no run may read
METRICS = "metrics"  # the item with the score of a step
SCORE = "score"
PROMISE = {"digests": digests.FILE}  # stored with a step that has a list of digests
_COMMITTED = "commit_success.txt"
_ABOUT = "_CHECKPOINT_METADATA"
WRITTEN_LAST = (_COMMITTED, _ABOUT)  # by Orbax, when the list is there already; never restored


def folder_of(workdir: str) -> epath.Path:
  path = epath.Path(workdir)
  # `absolute` would put the current folder before the address of a bucket.
  return (path if in_bucket(path) else path.absolute()) / FOLDER


def find_step(workdir: str, which: str | int = "latest") -> int:
  """The step meant by "latest", "best" (by the metric it was saved with) or a number.

  Raises:
    UserError: no such step, or not whole; the message lists those there are.
  """
  folder = folder_of(workdir)
  if which == "latest":
    return pick(folder, None)
  if which == "best":
    scores = {step: _read_score(folder / str(step)) for step in whole_steps(folder)}
    known = {step: score for step, score in scores.items() if score is not None}
    if not known:
      raise UserError(f"{folder}: no checkpoint has a score; {_present(folder)}, name one of them")
    return max(known, key=lambda step: (known[step], step))  # of equal ones the latest
  if not str(which).isdecimal():
    raise UserError(f"checkpoint {which!r} is neither a step number nor 'best' nor 'latest'")
  return pick(folder, int(which))


def pick(folder: epath.Path, step: int | None) -> int:
  """`step` or the latest, if it is there and whole as far as the names of its files tell."""
  steps = whole_steps(folder)
  if step is None and steps:
    _say_newer(folder, steps[-1])
    return steps[-1]
  if step in steps:
    return step
  wanted = "any step" if step is None else f"step {step}"
  faults = {number: _fault(folder / str(number)) for number in _numbered(folder)}
  of = [number for number in faults if step in (number, None) and faults[number]]
  why = f" whole ({faults[of[-1]]})" if of else ""
  raise UserError(f"{folder} does not hold {wanted}{why}; {_present(folder)}")


def _say_newer(folder: epath.Path, step: int) -> None:
  newer = [number for number in _numbered(folder) if number > step]
  if newer and jax.process_index() == 0:
    fault = _fault(folder / str(newer[-1]))
    print(
      f"checkpoint {newer[-1]} of {folder} is not whole: {fault}; the newest whole step is {step}"
    )


def whole_steps(folder: epath.Path) -> list[int]:
  """Steps whose save was finished and whose files are all there, in order."""
  return [step for step in _numbered(folder) if not _fault(folder / str(step))]


def tidy(folder: epath.Path) -> list[str]:
  """Puts what is not whole out of the way of a run that goes on; see the top of this file.

  Before Orbax looks: it would take every numbered folder for a step.

  Returns:
    One line for each step that was put away.

  Raises:
    UserError: there are steps, and none is whole.
  """
  faults = {step: _fault(folder / str(step)) for step in _numbered(folder)}
  whole = [step for step, fault in faults.items() if not fault]
  lines = []
  for step, fault in faults.items():
    # In a bucket a save that was cut short has no mark yet: Orbax removes it.
    if not fault or (in_bucket(folder) and not (folder / str(step) / _COMMITTED).exists()):
      continue
    if not whole:
      raise UserError(
        f"{folder / str(step)} is not a whole checkpoint ({fault}), and no other step is whole; "
        "copy the run's folder again, or use a new workdir"
      )
    if step < whole[-1]:
      (folder / str(step)).rmtree()
      lines.append(f"removed what was left of checkpoint {step}: {fault}")
    else:
      lines.append(put_away(folder, step, fault, whole[-1]))
  return lines


def put_away(folder: epath.Path, step: int, fault: str, newest: int) -> str:
  """Moves a step that must not be read to WORKDIR/damaged; returns the line that says so.

  Args:
    newest: the newest whole step.
  """
  target = folder.parent / DAMAGED / str(step)
  if target.exists():  # it was damaged once before
    target.rmtree()
  target.parent.mkdir(parents=True, exist_ok=True)
  (folder / str(step)).rename(target)
  return (
    f"checkpoint {step} is damaged: {fault}; it is in {target} now, and the newest whole step is "
    f"{newest}"
  )


def damage(folder: epath.Path, step: int, items: Sequence[str] = ()) -> str | None:
  """Reads a step's files and compares them with its digests: the first fault, alike on all
  processes, each of which reads its share; None where it is whole, or has no digests.

  Args:
    items: names of the entries to read; empty: all of the step.
  """
  listed: dict[str, str] = {}
  fault = _fault(folder / str(step))
  if not fault:
    listed = digests.read_list(folder / str(step)) or {}
    if items:
      listed = {name: x for name, x in listed.items() if name.partition("/")[0] in items}
    mine = sorted(listed)[jax.process_index() :: jax.process_count()]
    try:
      digests.check_contents(folder / str(step), {name: listed[name] for name in mine})
    except DamageError as error:
      fault = str(error)
  if not fault and not listed and jax.process_index() == 0:
    print(f"checkpoint {step} of {folder} is from before digests: its contents are not checked")
  return next((found for found in sharding.gathered([fault]) if found), None)


def by_first(act: Callable[[], Any]) -> Any:
  """What `act` returns on the first process, on all of them; its UserError is theirs, too."""
  answer = None
  if jax.process_index() == 0:
    try:
      answer = [act(), None]
    except UserError as error:
      answer = [None, str(error)]
  result, fault = sharding.gathered([answer])[0]
  if fault is not None:
    raise UserError(fault)
  return result


def newest_words(workdir: str) -> str:
  """Where a run could go on from, for messages about other files of its folder."""
  steps = whole_steps(folder_of(workdir))
  return f"the newest whole step is {steps[-1]}" if steps else "no step is whole"


def _numbered(folder: epath.Path) -> list[int]:
  """Step numbers of the folders that are named as a finished save is."""
  if not folder.exists():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def items_of(step_folder: epath.Path) -> list[str]:
  """Names of a step's entries."""
  return sorted(path.name for path in step_folder.iterdir() if path.is_dir())


def _fault(step_folder: epath.Path) -> str | None:
  """What is missing of a step, or None. Reads no arrays."""
  try:
    parts = [name for name in items_of(step_folder) if name != METRICS]
    if not parts:
      return "it has no entries"
    for part in ("", *parts):
      if not (step_folder / part / _COMMITTED).exists():
        return f"{part}{'/' if part else ''}{_COMMITTED} is missing"
    listed = digests.read_list(step_folder)
    about = json.loads((step_folder / _ABOUT).read_text())
    if listed is None:
      promised = "custom_metadata" in about and PROMISE.items() <= about["custom_metadata"].items()
      return f"{digests.FILE} is missing" if promised else None
    digests.check_names(step_folder, listed, WRITTEN_LAST)
    # Orbax reads the scores of all steps.
    scores = {name: x for name, x in listed.items() if name.startswith(f"{METRICS}/")}
    digests.check_contents(step_folder, scores)
  except DamageError as error:
    return str(error)
  except FileNotFoundError as error:  # also where it is being deleted just now
    return f"{epath.Path(error.filename or _ABOUT).name} is missing"
  except (ValueError, AttributeError, TypeError):  # what JSON gives of damaged bytes
    return f"{_ABOUT} is damaged"
  return None


def _present(folder: epath.Path) -> str:
  steps = whole_steps(folder)
  return f"present: steps {', '.join(map(str, steps))}" if steps else "no step is present"


def _read_score(step_folder: epath.Path) -> float | None:
  path = step_folder / METRICS / METRICS
  return float(json.loads(path.read_text())[SCORE]) if path.exists() else None

"""Several teachers in one pool: how reliable each has been at a task, for draws that know it.

Not in the paper, whose pools have one teacher (arXiv 2603.11423); after MOPD (arXiv 2606.30406),
which weighs several. Where R-MSD draws among the responses to a prompt of task t, those of teacher
m are drawn in proportion to

    w(m, t) = (sum of the quality of m's responses + PRIOR * q(t)) / (their number + PRIOR)

times what they are drawn by without it: their own quality in stage 2's pairs of closed-ended
prompts, alike otherwise. The target "best" of stage 1 still is one of the highest quality, whoever
gave it. q(t) is the mean over the responses of all teachers, towards which a teacher with few of
them is drawn. Of a task that no metric grades, and whose responses were all alike so far, w(m, t)
is the mean over the tasks that are graded.

With the rule "best" the teacher of the highest w(m, t) is drawn, and others where it has no
response that is drawn at all.
"""

from collections.abc import Collection, Mapping

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import records
from rmsd_jax.data.store import Pool

PRIOR = 20  # responses
ALIKE, WEIGHED, BEST = RULES = ("alike", "weighed", "best")  # how teachers are told apart
LAST_RESORT = 1e-6  # weight of any but the best teacher
# Task -> teacher -> the number of its responses, and the sum of their quality.
Measured = Mapping[str, Mapping[str, tuple[int, float]]]


def weights_in(pool: Pool, closed: Mapping[str, bool], rule: str) -> dict[str, dict[str, float]]:
  """`weights` of a pool's own teachers.

  Raises:
    UserError: as `weights`; or the pool has not measured them.
  """
  if pool.split != records.SPLITS[0]:
    raise UserError(
      f"supervision.teachers={rule!r}: pools measure teachers in their training split, and this "
      f"run reads {pool.split!r}; leave it {ALIKE!r}"
    )
  if "teachers" not in pool.metadata:
    raise UserError(
      f"the pool {pool.directory} is from before teachers were measured; build it again for "
      f"supervision.teachers={rule!r}"
    )
  return weights(pool.metadata["teachers"], closed, rule)


def weights(
  measured: Measured, closed: Mapping[str, bool], rule: str = WEIGHED
) -> dict[str, dict[str, float]]:
  """w(m, t) of every teacher and task: task -> teacher -> weight in [0, 1].

  Args:
    measured: of a pool's training split (its metadata's "teachers").
    closed: of each task, whether a metric grades it.
    rule: WEIGHED, or BEST: 1 for the best teachers of a task and next to nothing for others.

  Raises:
    UserError: no graded task has responses of two teachers.
  """
  graded = {task: of for task, of in measured.items() if closed[task] and of}
  if not any(len(of) > 1 for of in graded.values()):
    raise UserError(
      f"supervision.teachers={rule!r} compares teachers by their responses to one closed-ended "
      f"task, and in this pool no two have any: leave it {ALIKE!r}, or add a teacher (`python -m "
      "rmsd_jax.pool collect --teacher`)"
    )
  teachers = sorted({teacher for of in measured.values() for teacher in of})
  known = {task: _shrunk(of, teachers) for task, of in graded.items() if _total(of)}
  # Where nothing has earned anything, nothing tells teachers apart.
  mean = {m: float(np.mean([of[m] for of in known.values()])) if known else 1.0 for m in teachers}
  alike = dict.fromkeys(teachers, 1.0)
  found = {task: alike if task in graded else mean for task in measured} | known
  return {task: _best(of) for task, of in found.items()} if rule == BEST else found


def _total(of: Mapping[str, tuple[int, float]]) -> float:
  return sum(quality for _, quality in of.values())


def _shrunk(of: Mapping[str, tuple[int, float]], teachers: Collection[str]) -> dict[str, float]:
  """w(m, t) of one task."""
  average = _total(of) / sum(count for count, _ in of.values())
  both = {m: of.get(m, (0, 0.0)) for m in teachers}
  return {m: (total + PRIOR * average) / (count + PRIOR) for m, (count, total) in both.items()}


def _best(of: Mapping[str, float]) -> dict[str, float]:
  top = max(of.values())
  # Teachers without a response at a task have the same weight but for rounding.
  return {m: 1.0 if np.isclose(w, top, rtol=1e-9) else LAST_RESORT for m, w in of.items()}


def shown(weights_of: Mapping[str, Mapping[str, float]]) -> str:
  """A line for each teacher: its weight at each task."""
  teachers = sorted({teacher for of in weights_of.values() for teacher in of})
  line = lambda m: ", ".join(f"{task} {of[m]:.2g}" for task, of in sorted(weights_of.items()))
  return "\n".join(f"  {teacher or 'no name'}: {line(teacher)}" for teacher in teachers)

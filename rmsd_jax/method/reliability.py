"""Several teachers in one pool: how reliable each has been at a task, for draws that know it.

Not in the paper, whose pools have one teacher (arXiv 2603.11423); after MOPD (arXiv 2606.30406),
which weighs several. A response of teacher m to a prompt of task t is drawn in proportion to

    w(m, t) = (sum of the quality of m's responses + PRIOR * q(t)) / (their number + PRIOR)

times its own quality where R-MSD draws by that. q(t) is the mean over the responses of all
teachers, towards which a teacher with few of them is drawn. Of a task that no metric grades it is
the mean of w(m, t) over those that are graded: there all draws were alike before. With the rule
"best" the teacher of the highest w(m, t) is drawn alone, as far as it has responses that may teach.
"""

from collections.abc import Collection, Mapping

import numpy as np

from rmsd_jax.core.errors import UserError

PRIOR = 20  # responses
ALIKE, WEIGHED, BEST = RULES = ("alike", "weighed", "best")  # how teachers are told apart
LAST_RESORT = 1e-6  # weight of any but the best teacher: drawn where that one has no response
# Task -> teacher -> the number of its responses, and the sum of their quality.
Measured = Mapping[str, Mapping[str, tuple[int, float]]]


def weights(
  measured: Measured, closed: Mapping[str, bool], rule: str = WEIGHED
) -> dict[str, dict[str, float]]:
  """w(m, t) of every teacher and task: task -> teacher -> weight in [0, 1].

  Args:
    rule: WEIGHED, or BEST: 1 for the best teachers of a task and next to nothing for others.
    measured: of a pool's training split (its metadata's "teachers").
    closed: of each task, whether a metric grades it.

  Raises:
    UserError: it has no graded task, or one teacher alone.
  """
  teachers = sorted({teacher for of in measured.values() for teacher in of})
  known = {task: _shrunk(of, teachers) for task, of in measured.items() if closed[task]}
  if len(teachers) < 2 or not known:
    lacks = "closed-ended prompts" if not known else f"a second one beside {teachers[0]!r}"
    raise UserError(
      f"supervision.teachers={rule!r} compares teachers by their closed-ended responses; the pool "
      f"lacks {lacks}: leave it {ALIKE!r}, or add a teacher (`python -m rmsd_jax.pool collect "
      "--teacher`)"
    )
  mean = {m: float(np.mean([of[m] for of in known.values()])) for m in teachers}
  found = {task: known.get(task, mean) for task in measured}
  return {task: _best(of) for task, of in found.items()} if rule == BEST else found


def _best(of: Mapping[str, float]) -> dict[str, float]:
  top = max(of.values())
  return {teacher: 1.0 if weight == top else LAST_RESORT for teacher, weight in of.items()}


def _shrunk(of: Mapping[str, tuple[int, float]], teachers: Collection[str]) -> dict[str, float]:
  """w(m, t) of one task."""
  count, total = np.sum([*of.values()], axis=0)
  if not total:
    return dict.fromkeys(teachers, 1.0)  # nothing tells them apart
  both = {m: of.get(m, (0, 0.0)) for m in teachers}
  return {m: float((s + PRIOR * total / count) / (n + PRIOR)) for m, (n, s) in both.items()}


def table(weights_of: Mapping[str, Mapping[str, float]]) -> str:
  """A line for each teacher: its weight at each task."""
  teachers = sorted({teacher for of in weights_of.values() for teacher in of})
  line = lambda m: ", ".join(f"{task} {of[m]:.2g}" for task, of in sorted(weights_of.items()))
  return "\n".join(f"  {teacher or 'no name'}: {line(teacher)}" for teacher in teachers)

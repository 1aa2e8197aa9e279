"""The rule terms of the composite reward: R_outer, R_task and R_content of a response.

R(S) = alpha * D(S) + beta * R_outer + eta * R_task + delta * R_content (R-MSD, arXiv 2603.11423);
weights, discriminator and gates belong to the trainer. The terms of a teacher response, from which
`quality` is made, are these too.
"""

from collections.abc import Sequence

from rmsd_jax.tasks import response
from rmsd_jax.tasks.registry import Task


def rule_terms(
  task: Task, text: str, reference: object, options: Sequence[str], finished: bool = True
) -> tuple[float, float, float]:
  """(R_outer, R_task, R_content) of one response, each in [0, 1].

  R_task is 0 when R_outer is 0 (OneThinker, arXiv 2512.03043). R_content is read from the parsed
  answer alone, so it too is 0 then; it is 0 for open-ended tasks, where R-MSD has none. A response
  that did not finish, because it was cut off at the length limit, earns nothing (our decision).

  Args:
    reference: the ground truth, as the task's `validate` accepts it.
    finished: whether the response came to its end-of-turn token.
  """
  parsed = response.parse(text) if finished else response.Parsed(False, "", "")
  if not parsed.outer:
    return 0.0, 0.0, 0.0
  inner = task.check(parsed.answer, options, reference)
  content = task.metric(parsed.answer, options, reference) if task.closed else 0.0
  return 1.0, inner, content

"""The rule terms of the composite reward: R_outer, R_task and R_content of a response.

R(S) = alpha * D(S) + beta * R_outer + eta * R_task + delta * R_content (R-MSD, arXiv 2603.11423);
weights, discriminator and gates belong to the trainer. The terms of a teacher response, from which
`quality` is made, are these too.
Axes: B prompts, R responses.
"""

from collections.abc import Sequence

import numpy as np

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


def rule_terms_BR(
  texts: Sequence[Sequence[str]],
  tasks: Sequence[Task],
  references: Sequence[object],
  options: Sequence[Sequence[str]],
  finished_BR: np.ndarray,
) -> np.ndarray:
  """The rule terms of R responses to each of B prompts, as float32 [3, B, R].

  Args:
    texts: B lists of R responses.
    tasks, references, options: one of each for every prompt.
    finished_BR: bool.
  """
  terms_3BR = np.zeros((3, *finished_BR.shape), np.float32)
  prompts = zip(texts, tasks, references, options, finished_BR, strict=True)
  for b, (texts_R, task, reference, choices, finished_R) in enumerate(prompts):
    for r, (text, finished) in enumerate(zip(texts_R, finished_R, strict=True)):
      terms_3BR[:, b, r] = rule_terms(task, text, reference, choices, bool(finished))
  return terms_3BR

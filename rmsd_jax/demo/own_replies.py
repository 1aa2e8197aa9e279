"""Rejection sampling in the demo world: a pool of a student's answers, for stage 1 to go on with.

As many prompts as a short stage 2 has, as many samples each (STaR, arXiv 2203.14465; RFT, arXiv
2308.01825). Those teach that a teacher's would: worth tau or more, or where a prompt is open-ended,
of the right format. Prompts without one are left out.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text
from rmsd_jax.demo.run import Commands, build_pool
from rmsd_jax.tasks import Rules

NAME = "replies"  # of the evaluation


def sampled_pool(
  run: Commands,
  folder: pathlib.Path,
  student: pathlib.Path,
  raw: pathlib.Path,
  config: Any,
  evaluation: str,
) -> pathlib.Path:
  """Samples, keeps and builds under `folder`; returns the pool. What is there is not made again.

  Args:
    run: runs the commands.
    student: a run of stage 1, whose latest checkpoint answers.
    raw: folder of the demo world's raw pool, whose training prompts are answered.
    config: of the run that goes on; its pool is the one that is answered.
    evaluation: name of a config of this world's stage `evaluate`, with its flags.

  Raises:
    UserError: no answer is worth enough.
  """
  pool = folder / "pool"
  if pool.exists():
    return pool
  flags = {
    "data.pool": config.data.pool,
    "data.split": "train",
    "data.limit": config.steps * config.batch,
    "evaluate.name": NAME,
    "evaluate.greedy": False,
    "evaluate.samples": config.rollouts.samples,
    "seed": config.seed,
  }
  run("rl", "evaluate", f"--config={evaluation}", f"--workdir={student}", f"--out={folder}",
      *(f"--config.{key}={value}" for key, value in flags.items()))  # fmt: skip
  answered = json.loads((folder / "evaluate" / f"{NAME}.json").read_text("utf-8"))["prompts"]
  with open(raw / "pool.jsonl", encoding="utf-8") as file:
    records = {record["id"]: record for record in map(json.loads, file)}
  rules, tau = Rules(**config.tasks), config.supervision.tau
  kept = [of_student(records[p["id"]], p["sampled"], raw) for p in answered
          if teaches(p, rules, tau)]  # fmt: skip
  if not kept:
    raise UserError(f"{student}: no answer to {len(answered)} training prompts is worth {tau}")
  replace_text(folder / "pool.jsonl", "".join(json.dumps(record) + "\n" for record in kept))
  build_pool(run, [folder / "pool.jsonl"], pool, config, "--media-root", raw)
  return pool


def teaches(prompt: Mapping[str, Any], rules: Rules, tau: float) -> bool:
  """Whether an answer of an evaluated prompt may teach, as a teacher's may: one worth `tau` or
  more, to an open-ended prompt, which has no metric, one of the right format."""
  sampled = prompt["sampled"]
  if prompt["closed"]:
    return max(sampled["quality"]) >= tau
  formats = zip(sampled["outer"], sampled["inner"], sampled["finished"], strict=True)
  return any(finished and rules.is_valid(outer, inner) for outer, inner, finished in formats)


def of_student(
  record: Mapping[str, Any], replies: Mapping[str, Any], raw: pathlib.Path
) -> dict[str, Any]:
  """A record of a raw pool in `raw` with a student's replies in place of the teacher's."""
  ended = ("length", "stop")
  responses = [
    {"text": text, "teacher": "student", "finish_reason": ended[finished]}
    for text, finished in zip(replies["text"], replies["finished"], strict=True)
  ]
  media = [medium | {"path": str(raw / medium["path"])} for medium in record["media"]]
  return {**record, "responses": responses, "media": media}

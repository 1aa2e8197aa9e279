"""Scores of the replies to held-out prompts: of each, and of all with their intervals.

Axes: B prompts, N samples of a prompt.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rmsd_jax.core import intervals, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts import discrimination, generate, grading
from rmsd_jax.rollouts.discrimination import Critic
from rmsd_jax.rollouts.generate import Samples
from rmsd_jax.tasks import Rules, registry

WAYS = ("greedy", "sampled")
INFO = ("id", "clip", "task", "question", "options", "answer")

PLACES = ("gather", "tensor", "pieces")  # of `rollouts`: how they are computed, not what


class Ways(NamedTuple):
  """The jitted programs that answer, by the way of answering."""

  greedy: Callable | None  # (params, groups, key) -> Samples; None: not asked for
  sampled: Callable | None  # (params, groups, key) -> Samples
  model: Qwen3VL
  critic: Critic | None = None  # that scores what is sampled


def make_ways(
  model: Qwen3VL, mesh: Mesh, rollouts: Mapping, samples: int, greedy: bool = True
) -> Ways:
  """Compiled when first called.

  Args:
    rollouts: options of `generate.generate`.
    samples: sampled replies a prompt; 0: none.
    greedy: whether the likeliest reply is asked for.

  Raises:
    UserError: the devices cannot decode together as `rollouts.tensor` says.
  """
  model.check_decoding(mesh, rollouts["tensor"])
  jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
  program = lambda **options: jit(functools.partial(_respond, model, **options))
  likeliest = {"samples": 1, "temperature": 0.0} | {name: rollouts[name] for name in PLACES}
  return Ways(
    greedy=program(**likeliest) if greedy else None,
    sampled=program(**dict(rollouts) | {"samples": samples}) if samples else None,
    model=model,
  )


def _respond(model: Qwen3VL, params: dict, groups: PromptGroups, key, **options) -> Samples:
  """Replies to the prompts of a batch; `options` as of `generate.generate`.

  A response is finished where it ends as the teacher's do, as in stage 2.
  """
  tokens = groups.responses_BRT.shape[2]
  samples = generate.generate(model, params, groups, key, max_tokens=tokens, **options)
  return generate.ended_by(samples, model.config.stop_ids[0])


def answered(
  ways: Ways, params: dict, mesh: Mesh, key: jax.Array, batch: Batch, tokenizer: ChatTokenizer
) -> list[dict]:
  """A line for each prompt of this process: row, id, clip, task, question, options, answer, closed,
  and under each way of answering lists over responses of length, finished, text; with a critic also
  what `discrimination.add_scores` adds.

  Args:
    key: of all prompts; each draws by its row of the pool: the same samples in any batch and on any
      number of devices.
  """
  groups = sharding.put_batch(mesh, batch.groups)
  key_B = generate.keys_of_rows(mesh, key, batch.row_B)
  lines = [
    {"row": int(row), **{name: info[name] for name in INFO}, "closed": bool(closed)}
    for row, info, closed in zip(batch.row_B, batch.info, batch.closed_B, strict=True)
  ]
  for how in WAYS:
    if (program := getattr(ways, how)) is not None:
      mine = jax.tree.map(sharding.local_rows, program(params, groups, key_B))
      _add_replies(lines, how, mine, tokenizer)
      if ways.critic and how == "sampled":
        discrimination.add_scores(lines, ways.critic, mesh, batch, mine)
  # The last batch is filled up with rows that were answered before; they do not count twice.
  return [line for line, is_real in zip(lines, batch.real_B, strict=True) if is_real]


def _add_replies(lines: list[dict], how: str, mine: Samples, tokenizer: ChatTokenizer) -> None:
  replies = grading.replies_of(mine, tokenizer)
  length_BN = mine.length_BR.tolist()
  finished_BN = mine.finished_BR.tolist()
  for line, *columns in zip(lines, length_BN, finished_BN, replies, strict=True):
    line[how] = dict(zip(("length", "finished", "text"), columns, strict=True))


def grade(lines: list[dict], rules: Rules) -> list[dict]:
  """Per line of a journal its prompt, and under each way of answering lists over responses of
  quality, outer, inner (R_outer, R_task), length, finished, text, and what a critic added."""
  names = (*INFO, "closed", "teacher")
  prompts = [{name: line[name] for name in names if name in line} for line in lines]
  for how in [how for how in WAYS if lines and how in lines[0]]:
    replies = [line[how]["text"] for line in lines]
    finished_BN = np.array([line[how]["finished"] for line in lines])
    terms = grading.rule_terms(replies, lines, finished_BN, rules)
    columns = {
      "quality": rules.quality(terms.outer_BN, terms.inner_BN, terms.content_BN),
      "outer": terms.outer_BN,
      "inner": terms.inner_BN,
    }
    for b, (line, prompt) in enumerate(zip(lines, prompts, strict=True)):
      prompt[how] = {name: column[b].tolist() for name, column in columns.items()} | line[how]
  return prompts


def graded(lines: list[dict], rules: Rules) -> dict[int, dict]:
  """The prompts of all processes by their rows in the pool, graded; `lines`: of this one."""
  mine = zip(lines, grade(lines, rules), strict=True)
  return dict(sharding.gathered([[line["row"], prompt] for line, prompt in mine]))


def summary(prompts: list[dict], how: str, pass_above: float, rules: Rules) -> dict:
  """Scores of one way to respond: closed-ended quality overall and by task, format, lengths."""
  per_prompt = lambda name, rows: [float(np.mean(row[how][name])) for row in rows]
  interval = lambda name, rows: intervals.mean_interval(
    per_prompt(name, rows), [row["clip"] for row in rows]
  )
  closed = [row for row in prompts if row["closed"]]
  terms = ((np.array(row[how]["outer"]), np.array(row[how]["inner"])) for row in prompts)
  result = {
    "closed": interval("quality", closed),
    "format": float(np.mean([rules.is_valid(outer, inner) for outer, inner in terms])),
    "finished": float(np.mean(per_prompt("finished", prompts))),
    "length": float(np.mean(per_prompt("length", prompts))),
    "tasks": {},
  }
  for task in sorted({row["task"] for row in prompts}):
    rows = [row for row in prompts if row["task"] == task]
    result["tasks"][task] = interval("quality" if rows[0]["closed"] else "inner", rows)
  count = len(prompts[0][how]["quality"])
  if count > 1 and closed:
    passed_BN = intervals.passes([row[how]["quality"] for row in closed], pass_above)
    ks = [2**i for i in range(count.bit_length())]
    result["pass_at"] = {str(k): float(intervals.pass_at_k(passed_BN, k).mean()) for k in ks}
  return result


def blind(prompts: list[dict], rules: Rules, candidates: int = 400) -> list[dict]:
  """The best constant answer of each closed-ended task, chosen on these very prompts: a bound.

  Candidates are the tasks' right answers (the first `candidates` different ones).
  """
  graded = []
  if not any(row["closed"] for row in prompts):
    raise UserError("the best constant answers are of closed-ended prompts, and there is none")
  for name in sorted({row["task"] for row in prompts if row["closed"]}):
    task = rules.task(name)
    rows = [row for row in prompts if row["task"] == name]
    answers = list(dict.fromkeys(registry.spelled(row["answer"]) for row in rows))[:candidates]
    scores = np.array(
      [
        [
          rules.is_valid(1, task.check(a, row["options"], row["answer"]))
          * task.metric(a, row["options"], row["answer"])
          for row in rows
        ]
        for a in answers
      ]
    )
    best = int(scores.mean(1).argmax())
    for row, score in zip(rows, scores[best], strict=True):
      alone = dict(quality=[float(score)], outer=[1.0], inner=[1.0], length=[0], finished=[True])
      graded.append(row | {"greedy": alone | {"text": [answers[best]]}})
  return graded

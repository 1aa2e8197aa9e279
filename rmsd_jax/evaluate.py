"""Samples and grades responses on held-out prompts, from a restored checkpoint.

    python -m rmsd_jax.evaluate --config=configs/eval/demo.py --workdir=runs/demo/sft
    ... --checkpoint=latest|best|STEP   of the run in --workdir (default latest)
    ... --checkpoint=base               the weights of config.model.folder, untrained
    ... --checkpoint=blind              no model: the best constant answer of each task, a bound
                                        on what can be had without looking at the clip

Writes WORKDIR/evaluate/NAME.json (config.evaluate.name, or the split's name): greedy and sampled
scores per task with 95 % bootstrap intervals over clips, format rate, pass@k, lengths, and every
prompt's scores for paired comparisons. A file of another checkpoint or pool is not written over.

Axes: B prompts, N samples of a prompt.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from etils import epath

from rmsd_jax import cli
from rmsd_jax.core import intervals, sharding
from rmsd_jax.core.errors import UserError, check_least, check_within
from rmsd_jax.core.files import replace_text
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import loader
from rmsd_jax.data.batch import blinded
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.store import open_pool
from rmsd_jax.models import hf
from rmsd_jax.rollouts import generate, grading
from rmsd_jax.tasks import Rules, registry
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.checkpoint import find_step
from rmsd_jax.training.guard import part_of

WITHIN = {
  "rollouts.temperature": "[0, inf)",
  "rollouts.top_p": "(0, 1]",
  "evaluate.pass_above": "[0, 1]",
}
OPTIONS = {"checkpoint": ("latest", "latest, best, a step, base or blind; see above")}


class Steps(NamedTuple):
  """The jitted programs of an evaluation, by the way of answering."""

  greedy: Callable  # (params, groups, key) -> Samples
  sampled: Callable  # (params, groups, key) -> Samples


def make_steps(config, mesh) -> Steps:
  """Compiled when first called.

  A response is finished where it ends as the teacher's do, as in stage 2.
  """
  model = hf.load_model(**config.model)

  def run(params, groups, key, **options):
    tokens = groups.responses_BRT.shape[2]
    samples = generate.generate(model, params, groups, key, max_tokens=tokens, **options)
    samples = generate.ended_by(samples, model.config.stop_ids[0])
    return jax.tree.map(sharding.by_prompt, samples)

  jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
  sampled = dict(config.rollouts) | {"samples": config.evaluate.samples}
  greedy = dict(samples=1, temperature=0.0, gather=config.rollouts.gather)
  return Steps(
    greedy=jit(functools.partial(run, **greedy)), sampled=jit(functools.partial(run, **sampled))
  )


def grade(
  steps: Steps, params, mesh, batches, tokenizer, rules: Rules, seed: int, progress: Progress
) -> list[dict]:
  """Per prompt: id, clip, task, question, options, answer, closed, and under "greedy" and "sampled"
  lists over responses of quality, outer, inner (R_outer, R_task), length, finished, text."""
  prompts = []
  for number, batch in enumerate(batches):
    groups = sharding.put_batch(mesh, batch.groups)
    # By the number of the batch: the same samples on any number of devices, and no two batches
    # alike.
    key = jax.random.fold_in(jax.random.key(seed), number)
    rows = [
      {name: info[name] for name in ("id", "clip", "task", "question", "options", "answer")}
      | {"closed": bool(closed)}
      for info, closed in zip(batch.info, batch.closed_B, strict=True)
    ]
    for how, run in steps._asdict().items():
      samples = jax.tree.map(sharding.local_rows, run(params, groups, key))
      replies = grading.replies_of(samples, tokenizer)
      terms = grading.rule_terms(replies, batch.info, samples.finished_BR, rules)
      columns = {
        "quality": rules.quality(terms.outer_BN, terms.inner_BN, terms.content_BN),
        "outer": terms.outer_BN,
        "inner": terms.inner_BN,
        "length": samples.length_BR,
        "finished": samples.finished_BR,
      }
      for b, row in enumerate(rows):
        row[how] = {name: column[b].tolist() for name, column in columns.items()}
        row[how]["text"] = replies[b]
    # The last batch is filled up with rows that were graded before; they are not counted twice.
    graded = sharding.gathered([r for r, real in zip(rows, batch.real_B, strict=True) if real])
    prompts += graded
    progress.update(len(graded))
  return prompts


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
    # Qualities are float32: 0.9 of them is below the 0.9 of a config.
    quality_BN = np.array([row[how]["quality"] for row in closed], np.float32)
    passed_BN = quality_BN >= np.float32(pass_above)
    ks = [k for k in (1, 2, 4, 8, 16) if k <= count]
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


def _check_free(path: str, asked: dict) -> None:
  """Refuses to write over an evaluation of something else."""
  if not epath.Path(path).exists():
    return
  there = json.loads(epath.Path(path).read_text())
  shown = lambda value: "other contents" if isinstance(value, dict) else value
  if "pool_identity" in there:  # which was scored by the rules of the evaluation
    there.setdefault("rules", there["pool_identity"]["scorer"])
  differ = [name for name, value in asked.items() if there.get(name) != value]
  if changes := [f"{name} {shown(there.get(name))} -> {shown(asked[name])}" for name in differ]:
    raise UserError(
      f"{path} is an evaluation of something else: {', '.join(changes)}; give another "
      "--config.evaluate.name, or remove it"
    )


def main(config, workdir: str, checkpoint: str) -> None:
  """Evaluates one checkpoint."""
  first = jax.process_index() == 0
  path = os.path.join(workdir, "evaluate", f"{config.evaluate.name or config.data.split}.json")
  check_least(config, {"evaluate.samples": 1, "rollouts.top_k": 0, "data.limit": 0})
  check_within(config, WITHIN)
  rules = Rules(**config.tasks)
  mesh = sharding.make_mesh(**config.mesh)
  sharding.check_batch(mesh, config.batch, "config.batch")
  pool = open_pool(config.data.pool, config.data.split, part_of(config.data.pool))
  step = find_step(workdir, checkpoint) if checkpoint not in ("base", "blind") else None
  drawn = {name: value for name, value in config.rollouts.items() if name != "gather"}
  # All that a score depends on: a file of the same name that differs in any of it is another
  # evaluation.
  asked = {
    "weights": checkpoint if step is None else f"step {step}",
    "folder": config.model.folder,
    "seed": config.seed,
    **{name: config.data[name] for name in ("split", "blind", "limit")},
    "tasks": list(config.data.tasks),
    "samples": config.evaluate.samples,
    "pass_above": config.evaluate.pass_above,
    "rollouts": drawn,
    "rules": rules.version,
    "pool_identity": pool.identity,
  }
  # Before the model is loaded: an hour of samples must not end in a refusal.
  _check_free(path, asked)
  if checkpoint != "blind":
    pool.check_reader(config.model.folder, rules)
    model = hf.load_model(**config.model)
    # From here on ids are held against the model that reads them.
    pool = dataclasses.replace(pool, vocabulary=model.config.text.vocab)
  chosen = int(loader.chosen(pool, config.data.tasks).sum())
  total = min(config.data.limit or chosen, chosen)
  batches = loader.sequential(
    pool,
    batch_size=config.batch,
    limit=config.data.limit,
    tasks=config.data.tasks,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=config.data.workers,
    prefetch=config.data.prefetch,
  )
  batches = (blinded(batch) if config.data.blind else batch for batch in batches)
  ways = ("greedy", "sampled")
  if checkpoint == "blind":
    rows = [
      info | {"closed": bool(closed)}
      for batch in batches
      for info, closed, real in zip(batch.info, batch.closed_B, batch.real_B, strict=True)
      if real
    ]
    # By id, as the candidates are the first answers: on two processes rows come in another order.
    rows = sorted(sharding.gathered(rows), key=lambda row: row["id"])
    prompts = blind(rows, rules)
    ways = ("greedy",)
  else:
    init_from = "" if checkpoint == "base" else workdir
    progress = Progress(total, f"evaluate {checkpoint}", write=first)
    with jax.set_mesh(mesh), contextlib.closing(batches), progress:
      state = state_lib.load_student(
        mesh, model, config.model.folder, init_from, config.trained, step
      )
      tokenizer = ChatTokenizer(config.model.folder)
      grading.check_ends(tokenizer, model.config.stop_ids)
      prompts = grade(
        make_steps(config, mesh),
        state_lib.weights(state),
        mesh,
        batches,
        tokenizer,
        rules,
        config.seed,
        progress,
      )
  if not first:
    return
  result = {
    **asked,
    "checkpoint": checkpoint,
    "pool": config.data.pool,
    "step": step,
    **{how: summary(prompts, how, config.evaluate.pass_above, rules) for how in ways},
    "prompts": prompts,
  }
  replace_text(path, json.dumps(result) + "\n")
  for how in ways:
    print(f"{how}: {_line(result[how])}")
  print(f"wrote {path}")


def _line(scores: dict) -> str:
  closed = scores["closed"]
  tasks = ", ".join(f"{name} {value['mean']:.3f}" for name, value in scores["tasks"].items())
  return (
    f"closed-ended quality {closed['mean']:.3f} [{closed['low']:.3f}, {closed['high']:.3f}], "
    f"format {scores['format']:.3f}, finished within T {scores['finished']:.3f}; {tasks}"
  )


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main, OPTIONS)


if __name__ == "__main__":
  command()

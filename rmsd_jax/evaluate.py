"""Samples and grades responses on held-out prompts, from a restored checkpoint.

    python -m rmsd_jax.evaluate --config=configs/eval/demo.py --workdir=runs/demo/sft
    ... --checkpoint=latest|best|STEP   of the run in --workdir (default latest)
    ... --checkpoint=base               the weights of config.model.folder, untrained
    ... --checkpoint=blind              no model: the best constant answer of each task, a bound
                                        on what can be had without looking at the clip

    ... --rescore               grades the stored replies anew, without model, pool or device

    ... --out=DIR               results go there instead of WORKDIR

Writes WORKDIR/evaluate/NAME.json (config.evaluate.name, or the split's name): greedy and sampled
scores per task with 95 % bootstrap intervals over clips, format rate, pass@k, lengths, and every
prompt's scores for paired comparisons; with config.evaluate.discriminator also how the
discriminator of a run of stage 2 ranks what is sampled. Replies are stored batch by batch in
WORKDIR/evaluate/NAME/, and the same command goes on from there. What is of another checkpoint or
pool is not written over.

Axes: B prompts, N samples of a prompt.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from typing import NoReturn

import jax
from etils import epath

from rmsd_jax import cli
from rmsd_jax.core import interrupts, named, sharding
from rmsd_jax.core.errors import UserError, check_least, check_within
from rmsd_jax.core.files import replace_text
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import epochs, loader, reply_journal
from rmsd_jax.data.batch import blinded
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.reply_journal import ReplyJournal
from rmsd_jax.data.store import Pool, open_pool
from rmsd_jax.models import hf
from rmsd_jax.rollouts import discrimination, grading, held_out
from rmsd_jax.rollouts.held_out import WAYS, Ways, answered, blind, graded, summary
from rmsd_jax.tasks import Rules
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.checkpoint import find_step
from rmsd_jax.training.guard import part_of

WITHIN = {
  "rollouts.temperature": "[0, inf)",
  "rollouts.top_p": "(0, 1]",
  "evaluate.pass_above": "[0, 1]",
}
OPTIONS = {
  "checkpoint": ("latest", "latest, best, a step, base or blind; see above"),
  "rescore": (False, "grade the stored replies anew; see above"),
  "out": ("", "folder of the results instead of WORKDIR, which is then only read"),
}
RULES = ("rules", "pass_above")  # of what is asked; replies do not depend on them


def make_steps(config, mesh) -> Ways:
  """Compiled when first called."""
  model = hf.load_model(**config.model)
  asked = config.evaluate
  return held_out.make_ways(model, mesh, config.rollouts, asked.samples, asked.greedy)


def answer(
  ways: Ways,
  params,
  mesh,
  batches,
  tokenizer,
  seed: int,
  journal: ReplyJournal,
  progress: Progress,
) -> None:
  """Adds the replies to the prompts of this process to the journal, batch by batch; its lines are
  those of `held_out.answered`."""
  began = time.monotonic()
  for batch in batches:
    real = answered(ways, params, mesh, jax.random.key(seed), batch, tokenizer)
    new = sum(line["row"] not in journal.rows for line in real)
    now = time.monotonic()
    journal.add(real, now - began)
    interrupts.raise_swallowed()
    began = now
    progress.update(sum(sharding.gathered([new])))


def _graded(journal: ReplyJournal, order: list[int], rules: Rules) -> list[dict]:
  """The graded prompts of all processes, in the order of an evaluation."""
  prompts = graded(list(journal.rows.values()), rules)
  if lacking := len(set(order) - prompts.keys()):
    raise UserError(
      f"{journal.folder} has no whole replies to {lacking} of {len(order)} prompts; run the same "
      "command without --rescore"
    )
  return [prompts[row] for row in order]


def _check_same(path: str, there: dict, asked: dict) -> None:
  """Refuses to write over, or to go on with, an evaluation of something else."""
  # What those of before do not say: they had both ways, and no scores of a discriminator.
  there = {"ways": list(WAYS), "discriminator": False, "responses": 0} | there
  if differ := reply_journal.changes(there, asked):
    names = {change.partition(" ")[0] for change in differ}
    remedy = "add --rescore to grade its replies anew, " if names <= set(RULES) else ""
    if "discriminator" in names:
      remedy = f"give --config.evaluate.discriminator={there['discriminator']}, "
    name = os.path.basename(path).removesuffix(".json")
    raise UserError(
      f"{path} is an evaluation of something else: {', '.join(differ)}; {remedy}give another "
      f"--config.evaluate.name, or remove {name}.json and {name}/"
    )


def _check_free(path: str, asked: dict) -> None:
  """Refuses where the result of another evaluation has the name."""
  if not epath.Path(path).exists():
    return
  there = json.loads(epath.Path(path).read_text())
  if "pool_identity" in there:  # which was scored by the rules of the evaluation
    there.setdefault("rules", there["pool_identity"]["scorer"])
  _check_same(path, there, asked)


def _ways(config) -> list[str]:
  """The ways of answering that are asked for."""
  asked = {"greedy": config.evaluate.greedy, "sampled": config.evaluate.samples > 0}
  return [how for how in WAYS if asked[how]]


def _settings(config, rules: Rules) -> dict:
  """What a score depends on beside the weights and the pool."""
  return {
    "folder": config.model.folder,
    "seed": config.seed,
    **{name: config.data[name] for name in ("split", "blind", "limit")},
    "tasks": list(config.data.tasks),
    "ways": _ways(config),
    "samples": config.evaluate.samples,
    "discriminator": config.evaluate.discriminator,
    "responses": config.data.responses if config.evaluate.discriminator else 0,
    "pass_above": config.evaluate.pass_above,
    "rollouts": {
      name: value for name, value in config.rollouts.items() if name not in held_out.PLACES
    },
    "rules": rules.version,
  }


def _of_replies(asked: dict) -> dict:
  return {name: value for name, value in asked.items() if name not in RULES}


def _begin(journal: ReplyJournal, about: dict, begun: dict | None, weights) -> None:
  """Stores what the replies to come depend on; on process 0. `weights`: of all that is asked."""
  mark = state_lib.mark(weights)
  if jax.process_index() == 0:
    if begun and begun["parameters"] != mark:
      raise UserError(
        f"{journal.folder} has replies of other weights of the same name; give another "
        "--config.evaluate.name, or remove it"
      )
    if journal.damaged:
      names = ", ".join(journal.damaged)
      print(f"damaged in {journal.folder}, answered again: {names}", file=sys.stderr)
    journal.begin(about | {"parameters": mark})


def _answered(config, workdir: str, folder: str, checkpoint: str, rules: Rules):
  """What the evaluation of a model is of, and its graded prompts."""
  mesh = sharding.make_mesh(**config.mesh)
  sharding.check_batch(mesh, config.batch, "config.batch")
  about, pool = _about(config, workdir, folder, checkpoint, rules)
  journal = ReplyJournal(folder, jax.process_index(), jax.process_count())
  begun = journal.asked() if jax.process_index() == 0 else None
  if begun:
    _check_same(folder, begun["asked"], _of_replies(about["asked"]))
  pool.check_reader(config.model.folder, rules)
  model = hf.load_model(**config.model)
  # From here on ids are held against the model that reads them.
  pool = dataclasses.replace(pool, vocabulary=model.config.text.vocab)
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    init_from = "" if checkpoint == "base" else workdir
    state = state_lib.load_student(
      mesh, model, config.model.folder, init_from, config.trained, about["step"]
    )
    params = state_lib.weights(state)
    tokenizer = ChatTokenizer(config.model.folder)
    grading.check_ends(tokenizer, model.config.stop_ids)
    ways = make_steps(config, mesh)
    if config.evaluate.discriminator:
      own = state_lib.load_discriminator(mesh, model, workdir, about["step"])
      ways = ways._replace(critic=discrimination.make_critic(model, mesh, named.join(params, own)))
    _begin(journal, about, begun, (params, ways.critic and ways.critic.params))
    done = sharding.gathered(list(journal.rows))  # nobody adds before `_begin` is over
    batches = stack.enter_context(contextlib.closing(_batches(config, pool, done)))
    progress = stack.enter_context(
      Progress(
        len(about["order"]),
        f"evaluate {checkpoint}",
        start=len(done),
        write=jax.process_index() == 0,
      )
    )
    answer(ways, params, mesh, batches, tokenizer, config.seed, journal, progress)
  return about, _graded(journal, about["order"], rules)


def _batches(config, pool: Pool, done=()):
  """This process's batches, but those of rows that are done."""
  teachers = min(config.data.responses, pool.metadata["k"])  # held-out prompts need have none
  batches = loader.sequential(
    pool,
    batch_size=config.batch,
    k=teachers if config.evaluate.discriminator else 0,
    limit=config.data.limit,
    tasks=config.data.tasks,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=config.data.workers,
    prefetch=config.data.prefetch,
    done=done,
  )
  return (blinded(batch) if config.data.blind else batch for batch in batches)


def _about(config, workdir: str, folder: str, checkpoint: str, rules: Rules) -> tuple[dict, Pool]:
  """What an evaluation is of, as its journal stores it, and the pool."""
  pool = open_pool(config.data.pool, config.data.split, part_of(config.data.pool))
  step = find_step(workdir, checkpoint) if checkpoint not in ("base", "blind") else None
  if config.evaluate.discriminator:
    state_lib.check_discriminator(workdir, step)
  # All that a score depends on: a file of the same name that differs in any of it is another
  # evaluation.
  asked = {
    "weights": checkpoint if step is None else f"step {step}",
    **_settings(config, rules),
    "pool_identity": pool.identity,
  }
  # Before the model is loaded: an hour of samples must not end in a refusal.
  _check_free(f"{folder}.json", asked)
  order = epochs.in_turn(pool, config.data.tasks, config.data.limit).tolist()
  return {"asked": asked, "pool": config.data.pool, "step": step, "order": order}, pool


def _constant(config, workdir: str, folder: str, rules: Rules):
  """The same of the best constant answers."""
  about, pool = _about(config, workdir, folder, "blind", rules)
  with contextlib.closing(_batches(config, pool)) as batches:
    rows = [
      info | {"closed": bool(closed)}
      for batch in batches
      for info, closed, real in zip(batch.info, batch.closed_B, batch.real_B, strict=True)
      if real
    ]
  # By id, as the candidates are the first answers: on two processes rows come in another order.
  return about, blind(sorted(sharding.gathered(rows), key=lambda row: row["id"]), rules)


def _rescored(config, folder: str, checkpoint: str, rules: Rules):
  """The same of the replies that are there."""
  journal = ReplyJournal(folder, jax.process_index(), jax.process_count())
  about = journal.asked()
  if about is None:
    raise UserError(f"{folder} has no replies to grade; run the same command without --rescore")
  settings = _settings(config, rules)
  # "latest" and "best" may be other steps by now, and the replies say which they are of.
  named = {"base": "base"} | ({checkpoint: f"step {checkpoint}"} if checkpoint.isdecimal() else {})
  given = {"weights": named[checkpoint]} if checkpoint in named else {}
  there = about["asked"] | {"pool": about["pool"]}
  _check_same(folder, there, given | _of_replies(settings) | {"pool": config.data.pool})
  _check_free(f"{folder}.json", _of_replies(about["asked"]))
  about["asked"] |= {name: settings[name] for name in RULES}
  return about, _graded(journal, about["order"], rules)


def main(config, workdir: str, checkpoint: str, rescore: bool = False, out: str = "") -> None:
  """Evaluates one checkpoint, or grades its stored replies anew."""
  if rescore:
    jax.config.update("jax_platforms", "cpu")  # no accelerator is taken, nor waited for
  folder = os.path.join(out or workdir, "evaluate", config.evaluate.name or config.data.split)
  check_least(
    config, {"evaluate.samples": 0, "rollouts.top_k": 0, "rollouts.pieces": 1, "data.limit": 0}
  )
  check_within(config, WITHIN)
  if not _ways(config):
    raise UserError(
      "evaluate.greedy=False and evaluate.samples=0 ask for no reply; give one of them, or both"
    )
  if config.evaluate.discriminator and not config.evaluate.samples:
    raise UserError("evaluate.discriminator scores sampled replies; give evaluate.samples")
  if config.evaluate.discriminator and checkpoint in ("base", "blind"):
    raise UserError(
      f"--checkpoint={checkpoint} has no discriminator; leave out evaluate.discriminator"
    )
  rules = Rules(**config.tasks)
  if rescore and checkpoint == "blind":
    raise UserError("--checkpoint=blind has no replies to grade anew; leave out --rescore")
  if rescore:
    about, prompts = _rescored(config, folder, checkpoint, rules)
  elif checkpoint == "blind":
    about, prompts = _constant(config, workdir, folder, rules)
  else:
    about, prompts = _answered(config, workdir, folder, checkpoint, rules)
  if jax.process_index():
    return
  ways = ["greedy"] if checkpoint == "blind" else _ways(config)
  result = {
    **about["asked"],
    "checkpoint": checkpoint,
    "pool": about["pool"],
    "step": about["step"],
    **{how: summary(prompts, how, config.evaluate.pass_above, rules) for how in ways},
  }
  if config.evaluate.discriminator:
    result["discrimination"] = discrimination.ranking(prompts, config.evaluate.pass_above, rules)
  result["prompts"] = prompts
  replace_text(f"{folder}.json", json.dumps(result) + "\n")
  for how in ways:
    print(f"{how}: {_line(result[how])}")
  if "discrimination" in result:
    print(f"discriminator: {discrimination.line(result['discrimination'])}")
  print(f"wrote {folder}.json")


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

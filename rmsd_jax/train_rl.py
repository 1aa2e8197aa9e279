"""Stage 2: adversarial distillation by on-policy rollouts (R-MSD, arXiv 2603.11423).

    python -m rmsd_jax.train_rl --config=configs/demo.py:rl --workdir=runs/demo/rl

One step: rollouts -> rule rewards (host) -> discriminator: scores under its old weights, and its
update on pairs (teacher response, rollout), in one pass -> reference log-probs, composite reward,
group advantages, policy update. The order is GAD's (arXiv 2511.10643).

    R(S_i) = alpha * D(S_i) + beta * R_outer + eta * R_task + delta * R_content
    L_RL   = -E[R(S)] + gamma * KL(pi_S || pi_ref)
    L_D    = E[q_m(i) * -log sigmoid(D(T_m(i)) - D(S_i))]

The same command on the same folder resumes at the last checkpoint.
Axes: B prompts, N rollouts, K teacher responses, R responses of a group, P prompt tokens,
T response tokens, D width.
"""

import functools
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rmsd_jax import cli
from rmsd_jax.core import masked, named, sharding
from rmsd_jax.core.errors import UserError, check_least
from rmsd_jax.core.groups import PromptGroups, join_responses
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.method import advantages, losses, matching, shortcuts
from rmsd_jax.models import hf
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.rollouts import generate, grading
from rmsd_jax.tasks import registry
from rmsd_jax.training import optim
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.loop import Loop

LEAST = {
  "log_every": 1,
  "reward.dead_below": 0,
  "policy.kl": 0,
  "policy.max_kl": 0,
  "discriminator.warmup_steps": 0,
  "discriminator.probe_every": 0,
  "discriminator.frozen_after": 0,
}
ACCURACY_DECAY = 0.9  # of the running accuracy, per step: it follows some 10 steps


def make_steps(config, mesh):
  """The jitted programs of stage 2: {"rollout", "discriminator", "policy", "probe"}."""
  model, optims = hf.load_model(**config.model), make_optims(config)
  jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
  return {
    # keep_unused: the whole state stays in memory meanwhile, so rmsd_jax.compile must count it.
    "rollout": jit(rollout_step(config, model), keep_unused=True),
    "discriminator": jit(discriminator_step(config, mesh, model, optims), donate_argnums=0),
    "policy": jit(policy_step(config, mesh, model, optims), donate_argnums=0),
    "probe": jit(probe_step(config, model)),
  }


def rollout_step(config, model):
  """(state, groups, key) -> (samples, visual): N responses per prompt, and the encoded media.

  A response is finished where it ends as the teacher's do, by the model's first stop id: D would
  tell any other ending apart. One that ends otherwise counts as cut off.
  `visual` is None where the tower learns: each set of weights then encodes for itself.
  """

  def rollout(state, groups: PromptGroups, key):
    params = state_lib.weights(state)
    visual = model.encode(params, groups)
    samples = generate.generate(
      model,
      params,
      groups,
      key,
      max_tokens=groups.responses_BRT.shape[2],
      visual=visual,
      **config.rollouts,
    )
    samples = generate.ended_by(samples, model.config.stop_ids[0])
    samples = jax.tree.map(sharding.by_prompt, samples)  # each process grades its own rows
    return samples, visual if "vision" not in state["student"] else None

  return rollout


def discriminator_step(config, mesh, model, optims):
  """(state, teachers, samples, visual, pairs, learn) -> (state, scores_BN, metrics).

  One pass gives the scores under the old weights and the update on pairs, which counts if `learn`
  and while it does not tell teacher and student apart too well already (`pause_above`).
  """
  critic = Discriminator(model)

  def discriminator(state, teachers: PromptGroups, samples, visual, pairs: dict, learn):
    match_BN, weight_BN = pairs["match_BN"], pairs["weight_BN"]
    N = match_BN.shape[1]
    students = teachers.with_responses(samples.responses_BRT, samples.length_BR)
    groups = join_responses(students, teachers)
    matched = _matched(teachers, match_BN)
    paired_BN = (match_BN >= 0) & samples.finished_BR
    differs_BN = paired_BN & ~_identical(samples, *matched)

    def loss_fn(own, batch):
      groups, visual, match_BN, weight_BN, differs_BN = batch
      score_BR = critic(named.join(state["frozen"], own), groups, visual)
      student_BN, teacher_BK = score_BR[:, :N], score_BR[:, N:]
      teacher_BN = jnp.take_along_axis(teacher_BK, jnp.maximum(match_BN, 0), 1)
      loss, metrics = losses.pairs(student_BN, teacher_BN, weight_BN, differs_BN)
      return loss, (metrics, (student_BN, teacher_BN))

    batch, old = (groups, visual, match_BN, weight_BN, differs_BN), state["discriminator"]
    grads, metrics, (score_BN, teacher_BN) = optim.gradients(
      loss_fn, old, batch, config.microbatches
    )
    new, opt_state, health = optim.apply(
      optims["discriminator"], grads, state["discriminator_optim"], old
    )
    running = state["running"]
    learn &= running["accuracy"] <= config.discriminator.pause_above
    learned = {"discriminator": new, "discriminator_optim": opt_state}
    state = state | jax.tree.map(
      lambda n, o: jnp.where(learn, n, o), learned, {name: state[name] for name in learned}
    )
    followed = ACCURACY_DECAY * running["accuracy"] + (1 - ACCURACY_DECAY) * metrics["accuracy"]
    accuracy = jnp.where(differs_BN.any(), followed, running["accuracy"])
    state["running"] = running | {"accuracy": accuracy}
    metrics |= health | {
      "learns": learn.astype(jnp.float32),
      "accuracy_running": accuracy,
      "pairs": jnp.mean(paired_BN),
      "identical": masked.mean(~differs_BN, paired_BN),
      "score_student": masked.mean(score_BN, samples.finished_BR),
      "score_teacher": masked.mean(teacher_BN, paired_BN),
    }
    margin_BN = jnp.where(differs_BN, teacher_BN - score_BN, jnp.nan)
    metrics |= {f"margin_q{q}": jnp.nanquantile(margin_BN, q / 100) for q in (10, 50, 90)}
    metrics = {f"discriminator/{k}": v for k, v in metrics.items()}
    metrics |= _pair_probes(samples, matched, margin_BN, differs_BN)
    metrics |= _task_figures(pairs, teacher_BN > score_BN, differs_BN)
    return state_lib.pinned(mesh, state), score_BN, metrics

  return discriminator


def policy_step(config, mesh, model, optims):
  """(state, groups, samples, visual, scores_BN, rule terms, pairs) -> (state, metrics)."""

  def logps(params, groups, visual, **options):
    prompt_BPD, response_BRTD = model(params, groups, visual)
    # Token t of a response is predicted one token earlier; t = 0 by the prompt's last token.
    hidden_BRTD = losses.predictors(prompt_BPD, groups.prompt_length_B, response_BRTD)
    table_VD, temperature = model.unembedding(params), config.rollouts.temperature
    return losses.token_logps(
      hidden_BRTD, table_VD, groups.responses_BRT, temperature, config.logit_chunk, **options
    )

  def policy(state, groups: PromptGroups, samples, visual, score_BN, terms, pairs: dict):
    closed_B, task_B = pairs["closed_B"], pairs["task_B"]
    groups = groups.with_responses(samples.responses_BRT, samples.length_BR)
    counts_BN = samples.finished_BR | (not config.policy.mask_cut_off)
    score_BN = advantages.score_term(score_BN, samples.finished_BR, config.reward.score)
    reward = advantages.composite(
      terms | {"discriminator": score_BN}, dict(config.reward), closed_B, config.reward.gate
    )
    total_BN, running = sum(reward.values()), state["running"]
    alive_B = advantages.alive(total_BN, counts_BN, config.reward.dead_below)
    spread = advantages.follow_spread(
      running["spread"], total_BN, counts_BN, alive_B, task_B, config.policy.scale_decay
    )
    scale_B = advantages.scales(config.policy.scale, total_BN, counts_BN, spread, task_B)
    advantage_BN = advantages.group_advantages(total_BN, counts_BN, alive_B, scale_B)
    keep_kl_BN = jnp.broadcast_to((alive_B | config.policy.kl_of_dead)[:, None], advantage_BN.shape)

    def loss_fn(student, batch):
      groups, visual, counts_BN, advantage_BN, keep_kl_BN, sampled_BNT = batch
      mask_BNT, c = groups.response_mask_BRT & counts_BN[..., None], config.policy
      params = named.join(state["frozen"], student)
      logp_BNT, entropy_BNT = logps(params, groups, visual, entropy=True)
      ref_BNT = logps(state_lib.weights(state, "reference"), groups, visual)
      old_BNT = jax.lax.stop_gradient(logp_BNT)  # one update per rollout batch: the ratio is 1
      loss, metrics = losses.policy_gradient(
        logp_BNT, old_BNT, ref_BNT, advantage_BN, mask_BNT, keep_kl_BN, c.clip, c.kl, c.kl_estimator
      )
      metrics |= {"entropy": masked.total(entropy_BNT, mask_BNT)}
      gap_BNT = jnp.where(mask_BNT, jnp.abs(logp_BNT - sampled_BNT), 0.0)
      return loss, (metrics, gap_BNT.max((1, 2)))

    batch = (groups, visual, counts_BN, advantage_BN, keep_kl_BN, samples.logp_BRT)
    old = state["student"]
    grads, metrics, gap_B = optim.gradients(loss_fn, old, batch, config.microbatches)
    new, opt_state, health = optim.apply(optims["student"], grads, state["student_optim"], old)
    metrics = {f"policy/{k}": v for k, v in (metrics | health).items()}
    metrics |= advantages.reward_metrics(reward, counts_BN)
    tied = advantages.tied_share(advantage_BN, terms["content"], counts_BN, closed_B)
    metrics |= {"reward/dead_groups": 1 - jnp.mean(alive_B), "policy/tied_share": tied}
    metrics["policy/sampler_trainer_gap"] = gap_B.max()  # nats; same weights, so rounding only
    closed_BN = jnp.broadcast_to(closed_B[:, None], counts_BN.shape)
    quality = "quality", grading.quality(terms, config.tasks.valid_from), closed_BN
    metrics |= shortcuts.by_label(*quality, task_B, state_lib.TASK_NAMES)
    learned = {"student": new, "student_optim": opt_state, "running": running | {"spread": spread}}
    return state_lib.pinned(mesh, state | learned), metrics

  return policy


def probe_step(config, model):
  """(state, teachers, samples, match_BN) -> metrics of fixed pairs: what of D has drifted."""
  critic = Discriminator(model)

  def probe(state, teachers: PromptGroups, samples, match_BN):
    students = teachers.with_responses(samples.responses_BRT, samples.length_BR)
    groups = join_responses(students, teachers)
    critic_of = functools.partial(critic, state_lib.weights(state, "discriminator"))
    score_BR = optim.mapped(critic_of, groups, config.microbatches)
    student_BN, teacher_BK = jnp.split(score_BR, [match_BN.shape[1]], 1)
    teacher_BN = jnp.take_along_axis(teacher_BK, jnp.maximum(match_BN, 0), 1)
    differs_BN = (match_BN >= 0) & samples.finished_BR
    differs_BN &= ~_identical(samples, *_matched(teachers, match_BN))
    margin_BN = teacher_BN - student_BN
    found = {"accuracy": margin_BN > 0, "margin": margin_BN}
    found |= {"score_student": student_BN, "score_teacher": teacher_BN}
    return {f"probe/{name}": shortcuts.mean(x_BN, differs_BN) for name, x_BN in found.items()}

  return probe


def _matched(teachers: PromptGroups, match_BN) -> tuple[jax.Array, jax.Array]:
  """Ids [B, N, T] and lengths [B, N] of the teacher response of each pair."""
  slot_BN = jnp.maximum(match_BN, 0)
  length_BN = jnp.take_along_axis(teachers.response_length_BR, slot_BN, 1)
  return jnp.take_along_axis(teachers.responses_BRT, slot_BN[..., None], 1), length_BN


def _identical(samples, ids_BNT, length_BN) -> jax.Array:
  """bool [B, N]: the rollout is, token by token, the teacher response it is paired with."""
  beyond_BNT = jnp.arange(ids_BNT.shape[2]) >= length_BN[..., None]
  same_BN = jnp.all((ids_BNT == samples.responses_BRT) | beyond_BNT, -1)
  return same_BN & (length_BN == samples.length_BR)


def _pair_probes(samples, matched, margin_BN, pair_BN) -> dict:
  """How far length and endings alone would tell the pairs apart, beside D's accuracy."""
  ids_BNT, length_BN = matched
  found = shortcuts.by_length(margin_BN, samples.length_BR, length_BN, pair_BN)
  student_BN = shortcuts.endings(samples.responses_BRT, samples.length_BR)
  found["ending_only"] = shortcuts.by_feature(
    student_BN, shortcuts.endings(ids_BNT, length_BN), pair_BN
  )
  return {f"pairs/{name}": value for name, value in found.items()}


def _task_figures(pairs: dict, right_BN, pair_BN) -> dict:
  """By task: the discriminator's accuracy; per prompt the teacher responses that supervise; the
  share of rollouts in an effective pair, one that differs, and their weight, 0 for the others."""
  mean = functools.partial(shortcuts.by_label, label_B=pairs["task_B"], labels=state_lib.TASK_NAMES)
  weight_BN, everyone_BN = jnp.where(pair_BN, pairs["weight_BN"], 0), jnp.ones_like(pair_BN)
  return {
    **mean("accuracy", right_BN, pair_BN),
    **mean("survivors", pairs["survivors_B"][:, None], everyone_BN[:, :1]),
    **mean("effective_pairs", pair_BN, everyone_BN),
    **mean("effective_weight", weight_BN, everyone_BN),
  }


def match(batch: Batch, step: int, config) -> dict[str, np.ndarray]:
  """The pairs of a step, drawn anew by (seed, step, row), so alike on any number of processes.

  Returns, of this process's prompts:
    match_BN: m(i), int32, the teacher slot each rollout is paired with; -1: none.
    weight_BN: q of that response, fp32.
    survivors_B: teacher responses that may supervise, fp32.
    closed_B: bool; task_B: int32, index into TASK_NAMES.
  """
  s, N = config.supervision, config.rollouts.samples
  quality_BK, graded_B = matching.judged(
    batch.quality_BK, batch.rouge_BK, batch.closed_B, s.closed, s.open_ended
  )
  match_BN, survivors_B = np.full((len(batch.row_B), N), -1, np.int32), np.zeros(len(batch.row_B))
  for b, row in enumerate(batch.row_B):
    quality_K, graded = quality_BK[b], bool(graded_B[b])
    keep_K = matching.survivors(quality_K, batch.valid_BK[b], batch.present_BK[b], graded, s.tau)
    survivors_B[b] = keep_K.sum()
    rng = matching.rng_for(config.seed, step, int(row))
    match_BN[b] = matching.draw(quality_K, keep_K, graded, s.match_by_quality, N, rng)
  quality_BN = np.take_along_axis(quality_BK, np.maximum(match_BN, 0), 1)
  weighted_B1 = graded_B[:, None] & s.loss_by_quality
  return {
    "match_BN": match_BN,
    "weight_BN": np.where(weighted_B1, quality_BN, 1.0).astype(np.float32),
    "survivors_B": survivors_B.astype(np.float32),
    "closed_B": batch.closed_B,
    "task_B": np.array([state_lib.TASK_NAMES.index(row["task"]) for row in batch.info], np.int32),
  }


def init_state(config, mesh, model, optims: dict) -> state_lib.State:
  """The state of step 0: the student of stage 1 in each role, and a new value head."""
  state = state_lib.load_student(mesh, model, config.model.folder, config.init_from, config.trained)
  state["reference"] = state_lib.copy(state["student"])
  state["running"] = sharding.everywhere(mesh, state_lib.new_running())
  if "discriminator" in optims:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    head = Discriminator(model).init_head(key)
    head = jax.device_put(head, sharding.shardings(mesh, head, state_lib.RULES))
    state["discriminator"] = state_lib.copy(state["student"]) | head
  return state | state_lib.init_optims(mesh, optims, state)


def make_optims(config) -> dict:
  """Role -> its optimizer; the discriminator is there only if its reward counts.

  Schedules are over the updates that each makes: the student waits for the discriminator's warm-up.
  One that is frozen after some steps has learned as fast until then as one that is not.
  """
  if not config.reward.discriminator:
    return {"student": optim.make(config.optim, config.steps), "reference": None}
  return {
    "student": optim.make(config.optim, config.steps - config.discriminator.warmup_steps),
    "reference": None,
    "discriminator": optim.make(config.discriminator.optim, config.steps),
  }


def train_step(config, mesh, steps, tokenizer, grade, state, step: int, batch: Batch):
  """One step of stage 2 from a host batch: (state, metrics). `grade` as `scoring.rule_terms`."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), step)
  teachers = sharding.put_batch(mesh, batch.groups)
  samples, visual = steps["rollout"](state, teachers, key)
  pairs = sharding.put_batch(mesh, match(batch, step, config))
  texts = grading.texts_of(samples, tokenizer)
  finished_BN = sharding.local_rows(samples.finished_BR)
  terms = sharding.put_batch(mesh, grade(texts, batch.info, finished_BN))
  metrics = {"rollout/length": samples.length_BR.mean()}
  metrics["rollout/finished"] = samples.finished_BR.mean()
  metrics |= {f"rollout/{name}": term_BN.mean() for name, term_BN in terms.items()}
  quality_BN = grading.quality(terms, config.tasks.valid_from)
  metrics["rollout/quality"] = shortcuts.mean(quality_BN, pairs["closed_B"][:, None])
  score_BN = jnp.zeros(samples.length_BR.shape)
  if config.reward.discriminator:
    learn = not config.discriminator.frozen_after or step < config.discriminator.frozen_after
    state, score_BN, more = steps["discriminator"](state, teachers, samples, visual, pairs, learn)
    metrics |= more
  if not config.reward.discriminator or step >= config.discriminator.warmup_steps:
    state, more = steps["policy"](state, teachers, samples, visual, score_BN, terms, pairs)
    metrics |= more
  return state, metrics


def fixed_pairs(config, mesh, steps, state, batch: Batch) -> tuple:
  """The first batch, rollouts of the stage 1 student and their pairs: what `probe` looks at.

  They follow from the state of any step, so a resumed run looks at the same ones.
  """
  teachers, key = sharding.put_batch(mesh, batch.groups), jax.random.key(config.seed)
  samples, _ = steps["rollout"](state | {"student": state["reference"]}, teachers, key)
  return teachers, samples, sharding.put_batch(mesh, match(batch, 0, config)["match_BN"])


def check(config) -> None:
  """Raises UserError for values of stage 2 that make no sense, before any work."""
  for name, value, choices in (
    ("reward.score", config.reward.score, advantages.SCORES),
    ("policy.scale", config.policy.scale, advantages.SCALES),
    ("policy.kl_estimator", config.policy.kl_estimator, losses.KL_ESTIMATORS),
  ):
    if value not in choices:
      raise UserError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
  matching.check(**config.supervision)
  if config.reward.discriminator and config.discriminator.warmup_steps >= config.steps:
    raise UserError(
      f"discriminator.warmup_steps={config.discriminator.warmup_steps} of steps={config.steps} "
      "leave the student none; raise steps or lower the warm-up"
    )
  if config.rollouts.top_p < 1 or config.rollouts.top_k:
    raise UserError(
      "rollouts.top_p and top_k must be 1 and 0 in stage 2: the policy gradient is of the whole "
      "distribution that the rollouts are drawn from"
    )
  for name in ("temperature", "samples"):
    if not config.rollouts[name] > 0:
      raise UserError(f"rollouts.{name}={config.rollouts[name]}: it must be above 0")
  if not 0 <= config.policy.scale_decay < 1:
    raise UserError(f"policy.scale_decay={config.policy.scale_decay}: it must be in [0, 1)")
  if not config.policy.clip > 0:
    raise UserError(f"policy.clip={config.policy.clip}: it must be above 0; 0.2 in GAD")
  check_least(config, LEAST)
  if config.reward.discriminator and config.discriminator.probe_every % config.log_every:
    raise UserError(
      f"discriminator.probe_every={config.discriminator.probe_every} is not a multiple of "
      f"log_every={config.log_every}: its figures would not be logged; give a "
      "multiple, or 0 for none"
    )
  grading.audit(dict(config.reward), config.reward.gate)


def main(config, workdir: str, grade=grading.rule_terms) -> None:
  """Runs or resumes stage 2.

  Args:
    grade: as `scoring.rule_terms`, called with the tasks that the config makes.
  """
  check(config)
  grade = functools.partial(grade, tasks=registry.make_tasks(**config.tasks))
  model, optims = hf.load_model(**config.model), make_optims(config)
  loop = Loop(config, workdir, "stage 2")
  tokenizer = ChatTokenizer(config.model.folder)
  grading.check_ends(tokenizer, model.config.stop_ids)
  every, fixed = config.discriminator.probe_every if "discriminator" in optims else 0, ()
  with jax.set_mesh(loop.mesh), loop:
    state = loop.start(model, optims, lambda: init_state(config, loop.mesh, model, optims))
    steps = make_steps(config, loop.mesh)
    for step, batch in loop.batches():
      state, metrics = train_step(config, loop.mesh, steps, tokenizer, grade, state, step, batch)
      if every and (step + 1) % every == 0:
        fixed = fixed or fixed_pairs(config, loop.mesh, steps, state, loop.first_batch())
        metrics |= steps["probe"](state, *fixed)
      loop.after(step, state, metrics, note="rollout/quality")


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main)


if __name__ == "__main__":
  command()

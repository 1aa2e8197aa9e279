"""Stage 2: adversarial distillation by on-policy rollouts (R-MSD, arXiv 2603.11423).

    python -m rmsd_jax.train_rl --config=configs/demo.py:rl --workdir=runs/demo/rl

One step: rollouts -> rule rewards (host) -> discriminator: scores under its old weights, and its
update on pairs (teacher response, rollout), in one pass -> reference log-probs, composite reward,
group advantages, policy update. The order is GAD's (arXiv 2511.10643).

    R(S_i) = alpha * D(S_i) + beta * R_outer + eta * R_task + delta * R_content
    L_RL   = -E[R(S)] + gamma * KL(pi_S || pi_ref)
    L_D    = E[q_m(i) * -log sigmoid(D(T_m(i)) - D(S_i))]

The same command on the same folder resumes at the last checkpoint.
From here to the loss: this file, method/advantages.py, method/losses.py; rollouts/grading.py has
the rule terms. Axes: B prompts, N rollouts, K teacher responses, R responses of a group, P prompt
tokens, T response tokens, D width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from rmsd_jax import cli
from rmsd_jax.core import masked, named, sharding
from rmsd_jax.core.errors import UserError, check_least, check_within
from rmsd_jax.core.groups import PromptGroups, join_responses
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.method import advantages, losses, matching, shortcuts
from rmsd_jax.method.carriers import PairBatch, Pairs, PolicyBatch, RuleTerms
from rmsd_jax.models import hf
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.rollouts import generate, grading
from rmsd_jax.rollouts.generate import Samples
from rmsd_jax.tasks import Rules
from rmsd_jax.training import optim
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.loop import Limit, Loop

LEAST = {
  "log_every": 1,
  "reward.dead_below": 0,
  "rollouts.samples": 2,  # each is compared with the others of its prompt
  "policy.kl": 0,
  "policy.max_kl": 0,
  "discriminator.warmup_steps": 0,
  "discriminator.probe_every": 0,
  "discriminator.frozen_after": 0,
}
WITHIN = {f"reward.{name}": "[0, inf)" for name in advantages.TERMS} | {
  "rollouts.temperature": "(0, inf)",
  "policy.clip": "(0, inf)",
  "policy.scale_decay": "[0, 1)",
  "discriminator.pause_above": "[0, inf)",
}
ACCURACY_DECAY = 0.9  # of the running accuracy, per step: a mean of about 10 steps


class Steps(NamedTuple):
  """The jitted programs of stage 2; each is explained where it is made."""

  rollout: Callable  # (state, groups, key) -> (samples, visual)
  discriminator: Callable  # (state, teachers, samples, visual, pairs, learn) -> (state, scores, ..)
  policy: Callable  # (state, groups, samples, visual, scores, terms, pairs) -> (state, metrics)
  probe: Callable  # (state, teachers, samples, match) -> metrics


def make_steps(config, mesh) -> Steps:
  """Compiled when first called. The updates give the memory of the old state to the new one."""
  model = hf.load_model(**config.model)
  optims = make_optims(config)
  jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
  return Steps(
    # keep_unused: the whole state stays in memory meanwhile, so rmsd_jax.compile must count it.
    rollout=jit(rollout_step(config, model), keep_unused=True),
    discriminator=jit(discriminator_step(config, mesh, model, optims), donate_argnums=0),
    policy=jit(policy_step(config, mesh, model, optims), donate_argnums=0),
    probe=jit(probe_step(config, model)),
  )


def rollout_step(config, model):
  """(state, groups, key) -> (samples, visual): N responses per prompt, and the encoded media.

  A response is finished where it ends as the teacher's do, by the model's first stop id: D would
  recognise a rollout by any other ending. One that ends otherwise counts as cut off.
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
  names = Rules(**config.tasks).names

  def loss_fn(frozen, own, batch: PairBatch):
    N = batch.match_BN.shape[1]
    score_BR = critic(named.join(frozen, own), batch.groups, batch.visual)
    student_BN = score_BR[:, :N]
    teacher_BN = jnp.take_along_axis(score_BR[:, N:], jnp.maximum(batch.match_BN, 0), 1)
    loss, metrics = losses.pairs(student_BN, teacher_BN, batch.weight_BN, batch.pair_BN)
    return loss, (metrics, (student_BN, teacher_BN))

  def discriminator(state, teachers: PromptGroups, samples: Samples, visual, pairs: Pairs, learn):
    # 1. Pairs that count: both responses ended, and they differ.
    students = teachers.with_responses(samples.responses_BRT, samples.length_BR)
    matched = matching.matched(teachers, pairs.match_BN)
    paired_BN = (pairs.match_BN >= 0) & samples.finished_BR
    differs_BN = paired_BN & ~matching.identical(students, *matched)

    # 2. Scores and gradient in one pass, both of the old weights.
    batch = PairBatch(
      groups=join_responses(students, teachers),
      visual=visual,
      match_BN=pairs.match_BN,
      weight_BN=pairs.weight_BN,
      pair_BN=differs_BN,
    )
    old = state["discriminator"]
    grads, metrics, (score_BN, teacher_BN) = optim.gradients(
      functools.partial(loss_fn, state["frozen"]), old, batch, config.microbatches
    )

    # 3. The update, if it counts; its running accuracy is followed all the same.
    new, opt_state, health = optim.apply(
      optims["discriminator"], grads, state["discriminator_optim"], old
    )
    running = state["running"]
    learn &= running["accuracy"] <= config.discriminator.pause_above
    learned = {"discriminator": new, "discriminator_optim": opt_state}
    before = {name: state[name] for name in learned}
    state = state | jax.tree.map(lambda n, o: jnp.where(learn, n, o), learned, before)
    moved = ACCURACY_DECAY * running["accuracy"] + (1 - ACCURACY_DECAY) * metrics["accuracy"]
    accuracy = jnp.where(differs_BN.any(), moved, running["accuracy"])
    state["running"] = running | {"accuracy": accuracy}

    # 4. Figures.
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
    metrics |= shortcuts.of_pairs(
      samples.responses_BRT, samples.length_BR, *matched, margin_BN, differs_BN
    )
    metrics |= shortcuts.by_task(pairs, teacher_BN > score_BN, differs_BN, names)
    return state_lib.pinned(mesh, state), score_BN, metrics

  return discriminator


def policy_step(config, mesh, model, optims):
  """(state, groups, samples, visual, scores_BN, rule terms, pairs) -> (state, metrics)."""
  rules = Rules(**config.tasks)
  c = config.policy
  settings = dict(
    weights={name: config.reward[name] for name in advantages.TERMS},
    score=config.reward.score,
    gate=config.reward.gate,
    dead_below=config.reward.dead_below,
    scale=c.scale,
    scale_decay=c.scale_decay,
    kl_of_dead=c.kl_of_dead,
    mask_cut_off=c.mask_cut_off,
  )

  def logps(params, batch: PolicyBatch, **options):
    prompt_BPD, response_BRTD = model(params, batch.groups, batch.visual)
    # Token t of a response is predicted one token earlier; t = 0 by the prompt's last token.
    hidden_BRTD = losses.predictors(prompt_BPD, batch.groups.prompt_length_B, response_BRTD)
    targets_BRT = batch.groups.responses_BRT
    temperature = config.rollouts.temperature
    return losses.token_logps(
      hidden_BRTD,
      model.unembedding(params),
      targets_BRT,
      temperature,
      config.logit_chunk,
      **options,
    )

  def loss_fn(state, student, batch: PolicyBatch):
    mask_BNT = batch.groups.response_mask_BRT & batch.counts_BN[..., None]
    params = named.join(state["frozen"], student)
    logp_BNT, entropy_BNT = logps(params, batch, entropy=True)
    ref_BNT = logps(state_lib.weights(state, "reference"), batch)
    old_BNT = jax.lax.stop_gradient(logp_BNT)  # one update per rollout batch: the ratio is 1
    loss, metrics = losses.policy_gradient(
      logp_BNT,
      old_BNT,
      ref_BNT,
      batch.advantage_BN,
      mask_BNT,
      batch.keep_kl_BN,
      c.clip,
      c.kl,
      c.kl_estimator,
    )
    metrics |= {"entropy": masked.total(entropy_BNT, mask_BNT)}
    gap_BNT = jnp.where(mask_BNT, jnp.abs(logp_BNT - batch.sampled_BNT), 0.0)
    return loss, (metrics, gap_BNT.max((1, 2)))

  def policy(state, groups, samples: Samples, visual, score_BN, terms: RuleTerms, pairs: Pairs):
    # 1. Reward to advantage.
    running = state["running"]
    gained, spread, rewards = advantages.from_rewards(
      score_BN, samples.finished_BR, terms, pairs, running["spread"], **settings
    )

    # 2. Gradient and update.
    batch = PolicyBatch(
      groups=groups.with_responses(samples.responses_BRT, samples.length_BR),
      visual=visual,
      advantage_BN=gained.advantage_BN,
      counts_BN=gained.counts_BN,
      keep_kl_BN=gained.keep_kl_BN,
      sampled_BNT=samples.logp_BRT,
    )
    old = state["student"]
    grads, metrics, gap_B = optim.gradients(
      functools.partial(loss_fn, state), old, batch, config.microbatches
    )
    new, opt_state, health = optim.apply(optims["student"], grads, state["student_optim"], old)

    # 3. Figures.
    metrics = {f"policy/{k}": v for k, v in (metrics | health).items()} | rewards
    metrics["policy/sampler_trainer_gap"] = gap_B.max()  # nats; same weights, so rounding only
    quality_BN = rules.quality(terms.outer_BN, terms.inner_BN, terms.content_BN)
    closed_BN = jnp.broadcast_to(pairs.closed_B[:, None], quality_BN.shape)
    metrics |= shortcuts.by_label(
      "rollout/quality", quality_BN, closed_BN, pairs.task_B, rules.names
    )
    learned = {"student": new, "student_optim": opt_state, "running": running | {"spread": spread}}
    return state_lib.pinned(mesh, state | learned), metrics

  return policy


def probe_step(config, model):
  """(state, teachers, samples, match_BN) -> metrics of fixed pairs: how far D has drifted."""
  critic = Discriminator(model)

  def probe(state, teachers: PromptGroups, samples: Samples, match_BN):
    students = teachers.with_responses(samples.responses_BRT, samples.length_BR)
    groups = join_responses(students, teachers)
    critic_of = functools.partial(critic, state_lib.weights(state, "discriminator"))
    score_BR = optim.mapped(critic_of, groups, config.microbatches)
    student_BN, teacher_BK = jnp.split(score_BR, [match_BN.shape[1]], 1)
    teacher_BN = jnp.take_along_axis(teacher_BK, jnp.maximum(match_BN, 0), 1)
    differs_BN = (match_BN >= 0) & samples.finished_BR
    differs_BN &= ~matching.identical(students, *matching.matched(teachers, match_BN))
    margin_BN = teacher_BN - student_BN
    figures = {
      "accuracy": margin_BN > 0,
      "margin": margin_BN,
      "score_student": student_BN,
      "score_teacher": teacher_BN,
    }
    return {f"probe/{name}": shortcuts.mean(x_BN, differs_BN) for name, x_BN in figures.items()}

  return probe


def pairs_of(batch: Batch, step: int, config) -> Pairs:
  """The pairs of a step, by the settings of the config."""
  return matching.draw_pairs(
    batch,
    seed=config.seed,
    step=step,
    samples=config.rollouts.samples,
    names=Rules(**config.tasks).names,
    **config.supervision,
  )


def init_state(config, mesh, model, optims: dict) -> state_lib.State:
  """The state of step 0: the student of stage 1 in each role, and a new value head."""
  state = state_lib.load_student(mesh, model, config.model.folder, config.init_from, config.trained)
  state["reference"] = state_lib.copy(state["student"])
  state["running"] = sharding.everywhere(mesh, state_lib.new_running(Rules(**config.tasks).names))
  if "discriminator" in optims:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    head = Discriminator(model).init_head(key)
    head = jax.device_put(head, sharding.shardings(mesh, head, state_lib.RULES))
    state["discriminator"] = state_lib.copy(state["student"]) | head
  return state | state_lib.init_optims(mesh, optims, state)


def make_optims(config) -> dict:
  """Role -> its optimizer; the discriminator is there only if its reward counts.

  Schedules are over the updates that each makes: the student waits for the discriminator's warm-up.
  A discriminator that is frozen later has the same schedule until then.
  """
  if not config.reward.discriminator:
    return {"student": optim.make(config.optim, config.steps), "reference": None}
  return {
    "student": optim.make(config.optim, config.steps - config.discriminator.warmup_steps),
    "reference": None,
    "discriminator": optim.make(config.discriminator.optim, config.steps),
  }


def train_step(config, mesh, steps: Steps, tokenizer, grade, state, step: int, batch: Batch):
  """One step of stage 2 from a host batch: (state, metrics). `grade` as `grading.rule_terms`."""
  # 1. Rollouts.
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), step)
  teachers = sharding.put_batch(mesh, batch.groups)
  samples, visual = steps.rollout(state, teachers, key)

  # 2. On the host: a teacher response for each, and the rules' terms.
  pairs = sharding.put_batch(mesh, pairs_of(batch, step, config))
  replies = grading.replies_of(samples, tokenizer)
  finished_BN = sharding.local_rows(samples.finished_BR)
  terms = sharding.put_batch(mesh, grade(replies, batch.info, finished_BN))
  metrics = grading.figures(samples, terms, pairs, Rules(**config.tasks))

  # 3. The discriminator: scores of its old weights, and its update.
  score_BN = jnp.zeros(samples.length_BR.shape)
  if config.reward.discriminator:
    learn = not config.discriminator.frozen_after or step < config.discriminator.frozen_after
    state, score_BN, more = steps.discriminator(state, teachers, samples, visual, pairs, learn)
    metrics |= more

  # 4. The policy, once the discriminator has had its warm-up.
  if not config.reward.discriminator or step >= config.discriminator.warmup_steps:
    state, more = steps.policy(state, teachers, samples, visual, score_BN, terms, pairs)
    metrics |= more
  return state, metrics


def fixed_pairs(config, mesh, steps: Steps, state, batch: Batch) -> tuple:
  """The first batch, rollouts of the stage 1 student and their pairs: what `probe` looks at.

  They follow from the state of any step, so a resumed run looks at the same ones.
  """
  teachers = sharding.put_batch(mesh, batch.groups)
  key = jax.random.key(config.seed)
  samples, _ = steps.rollout(state | {"student": state["reference"]}, teachers, key)
  return teachers, samples, sharding.put_batch(mesh, pairs_of(batch, 0, config).match_BN)


def check_config(config) -> None:
  """Raises UserError for values of stage 2 that make no sense, before any work."""
  for name, value, choices in (
    ("reward.score", config.reward.score, advantages.SCORES),
    ("policy.scale", config.policy.scale, advantages.SCALES),
    ("policy.kl_estimator", config.policy.kl_estimator, losses.KL_ESTIMATORS),
  ):
    if value not in choices:
      raise UserError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
  matching.check_supervision(**config.supervision)
  if config.reward.discriminator and config.discriminator.warmup_steps >= config.steps:
    raise UserError(
      f"discriminator.warmup_steps={config.discriminator.warmup_steps} of steps={config.steps} "
      "leave the student none; raise steps or lower the warm-up"
    )
  if config.rollouts.top_p != 1 or config.rollouts.top_k != 0:
    raise UserError(
      "rollouts.top_p and top_k must be 1 and 0 in stage 2: the policy gradient is of the whole "
      "distribution that the rollouts are drawn from"
    )
  check_within(config, WITHIN)
  check_least(config, LEAST)
  if config.reward.discriminator and config.discriminator.probe_every % config.log_every:
    raise UserError(
      f"discriminator.probe_every={config.discriminator.probe_every} is not a multiple of "
      f"log_every={config.log_every}: its figures would not be logged; give one, or 0 for none"
    )
  grading.audit(dict(config.reward), config.reward.gate, Rules(**config.tasks))


def main(config, workdir: str, grade=grading.rule_terms) -> None:
  """Runs or resumes stage 2.

  Args:
    grade: as `grading.rule_terms`, called with the rules that the config makes.
  """
  check_config(config)
  grade = functools.partial(grade, rules=Rules(**config.tasks))
  model = hf.load_model(**config.model)
  optims = make_optims(config)
  limit = Limit(
    "policy/kl",
    "nats per token",
    config.policy.max_kl,
    "policy.max_kl",
    "the student is too far from the reference; take an earlier checkpoint, or begin again with a "
    "lower optim.learning_rate or a higher policy.kl",
  )
  loop = Loop(
    config,
    workdir,
    stage=2,
    limits=[limit] if config.policy.max_kl else [],
    needs_teacher=config.reward.discriminator > 0,
  )
  tokenizer = ChatTokenizer(config.model.folder)
  grading.check_ends(tokenizer, model.config.stop_ids)
  every = config.discriminator.probe_every if "discriminator" in optims else 0
  fixed = ()  # made when the first probe is due: it takes a rollout
  with jax.set_mesh(loop.mesh), loop:
    state = loop.start(model, optims, lambda: init_state(config, loop.mesh, model, optims))
    steps = make_steps(config, loop.mesh)
    for step, batch in loop.batches():
      state, metrics = train_step(config, loop.mesh, steps, tokenizer, grade, state, step, batch)
      if every and (step + 1) % every == 0:
        fixed = fixed or fixed_pairs(config, loop.mesh, steps, state, loop.first_batch())
        metrics |= steps.probe(state, *fixed)
      loop.after(step, state, metrics, note="rollout/quality")


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main)


if __name__ == "__main__":
  command()

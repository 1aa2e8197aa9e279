"""Stage 2: adversarial distillation by on-policy rollouts (R-MSD, arXiv 2603.11423).

    python -m rmsd_jax.train_rl --config=configs/demo.py:rl --workdir=runs/demo/rl

One step: rollouts -> rule rewards (host) -> discriminator: scores under its old weights, and its
update on pairs (teacher response, rollout), in one pass -> reference log-probs, composite reward,
group advantages, policy update. The order is GAD's (arXiv 2511.10643).

    R(S_i) = alpha * D(S_i) + beta * R_outer + eta * R_task + delta * R_content
    L_RL   = -E[R(S)] + gamma * KL(pi_S || pi_ref)
    L_D    = E[q_m(i) * -log sigmoid(D(T_m(i)) - D(S_i))]

The same command on the same folder resumes at the last checkpoint. To the loss: this file,
method/advantages.py, method/losses.py; rollouts/grading.py has the rule terms. Axes: B prompts,
N rollouts, K teacher responses, R responses of a group, P prompt and T response tokens, D width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from rmsd_jax import cli
from rmsd_jax.core import masked, named, sharding
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.method import advantages, custom_rewards, losses, matching, settings, shortcuts
from rmsd_jax.method.carriers import Pairs, PolicyBatch, RuleTerms
from rmsd_jax.models import hf
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts import generate, grading, looks
from rmsd_jax.rollouts.generate import Samples
from rmsd_jax.tasks import Rules
from rmsd_jax.training import imitation, optim, pieces, probe
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.loop import Limit, Loop

ACCURACY_DECAY = 0.9  # of the running accuracy, per step: a mean of about 10 steps


class Steps(NamedTuple):
  """The jitted programs of stage 2; each is explained where it is made.

  The two updates go over their batch piece by piece, each piece one shape of packed rows: a program
  adds a piece's gradient, the next one makes the update.
  """

  rollout: Callable  # (state, groups, key) -> (samples, visual)
  nothing: Callable  # (weights) -> gradients to add to
  judge: Callable  # (state, grads, rows, groups, visual, pairs) -> (grads, figures)
  discriminator: Callable  # (state, grads, figures, teachers, samples, pairs, learn) -> (state, ..)
  reward: Callable  # (state, scores, samples, terms, pairs) -> (batch, spread, metrics)
  improve: Callable  # (state, grads, rows, groups, visual, batch) -> (grads, figures)
  policy: Callable  # (state, grads, figures, spread) -> (state, metrics)
  imitate: Callable  # (state, grads, rows, groups, visual) -> (grads, figures), in a joint warm-up
  probe: Callable  # (state, pieces, groups, pairs) -> metrics
  model: Qwen3VL  # that they compute


def make_steps(config, mesh) -> Steps:
  """Compiled when first called. The updates give the memory of the old state to the new one."""
  model = hf.load_model(**config.model)
  optims = make_optims(config)
  jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
  return Steps(
    # keep_unused: the whole state stays in memory meanwhile, so rmsd_jax.compile must count it.
    rollout=jit(rollout_step(config, model), keep_unused=True),
    nothing=jit(lambda weights: state_lib.pinned(mesh, optim.nothing(weights))),
    judge=jit(judge_step(config, model), donate_argnums=1, keep_unused=True),
    discriminator=jit(discriminator_step(config, mesh, optims), donate_argnums=0),
    reward=jit(reward_step(config)),
    improve=jit(improve_step(config, model), donate_argnums=1, keep_unused=True),
    policy=jit(policy_step(mesh, optims), donate_argnums=0),
    imitate=jit(imitation.imitate_step(config, model), donate_argnums=1, keep_unused=True),
    probe=jit(probe.probe_step(config, model)),
    model=model,
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
    return samples, visual if "vision" not in state["student"] else None

  return rollout


def judge_step(config, model):
  """(state, grads, rows, groups, visual, pairs) -> (grads, figures): the scores of a piece under
  the old weights, and the gradient of its pairs, in one pass."""
  critic = Discriminator(model)

  def loss_fn(own, frozen, rows: Rows, groups: PromptGroups, visual, pairs: Pairs):
    params = named.join(frozen, own)
    score_XW = critic.scores(params, rows, model.encoded(params, groups, visual))
    # Of each response at its last token; 0 for those of other pieces.
    B, N = pairs.match_BN.shape
    score_BR = rows.to_responses(score_XW, B, N + config.data.responses)
    here_BR = rows.to_responses(jnp.ones_like(score_XW), B, N + config.data.responses) > 0
    teacher_BN = jnp.take_along_axis(score_BR[:, N:], jnp.maximum(pairs.match_BN, 0), 1)
    counts_BN = pairs.differs_BN & here_BR[:, :N]
    (loss, count), sums = losses.pairs(
      score_BR[:, :N], teacher_BN, pairs.weight_BN, counts_BN, config.discriminator.score_l2
    )
    return loss, optim.Figures(count, {"loss": loss, **sums}, parts=score_BR)

  def judge(state, grads, rows: Rows, groups: PromptGroups, visual, pairs: Pairs):
    own = state["discriminator"]
    return optim.add(loss_fn, own, grads, state["frozen"], rows, groups, visual, pairs)

  return judge


def discriminator_step(config, mesh, optims):
  """(state, grads, figures, teachers, samples, pairs, learn) -> (state, scores_BN, metrics).

  The update counts if `learn` and while teacher and student are not told apart too well already
  (`pause_above`).
  """
  names = Rules(**config.tasks).names

  def discriminator(state, grads, figures, teachers, samples: Samples, pairs: Pairs, learn):
    # 1. The update, if it counts; its running accuracy is followed all the same.
    score_BR = figures.parts
    N = pairs.match_BN.shape[1]
    score_BN = score_BR[:, :N]
    teacher_BN = jnp.take_along_axis(score_BR[:, N:], jnp.maximum(pairs.match_BN, 0), 1)
    grads, metrics = optim.averaged(grads, figures)
    old = state["discriminator"]
    new, opt_state, health = optim.apply(
      optims["discriminator"], grads, state["discriminator_optim"], old
    )
    running = state["running"]
    learn &= running["accuracy"] <= config.discriminator.pause_above
    learned = {"discriminator": new, "discriminator_optim": opt_state}
    before = {name: state[name] for name in learned}
    state = state | jax.tree.map(lambda n, o: jnp.where(learn, n, o), learned, before)
    moved = ACCURACY_DECAY * running["accuracy"] + (1 - ACCURACY_DECAY) * metrics["accuracy"]
    accuracy = jnp.where(pairs.differs_BN.any(), moved, running["accuracy"])
    state["running"] = running | {"accuracy": accuracy}

    # 2. Figures.
    metrics |= health | {"learns": learn.astype(jnp.float32), "accuracy_running": accuracy}
    metrics = {f"discriminator/{k}": v for k, v in metrics.items()}
    metrics |= shortcuts.of_scored_pairs(score_BN, teacher_BN, samples.finished_BR, pairs, names)
    metrics |= shortcuts.of_pairs(
      samples.responses_BRT,
      samples.length_BR,
      *matching.matched(teachers, pairs.match_BN),
      teacher_BN - score_BN,
      pairs.differs_BN,
    )
    return state_lib.pinned(mesh, state), score_BN, metrics

  return discriminator


def reward_step(config):
  """(state, scores_BN, samples, rule terms, pairs) -> (batch, spread, metrics): what the policy's
  loss reads, and the tasks' running spread of rewards."""
  rules = Rules(**config.tasks)
  c = config.reward
  settings = {name: c[name] for name in ("score", "gate", "dead_below", "right_from")}
  settings |= {"weights": advantages.weights_of(c)}
  of_policy = ("format_penalty", "scale", "scale_decay", "kl_of_dead", "mask_cut_off")
  settings |= {name: config.policy[name] for name in of_policy}
  settings |= {"form": config.policy.advantage, "kl_teaches": bool(config.policy.reference)}

  def reward(running, score_BN, samples: Samples, terms: RuleTerms, pairs: Pairs):
    bounded_BN = advantages.bounded(score_BN, samples.length_BR, c.clip, c.per_log_length)
    gained, spread, metrics = advantages.from_rewards(
      bounded_BN, samples.finished_BR, terms, pairs, running["spread"], **settings
    )
    batch = PolicyBatch(
      advantage_BN=gained.advantage_BN,
      counts_BN=gained.counts_BN,
      keep_kl_BN=gained.keep_kl_BN,
      sampled_BNT=samples.logp_BRT,
    )
    quality_BN = rules.quality(terms.outer_BN, terms.inner_BN, terms.content_BN)
    closed_BN = jnp.broadcast_to(pairs.closed_B[:, None], quality_BN.shape)
    metrics |= shortcuts.by_label(
      "rollout/quality", quality_BN, closed_BN, pairs.task_B, rules.names
    )
    return batch, spread, metrics

  return reward


def improve_step(config, model):
  """(state, grads, rows, groups, visual, batch) -> (grads, figures): the gradient of a piece."""
  c = config.policy
  teacher = imitation.teacher_of(config, model)
  chunks = (config.rollouts.temperature, config.logit_chunk)

  def loss_fn(student, state, rows: Rows, groups: PromptGroups, visual, batch: PolicyBatch):
    mask_XW = rows.mask_XW & rows.of_responses(batch.counts_BN)
    params = named.join(state["frozen"], student)
    own = losses.predicting_of(model, params, rows, groups, visual)
    if teacher:  # which encodes the media by a tower of its own
      ref = losses.predicting_of(teacher, state["reference"], rows, groups, None)
    else:
      ref = losses.predicting_of(model, state_lib.weights(state, "reference"), rows, groups, visual)
    logp_XW, entropy_XW = losses.token_logps(*own, rows.targets_XW, *chunks, entropy=True)
    ref_XW = losses.token_logps(*ref, rows.targets_XW, *chunks)
    exact = c.kl_estimator == losses.JSD
    old_XW = jax.lax.stop_gradient(logp_XW)  # one update per rollout batch: the ratio is 1
    (loss, count), sums = losses.policy_gradient(
      logp_XW,
      old_XW,
      ref_XW,
      rows.of_responses(batch.advantage_BN),
      mask_XW,
      rows.of_responses(batch.keep_kl_BN),
      c.clip,
      c.kl,
      c.kl_estimator,
      losses.jsd(*own, *ref, *chunks, c.jsd_beta) if exact else None,
    )
    sums |= {"loss": loss, "entropy": masked.total(entropy_XW, mask_XW)}
    # Nats; of the same weights, so it is rounding only.
    gap_XW = jnp.where(mask_XW, jnp.abs(logp_XW - rows.of_tokens(batch.sampled_BNT)), 0.0)
    return loss, optim.Figures(count, sums, {"sampler_trainer_gap": gap_XW.max()})

  def improve(state, grads, rows: Rows, groups: PromptGroups, visual, batch: PolicyBatch):
    return optim.add(loss_fn, state["student"], grads, state, rows, groups, visual, batch)

  return improve


def policy_step(mesh, optims):
  """(state, grads, figures, spread) -> (state, metrics): the policy's update."""

  def policy(state, grads, figures, spread):
    grads, metrics = optim.averaged(grads, figures)
    new, opt_state, health = optim.apply(
      optims["student"], grads, state["student_optim"], state["student"]
    )
    running = state["running"] | {"spread": spread}
    learned = {"student": new, "student_optim": opt_state, "running": running}
    metrics = {f"policy/{k}": v for k, v in (metrics | health).items()}
    return state_lib.pinned(mesh, state | learned), metrics

  return policy


def pairs_of(batch: Batch, mine: Samples, step: int, config) -> Pairs:
  """The pairs of a step, by the settings of the config. `mine`: this process's rollouts, numpy."""
  return matching.draw_pairs(
    batch,
    mine.responses_BRT,
    mine.length_BR,
    mine.finished_BR,
    seed=config.seed,
    step=step,
    names=Rules(**config.tasks).names,
    **config.supervision,
  )


def init_state(config, mesh, model, optims: dict) -> state_lib.State:
  """The state of step 0: the student of stage 1, a teacher as its reference, a new value head."""
  state = state_lib.load_student(mesh, model, config.model.folder, config.init_from, config.trained)
  if teacher := imitation.teacher_of(config, model):
    weights = hf.load_params(config.policy.reference, mesh)
    state["reference"] = state_lib.reference_of(teacher, weights)
  else:
    state["reference"] = state_lib.reference_of(model, state["student"])
  state["running"] = sharding.everywhere(mesh, state_lib.new_running(Rules(**config.tasks).names))
  if "discriminator" in optims:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    head = Discriminator(model).init_head(key, config.discriminator.zero_head)
    head = jax.device_put(head, sharding.shardings(mesh, head, state_lib.RULES))
    state["discriminator"] = state_lib.copy(state["student"]) | head
  return state | state_lib.init_optims(mesh, optims, state)


def make_optims(config) -> dict:
  """Role -> its optimizer; the discriminator is there only if its reward counts.

  Schedules are over the updates that each makes: the student waits for the discriminator's warm-up,
  unless that is joint. A discriminator that is frozen later has the same schedule until then.
  """
  if not config.reward.discriminator:
    return {"student": optim.make(config.optim, config.steps), "reference": None}
  waits = 0 if config.discriminator.joint_warmup else config.discriminator.warmup_steps
  return {
    "student": optim.make(config.optim, config.steps - waits),
    "reference": None,
    "discriminator": optim.make(config.discriminator.optim, config.steps),
  }


def train_step(config, mesh, steps: Steps, grader, state, step: int, batch: Batch):
  """One step of stage 2 from a host batch: (state, metrics). `grader` is a
  `grading.Grader`."""
  # 1. Rollouts, and which teacher response each is paired with.
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), step)
  groups = sharding.put_batch(mesh, batch.groups)
  key_B = generate.keys_of_rows(mesh, key, batch.row_B)
  samples, visual = steps.rollout(state, groups, key_B)
  mine = jax.tree.map(sharding.local_rows, samples)  # of this process, on the host
  rollouts = batch.groups.with_responses(mine.responses_BRT, mine.length_BR)
  my_pairs = pairs_of(batch, mine, step, config)
  pairs = sharding.put_batch(mesh, my_pairs)

  # 2. The discriminator: scores of its old weights, and its update. It is under way on the devices
  # while texts are graded on the host.
  score_BN = jnp.zeros(samples.length_BR.shape)
  metrics = {}
  if config.reward.discriminator:
    learn = not config.discriminator.frozen_after or step < config.discriminator.frozen_after
    rows = pieces.of_pairs(
      mesh, steps.model, batch.groups, rollouts, mine.finished_BR, my_pairs, config.row_tokens
    )
    state, score_BN, metrics = update_discriminator(
      steps, state, rows, groups, samples, visual, pairs, learn
    )

  # 3. The rules' terms.
  terms = sharding.put_batch(mesh, grader(mine, batch.info))
  rules = Rules(**config.tasks)
  metrics |= grading.figures(samples, terms, pairs, rules)
  if config.reward.discriminator:
    counts_BN = samples.finished_BR & rules.is_valid(terms.outer_BN, terms.inner_BN)
    known = (counts_BN, terms.content_BN, pairs.closed_B, pairs.task_B)
    metrics |= shortcuts.of_scores(score_BN, *known, config.reward.right_from, rules.names)

  # 4. The policy, once the discriminator has had its warm-up; in a joint one, stage 1 goes on.
  if not config.reward.discriminator or step >= config.discriminator.warmup_steps:
    rows = pieces.rows_of(mesh, steps.model, rollouts, config.row_tokens)
    state, more = update_policy(steps, state, rows, groups, samples, visual, score_BN, terms, pairs)
    metrics |= more
  elif config.discriminator.joint_warmup:
    targets = matching.targets(batch, seed=config.seed, step=step, **config.supervision)
    rows = pieces.rows_of(mesh, steps.model, targets, config.row_tokens)
    state, more = imitation.imitate_teacher(steps, state, rows, groups, visual)
    metrics |= more
  return state, metrics


def update_discriminator(
  steps: Steps, state, rows: list[Rows], groups, samples: Samples, visual, pairs: Pairs, learn
):
  """(state, scores_BN, metrics) from the pieces of the batch."""
  grads, figures = optim.over(
    rows,
    steps.nothing(state["discriminator"]),
    lambda grads, piece: steps.judge(state, grads, piece, groups, visual, pairs),
  )
  return steps.discriminator(state, grads, figures, groups, samples, pairs, learn)


def update_policy(
  steps: Steps, state, rows: list[Rows], groups, samples: Samples, visual, score_BN, terms, pairs
):
  """(state, metrics) from the pieces of the batch."""
  batch, spread, rewards = steps.reward(state["running"], score_BN, samples, terms, pairs)
  grads, figures = optim.over(
    rows,
    steps.nothing(state["student"]),
    lambda grads, piece: steps.improve(state, grads, piece, groups, visual, batch),
  )
  state, metrics = steps.policy(state, grads, figures, spread)
  return state, metrics | rewards


def check_config(config) -> None:
  """Raises UserError for values of stage 2 that make no sense, before any work."""
  settings.check_settings(config)
  grading.audit(config.reward, Rules(**config.tasks))


def main(config, workdir: str, grade=grading.rule_terms) -> None:
  """Runs or resumes stage 2.

  Args:
    grade: as `grading.rule_terms`, called with the rules that the config makes.
  """
  check_config(config)
  model = hf.load_model(**config.model)
  teacher = imitation.teacher_of(config, model)
  optims = make_optims(config)
  custom = custom_rewards.of_config(config.reward)
  limit = Limit(
    "policy/kl", "nats per token", config.policy.max_kl, "policy.max_kl",
    "the student is too far from the reference; take an earlier checkpoint, or begin again with a "
    "lower optim.learning_rate or a higher policy.kl",
  )  # fmt: skip
  loop = Loop(
    config,
    workdir,
    stage=2,
    limits=[limit] if config.policy.max_kl else [],
    needs_teacher=config.reward.discriminator > 0,
  )
  model.check_decoding(loop.mesh, config.rollouts.tensor)
  tokenizer = ChatTokenizer(config.model.folder)
  grading.check_ends(tokenizer, model.config.stop_ids)
  if teacher:
    tokenizer.check_alike(config.policy.reference)
  grader = grading.Grader(tokenizer, Rules(**config.tasks), grade, loop.clock.part, custom)
  every = config.discriminator.probe_every if "discriminator" in optims else 0
  fixed = ()  # made when the first probe is due: it takes a rollout
  with jax.set_mesh(loop.mesh), loop:
    make = lambda: init_state(config, loop.mesh, model, optims)
    state = loop.start(model, optims, make, looks.Look, teacher)
    steps = loop.around(make_steps(config, loop.mesh))
    for step, batch in loop.batches():
      state, metrics = train_step(config, loop.mesh, steps, grader, state, step, batch)
      if every and (step + 1) % every == 0:
        fixed = fixed or probe.fixed_pairs(
          config, loop.mesh, steps, state, loop.first_batch(), generate.keys_of_rows, pairs_of
        )
        metrics |= steps.probe(state, *fixed)
      loop.after(step, state, metrics, note="rollout/quality", replies=grader.replies)


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.config_app(main)


if __name__ == "__main__":
  command()

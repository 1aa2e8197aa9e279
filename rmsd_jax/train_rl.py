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

import time

import jax
import jax.numpy as jnp
import numpy as np

from rmsd_jax import advantages, cli, generate, losses, masked, named, optim, scoring, sharding
from rmsd_jax import state as state_lib
from rmsd_jax.checkpoint import Checkpoints, guard_config
from rmsd_jax.data import loader
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.pool import open_pool
from rmsd_jax.groups import PromptGroups, join_responses
from rmsd_jax.metrics import Progress, Writer
from rmsd_jax.models import hf
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.tasks import matching


def make_steps(config, mesh):
  """The jitted programs of stage 2: {"rollout", "discriminator", "policy"}."""
  tokenizer = ChatTokenizer(config.model.folder)
  model = hf.load_model(**config.model)
  critic = Discriminator(model)
  optims = make_optims(config)
  weights = {name: config.reward[name] for name in advantages.TERMS}

  def rollout(state, groups: PromptGroups, key):
    """(samples, visual): N responses per prompt, and the media as every frozen tower sees them."""
    params = state_lib.weights(state)
    visual = model.encode(params, groups)
    samples = generate.generate(
      model,
      params,
      groups,
      key,
      tokens=groups.responses_BRT.shape[2],
      end_id=tokenizer.im_end,
      pad_id=tokenizer.pad,
      visual=visual,
      **config.rollouts,
    )
    return samples, visual if "vision" not in state["student"] else None

  def discriminator(state, teachers: PromptGroups, samples, visual, match_BN, weight_BN, learn):
    """(state, scores_BN, metrics). Scores are those before the update."""
    N = match_BN.shape[1]
    groups = join_responses(
      teachers.with_responses(samples.responses_BRT, samples.length_BR), teachers
    )
    paired_BN = (match_BN >= 0) & samples.finished_BR
    differs_BN = paired_BN & ~_identical(samples, teachers, match_BN)

    def loss_fn(critic_params, batch):
      groups, visual, match_BN, weight_BN, differs_BN = batch
      score_BR = critic(named.join(state["frozen"], critic_params), groups, visual)
      student_BN, teacher_BK = score_BR[:, :N], score_BR[:, N:]
      teacher_BN = jnp.take_along_axis(teacher_BK, jnp.maximum(match_BN, 0), 1)
      loss, metrics = losses.pairs(student_BN, teacher_BN, weight_BN, differs_BN)
      return loss, (metrics, (student_BN, teacher_BN))

    batch = (groups, visual, match_BN, weight_BN, differs_BN)
    grads, metrics, (score_BN, teacher_BN) = optim.gradients(
      loss_fn, state["discriminator"], batch, config.microbatches
    )
    params, opt_state, health = optim.apply(
      optims["discriminator"], grads, state["discriminator_optim"], state["discriminator"]
    )
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(learn, n, o), new, old)
    new = {
      "discriminator": keep(params, state["discriminator"]),
      "discriminator_optim": keep(opt_state, state["discriminator_optim"]),
    }
    margin_BN = jnp.where(differs_BN, teacher_BN - score_BN, jnp.nan)
    metrics |= health | {
      "pairs": jnp.mean(paired_BN),
      "identical": masked.mean(~differs_BN, paired_BN),
      "score_student": masked.mean(score_BN, samples.finished_BR),
      "score_teacher": masked.mean(teacher_BN, paired_BN),
      **{f"margin_q{q}": jnp.nanquantile(margin_BN, q / 100) for q in (10, 50, 90)},
    }
    return state | new, score_BN, {f"discriminator/{k}": v for k, v in metrics.items()}

  def policy(state, groups: PromptGroups, samples, visual, score_BN, terms, closed_B):
    """(state, metrics)."""
    groups = groups.with_responses(samples.responses_BRT, samples.length_BR)
    everyone_BN = samples.length_BR > 0
    score_BN = advantages.score_term(score_BN, samples.finished_BR, config.reward.score)
    reward = advantages.composite(
      terms | {"discriminator": score_BN}, weights, closed_B, config.reward.gate
    )
    advantage_BN, alive_B = advantages.group_advantages(
      sum(reward.values()), everyone_BN, config.policy.divide_by_std, config.reward.dead_below
    )
    keep_kl_BN = jnp.broadcast_to((alive_B | config.policy.kl_of_dead)[:, None], advantage_BN.shape)

    def logps(params, groups, visual):
      prompt_BPD, response_BRTD = model(params, groups, visual)
      hidden_BRTD = losses.predictors(prompt_BPD, groups.prompt_length_B, response_BRTD)
      return losses.token_logps(
        hidden_BRTD,
        model.unembedding(params),
        groups.responses_BRT,
        config.rollouts.temperature,
        config.logit_chunk,
      )

    def loss_fn(student, batch):
      groups, visual, advantage_BN, keep_kl_BN, sampled_BNT = batch
      logp_BNT = logps(named.join(state["frozen"], student), groups, visual)
      ref_BNT = logps(state_lib.weights(state, "reference"), groups, visual)
      loss, metrics = losses.policy_gradient(
        logp_BNT,
        jax.lax.stop_gradient(logp_BNT),
        ref_BNT,
        advantage_BN,
        groups.response_mask_BRT,
        keep_kl_BN,
        config.policy.clip,
        config.policy.kl,
        config.policy.kl_estimator,
      )
      drift = jnp.where(groups.response_mask_BRT, jnp.abs(logp_BNT - sampled_BNT), 0.0)
      return loss, (metrics, drift.max((1, 2)))

    batch = (groups, visual, advantage_BN, keep_kl_BN, samples.logp_BRT)
    grads, metrics, drift_B = optim.gradients(loss_fn, state["student"], batch, config.microbatches)
    student, opt_state, health = optim.apply(
      optims["student"], grads, state["student_optim"], state["student"]
    )
    metrics = {f"policy/{k}": v for k, v in (metrics | health).items()}
    metrics |= advantages.reward_metrics(reward, everyone_BN) | {
      "reward/dead_groups": 1 - jnp.mean(alive_B),
      "policy/sampler_trainer_gap": drift_B.max(),  # nats; the same weights, so rounding only
    }
    return {**state, "student": student, "student_optim": opt_state}, metrics

  return {
    "rollout": jax.jit(rollout),
    "discriminator": jax.jit(discriminator, donate_argnums=0),
    "policy": jax.jit(policy, donate_argnums=0),
  }


def _identical(samples, teachers: PromptGroups, match_BN) -> jax.Array:
  """bool [B, N]: the rollout is, token by token, the teacher response it is paired with."""
  slot_BN = jnp.maximum(match_BN, 0)
  length_BN = jnp.take_along_axis(teachers.response_length_BR, slot_BN, 1)
  theirs_BNT = jnp.take_along_axis(teachers.responses_BRT, slot_BN[..., None], 1)
  beyond_BNT = jnp.arange(theirs_BNT.shape[2]) >= length_BN[..., None]
  same_BN = jnp.all((theirs_BNT == samples.responses_BRT) | beyond_BNT, -1)
  return same_BN & (length_BN == samples.length_BR)


def match(batch: Batch, step: int, config) -> tuple[np.ndarray, np.ndarray]:
  """m(i) int32 [B, N], the teacher slot each rollout is paired with (-1: none), and its weight q.

  Drawn anew by (seed, step, row), so alike on any number of processes.
  """
  s, N = config.supervision, config.rollouts.samples
  match_BN = np.full((len(batch.row_B), N), -1, np.int32)
  for b, row in enumerate(batch.row_B):
    quality_K, closed = batch.quality_BK[b], bool(batch.closed_B[b])
    keep_K = matching.survivors(quality_K, batch.valid_BK[b], batch.present_BK[b], closed, s.tau)
    rng = matching.rng_for(config.seed, step, int(row))
    match_BN[b] = matching.draw(quality_K, keep_K, closed, s.match_by_quality, N, rng)
  quality_BN = np.take_along_axis(batch.quality_BK, np.maximum(match_BN, 0), 1)
  weighted_B1 = batch.closed_B[:, None] & s.loss_by_quality
  return match_BN, np.where(weighted_B1, quality_BN, 1.0).astype(np.float32)


def init_state(config, mesh, model, optims: dict) -> state_lib.State:
  """The state of step 0: the student of stage 1 in each role, and a new value head."""
  state = state_lib.load_student(mesh, model, config.model.folder, config.init_from, config.trained)
  state["reference"] = state_lib.copy(state["student"])
  if "discriminator" in optims:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    head = Discriminator(model).init_head(key)
    head = jax.device_put(head, sharding.shardings(mesh, head, state_lib.RULES))
    state["discriminator"] = state_lib.copy(state["student"]) | head
  for role, tx in optims.items():
    if tx is not None:
      state[f"{role}_optim"] = state_lib.init_optim(mesh, tx, state[role])
  return state


def make_optims(config) -> dict:
  """Role -> its optimizer; the discriminator is there only if its reward counts."""
  optims = {"student": optim.make(config.optim, config.steps), "reference": None}
  if config.reward.discriminator:
    optims["discriminator"] = optim.make(config.discriminator.optim, config.steps)
  return optims


def train_step(config, mesh, steps, tokenizer, grade, state, step: int, batch: Batch):
  """One step of stage 2 from a host batch: (state, metrics). `grade` as `scoring.rule_terms`."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), step)
  teachers = sharding.put_batch(mesh, batch.groups)
  samples, visual = steps["rollout"](state, teachers, key)
  match_BN, weight_BN = match(batch, step, config)
  texts = scoring.texts_of(samples, tokenizer)
  finished_BN = sharding.local_rows(samples.finished_BR)
  terms = grade(texts, batch.info, finished_BN)
  put = lambda tree: sharding.put_batch(mesh, tree)
  metrics = {"rollout/length": samples.length_BR.mean(), "rollout/finished": finished_BN.mean()}
  metrics |= {f"rollout/{name}": term_BN.mean() for name, term_BN in terms.items()}
  metrics["rollout/quality"] = scoring.quality(terms)[batch.closed_B].mean()
  score_BN = jnp.zeros(samples.length_BR.shape)
  if config.reward.discriminator:
    learn = not config.discriminator.frozen_after or step < config.discriminator.frozen_after
    state, score_BN, more = steps["discriminator"](
      state, teachers, samples, visual, *put((match_BN, weight_BN)), learn
    )
    metrics |= more
  if not config.reward.discriminator or step >= config.discriminator.warmup_steps:
    state, more = steps["policy"](
      state, teachers, samples, visual, score_BN, put(terms), put(batch.closed_B)
    )
    metrics |= more
  return state, metrics


def main(config, workdir: str, grade=scoring.rule_terms) -> None:
  """Runs or resumes stage 2."""
  mesh = sharding.make_mesh(**config.mesh)
  sharding.check_batch(mesh, config.batch, config.microbatches, "config.batch")
  pool = open_pool(config.data.pool, config.data.split)
  first = jax.process_index() == 0
  guard_config(workdir, config, config.operational, write=first)
  model, tokenizer = hf.load_model(**config.model), ChatTokenizer(config.model.folder)
  optims, steps = make_optims(config), make_steps(config, mesh)
  with (
    jax.set_mesh(mesh),
    Checkpoints(workdir, config.keep) as checkpoints,
    Writer(workdir, checkpoints.latest() or 0, first) as writer,
    Progress(config.steps, "stage 2", checkpoints.latest() or 0, first) as progress,
  ):
    done = checkpoints.latest() or 0
    if done:
      state = checkpoints.restore(state_lib.abstract(mesh, model, config.trained, optims))
    else:
      state = init_state(config, mesh, model, optims)
    clock = time.monotonic()
    for step, batch in loader.make(
      pool,
      batch_size=config.batch,
      seed=config.seed,
      k=config.data.responses,
      start_step=done,
      end_step=config.steps,
      tasks=config.data.tasks,
      limit=config.data.limit,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=config.data.workers,
      prefetch=config.data.prefetch,
    ):
      state, metrics = train_step(config, mesh, steps, tokenizer, grade, state, step, batch)
      done = step + 1
      if done % config.log_every == 0 or done == config.steps:
        seconds, clock = (time.monotonic() - clock) / config.log_every, time.monotonic()
        metrics |= {"seconds_per_step": seconds}
        metrics["rollouts_per_second"] = config.batch * config.rollouts.samples / seconds
        writer.write(done, metrics)
      if done % config.save_every == 0 or done == config.steps:
        checkpoints.save(done, state)
      progress.update(note=f"quality {float(metrics['rollout/quality']):.3f}")


if __name__ == "__main__":
  cli.config_app(main)

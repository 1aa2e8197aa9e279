"""Stage 2: what each program of a step computes, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_model import assert_close

from rmsd_jax import train_rl
from rmsd_jax.core import sharding
from rmsd_jax.core.groups import join_responses
from rmsd_jax.method import matching
from rmsd_jax.method.carriers import RuleTerms
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.rollouts import generate, grading
from rmsd_jax.tasks import Rules
from rmsd_jax.training import pieces, probe
from rmsd_jax.training import state as state_lib

RULES = Rules()
NAMES = RULES.names
GRADE = functools.partial(grading.rule_terms, rules=RULES)
CONFIG = functools.partial(tiny_run.config, "rl", discriminator__optim__learning_rate=3e-3)


def programs(devices=1, c=None):
  return tiny_run.steps(train_rl, c or CONFIG(), tiny_run.mesh(devices))


def put(tree, devices=1):
  return sharding.put_batch(tiny_run.mesh(devices), tree)


@functools.cache
def case() -> dict:
  """Everything a step has on the host: the batch, its rollouts, pairs and rule rewards.

  Of 4 rollouts a prompt, the first is made equal to its teacher response; prompt 7 has no pairs.
  """
  c = CONFIG()
  loaded, N = tiny_run.batch(c), c.rollouts.samples
  samples, visual = jax.device_get(
    programs().rollout(tiny_run.rl_state(c), put(loaded.groups), jax.random.key(1))
  )
  assert 0 < samples.finished_BR.mean() < 1 and samples.length_BR.min() > 0
  match_BN = train_rl.pairs_of(loaded, samples, 0, c).match_BN
  match_BN[7] = -1
  teachers, ids, length_BN = loaded.groups, samples.responses_BRT.copy(), samples.length_BR.copy()
  finished_BN = samples.finished_BR.copy()
  finished_BN[:, 0], finished_BN[:, 1] = True, False
  for b in np.flatnonzero(match_BN[:, 0] >= 0):
    ids[b, 0] = teachers.responses_BRT[b, match_BN[b, 0]]
    length_BN[b, 0] = teachers.response_length_BR[b, match_BN[b, 0]]
  crafted = dataclasses.replace(
    samples, responses_BRT=ids, length_BR=length_BN, finished_BR=finished_BN
  )
  pairs = train_rl.pairs_of(loaded, crafted, 0, c)
  rng = np.random.default_rng(0)
  terms = RuleTerms(*(rng.random((c.batch, N), np.float32) for _ in range(3)))
  given = dict(batch=loaded, sampled=samples, samples=crafted, visual=visual, terms=terms)
  return given | {"pairs": rematched(loaded, crafted, pairs, match_BN)}


def rematched(loaded, samples, pairs, match_BN):
  """The same pairs with other teacher responses."""
  paired_BN = (match_BN >= 0) & samples.finished_BR
  same_BN = matching.identical(
    samples.responses_BRT, samples.length_BR, *matching.matched(loaded.groups, match_BN)
  )
  return dataclasses.replace(
    pairs, match_BN=match_BN, paired_BN=paired_BN, differs_BN=paired_BN & ~same_BN
  )


def pair_rows(on, c, groups, samples, pairs):
  students = groups.with_responses(samples.responses_BRT, samples.length_BR)
  return pieces.of_pairs(
    on, tiny_run.model_of(c), groups, students, samples.finished_BR, pairs, c.row_tokens
  )


def discriminate(state, samples=None, learn=True, devices=1, c=None, match_BN=None):
  """One discriminator step of `case`, with changes of its pairs, under config c."""
  given = case() | ({} if samples is None else {"samples": samples})
  loaded, samples, pairs, c = given["batch"], given["samples"], given["pairs"], c or CONFIG()
  pairs = rematched(loaded, samples, pairs, pairs.match_BN if match_BN is None else match_BN)
  on, steps = tiny_run.mesh(devices), programs(devices, c)
  rows = pair_rows(on, c, loaded.groups, samples, pairs)
  return train_rl.update_discriminator(
    steps, state, rows, *put((loaded.groups, samples, given["visual"], pairs), devices), learn
  )


def improve(state, score_BN, samples, devices=1, c=None):
  """One policy step of `case`, under config c."""
  given, c = case(), c or CONFIG()
  groups = given["batch"].groups
  on, steps = tiny_run.mesh(devices), programs(devices, c)
  rollouts = groups.with_responses(samples.responses_BRT, samples.length_BR)
  rows = pieces.rows_of(on, tiny_run.model_of(c), rollouts, c.row_tokens)
  arrays = (groups, samples, given["visual"], score_BN, given["terms"], given["pairs"])
  return train_rl.update_policy(steps, state, rows, *put(arrays, devices))


@functools.cache
def warm():
  """The state after one discriminator step: moments and a value head that has learned."""
  return jax.device_get(discriminate(tiny_run.rl_state(CONFIG()))[0])


def fresh(devices=1):
  """`warm` on its devices, to be donated."""
  on, c = tiny_run.mesh(devices), CONFIG()
  abstract = state_lib.abstract(on, tiny_run.model_of(c), c.trained, train_rl.make_optims(c), NAMES)
  return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), warm(), abstract)


@functools.cache
def updated() -> tuple:
  """(state, scores, metrics) of the second discriminator step."""
  return jax.device_get(discriminate(fresh()))


@functools.cache
def scores() -> tuple[np.ndarray, np.ndarray]:
  """Of the rollouts and of their teacher responses, by the weights before that step."""
  given, critic = case(), Discriminator(tiny_run.model_of(CONFIG()))
  groups, samples = given["batch"].groups, given["samples"]
  groups = join_responses(groups.with_responses(samples.responses_BRT, samples.length_BR), groups)
  weights = state_lib.weights(warm(), "discriminator")
  score_BR = np.asarray(jax.jit(critic)(weights, groups))
  N = samples.length_BR.shape[1]
  return score_BR[:, :N], np.take_along_axis(
    score_BR[:, N:], np.maximum(given["pairs"].match_BN, 0), 1
  )


def test_a_rollout_that_ends_otherwise_than_the_teacher_counts_as_cut_off():
  c, given = CONFIG(), case()
  model = tiny_run.model_of(c)
  end = model.config.stop_ids[0]
  others = tuple(i for i in range(0, model.config.text.vocab, 2) if i != end)
  model = dataclasses.replace(
    model, config=dataclasses.replace(model.config, stop_ids=(end, *others))
  )
  state, groups = tiny_run.rl_state(c), given["batch"].groups
  with jax.set_mesh(tiny_run.mesh()):
    samples, _ = jax.jit(train_rl.rollout_step(c, model))(state, groups, jax.random.key(0))
  place_BN1 = np.maximum(np.asarray(samples.length_BR) - 1, 0)[..., None]
  last_BN = np.take_along_axis(np.asarray(samples.responses_BRT), place_BN1, 2)[..., 0]
  assert np.isin(last_BN, others).sum() > last_BN.size / 2
  np.testing.assert_array_equal(samples.finished_BR, last_BN == end)


# the discriminator's step


def test_scores_are_those_before_the_update():
  state, score_BN, _ = updated()
  finished_BN = case()["samples"].finished_BR
  assert_close(score_BN, np.where(finished_BN, scores()[0], 0))  # others are not read, nor scored
  assert tiny_run.moves(state["discriminator"], warm()["discriminator"])
  again = np.asarray(discriminate(jax.tree.map(jnp.asarray, state))[1])
  assert abs(again - score_BN).max() > 1e-3


def test_only_finished_rollouts_with_a_survivor_form_pairs_and_identical_ones_are_left_out():
  given, (_, _, metrics) = case(), updated()
  weight_BN = given["pairs"].weight_BN
  paired_BN = given["samples"].finished_BR & (given["pairs"].match_BN >= 0)
  assert not paired_BN[:, 1].any() and not paired_BN[7].any() and paired_BN[:7, 0].any()
  differs_BN = paired_BN.copy()
  differs_BN[:, 0] = False
  student_BN, teacher_BN = scores()
  margin = (teacher_BN - student_BN)[differs_BN]
  wanted = {
    "pairs": paired_BN.mean(),
    "identical": paired_BN[:, 0].sum() / paired_BN.sum(),
    "loss": np.mean(weight_BN[differs_BN] * np.log1p(np.exp(-margin))),
    "accuracy": np.mean(margin > 0),
    "margin": margin.mean(),
    "margin_q50": np.median(margin),
    "weight": weight_BN[differs_BN].mean(),
    "score_teacher": teacher_BN[paired_BN].mean(),
    "score_student": student_BN[given["samples"].finished_BR].mean(),
    "skipped": 0,
  }
  for name, value in wanted.items():
    assert metrics[f"discriminator/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_share_of_identical_pairs_is_that_of_the_identical_ones():
  """With more of them than of others, so that it is not the share of the others, too."""
  given = case()
  match_BN = given["pairs"].match_BN.copy()
  match_BN[2:, 1:] = -1
  _, _, metrics = discriminate(fresh(), match_BN=match_BN)
  paired_BN = given["samples"].finished_BR & (match_BN >= 0)
  wanted = paired_BN[:, 0].sum() / paired_BN.sum()
  assert 0.6 < wanted < 1
  assert metrics["discriminator/identical"] == pytest.approx(wanted)


def test_a_rollout_without_a_pair_teaches_nothing():
  samples = case()["samples"]
  ids = samples.responses_BRT.copy()
  ids[:, 1], ids[7] = 65, 66  # truncated ones, and those of the prompt without a survivor
  state, _, metrics = discriminate(fresh(), dataclasses.replace(samples, responses_BRT=ids))
  assert float(metrics["discriminator/loss"]) == pytest.approx(
    float(updated()[2]["discriminator/loss"]), abs=1e-6
  )
  moments, wanted = (tiny_run.flat(s["discriminator_optim"]) for s in (state, updated()[0]))
  for name in wanted:
    assert_close(moments[name], wanted[name])


def test_a_step_without_any_pair_has_no_gradient():
  state, _, metrics = discriminate(
    tiny_run.rl_state(CONFIG()), match_BN=np.full_like(case()["pairs"].match_BN, -1)
  )
  for name in ("pairs", "loss", "grad_norm", "identical"):
    assert metrics[f"discriminator/{name}"] == 0
  moments = tiny_run.flat(state["discriminator_optim"])
  assert not [name for name, x in moments.items() if x.ndim and x.any()]


def test_a_frozen_discriminator_scores_and_does_not_learn():
  state, score_BN, metrics = discriminate(fresh(), learn=False)
  for name in ("discriminator", "discriminator_optim"):
    tiny_run.assert_same(state[name], warm()[name])
  assert_close(score_BN, updated()[1])
  assert metrics["discriminator/accuracy"] == updated()[2]["discriminator/accuracy"]


def test_the_running_accuracy_is_followed_and_a_sure_discriminator_pauses():
  state, _, metrics = updated()
  accuracy = 0.9 * float(warm()["running"]["accuracy"])
  accuracy += 0.1 * float(metrics["discriminator/accuracy"])
  assert float(state["running"]["accuracy"]) == pytest.approx(accuracy)
  assert metrics["discriminator/learns"] == 1
  c = CONFIG(discriminator__pause_above=0.3)
  state, score_BN, metrics = discriminate(fresh(), c=c)
  assert metrics["discriminator/learns"] == 0
  for name in ("discriminator", "discriminator_optim"):
    tiny_run.assert_same(state[name], warm()[name])
  assert_close(score_BN, updated()[1])
  assert float(state["running"]["accuracy"]) == pytest.approx(
    accuracy
  )  # it is followed all the same


def test_figures_by_task_count_survivors_pairs_and_weights():
  given, (_, _, metrics) = case(), updated()
  pairs, names = given["pairs"], [row["task"] for row in given["batch"].info]
  differs_BN = given["samples"].finished_BR & (pairs.match_BN >= 0)
  differs_BN[:, 0] = False
  right_BN = (scores()[1] > scores()[0]) & differs_BN
  for name in NAMES:
    mine = np.array([task == name for task in names])
    keys = ("pairs/survivors", "pairs/effective", "pairs/weight", "discriminator/accuracy")
    got = {key: float(metrics[f"{key}/{name}"]) for key in keys}
    if not mine.any():
      assert np.isnan([*got.values()]).all()
      continue
    assert got["pairs/survivors"] == pytest.approx(pairs.survivors_B[mine].mean())
    assert got["pairs/effective"] == pytest.approx(differs_BN[mine].mean())
    weight = (pairs.weight_BN * differs_BN)[mine].mean()
    assert got["pairs/weight"] == pytest.approx(weight, rel=1e-5)
    if differs_BN[mine].any():
      share = right_BN[mine].sum() / differs_BN[mine].sum()
      assert got["discriminator/accuracy"] == pytest.approx(share)


def test_the_probe_scores_fixed_pairs_by_the_weights_of_the_moment():
  given = case()
  loaded, samples, pairs = given["batch"], given["samples"], given["pairs"]

  def probed(c):
    rows = pair_rows(tiny_run.mesh(), c, loaded.groups, samples, pairs)
    return rows, programs(c=c).probe(fresh(), rows, *put((loaded.groups, pairs)))

  rows, found = probed(CONFIG())
  student_BN, teacher_BN = scores()
  differs_BN = samples.finished_BR & (pairs.match_BN >= 0)
  differs_BN[:, 0] = False
  assert float(found["probe/score_student"]) == pytest.approx(
    student_BN[differs_BN].mean(), rel=1e-4
  )
  margin = (teacher_BN - student_BN)[differs_BN]
  assert float(found["probe/margin"]) == pytest.approx(margin.mean(), rel=1e-3, abs=1e-6)
  assert float(found["probe/accuracy"]) == pytest.approx((margin > 0).mean())
  more_rows, again = probed(CONFIG(row_tokens=800))
  assert len(more_rows) > len(rows)
  assert_close(jax.device_get(again), jax.device_get(found))


def test_fixed_pairs_are_rollouts_of_the_reference_whatever_the_student_is():
  c, batch, state = CONFIG(), case()["batch"], tiny_run.rl_state(CONFIG())
  moved = state | {"student": jax.tree.map(lambda x: 0.5 * x, state["student"])}
  of = lambda state: probe.fixed_pairs(
    c, tiny_run.mesh(), programs(), state, batch, generate.keys_of_rows, train_rl.pairs_of
  )
  fixed = of(moved)
  tiny_run.assert_same(fixed, of(state))
  others, *_ = of(state | {"reference": moved["student"]})
  assert not np.array_equal(fixed[0][0].tokens_XS, others[0].tokens_XS)


# the policy's step, and both on a mesh


def test_sampler_and_trainer_agree_and_dead_groups_are_counted():
  sampled = case()["sampled"]
  score_BN = updated()[1]
  state, metrics = improve(fresh(), score_BN, sampled)
  assert 0 < float(metrics["policy/sampler_trainer_gap"]) < 2e-5  # rounding of some 6 nats
  assert float(metrics["policy/kl"]) == pytest.approx(0, abs=1e-6)  # still the reference
  assert metrics["reward/dead_groups"] == metrics["policy/ratio_clipped"] == 0
  shares = [metrics[f"reward/{name}/variance_share"] for name in ("outer", "inner", "content")]
  shares.append(metrics["reward/discriminator/variance_share"])
  assert float(sum(shares)) == pytest.approx(1, abs=1e-5)
  for name in ("reference", "discriminator", "discriminator_optim", "frozen"):
    tiny_run.assert_same(state[name], warm()[name])
  assert tiny_run.moves(state["student_optim"], warm()["student_optim"])


@pytest.mark.parametrize("kl_of_dead", [True, False])
def test_a_step_of_dead_groups_leaves_the_student_bit_for_bit(kl_of_dead):
  """Also where the student is no longer the reference; with one group alive it moves."""
  c, given = CONFIG(policy__kl_of_dead=kl_of_dead), case()
  cut = dataclasses.replace(
    given["sampled"], finished_BR=np.zeros_like(given["sampled"].finished_BR)
  )
  terms = jax.tree.map(np.zeros_like, given["terms"])
  score_BN = np.zeros_like(updated()[1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(given, "terms", terms)
    for scale in (1, 1.01):
      state = fresh()
      state["student"] = jax.tree.map(lambda x, s=scale: x * s, state["student"])
      before = jax.tree.map(np.array, state)  # copies: the arrays are donated
      for _ in range(3):
        state, metrics = improve(state, score_BN, cut, c=c)
      assert metrics["reward/dead_groups"] == 1
      for name in ("student", "student_optim", "running"):
        tiny_run.assert_same(state[name], before[name])
    state, _ = improve(state, updated()[1], given["sampled"], c=c)
    assert tiny_run.moves(state["student"], before["student"])


def test_task_scale_divides_by_the_running_spread_of_the_task():
  c = CONFIG(policy__scale="task")
  given = case()
  state, metrics = improve(fresh(), updated()[1], given["sampled"], c=c)
  spread = state["running"]["spread"]
  present = np.isin(np.arange(len(NAMES)), given["pairs"].task_B)
  by_name = lambda name: [float(spread[name][task]) for task in NAMES]
  np.testing.assert_allclose(by_name("weight"), present * (1 - c.policy.scale_decay), rtol=1e-4)
  assert (np.array(by_name("variance")) > 0).tolist() == present.tolist()
  assert not np.array_equal(
    metrics["policy/loss"], improve(fresh(), updated()[1], given["sampled"])[1]["policy/loss"]
  )
  for row, name in enumerate(NAMES):
    mine = (given["pairs"].task_B == row) & given["batch"].closed_B
    terms = given["terms"]
    quality = RULES.quality(terms.outer_BN, terms.inner_BN, terms.content_BN)[mine]
    got = float(metrics[f"rollout/quality/{name}"])
    assert got == pytest.approx(quality.mean(), rel=1e-5) if mine.any() else np.isnan(got)


def test_masked_cut_off_rollouts_neither_push_nor_count_in_their_group():
  """Their tokens and rewards may be anything."""
  c, given, sampled = CONFIG(policy__mask_cut_off=True), case(), case()["sampled"]
  cut_BN = ~np.asarray(sampled.finished_BR)
  assert cut_BN.any() and not cut_BN.all()
  results = []
  for value in (0, 5):
    score_BN = np.where(cut_BN, 7.0 * value, updated()[1]).astype(np.float32)
    ids = np.where(cut_BN[..., None], 60 + value, sampled.responses_BRT)
    other = dataclasses.replace(sampled, responses_BRT=ids)
    with pytest.MonkeyPatch.context() as patch:
      terms = jax.tree.map(lambda x, v=value: np.where(cut_BN, v, x), given["terms"])
      patch.setitem(given, "terms", terms)
      state, metrics = jax.device_get(improve(fresh(), score_BN, other, c=c))
    results.append((state["student"], state["student_optim"], metrics["policy/loss"]))
  tiny_run.assert_same(*results)
  free, _ = improve(fresh(), updated()[1], sampled)
  assert tiny_run.moves(free["student_optim"], results[0][1])


def test_eight_devices_take_the_steps_of_one():
  """Given the same rollouts; moments are sums of gradients, compared by their largest value."""
  sampled, results = case()["sampled"], []
  for devices in (1, 8):
    state = fresh(devices)
    layout = jax.tree.map(lambda x: x.sharding, state)
    state, score_BN, critic = discriminate(state, devices=devices)
    host = np.asarray(score_BN)
    state, policy = improve(state, host, sampled, devices)
    stays = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, layout)
    assert all(jax.tree.leaves(stays))
    results.append(jax.device_get((host, critic, policy, state)))
  (score, critic, policy, state), (score_8, critic_8, policy_8, state_8) = results
  assert_close(score_8, score)
  assert_close((critic_8, policy_8), (critic, policy), 2e-5)
  for name in ("student_optim", "discriminator_optim"):
    got, want = tiny_run.flat(state_8[name]), tiny_run.flat(state[name])
    for leaf, moment in want.items():
      largest = abs(moment).max() or 1
      assert_close(got[leaf] / largest, moment / largest, 2e-5)


def test_devices_that_decode_together_sample_what_one_does():
  """Each process finds the rows of its own prompts, as where every device decodes for itself."""
  on, c, given = sharding.make_mesh(1, 8, 1), CONFIG(rollouts__tensor=2), case()
  rules = state_lib.RULES
  with jax.set_mesh(on):
    state = tiny_run.rl_state(c)
    state = jax.device_put(jax.device_get(state), sharding.shardings(on, state, rules))
    groups = sharding.put_batch(on, given["batch"].groups)
    samples, _ = tiny_run.steps(train_rl, c, on).rollout(state, groups, jax.random.key(1))
  one = given["sampled"]
  for name in ("responses_BRT", "length_BR", "finished_BR"):
    np.testing.assert_array_equal(sharding.local_rows(getattr(samples, name)), getattr(one, name))
    assert getattr(samples, name).sharding.spec[0] == "fsdp"
  assert_close(samples.logp_BRT, one.logp_BRT)


def test_weights_that_a_step_on_a_mesh_left_sample_as_the_trainer_scores_them():
  """A weight that left its place made the sampler of the next step wrong, by 15 nats."""
  state, given = fresh(8), case()
  for _ in range(2):
    state, _ = improve(state, updated()[1], given["sampled"], 8)
  groups = put(given["batch"].groups, 8)
  samples, _ = programs(8).rollout(state, groups, jax.random.key(2))
  _, metrics = improve(state, updated()[1], jax.device_get(samples), 8)
  assert float(metrics["policy/sampler_trainer_gap"]) < 2e-5

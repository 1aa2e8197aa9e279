"""The order of a step of stage 2: which program runs when, and with what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run
from test_train_rl import CONFIG, GRADE, NAMES, RULES, case, put

from rmsd_jax import train_rl
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.method import matching
from rmsd_jax.method.carriers import RuleTerms
from rmsd_jax.rollouts import grading
from rmsd_jax.training import optim
from rmsd_jax.training import state as state_lib


def called(c, step: int, terms_of=GRADE) -> dict:
  """What `train_step` gives to each program at a step; the rollouts are those of `case`."""
  given, seen = case(), {}

  def discriminator(state, *arguments):
    seen["order"] = [*seen.get("order", ()), "discriminator"]
    seen["learn"] = arguments[-1]
    return state, jnp.ones((c.batch, c.rollouts.samples)), {"discriminator/loss": 0.0}

  def reward(running, score_BN, samples, terms, pairs):
    seen["score"], seen["terms"] = np.asarray(score_BN), type(terms)
    return None, None, {}

  def imitate(state, grads, rows, *_):
    seen["targets"] = np.asarray(rows.mask_XW).sum()
    return None, optim.Figures(jnp.zeros(()), {})

  def grade(*arguments, rules):
    seen["order"] = [*seen.get("order", ()), "grade"]
    return terms_of(*arguments)

  grader = grading.Grader(ChatTokenizer(c.model.folder), RULES, grade)

  nothing = lambda *_: (None, optim.Figures(jnp.zeros(()), {}))
  fakes = train_rl.Steps(
    rollout=lambda *_: put((given["sampled"], given["visual"])),
    nothing=lambda weights: None,
    judge=nothing,
    discriminator=discriminator,
    reward=reward,
    improve=nothing,
    policy=lambda state, *_: (state, {"policy/loss": 0.0}),
    imitate=imitate,
    probe=None,
    model=tiny_run.model_of(c),
  )
  state = {"student": None, "discriminator": None, "running": {"spread": None}}
  _, seen["metrics"] = train_rl.train_step(
    c, tiny_run.mesh(), fakes, grader, state, step,
    given["batch"],
  )  # fmt: skip
  return seen


def test_warm_up_and_freezing_count_steps():
  c = CONFIG(discriminator__warmup_steps=2, discriminator__frozen_after=4)
  seen = [called(c, step) for step in range(6)]
  assert ["score" in s for s in seen] == [False, False, True, True, True, True]
  assert [bool(s["learn"]) for s in seen] == [True, True, True, True, False, False]
  # The discriminator is under way on the devices before the host grades texts.
  assert all(s["order"] == ["discriminator", "grade"] for s in seen)
  assert (seen[2]["score"] == 1).all() and seen[2]["terms"] is RuleTerms
  assert all(bool(called(CONFIG(), step)["learn"]) for step in (0, 5, 1000))


def test_in_a_joint_warm_up_the_student_goes_on_with_its_targets():
  c = CONFIG(discriminator__warmup_steps=2, discriminator__joint_warmup=True)
  seen = [called(c, step) for step in range(3)]
  assert ["targets" in s for s in seen] == [True, True, False]
  assert ["score" in s for s in seen] == [False, False, True]
  loaded = case()["batch"]
  for step, s in enumerate(seen[:2]):
    targets = matching.targets(loaded, seed=c.seed, step=step, **c.supervision)
    assert s["targets"] == targets.response_length_BR.sum() > 0
    assert s["metrics"]["warmup/loss"] == 0.0


def test_without_its_reward_there_is_no_discriminator():
  c = CONFIG(reward__discriminator=0.0)
  seen = called(c, 0)
  assert "learn" not in seen and (seen["score"] == 0).all()  # and no warm-up
  assert not [name for name in seen["metrics"] if name.startswith("discriminator/")]
  assert set(tiny_run.rl_state(c)) == {"student", "frozen", "reference", "running", "student_optim"}
  on, model = tiny_run.mesh(), tiny_run.model_of(c)
  saved = state_lib.abstract(on, model, c.trained, train_rl.make_optims(c), NAMES)
  assert set(saved) == set(tiny_run.rl_state(c))


def test_the_reference_is_kept_in_the_type_that_it_is_computed_in():
  """Half the memory, and to the bit what the student at its start computes."""
  model = dataclasses.replace(tiny_run.model_of(CONFIG()), dtype=jnp.bfloat16)
  student = state_lib.weights(tiny_run.rl_state(CONFIG()))
  reference = state_lib.reference_of(model, student)
  assert {x.dtype for x in jax.tree.leaves(reference["text"])} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(reference["vision"])} == {jnp.dtype("float32")}
  hidden = jax.jit(lambda params, groups: model(params, groups))
  groups = case()["batch"].groups
  tiny_run.assert_same(hidden(reference, groups), hidden(student, groups))


def test_right_and_wrong_are_told_of_rollouts_in_their_format(monkeypatch):
  """Ended and valid: a broken format would count as a wrong answer."""
  asked = []
  keep = lambda *given: asked.append(np.asarray(given[1])) or {}
  monkeypatch.setattr(train_rl.shortcuts, "of_scores", keep)
  c, finished_BN = CONFIG(), case()["sampled"].finished_BR
  outer_BN, inner_BN = np.random.default_rng(0).integers(0, 2, (2, *finished_BN.shape))
  terms = RuleTerms(outer_BN, inner_BN, content_BN=np.ones_like(outer_BN))
  called(c, 0, lambda *_: terms)
  np.testing.assert_array_equal(asked[0], finished_BN & (outer_BN * inner_BN == 1))
  assert 0 < asked[0].sum() < finished_BN.sum()

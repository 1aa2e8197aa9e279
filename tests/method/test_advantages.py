"""From reward terms to advantages: hand cases, dead groups, the gate, shares of the variance."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmsd_jax.method import advantages
from rmsd_jax.method.carriers import RuleTerms

ALL = np.ones((1, 4), bool)


def arrays(tasks):
  """No task's spread is known yet."""
  return {"variance": np.zeros(tasks), "weight": np.zeros(tasks)}


def row(*values):
  return np.array([values], np.float32)


def group_advantages(reward, mask, form, dead_below, **options):
  """(advantages, alive) as the trainer computes them from rewards."""
  alive = advantages.alive(reward, mask, dead_below)
  scale = advantages.scales(form, reward, mask, arrays(1), np.zeros(1), **options)
  return advantages.group_advantages(reward, mask, alive, scale), alive


# group_advantages


def test_hand_cases():
  reward, root = row(0, 1, 1, 2), np.sqrt(2 / 3)
  got, alive = group_advantages(reward, ALL, "group", 0.01)
  np.testing.assert_allclose(got, row(-1 / root, 0, 0, 1 / root), rtol=1e-5)
  assert alive.tolist() == [True]
  got, _ = group_advantages(reward, ALL, "none", 0.01)  # Dr. GRPO
  np.testing.assert_allclose(got, row(-1, 0, 0, 1), rtol=1e-6)


def test_the_spread_is_the_unbiased_one_of_numpy():
  reward = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
  got, _ = group_advantages(reward, np.ones((3, 8), bool), "group", 0.0, eps=0.0)
  centred = reward - reward.mean(-1, keepdims=True)
  np.testing.assert_allclose(got, centred / reward.std(-1, ddof=1, keepdims=True), rtol=1e-5)


def test_a_group_stands_on_its_own_and_shift_does_not_matter():
  reward = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
  mask = np.ones((3, 8), bool)
  got, _ = group_advantages(reward, mask, "group", 0.01)
  moved, _ = group_advantages(reward * [[1], [9], [2]] + [[0], [5], [-3]], mask, "group", 0.01)
  np.testing.assert_allclose(moved, got, atol=1e-5)
  np.testing.assert_allclose(np.sum(got, -1), 0, atol=1e-5)


def test_masked_rollouts_neither_count_nor_learn():
  mask = np.array([[True, True, False, True]])
  got, _ = group_advantages(row(0, 1, np.nan, 2), mask, "group", 0.01)
  np.testing.assert_allclose(got, row(-1, 0, 0, 1), atol=1e-5)


@pytest.mark.parametrize("form", ["group", "none"])
def test_a_dead_group_has_no_advantage_and_is_told(form):
  rewards = np.array([[0.3] * 4, [0.3, 0.3, 0.3, 0.3005], [0.3, 0.3, 0.3, 0.302]], np.float32)
  mask = np.ones((3, 4), bool)
  got, alive = group_advantages(rewards, mask, form, dead_below=0.001)
  assert alive.tolist() == [False, False, True]
  assert (np.asarray(got)[:2] == 0).all() and (np.asarray(got)[2] != 0).all()


def test_a_group_with_one_rollout_or_none_is_dead():
  mask = np.array([[False] * 4, [False, True, False, False]])
  got, alive = group_advantages(np.tile(row(0, 1, 2, 3), (2, 1)), mask, "group", 1e-3)
  assert (np.asarray(got) == 0).all() and not np.asarray(alive).any()


# score_term


@pytest.mark.parametrize("form", ["raw", "sigmoid", "standardised"])
def test_forms_of_the_score_and_the_minimum_for_a_cut_off_rollout(form):
  score, finished = row(2, -1, -9, 0.5), np.array([[True, True, False, True]])
  done = np.array([2, -1, 0.5])
  want = {
    "raw": done,
    "sigmoid": 1 / (1 + np.exp(-done)),
    "standardised": (done - done.mean()) / done.std(ddof=1),
  }[form]
  got = np.asarray(advantages.score_term(score, finished, form))
  np.testing.assert_allclose(got[finished], want, rtol=1e-5)
  np.testing.assert_allclose(got[0, 2], want.min(), rtol=1e-5)


@pytest.mark.parametrize("form", ["raw", "sigmoid", "standardised"])
def test_the_score_of_a_cut_off_rollout_is_never_read(form):
  """It is whatever stands at its last token: it must not move its siblings, and may be NaN."""
  finished = np.array([[True, True, False, True]])
  a, b = (advantages.score_term(row(2, -1, x, 0.5), finished, form) for x in (7.0, np.nan))
  np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", ["raw", "sigmoid", "standardised"])
def test_a_group_that_never_finishes_has_score_zero(form):
  got = advantages.score_term(row(2, -1, 3, 0.5), ~ALL, form)
  np.testing.assert_array_equal(got, np.zeros((1, 4)))


def test_standardised_ignores_scale_and_shift_of_the_scores():
  score = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
  finished = np.ones((3, 8), bool)
  a, b = (advantages.score_term(x, finished, "standardised") for x in (score, 40 * score + 7))
  np.testing.assert_allclose(a, b, atol=1e-4)


# composite

WEIGHTS = {"discriminator": 0.4, "outer": 0.1, "inner": 0.2, "content": 0.3}
TERMS = {
  "discriminator": np.array([[1.0, 2.0], [3.0, 4.0]]),
  "outer": np.array([[1, 1], [1, 0]]),
  "inner": np.array([[1.0, 0.5], [1.0, 0.0]]),
  "content": np.array([[0.0, 0.7], [0.0, 0.0]]),
}
CLOSED = np.array([True, False])


def test_without_the_gate_the_reward_is_the_weighted_sum():
  weighted = advantages.composite(TERMS, WEIGHTS, CLOSED, gate=False)
  for name, weight in WEIGHTS.items():
    np.testing.assert_allclose(weighted[name], weight * TERMS[name], rtol=1e-6)
    assert weighted[name].dtype == jnp.float32
  np.testing.assert_allclose(sum(weighted.values())[0], [0.7, 1.21], rtol=1e-6)


def test_the_gate_withholds_format_from_wrong_closed_answers_and_nothing_else():
  free = advantages.composite(TERMS, WEIGHTS, CLOSED, gate=False)
  gated = advantages.composite(TERMS, WEIGHTS, CLOSED, gate=True)
  for name in ("discriminator", "content"):
    np.testing.assert_array_equal(gated[name], free[name])
  for name in ("outer", "inner"):
    want = np.asarray(free[name]).copy()
    want[0, 0] = 0  # closed-ended, content 0; the open-ended prompt keeps its format terms
    np.testing.assert_array_equal(gated[name], want)


def test_with_the_gate_an_all_wrong_group_learns_from_the_discriminator_alone():
  terms = {
    "discriminator": row(1, 1, 1, 1),
    "outer": row(1, 0, 1, 0),
    "inner": row(1, 0, 0, 0),
    "content": row(0, 0, 0, 0),
  }
  reward = {
    gate: sum(advantages.composite(terms, WEIGHTS, np.array([True]), gate).values())
    for gate in (True, False)
  }
  assert not group_advantages(reward[True], ALL, "group", 1e-3)[1].any()
  assert group_advantages(reward[False], ALL, "group", 1e-3)[1].all()


# reward_metrics


def test_shares_of_the_variance_sum_to_one_and_count_only_what_is_inside_groups():
  rng = np.random.default_rng(3)
  mask = rng.random((5, 8)) < 0.8
  terms = {name: rng.standard_normal((5, 8)).astype(np.float32) for name in advantages.TERMS}
  terms["content"] = np.repeat(rng.standard_normal((5, 1)).astype(np.float32), 8, 1)
  metrics = advantages.reward_metrics(terms, mask)
  share = {name: float(metrics[f"reward/{name}/variance_share"]) for name in terms}
  assert abs(sum(share.values()) - 1) < 1e-5
  assert abs(share["content"]) < 1e-5  # large between groups, constant inside them

  inside = lambda x: np.concatenate([x[b][mask[b]] - x[b][mask[b]].mean() for b in range(5)])
  reward = sum(terms.values())
  want = (inside(terms["outer"]) * inside(reward)).sum() / (inside(reward) ** 2).sum()
  np.testing.assert_allclose(share["outer"], want, rtol=1e-4)
  spread = np.mean([terms["inner"][b][mask[b]].std(ddof=1) for b in range(5)])
  np.testing.assert_allclose(metrics["reward/inner/std_in_group"], spread, rtol=1e-5)
  np.testing.assert_allclose(metrics["reward/mean"], reward[mask].mean(), rtol=1e-5)
  np.testing.assert_allclose(
    metrics["reward/content/mean"], terms["content"][mask].mean(), rtol=1e-5
  )


def test_a_constant_reward_has_no_shares():
  terms = {name: np.ones((2, 4), np.float32) for name in advantages.TERMS}
  metrics = advantages.reward_metrics(terms, np.ones((2, 4), bool))
  assert all(metrics[f"reward/{name}/variance_share"] == 0 for name in terms)
  assert metrics["reward/std_in_group"] == 0 and metrics["reward/mean"] == len(terms)


# the running spread of tasks

TASK = np.array([0, 0, 1, 2])


def followed(rewards, decay=0.9, tasks=3, alive=None):
  spread = arrays(tasks)
  for reward in rewards:
    ones = np.ones(reward.shape, bool)
    known = np.ones(len(reward), bool) if alive is None else alive
    spread = advantages.follow_spread(spread, reward, ones, known, TASK, decay)
  return spread


def test_the_spread_of_a_task_is_the_running_mean_of_its_groups_variances():
  rng = np.random.default_rng(2)
  rewards = [rng.random((4, 8)).astype(np.float32) for _ in range(5)]
  spread = followed(rewards)
  weights = 0.9 ** np.arange(5)[::-1] * 0.1
  for task in range(3):
    by_step = [reward.var(1, ddof=1)[TASK == task].mean() for reward in rewards]
    assert spread["weight"][task] == pytest.approx(weights.sum(), rel=1e-5)
    expected = np.average(by_step, weights=weights)
    got = spread["variance"][task] / spread["weight"][task]
    assert float(got) == pytest.approx(expected, rel=1e-5)
  scale = advantages.scales("task", rewards[0], np.ones((4, 8), bool), spread, TASK)
  assert scale[0] == scale[1] != scale[2]
  assert float(scale[3]) == pytest.approx(np.sqrt(expected), rel=1e-4)


def test_the_first_step_of_a_task_has_its_own_spread():
  reward = np.random.default_rng(3).random((4, 8)).astype(np.float32)
  scale = advantages.scales("task", reward, np.ones((4, 8), bool), followed([reward]), TASK)
  np.testing.assert_allclose(scale[2:], reward[2:].std(1, ddof=1), rtol=1e-4)


def test_dead_groups_and_absent_tasks_leave_the_spread_as_it_is():
  reward = np.random.default_rng(4).random((4, 8)).astype(np.float32)
  before = followed([reward])
  alive = np.array([True, False, False, True])
  after = advantages.follow_spread(before, reward * 3, np.ones((4, 8), bool), alive, TASK, 0.9)
  assert after["variance"][1] == before["variance"][1]
  assert after["weight"][1] == before["weight"][1]
  lonely = 0.9 * before["variance"][0] + 0.1 * 9 * reward[0].var(ddof=1)
  assert float(after["variance"][0]) == pytest.approx(float(lonely), rel=1e-5)


def test_the_push_of_tied_groups_is_told_from_that_of_right_against_wrong():
  advantage = np.array([[1.0, -1.0], [2.0, -2.0], [0.5, -0.5], [3.0, -3.0]], np.float32)
  content = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
  closed, mask = np.array([True, True, True, False]), np.ones((4, 2), bool)
  share = advantages.tied_share(advantage, content, mask, closed)
  assert float(share) == pytest.approx((4 + 1) / 13)  # the open-ended group has no right or wrong
  mask[0, 1] = False  # what does not count unties nothing
  assert float(advantages.tied_share(advantage, content, mask, closed)) == pytest.approx(7 / 13)
  assert float(advantages.tied_share(0 * advantage, content, mask, closed)) == 0


# against the formulas of other trainers, written out


def test_group_scale_is_grpo_as_in_trl_and_verl():
  """trl's GRPOTrainer and verl's compute_grpo_outcome_advantage: torch's unbiased std of a group,
  eps added to it (theirs 1e-4 and 1e-6), no clipping; scale_rewards=False drops the division."""
  torch = pytest.importorskip("torch")
  reward = np.random.default_rng(5).random((6, 8)).astype(np.float32)
  mask = np.ones((6, 8), bool)
  flat = torch.tensor(reward).view(-1)
  mean = flat.view(-1, 8).mean(dim=1).repeat_interleave(8, dim=0)
  std = flat.view(-1, 8).std(dim=1).repeat_interleave(8, dim=0)
  theirs = ((flat - mean) / (std + 1e-6)).view(6, 8).numpy()
  np.testing.assert_allclose(group_advantages(reward, mask, "group", 0.0)[0], theirs, rtol=1e-4)
  centred = (flat - mean).view(6, 8).numpy()
  np.testing.assert_allclose(group_advantages(reward, mask, "none", 0.0)[0], centred, atol=1e-6)


# forms of the advantage, against numpy written out


def from_rewards(form, scale="group", format_penalty=0.0, gate=False, dead_below=1e-4, seed=0):
  """(advantages, what went in) of random rewards of 6 prompts, the last one open-ended."""
  rng = np.random.default_rng(seed)
  B, N = 6, 8
  random = lambda: rng.random((B, N)).astype(np.float32)
  outer = (random() < 0.8).astype(np.float32)
  terms = RuleTerms(outer, outer * (random() < 0.9), random() * (np.arange(B) < 5)[:, None])
  score = 3 * random()
  pairs = SimpleNamespace(closed_B=np.arange(B) < 5, task_B=np.arange(B) % 2)
  spread = {name: {"a": 0.0, "b": 0.0} for name in ("variance", "weight")}
  spread = jax.tree.map(jnp.float32, spread)
  gained, _, metrics = advantages.from_rewards(
    score, np.ones((B, N), bool), terms, pairs, spread, weights=WEIGHTS, score="raw", gate=gate,
    dead_below=dead_below, form=form, right_from=0.5, format_penalty=format_penalty, scale=scale,
    scale_decay=0.9, kl_of_dead=True, mask_cut_off=False,
  )  # fmt: skip
  return gained, {"discriminator": score} | terms.by_name(), pairs, metrics


def normalised(x, scale):
  centred = x - x.mean(-1, keepdims=True)
  return centred / (x.std(-1, ddof=1, keepdims=True) + 1e-6) if scale == "group" else centred


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("gate", [True, False])
def test_separate_advantages_are_the_weighted_sum_of_normalised_terms(scale, gate):
  gained, terms, pairs, _ = from_rewards("separate", scale, gate=gate)
  if gate:
    pays = ~pairs.closed_B[:, None] | (terms["content"] > 0)
    terms |= {name: np.where(pays, terms[name], 0) for name in ("outer", "inner")}
  want = sum(WEIGHTS[name] * normalised(x.astype(np.float64), scale) for name, x in terms.items())
  np.testing.assert_allclose(gained.advantage_BN, want, atol=2e-4)


def test_separate_without_a_scale_is_the_total():
  a, b = (from_rewards(form, "none")[0].advantage_BN for form in ("separate", "total"))
  np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_gated_discriminator_ranks_right_rollouts_only(scale):
  gained, terms, pairs, _ = from_rewards("gated", scale)
  rules = sum(WEIGHTS[name] * terms[name] for name in ("outer", "inner", "content"))
  right = (terms["outer"] == 1) & (terms["inner"] == 1)
  right &= ~pairs.closed_B[:, None] | (terms["content"] >= 0.5)
  judged = WEIGHTS["discriminator"] * normalised(terms["discriminator"], scale)
  want = normalised(rules, scale) + np.where(right, judged, 0)
  np.testing.assert_allclose(gained.advantage_BN, want, atol=2e-4)
  assert right.any() and (~right).any() and right[5].any()


@pytest.mark.parametrize("form", advantages.FORMS)
def test_a_wrong_format_has_minus_the_penalty_as_its_advantage(form):
  plain, terms, *_ = from_rewards(form)
  gained, *_ = from_rewards(form, format_penalty=1.5)
  wrong = terms["outer"] != 1
  want = np.where(wrong, -1.5, plain.advantage_BN)
  np.testing.assert_array_equal(gained.advantage_BN, want)
  # Also where nothing else tells the rollouts of a group apart.
  dead, *_ = from_rewards(form, format_penalty=1.5, dead_below=1e9)
  np.testing.assert_array_equal(dead.advantage_BN, np.where(wrong, -1.5, 0))
  np.testing.assert_array_equal(np.asarray(dead.keep_kl_BN)[:, 0], [True] * 6)


def test_a_score_is_bounded_and_loses_by_its_length():
  score, length = row(25, -12, 3, 0.5), np.array([[0, 9, 99, 999]])
  np.testing.assert_array_equal(advantages.bounded(score, length, 0.0, 0.0), score)
  np.testing.assert_array_equal(advantages.bounded(score, length, 10.0, 0.0), row(10, -10, 3, 0.5))
  want = np.clip(score, -10, 10) - 0.5 * np.log(1.0 + length)
  np.testing.assert_allclose(advantages.bounded(score, length, 10.0, 0.5), want, rtol=1e-6)


def test_the_discriminators_share_of_each_tasks_variance():
  _, terms, pairs, metrics = from_rewards("total")
  terms = {name: WEIGHTS[name] * x.astype(np.float64) for name, x in terms.items()}
  reward = sum(terms.values())
  for number, task in enumerate("ab"):
    of = pairs.task_B == number
    inside = lambda x, of=of: (x[of] - x[of].mean(-1, keepdims=True)).ravel()
    want = inside(terms["discriminator"]) @ inside(reward) / (inside(reward) @ inside(reward))
    got = metrics[f"reward/discriminator/variance_share/{task}"]
    np.testing.assert_allclose(got, want, rtol=1e-4)
  alike = np.ones((2, 4), np.float32)
  shares = advantages.shares_by_task(alike, alike, alike > 0, np.array([0, 0]), ["a", "b"])
  assert all(np.isnan(x) for x in shares.values())

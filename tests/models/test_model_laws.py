"""Laws of the group model: who sees whom, and what must not change its numbers.

Axes: B prompts, R responses, P prompt tokens, T response tokens, S packed tokens, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_groups
from tiny_model import CONFIG, MODEL, assert_close, gradients, jit, random_params, sft_loss

from rmsd_jax.core import packed
from rmsd_jax.core.groups import join_responses
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.models.student import Visual

B, R, T, P = 4, 3, 6, 40
CRITIC = Discriminator(MODEL)
PARAMS = random_params(MODEL.abstract())
CRITIC_PARAMS = {**PARAMS, "value_head": random_params({"kernel": np.zeros(16)}, 1)}


def make_groups(**sizes):
  """Four prompts (one without media), three responses each, one slot empty."""
  groups = random_groups(**{"B": B, "R": R, "T": T, "P": P, **sizes})
  groups.response_length_BR[0, 1] = 0
  return groups


def with_(groups, **arrays):
  return dataclasses.replace(groups, **arrays)


@functools.cache
def step_of(**options):
  """(params, groups) -> gradients, {"loss"}, outputs of stage 1, compiled once per variant."""
  loss_fn = sft_loss(dataclasses.replace(MODEL, **options))
  return jit(lambda params, groups: gradients(loss_fn, params, groups))


@functools.cache
def whole():
  """The reference result of every law: the full batch, grouped."""
  return step_of()(PARAMS, make_groups())


def one_by_one(groups):
  """Groups of one prompt and one response, with their indices."""
  for b in range(B):
    row = jax.tree.map(lambda x, b=b: x[b : b + 1], groups)
    for r in range(R):
      one = slice(r, r + 1)
      yield b, r, row.with_responses(row.responses_BRT[:, one], row.response_length_BR[:, one])


def counted(result, groups):
  """Logits where a response token is predicted; the rest predicts padding."""
  grads, metrics, outputs = result
  mask_BRT = np.asarray(groups.response_mask_BRT)
  return grads, metrics, np.asarray(outputs["logits"])[..., :T, :][mask_BRT[..., :T]]


def test_a_group_equals_its_responses_one_by_one():
  groups, (grads, metrics, outputs) = make_groups(), whole()
  tokens = groups.response_length_BR.sum()
  loss, summed = 0.0, jax.tree.map(np.zeros_like, PARAMS)
  for b, r, single in one_by_one(groups):
    own_grads, own_metrics, own_outputs = step_of()(PARAMS, single)
    n = groups.response_length_BR[b, r]
    for name in ("response", "logits", "logp"):
      assert_close(own_outputs[name][0, 0, :n], outputs[name][b, r, :n])
    share = groups.response_length_BR[b, r] / tokens
    loss += share * own_metrics["loss"]
    summed = jax.tree.map(lambda a, g, w=share: a + w * g, summed, own_grads)
  assert_close(loss, metrics["loss"])
  assert_close(summed, grads)


def test_a_response_is_the_continuation_of_its_prompt():
  """Its tokens, written behind the prompt as prompt tokens, have the same hidden states."""
  groups, (_, _, outputs) = make_groups(), whole()
  for b, r, single in one_by_one(groups):
    n, t = groups.prompt_length_B[b], groups.response_length_BR[b, r]
    tokens, places = single.tokens_BP.copy(), single.positions_B3P.copy()
    tokens[0, n : n + t] = single.responses_BRT[0, 0, :t]
    places[0, :, n : n + t] = groups.next_position_B[b] + np.arange(t)
    longer = with_(
      single, tokens_BP=tokens, positions_B3P=places, prompt_length_B=single.prompt_length_B + t
    )
    got = step_of()(PARAMS, longer)[2]["prompt"]
    assert_close(got[0, n : n + t], outputs["response"][b, r, :t])


def test_every_token_sees_what_the_group_rule_says_and_nothing_else():
  """The gradient of every hidden state by every input: causality, siblings, the whole prompt.

  Every place holds an id of its own, so that a row of the embedding table is a place; the
  visual tokens are inputs of their own.
  """
  P, T = 29, 5
  groups = random_groups(B=1, R=R, T=T, P=P)
  n, S = int(groups.prompt_length_B[0]), P + R * T
  assert n < P, "the prompt must have padding"
  groups = with_(
    groups,
    tokens_BP=np.arange(P, dtype=np.int32)[None],
    responses_BRT=np.arange(P, S, dtype=np.int32).reshape(1, R, T),
  )
  rng = np.random.default_rng(0)
  look_D = rng.standard_normal(CONFIG.text.width).astype(np.float32)
  width, V = CONFIG.vision.out, groups.patches_BFSC.shape[1] * groups.patches_BFSC.shape[2] // 4
  tokens_BVD = rng.standard_normal((1, V, width)).astype(np.float32)
  deep_BnVD = rng.standard_normal((1, 1, V, width)).astype(np.float32)

  def hidden(embed, tokens_BVD, deep_BnVD):
    params = {**PARAMS, "text": {**PARAMS["text"], "embed": embed}}
    hidden_BSD = MODEL.hidden(params, packed.padded(groups), Visual(tokens_BVD, deep_BnVD))
    return hidden_BSD[0] @ look_D

  jacobian = jit(jax.jacrev(hidden, (0, 1, 2)))(PARAMS["text"]["embed"], tokens_BVD, deep_BnVD)
  by_id, by_visual, by_deep = (np.abs(x).max(-1).reshape(S, -1) for x in jacobian)

  place = np.arange(S)
  segment = np.where(place < P, -1, (place - P) // T)
  sees = (segment[:, None] == segment) | ((segment >= 0)[:, None] & (place < n))
  sees &= place[:, None] >= place
  counts = np.append(place[:P] < n, np.asarray(groups.response_mask_BRT).reshape(-1))
  sees, by_id, by_visual, by_deep = (x[counts] for x in (sees, by_id, by_visual, by_deep))
  sees[:, ~counts] = False
  visual_P = groups.visual_BP[0]
  is_visual = np.append(visual_P >= 0, np.zeros(R * T, bool))
  text = by_id[:, :S]
  assert (text[~sees] == 0).all()
  assert (text[:, ~is_visual][sees[:, ~is_visual]] > 1e-6).all()
  assert (text[:, is_visual] == 0).all(), "the id under a visual token must not matter"
  for name, influence in (("tokens", by_visual), ("DeepStack", by_deep)):
    at_places = influence[:, visual_P[visual_P >= 0]]
    assert (at_places[~sees[:, is_visual]] == 0).all(), name
    # DeepStack joins after a layer: its token itself sees it, and all that look at it later.
    assert (at_places[sees[:, is_visual]] > 1e-6).all(), name
    unplaced = np.setdiff1d(np.arange(V), visual_P)
    assert (influence[:, unplaced] == 0).all(), name


def test_a_response_does_not_notice_other_siblings():
  groups, (_, _, before) = make_groups(), whole()
  responses, lengths = groups.responses_BRT.copy(), groups.response_length_BR.copy()
  responses[:, 1] = (responses[:, 1] + 7) % 140
  lengths[:, 1] = T - lengths[:, 1]
  after = step_of()(PARAMS, groups.with_responses(responses, lengths))[2]
  mask_BRT = np.asarray(groups.response_mask_BRT)
  for r in (0, 2):
    assert_close(
      after["logits"][:, r][mask_BRT[:, r]], before["logits"][:, r][mask_BRT[:, r]], 1e-6
    )
  mask_BP = np.asarray(groups.prompt_mask_BP)
  assert_close(after["prompt"][mask_BP], before["prompt"][mask_BP], 1e-6)
  assert (np.abs(after["response"][:, 1] - before["response"][:, 1]).max((1, 2)) > 1e-2).all()


@pytest.mark.parametrize(
  "option", [{"unroll": True}, {"remat": "all"}, {"remat": "products"}, {"attention": "dense"}]
)
def test_how_it_is_computed_does_not_change_what(option):
  groups = make_groups()
  assert_close(counted(step_of(**option)(PARAMS, groups), groups), counted(whole(), groups))


@pytest.mark.parametrize("bigger", [{"P": P + 9, "T": T + 3}, {"F": 5, "S": 32}], ids=str)
def test_padding_moves_nothing(bigger):
  groups, padded = make_groups(), make_groups()
  small, big = {"P": P, "T": T, "F": 3, "S": 24}, {"P": P, "T": T, "F": 3, "S": 24, **bigger}

  def pad(x, *axes):
    widths = [(0, big[a] - small[a]) if a in big else (0, 0) for a in axes]
    return np.pad(x, widths)

  visual = groups.visual_BP
  moved = np.where(visual >= 0, visual // 6 * (big["S"] // 4) + visual % 6, -1)
  padded = with_(
    groups,
    tokens_BP=pad(groups.tokens_BP, "B", "P"),
    positions_B3P=pad(groups.positions_B3P, "B", "3", "P"),
    visual_BP=np.pad(moved, [(0, 0), (0, big["P"] - P)], constant_values=-1).astype(np.int32),
    patches_BFSC=pad(groups.patches_BFSC, "B", "F", "S", "C"),
    grid_BF2=pad(groups.grid_BF2, "B", "F", "2"),
    responses_BRT=pad(groups.responses_BRT, "B", "R", "T"),
  )
  assert_close(counted(step_of()(PARAMS, padded), padded), counted(whole(), groups))


@pytest.mark.parametrize("what", ["prompt", "responses", "frames", "patches"])
def test_what_stands_in_padding_moves_nothing(what):
  groups, rng = make_groups(), np.random.default_rng(3)
  noise = lambda x, high: rng.integers(0, high, x.shape).astype(x.dtype)
  prompt_BP = np.asarray(groups.prompt_mask_BP)
  size_BF1 = groups.grid_BF2.prod(-1)[..., None]
  padding_BFS = np.arange(groups.patches_BFSC.shape[2]) >= size_BF1
  whole_frames = padding_BFS & (size_BF1 == 0)
  swap = lambda mask, x, high: np.where(mask, noise(x, high), x)
  patches = groups.patches_BFSC
  filled = {
    "prompt": {
      "tokens_BP": swap(~prompt_BP, groups.tokens_BP, 140),
      "positions_B3P": swap(~prompt_BP[:, None], groups.positions_B3P, 60),
    },
    "responses": {
      "responses_BRT": swap(~np.asarray(groups.response_mask_BRT), groups.responses_BRT, 140)
    },
    "frames": {"patches_BFSC": swap(whole_frames[..., None], patches, 256)},
    "patches": {"patches_BFSC": swap((padding_BFS & ~whole_frames)[..., None], patches, 256)},
  }[what]
  changed = with_(groups, **filled)
  assert any((getattr(changed, name) != getattr(groups, name)).any() for name in filled)
  got, want = counted(step_of()(PARAMS, changed), changed), counted(whole(), groups)
  assert_close(got, want, 1e-6)


def test_another_clip_moves_the_logits_of_its_prompt_alone():
  groups, (_, _, before) = make_groups(), whole()
  patches = groups.patches_BFSC.copy()
  patches[0] = 255 - patches[0]
  after = step_of()(PARAMS, with_(groups, patches_BFSC=patches))[2]
  assert np.abs(after["logits"][0] - before["logits"][0]).max((1, 2)).min() > 1e-2
  assert_close(after["logits"][1:], before["logits"][1:], 1e-6)


def test_the_blind_control_does_not_know_the_clip():
  groups, (_, _, seeing) = make_groups(), whole()
  other = with_(groups, patches_BFSC=255 - groups.patches_BFSC)
  blind, other_blind = (step_of()(PARAMS, g.without_media())[2] for g in (groups, other))
  assert_close(blind, other_blind, 0)
  assert np.abs(blind["logits"] - seeing["logits"])[[0, 2, 3]].max((1, 2, 3)).min() > 1e-2
  assert_close(blind["logits"][1], seeing["logits"][1], 1e-6)  # has no media
  on_device = jax.tree.map(jnp.asarray, groups).without_media()
  jax.tree.map(np.testing.assert_array_equal, on_device, groups.without_media())
  assert np.abs(on_device.patches_BFSC / 127.5 - 1).max() < 0.005


def test_frame_pairs_do_not_see_each_other():
  groups, encode = make_groups(), jit(MODEL.encode)
  patches = groups.patches_BFSC.copy()
  patches[:, 0] = 255 - patches[:, 0]
  before, after = (
    encode(PARAMS, with_(groups, patches_BFSC=x)) for x in (groups.patches_BFSC, patches)
  )
  tokens = groups.patches_BFSC.shape[2] // 4
  moved = np.abs(after.tokens_BVD - before.tokens_BVD)
  assert (moved[:, tokens:] == 0).all() and (moved[[0, 2, 3], :1].max(-1) > 1e-3).all()
  assert (after.deep_BnVD[:, :, tokens:] == before.deep_BnVD[:, :, tokens:]).all()


# The discriminator.


@functools.cache
def critic():
  """(params, groups, weights [B, R]) -> gradients of the weighted sum of scores, scores."""

  def value(params, groups, weight_BR):
    scores_BR = CRITIC(params, groups)
    return jnp.sum(scores_BR * weight_BR), scores_BR

  return jit(jax.grad(value, has_aux=True))


WEIGHT_BR = np.random.default_rng(4).standard_normal((B, R)).astype(np.float32)


def test_a_score_is_read_at_the_last_token():
  groups, (_, _, outputs) = make_groups(), whole()
  scores = np.asarray(critic()(CRITIC_PARAMS, groups, WEIGHT_BR)[1])
  for (b, r), n in np.ndenumerate(groups.response_length_BR):
    last = outputs["response"][b, r, n - 1] @ CRITIC_PARAMS["value_head"]["kernel"]
    np.testing.assert_allclose(scores[b, r], last if n else 0, atol=1e-5)
  assert scores.dtype == np.float32 and scores[0, 1] == 0


def test_every_token_of_a_response_moves_its_score_and_nothing_behind_it_does():
  groups = make_groups()
  before, lengths = critic()(CRITIC_PARAMS, groups, WEIGHT_BR)[1], groups.response_length_BR
  for t in range(T):
    responses = groups.responses_BRT.copy()
    responses[:, :, t] = (responses[:, :, t] + 11) % 140
    moved = (
      critic()(CRITIC_PARAMS, groups.with_responses(responses, lengths), WEIGHT_BR)[1] - before
    )
    assert (np.abs(moved)[t < lengths] > 1e-6).all() and (moved[t >= lengths] == 0).all()


def test_an_empty_slot_has_no_gradient():
  groups, weight = make_groups(), WEIGHT_BR.copy()
  weight[0, 1] *= 1000
  grads, _ = critic()(CRITIC_PARAMS, groups, WEIGHT_BR)
  assert_close(critic()(CRITIC_PARAMS, groups, weight)[0], grads, 1e-6)


def test_scores_of_a_group_equal_those_one_by_one():
  """Values and gradients; and joining two groups joins their scores."""
  groups = make_groups()
  grads, scores = critic()(CRITIC_PARAMS, groups, WEIGHT_BR)
  summed = jax.tree.map(np.zeros_like, CRITIC_PARAMS)
  for b, r, single in one_by_one(groups):
    own_grads, own = critic()(CRITIC_PARAMS, single, WEIGHT_BR[b : b + 1, r : r + 1])
    np.testing.assert_allclose(own[0, 0], scores[b, r], atol=1e-5)
    summed = jax.tree.map(np.add, summed, own_grads)
  assert_close(summed, grads)
  part = lambda s: groups.with_responses(
    groups.responses_BRT[:, s], groups.response_length_BR[:, s]
  )
  joined = join_responses(part(slice(0, 1)), part(slice(1, R)))
  assert_close(critic()(CRITIC_PARAMS, joined, WEIGHT_BR)[1], scores, 0)

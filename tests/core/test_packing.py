"""Which groups share a row, and that packed rows compute what unpacked ones do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_groups
from tiny_model import MODEL, assert_close, jit, random_params

from rmsd_jax.core import packed, packing, sharding
from rmsd_jax.core.packing import Piece, Sizes
from rmsd_jax.method import losses
from rmsd_jax.training import optim
from tests.bench import padding

B, R, T, P = 8, 3, 6, 40
PARAMS = random_params(MODEL.abstract())
SIZES = Sizes(P=16, W=6, most=10_000)


def groups_of(empty=((0, 1), (3, 0))):
  groups = random_groups(B=B, R=R, T=T, P=P)
  for b, r in empty:
    groups.response_length_BR[b, r] = 0
  return groups


def plan_of(groups, shards=1, sizes=SIZES):
  total_B = groups.response_length_BR.sum(1)
  return packing.plan(groups.prompt_length_B, total_B, shards, sizes, MODEL.row_cost)


# the plan


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("most", [100, 10_000])
def test_every_group_lies_in_one_row_of_its_shard_and_fits(shards, most):
  groups = groups_of()
  pieces = plan_of(groups, shards, Sizes(16, 6, most))
  placed = [[] for _ in range(shards)]
  for piece in pieces:
    assert piece.P % 16 == 0 and piece.W % 6 == 0
    for s, rows in enumerate(piece.rows):
      assert len(rows) == piece.deep
      for row in rows:
        b = s * (B // shards) + np.array(row, int)
        assert groups.prompt_length_B[b].sum() <= piece.P
        assert groups.response_length_BR[b].sum() <= piece.W
        placed[s] += row
  assert all(sorted(numbers) == list(range(B // shards)) for numbers in placed)
  if most == 10_000:
    assert len(pieces) == 1


def test_where_no_row_is_short_enough_each_group_has_its_own():
  """Not all of them one row: memory is what the limit is for."""
  (*pieces,) = plan_of(groups_of(), sizes=Sizes(16, 6, 20))
  assert all(piece.deep == 1 and len(piece.rows[0][0]) == 1 for piece in pieces)
  assert len(pieces) == B


def test_a_plan_follows_from_the_lengths_alone():
  groups = groups_of()
  assert plan_of(groups, 2) == plan_of(groups, 2)


def test_sizes_grow_in_steps_by_the_groups_of_a_row():
  sizes = Sizes(P=10, W=3, most=1000, lanes=8, block=64)
  assert sizes.padded(1, 9, [1, 9]) == (16, [48, 48])  # 8 and 16, and on to 64 - 16
  assert sizes.padded(4, 81, [5, 60, 90]) == (120, [72, 72, 136])
  # Four steps of 10 hold the longest prompts, where three of 16 are 48.
  assert [sizes.padded(1, n, [9])[0] for n in (32, 33, 40, 41)] == [32, 40, 40, 48]
  # A row of one group has two groups' step for its responses, and its own for its prompt.
  assert Sizes(P=10, W=6, most=1000).padded(1, 9, [1, 13]) == (10, [12, 24])
  # Steps are 4 * 10 = 40 for P and 4 * 3 = 12, of lanes 16, for W; rows are multiples of 64.
  for groups, prompts, response in ((1, 1, 1), (2, 55, 17), (8, 400, 333)):
    P, (W,) = sizes.padded(groups, prompts, [response])
    assert P >= prompts and W >= response and P % 8 == W % 8 == (P + W) % 64 == 0


def rows_of(prompts, responses, most):
  """The rows of a plan on one shard, of sizes as large as their tokens."""
  pieces = packing.plan(
    np.array(prompts), np.array(responses), 1, Sizes(1, 1, most), lambda P, W: P + W
  )
  return [row for piece in pieces for row in piece.rows[0]]


def test_rows_have_alike_responses_and_at_most_their_share_of_groups():
  # Prompts are nearly alike; shared out by all tokens, responses would be 80 and 100.
  responses = [50, 45, 30, 25, 20, 10]
  rows = rows_of([90, 100, 95, 100, 92, 91], responses, most=400)
  assert sorted(sum(responses[g] for g in row) for row in rows) == [85, 95]
  assert [len(row) for row in rows] == [3, 3]
  # The row with nearly all tokens takes a second group: the other one is full.
  rows = rows_of([10, 10, 10, 10], [100, 1, 1, 1], most=125)
  assert [len(row) for row in rows] == [2, 2]


def test_long_prompts_are_shared_out_where_responses_are_short():
  """All long ones in one row would make every row as long."""
  rows = rows_of([900, 10, 900, 10], [10, 9, 4, 5], most=1000)
  assert sorted(map(sorted, rows)) == [[0, 3], [1, 2]]


def test_a_row_that_memory_holds_is_not_rounded_beyond_it():
  sizes = Sizes(P=576, W=512, most=10_240, lanes=128, block=512)
  assert sizes.padded(1, 2200, [7500]) == (2304, [7936])
  assert sizes._replace(most=20_000).padded(1, 2200, [7500]) == (2304, [8448])


@pytest.mark.parametrize(("groups", "halves"), [(8, [8, 4, 2, 1]), (7, [7, 4, 2, 1]), (1, [1])])
def test_rows_of_a_shard_hold_all_groups_or_half_of_them_and_so_on(groups, halves):
  one = lambda most: packing.plan(
    np.full(groups, 100), np.full(groups, 50), 1, Sizes(1, 1, most), lambda P, W: P + W
  )
  for count in halves:
    (*pieces,) = one(150 * count)
    rows = [row for piece in pieces for row in piece.rows[0] if row]
    assert max(len(row) for row in rows) == count and sum(map(len, rows)) == groups


def test_dealing_spreads_tokens_evenly_and_keeps_every_prompt():
  tokens_B = np.random.default_rng(0).lognormal(8, 0.6, 64).astype(int)
  order = packing.deal(tokens_B, 8)
  assert sorted(order) == list(range(64))
  load = tokens_B[order].reshape(8, 8).sum(1)
  assert load.max() < 1.1 * load.mean() < tokens_B.reshape(8, 8).sum(1).max()


@pytest.mark.parametrize(("program", "shards", "mean", "images", "bar"), padding.BARS)
def test_padding_costs_little_at_usual_lengths_in_few_sizes(program, shards, mean, images, bar):
  """`python -m tests.bench.padding` counts 500 steps."""
  ratio, shapes = padding.overhead(program, shards, mean, images, steps=10)
  assert 1 < ratio <= bar
  assert len(shapes) <= padding.MOST_SIZES


# packed rows


def value_and_gradient(rows_of_pieces, groups):
  """Loss, its gradient, and the log-probs [B, R, T] of the real tokens."""
  table = np.zeros((B, R, T), np.float32)

  def loss_fn(params, rows):
    hidden_XSD = MODEL.hidden(params, rows, MODEL.encode(params, groups))
    logp_XW = losses.token_logps(
      losses.predictors(hidden_XSD, rows), MODEL.unembedding(params), rows.targets_XW, 1.0, 5
    )
    loss, count = losses.sft(logp_XW, rows.mask_XW)
    return loss, optim.Figures(count, {"loss": loss}, parts=logp_XW)

  add = jit(functools.partial(optim.add, loss_fn, PARAMS))
  grads = optim.nothing(PARAMS)
  figures = None
  for rows in rows_of_pieces:
    grads, more = add(grads, rows)
    for x, w in np.argwhere(np.asarray(rows.mask_XW)):
      place = rows.P + w - int(rows.start_XW[x, w])
      number = int(rows.group_XW[x, w])
      table[number, int(rows.response_XW[x, w]), place] = more.parts[x, w]
    more = more._replace(parts=None)
    figures = more if figures is None else optim.joined(figures, more)
  return *optim.averaged(grads, figures), table


@functools.cache
def unpacked():
  """The same in the layout of a row for each prompt."""
  groups = groups_of()
  return value_and_gradient([packed.padded(jax.tree.map(jnp.asarray, groups))], groups)


@pytest.mark.parametrize(
  "pieces",
  [
    [Piece(256, 96, 1, (((4, 2, 0, 6, 1, 7, 3, 5),),))],
    [Piece(128, 48, 2, (((0, 1, 2), (3, 4)),)), Piece(128, 72, 1, (((7, 6, 5),),))],
    None,
  ],
  ids=["one row", "two pieces", "as planned"],
)
def test_packed_rows_give_the_loss_and_gradients_of_unpacked_ones(pieces):
  """Loss to 1e-6, gradients to 1e-5, whatever groups share a row and in what order."""
  groups = groups_of()
  rows = [packed.pack(groups, piece, slice(0, 1), T) for piece in pieces or plan_of(groups)]
  grads, metrics, logp_BRT = value_and_gradient(rows, groups)
  wanted_grads, wanted, unpacked_logp = unpacked()
  assert_close(metrics["loss"], wanted["loss"], 1e-6)
  assert_close(grads, wanted_grads, 1e-5)
  assert_close(logp_BRT, unpacked_logp, 1e-5)


def test_a_response_gets_no_gradient_from_its_neighbours():
  """Exactly none: by the embeddings of every place, of the scores of one response."""
  groups = groups_of()
  rows = packed.pack(groups, Piece(256, 96, 1, (((4, 2, 0, 6, 1, 7, 3, 5),),)), slice(0, 1), T)
  mine = np.asarray(rows.group_XS[0]) == 2  # its prompt and, of the responses, number 1
  mine[rows.P :] &= np.asarray(rows.response_XW[0]) == 1

  visual = jit(MODEL.encode)(PARAMS, groups)

  def scores(embedding_SD):
    # Every place has an id of its own, so that a row of the table is a place.
    params = {**PARAMS, "text": {**PARAMS["text"], "embed": embedding_SD}}
    ids = jnp.arange(rows.tokens_XS.shape[1], dtype=jnp.int32)[None]
    there = dataclasses.replace(rows, tokens_XS=ids)
    hidden_SD = MODEL.hidden(params, there, visual)[0, rows.P :]
    return jnp.sum(jnp.where(mine[rows.P :, None], hidden_SD, 0) ** 2)

  rng = np.random.default_rng(0)
  table = rng.standard_normal((rows.tokens_XS.shape[1], 16)).astype(np.float32)
  grad_S = np.abs(jit(jax.grad(scores))(table)).max(-1)
  text = np.append(np.asarray(rows.visual_XP[0]) < 0, np.ones(rows.response_XW.shape[1], bool))
  assert (grad_S[~mine] == 0).all() and (grad_S[mine & text] > 1e-6).all()


def test_on_a_mesh_rows_read_the_media_of_their_own_shard():
  """2 x 2 x 2 devices: loss and gradients of one; the looked-up media move between no devices."""
  groups = groups_of()
  mesh = sharding.make_mesh(2, 2, 2)
  pieces = plan_of(groups, shards=4)
  with jax.set_mesh(mesh):
    rows = [
      sharding.put_batch(mesh, packed.pack(groups, piece, slice(0, 4), T)) for piece in pieces
    ]
    placed = sharding.put_batch(mesh, groups)

    def loss_fn(params, rows, groups):
      hidden_XSD = MODEL.hidden(params, rows, MODEL.encode(params, groups))
      logp_XW = losses.token_logps(
        losses.predictors(hidden_XSD, rows), MODEL.unembedding(params), rows.targets_XW, 1.0, 5
      )
      loss, count = losses.sft(logp_XW, rows.mask_XW)
      return loss, optim.Figures(count, {"loss": loss})

    one = jit(functools.partial(optim.add, loss_fn))
    grads, figures = optim.over(
      rows, optim.nothing(PARAMS), lambda grads, piece: one(PARAMS, grads, piece, placed)
    )
    grads, metrics = optim.averaged(grads, figures)
  assert_close(metrics["loss"], unpacked()[1]["loss"], 1e-6)
  assert_close(grads, unpacked()[0], 1e-5)

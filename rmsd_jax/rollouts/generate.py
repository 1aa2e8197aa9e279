"""Sampling: the prompt is prefilled once, its R responses share that cache and grow in lockstep.
A response that is done leaves when as few are left as fit half the rows.

    out = generate(model, params, groups)                                      the likeliest reply
    out = generate(model, params, groups, key, samples=8, max_tokens=64, temperature=0.8)
    out.responses_BRT, out.length_BR, out.logp_BRT, out.finished_BR

Every response draws with a key of its own, which follows from its prompt's: what is drawn does not
depend on who else is in the batch, in which order, on how many devices or processes.

Axes: B prompts, R responses, T response tokens, V vocabulary, Z shards of the mesh, X rows of each,
one for a response that is under way.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rmsd_jax.core import sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.models import layers
from rmsd_jax.models.student import Qwen3VL, Underway, Visual

HALVINGS = 2  # of the rows: each is a loop of the program
FEWEST = 8  # rows of a shard that are worth halving to
BLOCK = 128  # tokens of the vocabulary that `categorical` looks at together


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """R sampled responses per prompt, the end-of-turn token included where one was reached."""

  responses_BRT: jax.Array  # int32, `pad_id` behind the end
  length_BR: jax.Array  # int32 tokens
  logp_BRT: jax.Array  # fp32 nats under the sampling distribution, 0 behind the end
  finished_BR: jax.Array  # bool, False for a response that was cut off at T


@functools.partial(
  jax.jit,
  static_argnames=(
    "model", "samples", "max_tokens", "stop_ids", "pad_id", "temperature", "top_p", "top_k",
    "gather", "tensor", "pieces",
  ),
)  # fmt: skip
def generate(
  model: Qwen3VL,
  params: dict,
  groups: PromptGroups,
  key: jax.Array | None = None,
  *,
  samples: int = 1,
  max_tokens: int = 256,
  stop_ids: tuple[int, ...] | None = None,
  pad_id: int | None = None,
  temperature: float = 0.0,
  top_p: float = 1.0,
  top_k: int = 0,
  gather: bool = True,
  tensor: int = 0,
  pieces: int = 1,
  visual: Visual | None = None,
) -> Samples:
  """Samples responses. Jitted: each new model, shape or option is compiled once.

  Args:
    key: of the random draws, one per prompt [B] (see `prompt_keys`) or one for all, of which each
      prompt's is that of its place in the batch; not needed when greedy.
    samples: R, responses per prompt.
    max_tokens: T, most tokens of a response, the one that ends it included.
    stop_ids: tokens that end a response; None: those of the model's folder.
    pad_id: fills up behind the end; None: that of the model's folder.
    temperature: 0 is greedy; log-probs are then those of temperature 1.
    top_p: smallest set of tokens whose probability reaches top_p; 1 keeps all.
    top_k: most likely tokens kept; 0 keeps all.
    gather: bring the weights together once, before the loop, instead of for every token; takes
      2 bytes a parameter (in bfloat16) over `tensor` on each device.
    tensor: devices that decode together, each with its heads and its part of the MLP and of the
      vocabulary, the prompts of all; neighbours along mesh.fsdp join for it. 0: as mesh.tensor.
    pieces: parts of the prompts of a shard that are answered one after another, where their caches
      together do not fit; each reads the weights anew.
    visual: the prompts' encoded media, if another model of the step has it already.

  The loop ends with the longest response. Log-probs are of the sampled distribution.
  """
  _check_sampling(key, temperature, top_p, top_k)
  key_BR = _response_keys(key, len(groups.prompt_length_B), samples) if temperature else None
  # In the layout of the mesh before it is grouped otherwise: what is given without one would get
  # one from inside, which means nothing out here.
  groups, key_BR = jax.tree.map(sharding.by_prompt, (groups, key_BR))
  stop_ids = model.config.stop_ids if stop_ids is None else stop_ids
  pad_id = model.config.pad_id if pad_id is None else pad_id
  visual = model.encoded(params, groups, visual)
  # The barrier keeps XLA from gathering weights before the tower has run: together they are much.
  params, visual = jax.lax.optimization_barrier((params, visual))
  with sharding.in_groups_of(tensor):
    params = model.for_decoding(params, gather)
    draw = _drawing(model.unembedding(params), pad_id, temperature, top_p, top_k)
    ends = lambda token: jnp.isin(token, jnp.array(stop_ids, jnp.int32))
    sizes = samples, max_tokens, pad_id
    respond = lambda piece: _respond(model, params, *piece, sizes, draw, ends)
    drawn = sharding.in_turn(respond, (groups, visual, key_BR), pieces)
  return jax.tree.map(sharding.by_prompt, drawn)  # a process reads those of its own prompts


def _drawing(table_VD, pad_id: int, temperature: float, top_p: float, top_k: int):
  """(hidden [.., D], keys, t, done) -> tokens of place t and their log-probs; of responses that are
  done, padding and 0."""

  def draw(hidden, keys, t, done):
    # A key for each place, of the response's own and the place alone.
    keys = None if keys is None else _each(jax.random.fold_in)(keys, t)
    # Each device of a tensor group draws for its part of the rows.
    logits = sharding.logits_by_row(layers.logits(hidden, table_VD))
    drawn = sample_token(logits, keys, temperature, top_p, top_k)
    token, logp = map(sharding.by_prompt, drawn)
    return jnp.where(done, pad_id, token), jnp.where(done, 0.0, logp)

  return draw


def prompt_keys(key: jax.Array, row_B: jax.Array) -> jax.Array:
  """Keys [B] for `generate`: that of a prompt follows from `key` and its number alone.

  Args:
    key: one for all, such as that of a seed, or of a seed and a step.
    row_B: int, what tells prompts apart for good, such as their rows in the pool.
  """
  return jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)


def keys_of_rows(mesh: Mesh, key: jax.Array, row_B: np.ndarray) -> jax.Array:
  """`prompt_keys` of this process's prompts by their rows in the pool, split over the mesh: what is
  drawn depends neither on the mesh nor on the order of a batch."""
  return prompt_keys(key, sharding.put_batch(mesh, row_B.astype(np.uint32)))


def _response_keys(key: jax.Array, B: int, samples: int) -> jax.Array:
  """The keys [B, R] of responses: the r-th of a prompt has fold_in(the prompt's, r), whatever R."""
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)  # of jax.random.PRNGKey
  key_B = key if key.ndim else prompt_keys(key, jnp.arange(B))
  if key_B.shape != (B,):
    raise ValueError(f"{len(key_B)} keys for {B} prompts; give one for all, or one per prompt")
  return jax.vmap(prompt_keys, (0, None))(key_B, jnp.arange(samples))


def _each(draw):
  """`draw(key, ..)` of one response, for keys [B, R]; the other arguments are shared."""
  return jax.vmap(jax.vmap(draw, (0, None)), (0, None))


def _check_sampling(key, temperature: float, top_p: float, top_k: int) -> None:
  if temperature and key is None:
    raise ValueError("sampling at a temperature above 0 needs a key, e.g. jax.random.key(0)")
  if not (0 < top_p <= 1 and top_k >= 0 and 0 <= temperature < math.inf):
    raise UserError(
      f"top_p={top_p}, top_k={top_k}, temperature={temperature}: top_p must be in (0, 1], top_k 0 "
      "or more, the temperature 0 or more"
    )


class _Rows(NamedTuple):
  """The responses under way, a row each, and where they stand."""

  place_ZX: jax.Array  # which response of the shard, as in `Underway`
  key_ZX: jax.Array | None  # of its draws
  token_ZX: jax.Array  # the last one drawn
  done_ZX: jax.Array  # ended before that token

  def at(self, index_ZX: jax.Array) -> "_Rows":
    """Only these rows of each shard, in this order."""
    take = jax.vmap(lambda x_X, index_X: x_X[index_X])
    return jax.tree.map(lambda x_ZX: sharding.by_prompt(take(x_ZX, index_ZX)), self)


def _respond(
  model: Qwen3VL, params, groups: PromptGroups, visual: Visual, key_BR, sizes, draw, ends
) -> Samples:
  """Prefills the prompts, and then the loops of `generate`: with all rows, with half of them, ..

  Args:
    key_BR: of the responses, or None.
    sizes: R, T and the id of padding.
    draw: see `_drawing`.
    ends: tokens -> whether each ends its response.
  """
  samples, max_tokens, pad_id = sizes
  # The hidden states that predict the first tokens, and the caches.
  last_BD, cache = model.prefill(params, groups, samples, max_tokens, visual)
  B = len(last_BD)
  Z = sharding.shards_here()
  first, *fewer = rows_of_loops(B // Z * samples)
  by_row = lambda x_BR: sharding.by_prompt(x_BR.reshape(Z, first, *x_BR.shape[2:]))

  # The first tokens come from the prompt's last hidden state, the same for all responses:
  # [B, D] -> [B, R, D]. Every later one comes from a step of the decoder.
  first_BRD = jnp.broadcast_to(last_BD[:, None], (B, samples, last_BD.shape[-1]))
  nobody = by_row(jnp.zeros((B, samples), bool))
  key_ZX = None if key_BR is None else by_row(key_BR)
  token_ZX, logp_ZX = draw(by_row(first_BRD), key_ZX, 0, nobody)
  place_ZX = jnp.broadcast_to(jnp.arange(first), (Z, first))
  rows = _Rows(place_ZX, key_ZX, token_ZX, nobody)
  out = _Out(
    token_ZMT=by_row(jnp.full((B, samples, max_tokens), pad_id, jnp.int32)),
    logp_ZMT=by_row(jnp.zeros((B, samples, max_tokens), jnp.float32)),
    length_ZM=by_row(jnp.zeros((B, samples), jnp.int32)),
  ).with_tokens(rows, 0, logp_ZX)

  loop = 0, rows, out, cache
  for left in fewer:
    t, rows, out, cache = _loop(model, params, groups, samples, loop, left, draw, ends)
    # Those that are done leave; the sort is stable.
    kept_ZX = jnp.argsort(rows.done_ZX | ends(rows.token_ZX), axis=1)[:, :left]
    loop = t, rows.at(kept_ZX), out, cache.with_first(kept_ZX)
  _, _, out, _ = _loop(model, params, groups, samples, loop, 0, draw, ends)
  return _samples(out, B, samples, ends)


def _loop(model, params, groups, samples: int, loop, left: int, draw, ends):
  """Decodes tokens until T, or until no shard has more than `left` rows that are not done."""
  under_way = Underway.of(groups, samples, loop[1].place_ZX)
  max_tokens = loop[2].token_ZMT.shape[2]

  def body(loop):
    # `done` is of places before t: the token that ends a response is still a part of it, and from
    # the next place on there is padding.
    t, rows, out, cache = loop
    done_ZX = rows.done_ZX | ends(rows.token_ZX)
    hidden_ZXD, cache = model.step(params, rows.token_ZX, t, groups, under_way, cache)
    token_ZX, logp_ZX = draw(hidden_ZXD, rows.key_ZX, t + 1, done_ZX)
    rows = rows._replace(token_ZX=token_ZX, done_ZX=done_ZX)
    return t + 1, rows, out.with_tokens(rows, t + 1, logp_ZX), cache

  def goes_on(loop):
    t, rows, *_ = loop
    alive_ZX = ~(rows.done_ZX | ends(rows.token_ZX))
    # The last place needs no step behind it: nobody reads what would follow.
    return (t + 1 < max_tokens) & (alive_ZX.sum(1).max() > left)

  return jax.lax.while_loop(goes_on, body, loop)


class _Out(NamedTuple):
  """What was drawn: of all M = B / Z * R responses of a shard, by their places."""

  token_ZMT: jax.Array
  logp_ZMT: jax.Array
  length_ZM: jax.Array

  def with_tokens(self, rows: _Rows, t, logp_ZX) -> "_Out":
    """With token t of the rows; of those that are done, padding."""
    put = jax.vmap(lambda x_MT, place_X, new_X: x_MT.at[place_X, t].set(new_X, unique_indices=True))
    longer = jax.vmap(lambda x_M, place_X, new_X: x_M.at[place_X].max(new_X, unique_indices=True))
    return _Out(
      put(self.token_ZMT, rows.place_ZX, rows.token_ZX),
      put(self.logp_ZMT, rows.place_ZX, logp_ZX),
      longer(self.length_ZM, rows.place_ZX, jnp.where(rows.done_ZX, 0, t + 1)),
    )


def _samples(out: _Out, B: int, samples: int, ends) -> Samples:
  by_prompt = lambda x_ZM: sharding.by_prompt(x_ZM.reshape(B, samples, *x_ZM.shape[2:]))
  responses_BRT, logp_BRT, length_BR = map(by_prompt, out)
  last_BR = _last(responses_BRT, length_BR)
  return Samples(responses_BRT, length_BR, logp_BRT, finished_BR=ends(last_BR))


def _last(responses_BRT, length_BR):
  """The last token of each response."""
  return jnp.take_along_axis(responses_BRT, length_BR[..., None] - 1, 2)[..., 0]


def rows_of_loops(rows: int) -> list[int]:
  """Rows of a shard in each loop of `generate`: one ends when those that are left fit the next."""
  sizes = [rows]
  while len(sizes) <= HALVINGS and sizes[-1] >= 2 * FEWEST:
    sizes.append(-(-sizes[-1] // 2))
  return sizes


def ended_by(samples: Samples, token: int) -> Samples:
  """Samples of which only those that end in `token` count as finished."""
  last_BR = _last(samples.responses_BRT, samples.length_BR)
  finished_BR = sharding.by_prompt(samples.finished_BR & (last_BR == token))
  return dataclasses.replace(samples, finished_BR=finished_BR)


def sample_token(
  logits_BRV, key_BR: jax.Array | None, temperature: float, top_p: float, top_k: int
):
  """One token per response, int32 [B, R], and its log-prob, fp32 [B, R]; see `generate`.

  Each response is drawn with its own key, which a greedy one does without.
  """
  logits_BRV = _restrict(logits_BRV / (temperature or 1.0), top_p, top_k)
  # One pass of exponentials serves the draw and the log-prob: [B, R, V] weights, never normalised.
  top_BR = logits_BRV.max(-1)
  weights_BRV = jnp.exp(logits_BRV - top_BR[..., None])
  token_BR = categorical(key_BR, weights_BRV) if temperature else jnp.argmax(logits_BRV, -1)
  chosen_BR = jnp.take_along_axis(logits_BRV, token_BR[..., None], -1)[..., 0]
  return token_BR, chosen_BR - top_BR - jnp.log(weights_BRV.sum(-1))


def categorical(keys: jax.Array, weights: jax.Array) -> jax.Array:
  """Draws an index of the last axis in proportion to weights >= 0 (fp32 [B, R, V], sum above 0),
  each with its own key of keys [B, R].

  By inversion: first a block of `BLOCK` neighbours, then a place in it. Two uniforms a row instead
  of the V of `jax.random.categorical`, whose noise costs more than the logits on a CPU.
  """
  V = weights.shape[-1]
  padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -V % BLOCK)])
  blocks = padded.reshape(*weights.shape[:-1], -1, BLOCK)
  # [.., V] -> [.., blocks, BLOCK]; places that fill up the last block weigh 0 and are never drawn.
  u = _each(jax.random.uniform)(keys, (2,))
  block = _invert(blocks.sum(-1), u[..., 0])
  place = _invert(jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :], u[..., 1])
  return block * BLOCK + place


def _invert(weights: jax.Array, u: jax.Array) -> jax.Array:
  """The first index at which the running sum exceeds u in [0, 1) of the total; its weight is > 0,
  however the sum is rounded."""
  # A sum that is made in parallel is rounded in an order of its own and may step up or down where a
  # weight is 0. Such places are put to 0, and the total is the largest of the others.
  running = jnp.where(weights > 0, jnp.cumsum(weights, -1), 0)
  return jnp.argmax(running > u[..., None] * running.max(-1, keepdims=True), -1)


def _restrict(logits_BRV, top_p: float, top_k: int):
  """Drops all but the top_k tokens, then all outside the top_p nucleus."""
  if top_k:
    lowest = jax.lax.top_k(logits_BRV, min(top_k, logits_BRV.shape[-1]))[0][..., -1:]
    logits_BRV = jnp.where(logits_BRV < lowest, -jnp.inf, logits_BRV)
  if top_p < 1:
    ordered = jnp.sort(logits_BRV, -1, descending=True)
    # The token that reaches top_p is kept: what counts is the probability before it.
    before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
    lowest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
    logits_BRV = jnp.where(logits_BRV < lowest, -jnp.inf, logits_BRV)
  return logits_BRV

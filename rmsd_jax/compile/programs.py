"""The programs of a run and what they are given, as shapes: to compile, and to reckon."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from rmsd_jax import train_rl, train_sft
from rmsd_jax.compile import cost
from rmsd_jax.core import named, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket, PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.core.packing import Piece, deal
from rmsd_jax.method import custom_rewards
from rmsd_jax.method.carriers import Pairs, RuleTerms
from rmsd_jax.models import attention, hf
from rmsd_jax.models.config import ModelConfig
from rmsd_jax.rollouts import generate
from rmsd_jax.tasks import Rules
from rmsd_jax.training import imitation, pieces
from rmsd_jax.training import state as state_lib

LANES = 128  # sizes that any attention can take are multiples of this


class Program(NamedTuple):
  """A jitted program of a step, and what all its runs in a step take."""

  function: Callable
  arguments: tuple  # abstract
  runs: int
  work: cost.Work
  least: float  # HBM bytes of one device, without those of decoding
  decoding: "Decoding | None" = None
  of_warmup: bool = False  # a joint warm-up has it in place of the policy's

  def hbm_bytes(self, traffic: dict[cost.Turn, int]) -> float:
    """HBM bytes of one device in a step; `traffic` of decoding a token where it is known."""
    if not self.decoding:
      return self.least
    of_turns = sum(traffic[turn] for turn in self.decoding.turns) if traffic else 0
    return self.least + (of_turns or self.decoding.formula)


class Decoding(NamedTuple):
  """The tokens of a step's rollouts."""

  turns: list[cost.Turn]
  every: list[list[cost.Turn]]  # of each loop of the program, one for each window
  formula: float  # HBM bytes of one device for all turns
  parts: int  # of the prompts, one after another; each has the loops

  def of_loops(self) -> list[float]:
    """Turns that each loop makes in a part, on average."""
    rows = [turns[0].rows for turns in self.every]
    return [sum(turn.rows == n for turn in self.turns) / self.parts for n in rows]


def programs(config, mesh, mean: float = 0.0) -> dict[str, Program]:
  """The programs of a run. What has pieces gets the largest that may occur.

  Args:
    mean: of the responses' lengths, as a share of T; 0: all are T.
  """
  makers = {"sft": _sft_programs, "rl": _rl_programs}
  if config.compile.stage not in makers:
    raise UserError(f"compile.stage is {config.compile.stage!r}; choose sft or rl")
  return makers[config.compile.stage](config, mesh, mean)


def _sft_programs(config, mesh, mean: float) -> dict[str, Program]:
  model = hf.load_model(**config.model)
  bucket = Bucket(*config.compile.bucket)
  c = model.config
  encoding = cost.vision(c.vision, config.batch * bucket.frames, bucket.patches)
  state = state_lib.abstract(mesh, model, config.trained, train_sft.make_optims(config))
  steps = train_sft.make_steps(config, mesh)
  groups = abstract_groups(config, c, mesh, bucket, 1)
  visual = _split(mesh, jax.eval_shape(steps.encode, state, groups))
  imitate = _imitate(config, mesh, mean, model, state, steps, groups, visual)
  grads, figures = imitate.arguments[1], jax.eval_shape(steps.imitate, *imitate.arguments)[1]
  made = {
    "encode": Program(steps.encode, (state, groups), 1, encoding, 0.0),
    "imitate": imitate,
    "train": Program(
      steps.train, (state, grads, figures), 1, cost.Work(), update_bytes(mesh, state)
    ),
  }
  if config.supervision.target == "near":  # which scores all K responses before
    K = config.data.responses
    plan, size = planned(config, mesh, model, K, mean)
    rows = abstract_rows(mesh, largest(config, plan[0]), bucket.response)
    scored = (state, rows, abstract_groups(config, c, mesh, bucket, K), visual)
    read = reading_bytes(config, mesh, state, len(plan))
    made["near"] = Program(steps.near, scored, len(plan), cost.forward(c, size, True), read)
  return made


def _imitate(config, mesh, mean: float, model, state, steps, groups, visual) -> Program:
  """Stage 1's gradient, of stage 1 and of a joint warm-up."""
  plan, size = planned(config, mesh, model, 1, mean)
  rows = abstract_rows(mesh, largest(config, plan[0]), Bucket(*config.compile.bucket).response)
  arguments = (state, gradients_of(mesh, state["student"]), rows, groups, visual)
  work = cost.sft(model.config, size, config.model.remat, config.logit_chunk)
  read = reading_bytes(config, mesh, state, passes_of(config) * len(plan))
  return Program(steps.imitate, arguments, len(plan), work, read)


def _rl_programs(config, mesh, mean: float) -> dict[str, Program]:
  model = hf.load_model(**config.model)
  bucket = Bucket(*config.compile.bucket)
  c = model.config
  N, K = config.rollouts.samples, config.data.responses
  optims = train_rl.make_optims(config)
  teacher = imitation.teacher_of(config, model)
  of = (optims, Rules(**config.tasks).names, teacher)
  state = state_lib.abstract(mesh, model, config.trained, *of)
  steps = train_rl.make_steps(config, mesh)
  groups = abstract_groups(config, c, mesh, bucket, K)
  rollout = _rollout(config, mesh, mean, model, state, steps, groups)
  samples, visual = _split(mesh, jax.eval_shape(steps.rollout, *rollout.arguments))
  score_BN, terms, pairs = abstract_rewards(config, mesh)
  batch, spread, _ = jax.eval_shape(steps.reward, state["running"], score_BN, samples, terms, pairs)
  plan, size = planned(config, mesh, model, N, mean)
  grads = gradients_of(mesh, state["student"])
  rows = abstract_rows(mesh, largest(config, plan[0]), bucket.response)
  improve = (state, grads, rows, groups, visual, _split(mesh, batch))
  figures = jax.eval_shape(steps.improve, *improve)[1]
  work = cost.policy(c, size, config.model.remat, config.logit_chunk, teacher and teacher.config)
  read = reading_bytes(config, mesh, state, (passes_of(config) + 1) * len(plan))
  update = update_bytes(mesh, state)
  made = {
    "rollout": rollout,
    "improve": Program(steps.improve, improve, len(plan), work, read),
    "policy": Program(steps.policy, (state, grads, figures, spread), 1, cost.Work(), update),
  }
  if "discriminator" in state:
    learn = jax.ShapeDtypeStruct((), jnp.bool_)
    plan, size = planned(config, mesh, model, N + K, mean)
    grads = gradients_of(mesh, state["discriminator"])
    rows = abstract_rows(mesh, largest(config, plan[0]), bucket.response)
    judge = (state, grads, rows, groups, visual, pairs)
    figures = jax.eval_shape(steps.judge, *judge)[1]
    figures = figures._replace(parts=_split(mesh, figures.parts))
    work = cost.discriminator(c, size, config.model.remat)
    read = reading_bytes(config, mesh, state, passes_of(config) * len(plan))
    arguments = (state, grads, figures, groups, samples, pairs, learn)
    made["judge"] = Program(steps.judge, judge, len(plan), work, read)
    made["discriminator"] = Program(steps.discriminator, arguments, 1, cost.Work(), update)
    if config.discriminator.joint_warmup and config.discriminator.warmup_steps:
      imitate = _imitate(config, mesh, mean, model, state, steps, groups, visual)
      made["imitate"] = imitate._replace(of_warmup=True)
  return made


def _rollout(config, mesh, mean: float, model, state, steps, groups) -> Program:
  bucket = Bucket(*config.compile.bucket)
  c, B, T = model.config, config.batch, bucket.response
  key = jax.eval_shape(lambda: jax.random.key(0))
  # The devices that decode together are one shard.
  grouped = sharding.grouped(mesh.abstract_mesh, config.rollouts.tensor)
  shards, devices = sharding.batch_shards(grouped), grouped.shape["tensor"]
  _, length_BN = dealt_lengths(config, mesh, config.rollouts.samples, mean)
  parts = sharding.pieces_of(B // shards, config.rollouts.pieces)
  rows = generate.rows_of_loops(length_BN.size // shards // parts)
  window = model.window_of(T)
  # One piece after another, each until its longest response is done.
  length_pZX = length_BN.reshape(shards, parts, -1).swapaxes(0, 1)
  turns = [turn for length_ZX in length_pZX for turn in cost.turns(length_ZX, rows, window, T)]
  on_chip = attention.resolve(model.attention, model.dtype) == "splash"
  caches = cost.decode_bytes(c.text, bucket.prompt, B // shards // parts, turns, on_chip) / devices
  read = functools.partial(reading_bytes, config, grouped, state, logits=True)
  work = cost.rollout(c, B, bucket, shards, turns)
  every = cost.every_turn(rows, window, T)
  decoding = Decoding(turns, every, caches + read(len(turns)), parts)
  return Program(steps.rollout, (state, groups, key), 1, work, read(parts), decoding)


def passes_of(config) -> int:
  """How often a piece reads the weights: forward, two products backward, the forward again."""
  return 3 + (config.model.remat == "all")


def abstract_groups(config, model: ModelConfig, mesh, bucket: Bucket, R: int) -> PromptGroups:
  """The shapes of a batch with R responses, split over the mesh."""
  B, (P, T, F, S) = config.batch, bucket
  over = NamedSharding(mesh, sharding.BATCH)
  array = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype, sharding=over)
  return PromptGroups(
    tokens_BP=array(B, P),
    positions_B3P=array(B, 3, P),
    prompt_length_B=array(B),
    next_position_B=array(B),
    visual_BP=array(B, P),
    patches_BFSC=array(B, F, S, model.vision.patch_values, dtype=jnp.uint8),
    grid_BF2=array(B, F, 2),
    responses_BRT=array(B, R, T),
    response_length_BR=array(B, R),
  )


def largest(config, piece: Piece) -> Piece:
  """A piece of all the places that `row_tokens` allows: shorter responses than a plan's fill up its
  rows with more groups, and memory has to suffice for any batch."""
  spare = config.row_tokens // piece.deep - piece.P - piece.W
  return piece._replace(W=piece.W + max(spare, 0) // LANES * LANES)


def abstract_rows(mesh, piece: Piece, T: int) -> Rows:
  """The shapes of a piece of packed rows, split over the mesh."""
  X, P, W = len(piece.rows) * piece.deep, piece.P, piece.W
  integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  rows = Rows(
    tokens_XS=integers(X, P + W),
    positions_X3S=integers(X, 3, P + W),
    group_XS=integers(X, P + W),
    visual_XP=integers(X, P),
    response_XW=integers(X, W),
    start_XW=integers(X, W),
    from_XW=integers(X, W),
    last_XW=jax.ShapeDtypeStruct((X, W), jnp.bool_),
    longest=T,
  )
  return _split(mesh, rows)


def abstract_rewards(config, mesh) -> tuple[jax.ShapeDtypeStruct, RuleTerms, Pairs]:
  """What the host part of a stage 2 step hands to its programs: scores [B, N], terms, pairs."""
  B, N = config.batch, config.rollouts.samples
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  number = array(jnp.float32, B, N)
  pairs = Pairs(
    match_BN=array(jnp.int32, B, N),
    paired_BN=array(jnp.bool_, B, N),
    differs_BN=array(jnp.bool_, B, N),
    weight_BN=number,
    survivors_B=array(jnp.float32, B),
    closed_B=array(jnp.bool_, B),
    task_B=array(jnp.int32, B),
  )
  custom = dict.fromkeys(custom_rewards.of_config(config.reward).functions, number)
  terms = RuleTerms(*(number for _ in RuleTerms.names()), custom=custom)
  return _split(mesh, (number, terms, pairs))


def _split(mesh, tree):
  """Abstract arrays whose prompts are split over the mesh."""
  over = NamedSharding(mesh, sharding.BATCH)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over), tree)


def lengths(bucket: Bucket, B: int, R: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of B prompts and of their R responses each: all of them full, or about `mean` of T.

  Prompts of 85 to 100 % of P. Of one seed, so that a plan is always the same.
  """
  if not mean:
    return np.full(B, bucket.prompt), np.full((B, R), bucket.response)
  rng = np.random.default_rng(0)
  response_BR = response_lengths(rng, B, R, mean, bucket.response)
  return rng.integers(math.ceil(0.85 * bucket.prompt), bucket.prompt + 1, B), response_BR


def response_lengths(rng, B: int, R: int, mean: float, T: int) -> np.ndarray:
  """Tokens of R responses to each of B prompts: log-normal, 2 % cut off at T, half the variance
  between prompts; int [B, R]."""
  quantile = 2.054  # of the normal distribution, above which 2 % lie
  spread = quantile - math.sqrt(quantile**2 + 2 * math.log(mean))
  centre = math.log(mean * T) - spread**2 / 2
  noise = (rng.standard_normal((B, 1)) + rng.standard_normal((B, R))) / math.sqrt(2)
  return np.clip(np.ceil(np.exp(centre + spread * noise)), 1, T).astype(int)


def dealt_lengths(config, mesh, R: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
  """`lengths`, prompts in the order in which the loader deals them to the shards."""
  prompt_B, response_BR = lengths(Bucket(*config.compile.bucket), config.batch, R, mean)
  if mean:
    order = deal(prompt_B + response_BR.sum(1), sharding.batch_shards(mesh))
    prompt_B, response_BR = prompt_B[order], response_BR[order]
  return prompt_B, response_BR


def planned(config, mesh, model, R: int, mean: float) -> tuple[list[Piece], cost.Size]:
  """The pieces of a batch with R responses a prompt, and how large they are."""
  bucket = Bucket(*config.compile.bucket)
  prompt_B, response_BR = dealt_lengths(config, mesh, R, mean)
  sizes = pieces.sizes_of(model, bucket.prompt, bucket.response, R, config.row_tokens)
  plan = pieces.planned(mesh, model, prompt_B, response_BR.sum(1), sizes)
  return plan, cost.size(plan, prompt_B, response_BR)


def gradients_of(mesh, weights):
  """Abstract gradients, which lie as their weights do."""
  return sharding.abstract(mesh, weights, state_lib.RULES)


def reading_bytes(config, mesh, state: dict, passes: int, logits: bool = False) -> float:
  """HBM bytes of one device for `passes` readings of the decoder's gathered weights, in the type of
  the activations; with `logits`, of the table that they come from too."""
  width = np.dtype(jnp.dtype(config.model.dtype)).itemsize
  student = named.flatten(state_lib.weights(state))
  read = sum(leaf.size for name, leaf in student.items() if name.startswith("text/layers"))
  if logits:
    read += student["text/head" if "text/head" in student else "text/embed"].size
  return passes * width * read / mesh.shape["tensor"]


def update_bytes(mesh, state: dict) -> float:
  """HBM bytes of one device to read and write its share of the learning weights and moments."""
  moments = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state["student_optim"]))
  learned = sum(x.size * 4 for x in jax.tree.leaves(state["student"]))
  return (2 * moments + 4 * learned) / (mesh.shape["fsdp"] * mesh.shape["tensor"])

"""A batch as packed rows on the mesh: planned over all processes, each filling its own."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from rmsd_jax.core import packed, sharding
from rmsd_jax.core.groups import PromptGroups, join_responses
from rmsd_jax.core.packed import Rows
from rmsd_jax.core.packing import Piece, Sizes, plan
from rmsd_jax.method.carriers import Pairs
from rmsd_jax.models import attention
from rmsd_jax.models.student import Qwen3VL

LANES = 16  # sizes are multiples of this where attention asks for nothing


def sizes_of(model: Qwen3VL, P: int, T: int, R: int, most: int) -> Sizes:
  """The steps of padded sizes for groups of a bucket.

  Args:
    P, T: tokens of the bucket's prompts and responses.
    R: responses of a group.
    most: `config.row_tokens`.
  """
  # A fourth of the prompts' most, and a 24th or less of the responses': a power of two, so that
  # rows of several groups are multiples of a kernel's block. tests/bench/padding.py says what is
  # lost.
  W = 2 ** int(math.log2(max(R * T / 24, 1)))
  steps = Sizes(P=-(-P // 4), W=W, most=most, lanes=LANES)
  if attention.resolve(model.attention, model.dtype) != "splash":
    return steps
  from rmsd_jax.models import splash  # Pallas for TPU: imported where it is used

  return steps._replace(lanes=splash.LANES, block=splash.BLOCK if P > 4 * splash.BLOCK else 1)


def planned(
  mesh: Mesh, model: Qwen3VL, prompt_B: np.ndarray, response_B: np.ndarray, sizes: Sizes
) -> list[Piece]:
  """The plan of a global batch from its lengths, see `packing.plan`."""
  return plan(prompt_B, response_B, sharding.batch_shards(mesh), sizes, model.row_cost)


def rows_of(
  mesh: Mesh, model: Qwen3VL, groups: PromptGroups, most: int, use_BR: np.ndarray | None = None
) -> list[Rows]:
  """The pieces of a batch, on the devices.

  Args:
    groups: this process's prompts with their responses, as numpy.
    most: `config.row_tokens`.
    use_BR: bool, the responses that take part; None: all. Others cost nothing.
  """
  P = groups.tokens_BP.shape[1]
  _, R, T = groups.responses_BRT.shape
  length_BR = np.asarray(groups.response_length_BR)
  length_BR = length_BR if use_BR is None else length_BR * use_BR
  groups = groups.with_responses(groups.responses_BRT, length_BR)
  lengths_B2 = np.stack([groups.prompt_length_B, length_BR.sum(1)], 1)
  # Every process plans the whole batch, alike, and fills its own part.
  prompt_B, response_B = sharding.every_row(lengths_B2).T
  pieces = planned(mesh, model, prompt_B, response_B, sizes_of(model, P, T, R, most))
  count = sharding.batch_shards(mesh) // jax.process_count()
  own = slice(jax.process_index() * count, (jax.process_index() + 1) * count)
  return [sharding.put_batch(mesh, packed.pack(groups, piece, own, T)) for piece in pieces]


def of_pairs(
  mesh: Mesh,
  model: Qwen3VL,
  teachers: PromptGroups,
  students: PromptGroups,
  finished_BN: np.ndarray,
  pairs: Pairs,
  most: int,
) -> list[Rows]:
  """The pieces that the discriminator scores: N rollouts, then K teacher responses of a group.

  A rollout that was cut off gets no score, and a teacher response without a rollout needs none.

  Args:
    teachers, students: this process's prompts with the teacher's responses and with the rollouts.
    finished_BN: bool, the rollout came to its end.
    pairs: of this process, as numpy.
    most: `config.row_tokens`.
  """
  K = teachers.responses_BRT.shape[1]
  match_BN = np.where(pairs.paired_BN, pairs.match_BN, -1)
  used_BK = np.any(match_BN[..., None] == np.arange(K), 1)
  use_BR = np.concatenate([finished_BN, used_BK], 1)
  return rows_of(mesh, model, join_responses(students, teachers), most, use_BR)

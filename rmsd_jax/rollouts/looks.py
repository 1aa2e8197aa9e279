"""Held-out looks: what the student of a run answers to prompts that training never sees.

Axes: B prompts.
"""

from collections.abc import Callable, Mapping

import jax

from rmsd_jax.core import sharding
from rmsd_jax.data import epochs, loader
from rmsd_jax.data.batch import blinded
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.store import Pool
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts import held_out
from rmsd_jax.rollouts.held_out import WAYS, Ways
from rmsd_jax.tasks import Rules


class Look:
  """Asks and grades. It draws with keys of its own, by the row of the pool: every look at the same
  weights is alike, and training draws as without it.

  Args:
    pool: whose rows are asked.
    folder: of the model, for its tokenizer.
    batch: most prompts at a time, on all devices together; a multiple of the mesh's shards.
    seed: of the samples.
    samples: sampled replies a prompt.
    rollouts: options of `generate.generate`.
    pass_above, blind: as the config has them.
    around: times the programs, such as `Clock.around`.
  """

  def __init__(
    self,
    pool: Pool,
    model: Qwen3VL,
    mesh: jax.sharding.Mesh,
    folder: str,
    rules: Rules,
    *,
    batch: int,
    seed: int,
    samples: int,
    rollouts: Mapping,
    pass_above: float,
    blind: bool,
    around: Callable[[Ways], Ways],
  ):
    self._ways = around(held_out.make_ways(model, mesh, rollouts, samples))
    self._pool = pool
    self._mesh = mesh
    self._tokenizer = ChatTokenizer(folder)
    self._rules = rules
    shards = sharding.batch_shards(mesh)
    self._batch = min(batch, -(-len(epochs.in_turn(pool)) // shards) * shards)
    self._key = jax.random.key(seed)
    self._pass_above = pass_above
    self._blind = blind

  def __call__(self, params: dict) -> dict[str, float]:
    """Figures of the log, "held_out/..", alike on all processes; see `figures_of`."""
    lines = []
    batches = loader.sequential(
      self._pool,
      batch_size=self._batch,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    for batch in batches:
      batch = blinded(batch) if self._blind else batch
      lines += held_out.answered(self._ways, params, self._mesh, self._key, batch, self._tokenizer)
    prompts = [prompt for _, prompt in sorted(held_out.graded(lines, self._rules).items())]
    return figures_of(prompts, self._pass_above, self._rules)


def figures_of(prompts: list[dict], pass_above: float, rules: Rules) -> dict[str, float]:
  """Of graded prompts, under "held_out/WAY/": "quality" of the closed-ended ones with the ends of
  its interval, "quality/TASK", the shares "format" and "finished", "length" in tokens.

  Where no prompt is closed-ended, quality is the share whose format is right.
  """
  found = {}
  for how in WAYS:
    scores = held_out.summary(prompts, how, pass_above, rules)
    overall = scores["closed"]
    if not overall["n"]:
      overall = dict.fromkeys(("mean", "low", "high"), scores["format"])
    found |= {f"{how}/quality": overall["mean"]}
    found |= {f"{how}/{end}": overall[end] for end in ("low", "high")}
    found |= {f"{how}/{name}": scores[name] for name in ("format", "finished", "length")}
    found |= {f"{how}/quality/{task}": one["mean"] for task, one in scores["tasks"].items()}
  return {f"held_out/{name}": value for name, value in found.items()}

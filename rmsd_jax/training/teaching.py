"""Whether a pool can teach anything, asked before a run begins."""

import jax
import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import epochs
from rmsd_jax.data.store import Pool
from rmsd_jax.method import matching

SHARE_OF = 200  # prompts whose responses are looked at
FEW_TEACH = 0.1  # share of prompts that teach, below which the run says so


def check_teaches(pool: Pool, config) -> None:
  """Refuses a pool of whose responses none may teach; few prompts that teach are told. The same of
  the conversations, where a run takes them.

  Rows are read in an order that mixes all of the split, until the first that teaches, and at least
  SHARE_OF of them for the share.

  Raises:
    UserError: none may teach.
  """
  data = config.data
  rows_N = np.flatnonzero(epochs.chosen(pool, data.tasks))[: data.limit or None]
  good = f", whole and of a quality of supervision.tau={config.supervision.tau} or more"
  _check(pool, config, rows_N, "prompts", good)
  if data.chat_share:
    _check(pool, config, epochs.conversations(pool), "conversations", " and whole")


def _check(pool: Pool, config, rows_N: np.ndarray, what: str, wanted: str) -> None:
  taught, seen = 0, 0
  for row in np.random.default_rng(0).permutation(rows_N):
    if seen >= SHARE_OF and taught:
      break
    taught += matching.teaches(pool[row], config.data.responses, **config.supervision)
    seen += 1
  if not taught:
    raise UserError(
      f"no response of the {len(rows_N)} {what} in {config.data.pool} may teach: none is valid"
      f"{wanted}; see `python -m rmsd_jax.pool report {config.data.pool}`"
    )
  if taught < FEW_TEACH * seen and jax.process_index() == 0:
    print(f"WARNING: only {taught / seen:.1%} of the {what} have a response that may teach")

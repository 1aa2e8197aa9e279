"""Which teacher response supervises what: the filter, stage 1 targets and stage 2 pairs.

R-MSD (arXiv 2603.11423): keep the reliable ones of a prompt's K teacher responses, then pair every
rollout with one of them, drawn by quality where the task has a metric and uniformly where not.
Axes: B prompts, K teacher responses of one prompt.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.data.batch import Batch
from rmsd_jax.data.rows import Row
from rmsd_jax.method import reliability
from rmsd_jax.method.carriers import Array, Pairs

# Stage 1 target rules: best is R-MSD's, near BRTS's; the others make R-MSD's ablations.
RULES = ("best", "near", "random_survivor", "random", "first")
JUDGES = ("ground_truth", "uniform")  # what tells the responses of a prompt apart
AGREEMENT = (
  "agreement"  # and, of closed-ended ones: the quality that a pool gives them without truth
)


def rng_for(seed: int, step: int, row: int) -> np.random.Generator:
  """The generator of one pool row at one step, the same on whichever process the row lands."""
  return np.random.default_rng((seed, step, row))


def judged(
  quality_BK: np.ndarray,
  rouge_BK: np.ndarray,
  closed_B: np.ndarray,
  closed: str = "ground_truth",
  open_ended: str = "uniform",
) -> tuple[np.ndarray, np.ndarray]:
  """quality_BK, which tells a prompt's responses apart, and graded_B: False where all are alike.

  R-MSD is task-adaptive: the ground truth grades closed-ended responses, open-ended ones are all
  alike. Its ablations turn either around. A prompt that is not graded draws uniformly from its
  valid responses.

  Args:
    quality_BK: quality of closed-ended responses, by the truth or by their agreement.
    rouge_BK: ROUGE-L of open-ended responses; 0 where not valid.
    closed_B: bool.
    closed: one of JUDGES, or AGREEMENT.
    open_ended: one of JUDGES.

  Raises:
    UserError: an unknown judge.
  """
  _check_judges(closed, open_ended)
  graded_B = np.where(closed_B, closed != "uniform", open_ended == "ground_truth")
  return np.where(closed_B[:, None], quality_BK, rouge_BK), graded_B


def survivors(
  quality_K: np.ndarray, valid_K: np.ndarray, present_K: np.ndarray, graded: bool, tau: float
) -> np.ndarray:
  """Which responses may supervise, as bool [K].

  Graded: valid and quality >= tau, equality included (also of a float32 quality with a tau of the
  same decimal digits); tau = 0 keeps all there are, invalid ones too (R-MSD's unfiltered
  ablation). Not graded: the valid ones, whatever tau is.

  Args:
    quality_K: in [0, 1].
    valid_K: bool.
    present_K: bool, False for a slot without a response.
    graded: `judged`.
    tau: in [0, 1]; 0.3 in the paper.

  Raises:
    UserError: tau is outside its range.
  """
  _in_range(tau)
  if graded and tau == 0:
    return present_K.copy()
  usable_K = present_K & valid_K
  # float() makes tau a Python scalar, which numpy rounds to the precision of quality_K.
  return usable_K & (quality_K >= float(tau)) if graded else usable_K


def teaches(
  row: Row, k: int, *, tau: float, target: str, closed: str, open_ended: str, **others: bool
) -> bool:
  """Whether one of the first k responses of a pool's row may supervise in any stage."""
  present_K = np.array([len(ids) > 0 for ids in row.responses[:k]], bool)
  if not present_K.any():
    return False
  valid_K = row.valid_K[:k] & present_K
  quality_1K, graded_1 = judged(
    row.quality_K[None, :k] * valid_K,
    row.rouge_K[None, :k] * valid_K,
    np.array([row.closed]),
    closed,
    open_ended,
  )
  keep_K = survivors(quality_1K[0], valid_K, present_K, bool(graded_1[0]), tau)
  return bool(eligible(keep_K, present_K, target).any())


def eligible(keep_K: np.ndarray, present_K: np.ndarray, rule: str) -> np.ndarray:
  """The responses that a stage 1 rule chooses from: the survivors, or all that are present.

  "best", "near" and "random_survivor" choose among the survivors, "random" and "first" among all.
  """
  _known(rule, RULES, "target rule")
  return keep_K if rule in ("best", "near", "random_survivor") else present_K


def choose_target(
  quality_K: np.ndarray,
  keep_K: np.ndarray,
  graded: bool,
  rule: str,
  rng: np.random.Generator,
  near_K: np.ndarray | None = None,
  trust_K: np.ndarray | None = None,
) -> int:
  """The index of the response that stage 1 trains on, or -1 where there is none to choose.

  Args:
    quality_K: in [0, 1].
    keep_K: bool, the responses to choose from: `eligible`.
    graded: `judged`; if not, every candidate is as good as the next.
    rule: "best" is the highest quality, ties broken at random (ties are the rule for multiple
      choice); "near" is of those the one with the highest `near_K` (BRTS, arXiv 2605.09725);
      "random_survivor" and "random" are any candidate; "first" is the first one, as
      where one sample is all there is.
    rng: `rng_for` of the row.
    near_K: how near each response is to what the student would say; None: not known.
    trust_K: in proportion to which a random choice is made; None, or all equal: uniformly.

  Raises:
    UserError: the rule is not one of RULES.
  """
  _known(rule, RULES, "target rule")
  candidates = np.flatnonzero(keep_K)
  if candidates.size == 0:
    return -1
  if rule == "first":
    return int(candidates[0])
  best = lambda x_K: candidates[x_K[candidates] == x_K[candidates].max()]
  if rule in ("best", "near") and graded:
    candidates = best(quality_K)
  if rule == "near" and near_K is not None:
    candidates = best(near_K)
  if trust_K is None or np.ptp(trust_K[candidates]) == 0:
    return int(rng.choice(candidates))
  weights = trust_K[candidates].astype(np.float64)
  return int(rng.choice(candidates, p=weights / weights.sum()))


def draw(
  quality_K: np.ndarray,
  keep_K: np.ndarray,
  graded: bool,
  by_quality: bool,
  count: int,
  rng: np.random.Generator,
  trust_K: np.ndarray | None = None,
) -> np.ndarray:
  """Pairs `count` rollouts with teacher responses, independently: int32 [count], -1 for no pair.

  Args:
    quality_K: in [0, 1].
    keep_K: bool, the responses to draw from: `survivors`.
    graded: `judged`.
    by_quality: draw in proportion to quality. Where the prompt is not graded, this is off, or the
      qualities sum to 0 (which tau = 0 allows), the draw is uniform.
    rng: `rng_for` of the row, so that every step draws anew.
    trust_K: by which what is said above is multiplied; None: all alike.
  """
  candidates = np.flatnonzero(keep_K)
  if candidates.size == 0:
    return np.full(count, -1, np.int32)
  weights = np.ones(candidates.size)
  if graded and by_quality:
    weights = quality_K[candidates].astype(np.float64)
    if weights.sum() == 0:
      weights[:] = 1.0
  if trust_K is not None:
    weights *= trust_K[candidates]
  return rng.choice(candidates, size=count, p=weights / weights.sum()).astype(np.int32)


def targets(
  batch: Batch,
  *,
  seed: int,
  step: int,
  tau: float,
  target: str,
  closed: str,
  open_ended: str,
  near_BK: np.ndarray | None = None,
  **others: bool,
) -> PromptGroups:
  """Stage 1: the groups with R = 1, each prompt's target response, or an empty slot without one.

  Drawn by (seed, step, row), so alike on any number of processes.

  Args:
    target: the rule, see `choose_target`.
    tau, closed, open_ended: see `survivors` and `judged`.
    near_BK: for the rule "near".
    others: settings of stage 2.
  """
  quality_BK, graded_B = judged(
    batch.quality_BK, batch.rouge_BK, batch.closed_B, closed, open_ended
  )
  chosen_B = np.zeros(len(batch.row_B), np.int64)
  for b, row in enumerate(batch.row_B):
    present_K = batch.present_BK[b]
    graded = bool(graded_B[b])
    keep_K = survivors(quality_BK[b], batch.valid_BK[b], present_K, graded, tau)
    keep_K = eligible(keep_K, present_K, target)
    rng = rng_for(seed, step, int(row))
    near_K = None if near_BK is None else near_BK[b]
    trust_K = batch.trust_BK[b]
    chosen_B[b] = choose_target(quality_BK[b], keep_K, graded, target, rng, near_K, trust_K)
  # A prompt without a target gets slot 0 with length 0: shapes stay those of the bucket, and
  # nothing of it is in the loss.
  slot_B1 = np.maximum(chosen_B, 0)[:, None]
  responses_B1T = np.take_along_axis(batch.groups.responses_BRT, slot_B1[..., None], 1)
  length_B1 = np.take_along_axis(batch.groups.response_length_BR, slot_B1, 1)
  return batch.groups.with_responses(responses_B1T, length_B1 * (chosen_B[:, None] >= 0))


def draw_pairs(
  batch: Batch,
  ids_BNT: np.ndarray,
  length_BN: np.ndarray,
  finished_BN: np.ndarray,
  *,
  seed: int,
  step: int,
  names: Sequence[str],
  tau: float,
  closed: str,
  open_ended: str,
  match_by_quality: bool,
  loss_by_quality: bool,
  **others: str,
) -> Pairs:
  """Stage 2: the teacher response of each rollout, of this process's prompts.

  Drawn anew at each step by (seed, step, row), so alike on any number of processes.

  Args:
    ids_BNT, length_BN, finished_BN: the rollouts, see `rollouts.generate.Samples`.
    names: of the run's tasks; `Pairs.task_B` indexes them.
    tau, closed, open_ended: see `survivors` and `judged`.
    match_by_quality: see `draw`.
    loss_by_quality: weigh a pair by the quality of its teacher response, where that is graded.
    others: settings of stage 1.
  """
  quality_BK, graded_B = judged(
    batch.quality_BK, batch.rouge_BK, batch.closed_B, closed, open_ended
  )
  samples = length_BN.shape[1]
  match_BN = np.full((len(batch.row_B), samples), -1, np.int32)
  survivors_B = np.zeros(len(batch.row_B), np.float32)
  for b, row in enumerate(batch.row_B):
    graded = bool(graded_B[b])
    keep_K = survivors(quality_BK[b], batch.valid_BK[b], batch.present_BK[b], graded, tau)
    survivors_B[b] = keep_K.sum()
    rng = rng_for(seed, step, int(row))
    match_BN[b] = draw(
      quality_BK[b], keep_K, graded, match_by_quality, samples, rng, batch.trust_BK[b]
    )
  quality_BN = np.take_along_axis(quality_BK, np.maximum(match_BN, 0), 1)
  weighed_B1 = graded_B[:, None] & loss_by_quality
  paired_BN = (match_BN >= 0) & finished_BN
  return Pairs(
    match_BN=match_BN,
    paired_BN=paired_BN,
    differs_BN=paired_BN & ~identical(ids_BNT, length_BN, *matched(batch.groups, match_BN)),
    weight_BN=np.where(weighed_B1, quality_BN, 1.0).astype(np.float32),
    survivors_B=survivors_B,
    closed_B=batch.closed_B,
    task_B=np.array([names.index(row["task"]) for row in batch.info], np.int32),
  )


def matched(teachers: PromptGroups, match_BN: Array) -> tuple[Array, Array]:
  """Ids [B, N, T] and lengths [B, N] of each pair's teacher response; without one, of slot 0."""
  xp = np if isinstance(match_BN, np.ndarray) else jnp
  # -1 would read the last slot; its result is masked by the caller, whatever is read.
  slot_BN = xp.maximum(match_BN, 0)
  length_BN = xp.take_along_axis(teachers.response_length_BR, slot_BN, 1)
  return xp.take_along_axis(teachers.responses_BRT, slot_BN[..., None], 1), length_BN


def identical(ids_BNT, length_BN, other_ids_BNT, other_length_BN) -> np.ndarray:
  """bool [B, N]: the two responses are the same, token by token."""
  # Behind its end a response is padding, which may differ between a pool and a sampler.
  beyond_BNT = np.arange(ids_BNT.shape[2]) >= length_BN[..., None]
  same_BN = np.all((ids_BNT == other_ids_BNT) | beyond_BNT, -1)
  return same_BN & (length_BN == other_length_BN)


def check_supervision(
  tau: float,
  target: str,
  closed: str,
  open_ended: str,
  teachers: str = reliability.ALIKE,
  **others: bool,
) -> None:
  """Raises UserError for settings of supervision that the functions above would refuse.

  Args:
    others: the other settings of supervision.
  """
  _known(teachers, reliability.RULES, "rule for teachers")
  if teachers != reliability.ALIKE and closed != "ground_truth":
    raise UserError(
      f"supervision.teachers={teachers!r} measures teachers by the truth, which "
      f"supervision.closed={closed!r} does without; take one of the two"
    )
  if teachers != reliability.ALIKE and target == "first":
    raise UserError(
      f"supervision.teachers={teachers!r} changes what is drawn, and supervision.target='first' "
      "draws nothing in stage 1; take 'best'"
    )
  if others.get("near_top", 1) < 1:
    raise UserError(f"supervision.near_top={others['near_top']}; it must be at least 1")
  _in_range(tau)
  _known(target, RULES, "target rule")
  _check_judges(closed, open_ended)


def _check_judges(closed: str, open_ended: str) -> None:
  _known(closed, (*JUDGES, AGREEMENT), "judge")
  _known(open_ended, JUDGES, "judge")


def _in_range(tau: float) -> None:
  if not 0 <= tau <= 1:
    raise UserError(f"tau {tau}: quality is in [0, 1], so tau must be; the paper has 0.3")


def _known(name: str, names: Sequence[str], what: str) -> None:
  if name not in names:
    raise UserError(f"{what} {name!r} is unknown; use one of {', '.join(names)}")

"""Every row of the paper's tables and some of ours, as changes to one config (arXiv 2603.11423).

    python -m rmsd_jax.demo.ablations runs/ablations     rows x seeds in the demo world, with tables
    python -m rmsd_jax.train_rl --config=configs/ablations.py:C/rl --workdir=DIR     one row alone
    python -m rmsd_jax.train_rl --config=configs/ablations.py:C/rl/qwen3vl_4b_rl ..  on a preset

A name is ROW/STAGE in the demo world, or ROW/STAGE/FILE for another config of that stage in this
folder; a row that changes nothing of it is refused. In the demo world a row and seed takes some 10
minutes (warm, warm_frozen: 20 to 30; learned: 40). Stage 2 of learned and no_D_fresh has 20,480
prompts of its own, which the grid draws into its folder fresh (5 minutes or more, 0.9 GB). Warm-ups
of the discriminator differ, or are not there: steps are added or taken away, so that every row's
policy is updated equally often, but for those of comparison 3 of the study.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config
from rmsd_jax.core.errors import UserError

STAGES = ("sft", "rl", "evaluate")


class Row(NamedTuple):
  """One row of a table: what it is, the keys it changes in both stages, what the paper reports.

  Where stage 1 `goes_on` in place of stage 2 the keys are changed in that part alone, and keys of
  `second` are of the demo world's stage 2 alone.
  """

  label: str
  changes: Mapping[str, Any]
  paper: Mapping[str, float] = {}
  second: Mapping[str, Any] = {}
  goes_on: bool = False
  own_replies: bool = False  # it goes on with samples of its own (rmsd_jax.demo.own_replies)
  noise: str = ""  # of the demo's teachers, where a row is of no use with others
  demo_alone: bool = False  # its values suit no other config
  fresh: bool = False  # stage 2 has FRESH prompts about clips that stage 1 never saw


def _paper(*scores: float) -> dict[str, float]:
  return dict(zip(("VideoMME", "Video-MMMU"), scores, strict=True))


UNWEIGHTED = {"supervision.match_by_quality": False, "supervision.loss_by_quality": False}
ONE_SAMPLE = UNWEIGHTED | {
  "data.responses": 1,
  "supervision.tau": 0.0,
  "supervision.target": "first",
}

GAD = ONE_SAMPLE | {  # arXiv 2511.10643
  "reward.discriminator": 1.0,
  "reward.outer": 0.0,
  "reward.inner": 0.0,
  "reward.content": 0.0,
  "reward.score": "raw",
  "policy.scale": "group",
}
WARM = {"discriminator.warmup_steps": 40, "reward.score": "raw"}
# The authors of the method saw a frozen discriminator drift after some 300 steps. 40 of warm-up and
# 300 updates of the policy; with half the prompts a step, to halve what 340 steps take.
LONG = {"steps": 305, "batch": 16}
FRESH = 20_480  # prompts, 640 steps of 32
# One that has had time to learn what is right, from prompts that do not come again: the paper's
# stages have one epoch each.
LEARNED = {
  "discriminator.warmup_steps": 600,
  "discriminator.optim.learning_rate": 1e-3,
  "discriminator.optim.schedule": "cosine",
}
BOUNDED = {  # arXiv 2604.28123, the settings of its scripts/train/experiment/qwen3_vl_prism.sh
  "reward.score": "raw",
  "reward.clip": 10.0,
  "discriminator.score_l2": 0.001,
}
# Its adversarial stage with one discriminator for its two (of a caption and of the reasoning), and
# from this demo's stage 1: rates, batch and steps are the demo's.
PRISM = (
  ONE_SAMPLE
  | BOUNDED
  | {
    "reward.discriminator": 1.0,
    "reward.outer": 0.0,
    "reward.inner": 0.0,
    "reward.content": 0.0,
    "reward.gate": False,
    "policy.scale": "group",
    "policy.format_penalty": 1.5,
    "policy.kl": 0.0,
    "rollouts.samples": 16,
    "rollouts.temperature": 1.0,
  }
)

# R-MSD's discriminator as far as the paper says, for the rest a drawn head and a short warm-up.
PUBLISHED = {
  "discriminator.zero_head": False,
  "discriminator.joint_warmup": False,
  "discriminator.warmup_steps": 10,
  "reward.score": "raw",
  "policy.scale": "group",
}
# Of a teacher in JAX (tinker-cookbook, GKD: arXiv 2306.13649). Whoever runs a row names its folder.
TEACHER = "runs/demo/teacher"
DISTILLED = {
  "policy.reference": TEACHER,
  "policy.kl": 1.0,
  "policy.kl_estimator": "k2",
  "discriminator.probe_every": 0,
}
NO_REWARD = {f"reward.{name}": 0.0 for name in ("discriminator", "outer", "inner", "content")}
JSD = {"policy.kl_estimator": "jsd", "policy.jsd_beta": 0.5}

ROWS = {
  "A": Row("K = 1, no filter, no weighting", ONE_SAMPLE, _paper(63.8, 54.4)),
  "B": Row(
    "K = 4, no filter, no weighting",
    UNWEIGHTED | {"supervision.tau": 0.0, "supervision.target": "random"},
    _paper(64.5, 55.9),
  ),
  "C": Row(
    "K = 4, filter",
    UNWEIGHTED | {"supervision.target": "random_survivor"},
    _paper(65.0, 57.2),
  ),
  "C_tau0.5": Row(
    "K = 4, filter at tau = 0.5",
    UNWEIGHTED | {"supervision.target": "random_survivor", "supervision.tau": 0.5},
  ),
  "D": Row(
    "R-MSD: K = 4, filter and weighting",
    {},
    _paper(65.3, 58.6) | {"closed-ended": 57.8, "open-ended": 59.1},
  ),
  "k2": Row("K = 2", {"data.responses": 2}, _paper(64.8, 57.1)),
  "k8": Row("K = 8", {"data.responses": 8}, _paper(65.5, 58.9)),
  "tau0": Row("tau = 0", {"supervision.tau": 0.0}, _paper(64.5, 55.9)),
  "tau0.2": Row("tau = 0.2", {"supervision.tau": 0.2}, _paper(65.0, 58.1)),
  "tau0.5": Row("tau = 0.5", {"supervision.tau": 0.5}, _paper(64.8, 57.2)),
  "closed_uniform": Row(
    "closed-ended answers all alike", {"supervision.closed": "uniform"}, {"closed-ended": 56.2}
  ),
  "near": Row("of the best answers the nearest to the student", {"supervision.target": "near"}),
  "agreement": Row(
    "closed-ended answers by their agreement, not the truth", {"supervision.closed": "agreement"}
  ),
  "weighed": Row(
    "two teachers, weighed by their quality at the task",
    {"supervision.teachers": "weighed"},
    noise="two",
  ),
  "best_teacher": Row(
    "of two teachers the better one at the task", {"supervision.teachers": "best"}, noise="two"
  ),
  "open_graded": Row(
    "open-ended answers by ROUGE-L",
    {"supervision.open_ended": "ground_truth"},
    {"open-ended": 58.4},
  ),
  "sft_rl": Row(
    "SFT + RL: K = 1, rule rewards only",
    ONE_SAMPLE | {"reward.discriminator": 0.0},
    _paper(64.0, 55.9),
  ),
  # Not in the paper's tables.
  "gad": Row("GAD: K = 1, the discriminator's reward only", GAD),
  "frozen": Row("discriminator frozen after 10 steps", {"discriminator.frozen_after": 10}),
  "gate_off": Row("no content gate", {"reward.gate": False}),
  # What the discriminator adds: D without it, from D's own stage 1, which is RL on the rules alone.
  "no_D": Row("D without a discriminator", {"reward.discriminator": 0.0}),
  # Without a policy gradient, from D's stage 1 on as many prompts: the teacher's answers again, or
  # the student's own that may teach, of as many samples as stage 2 draws (rejection sampling:
  # arXiv 2203.14465, 2308.01825).
  "continued": Row("stage 1 goes on for as many prompts", {}, goes_on=True),
  "rejection": Row(
    "the same on the student's own answers that may teach",
    {"data.responses": 8, "supervision.target": "random_survivor"},
    goes_on=True,
    own_replies=True,
  ),
  # How its score reaches the student.
  "separate": Row(
    "each reward term normalised by itself",
    {"policy.advantage": "separate", "policy.scale": "group"},
  ),
  "gated": Row(
    "the discriminator ranks right rollouts only",
    {"policy.advantage": "gated", "policy.scale": "group"},
  ),
  "bounded": Row("raw score within 10, its square in the loss", BOUNDED),
  "zero_head": Row("a value head that begins at 0", {"discriminator.zero_head": True}),
  "published": Row(
    "a head of N(0, 0.02), 10 steps of warm-up, the raw score over the group's s.d.", PUBLISHED
  ),
  "joint": Row(
    "40 steps of warm-up in which stage 1 goes on",
    {"discriminator.warmup_steps": 40, "discriminator.joint_warmup": True},
  ),
  "kl0": Row("no KL term", {"policy.kl": 0.0}),
  # An open teacher whose token probabilities are at hand, here a student that was trained longer.
  "opd": Row("on-policy distillation, no reward", DISTILLED | NO_REWARD),
  "opd_reward": Row("D and on-policy distillation", DISTILLED),
  "gkd": Row("GKD: the divergence over all tokens, no reward", DISTILLED | NO_REWARD | JSD),
  "prism": Row("PRISM's adversarial stage", PRISM),
  # Does a discriminator matter that has learned first and is not bounded?
  "gad_warm": Row("GAD, 40 steps of warm-up, raw score", GAD | WARM),
  "warm": Row("D, 40 steps of warm-up, raw score, 300 steps of 16 prompts", WARM, second=LONG),
  "warm_frozen": Row(
    "the same, frozen after the warm-up", WARM | {"discriminator.frozen_after": 40}, second=LONG
  ),
  # With teacher's responses that are not quite right in its pairs it takes being off for the
  # teacher's manner.
  "learned": Row(
    "D, 600 steps of warm-up on fresh prompts, right closed-ended responses in its pairs",
    LEARNED,
    second={"supervision.tau": 0.9},
    demo_alone=True,
    fresh=True,
  ),
  "no_D_fresh": Row(
    "no_D on fresh prompts", {"reward.discriminator": 0.0}, demo_alone=True, fresh=True
  ),
}


def get_config(name: str) -> ConfigDict:
  row, _, rest = name.partition("/")
  stage, _, file = rest.partition("/")
  if row not in ROWS or stage not in STAGES:
    raise UserError(
      f"configs/ablations.py has no {name!r}; give ROW/STAGE, a row of {', '.join(ROWS)} and a "
      f"stage of {', '.join(STAGES)}"
    )
  load = base_config(__file__, f"{file or 'demo'}.py")
  staged = bool(inspect.signature(load).parameters)
  if not staged and not file.endswith(f"_{stage}"):
    raise UserError(f"configs/ablations.py:{name}: {file}.py is not of stage {stage}")
  of = ROWS[row]
  goes_on = of.goes_on and stage == "rl"
  if (goes_on and not staged) or (of.demo_alone and file not in ("", "demo")):
    raise UserError(f"configs/ablations.py:{name}: row {row} is of the demo world alone")
  c = load("sft_continued" if goes_on else stage) if staged else load()
  if not file:
    c.world.responses = 8  # for the row of K = 8; seed S takes those from place S on
    c.world.test_prompts = 600
    if stage == "evaluate":
      c.evaluate.samples = 8
    if of.fresh and stage == "rl":
      c.world.train_prompts = FRESH
      c.data.pool = "runs/ablations/fresh/pool"
    if stage == "sft":
      c.steps = 300  # as in the study's runs, from before the short demo had more
  before, warmup = c.to_json(), c.discriminator.warmup_steps
  changes = of.changes if goes_on == of.goes_on else {}
  if stage == "rl" and file in ("", "demo"):
    changes = {**changes, **of.second}
  c.lock()  # so that a key which does not exist is refused
  c.update_from_flattened_dict(dict(changes))
  c.unlock()
  if stage == "rl" and changes and c.to_json() == before:
    raise UserError(f"configs/ablations.py:{name}: row {row} changes nothing of {file}.py")
  if stage == "rl" and not goes_on:
    c.steps -= warmup - (c.discriminator.warmup_steps if c.reward.discriminator else 0)
  return c

"""The demo: the whole method on one CPU from a tiny base, in 11 to 20 minutes and 3 GB.

    ./launch/demo.sh runs/demo            every stage, one after the other; or one by itself:
    python -m rmsd_jax.train_sft --config=configs/demo.py:sft --workdir=runs/demo/sft
    python -m rmsd_jax.train_rl  --config=configs/demo.py:rl --workdir=runs/demo/rl
    python -m rmsd_jax.evaluate  --config=configs/demo.py:evaluate --workdir=runs/demo/sft

Stage 1 should end well above the base and above the best constant answers (docs/results.md); this
short stage 2 need not beat continued SFT, and the report says whether it did.
"""

from pathlib import Path

from ml_collections import ConfigDict

import rmsd_jax
from rmsd_jax.cli import base_config
from rmsd_jax.core.errors import UserError

STAGES = ("sft", "sft_blind", "sft_continued", "rl", "evaluate")


def get_config(stage: str) -> ConfigDict:
  if stage not in STAGES:
    raise UserError(f"configs/demo.py has no stage {stage!r}; choose one of {', '.join(STAGES)}")
  c = base_config(__file__, "default.py")()
  c.world = ConfigDict()  # read by rmsd_jax.demo.run
  c.world.train_prompts = 3_000
  c.world.test_prompts = 400
  c.world.responses = 4  # K of the simulated teacher
  c.world.noise = "questions"  # of the teacher, or teachers: a key of simulated_teacher.NOISES
  c.world.bucket = (160, 48, 6, 36)  # P, T, F, S
  c.world.stages = ("sft", "sft_continued", "rl")

  c.model.folder = str(Path(rmsd_jax.__file__).parent / "demo" / "tiny_base")
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.model.unroll = True
  c.model.attention = "split"  # its buckets are too small for the kernels of TPU and GPU
  c.data.pool = "runs/demo/pool"
  c.data.workers = 0
  c.data.draws = "seed"  # as in the runs whose scores docs/results.md has
  c.batch = 32
  c.log_every = 5
  c.save_every = 50
  if stage == "evaluate":
    c.data.split = "test"
    c.batch = 50
    c.evaluate.samples = 4
    return c

  c.steps = 450  # 4.8 passes: a teacher of several phrasings takes longer to learn
  c.optim.learning_rate = 1e-3  # decays to 0: a stage 1 cut off at a high rate would go on gaining
  if stage in ("sft", "sft_blind"):
    c.data.blind = stage == "sft_blind"
    return c

  c.init_from = "runs/demo/sft"
  c.seed = 1  # stage 1's batches and targets would come again, in the same order
  c.steps = 40
  # Continued SFT has as many steps at the same rate as stage 2. Both decay to 0 again: at a
  # constant rate both ended below the annealed stage 1 on a task, by the noise of the last steps.
  c.optim.learning_rate = 1e-4
  if stage == "rl":
    c.optim.clip_norm = 0.2
    c.save_every = 20
    c.discriminator.optim.learning_rate = 1e-4
    c.discriminator.warmup_steps = 5
    c.discriminator.probe_every = 10
    # A raw logit outweighed the rules' rewards, and division by the group's s.d. amplified the new
    # discriminator's noise wherever all rollouts earn the same from the rules: the policy was
    # destroyed within 60 steps.
    c.reward.score = "sigmoid"
    c.policy.scale = "none"
    c.reward.gate = True
  return c

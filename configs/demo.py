"""The demo: the whole method on one CPU, from a tiny base. Started by ./launch/demo.sh.

    python -m rmsd_jax.train_sft --config=configs/demo.py:sft --workdir=runs/demo/sft
    python -m rmsd_jax.train_sft --config=configs/demo.py:sft_continued --workdir=runs/demo/sft_continued
    python -m rmsd_jax.train_rl  --config=configs/demo.py:rl --workdir=runs/demo/rl

The stages find the pool and each other under runs/demo; `rmsd_jax.demo.run` sets other folders.
"""

import os
import runpy

from ml_collections import ConfigDict

HERE = os.path.dirname(os.path.abspath(__file__))
STAGES = ("sft", "sft_continued", "rl")
RL_STEPS = 60


def get_config(stage: str = "sft") -> ConfigDict:
  if stage not in STAGES:
    raise ValueError(f"no stage {stage!r} in configs/demo.py; choose one of {', '.join(STAGES)}")
  c = runpy.run_path(os.path.join(HERE, "default.py"))["get_config"]()
  c.model.folder = os.path.join(os.path.dirname(HERE), "rmsd_jax", "demo", "tiny_base")
  c.model.dtype = "float32"
  c.model.remat = False
  c.model.unroll = True
  c.data.pool = "runs/demo/pool"
  c.data.workers = 0
  c.log_every = 5
  c.save_every = 50
  c.batch = 32
  c.steps = 375
  c.optim.learning_rate = 1e-3
  if stage == "sft":
    return c
  c.init_from = "runs/demo/sft"
  c.steps = RL_STEPS
  c.optim.learning_rate = 2e-4
  c.optim.schedule = "constant"
  if stage == "rl":
    c.optim.clip_norm = 0.2
    c.save_every = 20
    c.discriminator.optim.learning_rate = 3e-4
    c.discriminator.warmup_steps = 5
    c.reward.gate = True
  return c

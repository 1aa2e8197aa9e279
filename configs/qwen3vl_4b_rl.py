"""Stage 2 of Qwen3-VL-4B: 128 prompts x 8 rollouts, 16 frames a clip.

    python -m rmsd_jax.train_rl --config=configs/qwen3vl_4b_rl.py --workdir=DIR \\
        --config.model.folder=FOLDER --config.data.pool=POOL --config.init_from=SFT_DIR
    python -m rmsd_jax.compile --config=configs/qwen3vl_4b_rl.py     does it fit, what bounds it

Build the pool with `--frames 16 --video-pixels 4096,4128768 --image-pixels 4096,258048 --buckets
2304,1024,8,1008`: 16 frames of up to 252 tokens a frame pair (16 * 252 * 32 * 32 pixels), and their
timestamps, fit 2,304 prompt tokens.

By rmsd_jax.compile (not run on chips), with fp32 weights and moments, on v5p:2x2x4, 16 chips:
rollouts 23.7 of 95 GiB, gradients of the policy 57.1, of the discriminator 54.2; 4.6, 7.1 and 6.8 s
at the chips' peak, all responses 1,024 tokens long; 8.8 s in all at 0.3 of that. v5e:8x8 fits with
model.remat "all" (docs/training.md).
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config

EPOCH = 469  # 60,000 prompts / 128


def get_config() -> ConfigDict:
  c = base_config(__file__, "default.py")()
  c.model.folder = "4b"  # the size, to compile with; give the folder of the weights to train
  c.batch = 128
  c.steps = 2 * EPOCH
  c.save_every = 50  # 7 to 15 minutes at the chips' peak (docs/training.md)
  c.optim.learning_rate = 1e-6
  for optim in (c.optim, c.discriminator.optim):
    optim.schedule, optim.warmup_share, optim.clip_norm = "constant", 5 / c.steps, 0.2
  # The discriminator's warm-up is an epoch, as GAD's, in which the student goes on with stage 1. A
  # head from N(0, 0.02) is noise that a rate of 1e-6 hardly outgrows (docs/results.md), and over a
  # group's s.d. that noise drives the policy wherever the rules tie: so it begins at 0. A drawn
  # head and a short warm-up: configs/ablations.py:published/rl/qwen3vl_4b_rl.
  c.discriminator.warmup_steps = EPOCH
  c.discriminator.joint_warmup = True
  c.discriminator.zero_head = True
  # Where memory is short, such as on v5e: remat "all".
  c.model.remat = "products"
  c.row_tokens = 16_896
  # Four neighbours along fsdp, which may be of several hosts, decode together: their rollouts take
  # 0.6 to 0.7 of the seconds.
  c.rollouts.tensor = 4
  c.compile.topology = "v5p:2x2x4"
  return c

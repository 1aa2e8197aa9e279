"""Stage 1 of Qwen3-VL-4B: 128 prompts a step, 16 frames a clip.

    python -m rmsd_jax.train_sft --config=configs/qwen3vl_4b_sft.py --workdir=DIR \\
        --config.model.folder=FOLDER --config.data.pool=POOL
    python -m rmsd_jax.compile --config=configs/qwen3vl_4b_sft.py     does it fit, what bounds it

Build the pool with `--frames 16 --video-pixels 4096,4128768 --image-pixels 4096,258048 --buckets
2304,1024,8,1008`: 16 frames of up to 252 tokens a frame pair (16 * 252 * 32 * 32 pixels), and their
timestamps, fit 2,304 prompt tokens.

On v5e:4x4, 16 chips, by rmsd_jax.compile (not run on chips): 15.0 of 15.75 GiB, 4.8 s of compute a
step at the chips' peak, 3.9 s where responses are 0.3 of T on average. Weights, moments and
gradients are fp32 and split 16 ways (4 GiB a chip), so bf16 moments are not needed; layers are
recomputed in the backward pass (model.remat); rows of a chip hold 13,312 tokens at a time.
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config() -> ConfigDict:
  c = base_config(__file__, "default.py")()
  c.model.folder = "4b"  # the size, to compile with; give the folder of the weights to train
  c.row_tokens = 13_312  # 4 full prompts of a chip at a time
  c.compile.stage = "sft"
  c.compile.topology = "v5e:4x4"
  return c

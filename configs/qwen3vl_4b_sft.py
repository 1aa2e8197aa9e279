"""Stage 1 of Qwen3-VL-4B: 128 prompts a step, 16 frames a clip.

    python -m rmsd_jax.train_sft --config=configs/qwen3vl_4b_sft.py --workdir=DIR \\
        --config.model.folder=FOLDER --config.data.pool=POOL
    python -m rmsd_jax.compile --config=configs/qwen3vl_4b_sft.py     does it fit, what bounds it

Build the pool with `--frames 16 --buckets 2304,1024,8,1008`: 16 frames of up to 252 tokens a frame
pair, and their timestamps, fit 2,304 prompt tokens.
"""

import os
import runpy

from ml_collections import ConfigDict

HERE = os.path.dirname(os.path.abspath(__file__))


def get_config() -> ConfigDict:
  c = runpy.run_path(os.path.join(HERE, "default.py"))["get_config"]()
  c.model.folder = "4b"  # the size, to compile with; give the folder of the weights to train
  c.microbatches = 2  # of 4 prompts a chip: 8 at once take 21 GiB of a v5e's 15.75
  c.compile.stage = "sft"
  c.compile.topology = "v5e:4x4"
  return c

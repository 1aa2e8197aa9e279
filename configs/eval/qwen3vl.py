"""Held-out questions for Qwen3-VL of any size: greedy, and 8 samples per prompt for pass@k.

    python -m rmsd_jax.evaluate --config=configs/eval/qwen3vl.py --workdir=RUN \\
        --config.model.folder=FOLDER --config.data.pool=POOL

POOL is a pool with a split "test", built as the presets say. The paper evaluates with 64 frames a
clip [paper]: `pool build --frames 64` with pixels and a bucket of its own (`pool plan` prints one),
and a batch that fits. The batch, which must be a multiple of the devices, is what 16 chips of 16 GB
take with 2,304 prompt tokens, by the compile report of stage 2's rollouts; it was not compiled
itself.
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config() -> ConfigDict:
  c = base_config(__file__, "../default.py")()
  c.data.split = "test"
  c.batch = 32
  return c

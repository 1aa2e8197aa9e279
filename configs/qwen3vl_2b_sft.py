"""Stage 1 of Qwen3-VL-2B: as configs/qwen3vl_4b_sft.py, on half the chips (v5e:2x4: 10.8 of 15.75
GiB in four micro-batches before rows were packed, 4.2 s of compute a step at the chips' peak).

    python -m rmsd_jax.train_sft --config=configs/qwen3vl_2b_sft.py --workdir=DIR \\
        --config.model.folder=FOLDER --config.data.pool=POOL
    python -m rmsd_jax.compile --config=configs/qwen3vl_2b_sft.py     does it fit, what bounds it
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config() -> ConfigDict:
  c = base_config(__file__, "qwen3vl_4b_sft.py")()
  c.model.folder = "2b"  # the size, to compile with; give the folder of the weights to train
  c.compile.topology = "v5e:2x4"
  return c

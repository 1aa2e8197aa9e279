"""Stage 2 of Qwen3-VL-2B: as configs/qwen3vl_4b_rl.py, on half the chips (v5p:2x2x2: rollouts
30.9 of 95 GiB, gradients of the policy 33.2, of the discriminator 30.9; docs/training.md).

    python -m rmsd_jax.train_rl --config=configs/qwen3vl_2b_rl.py --workdir=DIR \\
        --config.model.folder=FOLDER --config.data.pool=POOL --config.init_from=SFT_DIR
    python -m rmsd_jax.compile --config=configs/qwen3vl_2b_rl.py     does it fit, what bounds it
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config() -> ConfigDict:
  c = base_config(__file__, "qwen3vl_4b_rl.py")()
  c.model.folder = "2b"  # the size, to compile with; give the folder of the weights to train
  c.compile.topology = "v5p:2x2x2"
  return c

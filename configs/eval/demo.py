"""Held-out clips of the demo, greedy and 4 samples per prompt; some 20 seconds on 2 cores.

python -m rmsd_jax.evaluate --config=configs/eval/demo.py --workdir=runs/demo/sft
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config() -> ConfigDict:
  return base_config(__file__, "../demo.py")("evaluate")

"""Held-out clips of the demo, greedy and 4 samples per prompt; some 20 seconds on 2 cores.

python -m rmsd_jax.evaluate --config=configs/eval/demo.py --workdir=runs/demo/sft
"""

import os
import runpy

from ml_collections import ConfigDict

CONFIGS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def get_config() -> ConfigDict:
  return runpy.run_path(os.path.join(CONFIGS, "demo.py"))["get_config"]("evaluate")

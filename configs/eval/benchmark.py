"""An evaluation set under a protocol: one greedy reply a prompt; `benchmarks run` sets the rest.

    python -m rmsd_jax.benchmarks run videomme=ROOT mlvu=ROOT --models RUN@best FOLDER \\
        --protocol paper-64f --out DIR

It starts evaluations with this config and sets of it: model.folder, data.pool, evaluate.* and
rollouts.* as the protocol says. By hand, of a set that was prepared and built by hand:

    python -m rmsd_jax.evaluate --config=configs/eval/benchmark.py --workdir=RUN \\
        --config.model.folder=FOLDER --config.data.pool=POOL --config.evaluate.name=videomme

The batch must be a multiple of the devices; how large it may be depends on frames, pixels and the
length of replies, and no size was tried on a TPU.
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config() -> ConfigDict:
  c = base_config(__file__, "../default.py")()
  c.data.split = "test"
  c.batch = 16
  c.evaluate.samples = 0
  c.rollouts.temperature = 0.0
  return c

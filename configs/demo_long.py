"""The demo at length: more prompts, a longer stage 2, and a student trained on blanked frames.

    ./launch/demo.sh runs/demo_long --config=configs/demo_long.py     at most 90 minutes on 2 cores

Here stage 2 should beat continued SFT on held-out clips, if the method works in this world.
docs/results.md says what came out.
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config(stage: str) -> ConfigDict:
  c = base_config(__file__, "demo.py")(stage)
  c.world.train_prompts = 9_000
  c.world.test_prompts = 1_000
  c.world.stages = ("sft", "sft_blind", "sft_continued", "rl")
  if stage in ("sft", "sft_blind"):
    c.steps = 840  # 3 passes
  if stage in ("sft_continued", "rl"):
    c.batch = 64
    c.steps = 200
  return c

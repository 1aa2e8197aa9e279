"""Stage 1 of Qwen3-VL-4B with a tenth of each batch from plain conversations: 115 prompts and 13.

As qwen3vl_4b_sft.py, on a pool that was built from both kinds of records (docs/pool.md):

    python -m rmsd_jax.pool build --jsonl questions.jsonl conversations.jsonl --out POOL ..
    python -m rmsd_jax.train_sft --config=configs/qwen3vl_4b_sft_chat.py --workdir=DIR \\
        --config.model.folder=FOLDER --config.data.pool=POOL

An epoch is one of the questions; conversations are drawn in an order of their own. The share is our
decision: R-MSD (arXiv 2603.11423) says nothing of such a mixture.
"""

from ml_collections import ConfigDict

from rmsd_jax.cli import base_config


def get_config() -> ConfigDict:
  c = base_config(__file__, "qwen3vl_4b_sft.py")()
  c.data.chat_share = 0.1
  return c

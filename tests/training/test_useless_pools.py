"""A pool that can teach nothing is refused at the start, before any step."""

import dataclasses

import numpy as np
import pytest
import tiny_run

from rmsd_jax import train_rl, train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import store

KINDS = {
  "all invalid": lambda row: {"valid_K": np.zeros_like(row.valid_K)},
  "all cut off": lambda row: {"responses": tuple(ids[:0] for ids in row.responses)},
  "no responses": lambda row: {
    "responses": (), "valid_K": row.valid_K[:0], "quality_K": row.quality_K[:0],
    "rouge_K": row.rouge_K[:0],
  },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_pool_that_can_teach_nothing_is_refused(kind, stage, tmp_path, monkeypatch):
  plain = store.Pool.__getitem__
  changed = lambda self, i: dataclasses.replace((row := plain(self, i)), **KINDS[kind](row))
  monkeypatch.setattr(store.Pool, "__getitem__", changed)
  module = {"sft": train_sft, "rl": train_rl}[stage]
  with pytest.raises(UserError, match="no response of the 48 prompts in .* may teach: none is"):
    tiny_run.run(monkeypatch, module, tiny_run.config(stage), tmp_path)


def test_few_that_teach_are_told(tmp_path, monkeypatch, capsys):
  plain, last = store.Pool.__getitem__, 47

  def changed(self, i):
    row = plain(self, i)
    return row if i == last else dataclasses.replace(row, **KINDS["all invalid"](row))

  monkeypatch.setattr(store.Pool, "__getitem__", changed)
  tiny_run.run(monkeypatch, train_sft, tiny_run.config("sft", steps=1), tmp_path)
  assert "WARNING: only 2.1% of the prompts have a response that may teach" in (
    capsys.readouterr().out
  )

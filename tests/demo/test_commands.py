"""How the demo runs this package's commands."""

import sys

import pytest

from rmsd_jax.demo import run


@pytest.mark.parametrize(
  ("given", "used"), [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.check=0",) * 2]
)
def test_commands_have_huge_pages_and_keep_what_they_compiled(given, used, tmp_path, monkeypatch):
  python, log = tmp_path / "python", tmp_path / "log.txt"
  python.write_text('#!/bin/sh\necho "$GLIBC_TUNABLES $JAX_COMPILATION_CACHE_DIR $*"\n')
  python.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(python))
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  if given:
    monkeypatch.setenv("GLIBC_TUNABLES", given)
  run.Commands(tmp_path, log=log)("sft", "train_sft", "--config=x")
  ran = f"{used} {tmp_path / 'compiled'} -m rmsd_jax.train_sft --config=x"
  assert ran in log.read_text().splitlines()

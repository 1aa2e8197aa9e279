"""The package as a stranger imports it: three names, nothing heavy before they are asked for."""

import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
  line = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
  return set(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("code", ["import rmsd_jax", "import rmsd_jax.tasks.registry"])
def test_graders_start_without_jax(code):
  assert not modules_after(code) & {"jax", "flax", "transformers", "grain"}


def test_the_three_names_are_those_of_their_rooms():
  from rmsd_jax import Processor, generate, load
  from rmsd_jax.data import processor
  from rmsd_jax.models import hf
  from rmsd_jax.rollouts import generate as sampling

  assert (load, Processor, generate) == (hf.load, processor.Processor, sampling.generate)


def test_any_other_name_is_refused():
  import rmsd_jax

  with pytest.raises(AttributeError, match="no attribute 'loads'"):
    rmsd_jax.loads  # noqa: B018

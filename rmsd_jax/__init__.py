"""R-MSD: reliable multi-sample distillation of Qwen3-VL on video, in JAX.

    from rmsd_jax import load, load_run, Processor, generate

These are imported when first asked for: every process that grades replies or decodes clips
imports this file too, and must not wait for the models.
"""

import importlib

_EXPORTS = {
  "load": "rmsd_jax.models.hf",
  "Processor": "rmsd_jax.data.processor",
  "generate": "rmsd_jax.rollouts.generate",
  "load_run": "rmsd_jax.training.loading",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> object:
  if name not in _EXPORTS:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_EXPORTS[name]), name)

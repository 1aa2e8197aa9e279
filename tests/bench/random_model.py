"""A model of true or toy sizes with random weights, and rows for it: what a bench runs on.

Axes: B prompts, R responses, P prompt tokens, T response tokens, F frame pairs, S patches of a
pair.
"""

import json
import pathlib
import runpy
from typing import NamedTuple

import jax
import numpy as np

from rmsd_jax.compile import programs
from rmsd_jax.core import named, sharding
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import prompts
from rmsd_jax.models import config as config_lib
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.training import state as state_lib
from tests.bench.against_torch import TOKEN_IDS, ending_ids, full_case

ROOT = pathlib.Path(__file__).parents[2]


class Size(NamedTuple):
  """How large the parts are. Prompts have P tokens each; responses T, or lengths of their own."""

  preset: str  # of rmsd_jax.models.config.PRESETS, or "tiny"
  batch: int
  samples: int  # N = K
  bucket: tuple[int, int, int, int]  # P, T, F, S
  grid: tuple[int, int]  # rows, columns of visual tokens of a frame pair
  attention: tuple[int, int, int, int, int, int]  # B, P, R, T, N, K of the parity check
  logit_chunk: int
  row_tokens: int  # places of rows whose gradient is computed at a time
  repeats: int
  mean: float = 0.0  # of the responses' lengths, as a share of T; 0: all are T


SIZES = {
  # A clip of 16 frames at 252 visual tokens a pair, as configs/qwen3vl_2b_rl.py plans it.
  "2b": Size("2b", 8, 8, (2304, 256, 8, 1008), (14, 18), (2, 384, 4, 128, 16, 8), 512, 18_000, 5),
  "tiny": Size("tiny", 2, 2, (128, 16, 2, 16), (2, 2), (2, 128, 2, 64, 4, 2), 16, 400, 2),
}


def model_config(size: Size):
  """The sizes of the model: a preset, or a toy with cuDNN's head width."""
  if size.preset != "tiny":
    return config_lib.PRESETS[size.preset]
  text = config_lib.TextConfig(3, 64, 4, 2, 128, vocab=151_936)
  vision = config_lib.VisionConfig(3, 32, 2, 64, 64, table=8, deepstack=(0, 1, 2))
  stops = config_lib.PRESETS["2b"].stop_ids
  return config_lib.ModelConfig(text, vision, stop_ids=stops, pad_id=stops[-1])


def write_folder(size: Size, folder: str) -> None:
  """A model folder with config.json and generation_config.json alone."""
  config = model_config(size)
  write = lambda name, values: pathlib.Path(folder, name).write_text(json.dumps(values))
  write("config.json", config_lib.to_hf(config, TOKEN_IDS))
  write("generation_config.json", {"eos_token_id": stop_ids(size), "pad_token_id": config.pad_id})


def stop_ids(size: Size) -> list[int]:
  """Of the model, and for lengths of a mean more."""
  config = model_config(size)
  # The last 1,000 of the vocabulary hold the model's own control tokens.
  more = ending_ids(config.text.vocab - 1_000, size.mean * size.bucket[1])
  return [*config.stop_ids, *more]


def make_cases(size: Size) -> list:
  """`batch` prompts of exactly P tokens: one clip of F frame pairs, and text."""
  P, _, F, _ = size.bucket
  config = model_config(size)
  return [full_case(config, (F, *size.grid), P, seed) for seed in range(size.batch)]


def make_responses(size: Size, samples: int) -> np.ndarray:
  """Random token ids int32 [B, R, T]."""
  shape = size.batch, samples, size.bucket[1]
  return np.random.default_rng(9).integers(0, 100_000, shape).astype(np.int32)


def make_lengths(size: Size, samples: int) -> np.ndarray:
  """Tokens of `samples` responses to each prompt, int32 [B, R]."""
  T = size.bucket[1]
  if not size.mean:
    return np.full((size.batch, samples), T, np.int32)
  rng = np.random.default_rng(8)
  return programs.response_lengths(rng, size.batch, samples, size.mean, T).astype(np.int32)


def make_groups(size: Size, samples: int):
  """The prompts with `samples` responses each, on the host."""
  v = model_config(size).vision
  layout = prompts.Layout(v.patch, v.merge, v.temporal, 0)
  groups = prompts.collate([c.prompt for c in make_cases(size)], layout, Bucket(*size.bucket))
  return groups.with_responses(make_responses(size, samples), make_lengths(size, samples))


def make_config(size: Size, stage: str, folder: str, **model):
  """The config of configs/qwen3vl_2b_STAGE.py at this size, on one device."""
  c = runpy.run_path(str(ROOT / "configs" / f"qwen3vl_2b_{stage}.py"))["get_config"]()
  c.model.folder = folder
  c.model.update(model)
  c.batch, c.row_tokens, c.logit_chunk = size.batch, size.row_tokens, size.logit_chunk
  c.rollouts.samples = c.data.responses = size.samples
  c.compile.bucket = size.bucket
  # Two optimizers beside three sets of weights: the first moments in 16 bits, or 80 GB overflow.
  c.optim.moment_dtype = c.discriminator.optim.moment_dtype = "bfloat16"
  return c


def make_state(config, mesh, model, optims: dict, tasks=()) -> dict:
  """The state of step 0 from random weights; as the trainers' `init_state`."""
  layout = sharding.shardings(mesh, model.abstract(), state_lib.RULES)
  params = jax.jit(model.init, out_shardings=layout)(jax.random.key(0))
  student, frozen = named.split(params, config.trained)
  state = {"student": student, "frozen": frozen}
  if "reference" in optims:
    state["reference"] = state_lib.reference_of(model, student)
    state["running"] = sharding.everywhere(mesh, state_lib.new_running(tasks))
  if "discriminator" in optims:
    head = Discriminator(model).init_head(jax.random.key(1))
    head = jax.device_put(head, sharding.shardings(mesh, head, state_lib.RULES))
    state["discriminator"] = state_lib.copy(student) | head
  return state | state_lib.init_optims(mesh, optims, state)

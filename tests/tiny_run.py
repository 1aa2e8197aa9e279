"""What a test of a trainer needs: a folder of weights, a pool, a config, compiled steps.

All of it is made once per test session, in a folder that goes away with it: a Qwen3-VL of two
layers with random weights and the demo's tokenizer, and a pool of the demo's world. The weights
are such that sampling ends some responses and cuts others off.
"""

import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
from ml_collections import ConfigDict
from tiny_model import random_params

from rmsd_jax import cli, named, sharding
from rmsd_jax import pool as pool_command
from rmsd_jax import state as state_lib
from rmsd_jax.checkpoint import Checkpoints
from rmsd_jax.data import batch as batch_lib
from rmsd_jax.data import loader, media, pool
from rmsd_jax.data.processor import Processor
from rmsd_jax.demo import teacher, tokenizer, world
from rmsd_jax.groups import Bucket
from rmsd_jax.metrics import Progress
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import hf

ROOT = pathlib.Path(__file__).parents[1]
BUCKET = Bucket(prompt=176, response=48, frames=6, patches=36)
TEXT = dict(
  layers=2, width=32, heads=4, kv_heads=2, mlp=48, head=8, theta=1_000.0, sections=(2, 1, 1)
)
VISION = dict(
  depth=1, width=16, heads=2, mlp=32, out=32, patch=8, table=6, deepstack=(0,)
)
TOKENS = {
  "image_token_id": "<|image_pad|>",
  "video_token_id": "<|video_pad|>",
  "vision_start_token_id": "<|vision_start|>",
  "vision_end_token_id": "<|vision_end|>",
  "eos_token_id": "<|im_end|>",
  "pad_token_id": "<|endoftext|>",
}
_HERE = tempfile.TemporaryDirectory(prefix="rmsd_jax-tiny-run-")
HERE = pathlib.Path(_HERE.name)
ENDING = 3.0  # length of the end-of-turn token's embedding, against 1 of the others


@functools.cache
def model_folder() -> pathlib.Path:
  """A Hugging Face folder: the demo's tokenizer, fp32 random weights."""
  folder = HERE / "model"
  tokens = tokenizer.train(tokenizer.corpus(scenes=150))
  tokenizer.write(tokens, folder)
  vocabulary = -(-tokens.get_vocab_size() // 8) * 8
  config = config_lib.ModelConfig(
    config_lib.TextConfig(vocab=vocabulary, **TEXT), config_lib.VisionConfig(**VISION)
  )
  ids = {name: tokens.token_to_id(token) for name, token in TOKENS.items()}
  (folder / "config.json").write_text(json.dumps(config_lib.to_hf(config, ids)))
  params = random_params(hf.load_model(folder).abstract())
  params["text"]["embed"][ids["eos_token_id"]] *= ENDING
  hf.save(folder, params, folder, dtype=np.float32)
  return folder


@functools.cache
def pool_folder() -> pathlib.Path:
  """48 training and 16 held-out prompts, 4 teacher responses each."""
  teacher.make_pool(HERE / "raw", train_prompts=48, test_prompts=16, seed=3, workers=1)
  anything = (1, 1_000_000_000)
  pool.build(
    [HERE / "raw" / "pool.jsonl", HERE / "raw" / "test.jsonl"],
    HERE / "pool",
    Processor.from_folder(
      model_folder(), sampling=media.Sampling(), video_pixels=anything, image_pixels=anything
    ),
    pool_command.rules(),
    [BUCKET],
    progress=functools.partial(Progress, label="records"),
    workers=1,
  )
  return HERE / "pool"


def config(stage: str, **changes) -> ConfigDict:
  """configs/demo.py made small; changes are dotted keys with __ for the dot."""
  c = cli.load_config(f"{ROOT / 'configs' / 'demo.py'}:{stage}")
  small = {
    "model.folder": str(model_folder()),
    "model.unroll": False,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "data.pool": str(pool_folder()),
    "init_from": "",
    "batch": 8,
    "steps": 6,
    "log_every": 1,
    "save_every": 2,
    "rollouts.samples": 4,
    "evaluate.samples": 2,
    "discriminator.warmup_steps": 2,
    "logit_chunk": 16,
  }
  c.update_from_flattened_dict(small)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
  return c.lock()


@functools.cache
def mesh(devices: int = 1) -> jax.sharding.Mesh:
  """1 x 1 x 1 over the first device, or 2 x 2 x 2 over all eight."""
  side = round(devices ** (1 / 3))
  return sharding.make_mesh(side, side, side, jax.devices()[:devices])


NOT_COMPILED = ("seed", "init_from", "mesh", "data", "supervision", "evaluate", "operational")
_STEPS = {}


def steps(module, c: ConfigDict, on: jax.sharding.Mesh) -> dict:
  """`module.make_steps(c, on)`, compiled once for all configs that make the same programs."""
  used = {name: value for name, value in c.to_dict().items() if name not in NOT_COMPILED}
  key = (module.__name__, json.dumps(used, sort_keys=True), on)
  if key not in _STEPS:
    _STEPS[key] = module.make_steps(c, on)
  return _STEPS[key]


def batch(c: ConfigDict, step: int = 0) -> batch_lib.Batch:
  """The host batch that a run of config c has at a step."""
  opened = pool.open_pool(c.data.pool, c.data.split)
  return loader.Steps(opened, c.batch, c.seed, c.data.responses, c.data.tasks, c.data.limit)[step]


def restored(workdir, c: ConfigDict, optims: dict, step: int | None = None) -> dict:
  """Every array of a checkpoint by name, in numpy."""
  model = hf.load_model(**c.model)
  abstract = state_lib.abstract(mesh(), model, c.trained, optims)
  with Checkpoints(workdir) as checkpoints:
    state = checkpoints.restore(abstract, step)
  return arrays(state)


def arrays(tree) -> dict[str, np.ndarray]:
  """The leaves of any pytree by their path, in numpy."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

"""What a test of a trainer needs: a folder of weights, a pool, a config, compiled steps.

All of it is made once per test session, in a folder that goes away with it: a Qwen3-VL of two
layers with random weights and the demo's tokenizer, and a pool of the demo's world. The weights
are such that sampling ends some responses and cuts others off.
"""

import functools
import json
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tiny_model import random_params

from rmsd_jax import cli, train_rl
from rmsd_jax.core import named, packing, sharding
from rmsd_jax.core.groups import Bucket
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import batch as batch_lib
from rmsd_jax.data import loader, media, store
from rmsd_jax.data.processor import Processor
from rmsd_jax.demo import simulated_teacher, tokenizer
from rmsd_jax.demo.base import TOKENS
from rmsd_jax.method import advantages
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import hf
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.tasks import Rules
from rmsd_jax.training import imitation, log, loop, pieces, timing
from rmsd_jax.training import state as state_lib
from rmsd_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
BUCKET = Bucket(prompt=176, response=48, frames=6, patches=36)
TEXT = dict(
  layers=2, width=32, heads=4, kv_heads=2, mlp=48, head=8, theta=1_000.0, sections=(2, 1, 1)
)
VISION = dict(depth=1, width=16, heads=2, mlp=32, out=32, patch=8, table=6, deepstack=(0,))
_HERE = tempfile.TemporaryDirectory(prefix="rmsd_jax-tiny-run-")
HERE = pathlib.Path(_HERE.name)
ENDING = 3.0  # length of the end-of-turn token's embedding, against 1 of the others


@functools.cache
def model_folder() -> pathlib.Path:
  """A Hugging Face folder: the demo's tokenizer, fp32 random weights."""
  folder = HERE / "model"
  tokens = tokenizer.train(tokenizer.corpus(scenes=150))
  tokenizer.write_folder(tokens, folder)
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
def teacher_folder() -> pathlib.Path:
  """Another model of the same tokenizer: one layer more, other weights."""
  folder = HERE / "teacher"
  shutil.copytree(model_folder(), folder)
  told = json.loads((folder / "config.json").read_text())
  told["text_config"]["num_hidden_layers"] += 1
  (folder / "config.json").write_text(json.dumps(told))
  hf.save(folder, random_params(hf.load_model(folder).abstract()), folder, dtype=np.float32)
  return folder


@functools.cache
def pool_folder() -> pathlib.Path:
  """48 training and 16 held-out prompts, 4 teacher responses each."""
  return _pool("", simulated_teacher.Teacher())


@functools.cache
def rows_pool_folder(noise: str, seed: int = 3) -> pathlib.Path:
  """The same with 8 responses each, as the rows of configs/ablations.py want them, of a teacher or
  teachers of that noise, a key of `simulated_teacher.NOISES`."""
  first, *others = simulated_teacher.NOISES[noise]
  teacher = simulated_teacher.Teacher(k=8, noise=first, second=next(iter(others), None))
  return _pool(f"_of_8_{noise}_{seed}", teacher, seed)


def _pool(suffix: str, teacher: simulated_teacher.Teacher, seed: int = 3) -> pathlib.Path:
  raw, pool = HERE / f"raw{suffix}", HERE / f"pool{suffix}"
  simulated_teacher.make_pool(
    raw, train_prompts=48, test_prompts=16, seed=seed, teacher=teacher, workers=1
  )
  build_pool([raw / "pool.jsonl", raw / "test.jsonl"], pool)
  return pool


def build_pool(jsonl, out: pathlib.Path) -> None:
  """Builds a pool for the model of `model_folder`, of one bucket."""
  anything = (1, 1_000_000_000)
  store.build(
    jsonl,
    out,
    Processor(
      model_folder(), sampling=media.Sampling(), video_pixels=anything, image_pixels=anything
    ),
    Rules(),
    [BUCKET],
    progress=functools.partial(Progress, label="records"),
    workers=1,
  )


def config(stage: str, **changes) -> ConfigDict:
  """A stage of configs/demo.py made small. `changes` are dotted keys with __ for the dot."""
  return small(cli.load_config(f"{ROOT / 'configs' / 'demo.py'}:{stage}"), **changes)


def small(c: ConfigDict, **changes) -> ConfigDict:
  """A config of the demo world with a small model, pool and run, then changed."""
  of_all = {
    "model.folder": str(model_folder()),
    "model.unroll": False,
    "data.pool": str(pool_folder()),
    "init_from": "",
    "batch": 8,
    "steps": 6,
    "log_every": 1,
    "save_every": 2,
    "keep": 3,
    "optim.learning_rate": 3e-3,
    "rollouts.samples": 4,
    "evaluate.samples": 2,
    "discriminator.warmup_steps": 2,
    "discriminator.probe_every": 3,
    "logit_chunk": 16,
  }
  c.update_from_flattened_dict(of_all)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
  return c.lock()


@functools.cache
def mesh(devices: int = 1) -> jax.sharding.Mesh:
  """1 x 1 x 1 over the first device, or 2 x 2 x 2 over all eight."""
  side = round(devices ** (1 / 3))
  return sharding.make_mesh(side, side, side, jax.devices()[:devices])


# Keys that make_steps does not read, as far as tests change them.
NOT_COMPILED = ("seed", "init_from", "data", "supervision", "save_every", "keep", "evaluate.name")
_STEPS = {}


def steps(module, c: ConfigDict, on: jax.sharding.Mesh, make_steps=None) -> NamedTuple:
  """`module.make_steps(c, on)`, made once for all configs that ask for the same programs."""
  used = {name.replace("/", "."): value for name, value in named.flatten(c.to_dict()).items()}
  covered = lambda name: any(f"{name}.".startswith(f"{key}.") for key in NOT_COMPILED)
  used = sorted((name, str(value)) for name, value in used.items() if not covered(name))
  key = (module.__name__, tuple(used), on)
  if key not in _STEPS:
    made = (make_steps or module.make_steps)(c, on)
    wrapped = lambda f: f if f is None or isinstance(f, Qwen3VL) else _set_mesh(on, f)
    _STEPS[key] = type(made)(*map(wrapped, made))
  return _STEPS[key]


def _set_mesh(on, f):
  def call(*arguments):
    with jax.set_mesh(on):
      return f(*arguments)

  return call


def one_size(model, P: int, T: int, R: int, most: int) -> packing.Sizes:
  """Of rows that hold the largest groups: programs are compiled once, not for each size that the
  lengths of a batch ask for, which is half of a tiny run's time."""
  return packing.Sizes(P=P, W=R * T, most=most, lanes=pieces.LANES)


def run(monkeypatch, module, c: ConfigDict, workdir, stop_after: int = 0, **options) -> None:
  """`module.main` on one device, in rows of one size; interrupted from the keyboard after a step if
  told so."""
  after, on, make_steps = loop.Loop.after, mesh(), module.make_steps

  def interrupted(self, step, *arguments, **more):
    after(self, step, *arguments, **more)
    if step + 1 == stop_after:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(sharding, "make_mesh", lambda **sizes: on)
    patch.setattr(module, "make_steps", lambda c, on: steps(module, c, on, make_steps))
    patch.setattr(loop.Loop, "after", interrupted)
    patch.setattr(pieces, "sizes_of", one_size)
    try:
      module.main(c, str(workdir), **options)
    except KeyboardInterrupt:
      assert stop_after


def batch(c: ConfigDict, step: int = 0) -> batch_lib.Batch:
  """The host batch that a run of config c has at a step."""
  assert c.data.draws == "seed"
  opened = store.open_pool(c.data.pool, c.data.split)
  return loader.Steps(opened, c.batch, c.seed, c.data.responses, c.data.tasks, c.data.limit)[step]


def model_of(c: ConfigDict):
  return hf.load_model(**c.model)


def rl_state(config: ConfigDict, devices: int = 1) -> state_lib.State:
  """The state that stage 2 begins with."""
  on = mesh(devices)
  with jax.set_mesh(on):
    return train_rl.init_state(config, on, model_of(config), train_rl.make_optims(config))


def restored(workdir, module, c: ConfigDict, step: int | None = None) -> dict:
  """The state of a checkpoint, in numpy; its entries must be those of the config."""
  model = model_of(c)
  of = (module.make_optims(c), Rules(**c.tasks).names, imitation.teacher_of(c, model))
  abstract = state_lib.abstract(mesh(), model, c.trained, *of)
  with Checkpoints(workdir) as checkpoints:
    return jax.device_get(checkpoints.restore(abstract, step))


def flat(tree) -> dict[str, np.ndarray]:
  """The leaves of any pytree by their path, in numpy."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(got, wanted) -> None:
  """Two pytrees, bit for bit."""
  got, wanted = flat(got), flat(wanted)
  assert got.keys() == wanted.keys()
  assert not [name for name in got if not np.array_equal(got[name], wanted[name])]


def moves(got, wanted) -> set[str]:
  """Names of the leaves that differ."""
  got, wanted = flat(got), flat(wanted)
  return {name for name in wanted if not np.array_equal(got[name], wanted[name])}


def lines(workdir) -> list[dict]:
  """The metrics of a run without what a clock gave. A NaN, such as the margin of a step without
  pairs, is a word: it would not be equal to itself."""
  timed = ("time", *timing.OF_THE_MACHINE)
  return [
    {k: "nan" if x != x else x for k, x in line.items() if not k.startswith(timed)}
    for line in log.read(str(workdir))
  ]


def unexplained(workdir) -> list[str]:
  """Tags that a run logged and the table of docs/training.md does not explain."""
  section = (ROOT / "docs" / "training.md").read_text("utf-8").partition("## Every figure")[2]
  cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
  tags = re.findall("`(.+?)`", " ".join(cells))
  tasks, terms = ("|".join(names) for names in (Rules().names, advantages.TERMS))
  known = [tag.replace("TASK", f"(?:{tasks})").replace("TERM", f"(?:{terms})") for tag in tags]
  logged = {name for line in log.read(str(workdir)) for name in line} - {"step", "time"}
  return sorted(tag for tag in logged if not any(re.fullmatch(one, tag) for one in known))

"""Weights in and out: Hugging Face Qwen3-VL folders <-> our parameter dicts.

    model, params = load(folder)          to use the model: both in one type, on one mesh
    params = load_params(folder, mesh)    sharded safetensors, checked by name and shape
    save(folder, params, base)            -> a folder that transformers loads; other files copied

A stacked leaf of ours ("text/layers/q", [L, D, N, H]) is L tensors there, [out, in] each.
"""

import fnmatch
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from rmsd_jax.core import named, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import layers, weight_files
from rmsd_jax.models.student import PARTITION, Qwen3VL

# Beginnings of their names. "{}" is the number of a layer: a leaf of ours with such a name is
# stacked.
_TEXT = "model.language_model."
_VISION = "model.visual."
_LAYER = _TEXT + "layers.{}."
_BLOCK = _VISION + "blocks.{}."
_DEEP = _VISION + "deepstack_merger_list.{}."

# Our name -> their name, and how many leading axes of ours are the inputs of their [out, in] matrix
# (0: the tensor is theirs, flattened where ours has more axes).
_TENSORS = {
  "text/embed": (_TEXT + "embed_tokens.weight", 0),
  "text/norm": (_TEXT + "norm.weight", 0),
  "text/head": ("lm_head.weight", 0),
  "text/layers/attention_norm": (_LAYER + "input_layernorm.weight", 0),
  "text/layers/q": (_LAYER + "self_attn.q_proj.weight", 1),
  "text/layers/k": (_LAYER + "self_attn.k_proj.weight", 1),
  "text/layers/v": (_LAYER + "self_attn.v_proj.weight", 1),
  "text/layers/q_norm": (_LAYER + "self_attn.q_norm.weight", 0),
  "text/layers/k_norm": (_LAYER + "self_attn.k_norm.weight", 0),
  "text/layers/o": (_LAYER + "self_attn.o_proj.weight", 2),
  "text/layers/mlp_norm": (_LAYER + "post_attention_layernorm.weight", 0),
  "text/layers/gate": (_LAYER + "mlp.gate_proj.weight", 1),
  "text/layers/up": (_LAYER + "mlp.up_proj.weight", 1),
  "text/layers/down": (_LAYER + "mlp.down_proj.weight", 1),
  "vision/embed/kernel": (_VISION + "patch_embed.proj.weight", 1),
  "vision/embed/bias": (_VISION + "patch_embed.proj.bias", 0),
  "vision/embed/table": (_VISION + "pos_embed.weight", 0),
  "vision/blocks/norm1_scale": (_BLOCK + "norm1.weight", 0),
  "vision/blocks/norm1_bias": (_BLOCK + "norm1.bias", 0),
  "vision/blocks/qkv": (_BLOCK + "attn.qkv.weight", 1),
  "vision/blocks/qkv_bias": (_BLOCK + "attn.qkv.bias", 0),
  "vision/blocks/proj": (_BLOCK + "attn.proj.weight", 2),
  "vision/blocks/proj_bias": (_BLOCK + "attn.proj.bias", 0),
  "vision/blocks/norm2_scale": (_BLOCK + "norm2.weight", 0),
  "vision/blocks/norm2_bias": (_BLOCK + "norm2.bias", 0),
  "vision/blocks/fc1": (_BLOCK + "mlp.linear_fc1.weight", 1),
  "vision/blocks/fc1_bias": (_BLOCK + "mlp.linear_fc1.bias", 0),
  "vision/blocks/fc2": (_BLOCK + "mlp.linear_fc2.weight", 1),
  "vision/blocks/fc2_bias": (_BLOCK + "mlp.linear_fc2.bias", 0),
  **{
    f"{ours}/{leaf}": (theirs + name, inputs)
    for ours, theirs in (("vision/merger", _VISION + "merger."), ("vision/deepstack", _DEEP))
    for leaf, name, inputs in (
      ("norm_scale", "norm.weight", 0),
      ("norm_bias", "norm.bias", 0),
      ("fc1", "linear_fc1.weight", 1),
      ("fc1_bias", "linear_fc1.bias", 0),
      ("fc2", "linear_fc2.weight", 1),
      ("fc2_bias", "linear_fc2.bias", 0),
    )
  },
}


# Files beside the weights that make a folder complete, in any version of transformers and in vLLM.
_COPIED = (
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.json",
  "*.jinja",
  "preprocessor_config.json",
  "video_preprocessor_config.json",
  "processor_config.json",
  "LICENSE*",
  "NOTICE*",
)


def _names(ours: str, layers: int) -> list[str]:
  """Their tensor names of one of our leaves (one name unless it is stacked)."""
  theirs, _ = _TENSORS[ours]
  return [theirs.format(i) for i in range(layers)] if "{}" in theirs else [theirs]


def _their_shape(ours: str, shape: tuple[int, ...], c: config_lib.VisionConfig) -> tuple[int, ...]:
  theirs, inputs = _TENSORS[ours]
  shape = shape[1:] if "{}" in theirs else shape
  # Theirs is a 3-D convolution [out, colour, frame, row, column]; a patch's values come in that
  # order.
  if ours == "vision/embed/kernel":
    return (shape[1], 3, c.temporal, c.patch, c.patch)
  if inputs:
    return (int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs])))
  # Tables stay as they are; norms and biases are vectors there, whatever axes they have here.
  return (
    shape if ours in ("text/embed", "text/head", "vision/embed/table") else (int(np.prod(shape)),)
  )


def _to_ours(ours: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  # [out, in] -> [in, out] -> our axes. The first axis alone is `out`, also of a convolution.
  inputs = _TENSORS[ours][1]
  if inputs:
    tensor = tensor.reshape(tensor.shape[0], -1).T
  return tensor.reshape(shape)


def _to_theirs(ours: str, leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  inputs = _TENSORS[ours][1]
  if inputs:
    leaf = leaf.reshape(int(np.prod(leaf.shape[:inputs])), -1).T
  return np.ascontiguousarray(leaf.reshape(shape))


def load_model(folder: str | pathlib.Path, **options) -> Qwen3VL:
  """The model that a folder's config.json describes; options as in Qwen3VL.

  Args:
    folder: or, where there is no such folder, the name of a released size, one of
      `config.PRESETS`: a model without weights.

  Raises:
    UserError: the folder holds no Qwen3-VL that is supported, or an option has no such value.
  """
  _check_dtype(options.get("dtype", "float32"))
  if options.get("remat", "none") not in layers.REMAT:
    raise UserError(f"model.remat is {options['remat']!r}; give one of {', '.join(layers.REMAT)}")
  # A folder goes before a size of the same name.
  preset = None if pathlib.Path(folder).is_dir() else config_lib.PRESETS.get(str(folder))
  config = preset or config_lib.from_hf(folder)
  return Qwen3VL(config, **options)


def _check_dtype(dtype) -> None:
  try:
    floats = jnp.issubdtype(np.dtype(dtype), np.floating) and np.dtype(dtype).itemsize > 1
  except TypeError:
    floats = False
  if not floats:
    raise UserError(f"model.dtype is {dtype!r}; give a type such as float32 or bfloat16")


def load(
  folder: str | pathlib.Path, mesh: Mesh | None = None, dtype="float32", **options
) -> tuple[Qwen3VL, dict]:
  """The model of a folder and its parameters.

  Args:
    mesh: the devices to lie on, see `sharding.make_mesh`; None: the first one.
    dtype: of weights and activations; norms, softmax and rotary angles stay fp32 inside.
    options: further ones of Qwen3VL.

  Raises:
    UserError: as `load_params`.
  """
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1]) if mesh is None else mesh
  return load_model(folder, dtype=dtype, **options), load_params(folder, mesh, dtype)


def load_params(folder: str | pathlib.Path, mesh: Mesh, dtype="float32") -> dict:
  """Reads the weights straight into arrays that are sharded over the mesh.

  Each device shard is read from the files by itself, so that host memory never holds the model.

  Raises:
    UserError: a file is missing or broken, tensors are missing, extra, misshapen, quantised or not
      finite, or a stored head is not the tied table.
  """
  model = load_model(folder)
  reader = _reader(folder, model)
  leaves = named.flatten(sharding.abstract(mesh, model.abstract(), PARTITION))

  def read(ours: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    stacked = "{}" in _TENSORS[ours][0]
    names = _names(ours, leaf.shape[0])
    shape = leaf.shape[1:] if stacked else leaf.shape

    # Called once a device with the slices of its part; the first is of the stacked axis. Tensors
    # are cut and cast one by one, so that beside the part only one of them is in memory.
    def shard(index):
      def part_of(name, rest):
        with np.errstate(over="ignore"):  # it is checked
          part = _to_ours(ours, reader.get(name), shape)[rest].astype(dtype)
        return weight_files.check_finite(name, part)

      if not stacked:
        return part_of(names[0], index)
      return np.stack([part_of(name, index[1:]) for name in names[index[0]]])

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)

  return named.unflatten({ours: read(ours, leaf) for ours, leaf in leaves.items()})


def check_folder(folder: str | pathlib.Path) -> int:
  """Checks a folder's weights against its config.json, reading headers only; the number of files.

  Raises:
    UserError: as `load_params`.
  """
  model = load_model(folder)
  reader = _reader(folder, model)
  return len(reader.files)


def their_shapes(model: Qwen3VL) -> dict[str, tuple[int, ...]]:
  """Name and shape of every tensor of a checkpoint of this model."""
  return {
    name: _their_shape(ours, leaf.shape, model.config.vision)
    for ours, leaf in named.flatten(model.abstract()).items()
    for name in _names(ours, leaf.shape[0])
  }


def _reader(folder: str | pathlib.Path, model: Qwen3VL) -> weight_files.Reader:
  """The tensors of a folder that fits the model."""
  reader = weight_files.Reader(pathlib.Path(folder))
  reader.check(their_shapes(model), model.config.text.tied)
  return reader


def _tell_dtype(path: pathlib.Path, dtype: str) -> None:
  """Lets a config say in which type its weights are, where it says another: transformers loads them
  in that one."""
  raw = json.loads(path.read_text(encoding="utf-8"))
  changed = False
  for part in (raw, *(raw.get(name) for name in ("text_config", "vision_config"))):
    for key in ("dtype", "torch_dtype"):
      if isinstance(part, dict) and part.get(key) not in (None, dtype):
        part[key] = dtype
        changed = True
  if changed:
    path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def save(
  folder: str | pathlib.Path,
  params: dict,
  base: str | pathlib.Path,
  dtype=ml_dtypes.bfloat16,
  shard_bytes: int = 4 << 30,
) -> None:
  """Writes weights as a Hugging Face folder, with what else belongs to one from `base`.

  Config, tokenizer, templates, processors and licence are copied; optimizer states, other formats
  of the weights and files of the run that made the base are not.

  Args:
    params: a student's parameters (a discriminator's value head must be left out).
    base: a folder with config.json and the tokenizer; its weights are not read.
    dtype: of the tensors on disk.
    shard_bytes: largest size of one safetensors file.
  """
  folder = pathlib.Path(folder)
  base = pathlib.Path(base)
  config = config_lib.from_hf(base)
  # 1. What belongs to the model is copied byte for byte, so that tokenizer, template and processor
  # of the student are the base's in every version of transformers. `base` may be the folder itself.
  folder.mkdir(parents=True, exist_ok=True)
  for file in sorted(base.iterdir()):
    if _belongs(file) and folder.resolve() != base.resolve():
      shutil.copyfile(file, folder / file.name)
  _tell_dtype(folder / "config.json", np.dtype(dtype).name)
  # 2. The weights, file by file.
  leaves = named.flatten(params)
  plan = _plan(params, np.dtype(dtype).itemsize, shard_bytes)
  files = [
    f"model-{i + 1:05d}-of-{len(plan):05d}.safetensors" if len(plan) > 1 else "model.safetensors"
    for i in range(len(plan))
  ]
  for file, entries in zip(files, plan, strict=True):  # one file in memory at a time
    tensors = {}
    for name, (ours, layer) in entries.items():
      leaf = leaves[ours] if layer is None else leaves[ours][layer]
      shape = _their_shape(ours, leaves[ours].shape, config.vision)
      tensors[name] = _to_theirs(ours, np.asarray(jax.device_get(leaf)).astype(dtype), shape)
    draft = folder / (file + ".part")
    draft.touch()
    mode = draft.stat().st_mode  # of any new file; the library's could be read by nobody else
    # Older versions of transformers refuse a file that does not say it is torch's ("pt").
    save_file(tensors, draft, metadata={"format": "pt"})
    draft.chmod(mode)
    draft.rename(folder / file)  # under its name when whole
  # 3. The index of several files; readers take a single one by its name.
  if len(plan) > 1:
    size = sum(leaf.size for leaf in leaves.values()) * np.dtype(dtype).itemsize
    where = {name: file for file, entries in zip(files, plan, strict=True) for name in entries}
    index = {"metadata": {"total_size": size}, "weight_map": where}
    text = json.dumps(index, indent=2, sort_keys=True)
    (folder / "model.safetensors.index.json").write_text(text)
    files.append("model.safetensors.index.json")
  for stale in folder.glob("model*.safetensors*"):  # of an earlier export with other shards
    if stale.name not in files:
      stale.unlink()


def _belongs(path: pathlib.Path) -> bool:
  """Whether a file of a model folder is copied with the weights."""
  return path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in _COPIED)


def _plan(params: dict, itemsize: int, shard_bytes: int) -> list[dict[str, tuple]]:
  """Which tensors go into which file: per file {their name: (our name, layer or None)}."""
  files = [{}]
  room = shard_bytes
  for ours, leaf in named.flatten(params).items():
    stacked = "{}" in _TENSORS[ours][0]
    names = _names(ours, leaf.shape[0])
    size = leaf.size // len(names) * itemsize
    for layer, name in enumerate(names):
      if size > room and files[-1]:
        files.append({})
        room = shard_bytes
      files[-1][name] = (ours, layer if stacked else None)
      room -= size
  return files

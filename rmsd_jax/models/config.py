"""Sizes of a Qwen3-VL, read from and written to a Hugging Face `config.json`."""

import dataclasses
import json
import pathlib

from rmsd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """The decoder. Letters: L layers, D width, N query heads, K key/value heads, H head, M MLP."""

  layers: int
  width: int
  heads: int
  kv_heads: int
  mlp: int
  head: int = 128
  vocab: int = 151_936
  theta: float = 5e6
  sections: tuple[int, int, int] = (24, 20, 20)  # rotary frequencies by time, row, column
  eps: float = 1e-6
  tied: bool = True
  init_std: float = 0.02


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The vision tower. Letters: W width, C values of a patch, X merged width, U MLP."""

  depth: int = 24
  width: int = 1_024
  heads: int = 16
  mlp: int = 4_096
  out: int = 2_560  # the decoder's width
  patch: int = 16  # pixels
  temporal: int = 2  # frames of a frame pair
  merge: int = 2  # patches per visual token along one side
  table: int = 48  # side of the square position table
  deepstack: tuple[int, ...] = (5, 11, 17)  # blocks whose outputs feed decoder layers 0, 1, 2
  init_std: float = 0.02

  @property
  def patch_values(self) -> int:
    return 3 * self.temporal * self.patch**2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  text: TextConfig
  vision: VisionConfig


def _small(layers, width, heads, mlp, tied, vision):
  text = TextConfig(layers, width, heads, 8, mlp, tied=tied)
  return ModelConfig(text, dataclasses.replace(vision, out=width))


_LARGE_TOWER = VisionConfig(depth=27, width=1_152, mlp=4_304, deepstack=(8, 16, 24))
PRESETS = {  # the released dense sizes (public configs of Qwen/Qwen3-VL-*)
  "2b": _small(28, 2_048, 16, 6_144, True, VisionConfig()),
  "4b": _small(36, 2_560, 32, 9_728, True, VisionConfig()),
  "8b": _small(36, 4_096, 32, 12_288, False, _LARGE_TOWER),
  "32b": _small(64, 5_120, 64, 25_600, False, _LARGE_TOWER),
}

# Fields that change the computation and that we support with one value only.
_FIXED = {
  "text_config": {"hidden_act": "silu", "attention_bias": False},
  "vision_config": {"hidden_act": "gelu_pytorch_tanh", "in_channels": 3},
}


def from_hf(folder: str | pathlib.Path) -> ModelConfig:
  """Reads `config.json` of a Qwen3-VL folder (the layout of transformers 4.57 or of 5.x).

  Raises:
    UserError: no such file, another model family, or a field that this port does not support.
  """
  path = pathlib.Path(folder) / "config.json"
  if not path.is_file():
    raise UserError(f"{path} does not exist; give the folder of a Hugging Face Qwen3-VL checkpoint")
  raw = json.loads(path.read_text())
  if raw["model_type"] != "qwen3_vl":
    raise UserError(f"{path}: model_type is {raw['model_type']!r}; only 'qwen3_vl' (dense) is read")
  for part, fixed in _FIXED.items():
    for key, value in fixed.items():
      if raw[part].get(key, value) != value:
        raise UserError(
          f"{path}: {part}.{key} = {raw[part][key]!r} is not supported, only {value!r}"
        )
  text, vision = raw["text_config"], raw["vision_config"]
  rope = text.get("rope_parameters") or {}  # 5.x; older files keep theta beside rope_scaling
  scaling = rope if "mrope_section" in rope else text["rope_scaling"]
  if not scaling.get("mrope_interleaved", False):
    raise UserError(f"{path}: mrope_interleaved is not true; Qwen3-VL's positions are interleaved")
  return ModelConfig(
    TextConfig(
      layers=text["num_hidden_layers"],
      width=text["hidden_size"],
      heads=text["num_attention_heads"],
      kv_heads=text["num_key_value_heads"],
      mlp=text["intermediate_size"],
      head=text["head_dim"],
      vocab=text["vocab_size"],
      theta=float(rope["rope_theta"] if "rope_theta" in rope else text["rope_theta"]),
      sections=tuple(scaling["mrope_section"]),
      eps=text["rms_norm_eps"],
      tied=raw["tie_word_embeddings"],
    ),
    VisionConfig(
      depth=vision["depth"],
      width=vision["hidden_size"],
      heads=vision["num_heads"],
      mlp=vision["intermediate_size"],
      out=vision["out_hidden_size"],
      patch=vision["patch_size"],
      temporal=vision["temporal_patch_size"],
      merge=vision["spatial_merge_size"],
      table=round(vision["num_position_embeddings"] ** 0.5),
      deepstack=tuple(vision["deepstack_visual_indexes"]),
    ),
  )


def to_hf(config: ModelConfig, token_ids: dict[str, int]) -> dict:
  """The `config.json` of a new model, in the layout that transformers 4.57 and 5.x both read.

  Args:
    token_ids: image_token_id, video_token_id, vision_start_token_id, vision_end_token_id, and
      eos_token_id, pad_token_id.
  """
  t, v = config.text, config.vision
  return {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "tie_word_embeddings": t.tied,
    **token_ids,
    "text_config": {
      "model_type": "qwen3_vl_text",
      "num_hidden_layers": t.layers,
      "hidden_size": t.width,
      "num_attention_heads": t.heads,
      "num_key_value_heads": t.kv_heads,
      "intermediate_size": t.mlp,
      "head_dim": t.head,
      "vocab_size": t.vocab,
      "rope_theta": t.theta,
      "rope_scaling": {
        "rope_type": "default",
        "mrope_section": list(t.sections),
        "mrope_interleaved": True,
      },
      "rms_norm_eps": t.eps,
      "hidden_act": "silu",
      "attention_bias": False,
      "max_position_embeddings": 262_144,
      "tie_word_embeddings": t.tied,
    },
    "vision_config": {
      "model_type": "qwen3_vl",
      "depth": v.depth,
      "hidden_size": v.width,
      "num_heads": v.heads,
      "intermediate_size": v.mlp,
      "out_hidden_size": v.out,
      "patch_size": v.patch,
      "temporal_patch_size": v.temporal,
      "spatial_merge_size": v.merge,
      "num_position_embeddings": v.table**2,
      "deepstack_visual_indexes": list(v.deepstack),
      "hidden_act": "gelu_pytorch_tanh",
      "in_channels": 3,
    },
  }

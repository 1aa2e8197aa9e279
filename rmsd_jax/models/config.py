"""Sizes of a Qwen3-VL, read from and written to a Hugging Face `config.json`."""

import dataclasses
import json
import math
import pathlib

from rmsd_jax.core.errors import UserError
from rmsd_jax.models import weight_files


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """The decoder. Letters: L layers, D width, N query heads, K key/value heads, H head, M MLP."""

  layers: int
  width: int
  heads: int
  kv_heads: int
  mlp: int
  head: int = 128  # not width / heads, which is 80 in the 4B
  vocab: int = 151_936  # rows of the table, more than the tokenizer has ids
  theta: float = 5e6
  sections: tuple[int, int, int] = (24, 20, 20)  # rotary frequencies by time, row, column
  eps: float = 1e-6
  tied: bool = True  # logits by the embedding table; a checkpoint then has no lm_head
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
  stop_ids: tuple[int, ...] = ()  # tokens that end a response
  pad_id: int = 0  # fills unused places


def _small(layers, width, heads, mlp, tied, vision):
  text = TextConfig(layers, width, heads, 8, mlp, tied=tied)
  im_end = 151_645
  end_of_text = 151_643  # both end a response, and this one fills unused places, as released
  vision = dataclasses.replace(vision, out=width)
  return ModelConfig(text, vision, stop_ids=(im_end, end_of_text), pad_id=end_of_text)


_LARGE_TOWER = VisionConfig(depth=27, width=1_152, mlp=4_304, deepstack=(8, 16, 24))
PRESETS = {  # the released dense sizes (public configs of Qwen/Qwen3-VL-*)
  "2b": _small(28, 2_048, 16, 6_144, True, VisionConfig()),
  "4b": _small(36, 2_560, 32, 9_728, True, VisionConfig()),
  "8b": _small(36, 4_096, 32, 12_288, False, _LARGE_TOWER),
  "32b": _small(64, 5_120, 64, 25_600, False, _LARGE_TOWER),
}

# Fields that change the computation and are supported with one value only (if absent, that one).
_FIXED = {
  "text_config": {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "num_experts": 0,
  },
  "vision_config": {"hidden_act": "gelu_pytorch_tanh", "in_channels": 3},
}
_TEXT_FIELDS = {  # ours -> theirs
  "layers": "num_hidden_layers",
  "width": "hidden_size",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
  "mlp": "intermediate_size",
  "head": "head_dim",
  "vocab": "vocab_size",
  "eps": "rms_norm_eps",
}
_VISION_FIELDS = {
  "depth": "depth",
  "width": "hidden_size",
  "heads": "num_heads",
  "mlp": "intermediate_size",
  "out": "out_hidden_size",
  "patch": "patch_size",
  "temporal": "temporal_patch_size",
  "merge": "spatial_merge_size",
}
VISION_THETA = 10_000  # of the tower's positions, see core.positions.patch_angles


def from_hf(folder: str | pathlib.Path) -> ModelConfig:
  """Reads `config.json` of a Qwen3-VL folder (the layout of transformers 4.57 or of 5.x).

  The tokens that end a response come from generation_config.json where there is one.

  Raises:
    UserError: no such file, another model family, or fields that are missing, that contradict each
      other or that this port does not support: all of them in one message.
  """
  path = pathlib.Path(folder) / "config.json"
  raw = _read_json(path)
  if raw.get("model_type") != "qwen3_vl":
    raise UserError(
      f"{path}: model_type is {raw.get('model_type')!r}; only 'qwen3_vl' (dense) is read"
    )
  # 1. The fields, wherever the version of transformers that wrote the file puts them.
  text, vision = (_object(path, raw, part) for part in _FIXED)
  # rope_parameters of 5.x; older files keep theta beside rope_scaling.
  ropes = [_object(path, text, part) for part in ("rope_scaling", "rope_parameters")]
  rope = ropes[0] | ropes[1]
  unequal = [key for key in ropes[0].keys() & ropes[1].keys() if ropes[0][key] != ropes[1][key]]
  theta = rope.get("rope_theta", text.get("rope_theta"))
  tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
  # 2. Whatever is wrong with them, collected for one message.
  faults = _unsupported(text, vision) + _quantised(raw, text, vision)
  if theta is None:
    faults.append("text_config has no rope_theta")
  faults += _numbers(text | ({} if theta is None else {"rope_theta": theta}), vision, rope)
  faults += [f"rope_scaling and rope_parameters differ in {key}" for key in sorted(unequal)]
  faults += _of_vision(path, vision)
  if not isinstance(tied, bool | None):
    faults.append(f"tie_word_embeddings is {tied!r}; give true or false")
  if rope.get("mrope_interleaved") is not True:
    faults.append("mrope_interleaved is not true; Qwen3-VL's positions are interleaved")
  # "type" is the older name.
  for kind in (part.get(key) for part in ropes for key in ("rope_type", "type")):
    if kind not in ("default", "mrope", None):
      faults.append(f"rope_type {kind!r} is not supported, only 'default'")
  if faults:
    raise UserError(f"{path}: {'; '.join(faults)}")
  # 3. Sizes that are all there may still contradict each other.
  config = ModelConfig(
    TextConfig(
      **{ours: text[theirs] for ours, theirs in _TEXT_FIELDS.items()},
      theta=float(theta),
      sections=tuple(rope["mrope_section"]),
      tied=bool(tied),
    ),
    VisionConfig(
      **{ours: vision[theirs] for ours, theirs in _VISION_FIELDS.items()},
      table=round(vision["num_position_embeddings"] ** 0.5),
      deepstack=tuple(vision["deepstack_visual_indexes"]),
    ),
    **_special_ids(path.parent, [raw, text], text["vocab_size"]),
  )
  if faults := _contradictions(config, vision["num_position_embeddings"]):
    raise UserError(f"{path}: {'; '.join(faults)}")
  return config


def _unsupported(text: dict, vision: dict) -> list[str]:
  """Fields that are missing, or have values that this port does not support."""
  faults = [
    f"{part}.{key} = {fields[key]!r} is not supported, only {value!r}"
    for (part, fixed), fields in zip(_FIXED.items(), (text, vision), strict=True)
    for key, value in fixed.items()
    if fields.get(key, value) not in (value, None)
  ]
  needed = [("text_config", text, key) for key in _TEXT_FIELDS.values()]
  needed += [("vision_config", vision, key) for key in _VISION_FIELDS.values()]
  needed += [("vision_config", vision, "num_position_embeddings")]
  needed += [("vision_config", vision, "deepstack_visual_indexes")]
  return faults + [f"{part}.{key} is missing" for part, fields, key in needed if key not in fields]


def _of_vision(path: pathlib.Path, vision: dict) -> list[str]:
  """What of the vision tower this port does not compute."""
  faults = []
  theta = _object(path, vision, "rope_parameters").get("rope_theta", vision.get("rope_theta"))
  if theta not in (None, VISION_THETA):
    faults.append(f"vision_config.rope_theta {theta!r} is not supported, only {VISION_THETA}")
  if vision.get("deepstack_visual_indexes") == []:
    faults.append("vision_config.deepstack_visual_indexes is empty, which is not supported")
  return faults


def _object(path: pathlib.Path, fields: dict, name: str) -> dict:
  """The object under a name; an empty one where there is none."""
  value = fields.get(name)
  if value is not None and not isinstance(value, dict):
    raise UserError(f"{path}: {name} is {value!r:.60}, not an object; copy the file again")
  return value or {}


def _numbers(text: dict, vision: dict, rope: dict) -> list[str]:
  """What is wrong with the numbers that are there."""
  whole = [("text_config", text, key) for key in _TEXT_FIELDS.values() if key != "rms_norm_eps"]
  whole += [("vision_config", vision, key) for key in _VISION_FIELDS.values()]
  whole += [("vision_config", vision, "num_position_embeddings")]
  faults = [
    f"{part}.{key} is {fields[key]!r:.60}, not a whole number of 1 or more"
    for part, fields, key in whole
    if key in fields and not (_is_whole(fields[key]) and fields[key] >= 1)
  ]
  for key in ("rms_norm_eps", "rope_theta"):
    if key in text and not (_is_real(text[key]) and 0 < text[key] < math.inf):
      faults.append(f"{key} is {text[key]!r:.60}, not a number above 0")
  places = lambda value: isinstance(value, list) and all(_is_whole(i) and i >= 0 for i in value)
  sections = rope.get("mrope_section")
  if not places(sections) or len(sections) != 3:
    faults.append(f"mrope_section is {sections!r:.60}, not three whole numbers in a list")
  if not places(blocks := vision.get("deepstack_visual_indexes", [])):
    faults.append(f"deepstack_visual_indexes is {blocks!r:.60}, not a list of whole numbers")
  return faults


def _is_whole(value: object) -> bool:
  """Whether a JSON value is a whole number: no boolean, and not 1.0."""
  return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
  return isinstance(value, float) or _is_whole(value)


def _quantised(*parts: dict) -> list[str]:
  """The fault, if a config says that its weights are quantised."""
  said = next((part["quantization_config"] for part in parts if part.get("quantization_config")), 0)
  if not said:
    return []
  method = said.get("quant_method") if isinstance(said, dict) else said
  return [
    f"quantization_config says that the weights are quantised ({method}); give the folder of the "
    "unquantised model"
  ]


def _read_json(path: pathlib.Path) -> dict:
  if not path.is_file() and list(path.parent.glob("adapter_*")):
    raise UserError(f"{path} does not exist; {weight_files.instead(path.parent)}")
  if not path.is_file():
    raise UserError(f"{path} does not exist; give the folder of a Hugging Face Qwen3-VL checkpoint")
  try:
    raw = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path} is not JSON ({error}); copy it again") from error
  if not isinstance(raw, dict):
    raise UserError(f"{path} holds no JSON object; copy it again")
  return raw


def _contradictions(config: ModelConfig, positions: int) -> list[str]:
  t = config.text
  v = config.vision
  rules = {
    f"mrope_section {t.sections} does not add up to half of head_dim {t.head}": (
      2 * sum(t.sections) == t.head
    ),
    f"num_attention_heads {t.heads} is no multiple of num_key_value_heads {t.kv_heads}": (
      t.heads % t.kv_heads == 0
    ),
    f"vision hidden_size {v.width} is no multiple of num_heads {v.heads}": v.width % v.heads == 0,
    f"vision out_hidden_size {v.out} is not the decoder's hidden_size {t.width}": v.out == t.width,
    f"num_position_embeddings {positions} is not a square": v.table**2 == positions,
    f"deepstack_visual_indexes {v.deepstack} are not ascending blocks of {v.depth}": (
      list(v.deepstack) == sorted(set(v.deepstack))
      and all(0 <= block < v.depth for block in v.deepstack)
    ),
    f"{len(v.deepstack)} DeepStack levels, but {t.layers} layers": len(v.deepstack) <= t.layers,
  }
  return [fault for fault, holds in rules.items() if not holds]


def _special_ids(folder: pathlib.Path, configs: list[dict], vocab: int) -> dict:
  """stop_ids and pad_id, from generation_config.json, else config.json."""
  # generation_config.json goes first: of the released models it names both tokens that end a reply.
  extra = folder / "generation_config.json"
  sources = [_read_json(extra)] if extra.is_file() else []
  sources += configs
  first = lambda key: next((s[key] for s in sources if s.get(key) is not None), None)
  stop = first("eos_token_id")
  padding = first("pad_token_id")
  stop = stop if isinstance(stop, list) else [] if stop is None else [stop]
  for key, ids in (("eos_token_id", stop), ("pad_token_id", [] if padding is None else [padding])):
    for id_ in ids:
      if not (_is_whole(id_) and 0 <= id_ < vocab):
        raise UserError(
          f"{folder}: {key} {id_!r:.60} is no id of the model, a whole number below vocab_size "
          f"{vocab}; mend it in generation_config.json, or in config.json"
        )
  if not stop and first("eos_token_id") is not None:
    raise UserError(f"{folder}: eos_token_id is an empty list; name the tokens that end a response")
  # Without a pad id any will do, since padding is never seen.
  return {"stop_ids": tuple(stop), "pad_id": padding if padding is not None else (*stop, 0)[0]}


def to_hf(config: ModelConfig, token_ids: dict[str, int]) -> dict:
  """The `config.json` of a new model, in the layout that transformers 4.57 and 5.x both read.

  Args:
    token_ids: image_token_id, video_token_id, vision_start_token_id, vision_end_token_id, and
      eos_token_id, pad_token_id.
  """
  t = config.text
  v = config.vision
  # Theta stands beside rope_scaling, as in files of 4.57; 5.x still reads these names.
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

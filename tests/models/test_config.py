"""config.json of a model folder: both layouts, and every refusal in one message."""

import copy
import json

import pytest
from small import CONFIG

from rmsd_jax.core.errors import UserError
from rmsd_jax.models import config as config_lib

IDS = dict(image_token_id=150, video_token_id=151, eos_token_id=154, pad_token_id=155)


@pytest.fixture
def raw():
  return config_lib.to_hf(CONFIG, IDS)


def read(raw, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(raw))
  return config_lib.from_hf(tmp_path)


def test_what_is_written_is_read(raw, tmp_path):
  config = read(raw, tmp_path)
  assert (config.text, config.vision) == (CONFIG.text, CONFIG.vision)
  assert (config.stop_ids, config.pad_id) == ((154,), 155)


def test_both_layouts_of_transformers_are_one(raw, tmp_path):
  new = copy.deepcopy(raw)
  text = new["text_config"]
  text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
  assert read(new, tmp_path) == read(raw, tmp_path)


def test_stop_ids_come_from_the_generation_config_first(raw, tmp_path):
  (tmp_path / "generation_config.json").write_text(
    json.dumps({"eos_token_id": [154, 156], "pad_token_id": 157})
  )
  config = read(raw, tmp_path)
  assert (config.stop_ids, config.pad_id) == ((154, 156), 157)


def test_a_folder_without_special_ids_still_opens(raw, tmp_path):
  del raw["eos_token_id"], raw["pad_token_id"]
  config = read(raw, tmp_path)
  assert (config.stop_ids, config.pad_id) == ((), 0)


FAULTS = {
  "model_type is 'qwen3_vl_moe'": {"model_type": "qwen3_vl_moe"},
  "text_config.hidden_act = 'gelu' is not supported, only 'silu'": {
    "text_config.hidden_act": "gelu"
  },
  "text_config.num_experts = 8": {"text_config.num_experts": 8},
  "vision_config.hidden_act = 'relu'": {"vision_config.hidden_act": "relu"},
  "vision_config.in_channels = 4": {"vision_config.in_channels": 4},
  "text_config.head_dim is missing": {"text_config.head_dim": None},
  "vision_config.depth is missing": {"vision_config.depth": None},
  "has no rope_theta": {"text_config.rope_theta": None},
  "mrope_interleaved is not true": {"text_config.rope_scaling.mrope_interleaved": False},
  "rope_type 'yarn' is not supported": {"text_config.rope_scaling.rope_type": "yarn"},
  "does not add up to half of head_dim": {"text_config.rope_scaling.mrope_section": [6, 3, 2]},
  "4 is no multiple of num_key_value_heads 3": {"text_config.num_key_value_heads": 3},
  "out_hidden_size 40 is not the decoder's": {"vision_config.out_hidden_size": 40},
  "num_position_embeddings 37 is not a square": {"vision_config.num_position_embeddings": 37},
  "are not ascending blocks of 4": {"vision_config.deepstack_visual_indexes": [0, 4]},
  "3 DeepStack levels, but 2 layers": {"text_config.num_hidden_layers": 2},
}


@pytest.mark.parametrize("words", FAULTS)
def test_what_this_port_does_not_support_is_named(raw, tmp_path, words):
  for dotted, value in FAULTS[words].items():
    *parents, key = dotted.split(".")
    node = raw
    for parent in parents:
      node = node[parent]
    if value is None:
      del node[key]
    else:
      node[key] = value
  with pytest.raises(UserError) as error:
    read(raw, tmp_path)
  assert words in str(error.value) and "config.json" in str(error.value)


def test_all_faults_come_in_one_message(raw, tmp_path):
  raw["text_config"]["hidden_act"], raw["vision_config"]["in_channels"] = "gelu", 1
  with pytest.raises(UserError, match="hidden_act.*in_channels"):
    read(raw, tmp_path)


@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("[]", "holds no JSON object")])
def test_a_broken_file_is_named(tmp_path, text, words):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=words):
    config_lib.from_hf(tmp_path)

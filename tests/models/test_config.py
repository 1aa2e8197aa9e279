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
  "rope_type 'linear' is not supported": {
    "text_config.rope_scaling.rope_type": None,
    "text_config.rope_scaling.type": "linear",
  },
  "rope_type 'dynamic' is not supported": {"text_config.rope_scaling.type": "dynamic"},
  "rope_type 'longrope' is not supported": {
    "text_config.rope_parameters": {"rope_type": "default"},
    "text_config.rope_scaling.type": "longrope",
  },
  "text_config.num_hidden_layers is '4', not a whole": {"text_config.num_hidden_layers": "4"},
  "text_config.vocab_size is True, not a whole": {"text_config.vocab_size": True},
  "text_config.hidden_size is 48.0, not a whole": {"text_config.hidden_size": 48.0},
  "vision_config.depth is 0, not a whole": {"vision_config.depth": 0},
  "num_position_embeddings is '36', not": {"vision_config.num_position_embeddings": "36"},
  "rms_norm_eps is -1, not a number above 0": {"text_config.rms_norm_eps": -1},
  "rms_norm_eps is '1e-6', not a number": {"text_config.rms_norm_eps": "1e-6"},
  "rope_theta is 0, not a number above 0": {"text_config.rope_theta": 0},
  "rope_theta is 'abc', not": {"text_config.rope_theta": "abc"},
  "rope_theta is inf, not": {"text_config.rope_theta": float("inf")},
  "mrope_section is [26, -5, -5]": {"text_config.rope_scaling.mrope_section": [26, -5, -5]},
  "mrope_section is 'abc'": {"text_config.rope_scaling.mrope_section": "abc"},
  "deepstack_visual_indexes is '01'": {"vision_config.deepstack_visual_indexes": "01"},
  "deepstack_visual_indexes is [0, 1.5]": {"vision_config.deepstack_visual_indexes": [0, 1.5]},
  "hidden_size 32 is no multiple of num_heads 3": {"vision_config.num_heads": 3},
  "tie_word_embeddings is 'false'": {"tie_word_embeddings": "false"},
  "text_config is [3], not an object": {"text_config": [3]},
  "rope_scaling is 'yarn', not an object": {"text_config.rope_scaling": "yarn"},
  "weights are quantised (fp8)": {"vision_config.quantization_config": {"quant_method": "fp8"}},
  "3 DeepStack levels, but 2 layers": {"text_config.num_hidden_layers": 2},
  "rope_scaling and rope_parameters differ in rope_type": {
    "text_config.rope_scaling.rope_type": "default",
    "text_config.rope_parameters": {"rope_type": "mrope"},
  },
  "vision_config.rope_theta 100 is not supported": {
    "vision_config.rope_parameters": {"rope_theta": 100}
  },
  "deepstack_visual_indexes is empty": {"vision_config.deepstack_visual_indexes": []},
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


@pytest.mark.parametrize("key", ["deepstack_visual_indexes", "depth"])
def test_null_is_no_value(raw, tmp_path, key):
  raw["vision_config"][key] = None
  with pytest.raises(UserError, match=f"{key} is None, not"):
    read(raw, tmp_path)


def test_the_older_name_of_the_default_is_the_default(raw, tmp_path):
  want = read(raw, tmp_path)
  del raw["text_config"]["rope_scaling"]["rope_type"]
  for kind in ("default", "mrope"):
    raw["text_config"]["rope_scaling"]["type"] = kind
    assert read(raw, tmp_path) == want


@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [99_999, 160, -1, "x", True, 154.0, [[154]], [154, 160], {}])
def test_an_id_is_a_row_of_the_table(raw, tmp_path, key, value):
  (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
  with pytest.raises(UserError, match=f"{key} .* is no id of the model") as error:
    read(raw, tmp_path)
  assert "\n" not in str(error.value)


def test_no_token_at_all_ends_no_response(raw, tmp_path):
  with pytest.raises(UserError, match="eos_token_id is an empty list"):
    read(raw | {"eos_token_id": []}, tmp_path)

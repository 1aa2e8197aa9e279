"""Folders as people have them: other names, shards, adapters, quantised or damaged weights."""

import argparse
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_run
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from rmsd_jax import convert
from rmsd_jax.core import named
from rmsd_jax.core.errors import UserError
from rmsd_jax.models import hf, weight_files

TABLE = "model.language_model.embed_tokens.weight"
NORM = "model.language_model.norm.weight"


@pytest.fixture(scope="module")
def source():
  """(folder, its tensors, its parameters as they are read)."""
  folder = tiny_run.model_folder()
  return folder, load_file(folder / "model.safetensors"), named.flatten(hf.load(folder)[1])


@pytest.fixture
def folder(source, tmp_path):
  """A copy without weights."""
  for file in source[0].iterdir():
    if "safetensors" not in file.name:
      (tmp_path / file.name).write_bytes(file.read_bytes())
  return tmp_path


def put(folder, tensors, name="model.safetensors"):
  save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / name)


def config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check_same(source, folder):
  for name, leaf in named.flatten(hf.load(folder)[1]).items():
    np.testing.assert_array_equal(leaf, source[2][name], err_msg=name)


def refused(folder, words, load=True):
  """Every way to open the folder says so, in one short line."""
  for attempt in [lambda: hf.check_folder(folder), *([lambda: hf.load(folder)] if load else [])]:
    with pytest.raises(UserError, match=words) as error:
      attempt()
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def old(name):  # of transformers 4.4x
  return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


RENAMED = {
  "data parallel": lambda name: "module." + name,
  "peft": lambda name: "base_model.model." + name,
  "compiled": lambda name: "_orig_mod.module." + name,
  "a trainer's": lambda name: "model." + name if name.startswith("model.") else name,
  "4.4x": old,
  "4.4x, wrapped": lambda name: "module.base_model.model." + old(name),
  "nested": lambda name: name.replace("model.language_model.", "language_model.model.").replace(
    "model.visual.", "visual."
  ),
}


@pytest.mark.parametrize("rename", RENAMED)
def test_names_of_other_writers_are_mapped(source, folder, rename):
  put(folder, {RENAMED[rename](name): value for name, value in source[1].items()})
  check_same(source, folder)


def test_shards_are_read_without_an_index_and_a_missing_one_is_noticed(source, folder):
  names = sorted(source[1])
  for i in range(3):
    part = {name: source[1][name] for name in names[i::3]}
    put(folder, part, f"model-0000{i + 1}-of-00003.safetensors")
  check_same(source, folder)
  (folder / "model-00002-of-00003.safetensors").unlink()
  refused(folder, "2 of the 3 files model-...-of-...; copy the missing")
  put(folder, {NORM: source[1][NORM]}, "other-00001-of-00001.safetensors")
  refused(folder, "shards of several sets")


@pytest.mark.parametrize(
  "place", ["../w.safetensors", "/etc/passwd", "a/w.safetensors", "", 3, ".."]
)
def test_an_index_names_files_beside_it_alone(source, folder, place):
  put(folder.parent, source[1], "w.safetensors")
  index = {"weight_map": {name: place for name in source[1]}}
  (folder / weight_files.INDEX).write_text(json.dumps(index))
  refused(folder, "which is no file beside it|has no weight_map")


def test_an_index_and_its_files_must_agree(source, folder):
  put(folder, {name: value for name, value in source[1].items() if name != NORM})
  index = {"weight_map": dict.fromkeys(source[1], "model.safetensors")}
  (folder / weight_files.INDEX).write_text(json.dumps(index))
  refused(folder, f"names {NORM}, which its files do not hold")
  (folder / weight_files.INDEX).unlink()
  put(folder, {**source[1], "module." + NORM: source[1][NORM]})
  refused(folder, f"has {NORM} twice")


@pytest.mark.parametrize("shards", [("a.safetensors",), ("a.safetensors", "b.safetensors")])
def test_a_single_file_beside_an_index_of_others_is_no_one_model(source, folder, shards):
  names = sorted(source[1])
  where = {name: shards[i % len(shards)] for i, name in enumerate(names)}
  for file in shards:
    put(folder, {name: source[1][name] for name in names if where[name] == file}, file)
  (folder / weight_files.INDEX).write_text(json.dumps({"weight_map": where}))
  check_same(source, folder)
  put(folder, {name: 2 * value for name, value in source[1].items()})
  refused(folder, "has model.safetensors, and model.safetensors.index.json of other files; remove")
  (folder / weight_files.INDEX).write_text(
    json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")})
  )
  hf.check_folder(folder)


def test_a_stored_head_is_the_tied_table_or_is_not_dropped(source, folder):
  tensors = {name: value for name, value in source[1].items() if name != "lm_head.weight"}
  raw = json.loads((folder / "config.json").read_text())
  config(folder, tie_word_embeddings=True, text_config=raw["text_config"] | {
    "tie_word_embeddings": True})  # fmt: skip
  put(folder, tensors | {"lm_head.weight": tensors[TABLE]})
  check_same(source, folder)
  for head in (tensors[TABLE] + 1, tensors[TABLE][:-1]):
    put(folder, tensors | {"lm_head.weight": head})
    refused(folder, "lm_head.weight differs from it and would be dropped; set tie_word")
  config(folder, tie_word_embeddings=False)
  put(folder, tensors | {"lm_head.weight": tensors[TABLE] + 1})
  leaves = named.flatten(hf.load(folder)[1])
  np.testing.assert_array_equal(leaves["text/head"], source[2]["text/embed"] + 1)


Q = "model.language_model.layers.0.self_attn.q_proj"
EXTRA = {
  "adapters beside the weights": ({Q + ".lora_A.weight": (2, 2)}, "LoRA adapters.*merge them"),
  "scales": ({Q + ".weight_scale_inv": (1, 1)}, "is quantised; give the folder of the unquant"),
  "AWQ": ({Q + ".qweight": (2, 2), Q + ".qzeros": (2, 2)}, "is quantised"),
  "bitsandbytes": ({Q + ".weight.absmax": (2,)}, "is quantised"),
  "experts": ({"model.language_model.layers.0.mlp.experts.gate_up_proj": (2, 2)}, "mixture of exp"),
}


@pytest.mark.parametrize("case", EXTRA)
def test_foreign_tensors_are_named_with_what_to_do(source, folder, case):
  shapes, words = EXTRA[case]
  extra = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  put(folder, source[1] | extra)
  refused(folder, words)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_integers_and_8_bit_floats_are_no_weights(source, folder, dtype):
  tensors = {name: torch.tensor(value) for name, value in source[1].items()}
  tensors[Q + ".weight"] = tensors[Q + ".weight"].to(dtype)
  save_torch(tensors, folder / "model.safetensors")
  refused(folder, r"integers or 8-bit floats.*q_proj.weight \(.*unquantised model")


@pytest.mark.parametrize("section", [None, "text_config"])
def test_a_quantised_config_is_refused(source, folder, section):
  put(folder, source[1])
  quantised = {"quantization_config": {"quant_method": "fp8"}}
  raw = json.loads((folder / "config.json").read_text())
  config(folder, **({section: raw[section] | quantised} if section else quantised))
  refused(folder, r"quantised \(fp8\); give the folder of the unquantised")


@pytest.mark.parametrize(
  ("file", "words"),
  [
    ("adapter_model.safetensors", "holds a LoRA adapter; merge it"),
    ("model.Q4_K_M.gguf", "GGUF files are not read"),
    ("pytorch_model-00001-of-00002.bin", "torch.save are not read; save them with"),
    ("weights.safetensors", r"copy the whole checkpoint folder \(weights.safetensors may be it"),
  ],
)
def test_a_folder_without_weights_says_what_lies_there_instead(folder, file, words):
  (folder / file).write_bytes(b"0")
  refused(folder, words)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters_without_a_config_are_named_as_such(tmp_path, file, capsys):
  (tmp_path / file).write_text("{}")
  with pytest.raises(
    UserError, match="config.json does not exist; the folder holds a LoRA adapter"
  ):
    convert.inspect(argparse.Namespace(folder=tmp_path))
  (tmp_path / file).unlink()
  with pytest.raises(UserError) as caught:
    convert.inspect(argparse.Namespace(folder=tmp_path))
  assert "LoRA" not in str(caught.value)


def test_many_wrong_names_are_a_short_line(source, folder):
  put(
    folder, {f"transformer.{i}.{name}": value for i, (name, value) in enumerate(source[1].items())}
  )
  refused(folder, "missing .* and [0-9]+ more; unknown .* and [0-9]+ more")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [TABLE, Q + ".weight", "model.visual.pos_embed.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(source, folder, name, value):
  bad = source[1][name].copy()
  bad[-1, 0] = value
  put(folder, source[1] | {name: bad})
  hf.check_folder(folder)  # it reads headers
  with pytest.raises(UserError, match=f"tensor {name} has 1 values that are not finite"):
    jax.block_until_ready(hf.load(folder)[1])


def test_what_a_narrower_type_cannot_hold_is_refused(source, folder):
  large = source[1][NORM].copy()
  large[0] = 1e6
  put(folder, source[1] | {NORM: large})
  assert np.isfinite(named.flatten(hf.load(folder)[1])["text/norm"]).all()
  with pytest.raises(
    UserError, match=f"{NORM} has 1 values that are not finite as float16; .*wider"
  ):
    hf.load(folder, dtype="float16")


def test_what_older_uploads_list_or_hold_beside_is_not_missed(source, folder):
  """A tied head in the index that no file has; the frequencies of the positions."""
  name = "model.visual.rotary_pos_emb.inv_freq"
  put(folder, source[1] | {name: np.ones(4, np.float32)})
  listed = dict.fromkeys([*source[1], name, "lm_head.weight"], "model.safetensors")
  (folder / weight_files.INDEX).write_text(json.dumps({"weight_map": listed}))
  check_same(source, folder)


def test_an_adapter_beside_the_weights_is_not_left_out(source, folder):
  put(folder, source[1])
  (folder / "adapter_model.safetensors").write_bytes(b"")
  with pytest.raises(UserError, match="must not be read without its adapter: .* merge it"):
    hf.load(folder)


def test_an_export_says_in_which_type_its_weights_are(source, folder, tmp_path):
  """transformers loads them in the type that config.json names."""
  put(folder, source[1])
  path = folder / "config.json"
  raw = json.loads(path.read_text())
  raw |= {"dtype": "bfloat16", "text_config": raw["text_config"] | {"dtype": "bfloat16"}}
  path.write_text(json.dumps(raw))
  params = hf.load(folder)[1]
  for name, dtype in (("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16)):
    hf.save(tmp_path / name, params, folder, dtype=dtype)
    told = json.loads((tmp_path / name / "config.json").read_text())
    assert told["dtype"] == told["text_config"]["dtype"] == name
  assert (tmp_path / "bfloat16" / "config.json").read_bytes() == path.read_bytes()


def test_an_export_holds_what_belongs_to_a_model_folder_alone(source, folder, tmp_path):
  put(folder, source[1])
  theirs = {file.name for file in folder.iterdir()}
  kept = ["LICENSE", "NOTICE.txt", "vocab.json", "video_preprocessor_config.json", "extra.jinja"]
  left = ["optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin",
          "rng_state.pth",
          "pytorch_model.bin", "model.gguf", "adapter_config.json", "quantize_config.json",
          "hf_quant_config.json", "README.md", "events.out", ".gitattributes"]  # fmt: skip
  for name in kept + left:
    (folder / name).write_text("{}")
  (folder / "global_step5").mkdir()
  out = tmp_path / "out"
  hf.save(out, hf.load(folder)[1], folder, dtype=np.float32)
  assert {file.name for file in out.iterdir()} == theirs | set(kept)
  assert len({file.stat().st_mode for file in out.iterdir()}) == 1  # all are read by whom one is
  check_same(source, out)
  convert.main(["verify", str(out)])

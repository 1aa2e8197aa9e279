"""The command line of convert: inspect, verify, export."""

import json

import jax
import numpy as np
import pytest
import tiny_run
from safetensors.numpy import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from rmsd_jax import convert, train_sft
from rmsd_jax.core import named
from rmsd_jax.core.errors import UserError
from rmsd_jax.models import hf


@pytest.fixture(scope="module")
def folder():
  return tiny_run.model_folder()


def test_inspect_prints_sizes_and_counts(folder, capsys):
  convert.main(["inspect", str(folder)])
  printed = capsys.readouterr().out
  count = sum(tensor.size for tensor in load_file(folder / "model.safetensors").values())
  assert f"{count:,}" in printed and "layers 2" in printed
  assert "all tensors of config.json are there" in printed


def test_inspect_names_what_is_wrong_with_the_weights(folder, tmp_path):
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  tensors = load_file(folder / "model.safetensors")
  save_file({k: v for k, v in tensors.items() if "k_norm" not in k}, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match=r"missing .*layers\.0\.self_attn\.k_norm\.weight"):
    convert.main(["inspect", str(tmp_path)])


def test_verify_passes_on_a_sound_folder_and_fails_above_the_tolerance(folder, capsys):
  convert.main(["verify", str(folder)])
  printed = capsys.readouterr().out
  assert all(case in printed for case in convert.CASES) and "all within 1.0e-04" in printed
  with pytest.raises(UserError, match="differ by .* more than 1.0e-12"):
    convert.main(["verify", str(folder), "--tolerance", "1e-12"])


def test_export_writes_what_transformers_loads(folder, tmp_path, monkeypatch, capsys):
  """The student of a run, its trained weights new and its frozen ones as they were."""
  tiny_run.run(monkeypatch, train_sft, tiny_run.config("sft", steps=2), tmp_path / "run")
  out = tmp_path / "exported"
  with pytest.raises(UserError, match="'model' is not here; give --base FOLDER"):
    convert.main(["export", "--workdir", str(tmp_path / "run"), "--out", str(out), "--base=model"])
  convert.main(["export", "--workdir", str(tmp_path / "run"), "--out", str(out)])
  assert "student of step 2" in capsys.readouterr().out
  loaded, info = Qwen3VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert str(loaded.dtype) == "torch.bfloat16"
  before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
  changed = {n for n in before if not np.array_equal(before[n].astype(after[n].dtype), after[n])}
  assert changed and all("language_model" in name for name in changed)
  for file in folder.iterdir():
    if "safetensors" not in file.name:
      assert (out / file.name).read_bytes() == file.read_bytes()
  convert.main(["verify", str(out)])
  _, params = hf.load(out)
  state = tiny_run.restored(tmp_path / "run", train_sft, tiny_run.config("sft", steps=2))
  wanted = named.flatten(named.join(state["frozen"], state["student"]))
  for name, leaf in named.flatten(jax.device_get(params)).items():
    np.testing.assert_array_equal(leaf, wanted[name].astype(jax.numpy.bfloat16).astype(np.float32))


def test_an_export_with_other_shards_leaves_no_old_file(folder, tmp_path):
  _, params = hf.load(folder)
  hf.save(tmp_path, params, folder, shard_bytes=20_000)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  sizes = [(tmp_path / file).stat().st_size for file in set(index["weight_map"].values())]
  assert len(sizes) > 2 and index["metadata"]["total_size"] == 2 * sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )
  hf.save(tmp_path, params, folder)
  assert [file.name for file in tmp_path.glob("*safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["inspect", "no/such"], "config.json does not exist"),
    (["export", "--workdir", "no/such", "--out", "x"], "config.json does not exist"),
    (["verify"], "required: folder"),
  ],
)
def test_bad_arguments_are_one_line(arguments, words):
  with pytest.raises(UserError, match=words):
    convert.main(arguments)

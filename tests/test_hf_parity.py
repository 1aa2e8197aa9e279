"""Our Qwen3-VL against transformers': same random weights, noisy pictures, fp32, every logit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from small import CONFIG, IMAGE, VIDEO, VISION_END, VISION_START, VOCAB, groups, prompt
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from rmsd_jax import named, sharding
from rmsd_jax.errors import UserError
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import hf

IDS = dict(
  image_token_id=IMAGE,
  video_token_id=VIDEO,
  vision_start_token_id=VISION_START,
  vision_end_token_id=VISION_END,
  eos_token_id=154,
  pad_token_id=155,
)
TOLERANCE = 1e-4


def one_device():
  return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, tmp_path_factory):
  """transformers' model, every weight random (norms and biases too), and ours from its files."""
  raw = config_lib.to_hf(
    dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tied=request.param)), IDS
  )
  torch.manual_seed(0)
  theirs = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**raw)).eval()
  with torch.no_grad():
    for weight in theirs.parameters():
      weight.add_(0.1 * torch.randn_like(weight))
  folder = tmp_path_factory.mktemp("model")
  theirs.save_pretrained(folder)
  model = hf.load_model(folder)
  return theirs, model, hf.load(folder, one_device()), folder


def their_logits(theirs, ids, is_visual, patches, grids, kind):
  """Logits of one row in transformers, given the processor's own tensors."""
  pixels = torch.tensor(np.concatenate(patches)).float() / 127.5 - 1 if patches else None
  types = np.where(is_visual, 2 if kind == "video" else 1, 0)
  inputs = dict(
    input_ids=torch.tensor(ids)[None].long(), mm_token_type_ids=torch.tensor(types)[None]
  )
  if patches and kind == "video":  # a clip: frame pairs of one size are one grid
    inputs |= dict(
      pixel_values_videos=pixels, video_grid_thw=torch.tensor([[len(grids), *grids[0]]])
    )
  elif patches:
    inputs |= dict(pixel_values=pixels, image_grid_thw=torch.tensor([[1, *g] for g in grids]))
  with torch.no_grad():
    return theirs(**inputs).logits[0].numpy()


CASES = {
  "text": ([], "video"),
  "image": ([(4, 6)], "image"),
  "two_images": ([(4, 6), (6, 2)], "image"),
  "clip": ([(4, 6)] * 3, "video"),
  "tall_clip": ([(6, 4)] * 2, "video"),
}


def build(seed, case, response=6):
  rng = np.random.default_rng(seed)
  grids, kind = CASES[case]
  ids, is_visual, patches = prompt(rng, grids, token=IMAGE if kind == "image" else VIDEO)
  return (ids, is_visual, patches), grids, kind, rng.integers(0, 140, response)


def our_logits(model, params, batch):
  prompt_BPD, response_BRTD = model(params, batch)
  table = model.unembedding(params)
  return np.asarray(prompt_BPD @ table.T), np.asarray(response_BRTD @ table.T)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(pair, case):
  theirs, model, params, _ = pair
  row, grids, kind, response = build(1, case)
  ids = np.concatenate([row[0], response])
  visual = np.concatenate([row[1], np.zeros(len(response), bool)])
  want = their_logits(theirs, ids, visual, row[2], grids, kind)
  prompt_BPV, response_BRTV = our_logits(model, params, groups([row], [grids], [[response]]))
  n = len(row[0])
  np.testing.assert_allclose(prompt_BPV[0, :n], want[:n], atol=TOLERANCE, rtol=0)
  np.testing.assert_allclose(response_BRTV[0, 0, : len(response)], want[n:], atol=TOLERANCE, rtol=0)


def test_a_batch_of_mixed_rows_equals_its_rows(pair):
  theirs, model, params, _ = pair
  rows = [build(i, case) for i, case in enumerate(CASES)]
  batch = groups([r[0] for r in rows], [r[1] for r in rows], [[r[3]] for r in rows])
  _, response_BRTV = our_logits(model, params, batch)
  for b, (row, grids, kind, response) in enumerate(rows):
    ids = np.concatenate([row[0], response])
    visual = np.concatenate([row[1], np.zeros(len(response), bool)])
    want = their_logits(theirs, ids, visual, row[2], grids, kind)[len(row[0]) :]
    np.testing.assert_allclose(response_BRTV[b, 0, : len(response)], want, atol=TOLERANCE, rtol=0)


def test_every_weight_group_moves_the_logits(pair):
  """A weight that is read but not used (a dropped DeepStack, say) would pass by accident."""
  _, model, params, _ = pair
  row, grids, _, response = build(2, "clip")
  batch = groups([row], [grids], [[response]])
  logits = jax.jit(lambda p: our_logits_jax(model, p, batch))
  before = logits(params)
  for name, leaf in named.flatten(params).items():
    noise = 0.3 * jax.random.normal(jax.random.key(1), leaf.shape)
    levels = range(leaf.shape[0]) if name.startswith("vision/deepstack") else [...]
    for level in levels:
      moved = named.unflatten({**named.flatten(params), name: leaf.at[level].add(noise[level])})
      assert abs(logits(moved) - before).max() > 1e-3, f"{name}[{level}] does not move the logits"


def our_logits_jax(model, params, batch):
  return model(params, batch)[1] @ model.unembedding(params).T


def test_export_gives_back_the_same_tensors(pair, tmp_path):
  from safetensors.numpy import load_file

  theirs, _, params, folder = pair
  hf.save(tmp_path, params, folder, dtype=np.float32)
  before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    np.testing.assert_array_equal(tensor, after[name], err_msg=name)
  loaded, info = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert loaded.config.text_config.vocab_size == VOCAB


def test_a_sharded_folder_loads_like_a_single_file(pair, tmp_path):
  _, _, params, folder = pair
  hf.save(tmp_path, params, folder, dtype=np.float32, shard_bytes=50_000)
  assert len(list(tmp_path.glob("*.safetensors"))) > 2
  again = named.flatten(hf.load(tmp_path, sharding.make_mesh(1, 4, 2)))
  for name, leaf in named.flatten(params).items():
    np.testing.assert_array_equal(leaf, again[name], err_msg=name)


def test_broken_folders_are_refused_with_what_and_where(pair, tmp_path):
  from safetensors.numpy import load_file, save_file

  _, _, params, folder = pair
  with pytest.raises(UserError, match="config.json does not exist"):
    hf.load(tmp_path / "nothing", one_device())
  hf.save(tmp_path, params, folder)
  tensors = load_file(tmp_path / "model.safetensors")
  tensors["extra.weight"] = tensors.pop("model.visual.pos_embed.weight")
  tensors["model.language_model.norm.weight"] = np.zeros(3, np.float32)
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError) as error:
    hf.load(tmp_path, one_device())
  for part in ("missing model.visual.pos_embed", "unknown extra", "norm.weight is (3,)"):
    assert part in str(error.value)
  data = (folder / "model.safetensors").read_bytes()
  (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match="not a whole safetensors file"):
    hf.load(tmp_path, one_device())
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(UserError, match="model.safetensors does not exist"):
    hf.load(tmp_path, one_device())
  raw = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**raw, "model_type": "qwen3"}))
  with pytest.raises(UserError, match="model_type is 'qwen3'"):
    hf.load(tmp_path, one_device())


def test_rope_positions_equal_transformers(pair):
  from rmsd_jax import positions

  theirs = pair[0]
  rng = np.random.default_rng(5)
  for grids, kind in CASES.values():
    ids, is_visual, _ = prompt(rng, grids, token=IMAGE if kind == "image" else VIDEO)
    types = torch.tensor(np.where(is_visual, 2 if kind == "video" else 1, 0))[None]
    video = torch.tensor([[len(grids), *grids[0]]]) if grids and kind == "video" else None
    image = torch.tensor([[1, *g] for g in grids]) if grids and kind == "image" else None
    want, delta = theirs.model.get_rope_index(
      torch.tensor(ids)[None].long(),
      types,
      image_grid_thw=image,
      video_grid_thw=video,
      attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    )
    got, following = positions.prompt_positions(is_visual, np.array(grids).reshape(-1, 2))
    np.testing.assert_array_equal(got, want[:, 0].numpy())
    assert following == len(ids) + int(delta[0])

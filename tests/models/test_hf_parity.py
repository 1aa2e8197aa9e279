"""Our Qwen3-VL against transformers': same random weights, noisy pictures, every logit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_run
import torch
from clips import write_clip
from PIL import Image
from safetensors.numpy import load_file, save_file
from small import CONFIG, IMAGE, VIDEO, VISION_END, VISION_START, VOCAB
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from rmsd_jax import convert
from rmsd_jax.core import named, positions, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.data import prompts
from rmsd_jax.data.processor import Processor
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import hf
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.rollouts.generate import generate

IDS = dict(
  image_token_id=IMAGE,
  video_token_id=VIDEO,
  vision_start_token_id=VISION_START,
  vision_end_token_id=VISION_END,
  eos_token_id=154,
  pad_token_id=155,
)
TOKENS = convert.Tokens(IMAGE, VIDEO, VISION_START, VISION_END)
LAYOUT = prompts.Layout(CONFIG.vision.patch, CONFIG.vision.merge, CONFIG.vision.temporal, 155)
TOLERANCE = 1e-4


def one_device():
  return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


def make_pair(folder, tied: bool):
  """transformers' model, every weight random (norms and biases too), and ours from its files."""
  raw = config_lib.to_hf(
    dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tied=tied)), IDS
  )
  torch.manual_seed(0)
  theirs = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**raw)).eval()
  with torch.no_grad():
    for weight in theirs.parameters():
      weight.add_(0.1 * torch.randn_like(weight))
  theirs.save_pretrained(folder)
  model = hf.load_model(folder)
  return theirs, model, hf.load_params(folder, one_device()), folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return make_pair(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def either(request, pair, tmp_path_factory):
  """Also with a table of its own for the output, which no other test depends on."""
  return pair if request.param else make_pair(tmp_path_factory.mktemp("model"), tied=False)


def row_of(case: str, seed=0) -> convert.Case:
  return convert.make_case(CONFIG, TOKENS, convert.CASES[case], seed)


def groups_of(cases, responses=None) -> PromptGroups:
  """A batch of cases; `responses`: per case a list of R lists of ids."""
  groups = prompts.collate([case.prompt for case in cases], LAYOUT)
  if responses is None:
    return groups
  T = max(len(ids) for row in responses for ids in row)
  ids_BRT = np.zeros((len(cases), len(responses[0]), T), np.int32)
  for b, row in enumerate(responses):
    for r, ids in enumerate(row):
      ids_BRT[b, r, : len(ids)] = ids
  return groups.with_responses(ids_BRT, np.array([[len(ids) for ids in r] for r in responses]))


def their_logits(theirs, case: convert.Case, response=()) -> np.ndarray:
  ids_P = np.concatenate([case.prompt.ids_P, np.array(response, np.int32)])
  longer = case._replace(prompt=dataclasses.replace(case.prompt, ids_P=ids_P))
  with torch.no_grad():
    return theirs(**convert.their_inputs(longer, TOKENS)).logits[0].numpy()


def test_logits_equal_transformers(either):
  """Text, images, clips, both in either order, two clips, extreme shapes: all in one batch."""
  theirs, model, params, _ = either
  found = convert.compare(model, params, theirs, TOKENS, pad_id=155)
  assert found.keys() == convert.CASES.keys()
  for case, (difference, largest) in found.items():
    assert difference < TOLERANCE < 1 < largest, case


def test_logits_of_responses_equal_transformers(either):
  theirs, model, params, _ = either
  rng = np.random.default_rng(3)
  cases = [row_of(case, seed) for seed, case in enumerate(convert.CASES)]
  responses = [[rng.integers(0, 140, 4), rng.integers(0, 140, 6)] for _ in cases]
  _, response_BRTD = model(params, groups_of(cases, responses))
  response_BRTV = np.asarray(response_BRTD @ model.unembedding(params).T)
  for b, (case, row) in enumerate(zip(cases, responses, strict=True)):
    for r, ids in enumerate(row):
      want = their_logits(theirs, case, ids)[len(case.prompt.ids_P) :]
      np.testing.assert_allclose(response_BRTV[b, r, : len(ids)], want, atol=TOLERANCE, rtol=0)


def test_the_states_that_deepstack_adds_to_are_transformers(pair):
  """What goes into layers 1, 2, 3: the first layers by themselves, the same last norm on both."""
  theirs, model, params, _ = pair
  case, seen = row_of("image and clip"), {}
  text = theirs.model.language_model
  hooks = [
    text.layers[i].register_forward_pre_hook(
      lambda _, args, kwargs, i=i: seen.update({i: (args or (kwargs["hidden_states"],))[0]}),
      with_kwargs=True,
    )
    for i in range(1, len(text.layers))
  ]
  their_logits(theirs, case)
  for hook in hooks:
    hook.remove()
  assert sorted(seen) == [1, 2, 3]
  for depth, state in seen.items():
    config = dataclasses.replace(
      model.config, text=dataclasses.replace(model.config.text, layers=depth)
    )
    first = jax.tree.map(lambda x, depth=depth: x[:depth], params["text"]["layers"])
    shallow = dataclasses.replace(model, config=config)
    cut = params | {"text": params["text"] | {"layers": first}}
    got, _ = jax.jit(shallow.__call__)(cut, groups_of([case]))
    with torch.no_grad():
      want = text.norm(state)[0].numpy()
    np.testing.assert_allclose(got[0, : len(want)], want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["text", "image", "clip"])
def test_greedy_tokens_equal_transformers(pair, case):
  theirs, model, params, _ = pair
  row = row_of(case, 4)
  inputs = convert.their_inputs(row, TOKENS)
  want = theirs.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=154)[0]
  want = want[len(row.prompt.ids_P) :].tolist()
  out = generate(model, params, groups_of([row]), max_tokens=12)
  assert model.config.stop_ids == (154,)
  assert out.responses_BRT[0, 0, : out.length_BR[0, 0]].tolist() == want


def moved(pair, change, names=("image", "clip")) -> list[float]:
  """Largest differences from transformers' logits after `change(model, params, groups)`."""
  theirs, model, params, _ = pair
  cases = [row_of(name) for name in names]
  hidden, _ = change(model, params, groups_of(cases))
  logits_BPV = np.asarray(hidden @ model.unembedding(params).T)
  return [
    float(np.abs(logits_PV[: len(case.prompt.ids_P)] - their_logits(theirs, case)).max())
    for logits_PV, case in zip(logits_BPV, cases, strict=True)
  ]


def test_mutants_do_not_pass_for_qwen3_vl(pair):
  """What other ports have got wrong; each is far outside the tolerance."""

  def one_axis(model, params, groups):  # plain 1-D positions
    B, P = groups.tokens_BP.shape
    positions_B3P = np.tile(np.arange(P), (B, 3, 1))
    return model(params, dataclasses.replace(groups, positions_B3P=positions_B3P))

  def no_deepstack(model, params, groups):
    visual = model.encode(params, groups)
    return model(params, groups, dataclasses.replace(visual, deep_BnVD=0 * visual.deep_BnVD))

  def swapped_levels(model, params, groups):
    visual = model.encode(params, groups)
    return model(params, groups, dataclasses.replace(visual, deep_BnVD=visual.deep_BnVD[:, ::-1]))

  def other_pictures(model, params, groups):
    patches = np.random.default_rng(9).permutation(groups.patches_BFSC.ravel())
    shape = groups.patches_BFSC.shape
    return model(params, dataclasses.replace(groups, patches_BFSC=patches.reshape(shape)))

  def shifted(axis):
    def change(model, params, groups):
      positions_B3P = groups.positions_B3P.copy()
      positions_B3P[:, axis] += 2 * (groups.visual_BP >= 0)
      return model(params, dataclasses.replace(groups, positions_B3P=positions_B3P))

    return change

  assert max(moved(pair, lambda *arguments: arguments[0](*arguments[1:]))) < TOLERANCE
  for change in (one_axis, no_deepstack, swapped_levels, other_pictures, *map(shifted, range(3))):
    assert min(moved(pair, change)) > 30 * TOLERANCE, change


def test_bfloat16_stays_near(pair):
  """The bound: the differences' root mean square is below 3 % of the logits'."""
  theirs, _, _, folder = pair
  model, params = hf.load(folder, dtype="bfloat16")
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("bfloat16")}
  cases = {name: row_of(name) for name in convert.CASES}
  logits_BPV = np.asarray(model.logits(params, groups_of(list(cases.values()))))
  for (name, case), logits_PV in zip(cases.items(), logits_BPV, strict=True):
    want = their_logits(theirs, case)
    got = logits_PV[: len(want)]
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.03 * np.sqrt(np.mean(want**2)), name


def test_every_weight_group_moves_the_logits(either):
  """A weight that is read but not used (a dropped DeepStack, say) would pass by accident."""
  _, model, params, _ = either
  batch = groups_of([row_of("clip", 2)])
  logits = jax.jit(lambda params: model.logits(params, batch))
  rng = np.random.default_rng(1)
  before = logits(params)
  for name, leaf in named.flatten(params).items():
    noise = 0.3 * rng.standard_normal(leaf.shape, np.float32)
    levels = range(leaf.shape[0]) if name.startswith("vision/deepstack") else [...]
    for level in levels:
      moved = named.unflatten({**named.flatten(params), name: leaf.at[level].add(noise[level])})
      assert abs(logits(moved) - before).max() > 1e-3, f"{name}[{level}] does not move the logits"


def test_export_gives_back_the_same_tensors(either, tmp_path):
  theirs, _, params, folder = either
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
  again = named.flatten(hf.load_params(tmp_path, sharding.make_mesh(1, 4, 2)))
  for name, leaf in named.flatten(params).items():
    np.testing.assert_array_equal(leaf, again[name], err_msg=name)


def test_broken_folders_are_refused_with_what_and_where(pair, tmp_path):
  _, _, params, folder = pair
  with pytest.raises(UserError, match="config.json does not exist"):
    hf.load_params(tmp_path / "nothing", one_device())
  hf.save(tmp_path, params, folder)
  tensors = load_file(tmp_path / "model.safetensors")
  tensors["extra.weight"] = tensors.pop("model.visual.pos_embed.weight")
  tensors["model.language_model.norm.weight"] = np.zeros(3, np.float32)
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError) as error:
    hf.load_params(tmp_path, one_device())
  for part in ("missing model.visual.pos_embed", "unknown extra", "norm.weight is (3,)"):
    assert part in str(error.value)
  data = (folder / "model.safetensors").read_bytes()
  (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match="not a whole safetensors file"):
    hf.load_params(tmp_path, one_device())
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(UserError, match="model.safetensors does not exist"):
    hf.load_params(tmp_path, one_device())
  raw = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**raw, "model_type": "qwen3"}))
  with pytest.raises(UserError, match="model_type is 'qwen3'"):
    hf.load_params(tmp_path, one_device())


def test_rope_positions_equal_transformers(pair):
  theirs = pair[0]
  for name in convert.CASES:
    case = row_of(name)
    inputs = convert.their_inputs(case, TOKENS)
    want, delta = theirs.model.get_rope_index(
      inputs["input_ids"],
      inputs["mm_token_type_ids"],
      inputs.get("image_grid_thw"),
      inputs.get("video_grid_thw"),
    )
    got, following = positions.prompt_positions(case.prompt.is_visual_P, case.prompt.grid_F2)
    np.testing.assert_array_equal(got, want[:, 0].numpy())
    assert following == len(case.prompt.ids_P) + int(delta)


@pytest.mark.parametrize("size", config_lib.PRESETS)
def test_presets_have_the_shapes_of_the_released_models(size):
  """Every tensor of transformers' model at its real size, without memory, and ours."""
  config = config_lib.PRESETS[size]
  with torch.device("meta"):
    theirs = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config_lib.to_hf(config, IDS)))
  want = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
  if config.text.tied:
    want.pop("lm_head.weight")
  assert hf.their_shapes(Qwen3VL(config)) == want


def test_prompts_of_real_files_equal_transformers(tmp_path):
  """From files on disk: an odd number of frames, sides that are no multiples, a picture below the
  least and one above the most pixels, two conversations in one batch."""
  folder, rng = tiny_run.model_folder(), np.random.default_rng(0)
  write_clip(tmp_path / "odd.mp4", frames=27)
  for name, shape in (("tiny.png", (9, 20, 3)), ("huge.png", (300, 210, 3))):
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
  processor = Processor(folder, video_pixels=(1024, 9_000), image_pixels=(2_000, 6_000))
  names = (("odd.mp4", "What?"), ("tiny.png", "and", "huge.png", "and", "odd.mp4"))
  kinds = {".mp4": "video", ".png": "image"}
  conversations, cases = [], []
  for row in names:
    media = [(kinds[name[-4:]], str(tmp_path / name)) for name in row if name[-4:] in kinds]
    content = [{"type": kind, kind: path} for kind, path in media]
    conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}])
    prompt = processor.prompt(conversations[-1])
    pairs = [3 if kind == "video" else 1 for kind, _ in media]
    first = np.cumsum([0, *pairs[:-1]])
    grids = tuple((n, *prompt.grid_F2[i].tolist()) for n, i in zip(pairs, first, strict=True))
    cases.append(convert.Case(prompt, tuple(kind for kind, _ in media), grids))
  assert sum(map(len, (case.prompt.patches for case in cases))) == 3 + 1 + 1 + 3
  theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
  c = theirs.config
  tokens = convert.Tokens(
    c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id
  )
  model, params = hf.load(folder)
  batch = processor(conversations)
  logits_BPV = np.asarray(model.logits(params, batch))
  texts = processor.decode(generate(model, params, batch, max_tokens=8))
  for case, logits_PV, answers in zip(cases, logits_BPV, texts, strict=True):
    inputs = convert.their_inputs(case, tokens)
    with torch.no_grad():
      want = theirs(**inputs).logits[0].numpy()
    np.testing.assert_allclose(logits_PV[: len(want)], want, atol=TOLERANCE, rtol=0)
    ids = theirs.generate(**inputs, do_sample=False, max_new_tokens=8)[0, len(want) :].numpy()
    ids = ids[ids != model.config.stop_ids[0]]
    assert answers == processor.tokenizer.decode_groups(ids[None, None], np.array([[len(ids)]]))[0]

"""processor.py against transformers' Qwen3-VL processor and positions, end to end."""

import dataclasses
import io
import json
import pickle
import warnings

import numpy as np
import pytest
import tiny_tokenizer
import torch
import transformers
from clips import torch_resize, write_clip
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.positions import prompt_positions
from rmsd_jax.data import images, media, processor, prompts

PATCH, MERGE, TEMPORAL = 8, 2, 2
VIDEO_PIXELS, IMAGE_PIXELS = (1024, 40_000), (256, 3000)


class TorchVideoProcessor(Qwen3VLVideoProcessor):
  """transformers' own, with the resize that it delegates to torchvision done by torch."""

  def resize(self, videos, size, **_):
    budget = images.Budget("hf_video", size.shortest_edge, size.longest_edge, PATCH, MERGE)
    target = budget.size(*(videos.shape[axis] for axis in (1, 3, 4)))
    clips = [torch_resize(clip.permute(0, 2, 3, 1).numpy(), *target, "hf") for clip in videos]
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)


class TorchImageProcessor(Qwen2VLImageProcessorPil):
  """transformers' own, likewise."""

  def resize(self, image, size, **_):
    budget = images.Budget("hf_image", size.shortest_edge, size.longest_edge, PATCH, MERGE)
    target = budget.size(1, *image.shape[1:])
    return torch_resize(image.transpose(1, 2, 0)[None], *target, "hf")[0].transpose(2, 0, 1)


class TheirProcessor(Qwen3VLProcessor):
  """transformers' own; the class check needs torchvision's registry, which is not installed."""

  def check_argument_for_proper_class(self, argument_name, argument):
    return type(argument)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_tokenizer.write_model_folder(tmp_path_factory.mktemp("model"), PATCH, MERGE, TEMPORAL)


@pytest.fixture(scope="module")
def ours(folder):
  return processor.Processor(
    folder, video_pixels=VIDEO_PIXELS, image_pixels=IMAGE_PIXELS, outer_vision_wrapper=True
  )


@pytest.fixture(scope="module")
def theirs(folder):
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  raw = {"do_rescale": False, "do_normalize": False}
  sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}

  def edges(pixels):
    return {"shortest_edge": pixels[0], "longest_edge": pixels[1]}

  return TheirProcessor(
    image_processor=TorchImageProcessor(**raw, **sizes, size=edges(IMAGE_PIXELS)),
    tokenizer=tokenizer,
    video_processor=TorchVideoProcessor(
      **raw, **sizes, size=edges(VIDEO_PIXELS), cap_pixels_per_frame=False
    ),
    chat_template=tokenizer.chat_template,
  )


@pytest.fixture(scope="module")
def rope_index():
  """transformers' get_rope_index, on a model without weights."""
  vision = {"depth": 1, "deepstack_visual_indexes": [0], "spatial_merge_size": MERGE}
  config = transformers.Qwen3VLConfig(
    text_config={"num_hidden_layers": 1, "vocab_size": 400}, vision_config=vision
  )
  with torch.device("meta"):
    model = transformers.Qwen3VLModel(config)
  return model.get_rope_index


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A clip of 27 frames and two noisy images of different shape."""
  folder = tmp_path_factory.mktemp("files")
  rng = np.random.default_rng(0)
  for name, shape in (("wide.png", (40, 90, 3)), ("tall.png", (64, 32, 3))):
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
  write_clip(folder / "clip.mp4", frames=27)
  return folder


def conversation(files, names):
  """One user turn: every name is a file, or else a text."""
  content = []
  for name in names:
    kind = {".mp4": "video", ".png": "image"}.get(name[-4:])
    content.append({"type": kind, kind: files / name} if kind else {"type": "text", "text": name})
  return [{"role": "system", "content": "system"}, {"role": "user", "content": content}]


def run_theirs(theirs, messages):
  """The same conversation through transformers; frames and indices are handed to it."""
  pictures, clips, metadata = [], [], []
  for item in messages[1]["content"]:
    if item["type"] == "image":
      pictures.append(media.load_image(item["image"]))
    if item["type"] == "video":
      clip = media.decode(item["video"])
      clips.append(torch.from_numpy(clip.frames_NHWC).permute(0, 3, 1, 2))
      metadata.append(
        VideoMetadata(total_num_frames=27, fps=clip.fps, frames_indices=clip.indices_N.tolist())
      )
  return theirs(
    text=[theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)],
    images=pictures or None,
    videos=clips or None,
    videos_kwargs={
      "video_metadata": metadata or None, "do_sample_frames": False, "do_convert_rgb": False
    },
    return_tensors="pt",
  )  # fmt: skip


@pytest.mark.parametrize(
  "names",
  [
    ["What is the colour?"],
    ["wide.png", "What?"],
    ["wide.png", "and", "tall.png", "What?"],
    ["clip.mp4", "What?"],
    ["before", "clip.mp4", "wide.png", "tall.png", "clip.mp4"],
  ],
)
def test_a_prompt_is_transformers(ours, theirs, rope_index, files, names):
  messages = conversation(files, names)
  prompt, expected = ours.prompt(messages), run_theirs(theirs, messages)
  np.testing.assert_array_equal(prompt.ids_P, expected["input_ids"][0].numpy())
  types_P = expected["mm_token_type_ids"][0].numpy()
  np.testing.assert_array_equal(prompt.is_visual_P, types_P > 0)

  thw = {"png": expected.get("image_grid_thw"), "mp4": expected.get("video_grid_thw")}
  pixels = {"png": expected.get("pixel_values"), "mp4": expected.get("pixel_values_videos")}
  media_iterators = {
    kind: iter(zip(grids.tolist(), pixels[kind].split(grids.prod(dim=1).tolist()), strict=True))
    for kind, grids in thw.items()
    if grids is not None
  }
  in_order = [next(media_iterators[name[-3:]]) for name in names if name[-3:] in media_iterators]
  grid_F2 = [grid[1:] for grid, _ in in_order for _ in range(grid[0])]
  np.testing.assert_array_equal(prompt.grid_F2, np.array(grid_F2).reshape(-1, 2))
  if in_order:
    patches = torch.cat([block for _, block in in_order]).numpy()
    difference = np.concatenate(prompt.patches) - patches.astype(int)
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) <= 0.01 * difference.size

  positions_3P, next_position = prompt_positions(prompt.is_visual_P, prompt.grid_F2, MERGE)
  position_ids, delta = rope_index(
    expected["input_ids"], expected["mm_token_type_ids"], thw["png"], thw["mp4"]
  )
  np.testing.assert_array_equal(positions_3P, position_ids[:, 0].numpy())
  assert next_position == len(prompt.ids_P) + int(delta)


def test_the_released_layout_has_no_outer_pair(ours, folder, files):
  messages = conversation(files, ["clip.mp4", "What?"])
  released = processor.Processor(
    folder, video_pixels=VIDEO_PIXELS, image_pixels=IMAGE_PIXELS, outer_vision_wrapper=False
  )
  with_pair, without = (p.prompt(messages).ids_P.tolist() for p in (ours, released))
  start, end = ours.tokenizer.vision_start, ours.tokenizer.vision_end
  with_pair.pop(with_pair.index(start))
  with_pair.pop(len(with_pair) - 1 - with_pair[::-1].index(end))
  assert with_pair == without


def test_times_are_those_of_the_frames(ours, files):
  prompt = ours.prompt(conversation(files, ["wide.png", "clip.mp4"]))
  indices = np.linspace(0, 26, 5).round()  # 2.7 s at 2 a second
  expected = np.array([indices[[0, 1]], indices[[2, 3]], indices[[4, 4]]]) / 10
  assert prompt.times_F2.shape == (4, 2)
  assert prompt.times_F2.dtype == np.float32
  assert np.isnan(prompt.times_F2[0]).all()
  np.testing.assert_allclose(prompt.times_F2[1:], expected, rtol=1e-6)


def test_a_window_keeps_the_clock_of_the_file(ours, files):
  messages = conversation(files, ["clip.mp4"])
  messages[1]["content"][0].update(start=1.0, end=1.3)
  prompt = ours.prompt(messages)
  np.testing.assert_allclose(prompt.times_F2, [[1.0, 1.1], [1.2, 1.3]], rtol=1e-6)
  text = ours.tokenizer._tokenizer.decode(prompt.ids_P)
  assert "<1.1 seconds>" in text
  assert "<1.2 seconds>" in text


def test_pictures_give_back_the_patches(ours, files):
  prompt = ours.prompt(conversation(files, ["tall.png", "clip.mp4", "wide.png"]))
  pictures = ours.frame_pictures(prompt)
  single = [0, 3, 4]  # the stills, and the clip's last pair, which repeats its frame
  for number, (picture, grid_2) in enumerate(zip(pictures, prompt.grid_F2, strict=True)):
    rows, columns = grid_2 * PATCH
    assert picture.shape == (rows if number in single else TEMPORAL * rows, columns, 3)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    restored = processor.patches_from_picture(np.array(Image.open(file)), grid_2, PATCH, MERGE)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, prompt.patches[number])


def test_a_picture_shows_the_clip_as_it_was(ours, files):
  clip = media.decode(files / "clip.mp4")
  prompt = ours.prompt(conversation(files, ["clip.mp4"]))
  rows, columns = (prompt.grid_F2[0] * PATCH).tolist()
  resized = images.resize_bicubic(clip.frames_NHWC, rows, columns)
  picture = ours.frame_pictures(prompt)[1]
  np.testing.assert_array_equal(picture, resized[2:4].reshape(2 * rows, columns, 3))


def test_another_clip_is_another_prompt(ours, files, tmp_path):
  write_clip(tmp_path / "clip.mp4", frames=13)
  one = ours.prompt(conversation(files, ["clip.mp4", "What?"]))
  two = ours.prompt(conversation(tmp_path, ["clip.mp4", "What?"]))
  assert one.ids_P.tolist() != two.ids_P.tolist()
  assert any((a != b).any() for a, b in zip(one.patches, two.patches, strict=False))


def test_a_wrong_size_is_named(ours, files):
  prompt = ours.prompt(conversation(files, ["tall.png"]))
  picture = ours.frame_pictures(prompt)[0]
  with pytest.raises(UserError, match=r"shape \(\d+, \d+, 3\), but its grid of"):
    processor.patches_from_picture(picture[:-1], prompt.grid_F2[0], PATCH, MERGE)


def test_placeholders_are_held_against_features(ours, files):
  prompt = ours.prompt(conversation(files, ["tall.png"]))
  twice = {"grid_F2": prompt.grid_F2.repeat(2, 0), "patches": prompt.patches * 2}
  broken = dataclasses.replace(prompt, **twice)
  places = int(prompt.is_visual_P.sum())
  with pytest.raises(UserError, match=f"{places} visual placeholders.* {2 * places} visual tokens"):
    prompts.check_prompt(broken, MERGE)


@pytest.mark.parametrize(
  ("messages", "words"),
  [
    ([], "last message"),
    ([{"role": "assistant", "content": "a"}], "last message"),
    ([{"role": "teacher", "content": "a"}], "system, user, assistant"),
    ([{"role": "user"}], "message 0 is"),
    ([{"role": "user", "content": 7}], "content 7"),
    ([{"role": "user", "content": [{"text": "a"}]}], "type None"),
    ([{"role": "user", "content": [{"type": "audio"}]}], "'audio'; known: text, image, video"),
    ([{"role": "user", "content": [{"type": "video"}]}], "required: type, video"),
    (
      [{"role": "user", "content": [{"type": "image", "image": "a", "start": 1}]}],
      "allowed: image, type",
    ),
    ([{"role": "user", "content": "<|video_pad|>"}], "control token"),
    ([{"role": "user", "content": [{"type": "image", "image": "no.png"}]}], "no such file"),
  ],
)
def test_malformed_messages_are_named(ours, messages, words):
  with pytest.raises(UserError, match=words):
    ours.prompt(messages)


def test_it_travels_to_other_processes(ours, files):
  messages = conversation(files, ["clip.mp4", "What?"])
  copy = pickle.loads(pickle.dumps(ours))
  np.testing.assert_array_equal(copy.prompt(messages).ids_P, ours.prompt(messages).ids_P)
  assert copy.settings() == ours.settings() == json.loads(json.dumps(ours.settings()))


def test_settings_tell_processors_apart(ours, folder):
  other = processor.Processor(folder, sampling=media.Sampling(frames=16), video_style="utils_video")
  changed = {key for key, value in other.settings().items() if value != ours.settings()[key]}
  assert changed == {"video", "image", "sampling", "outer_vision_wrapper"}
  assert other.video.flavour == "utils"


def test_geometry_comes_from_the_folder(folder, tmp_path):
  assert processor.read_geometry(folder) == (PATCH, MERGE, TEMPORAL)
  with pytest.raises(UserError, match=r"config\.json gives no vision_config"):
    processor.read_geometry(tmp_path)
  config = tmp_path / "config.json"
  for content in ("{", "[]", '{"vision_config": {"patch_size": 16}}'):
    config.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="gives no vision_config with patch_size"):
      processor.read_geometry(tmp_path)
  config.write_text(
    '{"vision_config": {"patch_size": 0, "spatial_merge_size": 2, "temporal_patch_size": 2}}',
    encoding="utf-8",
  )
  with pytest.raises(UserError, match="positive integers"):
    processor.read_geometry(tmp_path)


HALF = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
  ("name", "said", "words"),
  [
    ("preprocessor_config.json", {"image_mean": [0.48, 0.46, 0.41]}, r"image_mean \[0.48"),
    ("preprocessor_config.json", {"image_std": [1, 1, 1]}, "image_std"),
    ("preprocessor_config.json", {"patch_size": 14}, "patch_size 14, but 8"),
    ("video_preprocessor_config.json", {"merge_size": 4}, "merge_size 4, but 2"),
    ("video_preprocessor_config.json", {"temporal_patch_size": 1}, "temporal_patch_size 1, but 2"),
    ("processor_config.json", {"image_processor": {"rescale_factor": 1}}, "rescale_factor 1"),
    ("preprocessor_config.json", {"do_normalize": False}, "do_normalize False"),
    (
      "preprocessor_config.json",
      {"image_mean": HALF, "image_std": HALF, "patch_size": 8, "merge_size": 2, "resample": 3,
       "temporal_patch_size": 2, "rescale_factor": 0.00392156862745098, "size": {}},
      None,
    ),
  ],
)  # fmt: skip
def test_what_preprocessor_files_say_is_what_is_computed(tmp_path, name, said, words):
  tiny_tokenizer.write_model_folder(tmp_path, PATCH, MERGE, TEMPORAL)
  (tmp_path / name).write_text(json.dumps(said))
  if words is None:
    assert processor.Processor(tmp_path).layout.patch == PATCH
  else:
    with pytest.raises(UserError, match=f"{name} says {words}"):
      processor.Processor(tmp_path)


@pytest.mark.parametrize(
  ("name", "said", "words"),
  [
    ("preprocessor_config.json", {"size": {"longest_edge": 262_144}}, "size .*262144"),
    ("preprocessor_config.json", {"max_pixels": 262_144}, "max_pixels 262144"),
    ("video_preprocessor_config.json", {"fps": 1, "max_frames": 4}, "fps 1, max_frames 4"),
    ("video_preprocessor_config.json", {"num_frames": 32}, "num_frames 32"),
    ("processor_config.json", {"video_processor": {"do_sample_frames": False}}, "do_sample_frames"),
    ("processor_config.json", {"image_processor": {"do_resize": False}}, "do_resize False"),
  ],
)
def test_what_preprocessor_files_say_and_is_not_read_is_told(tmp_path, name, said, words):
  tiny_tokenizer.write_model_folder(tmp_path, PATCH, MERGE, TEMPORAL)
  (tmp_path / name).write_text(json.dumps(said))
  with pytest.warns(UserWarning, match=f"{name} says {words}.*, which is not read"):
    processor.Processor(tmp_path)


def test_what_the_released_models_say_is_what_is_done(tmp_path):
  tiny_tokenizer.write_model_folder(tmp_path, PATCH, MERGE, TEMPORAL)
  released = {"fps": 2, "min_frames": 4, "max_frames": 768, "do_resize": True}
  pixels = {"shortest_edge": 4_096, "longest_edge": 25_165_824}
  (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(released | {"size": pixels}))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    processor.Processor(tmp_path)

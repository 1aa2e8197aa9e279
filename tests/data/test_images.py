"""images.py against torch's resize and transformers' Qwen3-VL processors."""

import hypothesis
import numpy as np
import pytest
import torch
from clips import torch_resize
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
  Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
  smart_resize as image_size,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
  Qwen3VLVideoProcessor,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
  smart_resize as clip_size,
)

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import images

sides = st.integers(1, 200)


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(("hf", "utils"))
)
def test_resize_is_torchs(source, target, flavour):
  frames = noise(1, *source, 3)
  difference = images.resize_bicubic(frames, *target, flavour) - torch_resize(
    frames, *target, flavour
  ).astype(int)
  assert np.abs(difference).max() <= 1
  # A single value may lie on a rounding edge; small pictures have few values.
  assert np.count_nonzero(difference) <= max(2, 0.01 * difference.size)


@pytest.mark.parametrize("target", [(448, 832), (736, 640)])
def test_resize_of_a_frame_is_exact(target):
  frames = noise(1, 720, 1280, 3)
  difference = images.resize_bicubic(frames, *target, "hf") - torch_resize(
    frames, *target, "hf"
  ).astype(int)
  if "AVX" in torch.backends.cpu.get_cpu_capability():  # elsewhere torch has no 8-bit kernel
    assert not difference.any()
  difference = images.resize_bicubic(frames, *target, "utils") - torch_resize(
    frames, *target, "utils"
  ).astype(int)
  assert np.abs(difference).max() <= 1
  assert np.count_nonzero(difference) < 1e-4 * difference.size


def test_resize_keeps_flat_colour_and_size():
  flat = np.broadcast_to(np.array([3, 128, 255], np.uint8), (1, 37, 53, 3))
  for flavour in ("hf", "utils"):
    assert (images.resize_bicubic(flat, 64, 32, flavour) == flat[0, 0, 0]).all()
    np.testing.assert_array_equal(images.resize_bicubic(flat, 37, 53, flavour), flat)
  with pytest.raises(ValueError, match="known: hf, utils"):
    images.resize_bicubic(flat, 64, 32, "nearest")


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
  frames=st.integers(2, 800),
  height=st.integers(1, 3000),
  width=st.integers(1, 3000),
  patch=st.sampled_from((8, 14, 16)),
  least=st.integers(1, 10**6),
  extra=st.integers(0, 3 * 10**7),
)
def test_sizes_are_transformers(frames, height, width, patch, least, extra):
  factor = 2 * patch
  hypothesis.assume(max(height, width) <= 190 * min(height, width))
  most = max(least + extra, 2 * factor**2)
  theirs = clip_size(frames, height, width, factor=factor, min_pixels=least, max_pixels=most)
  ours = images.Budget("hf_video", least, most, patch).size(frames, height, width)
  assert ours == theirs
  theirs = image_size(height, width, factor=factor, min_pixels=least, max_pixels=most)
  ours = images.Budget("hf_image", least, most, patch).size(1, height, width)
  assert ours == theirs


# Sizes that transformers and qwen-vl-utils give 64 frames with their default limits, and the latter
# with at most 262,144 pixels.
@pytest.mark.parametrize(
  ("source", "hf", "utils", "small"),
  [
    ((720, 1280), (448, 832), (640, 1152), (384, 672)),
    ((1080, 1920), (448, 832), (640, 1152), (384, 672)),
    ((480, 854), (448, 832), (480, 864), (352, 672)),
    ((360, 640), (352, 640), (352, 640), (352, 640)),
  ],
)
def test_sizes_at_64_frames(source, hf, utils, small):
  assert images.budget("hf_video").size(64, *source) == hf
  assert images.budget("utils_video").size(64, *source) == utils
  assert images.budget("utils_video", (128 * 1024, 262_144)).size(64, *source) == small


def test_a_long_clip_shares_the_context_of_qwen_vl_utils():
  # 117,964,800 pixels over 768 frames leave 307,200 a frame, counted in pairs: a third of the area
  # of the source, so its sides shrink by the square root of 3, to 415 x 739 and then whole tokens.
  height, width = images.budget("utils_video").size(768, 720, 1280)
  assert (height, width) == (384, 736)
  assert height * width <= 117_964_800 / 768 * 2


def test_one_frame_is_sized_as_the_pair_it_becomes():
  budget = images.budget("hf_video", (4096, 64 * 64 * 2))
  assert budget.size(1, 480, 480) == budget.size(2, 480, 480) == (64, 64)


def test_defaults_scale_with_the_patch():
  assert images.budget("hf_image").min_pixels == 65_536
  assert images.budget("hf_image", patch=8).min_pixels == 65_536 // 4
  assert images.budget("hf_video").max_pixels == 25_165_824


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: images.budget("qwen"), "hf_video, hf_image, utils_video"),
    (lambda: images.Budget("hf", 1, 2), "hf_video, hf_image, utils_video"),
    (lambda: images.budget("hf_video", (9000, 8000)), "9000 to 8000"),
    (lambda: images.budget("hf_video", (0, 8000)), "0 to 8000"),
    (lambda: images.budget("hf_video", (1, 1024)), "2048 pixels"),
    (lambda: images.budget("hf_image", patch=0), "patch 0"),
    (lambda: images.budget("hf_image").size(1, 10, 2001), "10 x 2001"),
  ],
)
def test_impossible_budgets_are_named(make, words):
  with pytest.raises(UserError, match=words):
    make()


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_patches_stand_in_transformers_order(frames):
  frames_NHWC = noise(frames, 48, 64, 3)
  ours = images.patchify(frames_NHWC, patch=8, temporal=2, merge=2)
  theirs, *grid = Qwen3VLVideoProcessor().patchify(
    torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2)[None].contiguous(), 8, 2, 2
  )
  assert grid == [-(-frames // 2), 6, 8]
  np.testing.assert_array_equal(ours.reshape(theirs.shape[1:]), theirs[0].numpy())


def test_image_patches_stand_in_transformers_order():
  image_HWC = noise(32, 48, 3)
  ours = images.patchify(image_HWC[None], patch=8, temporal=2, merge=2)
  theirs, *grid = Qwen2VLImageProcessorPil().patchify(image_HWC.transpose(2, 0, 1), 8, 2, 2)
  assert grid == [4, 6]
  np.testing.assert_array_equal(ours[0], theirs)


@pytest.mark.parametrize(("temporal", "merge"), [(1, 1), (2, 2), (3, 2), (2, 3)])
def test_unpatchify_is_the_inverse(temporal, merge):
  patch, grid = 4, (2 * merge, 3 * merge)
  frames_NHWC = noise(2 * temporal, grid[0] * patch, grid[1] * patch, 3)
  patches_FSC = images.patchify(frames_NHWC, patch, temporal, merge)
  np.testing.assert_array_equal(
    images.unpatchify(patches_FSC, grid, patch, temporal, merge), frames_NHWC
  )


def test_a_last_pair_is_filled_by_its_last_frame():
  frames_NHWC = noise(3, 16, 16, 3)
  patches_FSC = images.patchify(frames_NHWC, patch=8)
  restored = images.unpatchify(patches_FSC, (2, 2), patch=8)
  np.testing.assert_array_equal(restored, frames_NHWC[[0, 1, 2, 2]])


def test_frames_must_be_whole_tokens():
  with pytest.raises(ValueError, match="40 x 48"):
    images.patchify(noise(2, 40, 48, 3), patch=8)

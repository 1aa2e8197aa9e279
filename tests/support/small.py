"""A small Qwen3-VL and random prompt groups, shared by the tests."""

import numpy as np

from rmsd_jax.core import positions
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.models.config import ModelConfig, TextConfig, VisionConfig

VOCAB, IMAGE, VIDEO, VISION_START, VISION_END, END = 160, 150, 151, 152, 153, 154

CONFIG = ModelConfig(
  TextConfig(
    layers=4,
    width=48,
    heads=4,
    kv_heads=2,
    mlp=96,
    head=24,
    vocab=VOCAB,
    theta=5e6,
    sections=(6, 3, 3),
  ),
  VisionConfig(depth=4, width=32, heads=2, mlp=64, out=48, patch=4, table=6, deepstack=(0, 1, 3)),
)


def prompt(rng, grids, before=3, between=2, after=4, token=VIDEO):
  """Ids, is_visual and noisy patches of a prompt: text, then frame pairs with text between."""
  ids = list(rng.integers(0, 140, before))
  for rows, columns in grids:
    ids += [
      *rng.integers(0, 140, between),
      VISION_START,
      *[token] * (rows * columns // 4),
      VISION_END,
    ]
  ids = np.array([*ids, *rng.integers(0, 140, after)], np.int32)
  values = CONFIG.vision.patch_values
  patches = [rng.integers(0, 256, (r * c, values), np.uint8) for r, c in grids]
  return ids, np.isin(ids, (IMAGE, VIDEO)), patches


def groups(prompts, grids, responses, P=64, T=8, F=3, S=24) -> PromptGroups:
  """Pads a list of prompts (see `prompt`), their grids and lists of response ids."""
  B, R = len(prompts), max(map(len, responses))
  zeros = lambda *shape, dtype=np.int32: np.zeros(shape, dtype)
  g = dict(
    tokens_BP=zeros(B, P),
    positions_B3P=zeros(B, 3, P),
    prompt_length_B=zeros(B),
    next_position_B=zeros(B),
    visual_BP=np.full((B, P), -1, np.int32),
    patches_BFSC=zeros(B, F, S, CONFIG.vision.patch_values, dtype=np.uint8),
    grid_BF2=zeros(B, F, 2),
    responses_BRT=zeros(B, R, T),
    response_length_BR=zeros(B, R),
  )
  for b, ((ids, is_visual, patches), grid) in enumerate(zip(prompts, grids, strict=True)):
    n = len(ids)
    g["tokens_BP"][b, :n], g["prompt_length_B"][b] = ids, n
    where, g["next_position_B"][b] = positions.prompt_positions(
      is_visual, np.array(grid).reshape(-1, 2)
    )
    g["positions_B3P"][b, :, :n] = where
    places = [f * (S // 4) + j for f, x in enumerate(patches) for j in range(len(x) // 4)]
    g["visual_BP"][b, :n][is_visual] = places
    for f, x in enumerate(patches):
      g["patches_BFSC"][b, f, : len(x)], g["grid_BF2"][b, f] = x, grid[f]
    for r, ids_T in enumerate(responses[b]):
      g["responses_BRT"][b, r, : len(ids_T)], g["response_length_BR"][b, r] = ids_T, len(ids_T)
  return PromptGroups(**g)


def random_groups(seed=0, B=2, R=3, T=8, **kwargs) -> PromptGroups:
  """Prompts of different lengths and pictures (one of them text only when B > 1)."""
  rng = np.random.default_rng(seed)
  shapes = [[(4, 6), (4, 6)], [], [(2, 4)], [(6, 4), (2, 2), (4, 4)]]
  grids = [shapes[b % len(shapes)] for b in range(B)]
  prompts = [prompt(rng, grid, before=3 + b) for b, grid in enumerate(grids)]
  responses = [
    [np.append(rng.integers(0, 140, rng.integers(1, T)), END) for _ in range(R)] for _ in range(B)
  ]
  return groups(prompts, grids, responses, T=T, **kwargs)

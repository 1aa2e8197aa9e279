"""Qwen3-VL folders in and out: inspect one, compare it with transformers, export a trained student.

    python -m rmsd_jax.convert inspect FOLDER    sizes, parameters, ids; checks names and shapes
    python -m rmsd_jax.convert verify  FOLDER    logits against transformers (needs torch)
    python -m rmsd_jax.convert export  --workdir RUN --out FOLDER
                                                 a run's student, for transformers and vLLM

Axes: P prompt tokens, V vocabulary, S patches of a medium, C values of a patch.
"""

import argparse
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import jax
import numpy as np

from rmsd_jax import cli
from rmsd_jax.core import named, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import prompts
from rmsd_jax.models import hf
from rmsd_jax.models.config import ModelConfig
from rmsd_jax.training import checkpoint, guard
from rmsd_jax.training import state as state_lib

DTYPES = ("float32", "bfloat16")


class Tokens(NamedTuple):
  """Token ids of media in a prompt, from config.json."""

  image: int
  video: int
  start: int
  end: int


class Case(NamedTuple):
  """One prompt of `verify`: what we read, and what transformers needs to know beside it."""

  prompt: prompts.Prompt
  kinds: tuple[str, ...]  # "image" or "video" per medium
  grids: tuple[tuple[int, int, int], ...]  # (frame pairs, rows, columns) of patches per medium


CASES = {  # media of each prompt of `verify`, grids in visual tokens: (pairs, rows, columns)
  "text": (),
  "image": (("image", (1, 2, 3)),),
  "two images": (("image", (1, 2, 3)), ("image", (1, 3, 1))),
  "clip": (("video", (3, 2, 3)),),
  "image and clip": (("image", (1, 1, 4)), ("video", (2, 3, 2))),
  "clip and image": (("video", (2, 3, 2)), ("image", (1, 1, 4))),
  "two clips": (("video", (1, 2, 2)), ("video", (2, 1, 3))),
  "one token": (("image", (1, 1, 1)),),
  "long and thin": (("video", (1, 1, 12)),),
}


def make_case(config: ModelConfig, tokens: Tokens, media: Sequence, seed: int) -> Case:
  """A prompt of random text and noise, one run of visual tokens per frame pair as Qwen3-VL has it.

  Args:
    media: (kind, (frame pairs, rows, columns of visual tokens)) of each image or clip.
  """
  rng = np.random.default_rng(seed)
  merge = config.vision.merge
  # Below the special tokens: a stray one would change the layout of media in one of the two.
  plain = np.setdiff1d(np.arange(min(config.text.vocab, min(tokens))), tokens)
  text = lambda count: rng.choice(plain, count).tolist()
  ids = text(5)
  patches = []
  grids = []
  for kind, (pairs, rows, columns) in media:
    grids.append((pairs, rows * merge, columns * merge))
    count = pairs * rows * columns * merge**2
    patches.append(rng.integers(0, 256, (count, config.vision.patch_values), np.uint8))
    for _ in range(pairs):  # a clip's pairs stand apart, behind their timestamps
      place = [getattr(tokens, kind)] * (rows * columns)
      ids += [*text(3 if kind == "video" else 1), tokens.start, *place, tokens.end]
  ids += text(6)
  visual = (tokens.image, tokens.video)
  prompt = prompts.from_arrays(ids, list(zip(patches, grids, strict=True)), visual)
  return Case(prompt, tuple(kind for kind, _ in media), tuple(grids))


def their_inputs(case: Case, tokens: Tokens) -> dict:
  """The same prompt as torch tensors, in the form of transformers' processor."""
  import torch

  ids_P = case.prompt.ids_P
  by_kind = {"image": [], "video": []}
  types_P = (ids_P == tokens.image) + 2 * (ids_P == tokens.video)
  patches = iter(case.prompt.patches)
  for kind, grid in zip(case.kinds, case.grids, strict=True):
    by_kind[kind].append((np.concatenate([next(patches) for _ in range(grid[0])]), grid))
  inputs = {
    "input_ids": torch.tensor(ids_P)[None].long(),
    "mm_token_type_ids": torch.tensor(types_P)[None],
  }
  for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
    if by_kind[kind]:
      pixels = np.concatenate([patches_SC for patches_SC, _ in by_kind[kind]]).astype(np.float32)
      inputs[name] = torch.tensor(pixels / 127.5 - 1)
      inputs[f"{kind}_grid_thw"] = torch.tensor([grid for _, grid in by_kind[kind]])
  return inputs


def compare(ours, params: dict, theirs, tokens: Tokens, pad_id: int) -> dict[str, tuple]:
  """Logits of every case, all ours in one batch: {case: (largest difference, largest logit)}.

  Args:
    ours: the `Qwen3VL`, with its `params`.
    theirs: transformers' Qwen3VLForConditionalGeneration, on the CPU.
  """
  import torch

  cases = [make_case(ours.config, tokens, media, i) for i, media in enumerate(CASES.values())]
  v = ours.config.vision
  layout = prompts.Layout(v.patch, v.merge, v.temporal, pad_id)
  groups = prompts.collate([case.prompt for case in cases], layout)
  logits_BPV = np.asarray(ours.logits(params, groups))
  result = {}
  for name, case, logits_PV in zip(CASES, cases, logits_BPV, strict=True):
    # One by one on their side: transformers pads a batch, and how is no part of the model.
    with torch.no_grad():
      wanted_PV = theirs(**their_inputs(case, tokens)).logits[0].float().numpy()
    difference = np.abs(logits_PV[: len(wanted_PV)] - wanted_PV).max()
    result[name] = float(difference), float(np.abs(wanted_PV).max())
  return result


def verify(args: argparse.Namespace) -> None:
  """Compares logits with transformers, case by case; fails above the tolerance."""
  if importlib.util.find_spec("torch") is None:
    raise UserError("verify needs torch beside transformers; install it (a CPU build will do)")
  import torch
  from transformers import Qwen3VLForConditionalGeneration

  ours, params = hf.load(args.folder, dtype=args.dtype)
  theirs = Qwen3VLForConditionalGeneration.from_pretrained(
    args.folder, dtype=getattr(torch, args.dtype), attn_implementation="eager"
  ).eval()
  c = theirs.config
  tokens = Tokens(
    c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id
  )
  differences = compare(ours, params, theirs, tokens, ours.config.pad_id)
  print(f"{'case':<16} {'largest difference':>20} {'largest logit':>14}")
  for name, (difference, largest) in differences.items():
    print(f"{name:<16} {difference:>20.2e} {largest:>14.2f}")
  worst = max(differences, key=lambda name: differences[name][0])
  if not differences[worst][0] <= args.tolerance:  # NaN fails too
    raise UserError(
      f"the logits of {worst!r} differ by {differences[worst][0]:.2e}, more than "
      f"{args.tolerance:.1e}; "
      "the folder's config.json may hold a field that this port reads otherwise"
    )
  print(f"all within {args.tolerance:.1e} ({args.dtype})")


def inspect(args: argparse.Namespace) -> None:
  """Prints the sizes and checks the weights' names and shapes against config.json."""
  model = hf.load_model(args.folder)
  for name, part in (("text", model.config.text), ("vision", model.config.vision)):
    print(f"{name:<7} " + ", ".join(f"{key} {value}" for key, value in vars(part).items()))
  print(f"stop ids {model.config.stop_ids}, pad id {model.config.pad_id}")
  print(named.count_table(model.abstract()))
  count = sum(leaf.size for leaf in jax.tree.leaves(model.abstract()))
  print(f"  {2 * count / 2**30:.2f} GiB in bfloat16, {4 * count / 2**30:.2f} GiB in float32")
  files = hf.check_folder(args.folder)
  print(f"all tensors of config.json are there, with its shapes ({files} safetensors files)")


def export(args: argparse.Namespace) -> None:
  """Writes the student of a run as a Hugging Face folder."""
  config = guard.read_config(args.workdir)
  base = args.base or config["model"]["folder"]
  if not pathlib.Path(base).is_dir():
    raise UserError(
      f"the folder {base!r} is not here; give --base FOLDER, a copy of the weights that the run "
      "began from (for config.json and the tokenizer)"
    )
  step = checkpoint.find_step(args.workdir, args.checkpoint)
  mesh = sharding.make_mesh(1, 1, 1, jax.devices("cpu")[:1])  # host memory
  model = hf.load_model(base)
  entries = state_lib.load_student(mesh, model, base, args.workdir, config["trained"], step)
  hf.save(args.out, state_lib.weights(entries), base, dtype=np.dtype(args.dtype))
  print(f"wrote the student of step {step} to {args.out} ({args.dtype}; other files from {base})")


def parser() -> argparse.ArgumentParser:
  """The command line."""
  top = cli.parser_of(main)
  commands = top.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
  sub = commands.add_parser("inspect", help="sizes of a folder, and whether its weights fit them")
  sub.set_defaults(run=inspect)
  sub.add_argument("folder", help="a Hugging Face Qwen3-VL folder")
  sub = commands.add_parser("verify", help="logits against transformers")
  sub.set_defaults(run=verify)
  sub.add_argument("folder", help="a Hugging Face Qwen3-VL folder")
  sub.add_argument("--tolerance", type=float, default=1e-4, help="default: %(default)s")
  sub.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
  sub = commands.add_parser("export", help="a run's student -> a Hugging Face folder")
  sub.set_defaults(run=export)
  sub.add_argument("--workdir", required=True, metavar="RUN", help="work folder of a run")
  sub.add_argument("--out", required=True, type=pathlib.Path, metavar="FOLDER", help="to write")
  sub.add_argument("--checkpoint", default="latest", help="latest, best or a step (default latest)")
  sub.add_argument("--base", metavar="FOLDER", help="other files; default: the run's model.folder")
  sub.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
  return top


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the sub-command that `argv` (default: the command line) names."""
  args = parser().parse_args(argv)
  args.run(args)


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.run(main)


if __name__ == "__main__":
  command()

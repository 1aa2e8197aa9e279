"""Collects and builds teacher pools, checks them and reports how reliable their teachers are.

python -m rmsd_jax.pool collect --prompts prompts.jsonl --out pool.jsonl --model NAME --base-url URL
python -m rmsd_jax.pool plan --jsonl pool.jsonl --tokenizer FOLDER
python -m rmsd_jax.pool build --jsonl pool.jsonl --out DIR --tokenizer FOLDER --buckets P,T,F,S
python -m rmsd_jax.pool report DIR
python -m rmsd_jax.pool check DIR
"""

import argparse
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from rmsd_jax import cli, collect
from rmsd_jax.data import batch, media, planning, pool, rows, study
from rmsd_jax.data.processor import Processor
from rmsd_jax.errors import UserError
from rmsd_jax.groups import Bucket
from rmsd_jax.tasks import quality, registry, response


def prompt_text(task: str, question: str, options: Sequence[str]) -> str:
  """The text that the model reads for a question."""
  return registry.prompt_text(registry.get(task), question, options)


def validate(task: str, answer: Any, options: Sequence[str]) -> str | None:
  """What is wrong with the ground truth of a record, or None."""
  return registry.get(task).validate(answer, options)


def score(
  task: str,
  text: str,
  answer: Any,
  options: Sequence[str],
  finish_reason: str,
  tokens: int,
  max_tokens: int,
) -> quality.Score:
  """The scorer of tasks/ in the form that the builder calls."""
  given = (text, answer, options, finish_reason, tokens, max_tokens)
  return quality.score(registry.get(task), *given)


def rules() -> rows.Rules:
  """The tasks as the builder sees them."""
  closed = {name: task.closed for name, task in registry.TASKS.items()}
  return rows.Rules(quality.SCORER_VERSION, closed, prompt_text, validate, score)


def processor_of(args: argparse.Namespace) -> Processor:
  """The processor that the flags describe."""
  return Processor(
    args.tokenizer,
    sampling=media.Sampling(
      args.fps,
      args.min_frames,
      args.max_frames,
      args.frames,
      even=args.video_style == "utils_video",
    ),
    video_style=args.video_style,
    video_pixels=args.video_pixels,
    image_pixels=args.image_pixels,
  )


def plan(args: argparse.Namespace) -> None:
  """Prints what the media and texts of records will take, without decoding the clips."""
  from rmsd_jax.metrics import Progress  # not at the top: worker processes import this file

  bar = functools.partial(Progress, label="records")
  print(planning.table(planning.plan(args.jsonl, processor_of(args), rules(), bar)))


def build(args: argparse.Namespace) -> None:
  """Builds a pool and prints what went in and what did not."""
  from rmsd_jax.metrics import Progress  # as in plan

  processor = processor_of(args)
  metadata = pool.build(
    args.jsonl,
    args.out,
    processor,
    rules(),
    args.buckets,
    progress=functools.partial(Progress, label="records"),
    limits=pool.Limits(args.time_limit, args.max_bad_share, args.max_long_share),
    workers=args.workers,
    overwrite=args.overwrite,
  )
  _print_summary(args.out, metadata)


def report(args: argparse.Namespace) -> None:
  """Prints the study of one split."""
  opened = pool.open_pool(args.directory, args.split)
  figures = study.variance((opened[i] for i in range(len(opened))), _answer_of)
  if args.json:
    print(json.dumps(_without_nan(figures), indent=1, allow_nan=False))
  else:
    print(study.table(figures))
    print("mean, s.d., min, max and kept (share with quality >= tau): closed-ended tasks only")


def check(args: argparse.Namespace) -> None:
  """Reads every row of every split, and scores its responses again."""
  from rmsd_jax.metrics import Progress  # as in build

  metadata = pool.read_metadata(args.directory)
  if metadata["scorer"] != quality.SCORER_VERSION:
    raise UserError(
      f"the pool was scored by version {metadata['scorer']}, this is {quality.SCORER_VERSION}; "
      "build it again"
    )
  scorer = rules().score
  for split, tasks in metadata["rows"].items():
    opened = pool.open_pool(args.directory, split)
    with Progress(len(opened), f"checking {split}") as bar:
      for index in range(len(opened)):
        _check_row(opened, index, scorer)
        bar.update(1)
    print(f"{split}: {sum(tasks.values())} rows are sound")


def _check_row(opened: pool.Pool, index: int, scorer) -> None:
  row = opened[index]
  bucket = opened.buckets[row.bucket]
  batch.collate([row], [index], bucket, len(row.texts), opened.layout)
  if (row.bucket, row.task) != (opened.bucket_N[index], opened.task_N[index]):
    raise UserError(f"row {index} ({row.id!r}) is not the one in the index; build the pool again")
  for k, text in enumerate(row.texts):
    given = (row.answer, row.options, row.finish_reasons[k], int(row.tokens_K[k]))
    fresh = scorer(row.task, text, *given, bucket.response)
    if fresh.valid != row.valid_K[k] or not math.isclose(
      fresh.quality, row.quality_K[k], abs_tol=1e-6
    ):
      raise UserError(
        f"response {k} of row {row.id!r} is stored with quality {row.quality_K[k]:g}, but scores "
        f"{fresh.quality:g} now; build the pool again"
      )


def _answer_of(text: str) -> str:
  return response.parse(text).answer


def _without_nan(figures: Any) -> Any:
  """NaN, which JSON does not have, becomes null."""
  if isinstance(figures, dict):
    return {str(key): _without_nan(value) for key, value in figures.items()}
  return None if isinstance(figures, float) and math.isnan(figures) else figures


def _print_summary(out: str, metadata: dict[str, Any]) -> None:
  for split, tasks in metadata["rows"].items():
    per_task = ", ".join(f"{task} {count}" for task, count in tasks.items())
    print(f"{split}: {sum(tasks.values())} rows ({per_task})")
  print(
    f"{metadata['responses']} responses, up to {metadata['k']} per prompt; "
    f"{metadata['long_responses']} longer than T, {metadata['truncated_responses']} cut off by the "
    "teacher's limit"
  )
  kinds = ", ".join(f"{kind} {count}" for kind, count in metadata["quarantined"].items())
  total = sum(metadata["quarantined"].values())
  where = pathlib.Path(out, "quarantine.jsonl")
  print(f"{total} lines in quarantine" + (f" ({kinds}); reasons in {where}" if total else ""))


def parse_bucket(text: str) -> Bucket:
  """ "P,T,F,S" -> Bucket."""
  sizes = text.split(",")
  if len(sizes) != len(Bucket._fields) or not all(size.strip().isdecimal() for size in sizes):
    raise argparse.ArgumentTypeError(f"{text!r} is not four whole numbers P,T,F,S")
  return Bucket(*map(int, sizes))


def parse_pixels(text: str) -> tuple[int, int]:
  """ "LEAST,MOST" -> both."""
  sizes = text.split(",")
  if len(sizes) != 2 or not all(size.strip().isdecimal() for size in sizes):
    raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers LEAST,MOST")
  return int(sizes[0]), int(sizes[1])


def parser() -> argparse.ArgumentParser:
  """The command line."""
  top = cli.Parser(
    prog="python -m rmsd_jax.pool",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = top.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
  one = commands.add_parser("collect", help="ask a teacher: prompts -> JSON Lines with responses")
  one.set_defaults(run=functools.partial(collect.run, rules=rules()))
  collect.add_flags(one)
  one = commands.add_parser("plan", help="what records will take: frames, sizes, tokens, buckets")
  one.set_defaults(run=plan)
  _add_source_flags(one)
  one = commands.add_parser("build", help="JSON Lines -> pool")
  one.set_defaults(run=build)
  _add_source_flags(one)
  _add_build_flags(one)
  one = commands.add_parser("report", help="quality and variance of the teacher, by task")
  one.set_defaults(run=report)
  one.add_argument("directory", metavar="DIR", help="a pool")
  one.add_argument("--split", default="train", choices=("train", "test"), help="default: train")
  one.add_argument("--json", action="store_true", help="print JSON instead of a table")
  one = commands.add_parser("check", help="read every row, score every response again")
  one.set_defaults(run=check)
  one.add_argument("directory", metavar="DIR", help="a pool")
  return top


def _add_source_flags(one: argparse.ArgumentParser) -> None:
  add = one.add_argument
  add("--jsonl", nargs="+", required=True, metavar="FILE", help="records, one a line")
  add(
    "--tokenizer",
    required=True,
    metavar="FOLDER",
    help="Hugging Face folder with tokenizer, chat template and config.json",
  )
  _add_media_flags(one.add_argument_group("frames and pixels"))


def _add_build_flags(one: argparse.ArgumentParser) -> None:
  limits = pool.Limits()
  add = one.add_argument
  add("--out", required=True, metavar="DIR", help="folder to make")
  add(
    "--buckets",
    nargs="+",
    required=True,
    type=parse_bucket,
    metavar="P,T,F,S",
    help="padded sizes: prompt tokens, response tokens, frame pairs, patches of a pair",
  )
  add("--workers", type=int, default=2, help="processes that decode (default: %(default)s)")
  for name, value, metavar, text in (
    ("--time-limit", limits.seconds, "SECONDS", "for one record"),
    ("--max-bad-share", limits.bad_share, "SHARE", "fail if more of the lines are unusable"),
    ("--max-long-share", limits.long_share, "SHARE", "fail if more of the responses exceed T"),
  ):
    text = f"{text} (default: %(default)s)"
    add(name, type=float, default=value, metavar=metavar, help=text)
  add("--overwrite", action="store_true", help="replace a pool that is there already")


def _add_media_flags(group: argparse._ArgumentGroup) -> None:
  sampling = media.Sampling()
  add = group.add_argument
  for name, kind, value, text in (
    ("--fps", float, sampling.fps, "frames taken per second of clip"),
    ("--min-frames", int, sampling.min_frames, "frames of a clip, at least"),
    ("--max-frames", int, sampling.max_frames, "frames of a clip, at most"),
    ("--frames", int, sampling.frames, "a fixed number of frames per clip, instead of --fps"),
  ):
    add(name, type=kind, default=value, help=f"{text} (default: %(default)s)")
  add(
    "--video-style",
    default="hf_video",
    choices=("hf_video", "utils_video"),
    help="hf_video (transformers): --video-pixels limits a clip's frames together; utils_video "
    "(qwen-vl-utils): each frame, and clips give even numbers of frames; default: %(default)s",
  )
  add("--video-pixels", type=parse_pixels, metavar="LEAST,MOST", help="default: of the style")
  add("--image-pixels", type=parse_pixels, metavar="LEAST,MOST", help="default: Qwen3-VL's")


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the sub-command that `argv` (default: the command line) names."""
  args = parser().parse_args(argv)
  args.run(args)


if __name__ == "__main__":
  cli.run(main)

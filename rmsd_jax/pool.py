"""Collects and builds teacher pools, checks them and reports how reliable their teachers are.

Prompts and a teacher's responses to them:
  python -m rmsd_jax.pool collect --prompts prompts.jsonl --out pool.jsonl --model NAME --base-url U
With JSON Lines, before any build; no tokenizer is needed, and clips only to check:
  python -m rmsd_jax.pool import --format onethinker FILE --out pool.jsonl
  python -m rmsd_jax.pool check pool.jsonl [--against SET ..]
  python -m rmsd_jax.pool score pool.jsonl --out scores.jsonl
  python -m rmsd_jax.pool report pool.jsonl [--html FOLDER]
A pool to train on:
  python -m rmsd_jax.pool plan --jsonl pool.jsonl --tokenizer FOLDER
  python -m rmsd_jax.pool build --jsonl pool.jsonl --out DIR --tokenizer FOLDER --buckets P,T,F,S
  python -m rmsd_jax.pool check DIR
  python -m rmsd_jax.pool report DIR [--html FOLDER]
"""

import argparse
import functools
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rmsd_jax import cli, pool_collect
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import media, oddities, records, store
from rmsd_jax.data.processor import Processor
from rmsd_jax.tasks import READINGS, Rules
from rmsd_jax.teacher import audit, clocks, importers, planning, scores, variance

MAX_REASONS = 20  # printed of an import


def rules_of(args: argparse.Namespace) -> Rules:
  """The rules that the flags describe."""
  return Rules(args.eps_abs, args.eps_rel, args.valid_from, args.tasks, args.reading)


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
      times=args.times,
    ),
    video_style=args.video_style,
    video_pixels=args.video_pixels,
    image_pixels=args.image_pixels,
  )


def plan(args: argparse.Namespace) -> None:
  """Prints what the media and texts of records will take, without decoding the clips."""
  print(planning.plan_table(_planned(args, processor_of(args))))


def _planned(args: argparse.Namespace, processor: Processor) -> planning.Plan:
  return planning.plan_pool(
    args.jsonl,
    processor,
    Rules(module=args.tasks, reading=args.reading),
    functools.partial(Progress, label="headers"),
    workers=args.workers,
    limit_s=args.time_limit,
    media_root=args.media_root,
  )


def build(args: argparse.Namespace) -> None:
  """Builds a pool and prints what went in and what did not."""
  processor = processor_of(args)
  if not args.buckets:
    args.buckets = planning.fitting(_planned(args, processor).needs_N4, args.fit)
    print(f"--buckets {' '.join(','.join(map(str, bucket)) for bucket in args.buckets)}")
  metadata = store.build(
    args.jsonl,
    args.out,
    processor,
    rules_of(args),
    args.buckets,
    progress=functools.partial(Progress, label="records"),
    limits=store.Limits(args.time_limit, args.max_bad_share, args.max_long_share),
    workers=args.workers,
    overwrite=args.overwrite,
    media_root=args.media_root,
  )
  _print_summary(args.out, metadata)
  print("\n".join(oddities.lines(metadata["clips"], args.times)))
  if len(limits := {bucket.response for bucket in args.buckets}) > 1:
    sizes = " or ".join(map(str, sorted(limits)))
    print(f"T is {sizes}, by the bucket: it limits what the student may write about a prompt")


def score_files(args: argparse.Namespace) -> None:
  """Writes the scores of JSON Lines records, and prints what could not be scored."""
  # Through Limits, which refuses what is no share.
  share = store.Limits(bad_share=args.max_bad_share).bad_share
  bar = functools.partial(Progress, label="questions")
  rules = rules_of(args)
  responses, bad = scores.write(
    args.files, args.out, rules, bar, workers=args.workers, bad_share=share
  )
  print(f"{responses} responses scored by rules {rules.version!r} into {args.out}")
  _print_quarantine(bad, f"{args.out}.quarantine.jsonl")


def report(args: argparse.Namespace) -> None:
  """Prints the study of one split, and writes its page where that is asked for."""
  if args.html:
    _make_folder(args.html)
  bar = functools.partial(Progress, label="questions")
  rules = rules_of(args)
  if folder := _folder(args.paths):
    scored = scores.of_pool(store.open_pool(folder, args.split), rules, bar)
  else:
    scored = scores.of_files(args.paths, args.split, rules, bar, args.workers)
  # Both, since several teachers of one pool are told apart only by their own rows.
  figures = variance.by_task(scored.questions)
  teachers = variance.by_teacher(scored.questions)
  if args.json:
    both = figures | ({"teachers": teachers} if teachers else {})
    print(json.dumps(_without_nan(both), indent=1, allow_nan=False))
  else:
    print(
      variance.table(figures) + (f"\n\n{variance.table(teachers, 'teacher')}" if teachers else "")
    )
    print(
      "mean, s.d., min, max, kept (share of responses with quality >= tau) and lost (share of "
      "questions without any): closed-ended tasks only; rouge: open-ended, for the log only"
    )
    first, bad = scored.unusable
    if scored.silent:
      print(f"{scored.silent} questions have no response and are left out")
    if bad:
      print(f"{bad} unusable lines are left out, the first: {first}; `pool check` lists all")
  if args.html:
    if not figures:
      raise UserError(f"no responses in {', '.join(args.paths)}, so there is nothing to show")
    from rmsd_jax.report import teacher_page  # only here: it imports what draws

    path = teacher_page.write_page(args.html, ", ".join(args.paths), scored)
    print(f"wrote {path}", file=sys.stderr if args.json else sys.stdout)


def check(args: argparse.Namespace) -> None:
  """Looks for everything that is wrong with a pool; prints it, and fails if it is unusable."""
  if args.k < 0:
    raise UserError(f"--k {args.k}: give the number of responses wanted per prompt, 1 or more")
  if args.no_media and args.against:
    raise UserError("--against compares media files; give it without --no-media")
  if folder := _folder(args.paths):
    if args.no_media:
      raise UserError("--no-media is for JSON Lines: a built pool holds its frames itself")
    if args.against:
      raise UserError("--against needs JSON Lines: a built pool does not keep its media files")
    bar = functools.partial(Progress, label="rows")
    findings = audit.of_pool(folder, rules_of(args), bar, k=args.k)
  else:
    findings = audit.of_files(
      args.paths,
      rules_of(args),
      functools.partial(Progress, label="media files"),
      k=args.k,
      bad_share=store.Limits(bad_share=args.max_bad_share).bad_share,
      against=args.against,
      with_media=not args.no_media,
      workers=args.workers,
      media_root=args.media_root,
    )
    bar = functools.partial(Progress, label="clips")
    if not args.no_media:
      findings.lines += clocks.of_clips(findings.clips, args.times, bar, args.workers)
  print("\n".join(findings.lines))
  if findings.fatal:
    raise UserError("; ".join(findings.fatal))


def import_file(args: argparse.Namespace) -> None:
  """Writes prompts of another project as records, and prints what was left out."""
  place = {"media_root": args.media_root, "split": args.split}
  made = importers.get(args.format).convert(args.file, args.out, Rules(), **place)
  per_task = ", ".join(f"{task} {count}" for task, count in made.tasks.items())
  print(f"{sum(made.tasks.values())} prompts in {args.out} ({per_task})")
  _print_quarantine(made.refused, f"{args.out}.quarantine.jsonl")
  for reason, count in list(made.reasons.items())[:MAX_REASONS]:
    print(f"  {count}: {reason}")
  hint = "; is --media-root the folder that their paths start from?" if made.missing else ""
  print(f"{made.missing} of {made.media} media files are not there{hint}")


def _make_folder(path: str) -> None:
  """The folder of a page, before the work of an hour."""
  if pathlib.Path(path).is_file():
    raise UserError(f"--html {path} is a file; name a folder for the page and its pictures")
  try:
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--html {path}: no folder can be made there ({error.strerror})") from error


def _folder(paths: Sequence[str]) -> str | None:
  """The built pool that is named, or None where JSON Lines are."""
  folders = [path for path in paths if pathlib.Path(path).is_dir()]
  if folders and len(paths) > 1:
    raise UserError(f"{folders[0]} is a folder; give one built pool, or JSON Lines files only")
  return folders[0] if folders else None


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
  _print_quarantine(metadata["quarantined"], pathlib.Path(out, "quarantine.jsonl"))


def _print_quarantine(counts: dict[str, int], where: str | pathlib.Path) -> None:
  kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
  total = sum(counts.values())
  print(f"{total} lines in quarantine" + (f" ({kinds}); reasons in {where}" if total else ""))


def parse_bucket(text: str) -> Bucket:
  """ "P,T,F,S" -> Bucket."""
  sizes = text.split(",")
  if len(sizes) != len(Bucket._fields) or not all(size.strip().isdecimal() for size in sizes):
    raise argparse.ArgumentTypeError(f"{text!r} is not four whole numbers P,T,F,S")
  return Bucket(*map(int, sizes))


def parse_tokens(text: str) -> int:
  """A number of tokens."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens, 1 or more")
  return int(text)


def parse_pixels(text: str) -> tuple[int, int]:
  """ "LEAST,MOST" -> both."""
  sizes = text.split(",")
  if len(sizes) != 2 or not all(size.strip().isdecimal() for size in sizes):
    raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers LEAST,MOST")
  return int(sizes[0]), int(sizes[1])


def parser() -> argparse.ArgumentParser:
  """The command line."""
  top = cli.parser_of(main)
  commands = top.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
  sub = commands.add_parser("collect", help="ask a teacher: prompts -> JSON Lines with responses")
  sub.set_defaults(run=lambda args: pool_collect.collect(args, rules=Rules(module=args.tasks)))
  pool_collect.add_flags(sub)
  _add_task_file(sub)
  sub = commands.add_parser("plan", help="what records will take: frames, sizes, tokens, buckets")
  sub.set_defaults(run=plan)
  _add_source_flags(sub)
  _add_reading(sub)
  _add_task_file(sub)
  workers = {"type": int, "default": 2, "help": "processes that read (default: %(default)s)"}
  sub.add_argument("--workers", **workers)
  limit = {"type": float, "metavar": "SECONDS", "default": store.Limits.seconds}
  sub.add_argument("--time-limit", help="for one record (default: %(default)s)", **limit)
  sub = commands.add_parser("build", help="JSON Lines -> pool")
  sub.set_defaults(run=build)
  _add_source_flags(sub)
  _add_build_flags(sub)
  _add_toolkit(commands)
  return top


def _add_toolkit(commands: Any) -> None:
  """The sub-commands that need no tokenizer."""
  share = {"type": float, "default": store.Limits.bad_share, "metavar": "SHARE"}
  share["help"] = "fail if more of the lines are unusable (default: %(default)s)"
  workers = {"type": int, "default": 2, "help": "processes that score (default: %(default)s)"}
  sub = commands.add_parser("score", help="JSON Lines -> scores of every response")
  sub.set_defaults(run=score_files)
  sub.add_argument("files", nargs="+", metavar="FILE", help="records, one a line")
  sub.add_argument("--out", required=True, metavar="FILE", help="scores, one question a line")
  sub.add_argument("--workers", **workers)
  sub.add_argument("--max-bad-share", **share)
  _add_rules(sub)
  sub = commands.add_parser("report", help="quality and variance of the teacher, by task")
  sub.set_defaults(run=report)
  sub.add_argument("paths", nargs="+", metavar="DIR|FILE", help="a built pool, or JSON Lines")
  sub.add_argument("--split", default="train", choices=records.SPLITS, help="default: train")
  sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
  sub.add_argument("--html", metavar="FOLDER", help="write a page with figures there, too")
  sub.add_argument("--workers", **workers)
  _add_rules(sub)
  sub = commands.add_parser("check", help="faults, duplicates, leaks; a built pool: every score")
  sub.set_defaults(run=check)
  sub.add_argument("paths", nargs="+", metavar="DIR|FILE", help="a built pool, or JSON Lines")
  text = "records, sets that `benchmarks prepare` made, or folders, to share no media with"
  sub.add_argument("--against", nargs="+", default=[], metavar="FILE|DIR", help=text)
  k_help = "responses wanted per prompt (default: as many as the fullest prompt has)"
  sub.add_argument("--k", type=int, default=0, help=k_help)
  text = "look at the annotations alone: clips need not be there, nor are they compared"
  sub.add_argument("--no-media", action="store_true", help=text)
  sub.add_argument("--max-bad-share", **share)
  sub.add_argument("--workers", **workers | {"help": "processes that read clips (default: 2)"})
  pool_collect.add_clip_flags(sub)
  _add_rules(sub)
  sub = commands.add_parser("import", help="prompts of another project -> JSON Lines")
  sub.set_defaults(run=import_file)
  sub.add_argument("file", metavar="FILE", help="as the format has it: JSON, lines, CSV")
  sub.add_argument("--format", required=True, choices=importers.IMPORTERS, help="whose file it is")
  sub.add_argument("--out", required=True, metavar="FILE", help="records, one a line")
  root_help = "folder that the paths of media start from (default: that of the file)"
  sub.add_argument("--media-root", default="", metavar="FOLDER", help=root_help)
  sub.add_argument("--split", default="train", choices=records.SPLITS, help="default: train")


def _add_rules(sub: argparse.ArgumentParser) -> None:
  """What of the rules can be set."""
  for name, what in (("--eps-abs", "much"), ("--eps-rel", "large a share of the truth")):
    text = f"numerical: an answer may differ by that {what} (default: 0; both 0: 2 decimals count)"
    sub.add_argument(name, type=float, default=0.0, metavar="EPS", help=text)
  text = "least R_task of a valid response; 1 (default): a track needs every second, 0.5: its form"
  sub.add_argument("--valid-from", type=float, default=1.0, metavar="SHARE", help=text)
  _add_reading(sub)
  _add_task_file(sub)


def _add_reading(sub: argparse.ArgumentParser) -> None:
  text = "how answers are read: strict (default), or lenient, as models write them (docs/pool.md)"
  sub.add_argument("--reading", default="strict", choices=READINGS, help=text)


def _add_task_file(sub: argparse.ArgumentParser) -> None:
  text = "Python file with tasks of your own (recipe in docs/code.md)"
  sub.add_argument("--tasks", default="", metavar="FILE", help=text)


def _add_source_flags(sub: argparse.ArgumentParser) -> None:
  add = sub.add_argument
  add("--jsonl", nargs="+", required=True, metavar="FILE", help="records, one a line")
  add(
    "--tokenizer",
    required=True,
    metavar="FOLDER",
    help="Hugging Face folder with tokenizer, chat template and config.json",
  )
  _add_media_flags(sub.add_argument_group("frames and pixels"))


def _add_build_flags(sub: argparse.ArgumentParser) -> None:
  limits = store.Limits()
  add = sub.add_argument
  add("--out", required=True, metavar="DIR", help="folder to make")
  sizes = sub.add_mutually_exclusive_group(required=True)
  sizes.add_argument(
    "--buckets",
    nargs="+",
    type=parse_bucket,
    metavar="P,T,F,S",
    help="padded sizes: prompt tokens, response tokens, frame pairs, patches of a pair",
  )
  text = "buckets as `plan` prints them, for responses of T tokens"
  sizes.add_argument("--fit", type=parse_tokens, metavar="T", help=text)
  add("--workers", type=int, default=2, help="processes that decode (default: %(default)s)")
  for name, value, metavar, text in (
    ("--time-limit", limits.seconds, "SECONDS", "for one record"),
    ("--max-bad-share", limits.bad_share, "SHARE", "fail if more of the lines are unusable"),
    ("--max-long-share", limits.long_share, "SHARE", "fail if more of the responses exceed T"),
  ):
    text = f"{text} (default: %(default)s)"
    add(name, type=float, default=value, metavar=metavar, help=text)
  add("--overwrite", action="store_true", help="replace a pool that is there already")
  _add_rules(sub)


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
  pool_collect.add_clip_flags(group)
  add("--video-pixels", type=parse_pixels, metavar="LEAST,MOST", help="default: of the style")
  add("--image-pixels", type=parse_pixels, metavar="LEAST,MOST", help="default: Qwen3-VL's")


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the sub-command that `argv` (default: the command line) names."""
  args = parser().parse_args(argv)
  args.run(args)


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.run(main)


if __name__ == "__main__":
  command()

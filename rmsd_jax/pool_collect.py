"""`python -m rmsd_jax.pool collect`: its flags, and what it prints.

The work is done in teacher/: `collector` (what is missing, journal, budget), `endpoint` (calls and
retries), `request` (what a teacher is shown).
"""

import argparse
import collections
import json
import math
import os
import sys
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import sampling
from rmsd_jax.data.records import SPLITS
from rmsd_jax.tasks import Rules, response
from rmsd_jax.teacher import collector, endings, estimate, jobs, request
from rmsd_jax.teacher.endpoint import Endpoint, Patience, shown
from rmsd_jax.teacher.request import Asking, Budget


def collect(args: argparse.Namespace, rules: Rules) -> None:
  """Asks a teacher for responses, and prints what came.

  Args:
    args: of `add_flags`.
    rules: the tasks.
  """
  how = Asking(
    model=args.model,
    teacher=args.model if args.teacher is None else args.teacher,
    temperature=args.temperature,
    top_p=args.top_p,
    max_tokens=args.max_tokens,
    extra=args.extra,
    media=args.media,
    frames=args.frames,
    times=args.times,
    max_side=args.max_side,
    url_prefix=args.url_prefix,
    picture_tokens=args.picture_tokens,
  )
  budget = Budget(args.price_in, args.price_out, args.budget, args.token_budget)
  meanings = endings.parse_given(args.finish)
  # Neither sends anything, so that neither needs a key.
  if args.dry_run or args.partial:
    options = {"splits": args.splits, "endings_": meanings, "media_root": args.media_root}
    job = collector.look(args.prompts, args.out, how, rules, args.samples, **options)
    if args.dry_run:
      _print_estimate(job, budget)
    else:
      _write_complete(args, job)
  else:
    _collect(args, how, rules, budget, meanings)


def _write_complete(args, job: jobs.Job) -> None:
  complete = [line for line in job.lines if not job.missing(line)]
  # Held-out prompts are complete without answers; with nothing beside them the pool would be empty.
  if len(complete) == len(job.held):
    raise UserError(f"no prompt has its {args.samples} responses yet; collect before --partial")
  jobs.write_pool(job, args.out, complete)
  print(f"{args.out}: {len(complete)} of {len(job.lines)} prompts, those that are complete")


def _collect(args, how: Asking, rules: Rules, budget: Budget, meanings: endings.Endings) -> None:
  endpoint = Endpoint(
    args.base_url,
    _key(args.api_key_env, args.base_url),
    Patience(args.requests_per_minute, args.tokens_per_minute, args.timeout, args.retries),
    meanings,
  )
  try:
    job = collector.collect(
      args.prompts,
      args.out,
      how,
      rules,
      endpoint,
      progress=_progress,
      samples=args.samples,
      splits=args.splits,
      concurrency=args.concurrency,
      budget=budget,
      bad_share=args.max_bad_share,
      media_root=args.media_root,
    )
  except KeyboardInterrupt:
    kept = collector.journal_path(args.out)
    print(f"all answers until now are in {kept}; the same command goes on", file=sys.stderr)
    raise
  _print_collected(args.out, job, budget, endpoint)


def _progress(total: int, start: int) -> Progress:
  return Progress(total, "responses", start)


def _key(variable: str, base_url: str) -> str:
  if variable not in os.environ:
    raise UserError(
      f"the environment variable {variable} is not set; put the API key of {shown(base_url)} there "
      "(any word for a server that needs none), or name another with --api-key-env"
    )
  return os.environ[variable].strip()


def _print_estimate(job: jobs.Job, budget: Budget) -> None:
  requests, most = estimate.most(job)
  asked = sum(job.missing(line) > 0 for line in job.lines)
  print(f"{len(job.lines)} prompts; unusable lines: {_spelled(job.failures) or 'none'}")
  _print_held(job)
  if job.asking.media == "frames":
    _print_missing(job)
  print(f"{requests} requests to send, for {asked} of the prompts")
  print(f"so far: {budget.spelled(job.spent)}")
  pictures = f"{job.asking.picture_tokens:,}" if job.asking.picture_tokens else "the most"
  print(
    f"to come, at most: {budget.spelled(most)} ({most.read:,} in, {most.written:,} out): pictures "
    f"at {pictures} tokens{'' if job.asking.picture_tokens else ' known of any service'}, "
    "responses at --max-tokens"
  )
  if requests and (likely := estimate.likely(job)):
    _print_likely(likely, requests, budget)
  for line, record, text in job.questions():
    media = ", ".join(f"{medium.type} {medium.path}" for medium in record.media) or "no media"
    lines = "\n".join(map(_printable, text.splitlines()))
    print(f"the first prompt is {line.id!r} ({_printable(media)}):\n{lines}")
    break
  print("nothing was sent")


def _print_held(job: jobs.Job) -> None:
  if job.held:
    print(f"held-out prompts, passed on without being asked (--splits asks them): {len(job.held)}")


def _printable(line: str) -> str:
  return "".join(sign if sign.isprintable() else "?" for sign in line)


def _print_likely(likely: estimate.Likely, requests: int, budget: Budget) -> None:
  if likely.written is not None:
    tokens = request.Tokens(likely.read, likely.written)
    figures = f"{budget.spelled(tokens)} ({likely.read:,} in, {likely.written:,} out)"
    print(f"to come, likely: {figures}, {likely.basis}")
  else:
    each = f"{likely.read / requests:,.0f} each"
    print(
      f"to come, likely: {likely.read:,} tokens in, {each}, {likely.basis}; what comes out is "
      "known after the first answers (--token-budget stops early, and this says more then)"
    )


def _print_missing(job: jobs.Job) -> None:
  """Media files that the requests would need and that are not there."""
  there = {}  # path as it is written -> whether it is a file
  for line, record, _ in job.questions():
    for medium in record.media:
      there[medium.path] = os.path.isfile(os.path.join(line.folder, medium.path))
  if missing := [path for path, is_there in there.items() if not is_there]:
    print(f"{len(missing)} of {len(there)} media files are not there, such as {missing[0]}")


def _print_collected(out: str, job: jobs.Job, budget: Budget, endpoint: Endpoint) -> None:
  answers = [answer for entries in job.answers.values() for answer in entries]
  kinds = [job.endings.kind(answer.finish_reason) for answer in answers]
  used = collections.Counter(kind for kind in kinds if kind in endings.USABLE)
  withheld = collections.Counter(a.finish_reason for a in answers if not job.usable(a))
  print(
    f"{out}: {len(job.lines)} prompts, {used.total()} responses by {job.asking.teacher!r}, "
    f"{used[endings.LENGTH]} of them cut off by --max-tokens; {budget.spelled(job.spent)}"
  )
  if unlike := sum(not response.parse(a.text).outer for a in answers if job.usable(a)):
    print(f"responses without <think>..</think><answer>..</answer>, worth nothing: {unlike}")
  if withheld:
    print(f"answers withheld, left out and not asked again: {_spelled(withheld)}")
  if job.lost:
    print(f"answers that did not come or not whole, counted with what they may cost: {job.lost}")
  if endpoint.repeated:
    print(f"requests sent again: {_spelled(endpoint.repeated)}")
  _print_held(job)
  if job.failures:
    where = collector.failures_path(out)
    print(f"{job.failures.total()} lines failed ({_spelled(job.failures)}); reasons in {where}")


def _spelled(counts: collections.Counter[str]) -> str:
  return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


def parse_object(text: str) -> dict[str, Any]:
  """A JSON object."""
  try:
    value = json.loads(text)
  except ValueError:
    value = None
  if not isinstance(value, dict):
    raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
  return value


def add_flags(sub: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  add = sub.add_argument
  add(
    "--prompts",
    nargs="+",
    required=True,
    metavar="FILE",
    help="records, one a line, without responses or with those of other teachers",
  )
  add(
    "--out",
    required=True,
    metavar="FILE",
    help="written at the end, beside the prompts. FILE.journal.jsonl keeps every paid response, so "
    "the same command goes on after a kill, Ctrl-C or a reached budget",
  )
  add(
    "--splits",
    nargs="+",
    default=list(jobs.ASKED_SPLITS),
    choices=SPLITS,
    help="whose prompts are asked; the others go to --out as they are (default: train)",
  )
  add("--dry-run", action="store_true", help="say what would be asked and cost; send nothing")
  add("--partial", action="store_true", help="send nothing; write the prompts that are complete")
  _add_teacher_flags(sub.add_argument_group("teacher"))
  _add_media_flags(sub.add_argument_group("media"))
  _add_limit_flags(sub.add_argument_group("limits"))


def _add_teacher_flags(group: argparse._ArgumentGroup) -> None:
  add = group.add_argument
  add("--model", required=True, metavar="NAME", help="name of the model at the endpoint")
  add(
    "--base-url",
    required=True,
    metavar="URL",
    help="OpenAI-compatible endpoint, such as http://localhost:8000/v1",
  )
  add(
    "--api-key-env",
    default="OPENAI_API_KEY",
    metavar="NAME",
    help="environment variable that holds the API key (default: %(default)s)",
  )
  text = "stored with every response; K counts responses of this label (default: the model's name)"
  add("--teacher", metavar="LABEL", help=text)
  for name, value, metavar, text in (
    ("--samples", 4, "K", "responses per prompt, one request for each"),
    ("--temperature", Asking.temperature, "T", "1 is the model's own distribution"),
    ("--max-tokens", Asking.max_tokens, "N", "of one response, at most"),
  ):
    text = f"{text} (default: %(default)s)"
    add(name, type=type(value), default=value, metavar=metavar, help=text)
  add("--top-p", type=float, metavar="P", help="default: the server's own")
  text = (
    "what a finish_reason means: stop, length, refused (final) or broken (asked again). Those of "
    "the usual servers are known; null=stop takes answers whose end is not told"
  )
  add("--finish", nargs="+", default=[], metavar="WORD=KIND", help=text)
  text = 'more fields of the request, null drops one: {"max_tokens": null, "top_k": 20}'
  add("--extra", type=parse_object, default={}, metavar="JSON", help=text)


def _add_media_flags(group: argparse._ArgumentGroup) -> None:
  add = group.add_argument
  add(
    "--media",
    default=Asking.media,
    choices=request.MEDIA,
    help="frames: JPEG files with their times; url: links, for servers that read clips themselves "
    "(default: %(default)s)",
  )
  for name, value, metavar, text in (
    ("--frames", Asking.frames, "N", "frames of a clip"),
    ("--max-side", Asking.max_side, "PIXELS", "longer side of a picture, at most"),
  ):
    text = f"{text} (default: %(default)s)"
    add(name, type=int, default=value, metavar=metavar, help=text)
  add_clip_flags(group)
  text = (
    "the most that the service counts for one picture, for budget and --dry-run (default: the most "
    "of any known service); Qwen3-VL counts height/32 x width/32"
  )
  add("--picture-tokens", type=int, default=Asking.picture_tokens, metavar="N", help=text)
  text = "what a record's media path is put behind to make a link"
  add("--url-prefix", default="", metavar="URL", help=text)


def add_clip_flags(group: argparse._ArgumentGroup) -> None:
  """Adds the flags of all commands that read clips: their clock, and where they may lie."""
  group.add_argument(
    "--times",
    default=sampling.Sampling.times,
    choices=sampling.TIMES,
    help="clock of clips: stamps, the time stamps of their frames, from the first on; index, frame "
    "number / header rate, for exact parity with transformers (default: %(default)s)",
  )
  text = "folder that media may lie in, too, besides that of the records (links count as they lead)"
  group.add_argument("--media-root", default="", metavar="FOLDER", help=text)


def _add_limit_flags(group: argparse._ArgumentGroup) -> None:
  add = group.add_argument
  patience = Patience()
  for name, value, metavar, text in (
    ("--concurrency", 8, "N", "calls under way, at most"),
    ("--requests-per-minute", patience.requests_per_minute, "N", "at most; 0: no limit"),
    ("--tokens-per-minute", patience.tokens_per_minute, "N", "in and out, at most; 0: no limit"),
    ("--retries", patience.retries, "N", "of a request: 429, 5xx, timeout, broken answer"),
    ("--timeout", patience.timeout, "SECONDS", "for one answer"),
    ("--max-bad-share", 0.05, "SHARE", "fail if more of the lines are unusable or unanswered"),
    ("--price-in", 0.0, "PRICE", "of a million tokens read, in any currency"),
    ("--price-out", 0.0, "PRICE", "of a million tokens written"),
  ):
    text = f"{text} (default: %(default)s)"
    add(name, type=type(value), default=value, metavar=metavar, help=text)
  text = (
    "stop before more is spent, over all runs of the journal, answers that did not come included; "
    "needs the prices"
  )
  add("--budget", type=float, default=math.inf, metavar="COST", help=text)
  text = "the same in tokens, in and out"
  add("--token-budget", type=float, default=math.inf, metavar="N", help=text)

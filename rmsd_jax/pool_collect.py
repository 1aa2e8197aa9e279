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
from rmsd_jax.tasks import Rules, response
from rmsd_jax.teacher import collector, request
from rmsd_jax.teacher.endpoint import Endpoint, Patience
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
  )
  budget = Budget(args.price_in, args.price_out, args.budget, args.token_budget)
  if args.dry_run:
    job = collector.look(args.prompts, args.out, how, rules, args.samples, args.media_root)
    _print_estimate(job, budget)
  elif args.partial:
    job = collector.look(args.prompts, args.out, how, rules, args.samples, args.media_root)
    complete = [line for line in job.lines if not job.missing(line)]
    if not complete:
      raise UserError(f"no prompt has its {args.samples} responses yet; collect before --partial")
    collector.write_pool(job, args.out, complete)
    print(f"{args.out}: {len(complete)} of {len(job.lines)} prompts, those that are complete")
  else:
    _collect(args, how, rules, budget)


def _collect(args, how: Asking, rules: Rules, budget: Budget) -> None:
  endpoint = Endpoint(
    args.base_url,
    _key(args.api_key_env, args.base_url),
    Patience(args.requests_per_minute, args.tokens_per_minute, args.timeout, args.retries),
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
      f"the environment variable {variable} is not set; put the API key of {base_url} there (any "
      "word for a server that needs none), or name another with --api-key-env"
    )
  return os.environ[variable].strip()


def _print_estimate(job: collector.Job, budget: Budget) -> None:
  requests, most = collector.estimate(job)
  asked = sum(job.missing(line) > 0 for line in job.lines)
  print(f"{len(job.lines)} prompts; unusable lines: {_spelled(job.failures) or 'none'}")
  if job.asking.media == "frames":
    _print_missing(job)
  print(f"{requests} requests to send, for {asked} of the prompts")
  print(f"so far: {budget.spelled(job.spent)}")
  print(
    f"to come, at most: {budget.spelled(most)} ({most.read:,} in, {most.written:,} out). This is "
    "an upper bound: pictures at the most tokens known of any service, responses at --max-tokens"
  )
  for line, record, text in job.questions():
    shown = ", ".join(f"{medium.type} {medium.path}" for medium in record.media) or "no media"
    print(f"the first prompt is {line.id!r} ({shown}):\n{text}")
    break
  print("nothing was sent")


def _print_missing(job: collector.Job) -> None:
  """Media files that the requests would need and that are not there."""
  there = {}  # path as it is written -> whether it is a file
  for line, record, _ in job.questions():
    for medium in record.media:
      there[medium.path] = os.path.isfile(os.path.join(line.folder, medium.path))
  if missing := [path for path, found in there.items() if not found]:
    print(f"{len(missing)} of {len(there)} media files are not there, such as {missing[0]}")


def _print_collected(out: str, job: collector.Job, budget: Budget, endpoint: Endpoint) -> None:
  answers = [answer for given in job.answers.values() for answer in given]
  used = collections.Counter(answer.finish_reason for answer in answers if answer.usable)
  withheld = collections.Counter(answer.finish_reason for answer in answers if not answer.usable)
  print(
    f"{out}: {len(job.lines)} prompts, {used.total()} responses by {job.asking.teacher!r}, "
    f"{used['length']} of them cut off by --max-tokens; {budget.spelled(job.spent)}"
  )
  if unlike := sum(not response.parse(answer.text).outer for answer in answers if answer.usable):
    print(f"responses without <think>..</think><answer>..</answer>, worth nothing: {unlike}")
  if withheld:
    print(f"answers withheld, left out and not asked again: {_spelled(withheld)}")
  if job.lost:
    print(f"answers that did not come, counted with all they may have cost: {job.lost}")
  if endpoint.repeated:
    print(f"requests sent again: {_spelled(endpoint.repeated)}")
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


def add_flags(one: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  add = one.add_argument
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
  add("--dry-run", action="store_true", help="say what would be asked and cost; send nothing")
  add("--partial", action="store_true", help="send nothing; write the prompts that are complete")
  _add_teacher_flags(one.add_argument_group("teacher"))
  _add_media_flags(one.add_argument_group("media"))
  _add_limit_flags(one.add_argument_group("limits"))


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
  add, patience = group.add_argument, Patience()
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

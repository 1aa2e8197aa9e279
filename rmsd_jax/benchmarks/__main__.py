"""The paper's evaluation sets: prepare their files, score responses, make tables.

    python -m rmsd_jax.benchmarks list                       sets, protocols, extractors
    python -m rmsd_jax.benchmarks run SET=ROOT .. --models RUN@best FOLDER .. --out DIR
                                                             all of the following in turn
    python -m rmsd_jax.benchmarks prepare SET ROOT --protocol NAME --out DIR
    python -m rmsd_jax.benchmarks score DIR RESPONSES        card.json, a page, every grade
    python -m rmsd_jax.benchmarks compare CARD CARD          paired difference of two runs
    python -m rmsd_jax.benchmarks table DIR ...              the paper's tables with our rows
    python -m rmsd_jax.benchmarks export DIR RESPONSES ...   files for VLMEvalKit and lmms-eval
    python -m rmsd_jax.benchmarks judge DIR RESPONSES ...    prompts for a judge

ROOT is the folder of a set's own files and media, DIR what `prepare` made of it, RESPONSES what
`evaluate` wrote (WORKDIR/evaluate/NAME.json), or JSON Lines of `pool collect`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rmsd_jax import cli
from rmsd_jax.benchmarks import (
  aggregation,
  answered,
  cards,
  catalogue,
  entries,
  exports,
  judging,
  letters,
  paper_tables,
  preparing,
  protocols,
  running,
  scoring,
)
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text


def _list(args: argparse.Namespace) -> None:
  """Prints what there is."""
  for one in catalogue.all_sets().values():
    names = [name for name in protocols.PRESETS if _has(one, name)]
    print(f"{one.name:16} {one.title}: {one.size:,} items; {', '.join(names)}")
    print(f"{'':16} prompts {', '.join(one.prompts)}")
  print("\nprotocols")
  for name, preset in protocols.PRESETS.items():
    print(f"  {name:18} {preset.note}")
  print(f"\nextractors of letters: {', '.join(letters.EXTRACTORS)}; span:NAME")


def _has(one: Any, name: str) -> bool:
  return protocols.protocol_named(name, one.presets).prompt in one.prompts


def _prepare(args: argparse.Namespace) -> None:
  """A set's folder -> a prepared folder; prints what to type next."""
  one = catalogue.the(args.set)
  protocol = preparing.protocol_of(one, args.protocol, args.set_field)
  made = preparing.prepare(one, Path(args.root), protocol, Path(args.out), args.allow_missing)
  about = made.about
  print(f"{one.title}, {protocol.title}: {about['prompts']} prompts of {about['items']} items")
  if about["items"] != one.size:
    print(f"the set has {one.size:,} items; this is another release of it, or a part")
  for lost in about["missing"]:
    print(f"missing: {lost['id']}: {lost['reason']}")
  print(f"\nnext:\n{chr(10).join(preparing.commands(made))}")
  print(f"the replies may take {protocol.max_tokens} tokens (T of --buckets)")


def _loaded(args: argparse.Namespace) -> tuple[preparing.Prepared, answered.Responses]:
  prepared = preparing.load(Path(args.dir))
  return prepared, answered.read_responses(Path(args.responses), args.way)


def _score(args: argparse.Namespace) -> None:
  """Grades responses and writes their card."""
  prepared, responses = _loaded(args)
  source = Path(args.responses)
  out = Path(args.out or source.with_name(f"{source.stem}.{prepared.benchmark.name}"))
  if (out / cards.CARD).exists() and not args.overwrite:
    raise UserError(f"{out} has a card already; give --overwrite, or another --out")
  protocol = prepared.protocol
  if args.set_field:
    protocol = scoring.reread(protocol, args.set_field)
  found = judging.read_judgements(Path(args.judgements)) if args.judgements else None
  rows = scoring.grade(prepared, responses, protocol, args.allow_missing, found)
  judge = found.title if found else ""
  card = scoring.card(prepared, responses, protocol, rows, judge, args.pool)
  cards.write_card(out, card, rows)
  print("\n".join(cards.summary_lines(card)))
  print(f"wrote {out / cards.CARD} and {cards.PAGE}")


def _run(args: argparse.Namespace) -> None:
  """Everything from a set's files to the table; what is done is not done again."""
  settings = entries.Settings(
    out=Path(args.out).absolute(),
    config=args.config,
    overrides=tuple(args.overrides),
    samples=args.samples,
    workers=args.workers,
    allow_missing=args.allow_missing,
    until=args.until,
    forms=tuple(args.export),
  )
  sets = entries.roots_of(args.sets)
  asked = entries.entries_of(sets, args.protocol, args.set_field, args.frames, settings)
  running.run_all(asked, args.models, settings)


def _compare(args: argparse.Namespace) -> None:
  """The paired difference of two cards of one protocol."""
  ours, theirs = (cards.read_card(Path(one)) for one in (args.card, args.other))
  for name in ("set", "protocol_hash", "prompt_hash", "differs"):
    if ours[name] != theirs[name]:
      raise UserError(
        f"the cards differ in {name} ({paper_tables.protocol_name(ours)}; "
        f"{paper_tables.protocol_name(theirs)}): rows of different protocols are not subtracted"
      )
  rows, others = (cards.read_rows(Path(one)) for one in (args.card, args.other))
  if {(r.item, r.call) for r in rows} != {(r.item, r.call) for r in others}:
    raise UserError("the cards are of different items; complete both runs")
  one = catalogue.the(ours["set"])
  macro = ours["protocol"]["aggregation"] == "macro"
  for title, call in (one.columns or {one.title: one.calls[0]}).items():
    one_side, other_side = ([row for row in side if row.call == call] for side in (rows, others))
    found = aggregation.paired(one_side, other_side, one.macro if macro else "")
    print(f"{title}: {cards.percent(found)} ({ours['protocol_title']})")


def _table(args: argparse.Namespace) -> None:
  """Prints or writes the paper's tables with the rows of cards."""
  folders = [folder for one in args.cards for folder in cards.folders(Path(one))]
  found = [cards.read_card(folder) for folder in folders]
  made = paper_tables.tables(found)
  further = paper_tables.knowledge(found)
  text = paper_tables.comma_separated(made) if args.csv else paper_tables.markdown(made, further)
  if args.out:
    replace_text(args.out, text)
    print(f"wrote {args.out}")
  else:
    print(text, end="")


def _export(args: argparse.Namespace) -> None:
  """Writes responses for another harness."""
  prepared, responses = _loaded(args)
  for path in exports.export_for(args.form, prepared, responses, args.model, Path(args.out)):
    print(f"wrote {path}")
  if args.form in exports.CAUTIONS:
    print(f"{args.form}: {exports.CAUTIONS[args.form]}")


def _judge(args: argparse.Namespace) -> None:
  """Writes prompts for a judge."""
  prepared, responses = _loaded(args)
  count = judging.write_prompts(prepared, responses, Path(args.out))
  print(f"wrote {count} prompts to {args.out}; next:")
  print(
    f"python -m rmsd_jax.pool collect --prompts {args.out} --splits test --samples 1 "
    "--temperature 0 --out JUDGED --model NAME --base-url URL"
  )
  print(f"python -m rmsd_jax.benchmarks score {args.dir} {args.responses} --judgements JUDGED")


def _parser() -> argparse.ArgumentParser:
  """The command line."""
  top = cli.parser_of(main)
  commands = top.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
  one = commands.add_parser("list", help="sets, protocols, extractors")
  one.set_defaults(run=_list)
  one = commands.add_parser("prepare", help="a set's files -> prompts for `pool build`")
  one.set_defaults(run=_prepare)
  one.add_argument("set", metavar="SET", help="a name that `list` shows")
  one.add_argument("root", metavar="ROOT", help="the set's own files and media")
  one.add_argument("--protocol", required=True, metavar="NAME", help="a name that `list` shows")
  one.add_argument("--out", required=True, metavar="DIR", help="folder to make")
  _add_changes(one, "any field of the protocol")
  _add_run(commands.add_parser("run", help="all in turn: sets and models -> cards and the table"))
  one = commands.add_parser("score", help="responses -> card.json and a page")
  one.set_defaults(run=_score)
  _add_responses(one)
  one.add_argument("--out", default="", metavar="DIR", help="default: beside the responses")
  one.add_argument("--overwrite", action="store_true", help="replace a card that is there")
  one.add_argument(
    "--pool", default="", metavar="POOL", help="tells frames and tokens as they were"
  )
  text = "ratings of a judge, see `judge`"
  one.add_argument("--judgements", default="", metavar="FILE", help=text)
  _add_changes(one, f"of the protocol: {', '.join(scoring.OF_READING)}")
  one = commands.add_parser("compare", help="paired difference of two cards of one protocol")
  one.set_defaults(run=_compare)
  one.add_argument("card", metavar="CARD", help="folder of a card")
  one.add_argument("other", metavar="CARD", help="the one that is subtracted")
  one = commands.add_parser("table", help="the paper's tables with the rows of cards")
  one.set_defaults(run=_table)
  text = "folders of cards, or of folders of cards"
  one.add_argument("cards", nargs="*", metavar="DIR", help=text)
  one.add_argument("--csv", action="store_true", help="comma-separated values, not Markdown")
  one.add_argument("--out", default="", metavar="FILE", help="default: printed")
  one = commands.add_parser("export", help="responses in the files of another harness")
  one.set_defaults(run=_export)
  _add_responses(one)
  one.add_argument("--form", required=True, choices=exports.FORMS, help="whose files")
  one.add_argument("--model", required=True, metavar="NAME", help="as the harness calls it")
  one.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
  one = commands.add_parser("judge", help="prompts for a judge, which `pool collect` asks")
  one.set_defaults(run=_judge)
  _add_responses(one)
  one.add_argument("--out", required=True, metavar="FILE", help="JSON Lines to write")
  return top


def _add_run(one: argparse.ArgumentParser) -> None:
  """The flags of `run`."""
  one.set_defaults(run=_run)
  add = one.add_argument
  text = "a name that `list` shows, and the folder of the set's own files"
  add("sets", nargs="+", metavar="SET=ROOT", help=text)
  text = "RUN@best|latest|STEP|base, a Hugging Face FOLDER, or NAME=any of these"
  add("--models", nargs="+", required=True, metavar="MODEL", help=text)
  add("--out", required=True, metavar="DIR", help="goes on there with what is not done yet")
  text = "names that `list` shows (default: paper-64f)"
  add("--protocol", nargs="+", default=["paper-64f"], metavar="NAME", help=text)
  text = "frames of a clip, such as 8,16,32,64: a row of the table each"
  add("--frames", type=_numbers, default=(), metavar="N,..", help=text)
  text = "replies to a prompt, where the protocol samples, for pass@k (default: %(default)s)"
  add("--samples", type=int, default=1, metavar="N", help=text)
  add("--until", choices=entries.STEPS, default="card", help="the last step (default: %(default)s)")
  text = "replies in the files of another harness, too"
  add("--export", nargs="+", default=[], choices=exports.FORMS, help=text)
  text = "processes that decode clips (default: %(default)s)"
  add("--workers", type=int, default=2, metavar="N", help=text)
  text = "of the evaluations (default: %(default)s); --config.KEY=VALUE sets its keys"
  add("--config", default=entries.Settings.config, metavar="FILE", help=text)
  _add_changes(one, "any field of the protocols")


def _numbers(text: str) -> tuple[int, ...]:
  numbers = text.split(",")
  if not all(number.isdecimal() and int(number) for number in numbers):
    raise argparse.ArgumentTypeError(f"{text!r}: give numbers of frames such as 8,16,32,64")
  return tuple(map(int, numbers))


def _add_responses(one: argparse.ArgumentParser) -> None:
  one.add_argument("dir", metavar="DIR", help="what `prepare` made")
  one.add_argument("responses", metavar="RESPONSES", help="a result of `evaluate`, or JSON Lines")
  text = "which replies of an evaluation (default: %(default)s)"
  one.add_argument("--way", default="greedy", choices=answered.WAYS, help=text)


def _add_changes(one: argparse.ArgumentParser, what: str) -> None:
  text = f"changes a field; {what}"
  one.add_argument(
    "--set", dest="set_field", action="append", default=[], metavar="FIELD=VALUE", help=text
  )
  text = "go on without what is missing, and name it"
  one.add_argument("--allow-missing", action="store_true", help=text)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the sub-command that `argv` (default: the command line) names."""
  given = sys.argv[1:] if argv is None else argv
  overrides = [word for word in given if word.startswith(entries.OVERRIDE)]
  args = _parser().parse_args([word for word in given if word not in overrides])
  if overrides and args.run is not _run:
    raise UserError(f"{overrides[0]}: only `run` has a config, of its evaluations")
  args.overrides = overrides
  args.run(args)


def command() -> NoReturn:
  """What `python -m` and the console script start."""
  cli.run(main)


if __name__ == "__main__":
  command()

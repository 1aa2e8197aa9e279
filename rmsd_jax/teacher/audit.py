"""What is wrong with a pool, all at once: with its JSON Lines, or with the pool built of them.

Media are compared by content (SHA-256 of their bytes): a clip that was copied to another name still
is the same clip. Only files whose sizes agree are read. With other collections they are compared by
their looks, too (`leaks`).
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import batch, json_lines, oddities, records, rows, store
from rmsd_jax.tasks import CHAT, Rules
from rmsd_jax.teacher import leaks, truth_audit
from rmsd_jax.teacher.truth_audit import named

MAX_NAMED = 8  # places named of each finding


@dataclasses.dataclass
class Findings:
  """What was found: lines for people, and what makes the pool unusable."""

  lines: list[str] = dataclasses.field(default_factory=list)
  fatal: list[str] = dataclasses.field(default_factory=list)
  clips: list[str] = dataclasses.field(default_factory=list)  # video files of usable lines

  def shared(self, what: str, pairs: Sequence[tuple[str, str]], remedy: str) -> None:
    """Reports pairs that must not be there; `what` is their kind."""
    self.lines.append(f"{what}: {len(pairs)}")
    self.lines += [f"  {a}" + (f" is {b}" if a != b else "") for a, b in pairs[:MAX_NAMED]]
    if len(pairs) > MAX_NAMED:
      self.lines.append(f"  and {len(pairs) - MAX_NAMED} more")
    if pairs:
      self.fatal.append(f"{what}: {len(pairs)}, such as {pairs[0][0]!r}; {remedy}")


@dataclasses.dataclass
class Tally:
  """Counts over prompts that are not faults of one record."""

  seen: dict[tuple, str] = dataclasses.field(default_factory=dict)
  asked_again: list[str] = dataclasses.field(default_factory=list)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)  # place -> responses
  repeated: int = 0
  cut_off: int = 0

  def add(
    self, place: str, about: tuple, question: str, texts: Sequence[str], reasons: Sequence[str]
  ) -> None:
    """Counts one prompt; `about` is what else makes a question the same."""
    key = (*about, " ".join(question.casefold().split()))
    if key in self.seen:
      self.asked_again.append(f"{place} as {self.seen[key]}")
    self.seen.setdefault(key, place)
    self.counts[place] = len(texts)
    self.repeated += len(texts) - len(set(texts))
    self.cut_off += reasons.count("length")

  def lines(self, k: int) -> list[str]:
    """What was counted; `k` responses are wanted per prompt, 0: as many as the fullest has."""
    total = sum(self.counts.values())
    most = max(self.counts.values(), default=0)
    few = [place for place, count in self.counts.items() if count < (k or most)]
    cut = f"{self.cut_off / total:.1%}" if total else "-"
    return [
      f"the same question about the same clip: {named(self.asked_again)}",
      f"responses: {total}, at most {most} per prompt",
      f"prompts with fewer than {k or most} responses: {named(few)}",
      f"responses that repeat another of their prompt word for word: {self.repeated}",
      f"responses cut off by the teacher's limit: {self.cut_off} ({cut})",
    ]


def of_files(
  jsonl: Sequence[str],
  rules: Rules,
  progress: Callable[[int], json_lines.Progress],
  *,
  k: int = 0,
  bad_share: float = store.Limits.bad_share,
  against: Sequence[str] = (),
  with_media: bool = True,
  workers: int = 2,
  media_root: str = "",
) -> Findings:
  """Looks at every line of JSON Lines files, and for every media file.

  Args:
    progress: called with the number of media files that must be read.
    k: responses wanted per prompt; 0: as many as the fullest prompt has.
    bad_share: a pool with more unusable lines is unusable.
    against: other files of records, prepared sets or folders, whose media these must not share, see
      `leaks`.
    with_media: whether to look for media files, at their contents, and at the lengths of clips
      whose questions have answers in seconds.
    workers: child processes that read the headers of clips.
    media_root: a folder that media may lie in, besides that of their file.

  Raises:
    UserError: a file is missing.
  """
  leaks.sources_checked(against)
  root = json_lines.common_folder(jsonl)
  spans = truth_audit.spans(jsonl, rules, progress, workers, media_root) if with_media else {}
  sweep = _Sweep(rules, with_media, spans, media_root)
  for path in jsonl:
    for number, _, _, record in json_lines.read(path, rules, root):
      place = f"line {number}" if len(jsonl) == 1 else f"{path} line {number}"
      sweep.look(path, place, record)
  findings = sweep.findings(bad_share)
  findings.clips = sorted(sweep.videos)
  findings.lines += sweep.tally.lines(k)
  remedy = "give all questions of a clip one split"
  train, test = (sweep.clips[split] for split in records.SPLITS)
  findings.shared("clips in both splits", [(c, c) for c in train if c in test], remedy)
  if not with_media:
    findings.lines.append("media files were not looked at")
    return findings
  train, test = (sweep.media[split] for split in records.SPLITS)
  same = same_bytes(train, test, progress)
  findings.shared("media files with the same content in both splits", same, remedy)
  looks = leaks.Looks(progress, workers)
  kinds = {path: "video" if path in sweep.videos else "image" for path in train | test}
  for source in against:
    _compare(findings, kinds, source, rules, looks)
  return findings


def of_pool(
  directory: str,
  rules: Rules,
  progress: Callable[[int], json_lines.Progress],
  *,
  k: int = 0,
) -> Findings:
  """Reads every row of a built pool and scores its responses again.

  Clips and stills are compared by their frames, which is what a pool keeps of them, each by itself:
  see `_media`.

  Args:
    progress: called with the number of rows of a split.
    k: as in `of_files`.

  Raises:
    UserError: another scorer made the pool, or a row is not sound.
  """
  metadata = store.read_metadata(directory)
  if metadata["scorer"] != rules.version:
    raise UserError(
      f"the pool was scored by rules {metadata['scorer']!r}, these are {rules.version!r}; "
      "give the settings that it names, such as --eps-abs, or build it again"
    )
  findings = Findings()
  tally = Tally()
  frames: dict[str, dict[str, str]] = {}  # split -> digest -> clip
  for split in metadata["rows"]:
    opened = store.open_pool(directory, split)
    frames[split] = {}
    with progress(len(opened)) as bar:
      for index in range(len(opened)):
        row = opened[index]
        _check_row(opened, index, row, rules)
        shown = _media(row)
        for digest in shown:
          frames[split].setdefault(digest, row.clip)
        about = (shown or row.clip, row.options)
        if row.task != CHAT:
          tally.add(f"{split} {row.id!r}", about, row.question, row.texts, row.finish_reasons)
        bar.update(1)
    findings.lines.append(f"{split}: {len(opened)} rows are sound")
  # A pool of before clocks could be chosen says nothing of its clips.
  if "clips" in metadata:
    findings.lines += oddities.lines(metadata["clips"], opened.times)
  else:
    findings.lines.append("clips: times by frame number / header rate, as all pools once had it")
  findings.lines += tally.lines(k)
  train, test = (frames.get(split, {}) for split in records.SPLITS)
  same = [(clip, test[digest]) for digest, clip in train.items() if digest in test]
  findings.shared("clips with the same frames in both splits", same, "give a clip one split")
  return findings


def _media(row: rows.Row) -> tuple[str, ...]:
  """SHA-256 of the frames of each medium that a row shows, in order.

  A row does not say where one medium ends. A still is a frame pair without times, and a clip ends
  where the size changes or time goes back; so two clips of one size, the second shown from a later
  time on than the first ends at, count as one.
  """
  shown: list[Any] = []
  for f, picture_HWC in enumerate(rows.unpack(row)):
    goes_on = f and row.times_F2[f, 0] > row.times_F2[f - 1, 1]  # never where one is NaN
    if not goes_on or (row.grid_F2[f] != row.grid_F2[f - 1]).any():
      shown.append(hashlib.sha256())
    shown[-1].update(picture_HWC.tobytes())
  return tuple(digest.hexdigest() for digest in shown)


def _check_row(opened: store.Pool, index: int, row: rows.Row, rules: Rules) -> None:
  """Raises UserError for a row that cannot be batched, or whose scores are not what they were."""
  bucket = opened.buckets[row.bucket]
  batch.collate([row], [index], bucket, len(row.texts), opened.layout)
  if (row.bucket, row.task) != (opened.bucket_N[index], opened.task_N[index]):
    raise UserError(f"row {index} ({row.id!r}) is not the one in the index; build the pool again")
  for k, reply in enumerate(row.texts):
    said = (row.answer, row.options, row.finish_reasons[k], int(row.tokens_K[k]))
    fresh = rules.score(row.task, reply, *said, bucket.response)
    # Stored as float32, so not equal to the last digit.
    if fresh.valid != row.valid_K[k] or abs(fresh.quality - row.quality_K[k]) > 1e-6:
      raise UserError(
        f"response {k} of row {row.id!r} is stored with quality {row.quality_K[k]:g}, but scores "
        f"{fresh.quality:g} now; build the pool again"
      )


def same_bytes(
  ours: Collection[str], theirs: Collection[str], progress: Callable[[int], json_lines.Progress]
) -> list[tuple[str, str]]:
  """(one of ours, one of theirs) for each of our files whose bytes one of theirs has, too.

  Args:
    progress: called with the number of files to read, unless that is 0.
  """
  sizes = {path: os.path.getsize(path) for path in {*ours, *theirs}}
  shared = {sizes[path] for path in ours} & {sizes[path] for path in theirs}
  digests: dict[str, str] = {}
  if chosen := sorted(path for path, size in sizes.items() if size in shared):
    with progress(len(chosen)) as bar:
      for path in chosen:
        with open(path, "rb") as file:
          digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        bar.update(1)
  # Backwards, so that of several equal files the first by name is the one that is told.
  known = {digests[path]: path for path in sorted(theirs, reverse=True) if path in digests}
  pairs = [(path, digests[path]) for path in sorted(ours) if path in digests]
  return [(path, known[digest]) for path, digest in pairs if digest in known]


class _Sweep:
  """One pass over the lines of JSON Lines files."""

  def __init__(self, rules: Rules, with_media: bool, spans: truth_audit.Spans, media_root: str):
    self.rules = rules
    self.with_media = with_media
    self.spans = spans
    self.media_root = media_root
    self.videos: set[str] = set()
    self.tally = Tally()
    self.notes = truth_audit.Notes()
    self.faults = collections.defaultdict(list)  # (kind, pattern) -> [(place, reason)]
    self.ids: dict[str, str] = {}  # -> place
    self.clips: dict[str, dict[str, None]] = {split: {} for split in records.SPLITS}  # in order
    self.media: dict[str, set[str]] = {split: set() for split in records.SPLITS}
    self.tasks: collections.Counter[str] = collections.Counter()
    self.total = self.bad = 0
    self.first = ""  # what is wrong with the first unusable line

  def look(self, path: str, place: str, record: records.Record | records.RecordFault) -> None:
    """Takes in one line; `place` is its name."""
    self.total += 1
    folder = os.path.dirname(os.path.abspath(path))
    if wrong := self._faults(record, folder):
      self.bad += 1
      self.first = self.first or f"{place}: {wrong[0][1]}"
      for kind, reason in wrong:
        self.faults[kind, json_lines.pattern(reason)].append((place, reason))
    if isinstance(record, records.RecordFault):
      return
    # Also of a faulty record: once that is mended, the next of this id would be a double.
    self.ids.setdefault(record.id, place)
    if wrong:
      return
    self.notes.add(place, record, truth_audit.span_of(record, folder, self.spans))
    self.tasks[f"{record.split} {record.task}"] += 1
    self.clips[record.split][record.clip] = None
    self.media[record.split] |= set(_files(record, folder))
    videos = zip(record.media, _files(record, folder), strict=True)
    self.videos |= {path for medium, path in videos if medium.type == "video"}
    texts = [response.text for response in record.responses]
    reasons = [response.finish_reason for response in record.responses]
    about = (record.clip, record.media, record.options)
    if record.task != CHAT:  # of which one reply is enough
      self.tally.add(place, about, record.question, texts, reasons)

  def _faults(
    self, record: records.Record | records.RecordFault, folder: str
  ) -> list[tuple[str, str]]:
    """(kind, reason) of everything that makes a line unusable."""
    if isinstance(record, records.RecordFault):
      return [("schema", record.reason)]
    wrong = []
    if record.id in self.ids:
      wrong.append(("id", f"id {record.id!r} stands in {self.ids[record.id]} already"))
    if fault := self.rules.validate(record.task, record.answer, record.options):
      wrong.append(("ground truth", f"{record.task}: {fault}"))
    elif fault := truth_audit.unmet(record, folder, self.spans):
      wrong.append(fault)
    # Not even looked at: such a path may lead to any file of the machine.
    if outside := json_lines.outside(record, folder, self.media_root):
      return [*wrong, ("media", outside)]
    for media in record.media if self.with_media else ():
      path = os.path.join(folder, media.path)
      if not os.path.isfile(path):
        wrong.append(("media", f"there is no file {media.path!r}"))
      elif not os.path.getsize(path):
        wrong.append(("media", f"the file {media.path!r} is empty"))
    return wrong

  def findings(self, bad_share: float) -> Findings:
    """The faults of lines, like ones together."""
    tasks = ", ".join(f"{name} {count}" for name, count in sorted(self.tasks.items()))
    lines = [f"{self.total} lines, {self.total - self.bad} usable: {tasks or '-'}"]
    lines.append(f"unusable lines: {self.bad}")
    by_kind = lambda fault: (fault[0][0], -len(fault[1]))  # in each, the most frequent one first
    for (kind, _), group in sorted(self.faults.items(), key=by_kind):
      place, reason = group[0]
      such = "" if len({reason for _, reason in group}) == 1 else "such as "
      lines.append(f"  {kind}: {such}{reason}: {named([place for place, _ in group])}")
    lines += self.notes.lines()
    fatal = []
    if self.total == self.bad:
      fatal.append("there is no usable record; a pool needs at least one")
    if self.bad > bad_share * self.total:
      fatal.append(
        f"{self.bad} of {self.total} lines are unusable, more than the allowed share of "
        f"{bad_share:g} (the first: {self.first}); mend or drop them"
      )
    return Findings(lines, fatal)


def _files(record: records.Record, folder: str) -> list[str]:
  return [os.path.normpath(os.path.join(folder, media.path)) for media in record.media]


def _compare(
  findings: Findings, ours: Mapping[str, str], against: str, rules: Rules, looks: leaks.Looks
) -> None:
  """Reports media that a file of records, or a folder, has, too."""
  theirs = leaks.collected(against, rules)
  same = same_bytes(ours, theirs.kinds, looks.progress)
  remedy = "drop their questions from one of the two"
  findings.shared(f"media files that {against} has, too", same, remedy)
  findings.lines.append(
    f"  compared with {len(theirs.kinds)} files of it; {theirs.missing} are not there, "
    f"{theirs.faulty} of its lines could not be read"
  )
  if not theirs.kinds:
    findings.fatal.append(f"{against} names no media file that is there, so nothing was compared")
    return
  # Those of the same bytes have been told.
  told = {path for pair in same for path in pair}
  hashes = [looks.of({p: kind for p, kind in side.items() if p not in told})
            for side in (ours, theirs.kinds)]  # fmt: skip
  found = leaks.looking_alike(*hashes)
  sure = [(str(one), str(one)) for one in found if one.sure]
  findings.shared(f"media files that look like one of {against}", sure, remedy)
  perhaps = [str(one) for one in found if not one.sure]
  findings.lines.append(f"perhaps alike, to be looked at: {named(perhaps)}")
  findings.lines.append(leaks.how_sure(looks, *(side.values() for side in hashes)))

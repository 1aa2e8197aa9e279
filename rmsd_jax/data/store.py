"""The teacher pool on disk: built once from JSON Lines, then read row by row.

    DIR/rmsd_pool/1.0.0/...    a TFDS data set in ArrayRecord; its rows are `rows.Row`
    DIR/index-SPLIT.npz        bucket, task and lengths of every row, so that plans read no row
    DIR/quarantine.jsonl       the lines that could not be used, each with the reason
    DIR/metadata.json          versions, sizes and counts
    DIR/SHA256SUMS             digests of all of these, see `rmsd_jax.core.digests`

A pool is written beside its final place and renamed when whole; metadata.json is written last and a
folder without it is refused. Neither building nor reading imports TensorFlow.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath, epy

from rmsd_jax.core import digests
from rmsd_jax.core.digests import DamageError
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_folder
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import chat, children, oddities, prompts, records, rows
from rmsd_jax.data.json_lines import Line, Progress, Quarantine, scan, usable
from rmsd_jax.data.processor import Processor
from rmsd_jax.data.teacher_tally import TeacherTally
from rmsd_jax.tasks import Rules

with epy.lazy_imports():
  import tensorflow_datasets as tfds

SCHEMA = 2  # raise it with every change of rows.features()
_NAME = "rmsd_pool"
_VERSION = "1.0.0"
ROWS_PER_FILE = 2_000
ROWS_AT_A_TIME = 32  # held in memory by a build
_METADATA = "metadata.json"
_QUARANTINE = "quarantine.jsonl"
_DAMAGE = ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error
_IDENTITY = ("source_sha256", "processor", "buckets", "scorer")  # of the metadata


@dataclasses.dataclass(frozen=True)
class Limits:
  """When a record, or the whole build, is given up."""

  seconds: float = 60.0  # for one record, decoding included
  bad_share: float = 0.01  # of all lines, in quarantine
  long_share: float = 0.05  # of all responses, ended by themselves but longer than T

  def __post_init__(self):
    if not self.seconds > 0:
      raise UserError(f"a time limit of {self.seconds} s per record; it must be more than 0")
    for name in ("bad_share", "long_share"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"{name} is {getattr(self, name)}; a share is between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Pool:
  """One split of a pool. Picklable; a row is read from disk when asked for.

  Attributes:
    metadata: the contents of metadata.json.
    bucket_N, task_N: bucket index (int32) and task name of each row.
    tokens_N2: int32 tokens of each row's prompt, and of its responses on average; None in a pool of
      before they were kept, as clip_N, the clips' names.
    used_N: bool, rows that loaders may use; None: all.
  """

  directory: str
  split: str
  metadata: Mapping[str, Any]
  source: Any  # TFDS data source
  bucket_N: np.ndarray
  task_N: np.ndarray
  digest: str = ""  # of the list of digests; "": of a pool from before there was one
  tokens_N2: np.ndarray | None = None
  clip_N: np.ndarray | None = None
  used_N: np.ndarray | None = None
  vocabulary: int = 0  # rows of the reader's embedding, above all ids; 0: not known
  first_response: int = 0  # see `rows.rotated`
  # Rules, and how many responses of a closed-ended row they compare: their agreement is its quality
  # instead of what the truth gave. None: it is what was stored.
  agreement: tuple[Rules, int] | None = None
  # Task -> teacher -> in what proportion its responses are drawn; None: all alike.
  trust: Mapping[str, Mapping[str, float]] | None = None

  def __len__(self) -> int:
    return len(self.bucket_N)

  def __getitem__(self, index: int) -> rows.Row:
    """A row.

    Raises:
      UserError: it is not the one of the index, cannot be read, or holds values that no build
        writes. Of pools without digests nothing else would tell.
    """
    try:
      row = rows.decode(self.source[int(index)])
    except (ValueError, KeyError, IndexError, RuntimeError, OSError) as error:
      raise UserError(
        f"row {index} of split {self.split} of the pool {self.directory} cannot be read "
        f"({type(error).__name__}); copy the pool again or build it again"
      ) from error
    fault = rows.fault_of(row, self.vocabulary)
    if (row.bucket, row.task) != (int(self.bucket_N[index]), str(self.task_N[index])):
      fault = f"is of task {row.task!r}, bucket {row.bucket}: the index is of another pool"
    if fault:
      raise UserError(
        f"row {index} ({row.id!r}) of the pool {self.directory} {fault}; copy the pool again or "
        "build it again"
      )
    row = rows.rotated(row, self.first_response)
    return rows.by_agreement(row, *self.agreement) if self.agreement and row.closed else row

  @property
  def buckets(self) -> tuple[Bucket, ...]:
    return tuple(Bucket(*sizes) for sizes in self.metadata["buckets"])

  @property
  def layout(self) -> prompts.Layout:
    return prompts.Layout(**self.metadata["layout"])

  @property
  def times(self) -> str:
    """The clock of its clips, see `media.Sampling`; pools of before it could be chosen: "index"."""
    return self.metadata["processor"]["sampling"].get("times", "index")

  @property
  def identity(self) -> dict[str, Any]:
    """What its rows were made from and how: two pools that agree in it are the same."""
    made = {name: self.metadata[name] for name in _IDENTITY}
    return made | ({"sha256": self.digest} if self.digest else {})

  def check_reader(self, folder: str, rules: Rules) -> None:
    """Refuses a model, or rules, for which the pool was not built.

    Args:
      folder: Hugging Face folder of the model that reads it.
      rules: those that grade the responses to come.

    Raises:
      UserError: another tokenizer or chat template made the prompts, or other rules the scores.
    """
    if chat.ChatTokenizer(folder).fingerprint != self.metadata["processor"]["tokenizer"]:
      raise UserError(
        f"the pool {self.directory} was built with another tokenizer or chat template than that of "
        f"{folder}; build it again with --tokenizer {folder}"
      )
    if not rules.reads(self.metadata["scorer"]):
      raise UserError(
        f"the pool {self.directory} was scored by rules {self.metadata['scorer']!r}, these are "
        f"{rules.version!r}; build it again, or give the settings it names, such as "
        "--config.tasks.eps_abs"
      )


def open_pool(directory: str | os.PathLike, split: str, part: tuple[int, int] = (0, 1)) -> Pool:
  """Opens one split ("train" or "test") of a pool that `build` finished.

  Args:
    part: (i, n): only the i-th of n equal parts of its files is read and compared with the digests;
      other processes, which see the same files, read the rest before anyone uses a row.

  Raises:
    UserError: no finished pool is there, it has another schema, lacks the split or is damaged.
  """
  folder = pathlib.Path(directory)
  metadata = read_metadata(folder)
  digest = _checked(folder, metadata, part)
  return _opened(folder, split, metadata, digest)


def another_split(pool: Pool, split: str) -> Pool:
  """Another split of a pool that is open, its files being checked; raises as `open_pool`."""
  return _opened(pathlib.Path(pool.directory), split, pool.metadata, pool.digest)


def _opened(folder: pathlib.Path, split: str, metadata: Mapping[str, Any], digest: str) -> Pool:
  if split not in metadata["rows"]:
    raise UserError(
      f"the pool {folder} has no split {split!r}, only {', '.join(metadata['rows'])}; add records "
      f'with "split": "{split}" and build it again'
    )
  try:
    source = _source(folder, split)
    with np.load(folder / f"index-{split}.npz") as index:
      bucket_N = index["bucket_N"]
      task_N = index["task_N"]
      tokens_N2 = index.get("tokens_N2")
      clip_N = index.get("clip_N")
  except (*_DAMAGE, KeyError) as error:
    raise UserError(
      f"the pool {folder} is damaged: split {split} cannot be read ({type(error).__name__}); copy "
      "it again or build it again"
    ) from error
  if len(source) != len(bucket_N):
    raise UserError(
      f"the pool {folder} holds {len(source)} rows but its index {len(bucket_N)}; files are "
      "missing or mixed: copy it again or build it again"
    )
  return Pool(str(folder), split, metadata, source, bucket_N, task_N, digest, tokens_N2, clip_N)


def _checked(folder: pathlib.Path, metadata: Mapping[str, Any], part: tuple[int, int]) -> str:
  """The digest of the pool's list of digests, whose files are read in part; "" without a list."""
  try:
    digest = digests.check_part(epath.Path(folder), part, "digests" in metadata)
  except DamageError as error:
    raise UserError(
      f"the pool {folder} is damaged: {error}; copy it again or build it again"
    ) from error
  if not digest:
    print(f"the pool {folder} is from before digests: its files are not checked")
  return digest


def read_metadata(directory: str | os.PathLike) -> dict[str, Any]:
  """metadata.json of a finished pool of this schema.

  Raises:
    UserError: as `open_pool`.
  """
  path = pathlib.Path(directory, _METADATA)
  try:
    metadata = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(
      f"{directory} is not a finished pool: {path.name} cannot be read ({type(error).__name__}); "
      "build one with `python -m rmsd_jax.pool build`"
    ) from error
  if not isinstance(metadata, dict) or "schema" not in metadata or metadata["schema"] != SCHEMA:
    stored = metadata["schema"] if isinstance(metadata, dict) and "schema" in metadata else "none"
    raise UserError(f"the pool {directory} has schema {stored}, needed is {SCHEMA}; build it again")
  return metadata


def build(
  jsonl: Sequence[str | os.PathLike],
  out_dir: str | os.PathLike,
  processor: Processor,
  rules: Rules,
  buckets: Sequence[Bucket],
  *,
  progress: Callable[[int], Progress],
  limits: Limits = Limits(),
  workers: int = 2,
  overwrite: bool = False,
  media_root: str = "",
) -> dict[str, Any]:
  """Builds a pool from JSON Lines files; returns its metadata.

  Unusable lines go to quarantine.jsonl; a failed build keeps OUT_DIR.quarantine.jsonl. The order
  of rows depends on their ids alone.

  Args:
    jsonl: files of `records`; relative media paths are relative to the folder of their file.
    out_dir: folder to make.
    processor, rules: every child process gets a copy.
    buckets: padded sizes (P, T, F, S); a row takes the smallest that holds it.
    progress: called with the number of lines that will be decoded.
    workers: child processes that decode, at least 1.
    overwrite, media_root: replace a pool that is there; see `json_lines.outside`.

  Raises:
    UserError: a limit is exceeded, no line is usable, a clip is in both splits, `out_dir` exists.
  """
  out = pathlib.Path(os.path.abspath(out_dir))
  _check_target(out, overwrite)
  buckets = rows.check_buckets(buckets, processor.layout.merge)
  if workers < 1:
    raise UserError(f"{workers} workers; decoding needs at least 1")
  stage = out.with_name(f".{out.name}.partial")
  kept = out.with_name(f"{out.name}.{_QUARANTINE}")
  shutil.rmtree(stage, ignore_errors=True)  # of a build that was killed
  stage.mkdir(parents=True)
  try:
    with Quarantine(stage / _QUARANTINE, kept, limits.bad_share) as quarantine:
      lines = scan(jsonl, rules, quarantine, media_root)
      work = _Work(processor, rules, buckets)
      with progress(len(lines)) as bar:
        counts = _write(stage, lines, work, workers, limits, quarantine, bar)
    settings = {"schema": SCHEMA, "digests": digests.FILE}
    metadata = settings | {**_settings(jsonl, processor, rules, buckets), **counts}
    (stage / _METADATA).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    digests.write_list(epath.Path(stage), [_QUARANTINE])
    replace_folder(stage, out)
    kept.unlink(missing_ok=True)  # of a build that failed
  except UserError:
    if (stage / _QUARANTINE).exists():
      os.replace(stage / _QUARANTINE, kept)
    raise
  finally:
    shutil.rmtree(stage, ignore_errors=True)
  return metadata


def _check_target(out: pathlib.Path, overwrite: bool) -> None:
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return
  if not overwrite:
    raise UserError(f"{out} exists; give another folder, or --overwrite to replace a pool")
  if not (out / _METADATA).exists() or not (out / _NAME).is_dir():
    raise UserError(f"{out} is not a pool, so it will not be deleted; give another folder")


def _settings(jsonl, processor: Processor, rules: Rules, buckets) -> dict[str, Any]:
  """What the pool was built with."""
  digest = hashlib.sha256()
  for path in jsonl:
    with open(path, "rb") as file:
      digest.update(hashlib.file_digest(file, "sha256").digest())
  return {
    "scorer": rules.version,
    "buckets": [list(bucket) for bucket in buckets],
    "layout": dataclasses.asdict(processor.layout),
    "processor": processor.settings(),
    "source_sha256": digest.hexdigest(),
  }


@dataclasses.dataclass(frozen=True)
class _Work:
  """Line -> stored row, and what is odd about its clips; runs in child processes."""

  processor: Processor
  rules: Rules
  buckets: tuple[Bucket, ...]

  def __call__(self, line: Line) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    record = line.read(self.rules)
    row = rows.make_row(record, line.number, line.folder, self.processor, self.rules, self.buckets)
    return rows.encode(row), oddities.of_record(record, line.folder)


def _write(
  stage: pathlib.Path,
  lines: Sequence[Line],
  work: _Work,
  workers: int,
  limits: Limits,
  quarantine: Quarantine,
  bar: Progress,
) -> dict[str, Any]:
  """Writes the data set and its index; returns the counts for the metadata.

  Rows are written as they come, in the order of a hash of their ids (tasks are mixed, and a build
  of the same records gives the same order). TFDS's own builder would do the same, but beyond 1 GB
  it sorts through files that it opens with TensorFlow.
  """
  counts = collections.Counter()
  teachers = TeacherTally()
  clips = oddities.Tally()
  most = 0

  def made(split: str) -> Iterator[dict]:
    nonlocal most
    used = 0
    chosen = [line for line in lines if line.split == split]
    chosen.sort(key=lambda line: hashlib.sha256(line.id.encode()).digest())
    results = children.run(work, chosen, workers, limits.seconds)
    for _, (row, notes) in usable(results, quarantine, bar):
      used += 1
      clips.notes |= notes
      most = max(most, len(row["tokens_K"]))
      counts.update(rows.counted(row, work.buckets))
      if split == records.SPLITS[0]:
        teachers.add(row)
      yield row
    if not used:
      raise UserError(f"no record of split {split!r} is usable; reasons are in the quarantine file")

  splits = [split for split in records.SPLITS if any(line.split == split for line in lines)]
  write_rows(stage, {split: made(split) for split in splits})
  if counts["long_responses"] > limits.long_share * counts["responses"]:
    raise UserError(
      f"{counts['long_responses']} of {counts['responses']} responses are longer than T of their "
      f"bucket, more than the allowed share of {limits.long_share:g}; raise T in --buckets"
    )
  per_task = {split: _index(stage, split) for split in splits}
  if records.SPLITS[0] in splits and not counts["teaching_responses"]:
    print(_useless(counts), file=sys.stderr)
  names = ("responses", "long_responses", "truncated_responses", "teaching_responses")
  return {
    "k": most,
    "rows": per_task,
    **{name: counts[name] for name in names},
    "teachers": teachers.summary(),
    "clips": clips.summary(),
    "quarantined": dict(sorted(quarantine.kinds.items())),
  }


def _useless(counts: Mapping[str, int]) -> str:
  cut = f"{counts['truncated_responses']} cut off, {counts['long_responses']} longer than T"
  return f"WARNING: this pool can teach nothing: no response is valid and whole ({cut})"


def write_rows(stage: pathlib.Path, splits: Mapping[str, Iterator[dict]]) -> None:
  """Writes encoded rows as a TFDS data set in ArrayRecord files, in the order they come."""
  folder = stage / _NAME / _VERSION
  folder.mkdir(parents=True)
  identity = tfds.core.DatasetIdentity(
    name=_NAME, version=_VERSION, data_dir=folder, module_name=__name__
  )
  info = tfds.core.DatasetInfo(builder=identity, features=rows.features())
  writer = tfds.core.SequentialWriter(info, ROWS_PER_FILE, file_format="array_record")
  rows.order_columns(writer)
  writer.initialize_splits(list(splits))
  for split, made in splits.items():
    while some := list(itertools.islice(made, ROWS_AT_A_TIME)):
      writer.add_examples({split: some})
  writer.close_all()


def _index(stage: pathlib.Path, split: str) -> dict[str, int]:
  """Reads the split back, writes its index and returns the number of rows of each task."""
  source = _source(stage, split)
  stored = (source[i] for i in range(len(source)))
  texts = lambda row: (row["task"].decode("utf-8"), row["clip"].decode("utf-8"))
  kept = [(int(row["bucket"]), *texts(row), rows.tokens(row)) for row in stored]
  buckets, names, clips, tokens = zip(*kept, strict=True)
  np.savez(
    stage / f"index-{split}.npz",
    bucket_N=np.array(buckets, np.int32),
    task_N=names,
    tokens_N2=np.array(tokens, np.int32),
    clip_N=clips,
  )
  return dict(sorted(collections.Counter(names).items()))


def _source(folder: pathlib.Path, split: str) -> Any:
  return tfds.builder_from_directory(folder / _NAME / _VERSION).as_data_source(split=split)

"""Rows of the training pool: a scored, tokenised, decoded record, and its storage by TFDS.

Pictures are kept as encoded bytes (PNG, lossless), so neither writing nor reading a pool imports
TensorFlow. Axes: K teacher responses, P prompt tokens, T response tokens, F frame pairs.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from etils import epy

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket
from rmsd_jax.data import clip_truths
from rmsd_jax.data.processor import Processor
from rmsd_jax.data.prompts import Prompt
from rmsd_jax.data.records import Asked, Media, Record, RecordFault
from rmsd_jax.tasks import Rules

with epy.lazy_imports():
  import tensorflow_datasets as tfds

SCORES = ("outer", "inner", "content", "quality", "rouge")  # numbers stored of a response
_PICTURES_A_FILE = 8  # so that no file comes near the sizes that Pillow takes for an attack
_PNG_LEVEL = 3  # of zlib: within a few per cent of the smallest size at a third of the time


@dataclasses.dataclass(frozen=True)
class Row:
  """One prompt of the pool with its K responses, unpadded.

  A response is usable when it ended by itself and fits T of the row's bucket. The ids of any other
  are not kept: its slot is empty, and it is not valid.
  """

  id: str
  clip: str
  task: str
  closed: bool
  question: str
  options: tuple[str, ...]
  answer: Any  # JSON value
  source: str
  bucket: int  # index into the pool's buckets
  ids_P: np.ndarray  # int32
  is_visual_P: np.ndarray  # bool
  grid_F2: np.ndarray  # int32 rows, columns of patches
  times_F2: np.ndarray  # float32 seconds of the first and last frame of a pair, NaN for stills
  pictures: tuple[bytes, ...]  # PNG files of the F of Processor.frame_pictures, see `pack`
  packed: np.ndarray  # int32, how many of them each file holds
  texts: tuple[str, ...]  # K
  teachers: tuple[str, ...]
  finish_reasons: tuple[str, ...]
  responses: tuple[np.ndarray, ...]  # K arrays of int32 [T], end-of-turn included; or empty
  tokens_K: np.ndarray  # int32 length of each response, whether its ids are kept or not
  outer_K: np.ndarray  # float32, as are inner, content, quality and rouge
  inner_K: np.ndarray
  content_K: np.ndarray
  quality_K: np.ndarray
  rouge_K: np.ndarray
  valid_K: np.ndarray  # bool


def rotated(row: Row, first: int) -> Row:
  """The row with its responses in another order: the one at place `first` comes first, and those
  before it last. Places go round, so that any number will do."""
  count = len(row.responses)
  if not count or not first % count:
    return row
  order = np.roll(np.arange(count), -first)
  columns = ("tokens", *SCORES, "valid")
  lists = ("texts", "teachers", "finish_reasons", "responses")
  changed = {f"{name}_K": getattr(row, f"{name}_K")[order] for name in columns}
  changed |= {name: tuple(getattr(row, name)[k] for k in order) for name in lists}
  return dataclasses.replace(row, **changed)


def by_agreement(row: Row, rules: Rules, k: int) -> Row:
  """A closed-ended row whose quality is how far its first k responses agree, not what the truth
  gave."""
  quality_K = np.zeros_like(row.quality_K)
  quality_K[:k] = rules.agreement(row.task, row.texts[:k], row.options, row.answer)
  return dataclasses.replace(row, quality_K=quality_K * row.valid_K)


def features() -> "tfds.features.FeaturesDict":
  """The stored form of a Row."""
  text = tfds.features.Text
  texts = lambda: tfds.features.Sequence(np.object_)
  array = tfds.features.Tensor
  return tfds.features.FeaturesDict(
    {
      **{name: text() for name in ("id", "clip", "task", "question", "answer", "source")},
      "closed": tfds.features.Scalar(np.bool_),
      "bucket": tfds.features.Scalar(np.int32),
      "ids_P": array(shape=(None,), dtype=np.int32),
      "is_visual_P": array(shape=(None,), dtype=np.bool_),
      "grid_F2": array(shape=(None, 2), dtype=np.int32),
      "times_F2": array(shape=(None, 2), dtype=np.float32),
      "packed": array(shape=(None,), dtype=np.int32),
      **{name: texts() for name in ("options", "pictures", "texts", "teachers", "finish_reasons")},
      "response_ids": array(shape=(None,), dtype=np.int32),  # one response after another
      "response_lengths_K": array(shape=(None,), dtype=np.int32),  # 0: empty slot
      "tokens_K": array(shape=(None,), dtype=np.int32),
      **{f"{name}_K": array(shape=(None,), dtype=np.float32) for name in SCORES},
      "valid_K": array(shape=(None,), dtype=np.bool_),
    }
  )


def order_columns(writer: Any) -> None:
  """Makes a writer of TFDS write equal rows as equal bytes, so that a pool that is built again is
  the same pool: protobuf writes maps, such as the columns, in another order in every process."""
  to_proto = writer._serializer.get_tf_example
  in_order = lambda example: to_proto(example).SerializeToString(deterministic=True)
  writer._serializer.serialize_example = in_order


def encode(row: Row) -> dict[str, Any]:
  """Row -> values for `features()`."""
  stored = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
  responses = stored.pop("responses")
  stored["answer"] = json.dumps(row.answer)
  # The empty one first, since a row without responses has nothing to join.
  stored["response_ids"] = np.concatenate([np.zeros(0, np.int32), *responses])
  stored["response_lengths_K"] = np.array([len(ids) for ids in responses], np.int32)
  for name in ("options", "texts", "teachers", "finish_reasons"):
    stored[name] = [value.encode("utf-8") for value in stored[name]]
  stored["pictures"] = list(row.pictures)
  return stored


def tokens(stored: Mapping[str, Any]) -> tuple[int, int]:
  """Tokens of a stored row's prompt, and of its responses on average."""
  lengths_K = stored["response_lengths_K"]
  lengths_K = lengths_K[lengths_K > 0]
  return len(stored["ids_P"]), round(lengths_K.mean()) if len(lengths_K) else 0


def check_buckets(buckets: Sequence[Bucket], merge: int) -> tuple[Bucket, ...]:
  """The buckets, smallest first."""
  for bucket in buckets:
    if min(bucket) < 1 or bucket.patches % merge**2:
      raise UserError(
        f"bucket {','.join(map(str, bucket))}: P, T, F, S must be at least 1 and S a multiple of "
        f"{merge**2}, the patches of a visual token"
      )
  if not buckets:
    raise UserError("no bucket given; a pool needs at least one P,T,F,S")
  return tuple(sorted(set(buckets), key=lambda b: (b.prompt + b.frames * b.patches, b.response)))


def counted(stored: Mapping[str, Any], buckets: Sequence[Bucket]) -> dict[str, int]:
  """The responses of an encoded row, by what can be done with them."""
  ended = np.array([reason == b"stop" for reason in stored["finish_reasons"]], bool)
  long = stored["tokens_K"] > buckets[stored["bucket"]].response
  return {
    "responses": len(ended),
    "long_responses": int((ended & long).sum()),
    "truncated_responses": int((~ended).sum()),
    "teaching_responses": int((stored["valid_K"] & (stored["response_lengths_K"] > 0)).sum()),
  }


def decode(stored: Mapping[str, Any]) -> Row:
  """The inverse of `encode`, from what a TFDS data source returns."""
  values = dict(stored)
  for name in ("id", "clip", "task", "question", "answer", "source"):
    values[name] = values[name].decode("utf-8")
  for name in ("options", "texts", "teachers", "finish_reasons"):
    values[name] = tuple(value.decode("utf-8") for value in values[name])
  ids = values.pop("response_ids")
  ends = np.cumsum(values.pop("response_lengths_K"))
  # astype: without responses these are floats, and slices take none.
  starts = np.concatenate([[0], ends[:-1]]).astype(int)
  values["responses"] = tuple(ids[a:b] for a, b in zip(starts, ends, strict=False))
  values["answer"] = json.loads(values["answer"])
  values["pictures"] = tuple(values["pictures"])
  values["closed"] = bool(values["closed"])
  values["bucket"] = int(values["bucket"])
  return Row(**values)


def make_row(
  record: Record,
  line_number: int,
  folder: str,
  processor: Processor,
  rules: Rules,
  buckets: Sequence[Bucket],
) -> Row:
  """Decodes, tokenises and scores one record.

  Args:
    record: as parsed.
    line_number: for messages.
    folder: what relative media paths are relative to.
    processor: makes the prompt.
    rules: the tasks, and how they grade its responses.
    buckets: allowed padded sizes, smallest first.

  Raises:
    RecordFault: the ground truth does not suit the task, or lies outside of what is shown.
    UserError: its media cannot be read, or it fits no bucket.
  """
  if fault := rules.validate(record.task, record.answer, record.options):
    raise RecordFault(line_number, fault)
  record = trimmed(record, rules)
  prompt = processor.prompt(messages(record, folder, rules))
  try:
    clip_truths.check(record, prompt.times_F2)
  except UserError as fault:
    raise RecordFault(line_number, str(fault)) from None
  ids = [processor.tokenizer.encode_response(response.text) for response in record.responses]
  # What was cut off is not trained on, so that it claims no room in a larger bucket.
  ended = [i for i, r in zip(ids, record.responses, strict=True) if r.finish_reason == "stop"]
  bucket = choose_bucket(buckets, prompt, max(map(len, ended), default=0))
  limit = buckets[bucket].response
  return Row(
    id=record.id,
    clip=record.clip,
    task=record.task,
    closed=rules.closed[record.task],
    question=record.question,
    options=record.options,
    answer=record.answer,
    source=record.source,
    bucket=bucket,
    ids_P=prompt.ids_P,
    is_visual_P=prompt.is_visual_P,
    grid_F2=prompt.grid_F2,
    times_F2=prompt.times_F2,
    **pack(processor.frame_pictures(prompt)),
    **_responses(record, ids, rules, limit),
  )


def trimmed(record: Record, rules: Rules) -> Record:
  """A record whose replies end where the rules let them end, see `Rules.trimmed`."""
  trim = lambda text: rules.trimmed(text, record.task)
  cut = [dataclasses.replace(r, text=trim(r.text)) for r in record.responses]
  return dataclasses.replace(record, responses=tuple(cut))


def choose_bucket(buckets: Sequence[Bucket], prompt: Prompt, longest: int) -> int:
  """Index of the first bucket that holds the prompt and a response of `longest` tokens.

  If none holds both: of those that hold the prompt, the one with the most room for responses.

  Raises:
    UserError: no bucket holds the prompt.
  """
  tokens = len(prompt.ids_P)
  frames = len(prompt.grid_F2)
  patches = int(prompt.grid_F2.prod(axis=1).max(initial=0))
  hold = [
    i
    for i, bucket in enumerate(buckets)
    if tokens <= bucket.prompt and frames <= bucket.frames and patches <= bucket.patches
  ]
  if not hold:
    sizes = " ".join(f"{b.prompt},{b.response},{b.frames},{b.patches}" for b in buckets)
    raise UserError(
      f"the prompt has {tokens} tokens and {frames} frame pairs of up to {patches} patches, which "
      f"fits none of the buckets P,T,F,S {sizes}; add a bucket or lower the frames or pixels"
    )
  roomy = [i for i in hold if longest <= buckets[i].response]
  return roomy[0] if roomy else max(hold, key=lambda i: buckets[i].response)


def png(picture: np.ndarray) -> bytes:
  """uint8 [H, W, 3] -> a PNG file."""
  file = io.BytesIO()
  PIL.Image.fromarray(picture).save(file, "PNG", compress_level=_PNG_LEVEL)
  return file.getvalue()


def pack(pictures: Sequence[np.ndarray]) -> dict[str, Any]:
  """The fields of a Row that hold pictures: neighbours of one size share a file.

  A file of its own for each costs a third more time to read where frames are small.
  """
  sizes = [picture.shape for picture in pictures]
  files = []  # of pictures, one below the other
  for i, picture in enumerate(pictures):
    if not i or sizes[i] != sizes[i - 1] or len(files[-1]) == _PICTURES_A_FILE:
      files.append([])
    files[-1].append(picture)
  counts = np.array([len(some) for some in files], np.int32)
  return {"pictures": tuple(png(np.concatenate(some)) for some in files), "packed": counts}


def unpack(row: Row) -> list[np.ndarray]:
  """The F pictures of a row, each uint8 [H, W, 3]."""
  pictures = []
  for file, count in zip(row.pictures, row.packed, strict=True):
    pictures += np.split(np.asarray(PIL.Image.open(io.BytesIO(file))), count)
  return pictures


def messages(record: Record, folder: str, rules: Rules) -> list[dict[str, Any]]:
  """The conversation that a record's prompt is: one user turn, media first, or as it is `asked`."""
  asked = record.asked or Asked(rules.prompt_text(record.task, record.question, record.options))
  words = lambda text: [{"type": "text", "text": text}] if text else []
  shown = [_item(media, folder) for media in record.media]
  if asked.subtitles:  # of the one clip that there is then
    clip = next(item for item in shown if item["type"] == "video")
    clip["subtitles"] = [dataclasses.asdict(subtitle) for subtitle in asked.subtitles]
  content = [*words(asked.before), *shown, *words(asked.text)]
  turns = [{"role": "system", "content": asked.system}] if asked.system else []
  return [*turns, {"role": "user", "content": content}]


def _item(media: Media, folder: str) -> dict[str, Any]:
  item = {"type": media.type, media.type: str(pathlib.Path(folder, media.path))}
  window = {"start": media.start, "end": media.end}
  return item | {name: value for name, value in window.items() if value is not None}


def _responses(
  record: Record, ids: Sequence[Sequence[int]], rules: Rules, limit: int
) -> dict[str, Any]:
  """The columns of a Row that have one entry per response."""
  about = (record.answer, record.options)
  scores = [
    rules.score(record.task, r.text, *about, r.finish_reason, len(i), limit)
    for r, i in zip(record.responses, ids, strict=True)
  ]
  columns = {
    f"{name}_K": np.array([getattr(s, name) for s in scores], np.float32) for name in SCORES
  }
  return columns | {
    "texts": tuple(r.text for r in record.responses),
    "teachers": tuple(r.teacher for r in record.responses),
    "finish_reasons": tuple(r.finish_reason for r in record.responses),
    "responses": tuple(
      np.array(i if r.finish_reason == "stop" and len(i) <= limit else [], np.int32)
      for r, i in zip(record.responses, ids, strict=True)
    ),
    "tokens_K": np.array([len(i) for i in ids], np.int32),
    "valid_K": np.array([s.valid for s in scores], np.bool_),
  }


def fault_of(row: Row, vocabulary: int) -> str | None:
  """What no build writes: scores outside [0, 1], ids that are none."""
  for name in ("quality", "rouge"):
    scores_K = getattr(row, f"{name}_K")
    if not np.all((scores_K >= 0) & (scores_K <= 1)):
      return f"has a {name} outside [0, 1]: {scores_K.tolist()}"
  ids = np.concatenate([row.ids_P, *row.responses])
  lowest = int(ids.min(initial=0))
  highest = int(ids.max(initial=0))
  if lowest < 0 or (vocabulary and highest >= vocabulary):
    wrong = lowest if lowest < 0 else highest
    return f"has the token id {wrong}, outside the model's vocabulary of {vocabulary or '?'}"
  return None

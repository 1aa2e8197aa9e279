"""What every set is made of: items, what is asked about them, how replies to them are graded."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks.aggregation import Row
from rmsd_jax.benchmarks.protocols import Protocol
from rmsd_jax.core.errors import UserError
from rmsd_jax.data.subtitles import Subtitle

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image or a clip of an item.

  Attributes:
    type: "video" or "image".
    places: where it may lie below the set's folder, the official place first. "**/NAME" is a file
      of that name in any folder.
    content: of a picture that stands inside the set's table; b"": it is a file.
  """

  type: str
  places: tuple[str, ...]
  content: bytes = dataclasses.field(default=b"", repr=False)


@dataclasses.dataclass(frozen=True)
class Item:
  """One question of a set.

  Attributes:
    id: unique in the set.
    cluster: questions that share it succeed and fail together: a video, or a problem.
    question: as the set has it; may be empty where the picture holds it.
    options: texts without letters; none for questions without choices.
    answer: the official ground truth: a letter, or what the set's `grade` takes. "" where the set
      itself is broken: no reply is right.
    media: in the order in which they are shown.
    fields: what scores are broken down by: name -> the value, or several.
    extra: JSON values that the set's prompts and `grade` need.
    row: the official columns, for the files of other harnesses.
  """

  id: str
  cluster: str
  question: str
  options: tuple[str, ...]
  answer: Any
  media: tuple[Picture, ...] = ()
  fields: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  row: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def letters(self) -> str:
    """Of its options."""
    return LETTERS[: len(self.options)]

  def lettered(self, form: str = "{}. {}") -> list[str]:
    """The options with their letters."""
    return [form.format(letter, text) for letter, text in zip(LETTERS, self.options, strict=False)]

  def to_json(self) -> dict[str, Any]:
    """All of it but the pictures, as JSON values; `from_json` is the inverse."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    del values["media"]
    return json.loads(json.dumps(values))

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "Item":
    fields = {k: v if isinstance(v, str) else tuple(v) for k, v in values["fields"].items()}
    return cls(**{**values, "options": tuple(values["options"]), "fields": fields})


@dataclasses.dataclass(frozen=True)
class Ask:
  """One call of a model about an item.

  Attributes:
    text: after the media.
    before: in front of them.
    call: names it where an item takes several; "": the item's only one.
    media: what is shown; None: the item's.
  """

  text: str
  before: str = ""
  call: str = ""
  media: tuple[Picture, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Grade:
  """What a reply is worth.

  Attributes:
    value: in [0, 1].
    read: the answer that was read in it, for votes and files; None: unparsed, and so worth 0.
    more: further figures of the reply by name, such as shares above thresholds.
  """

  value: float
  read: str | None
  more: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SubtitleFiles:
  """Where a set has the subtitles of its clips.

  Attributes:
    places: item -> where its file may lie, as `Picture.places`.
    read: item, file -> its lines in order, on the clock of the clip.
  """

  places: Callable[[Item], tuple[str, ...]]
  read: Callable[[Item, Path], list[Subtitle]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """An evaluation set.

  Attributes:
    name: in commands.
    title: in tables; the paper's column where it has one.
    size: official number of items.
    read: folder -> items, from any of the set's official forms.
    prompts: by the `prompt` of a protocol: item, protocol -> its calls, in the order of `calls`.
    grade: item, call, reply, protocol -> Grade. Never raises for any reply.
    presets: protocol -> what of it is different for this set.
    calls: names of an item's calls; ("",): one.
    breakdowns: fields that scores are broken down by.
    cluster: what a cluster is, in words.
    macro: the field whose values weigh alike in the macro mean; "": the set has none.
    columns: of the paper's table: title -> call; {}: its title, and its only call.
    judged: calls whose replies a judge alone can grade; without judgements they have no score.
    has_clips: whether it shows clips; else pictures alone.
    further: figures of all rows together, by the set's own rules.
    subtitles: for protocols that show them; None: the set is asked without.
    vlmeval: name of the table of VLMEvalKit; "": it has none.
    lmms: task of lmms-eval; "": it has none.
    notes: what a reader of its score must know.
  """

  name: str
  title: str
  size: int
  read: Callable[[Path], list[Item]]
  prompts: Mapping[str, Callable[[Item, Protocol], list[Ask]]]
  grade: Callable[[Item, str, str, Protocol], Grade]
  presets: Mapping[str, Mapping[str, Any]]
  calls: tuple[str, ...] = ("",)
  breakdowns: tuple[str, ...] = ()
  cluster: str = "video"
  macro: str = ""
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  judged: tuple[str, ...] = ()
  has_clips: bool = True
  further: Callable[[Sequence[Row]], dict[str, Any]] | None = None
  subtitles: SubtitleFiles | None = None
  vlmeval: str = ""
  lmms: str = ""
  notes: tuple[str, ...] = ()

  def asks(self, item: Item, protocol: Protocol) -> list[Ask]:
    """What is asked about an item.

    Raises:
      UserError: the set has no prompts of that name, or no subtitles to show.
    """
    if protocol.subtitles and self.subtitles is None:
      raise UserError(f"{self.name} is asked without subtitles; leave subtitles=true away")
    if protocol.prompt not in self.prompts:
      raise UserError(
        f"{self.name} has no prompts {protocol.prompt!r}; it has {', '.join(sorted(self.prompts))}:"
        " give another --protocol, or --set prompt=NAME"
      )
    return self.prompts[protocol.prompt](item, protocol)


def digest(value: Any) -> str:
  """16 hex digits of a JSON value."""
  text = json.dumps(value, sort_keys=True, ensure_ascii=True)
  return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def record_id(item: Item, call: str) -> str:
  """The id of a record of the pool: the item's, with its call where it has several."""
  return f"{item.id}#{call}" if call else item.id


def without_letters(options: Sequence[Any]) -> tuple[str, ...]:
  """Options as texts without the letters that they carry in order: "A. cat", "B. dog"."""
  texts = [str(option).strip() for option in options]
  for form in ("{}. ", "{}.", "({}) ", "{}: ", "{}) "):
    heads = [form.format(letter) for letter in LETTERS[: len(texts)]]
    if texts and all(t.startswith(head) for t, head in zip(texts, heads, strict=False)):
      return tuple(t[len(head) :].strip() for t, head in zip(texts, heads, strict=True))
  return tuple(texts)

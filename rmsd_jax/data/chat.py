"""Conversations -> token ids, with the tokenizer and chat template of a Hugging Face folder.

The template writes one placeholder per image or clip; this file widens each to one placeholder per
visual token, with a timestamp in plain text before every frame pair of a clip, as Qwen3-VL was
trained. Axes: F frame pairs, N frames.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence

import jinja2
import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import images

_START = "<|vision_start|>"
_END = "<|vision_end|>"
_REPLY = "<|im_start|>assistant\n"
_PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
# No text of a user or a teacher may hold these: it could end a turn or claim the place of a
# picture. `ChatTokenizer` takes its ids from them in this order.
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", _START, _END, *_PADS.values())
_CONFIG_IDS = {  # of config.json
  "image_token_id": _PADS["image"],
  "video_token_id": _PADS["video"],
  "vision_start_token_id": _START,
  "vision_end_token_id": _END,
}
_WORDS = "Which words are here?"  # an example of plain text
_TEMPLATE_SECONDS = 10.0  # to write a short conversation
# What the template writes for one image or clip.
_PLACE = re.compile(
  re.escape(_START) + "(?:" + "|".join(map(re.escape, _PADS.values())) + ")" + re.escape(_END)
)


@dataclasses.dataclass(frozen=True)
class MediaTokens:
  """How one image or clip shows in the text.

  Attributes:
    kind: "image" or "video".
    counts_F: visual tokens of each frame pair; an image has one entry.
    seconds_F: timestamp of each frame pair in seconds; empty for an image.
    words: F + 1 texts before each frame pair and after the last, see `subtitles.between`; empty:
      nothing stands between the pairs.
  """

  kind: str
  counts_F: tuple[int, ...]
  seconds_F: tuple[float, ...] = ()
  words: tuple[str, ...] = ()

  def __post_init__(self):
    if self.kind not in _PADS:
      raise ValueError(f"kind is {self.kind!r}; known: {', '.join(_PADS)}")
    if self.kind == "image" and (len(self.counts_F) != 1 or self.seconds_F):
      raise ValueError(f"an image has one count and no timestamp, got {self}")
    if self.kind == "video" and len(self.counts_F) != len(self.seconds_F):
      raise ValueError(f"a clip has one timestamp for each count, got {self}")
    if self.words and len(self.words) != len(self.seconds_F) + 1:
      raise ValueError(f"words stand before each pair and after the last, got {self}")


def pair_seconds(seconds_N: np.ndarray, temporal: int = 2) -> tuple[float, ...]:
  """Timestamps of the frame pairs of a clip, as Qwen3-VL's processor computes them.

  Args:
    seconds_N: float64 seconds that are told of the frames, ascending.
    temporal: frames in a pair; the last frame is repeated to fill the last pair.

  Returns:
    F seconds: the mean of the first and last frame of each pair.
  """
  # The mean in Python's floats, after the seconds: the order decides what ".1f" prints.
  groups = images.pad_to_multiple(np.asarray(seconds_N), temporal).reshape(-1, temporal).tolist()
  return tuple((group[0] + group[-1]) / 2 for group in groups)


class ChatTokenizer:
  """Tokenizer and chat template of a Hugging Face folder.

  Attributes:
    im_end, image_pad, video_pad, vision_start, vision_end: ids of Qwen's control tokens.
    pad: id that fills unused places (`<|endoftext|>`); never the end of a turn.
    opening: what the template itself begins a reply with: "", or "<think>\\n" of Thinking models.
  """

  def __init__(self, folder: str | pathlib.Path):
    """Loads the tokenizer.

    Args:
      folder: holds tokenizer.json, tokenizer_config.json and the chat template (in
        chat_template.jinja, tokenizer_config.json or chat_template.json).

    Raises:
      UserError: the folder, the template or one of the control tokens is missing.
    """
    folder = pathlib.Path(folder)
    if not (folder / "tokenizer_config.json").is_file():
      raise UserError(
        f"{folder} has no tokenizer_config.json; point to a Hugging Face model or tokenizer folder"
      )
    self._tokenizer = _read_tokenizer(folder)
    self._tokenizer.chat_template = _template(folder, self._tokenizer.chat_template)
    # A token that is missing would be spelled in pieces, and no picture would find its place.
    vocabulary = self._tokenizer.get_vocab()
    missing = [token for token in _CONTROL if token not in vocabulary]
    if missing:
      raise UserError(
        f"the tokenizer in {folder} lacks {', '.join(missing)}; a Qwen3-VL tokenizer is needed"
      )
    self.pad, _, self.im_end, self.vision_start, self.vision_end, self.image_pad, self.video_pad = (
      vocabulary[token] for token in _CONTROL
    )

    self._check_words(folder)
    self._check_config(folder, vocabulary)

    # Templates of Thinking models open <think> for the reply. A target must not open it again, and
    # a rollout, which does not repeat it, would fail the outer format without it.
    *_, self.opening = self._try_template(folder).partition(_REPLY)
    if self.opening.strip() not in ("", "<think>"):
      raise UserError(
        f"the chat template in {folder} begins a reply with {self.opening!r:.60}: every target and "
        "rollout would have it before its own reasoning; use one that begins it with nothing or "
        "<think>"
      )

  def _check_words(self, folder: pathlib.Path) -> None:
    """An incomplete copy has control tokens alone, and makes nothing of every other text."""
    ids = self._tokenizer.encode(_WORDS, add_special_tokens=False)
    if self._tokenizer.decode(ids).strip() != _WORDS:
      raise UserError(
        f"the tokenizer in {folder} does not give back {_WORDS!r}; its files are not whole "
        "(tokenizer.json, or vocab.json and merges.txt): copy them again"
      )

  def _check_config(self, folder: pathlib.Path, vocabulary: Mapping[str, int]) -> None:
    """Holds the ids against the model's config.json, where it lies beside them."""
    path = folder / "config.json"
    raw = read_object(path) if path.is_file() else {}
    for key, token in _CONFIG_IDS.items():
      if raw.get(key, vocabulary[token]) != vocabulary[token]:
        raise UserError(
          f"{path} says {key} {raw[key]}, the tokenizer there has {token} as "
          f"{vocabulary[token]}; take both from one model"
        )
    text = raw.get("text_config")
    self._check_stops(folder, [raw, text if isinstance(text, dict) else {}])
    size = text.get("vocab_size") if isinstance(text, dict) else None
    highest = max(vocabulary, key=vocabulary.__getitem__)
    if isinstance(size, int) and vocabulary[highest] >= size:
      raise UserError(
        f"the tokenizer in {folder} has id {vocabulary[highest]} ({highest!r}), the model has "
        f"{size} rows (vocab_size); take the model's own tokenizer, or resize the model"
      )

  def _check_stops(self, folder: pathlib.Path, configs: list[dict]) -> None:
    """Tokens at which a response ends must be control tokens: at a word, it would end too soon."""
    path = folder / "generation_config.json"
    sources = ([read_object(path)] if path.is_file() else []) + configs
    stop = next((s["eos_token_id"] for s in sources if s.get("eos_token_id") is not None), [])
    special = {id_ for id_, token in self._tokenizer.added_tokens_decoder.items() if token.special}
    for id_ in stop if isinstance(stop, list) else [stop]:
      if not isinstance(id_, int) or id_ not in special:
        raise UserError(
          f"eos_token_id {id_!r:.60} of the model in {folder} is no control token of the "
          f"tokenizer; name <|im_end|>, {self.im_end}, in generation_config.json"
        )

  def _try_template(self, folder: pathlib.Path) -> str:
    """A short conversation as the template writes it; UserError of one that cannot serve."""
    items = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": _WORDS}]
    where = f"the chat template in {folder}"
    remedy = "use the template of the Qwen3-VL model"
    try:
      with _time_limit(_TEMPLATE_SECONDS):
        text = self._tokenizer.apply_chat_template(
          [{"role": "user", "content": items}], tokenize=False, add_generation_prompt=True
        )
    except TimeoutError:
      raise UserError(f"{where} takes more than {_TEMPLATE_SECONDS:g} s; {remedy}") from None
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError,
            ArithmeticError, RecursionError, MemoryError) as error:  # fmt: skip
      said = " ".join(str(error).split())[:200]
      raise UserError(f"{where} is broken ({type(error).__name__}: {said}); {remedy}") from None
    places = [_START + pad + _END for pad in _PADS.values()]
    if _PLACE.findall(text) != places:
      raise UserError(f"{where} writes no places for images and videos; {remedy}")
    if _WORDS not in text or _REPLY not in text:
      raise UserError(f"{where} leaves out the text, or does not begin a reply; {remedy}")
    return text

  def __len__(self) -> int:
    """Number of ids, special ones included (a model's vocabulary may be padded beyond it)."""
    return len(self._tokenizer)

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits that change with the vocabulary, the merges or the chat template."""
    parts = self._tokenizer.backend_tokenizer.to_str() + self._tokenizer.chat_template
    return hashlib.sha256(parts.encode("utf-8")).hexdigest()[:16]

  def check_alike(self, folder: str | pathlib.Path) -> None:
    """Raises UserError where the tokenizer of another folder has other tokens, or other ids."""
    if ChatTokenizer(folder)._tokenizer.get_vocab() != self._tokenizer.get_vocab():
      raise UserError(
        f"the tokenizer in {folder} has other tokens than the student's, so the two cannot be "
        "compared token by token; give a model of the same tokenizer"
      )

  def encode_messages(
    self,
    messages: Sequence[Mapping],
    media: Sequence[MediaTokens] = (),
    outer_vision_wrapper: bool = False,
  ) -> list[int]:
    """Ids of a conversation up to and including the header of the assistant's next turn.

    Args:
      messages: as in `processor.Processor.prompt`.
      media: the images and clips in the order in which the messages name them.
      outer_vision_wrapper: False writes a clip as `<1.5 seconds><|vision_start|>...<|vision_end|>`
        per frame pair and nothing around it: the released model, transformers 4.57. True keeps the
        template's own vision_start and vision_end around the whole clip: transformers >= 5.10.

    Raises:
      UserError: a text holds a control token; the template does not name the given media.
    """
    # Before the template, whose own control tokens cannot be told from a text's afterwards.
    for message in messages:
      content = message["content"]
      texts = [content] if isinstance(content, str) else [i["text"] for i in content if "text" in i]
      for text in texts:
        _refuse_control(text, f"a {message['role']} message")
    for text in itertools.chain.from_iterable(medium.words for medium in media):
      _refuse_control(text, "a subtitle")
    text = self._tokenizer.apply_chat_template(
      list(messages), tokenize=False, add_generation_prompt=True
    )
    return self._encode(_expand(text, media, outer_vision_wrapper))

  def has_control(self, text: str) -> bool:
    """Whether a text holds a control token, as no teacher's response may."""
    return any(token in text for token in _CONTROL)

  def encode_response(self, text: str) -> list[int]:
    """Ids of a reply, ending in `<|im_end|>`, without the `opening` that ends the prompt.

    Raises:
      UserError: the text holds a control token.
    """
    _refuse_control(text, "a response")
    # The prompt ends in the opening already.
    if self.opening and text.lstrip().startswith(self.opening.strip()):
      text = text.lstrip().removeprefix(self.opening.strip()).lstrip("\n")
    return [*self._encode(text), self.im_end]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of a reply with its `opening`, without padding and the end-of-turn token at its end.

    Any other control token stays in sight, as do `<think>` and `</think>`.
    """
    # Only what ends the reply is taken off. A control token inside it must stay in sight, since the
    # rules refuse such a rollout as they refuse a teacher's text.
    kept = [int(token) for token in ids]
    while kept and kept[-1] == self.pad:
      kept.pop()
    if kept and kept[-1] == self.im_end:
      kept.pop()
    return self.opening + self._tokenizer.decode(
      kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def decode_groups(self, ids_BRT, length_BR) -> list[list[str]]:
    """Texts of R replies to each of B prompts, each up to its length in tokens."""
    ids_BRT = np.asarray(ids_BRT)  # from the device once, not reply by reply
    length_BR = np.asarray(length_BR)
    return [
      [self.decode(ids_T[:length]) for ids_T, length in zip(*group, strict=True)]
      for group in zip(ids_BRT, length_BR, strict=True)
    ]

  def _encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
  """Raises TimeoutError in a block that takes longer; without effect outside the main thread."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def late(*_) -> None:
    raise TimeoutError

  before = signal.signal(signal.SIGALRM, late)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def read_object(path: pathlib.Path) -> dict:
  """The JSON object that a file holds; UserError of one that holds none."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is no whole JSON file ({error}); copy it again") from error
  if not isinstance(value, dict):
    raise UserError(f"{path} holds no JSON object; copy it again")
  return value


def _read_tokenizer(folder: pathlib.Path):
  about = read_object(folder / "tokenizer_config.json")
  if (folder / "tokenizer.json").is_file():
    read_object(folder / "tokenizer.json")  # a torn one, before a library sees it
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there
  import transformers  # not at the top: it takes seconds, and a refusal should not wait for it

  # The class that AutoTokenizer chooses for released models; where PyTorch is installed that one
  # would import it first, 6 s.
  is_released = about.get("tokenizer_class") in ("Qwen2Tokenizer", "Qwen2TokenizerFast")
  kind = transformers.Qwen2Tokenizer if is_released else transformers.AutoTokenizer
  try:
    return kind.from_pretrained(folder, local_files_only=True)
  except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
    said = " ".join(str(error).split())[:200]
    raise UserError(
      f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {said}); copy its files "
      "again"
    ) from error


def _template(folder: pathlib.Path, of_tokenizer: str | dict[str, str] | None) -> str:
  """The chat template of a folder: of several, the one that transformers' processor uses, which is
  not the tokenizer's.

  Args:
    of_tokenizer: of chat_template.jinja or tokenizer_config.json; a dict of several by name.
  """
  if isinstance(of_tokenizer, dict):
    of_tokenizer = of_tokenizer.get("default")
  found = {}
  # chat_template.json is the file of Qwen3-VL's first release.
  for name in ("processor_config.json", "chat_template.json"):
    path = folder / name
    found[name] = read_object(path).get("chat_template") if path.is_file() else None
  found["chat_template.jinja or tokenizer_config.json"] = of_tokenizer
  templates = {name: text for name, text in found.items() if isinstance(text, str)}
  if not templates:
    raise UserError(
      f"{folder} has no chat template: none of {', '.join(found)} has one; copy the template of "
      "the base model there"
    )
  first = next(iter(templates))
  if len({text.strip() for text in templates.values()}) > 1:
    warnings.warn(
      f"{folder} has different chat templates in {' and '.join(templates)}; that of {first} is "
      "used, as transformers' processor does (its tokenizer, and who serves by it, does not)",
      stacklevel=3,
    )
  return templates[first]


def _refuse_control(text: str, where: str) -> None:
  for token in _CONTROL:
    if token in text:
      raise UserError(f"{where} holds the control token {token}; remove it from the text")


def _expand(text: str, media: Sequence[MediaTokens], outer_vision_wrapper: bool) -> str:
  """Replaces every placeholder of the template by the tokens of its image or clip, in order."""
  places = _PLACE.findall(text)
  wanted = [_START + _PADS[medium.kind] + _END for medium in media]
  if places != wanted:
    raise UserError(
      f"the chat template wrote {len(places)} media placeholders {places}, the messages name "
      f"{[medium.kind for medium in media]}; use the template of Qwen3-VL"
    )
  # In one pass, so that what is put in is not searched for placeholders again.
  parts: Iterator[str] = (_spell(medium, outer_vision_wrapper) for medium in media)
  return _PLACE.sub(lambda _: next(parts), text)


def _spell(medium: MediaTokens, outer_vision_wrapper: bool) -> str:
  pad = _PADS[medium.kind]
  if medium.kind == "image":
    return _START + pad * medium.counts_F[0] + _END
  *before_F, after = medium.words or [""] * (len(medium.counts_F) + 1)
  # One decimal, by Python's rounding: 0.25 is written 0.2.
  pairs = "".join(
    f"{words}<{seconds:.1f} seconds>{_START}{pad * count}{_END}"
    for words, seconds, count in zip(before_F, medium.seconds_F, medium.counts_F, strict=True)
  )
  pairs += after
  return _START + pairs + _END if outer_vision_wrapper else pairs

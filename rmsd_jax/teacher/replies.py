"""What a server sends: one answer, or an error, whatever its status says.

Nothing of a reply is trusted: charset, counts of tokens, shape and size may all be wrong.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from rmsd_jax.tasks.response import TAGS
from rmsd_jax.teacher import endings
from rmsd_jax.teacher.request import Tokens

LARGEST = 8 * 2**20  # bytes of a reply; an answer of 100,000 tokens has half a million
_MOST_TOKENS = 10**8  # of one answer; a larger count is a fault of the server
_OPEN, _CLOSE, _ANSWER, _ = TAGS
# Of chat templates: servers that leave special tokens in the text end it with one of these.
_TURN_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>")
# Of events from a server: one begins with any of its fields, or with a comment.
_STREAM = re.compile(r"\s*(?:data|event|id|retry)?:")
_LINE_END = re.compile(r"\r\n|\r|\n")  # others are letters of a text
_OPENING = re.compile(rf"\s*{_OPEN}")
_EMPTY_THOUGHTS = re.compile(rf"\s*{_OPEN}\s*{_CLOSE}")


@dataclasses.dataclass(frozen=True)
class Answer:
  """One choice of a completion.

  Attributes:
    text: the thoughts, if they came apart, in think tags, then the content.
    finish_reason: the server's word, see `endings.spelled`.
    tokens: as the server counted; None if it does not say, or says what cannot be.
  """

  text: str
  finish_reason: str
  tokens: Tokens | None


class Malformed(ValueError):
  """A reply that is neither an answer nor an error. Attribute: tokens, if it tells its cost."""

  def __init__(self, reason: str, tokens: Tokens | None = None):
    super().__init__(reason)
    self.tokens = tokens


class ServerError(Exception):
  """An error that a server tells, in its status or in the body of a status 200.

  Attributes:
    status: of HTTP; 402 also where the words say that there is no credit, 500 if nothing tells.
  """

  def __init__(self, status: int, reason: str):
    super().__init__(reason)
    self.status = status


# Words of errors, as `_word` writes them, for servers that give no number. Of these, 402 and 401
# end a run, 400 is final for its prompt, the others may pass.
_CODES = {
  402: """insufficient_quota insufficient_credit insufficient_credits insufficient_balance
    insufficient_funds payment_required billing billing_hard_limit_reached billing_not_active
    arrearage quota_exhausted""",
  401: """invalid_api_key incorrect_api_key authentication unauthorized unauthenticated
    invalid_authentication""",
  400: """bad_request invalid_request invalid_argument invalid_parameter invalid_value
    context_length_exceeded string_above_max_length content_filter content_policy_violation
    data_inspection_failed unprocessable_entity request_too_large""",
  403: "permission permission_denied forbidden access_denied",
  404: "not_found model_not_found no_such_model",
  429: "rate_limit rate_limit_exceeded too_many_requests throttling resource_exhausted",
}
_STATUS_OF = {word: status for status, words in _CODES.items() for word in words.split()}
_TOLD_IN = ("code", "status", "status_code", "http_status", "error_code", "type")


def decoded(raw: bytes, charset: str | None) -> str:
  """The text of a reply. What a server declares is often wrong, so JSON's own encodings go first.

  Args:
    charset: as the server declares it.
  """
  text = _legible(raw, charset)
  # No charset is guessed: a wrong one would give other letters, where this sign shows the damage.
  return raw.decode("utf-8", "replace") if text is None else text


def is_legible(raw: bytes, charset: str | None) -> bool:
  """Whether `decoded` loses no letter of a reply."""
  return _legible(raw, charset) is not None


def _legible(raw: bytes, charset: str | None) -> str | None:
  for encoding in (json.detect_encoding(raw), charset):
    if encoding is not None:
      with contextlib.suppress(ValueError, LookupError):
        return raw.decode(encoding)
  return None


def read_error(status: int, text: str) -> ServerError:
  """The error of a reply whose status is not 200."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    value = {}
  error = _error(value) or {"message": text if not value else value}
  return _told(error, value, status)


def read_answer(text: str) -> Answer:
  """Reads a chat completion with one choice.

  Servers may give a model's thoughts apart, see `_joined`; texts may come in parts.

  Raises:
    ServerError: the reply is an error.
    Malformed: it is not a whole completion.
  """
  value = None
  tokens = None
  try:
    value = _streamed(text) if _STREAM.match(text) else json.loads(text)
    # Errors come with status 200, too, some of them beside an empty list of choices.
    choices = value.get("choices")
    if not choices and (error := _error(value)):
      raise _told(error, value, None)
    tokens = _tokens(value.get("usage"))
    choice = choices[0]
    if choice.get("error"):  # of the model behind a router, which itself says that all is well
      raise _told(_error(choice) or {}, choice, None)
    word = endings.spelled(choice.get("finish_reason"))
    message = choice.get("message")
    if message is None and endings.KNOWN.kind(word) not in endings.USABLE:
      message = {}  # some services withhold all of it
    content, inside = _parts(message.get("content"))
    content = content or _flat(message.get("refusal"))
    thoughts = inside or _apart(message)
  except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
    what = f"{type(error).__name__}: {error}"
    raise Malformed(f"not a chat completion ({what}): {text[:100]!r}", tokens) from None
  text = _joined(thoughts, content) if thoughts.strip() else _opened(content)
  # Cut off, a text that ends in such a token is one that quotes it.
  if endings.KNOWN.kind(word) == endings.STOP:
    text = _without_end(text)
  # half of a surrogate pair is no character: no file or tokenizer takes it
  return Answer(text.encode("utf-8", "replace").decode("utf-8"), word, tokens)


def _streamed(text: str) -> dict[str, Any]:
  """The completion of a reply that came as a stream of its pieces, though none was asked for."""
  lines = [line[5:].strip() for line in _LINE_END.split(text.lstrip()) if line[:5] == "data:"]
  pieces = [json.loads(line) for line in lines if line != "[DONE]"]
  message: dict[str, str] = {}
  whole: dict[str, Any] = {"choices": [{"message": message}]}
  for piece in pieces:
    if piece.get("usage"):
      whole["usage"] = piece["usage"]
    if not piece.get("choices"):
      if _error(piece):
        return piece
      continue
    choice = next((one for one in piece["choices"] if not one.get("index")), None)
    if choice is None:
      continue  # of another answer, which nobody asked for
    if choice.get("error"):
      return {"choices": [choice]}
    for name, part in choice.get("delta", {}).items():
      if name != "role" and part is not None:
        message[name] = message.get(name, "") + _flat(part)
    # The pieces before the last have it as null.
    if choice.get("finish_reason"):
      whole["choices"][0]["finish_reason"] = choice["finish_reason"]
  return whole


def _without_end(text: str) -> str:
  """A text without the special tokens that end it."""
  kept = len(text)
  while True:
    end = kept
    while end and text[end - 1].isspace():
      end -= 1
    token = next((token for token in _TURN_ENDS if text.endswith(token, 0, end)), None)
    if token is None:
      return text[:kept]
    kept = end - len(token)


def _error(value: Any) -> Mapping | None:
  """The part of a reply that tells of an error, if there is one."""
  if not isinstance(value, Mapping):
    return None
  if error := value.get("error") or value.get("errors"):
    error = error[0] if isinstance(error, list) else error
    return error if isinstance(error, Mapping) else {"message": error}
  told = {"message", "msg", "detail", "error_msg", "error_code"} & value.keys()
  return value if told or value.get("object") == "error" else None


def _told(error: Mapping, value: Any, status: int | None) -> ServerError:
  """An error with its status; where HTTP tells none, that of the first number or word."""
  said = [part[name] for part in (error, value) if isinstance(part, Mapping)
          for name in _TOLD_IN if name in part]  # fmt: skip
  words = [_STATUS_OF[word] for word in map(_word, said) if word in _STATUS_OF]
  if 402 in words:  # services send it with 403 and 429
    status = 402
  elif status is None:
    numbers = [int(str(x)) for x in said if re.fullmatch(r"[45]\d\d", str(x))]
    status = [*numbers, *words, 500][0]
  names = ("message", "msg", "detail", "error_msg", "type", "code")
  reason = next((error[name] for name in names if error.get(name)), "no reason given")
  return ServerError(status, f"{status}: {reason if isinstance(reason, str) else str(reason)}")


def _word(value: Any) -> str:
  """`RateLimitError`, `rate_limit_error`, `RATE-LIMIT` -> `rate_limit`."""
  text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(value)[:100])
  return re.sub(r"_(error|exception)$", "", re.sub(r"[\s.\-]+", "_", text.casefold()))


def _parts(content: Any) -> tuple[str, str]:
  """(text, thoughts) of a content: a string, or a list of parts, joined."""
  if not isinstance(content, list):
    return _flat(content), ""
  thinks = lambda part: isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning")
  text = "".join(_flat(part) for part in content if not thinks(part))
  return text, "".join(_flat(part) for part in content if thinks(part))


def _apart(message: Mapping) -> str:
  """The thoughts beside a content, by whatever name."""
  names = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
  return next((text for name in names if (text := _flat(message.get(name)))), "")


def _flat(value: Any) -> str:
  """A text, wherever it stands in lists and objects."""
  if value is None or isinstance(value, str):
    return value or ""
  if isinstance(value, list):
    return "".join(map(_flat, value))
  if isinstance(value, Mapping):
    names = ("text", "thinking", "reasoning", "summary", "content", "refusal", "data")
    for name in names:
      if value.get(name) is not None:
        return "" if name == "data" else _flat(value[name])  # encrypted thoughts
  raise TypeError("a text is no string")


def _joined(thoughts: str, content: str) -> str:
  """One text of thoughts that came apart and the content, without losing any of the two.

  A content with thoughts of its own, as asked for, goes without the model's native ones.
  """
  content = _asked_for(content)
  if content.lstrip().startswith(_OPEN):
    if not (empty := _EMPTY_THOUGHTS.match(content)):
      return content
    return _block(thoughts) + content[empty.end() :]
  head, closing, rest = content.partition(_CLOSE)
  if closing and _OPEN not in head and rest.lstrip().startswith(_OPEN):
    return rest.lstrip()
  # From behind: thoughts may quote the closing tag, an answer does not.
  head, closing, rest = content.rpartition(_CLOSE)
  if closing and (_ANSWER in rest or _ANSWER not in head):
    # The rest of the thoughts stands in front of the content: the server cut them in two.
    if not head.strip().startswith(thoughts.strip()):  # or they are there twice
      seam = "" if thoughts[-1:].isspace() or head[:1].isspace() or not head else "\n"
      head = thoughts + seam + head
    return _block(head) + rest
  if not content.strip() and any(tag in thoughts for tag in (_CLOSE, _ANSWER)):
    return _opened(thoughts)  # all of the text was taken for thoughts
  return _block(thoughts) + content


def _block(thoughts: str) -> str:
  """A think block. Tags that the thoughts quote are spelled otherwise: they are no tags here.

  A student that learned them would break the format in the middle of its thoughts.
  """
  if thoughts.lstrip().startswith(_OPEN):
    thoughts = thoughts.lstrip().removeprefix(_OPEN)
  if thoughts.rstrip().endswith(_CLOSE):
    thoughts = thoughts.rstrip().removesuffix(_CLOSE)
  for tag in TAGS:
    thoughts = thoughts.replace(tag, f"< {tag[1:]}")
  return f"{_OPEN}{thoughts}{_CLOSE}"


def _opened(content: str) -> str:
  """A content whose think block may have been begun by the server's prompt, so begun here."""
  before, closing, after = content.partition(_CLOSE)
  if closing and _OPEN not in before:  # the asked-for reasoning may follow the model's own
    return after.lstrip() if after.lstrip().startswith(_OPEN) else f"{_OPEN}{content}"
  return _asked_for(content)


def _asked_for(content: str) -> str:
  """A content without the model's native think blocks, empty ones among them, before another."""
  begin = 0
  # By places: a server may send a million blocks, and copies of the rest would take hours.
  while opening := _OPENING.match(content, begin):
    close = content.find(_CLOSE, opening.end())
    behind = close + len(_CLOSE)
    follows = _OPENING.match(content, behind) if close >= 0 else None
    # Thoughts that quote the tags are no block of their own; one that is cut off is no answer.
    quotes = content.find(_OPEN, opening.end(), close) >= 0
    if follows is None or quotes or content.find(_CLOSE, follows.end()) < 0:
      break
    begin = behind
  return content[begin:].lstrip() if begin else content


def _tokens(usage: Any) -> Tokens | None:
  """What was counted; some services leave a model's thoughts out of all but the total."""
  if not isinstance(usage, Mapping):
    return None
  read = _count(usage.get("prompt_tokens"))
  written = _count(usage.get("completion_tokens"))
  if read is None or written is None:
    return None
  return Tokens(read, max(written, (_count(usage.get("total_tokens")) or 0) - read))


def _count(value: Any) -> int | None:
  """A number of tokens; None for what is none."""
  try:
    number = float(value)
  except (TypeError, ValueError, OverflowError):
    return None
  return int(number) if math.isfinite(number) and 0 <= number <= _MOST_TOKENS else None

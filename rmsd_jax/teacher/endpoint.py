"""A chat endpoint: one request -> one answer, at the allowed rate, tried again where that can help.

Speaks to any server of OpenAI's chat completions through the `openai` client. The client's own
retries are switched off: they do not repeat a request whose answer came in part or is not JSON,
count against no rate limit, and give up after seconds. So the one loop that repeats is `ask`.
"""

import asyncio
import collections
import dataclasses
import email.utils
import json
import random
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Self

from rmsd_jax.core.errors import UserError
from rmsd_jax.teacher.request import Tokens

UNKNOWN_END = "unknown"  # a finish_reason
MAX_WAIT = 300.0  # seconds between two tries, whatever a server asks for
_BACKOFF_CEILING = 60.0  # seconds
_AGAIN = (408, 409, 425, 429)  # and every 5xx
_MAX_REASON = 300  # characters of a server's message
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # httpx: there was no connection
_SHORTEST_KEY = 8  # characters; a shorter one is a placeholder for a server that needs no key


class Unanswered(UserError):
  """This request has no answer; others may. Attribute: kind."""

  def __init__(self, kind: str, reason: str):
    super().__init__(reason)
    self.kind = kind


@dataclasses.dataclass(frozen=True)
class Answer:
  """One choice of a completion.

  Attributes:
    text: the thoughts, if they came apart, in think tags, then the content.
    finish_reason: as the server gave it: "stop", "length", "content_filter", ...
    tokens: as the server counted; None if it does not say.
  """

  text: str
  finish_reason: str
  tokens: Tokens | None


@dataclasses.dataclass(frozen=True)
class Patience:
  """How requests are sent, and how often.

  Attributes:
    requests_per_minute, tokens_per_minute: at most; 0 is no limit. Tokens count read and written.
    timeout: seconds for one answer.
    retries: how often a request is sent again after a fault that may pass.
    backoff: seconds before the first repetition; doubled with each, up to 60, less up to half of
      it at random.
  """

  requests_per_minute: float = 0.0
  tokens_per_minute: float = 0.0
  timeout: float = 600.0
  retries: int = 8
  backoff: float = 1.0

  def __post_init__(self):
    for name in ("requests_per_minute", "tokens_per_minute", "retries"):
      if not getattr(self, name) >= 0:
        flag = name.replace("_", "-")
        raise UserError(f"--{flag} {getattr(self, name)}: it must be 0 or more")
    if not self.timeout > 0:
      raise UserError(f"--timeout {self.timeout}: it must be above 0 seconds")


class OverBudget(Exception):
  """A request was not sent again, because `lost` forbade it."""


class _Again(Exception):
  """A fault that may pass.

  Attributes:
    wait: seconds that the server asks for.
    billed: the answer may have been made, and so be paid for, though it did not come.
  """

  def __init__(self, kind: str, reason: str, wait: float = 0.0, billed: bool = False):
    super().__init__(reason)
    self.kind, self.wait, self.billed = kind, wait, billed


class Endpoint:
  """An endpoint, open inside `async with`.

  Attributes:
    repeated: kind of fault -> requests that were sent again after it.
  """

  def __init__(self, base_url: str, key: str, patience: Patience = Patience()):
    """Describes an endpoint; nothing is sent.

    Args:
      base_url: its address, up to but without /chat/completions.
      key: the API key; never shown, also where a server repeats it.

    Raises:
      UserError: the address or the key cannot be one.
    """
    if not _is_address(base_url):
      raise UserError(f"--base-url {base_url}: give an address such as http://localhost:8000/v1")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
      raise UserError(
        "the API key is empty, or holds blanks or signs that no key has; set it again"
      )
    self._url, self._key, self._patience = base_url, key, patience
    self._pace = _Pace(patience.requests_per_minute, patience.tokens_per_minute)
    self._answered = False
    self.repeated: collections.Counter[str] = collections.Counter()

  async def __aenter__(self) -> Self:
    import openai  # not at the top: of all commands, one needs it

    self._openai = openai
    self._client = openai.AsyncOpenAI(
      base_url=self._url, api_key=self._key, timeout=None, max_retries=0
    )
    return self

  async def __aexit__(self, *exc: object) -> None:
    await self._client.close()

  async def ask(
    self,
    body: Mapping[str, Any],
    bound: Tokens,
    lost: Callable[[Tokens], bool] = lambda tokens: True,
  ) -> Answer:
    """Sends one request until it is answered.

    Args:
      body: the fields of the request, model and messages among them.
      bound: the most tokens it may count; for the rate limit, until the server has told.
      lost: told of what an answer that did not come may have cost (a time limit, a broken
        connection, no whole completion); says whether the request may be sent again.

    Raises:
      OverBudget: `lost` said no.
      Unanswered: the server refuses this request, or the retries are used up.
      UserError: the server will refuse every request (the key, the model, no credit), or no
        request has ever reached it.
    """
    for attempt in range(self._patience.retries + 1):
      await self._pace.turn(sum(bound))
      try:
        answer = await self._once(body)
      except _Again as fault:
        last = fault
        if not fault.billed:
          self._pace.give_back(sum(bound))
        elif not lost(bound):
          raise OverBudget(str(fault)) from None
      else:
        self._answered = True
        self._pace.give_back(sum(bound) - sum(answer.tokens or bound))
        return answer
      if attempt < self._patience.retries:
        if not self._answered and not self.repeated:
          print(f"no answer yet ({last}); asking again", file=sys.stderr)
        self.repeated[last.kind] += 1
        self._pace.pause(last.wait)  # for all: the server is the same
        backoff = min(self._patience.backoff * 2.0**attempt, _BACKOFF_CEILING)
        await asyncio.sleep(max(last.wait, backoff * random.uniform(0.5, 1)))
    if last.kind == "connection" and not last.billed and not self._answered:
      raise UserError(f"{self._url} cannot be reached ({last}); see --base-url")
    raise Unanswered(
      last.kind, f"no answer in {self._patience.retries + 1} tries; the last: {last}"
    )

  async def _once(self, body: Mapping[str, Any]) -> Answer:
    try:
      async with asyncio.timeout(self._patience.timeout):
        raw = await self._client.chat.completions.with_raw_response.create(
          model=body["model"], messages=body["messages"], extra_body=dict(body)
        )
    except TimeoutError:
      reason = f"nothing within {self._patience.timeout:g} s"
      raise _Again("timeout", reason, billed=True) from None
    except self._openai.APIStatusError as error:
      raise self._refused(error) from None
    except self._openai.APIConnectionError as error:
      cause = error.__cause__ or error
      reason = self._clean(f"{type(cause).__name__}: {cause}")
      sent = type(cause).__name__ not in _NOT_SENT
      raise _Again("connection", reason, billed=sent) from None
    try:
      return read_answer(raw.http_response.text)
    except ValueError as error:
      raise _Again("malformed", self._clean(str(error)), billed=True) from None

  def _refused(self, error) -> _Again | UserError:
    """What an error status means for the request, or for the run."""
    status, code = error.status_code, error.code or ""
    told = error.body.get("message") if isinstance(error.body, Mapping) else None
    reason = self._clean(f"{status}: {told or error.message}")
    if status == 402 or code == "insufficient_quota":
      return UserError(f"{self._url} has no credit left for this key ({reason}); add some")
    if status in _AGAIN or status >= 500:
      return _Again(str(status), reason, _retry_after(error.response.headers))
    if status == 401 or (status == 403 and not self._answered):  # later it is about the prompt
      return UserError(
        f"{self._url} refuses the API key ({reason}); set another, see --api-key-env"
      )
    if status == 404:
      return UserError(
        f"{self._url} has no such model or address ({reason}); see --model, --base-url"
      )
    return Unanswered(str(status), reason)

  def _clean(self, text: str) -> str:
    """A server's words on one line, cut, and without the key."""
    if len(self._key) >= _SHORTEST_KEY:
      text = text.replace(self._key, "***")
    return " ".join(text.split())[:_MAX_REASON]


class _Pace:
  """Spaces requests evenly, so that no minute sees more than the limits."""

  def __init__(self, requests_per_minute: float, tokens_per_minute: float):
    self._seconds_of_request = 60 / requests_per_minute if requests_per_minute else 0.0
    self._seconds_of_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
    self._request = self._token = 0.0  # when the next may start, on the monotonic clock

  async def turn(self, tokens: int) -> None:
    """Waits until a request that counts `tokens` may be sent."""
    now = time.monotonic()
    start = max(now, self._request, self._token)
    self._request = start + self._seconds_of_request
    self._token = start + self._seconds_of_token * tokens
    await asyncio.sleep(start - now)

  def give_back(self, tokens: int) -> None:
    """Fewer tokens were counted than `turn` took."""
    self._token -= self._seconds_of_token * tokens

  def pause(self, seconds: float) -> None:
    """No request starts for so long."""
    self._request = max(self._request, time.monotonic() + seconds)


def read_answer(text: str) -> Answer:
  """Reads a chat completion with one choice.

  Servers may give a model's thoughts apart, as `reasoning_content` or `reasoning`: they are put in
  think tags before the content, unless it has such tags itself. A server that does not know of them
  leaves them in front of a </think> whose beginning stood in its prompt. Of a finish_reason of null
  nobody knows whether the answer is whole: it is UNKNOWN_END, which no record takes.

  Raises:
    ValueError: it is not a whole completion.
  """
  try:
    completion = json.loads(text)
    choice = completion["choices"][0]
    message, ending = choice["message"], choice["finish_reason"] or UNKNOWN_END
    content = message.get("content") or message.get("refusal") or ""
    thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
    if not all(isinstance(part, str) for part in (content, thoughts, ending)):
      raise TypeError("a text or the finish_reason is no string")
    if ending == "error":  # of a provider behind a router
      raise ValueError("the answer was broken off")
  except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
    what = f"{type(error).__name__}: {error}"
    raise ValueError(f"not a chat completion ({what}): {text[:100]!r}") from None
  if thoughts and "<think>" not in content and "</think>" not in content:
    content = f"<think>{thoughts}</think>{content}"
  before, closing, after = content.partition("</think>")
  if closing and "<think>" not in before:  # the asked-for reasoning may follow the model's own
    content = after.lstrip() if "<think>" in after else f"<think>{content}"
  # half of a surrogate pair is no character: no file or tokenizer takes it
  text = content.encode("utf-8", "replace").decode("utf-8")
  return Answer(text, ending, _tokens(completion.get("usage")))


def _tokens(usage: Any) -> Tokens | None:
  """What was counted; some services leave a model's thoughts out of all but the total."""
  try:
    read, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    return Tokens(read, max(written, int(usage.get("total_tokens", 0)) - read))
  except (TypeError, KeyError, ValueError, AttributeError):
    return None


def _is_address(url: str) -> bool:
  try:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
  except ValueError:  # of the port, or of brackets
    return False


def _retry_after(headers: Mapping[str, str]) -> float:
  """Seconds that a server asks to wait, as a number or a date; 0 if it does not."""
  value = headers.get("retry-after", "")
  try:
    seconds = float(value)
  except ValueError:
    try:
      seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
      return 0.0
  return min(max(0.0, seconds), MAX_WAIT)

"""A chat endpoint: one request -> one answer, at the allowed rate, tried again where that can help.

Speaks to any server of OpenAI's chat completions. It follows no redirect, reads no more of a reply
than `replies.LARGEST`, and prints of what a server says neither the key nor what a terminal obeys.
"""

import asyncio
import collections
import dataclasses
import email.utils
import json
import random
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Self

from rmsd_jax.core.errors import UserError
from rmsd_jax.teacher import replies
from rmsd_jax.teacher.endings import BROKEN, KNOWN, LOST, Endings
from rmsd_jax.teacher.replies import Answer
from rmsd_jax.teacher.request import Tokens

MAX_WAIT = 300.0  # seconds between two tries, whatever a server asks for
_BACKOFF_CEILING = 60.0  # seconds
_AGAIN = (408, 409, 425, 429)  # and every 5xx
_MAX_REASON = 300  # characters of a server's message
# Of httpx2: there was no connection.
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "InvalidURL")
_SHORTEST_KEY = 6  # characters; a shorter one is a placeholder for a server that needs no key
_MOST_UNANSWERED = 2  # requests that use up their retries before the first answer of a run


class Unanswered(UserError):
  """This request has no answer; others may. Attribute: kind."""

  def __init__(self, kind: str, reason: str):
    super().__init__(reason)
    self.kind = kind


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


class NotAgain(Exception):
  """A request was not sent again: `lost` forbade it, or the run ends."""


class _Again(Exception):
  """A fault that may pass.

  Attributes:
    wait: seconds that the server asks for.
    paid: what came instead of a whole answer, where that may be billed.
  """

  def __init__(self, kind: str, reason: str, wait: float = 0.0, paid: Answer | None = None):
    super().__init__(reason)
    self.kind = kind
    self.wait = wait
    self.paid = paid


class Endpoint:
  """An endpoint, open inside `async with`.

  Attributes:
    endings: what the server's finish_reasons mean.
    answered: whether an answer has come.
    repeated: kind of fault -> requests that were sent again after it.
  """

  def __init__(
    self,
    base_url: str,
    key: str,
    patience: Patience = Patience(),
    endings: Endings = KNOWN,
  ):
    """Describes an endpoint; nothing is sent.

    Args:
      base_url: its address, up to but without /chat/completions.
      key: the API key; never shown, also where a server repeats it.

    Raises:
      UserError: the address or the key cannot be one.
    """
    if not _is_address(base_url):
      raise UserError(
        f"--base-url {shown(base_url)}: give an address such as http://localhost:8000/v1"
      )
    if not key or not key.isascii() or not key.isprintable() or " " in key:
      raise UserError(
        "the API key is empty, or holds blanks or signs that no key has; set it again"
      )
    parts = urllib.parse.urlsplit(base_url)
    self._url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions").geturl()
    secrets = (key, parts.password or "", urllib.parse.unquote(parts.password or ""))
    self._secrets = [secret for secret in secrets if len(secret) >= _SHORTEST_KEY]
    self._shown = shown(base_url)
    self._key = key
    self._patience = patience
    self._pace = _Pace(patience.requests_per_minute, patience.tokens_per_minute)
    self._unanswered = 0  # requests that used up their retries
    self._sent: set[asyncio.Task | None] = set()  # those that wait for a reply
    self._ended = False
    self._warned = False  # of a charset
    self.endings = endings
    self.answered = False
    self.repeated: collections.Counter[str] = collections.Counter()

  async def __aenter__(self) -> Self:
    import httpx2  # not at the top: of all commands, one needs it

    self._faults = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL)
    self._client = httpx2.AsyncClient(
      # `_once` limits the whole answer; this would be a limit between two reads, which a slow
      # stream of single tokens never reaches.
      timeout=None,
      follow_redirects=False,  # it would take prompts and key to an address that nobody gave
      limits=httpx2.Limits(max_connections=None),
      headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
    )
    return self

  async def __aexit__(self, *exc: object) -> None:
    await self._client.aclose()

  def end(self) -> set[asyncio.Task | None]:
    """Sends nothing more. Returns the tasks whose requests are out; their answers may come yet."""
    self._ended = True
    return set(self._sent)

  async def ask(
    self,
    body: Mapping[str, Any],
    bound: Tokens,
    lost: Callable[[Answer], bool] = lambda answer: True,
  ) -> Answer:
    """Sends one request until it is answered.

    Args:
      body: the fields of the request, model and messages among them.
      bound: the most tokens it may count; for the rate limit, until the server has told.
      lost: told of what came instead of a whole answer and may be billed: what the server broke
        off, or LOST (a time limit, a broken connection, no whole completion). Says whether the
        request may be sent again.

    Returns:
      An answer whose finish_reason is of any kind but "broken", or of none.

    Raises:
      NotAgain: `lost` said no, or `end` was called.
      Unanswered: the server refuses this request, or the retries are used up.
      UserError: the server will refuse every request (the key, the model, no credit), or none has
        ever had an answer.
    """
    for attempt in range(self._patience.retries + 1):
      await self._pace.turn(sum(bound))
      try:
        answer = await self._once(body)
      except _Again as fault:
        # `fault` ends with this clause, and is needed behind the loop.
        last = fault
        if not fault.paid:
          self._pace.give_back(sum(bound))
        elif not lost(fault.paid):
          raise NotAgain(str(fault)) from None
      else:
        self.answered = True
        self._pace.give_back(sum(bound) - sum(answer.tokens or bound))
        return answer
      if self._ended:
        raise NotAgain(str(last))
      if attempt < self._patience.retries:
        if not self.answered and not self.repeated:
          print(f"no answer yet ({last}); asking again", file=sys.stderr)
        self.repeated[last.kind] += 1
        self._pace.pause(last.wait)  # for all: the server is the same
        backoff = min(self._patience.backoff * 2.0**attempt, _BACKOFF_CEILING)
        # At random, or the calls that failed together would all come back together.
        await asyncio.sleep(max(last.wait, backoff * random.uniform(0.5, 1)))
    raise self._given_up(last)

  def _given_up(self, last: _Again) -> UserError:
    """What it means that the retries of a request are used up."""
    tries = f"{self._patience.retries + 1} tries; the last: {last}"
    self._unanswered += 1
    if last.kind == "connection" and not last.paid and not self.answered:
      return UserError(f"{self._shown} cannot be reached ({last}); see --base-url")
    if not self.answered and self._unanswered >= _MOST_UNANSWERED:
      return UserError(
        f"{self._shown} has answered none of the first {self._unanswered} requests, each in {tries}"
      )
    return Unanswered(last.kind, f"no answer in {tries}")

  async def _once(self, body: Mapping[str, Any]) -> Answer:
    task = asyncio.current_task()
    self._sent.add(task)
    try:
      async with asyncio.timeout(self._patience.timeout):
        status, headers, text = await self._reply(json.dumps(body).encode("utf-8"))
      if not 200 <= status < 300:
        raise replies.read_error(status, text)
      answer = replies.read_answer(text)
    except TimeoutError:
      reason = f"nothing within {self._patience.timeout:g} s"
      raise _Again("timeout", reason, paid=_lost()) from None
    except self._faults as error:
      kind = type(error).__name__
      reason = self._clean(f"{kind}: {error}")
      raise _Again("connection", reason, paid=None if kind in _NOT_SENT else _lost()) from None
    except replies.ServerError as error:
      raise self._refused(error, headers) from None
    except replies.Malformed as error:
      paid = _lost(error.tokens)
      raise _Again("malformed", self._clean(str(error)), paid=paid) from None
    finally:
      self._sent.discard(task)
    if self.endings.kind(answer.finish_reason) == BROKEN:
      word = answer.finish_reason
      reason = f"it ended with finish_reason {word}; if that is whole here: --finish {word}=stop"
      raise _Again("broken off", reason, paid=answer)
    return answer

  async def _reply(self, body: bytes) -> tuple[int, Mapping[str, str], str]:
    """Status, headers and text of one reply; of a redirect, where it leads.

    Raises:
      replies.Malformed: it is too large.
    """
    async with self._client.stream("POST", self._url, content=body) as response:
      status = response.status_code
      raw = bytearray()
      async for part in response.aiter_bytes():
        raw += part
        if len(raw) > replies.LARGEST and status == 200:
          raise replies.Malformed(f"a reply of more than {replies.LARGEST >> 20} MiB")
        if len(raw) > replies.LARGEST:
          break  # an error is an error, however long
      if 300 <= status < 400:
        raw = f"it redirects to {shown(response.headers.get('location', '?'))}".encode()
      reply = bytes(raw)
      charset = response.charset_encoding
      text = replies.decoded(reply, charset)
      if not self._warned and "\ufffd" in text and not replies.is_legible(reply, charset):
        self._warned = True
        print(
          "a reply is neither in UTF-8 nor in a charset that the server declares; letters that are "
          "lost stand as U+FFFD in its text: look for them in the pool, and mend the server",
          file=sys.stderr,
        )
      return status, response.headers, text

  def _refused(self, error: replies.ServerError, headers: Mapping[str, str]) -> _Again | UserError:
    """What an error means for the request, or for the run."""
    status = error.status
    reason = self._clean(str(error))
    if status == 402:
      return UserError(f"{self._shown} has no credit left for this key ({reason}); add some")
    if status == 401 or (status == 403 and not self.answered):  # later it is about the prompt
      return UserError(
        f"{self._shown} refuses the API key, or its use of this model ({reason}); see "
        "--api-key-env, --model"
      )
    nowhere = status < 400 or status in (404, 405)
    if nowhere and not self.answered:
      return UserError(
        f"{self._shown} has no such model or address ({reason}); see --model, --base-url"
      )
    # A server that has answered before has both: the model comes back, or a router finds it again.
    if nowhere or status in _AGAIN or status >= 500:
      return _Again(str(status), reason, _retry_after(headers))
    return Unanswered(str(status), reason)

  def _clean(self, text: str) -> str:
    """A server's words on one line, cut, without the key, passwords and control signs."""
    for secret in self._secrets:
      text = text.replace(secret, "***")
    return shown(text)


def shown(text: str) -> str:
  """A text as it may be printed: one line, cut, no password of an address, no control signs."""
  # Cut before the patterns run over it: a server's page may be megabytes.
  text = text[: 20 * _MAX_REASON]
  text = re.sub(r"(://)\S*@", r"\1***@", text)
  text = re.sub(r"([?&][^=&\s]+=)[^&\s\"'<>)]+", r"\1***", text)
  line = " ".join(text.split())
  return "".join(sign if sign.isprintable() else "?" for sign in line)[:_MAX_REASON]


def _lost(tokens: Tokens | None = None) -> Answer:
  return Answer("", LOST, tokens)


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


def _is_address(url: str) -> bool:
  try:
    parts = urllib.parse.urlsplit(url)
    named = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    return parts.scheme in ("http", "https") and named and url.isprintable() and " " not in url
  except ValueError:  # of the port, of brackets, of a name
    return False


def _retry_after(headers: Mapping[str, str]) -> float:
  """Seconds that a server asks to wait, as a number or a date; 0 if it does not."""
  value = headers.get("retry-after", "")
  try:
    if "retry-after-ms" in headers:
      seconds = float(headers["retry-after-ms"]) / 1000
    else:
      seconds = float(value)
  except ValueError:
    try:
      seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
      return 0.0
  return min(max(0.0, seconds), MAX_WAIT)

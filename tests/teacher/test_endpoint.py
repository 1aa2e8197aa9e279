"""How long to wait, and what may be printed; test_collect.py and test_modes.py have the calls."""

import asyncio
import socket

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.teacher import endpoint
from rmsd_jax.teacher.request import Tokens


@pytest.mark.parametrize(
  ("text", "line"),
  [
    ("http://me:pa@ss@host/v1?key=abc&x=1#y", "http://***@host/v1?key=***&x=***"),
    ("see https://host/a.mp4 and\n\ta\u202eb\x1b[0m", "see https://host/a.mp4 and a?b?[0m"),
    ("mail me@host", "mail me@host"),
    ("x" * 9999, "x" * 300),
  ],
)
def test_what_is_shown_is_one_line_without_passwords_and_control_signs(text, line):
  assert endpoint.shown(text) == line


@pytest.mark.parametrize("url", ["ftp://a/v1", "http://", "http://a b/v1", "http://a..b/v1",
                                 "http://a:0/v1", "http://[::1/v1", "http://a\x1b/v1"])  # fmt: skip
def test_what_is_no_address_is_refused(url):
  with pytest.raises(UserError, match="give an address such as") as refused:
    endpoint.Endpoint(url, "key")
  assert str(refused.value).isprintable()


def test_the_address_keeps_its_query():
  assert endpoint.Endpoint("http://a/v1/?api-version=2", "key")._url == (
    "http://a/v1/chat/completions?api-version=2"
  )


@pytest.mark.parametrize(
  ("value", "seconds"),
  [("2.5", 2.5), ("-1", 0), ("soon", 0), ("nan", 0), ("", 0), ("inf", endpoint.MAX_WAIT)]
  + [("Wed, 21 Oct 2099 07:28:00 GMT", endpoint.MAX_WAIT), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_is_a_number_or_a_date(value, seconds):
  assert endpoint._retry_after({"retry-after": value}) == seconds


def test_milliseconds_count_more_than_seconds():
  assert endpoint._retry_after({"retry-after": "9", "retry-after-ms": "300"}) == 0.3


def test_a_server_that_is_not_there_is_named(capsys):
  with socket.socket() as nobody:  # a port that nobody listens to
    nobody.bind(("localhost", 0))
    url = f"http://localhost:{nobody.getsockname()[1]}/v1"
    there = endpoint.Endpoint(url, "key", endpoint.Patience(retries=1, backoff=0.01))

    async def ask():
      async with there:
        await there.ask({"model": "m", "messages": []}, Tokens(1, 1))

    with pytest.raises(UserError, match=f"{url} cannot be reached .*; see --base-url"):
      asyncio.run(ask())
  assert "no answer yet" in capsys.readouterr().err

"""What a server's answer says; tests/teacher/test_collect.py has the calls themselves."""

import asyncio
import json
import socket

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import records
from rmsd_jax.teacher import endpoint
from rmsd_jax.teacher.request import Tokens


@pytest.mark.parametrize(
  ("message", "text"),
  [
    ({"content": "a"}, "a"),
    ({"content": "<answer>a</answer>", "reasoning_content": "t"},
     "<think>t</think><answer>a</answer>"),
    ({"content": "a", "reasoning": "t"}, "<think>t</think>a"),
    ({"content": "<think>u</think>a", "reasoning_content": "t"}, "<think>u</think>a"),
    ({"content": "u</think>a", "reasoning_content": "t"}, "<think>u</think>a"),
    ({"content": "u</think>\n\n<think>v</think>a"}, "<think>v</think>a"),
    ({"content": "<think>u</think>a</think>"}, "<think>u</think>a</think>"),
    ({"content": "a", "reasoning_content": ""}, "a"),
    ({"content": None, "refusal": "no"}, "no"),
    ({"content": "half \ud83d of it"}, "half ? of it"),
  ],
)  # fmt: skip
def test_thoughts_that_come_apart_are_put_in_tags(message, text):
  whole = {"choices": [{"message": message, "finish_reason": "stop"}]}
  assert endpoint.read_answer(json.dumps(whole)) == endpoint.Answer(text, "stop", None)


def test_usage_that_leaves_thoughts_out_is_completed_from_the_total():
  whole = {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}
  read = lambda **usage: endpoint.read_answer(json.dumps(whole | {"usage": usage})).tokens
  assert read(prompt_tokens=10, completion_tokens=5) == Tokens(10, 5)
  assert read(prompt_tokens=10, completion_tokens=5, total_tokens=15) == Tokens(10, 5)
  assert read(prompt_tokens=10, completion_tokens=5, total_tokens=95) == Tokens(10, 85)
  assert read(prompt_tokens=None) is None and read() is None


def test_an_answer_whose_end_is_not_told_is_not_asked_again():
  whole = {"choices": [{"message": {"content": "a"}, "finish_reason": None}]}
  assert endpoint.read_answer(json.dumps(whole)) == endpoint.Answer("a", "unknown", None)
  assert endpoint.UNKNOWN_END not in records.FINISH_REASONS


A = {"content": "a"}
CHOICES = [
  {"message": A},
  {"message": A, "finish_reason": "error"},
  {"message": None, "finish_reason": "stop"},
  {"message": {"content": ["a"]}, "finish_reason": "stop"},
]
BROKEN = ["", "<html>", "[]", "{}", '{"choices": []}', '{"choices": null}', "[" * 10_000]


@pytest.mark.parametrize("text", BROKEN + [json.dumps({"choices": [c]}) for c in CHOICES])
def test_what_is_no_whole_completion_is_refused(text):
  with pytest.raises(ValueError, match="not a chat completion"):
    endpoint.read_answer(text)


@pytest.mark.parametrize(
  ("value", "seconds"),
  [("2.5", 2.5), ("-1", 0), ("soon", 0), ("nan", 0), ("", 0), ("inf", endpoint.MAX_WAIT)]
  + [("Wed, 21 Oct 2099 07:28:00 GMT", endpoint.MAX_WAIT), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_is_a_number_or_a_date(value, seconds):
  assert endpoint._retry_after({"retry-after": value}) == seconds


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

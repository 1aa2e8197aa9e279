"""What a server's reply says: answers, thoughts, endings, errors; test_modes.py has whole runs."""

import json

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import response
from rmsd_jax.teacher import endings, replies
from rmsd_jax.teacher.endings import Endings
from rmsd_jax.teacher.replies import Answer, Malformed, ServerError
from rmsd_jax.teacher.request import Tokens


def read(message, finish_reason="stop", **fields):
  choice = {"message": message, "finish_reason": finish_reason}
  return replies.read_answer(json.dumps({"choices": [choice], **fields}))


T = "<think>x</think>\n\n<answer>B</answer>"
QUOTING = "I must answer as <think>..</think><answer>..</answer>. It is B."
QUOTED = "I must answer as < think>..< /think>< answer>..< /answer>. It is B."
TEXTS = [
  ({"content": "a"}, "a"),
  ({"content": "a", "reasoning": "t"}, "<think>t</think>a"),
  ({"content": "a", "reasoning_content": ""}, "a"),
  ({"content": None, "refusal": "no"}, "no"),
  ({"content": None}, ""),
  ({"content": "half \ud83d of it"}, "half ? of it"),
  # a model's own thoughts beside those that were asked for
  ({"content": "<think>u</think>a", "reasoning_content": "t"}, "<think>u</think>a"),
  ({"content": "u</think>\n\n<think>v</think>a"}, "<think>v</think>a"),
  ({"content": "u</think>\n\n<think>v</think>a", "reasoning": "t"}, "<think>v</think>a"),
  ({"content": "<think>\n\n</think>\n\na", "reasoning": "t"}, "<think>t</think>\n\na"),
  # blocks that the template or the model puts before the asked-for one
  ({"content": f"<think>\n\n</think>\n\n{T}"}, T),
  ({"content": f"<think>native</think>\n{T}"}, T),
  ({"content": f"\n<think></think><think>native</think>{T}"}, T),
  ({"content": f"<think>\n\n</think>\n\n{T}", "reasoning": "t"}, T),
  ({"content": "<think>as <think>..</think>\n<think>.</think>a"},
   "<think>as <think>..</think>\n<think>.</think>a"),
  ({"content": "<think>u</think>\n<think>a"}, "<think>u</think>\n<think>a"),
  # the template began the thoughts
  ({"content": "Okay so\n</think>\n\n<answer>B</answer>"},
   "<think>Okay so\n</think>\n\n<answer>B</answer>"),
  ({"content": "<think>u</think>a</think>"}, "<think>u</think>a</think>"),
  # the server cut the thoughts in two, or left them where they were
  ({"content": "</think>\n\n<answer>B</answer>", "reasoning_content": "x"}, T),
  ({"content": "and u</think>a", "reasoning_content": "t "}, "<think>t and u</think>a"),
  ({"content": "u</think>a", "reasoning_content": "t"}, "<think>t\nu</think>a"),
  ({"content": "t</think>a", "reasoning_content": "t"}, "<think>t</think>a"),
  ({"content": " <answer>..</answer>.</think><answer>B</answer>", "reasoning": "It is"},
   "<think>It is < answer>..< /answer>.</think><answer>B</answer>"),
  ({"content": "<answer>what </think> means</answer>", "reasoning": "x"},
   "<think>x</think><answer>what </think> means</answer>"),
  # all of it was taken for thoughts
  ({"content": None, "reasoning_content": T}, T),
  ({"content": "", "reasoning": "x</think>\n\n<answer>B</answer>"}, T),
  ({"content": "\n", "reasoning_content": "x"}, "<think>x</think>\n"),
  # thoughts that quote the tags, or have them around themselves
  ({"content": "<answer>B</answer>", "reasoning_content": QUOTING},
   f"<think>{QUOTED}</think><answer>B</answer>"),
  ({"content": "<answer>B</answer>", "reasoning": "<think>\nx\n</think>\n"},
   "<think>\nx\n</think><answer>B</answer>"),
  # parts
  ({"content": [{"type": "text", "text": T}]}, T),
  ({"content": [{"type": "text", "text": "<answer>"}, "B", {"text": "</answer>"}],
    "reasoning_details": [{"type": "reasoning.text", "text": "t"},
                          {"type": "reasoning.encrypted", "data": "00"}]},
   "<think>t</think><answer>B</answer>"),
  ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]},
                {"type": "text", "text": "a"}]}, "<think>t</think>a"),
  # special tokens left in the text
  ({"content": T + "<|im_end|>\n"}, T),
  ({"content": f"{T}</s>"}, T),
  ({"content": f"{T}<|im_end|><|endoftext|>"}, T),
  ({"content": f"{T}<|im_end|>\n</s> <|im_end|>\n"}, T),
]  # fmt: skip


@pytest.mark.parametrize(("message", "text"), TEXTS)
def test_nothing_of_an_answer_is_lost(message, text):
  assert read(message) == Answer(text, "stop", None)


@pytest.mark.parametrize("content", ["<answer>B</answer>", "\n</think>\n\n<answer>B</answer>"])
@pytest.mark.parametrize("thoughts", ["x", QUOTING, "</think>", f"<think>{QUOTING}</think>", T])
def test_thoughts_that_come_apart_are_one_block_whatever_they_say(thoughts, content):
  parsed = response.parse(read({"content": content, "reasoning_content": thoughts}).text)
  assert parsed.outer and parsed.answer == "B"


def test_a_cut_off_text_keeps_its_last_sign():
  assert read({"content": T + "<|im_end|>"}, "length").text == T + "<|im_end|>"


A = {"content": "a"}
BROKEN = ["", "<html>", "[]", "{}", '{"choices": []}', '{"choices": null}', "[" * 10_000]
BROKEN += ['{"usage": ' + "9" * 5000 + "}", '{"choices": 3}', '{"choices": [3]}', "data: {", "null"]
BROKEN += [
  json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
  for message in (None, 3, {"content": 3}, {"content": [3]}, {"content": [{"type": "image"}]},
                  {"content": "a", "reasoning": 3})
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_whole_completion_is_refused(text):
  with pytest.raises(Malformed, match="not a chat completion"):
    replies.read_answer(text)


def test_a_malformed_reply_tells_what_it_cost():
  with pytest.raises(Malformed) as fault:
    replies.read_answer('{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":0}}')
  assert fault.value.tokens == Tokens(1, 0)


@pytest.mark.parametrize(
  ("usage", "tokens"),
  [
    ({"prompt_tokens": 10, "completion_tokens": 5}, Tokens(10, 5)),
    ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, Tokens(10, 5)),
    ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 95}, Tokens(10, 85)),
    ({"prompt_tokens": "10", "completion_tokens": 5.0, "total_tokens": None}, Tokens(10, 5)),
    ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": float("inf")}, Tokens(10, 5)),
    ({"prompt_tokens": None}, None),
    ({"prompt_tokens": float("inf"), "completion_tokens": 5}, None),
    ({"prompt_tokens": 10, "completion_tokens": float("nan")}, None),
    ({"prompt_tokens": -10, "completion_tokens": 5}, None),
    ({"prompt_tokens": 10, "completion_tokens": 10**400}, None),
    ({"prompt_tokens": [10], "completion_tokens": 5}, None),
    ([], None),
    (3, None),
  ],
)
def test_counts_that_cannot_be_are_not_taken(usage, tokens):
  assert read(A, usage=usage).tokens == tokens


@pytest.mark.parametrize(
  ("raw", "charset", "text"),
  [
    ("\u00e9".encode(), None, "\u00e9"),
    ("\u00e9".encode(), "latin-1", "\u00e9"),
    ("\u00e9".encode(), "no-such-charset", "\u00e9"),
    ("\u00e9".encode("utf-8-sig"), "utf-16", "\u00e9"),
    ("\u00e9 a".encode("utf-16"), None, "\u00e9 a"),
    ("\u00e9".encode("latin-1"), "latin-1", "\u00e9"),
    ("a\u00e9b".encode("latin-1"), "utf-8", "a\ufffdb"),
    ("a\u00e9b".encode("latin-1"), "zlib", "a\ufffdb"),
    (b"", "", ""),
  ],
)
def test_a_reply_is_decoded_whatever_its_charset_says(raw, charset, text):
  assert replies.decoded(raw, charset) == text


def test_a_stream_that_nobody_asked_for_is_put_together():
  pieces = [
    {"choices": [{"delta": {"role": "assistant", "reasoning_content": "x"}}]},
    {"choices": [{"delta": {"content": "<answer>"}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "B</answer>"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},
  ]
  spell = lambda pieces: "".join(f"data: {json.dumps(p)}\n\n" for p in pieces) + "data: [DONE]\n"
  whole = Answer("<think>x</think><answer>B</answer>", "stop", Tokens(7, 3))
  assert replies.read_answer(spell(pieces)) == whole
  assert replies.read_answer(spell(pieces[:2])).finish_reason == endings.NOT_TOLD
  with pytest.raises(ServerError) as error:
    replies.read_answer(spell([{"error": {"message": "busy", "code": 503}}]))
  assert error.value.status == 503


def _event(content, **choice):
  piece = {"choices": [{"delta": {"content": content}, **choice}]}
  return "data: " + json.dumps(piece, ensure_ascii=False)


END = {"finish_reason": "stop"}


@pytest.mark.parametrize(
  ("lines", "text"),
  [
    ([": keep-alive", "", _event("a"), "", _event("b", **END)], "ab"),
    (["event: message", "id: 1", _event("a", **END)], "a"),
    (["retry: 3", "data: [DONE]", _event("a", **END)], "a"),
    ([_event("a\u2028b\u0085c\x0bd", **END)], "a\u2028b\u0085c\x0bd"),
    ([_event("a", index=0), _event("X", index=1), _event("b", index=0, **END)], "ab"),
  ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_events_are_read_as_the_standard_says(lines, text, line_end):
  assert replies.read_answer(line_end.join(lines) + line_end) == Answer(text, "stop", None)


def test_an_error_of_a_choice_is_that_error():
  choice = {"message": A, "finish_reason": "stop", "error": {"code": 502, "message": "no upstream"}}
  with pytest.raises(ServerError, match="502: no upstream"):
    replies.read_answer(json.dumps({"choices": [choice]}))
  with pytest.raises(ServerError, match="502: no upstream"):
    replies.read_answer("data: " + json.dumps({"choices": [choice]}))
  assert read(A) == replies.read_answer(json.dumps({"choices": [choice | {"error": None}]}))


def test_millions_of_tags_take_no_hours():
  many = "<think></think>" * 200_000 + T + "</s>" * 200_000
  assert read({"content": many}).text == T


@pytest.mark.parametrize("charset", [None, "utf-8", "no-such-charset"])
def test_no_charset_is_guessed(charset):
  for raw in ("caf\u00e9".encode("latin-1"), "\u4f60\u597d".encode("gbk")):
    assert not replies.is_legible(raw, charset)
    assert "\ufffd" in replies.decoded(raw, charset)
  assert replies.is_legible("caf\u00e9".encode("latin-1"), "latin-1")


ERRORS = [
  ({"error": {"message": "m", "code": 429}, "choices": None}, 429),
  ({"error": {"message": "m", "code": "402"}}, 402),
  ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, 400),
  ({"error": {"message": "m", "type": "invalid_request_error"}}, 400),
  ({"error": {"message": "m", "code": "invalid_api_key"}}, 401),
  ({"error": {"message": "m", "type": "insufficient_quota", "code": 429}}, 402),
  ({"code": "InvalidApiKey", "message": "m", "request_id": "1"}, 401),
  ({"code": "Arrearage", "message": "m"}, 402),
  ({"code": "DataInspectionFailed", "message": "m"}, 400),
  ({"error": {"message": "m", "status": "RESOURCE_EXHAUSTED"}}, 429),
  ({"error": [{"message": "m", "code": 404}]}, 404),
  ({"error": "m"}, 500),
  ({"detail": "m"}, 500),
  ({"error": {"message": {"en": "m"}, "code": 20015}}, 500),
  ({"error": {"message": "m", "type": "overloaded_error"}, "choices": []}, 500),
]


@pytest.mark.parametrize(("body", "status"), ERRORS)
def test_an_error_in_the_body_is_that_error(body, status):
  with pytest.raises(ServerError, match=f"^{status}: .*m") as error:
    replies.read_answer(json.dumps(body))
  assert error.value.status == status


def test_an_error_field_beside_an_answer_takes_nothing_away():
  assert read(A, error=None) == read(A, error={"message": "deprecated"}) == read(A)


@pytest.mark.parametrize(
  ("status", "text", "found"),
  [
    (429, '{"error": {"message": "m", "code": "insufficient_quota"}}', (402, "402: m")),
    (403, '{"error": {"message": "m", "code": 400}}', (403, "403: m")),
    (502, "<html>bad</html>", (502, "502: <html>bad</html>")),
    (500, "", (500, "500: no reason given")),
    (400, '{"error": {}}', (400, "400: {'error': {}}")),
    (400, "[1]", (400, "400: [1]")),
  ],
)
def test_a_status_counts_more_than_its_body(status, text, found):
  error = replies.read_error(status, text)
  assert (error.status, str(error)) == found


WORDS = {
  "stop": "stop eos eos_token end_turn endTurn stop_sequence STOP STOP_SEQUENCE COMPLETE FINISHED "
  "FINISH_REASON_STOP complete tool_calls",
  "length": "length max_tokens MAX_TOKENS maxTokens max-tokens model_length LENGTH token_limit "
  "FINISH_REASON_MAX_TOKENS model_context_window_exceeded",
  "refused": "content_filter SAFETY RECITATION refusal content_filter:SAFETY guardrail_intervened "
  "sensitive ERROR_TOXIC PROHIBITED_CONTENT",
  "broken": "abort error insufficient_system_resource null unknown cancelled network_error lost "
  "time_limit pause_turn",
}


@pytest.mark.parametrize("kind", WORDS)
def test_words_of_the_services_are_known(kind):
  assert [endings.KNOWN.kind(word) for word in WORDS[kind].split()] == [kind] * len(
    WORDS[kind].split()
  )


def test_a_user_explains_words_and_may_overrule_the_table():
  given = endings.parse_given(["Weird=stop", "null=stop", "a=b=length", "STOP=broken"])
  kinds = [given.kind(word) for word in ("Weird", "weird", "null", "a=b", "STOP", "eos", "odd")]
  assert kinds == ["stop", "stop", "stop", "length", "broken", "stop", None]
  for flag in ("weird", "weird=done", "=stop", ""):
    with pytest.raises(UserError, match="give WORD=KIND, with one of stop, length, refused, brok"):
      endings.parse_given([flag])
  assert Endings() == endings.KNOWN


@pytest.mark.parametrize(
  ("value", "word"),
  [
    (None, "null"), ("", "null"), (" ", "null"), ({"type": "stop"}, "stop"), ({}, "null"), (1, "1"),
    ("a b\x1b[31m", "a_b?[31m"), ("x" * 999, "x" * 60),
  ],
)  # fmt: skip
def test_a_finish_reason_is_a_word_that_may_be_printed(value, word):
  assert endings.spelled(value) == word == read(A, value).finish_reason


def test_a_missing_finish_reason_is_not_told_and_a_withheld_message_is_no_fault():
  answer = replies.read_answer(json.dumps({"choices": [{"message": A}]}))
  assert answer == Answer("a", "null", None)
  withheld = {"choices": [{"finish_reason": "content_filter: SAFETY"}]}
  assert replies.read_answer(json.dumps(withheld)) == Answer("", "content_filter:_SAFETY", None)

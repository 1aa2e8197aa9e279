"""Endpoints that misbehave in 40 ways: no paid answer is lost, none asked twice, no traceback."""

import collections
import json
import re
import time

import pytest
from chat_server import Raw, Teacher

from rmsd_jax import pool as command
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import records
from rmsd_jax.tasks import registry, response
from rmsd_jax.teacher import collector, endpoint, journal, replies

KEY = "sk-secret-0123456789"
K, PROMPTS = 3, 4


def prompt(id_, **changes):
  asked = {"task": "multiple_choice", "question": f"Which card? ({id_})"}
  return asked | {"id": str(id_), "options": ["A. red", "B. blue"], "answer": "B"} | changes


def whole(mark, finish_reason="stop", status=200, headers=(), **message):
  """A completion whose thoughts are `mark`."""
  text = f"<think>{mark}</think>\n\n<answer>B</answer>"
  choice = {"message": {"content": text} | message, "finish_reason": finish_reason}
  usage = {"prompt_tokens": 100, "completion_tokens": 50}
  return Raw(json.dumps({"choices": [choice], "usage": usage}).encode(), status, headers)


def error(status=200, headers=(), **fields):
  return Raw(json.dumps({"error": {"message": f"no, Bearer {KEY}", **fields}}).encode(), status,
             headers)  # fmt: skip


def apart(mark, content, thoughts, name="reasoning_content"):
  return whole(mark, content=content, **{name: thoughts})


def replaced(raw, old, new):
  assert old in raw.body
  return raw._replace(body=raw.body.replace(old, new))


HUGE = b'{"choices": [{"message": {"content": "' + b"x" * (50 << 20) + b'"}}]}'
QUOTING = "as <think>..</think><answer>..</answer>. "
TABLE = [("Content-Type", "application/json; charset=utf-42")]
GOOD = {  # all answers are spelled so
  "eos": lambda m: whole(m, "eos"),
  "end_turn": lambda m: whole(m, "end_turn"),
  "STOP": lambda m: whole(m, "STOP"),
  "type of a stop": lambda m: whole(m, {"type": "stop", "matched": 151645}),
  "all in the thoughts": lambda m: apart(m, None, f"<think>{m}</think>\n<answer>B</answer>"),
  "thoughts apart": lambda m: apart(m, "<answer>B</answer>", m, "reasoning"),
  "quoting thoughts": lambda m: apart(m, "<answer>B</answer>", QUOTING + m),
  "closing content": lambda m: apart(m, "\n</think>\n<answer>B</answer>", m),
  "opened by the prompt": lambda m: whole(m, content=f"{m}\n</think>\n<answer>B</answer>"),
  "parts": lambda m: whole(m, content=[{"type": "text", "text": f"<think>{m}</think>"},
                                       {"type": "text", "text": "<answer>B</answer>"}]),
  "left special token": lambda m: whole(m, content=f"<think>{m}</think><answer>B</answer></s>"),
  "no such charset": lambda m: whole(m, headers=TABLE),
  "UTF-16": lambda m: Raw(whole(m).body.decode().encode("utf-16"), 200, TABLE),
  "broken UTF-8": lambda m: replaced(whole(m), b"</think>", b" \xff\xfe</think>"),
  "undeclared Latin-1": lambda m: replaced(whole(m), b"</think>", b" caf\xe9</think>"),
  "comment before a stream": lambda m: Raw(
    b": hi\n\nevent: a\ndata: " + replaced(whole(m), b'"message"', b'"delta"').body + b"\n\n"),
  "native thoughts first": lambda m: whole(
    m, content=f"<think>\n\n</think>\n\n<think>{m}</think><answer>B</answer>"),
  "byte order mark": lambda m: Raw(b"\xef\xbb\xbf" + whole(m).body),
  "infinite usage": lambda m: replaced(whole(m), b": 100", b": Infinity"),
  "negative usage": lambda m: replaced(whole(m), b": 50", b": -50"),
  "usage of 400 digits": lambda m: replaced(whole(m), b": 50", b": " + b"9" * 400),
  "no usage": lambda m: replaced(whole(m), b'"usage"', b'"_"'),
  "created": lambda m: whole(m, status=201),
  "stream": lambda m: Raw(b"data: " + replaced(whole(m), b'"message"', b'"delta"').body + b"\n\n"),
  "a warning beside it": lambda m: replaced(whole(m), b'{"choices"', b'{"error": "old", "choices"'),
}  # fmt: skip
PASSING = {  # in place of the second answer to a prompt: kind of the fault, whether it may be paid
  "abort": (lambda m: whole(m, "abort"), "broken off", True),
  "null": (lambda m: whole(m, None), "broken off", True),
  "insufficient": (lambda m: whole(m, "insufficient_system_resource"), "broken off", True),
  "error of a provider": (lambda m: whole(m, "error", content="half"), "broken off", True),
  "no choice": (lambda m: Raw(b'{"choices": []}'), "malformed", True),
  "50 MB": (lambda m: Raw(HUGE), "malformed", True),
  "50 MB of an error": (lambda m: Raw(HUGE, 500), "500", False),
  "login page": (lambda m: Raw(b"<html>login</html>"), "malformed", True),
  "429 in a body": (lambda m: error(code=429), "429", False),
  "overloaded in a body": (lambda m: error(type="overloaded_error"), "500", False),
  "502 of a choice": (
    lambda m: replaced(whole("x"), b'"message"', b'"error": {"code": 502}, "message"'),
    "502",
    False,
  ),
  "late 404": (lambda m: error(404), "404", False),
  "late redirect": (lambda m: Raw(b"", 302, [("Location", "http://elsewhere/")]), "302", False),
  "wait in ms": (lambda m: error(429, [("retry-after-ms", "20")]), "429", False),
  "html 502": (lambda m: Raw(b"<html>Bad gateway</html>", 502), "502", False),
}
# from the second answer to the third prompt on: what ends the run, and the flags that mend it
ENDING = {
  "unknown word": (lambda m: whole(m, "wei\x1b[31mrd"), r"'wei\?\[31mrd'.*--finish wei\?\[31mrd=",
                   ["--finish", "wei?[31mrd=stop"]),
  "402": (lambda m: error(402), "no credit left for this key .402: no, Bearer [*]{3}.", []),
  "402 in a body": (lambda m: error(code=402), "no credit left", []),
  "quota in a body": (lambda m: error(type="insufficient_quota"), "no credit left", []),
  "401 in a body": (lambda m: error(code="invalid_api_key"), "refuses the API key", []),
  "late 401": (lambda m: error(401), "refuses the API key", []),
}  # fmt: skip


@pytest.fixture
def start(tmp_path, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  monkeypatch.setattr(endpoint.Patience, "__init__", _fast(endpoint.Patience.__init__))
  lines = [json.dumps(prompt(i)) for i in range(PROMPTS)]
  (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
  teachers = []

  def started(behave):
    teachers.append(_Counting(behave))
    return teachers[-1]

  yield started
  for teacher in teachers:
    teacher.shutdown()
    teacher.server_close()


def _fast(init):
  def quick(self, *args, **kwargs):
    init(self, *args, **{**kwargs, "backoff": 0.01})

  return quick


class _Counting(Teacher):
  """`answer(mark, id, n)`: what the n-th request of a prompt gets; marks are never used twice."""

  def __init__(self, answer):
    self.counts, self.marks = collections.Counter(), []
    self.answer = answer
    super().__init__(self._behave)

  def _behave(self, question, _):
    id_ = re.search(r"\((\d+)\)", question).group(1)
    self.counts[id_] += 1
    mark = f"mark {id_} {self.counts[id_]}"
    reply = self.answer(mark, id_, self.counts[id_])
    if mark.encode() in reply.body.replace(b"\0", b""):  # of UTF-16
      self.marks.append(mark)
    return reply


def collect(folder, teacher, *flags, url=None):
  given = ["--prompts", folder / "prompts.jsonl", "--out", folder / "pool.jsonl", f"--samples={K}"]
  line = ["collect", *given, "--model=m", f"--base-url={url or teacher.url}", *flags]
  command.main(list(map(str, line)))


def written(folder):
  """The entries of the journal and, by id, the responses of the pool."""
  lines = (folder / "pool.jsonl.journal.jsonl").read_text().splitlines()[1:]
  entries = [journal.Entry(**json.loads(line)) for line in lines]
  path = folder / "pool.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  pool = [records.parse(line, n, registry.TASKS) for n, line in enumerate(lines, 1)]
  return entries, {record.id: record.responses for record in pool}


def check_nothing_is_lost(folder, teacher, spare=0):
  """Every answer that was sent is in the journal once, and every prompt has its K."""
  entries, pool = written(folder)
  text = [entry.text for entry in entries]
  assert all(sum(f"{mark}<" in t or f"{mark}\n" in t or f"{mark} " in t for t in text) == 1
             for mark in teacher.marks)  # fmt: skip
  assert {id_: len(given) for id_, given in pool.items()} == dict.fromkeys("0123", K)
  assert all(response.parse(r.text).answer == "B" for given in pool.values() for r in given)
  assert len(teacher.requests) == PROMPTS * K + spare
  assert len({r.text for given in pool.values() for r in given}) == PROMPTS * K


@pytest.mark.parametrize("mode", GOOD)
def test_an_answer_counts_however_it_is_spelled(tmp_path, start, capsys, mode):
  teacher = start(lambda mark, id_, n: GOOD[mode](mark))
  collect(tmp_path, teacher)
  check_nothing_is_lost(tmp_path, teacher)
  assert len(written(tmp_path)[0]) == PROMPTS * K
  # Lost letters are told of, and once.
  told = capsys.readouterr().err.count("neither in UTF-8 nor in a charset")
  assert told == (mode in ("broken UTF-8", "undeclared Latin-1"))


@pytest.mark.parametrize("mode", PASSING)
def test_what_may_pass_is_asked_again_once(tmp_path, start, capsys, mode):
  fault, kind, paid = PASSING[mode]
  teacher = start(lambda mark, id_, n: fault(mark) if (id_, n) == ("1", 2) else whole(mark))
  collect(tmp_path, teacher)
  check_nothing_is_lost(tmp_path, teacher, spare=1)
  out = capsys.readouterr().out
  assert f"requests sent again: {kind} 1" in out and KEY not in out
  assert ("not whole, counted with what they may cost: 1" in out) == paid
  assert len(written(tmp_path)[0]) == PROMPTS * K + paid


@pytest.mark.parametrize("mode", ENDING)
def test_what_ends_a_run_loses_no_answer_under_way(tmp_path, start, capsys, mode):
  fault, words, flags = ENDING[mode]
  broken = True

  def answer(mark, id_, n):
    if broken and (id_ == "3" or (id_, n) == ("2", 2)):
      return fault(mark)
    time.sleep(0.1)  # so that the fault comes before the answers to requests that were sent with it
    return whole(mark)

  teacher = start(answer)
  with pytest.raises(UserError, match=words) as ended:
    collect(tmp_path, teacher)
  assert KEY not in str(ended.value) and "\x1b" not in str(ended.value)
  assert "answers under way are waited for" in capsys.readouterr().err
  sent = len(teacher.requests)
  assert sent <= 2 * K + 8 and not (tmp_path / "pool.jsonl").exists()
  entries, _ = written(tmp_path)
  assert sorted(re.search("mark [0-9 ]+", e.text).group() for e in entries) == sorted(teacher.marks)
  if flags:
    with pytest.raises(UserError, match=words):
      collect(tmp_path, teacher)
    assert len(teacher.requests) == sent  # not before the word is explained
  broken = False
  collect(tmp_path, teacher, *flags)
  check_nothing_is_lost(tmp_path, teacher, spare=sent - len(entries))


def test_the_first_request_goes_alone_until_it_is_answered(tmp_path, start):
  teacher = start(lambda mark, id_, n: whole(mark, "odd"))
  with pytest.raises(UserError, match="--finish odd=KIND"):
    collect(tmp_path, teacher)
  assert len(teacher.requests) == 1
  teacher.answer = lambda mark, id_, n: whole(mark, "tertium")
  with pytest.raises(UserError, match="--finish tertium=KIND"):
    collect(tmp_path, teacher, "--finish", "odd=stop")
  assert len(teacher.requests) == 2
  collect(tmp_path, teacher, "--finish", "odd=stop", "tertium=length")
  assert len(teacher.requests) == PROMPTS * K
  reasons = [r.finish_reason for r in written(tmp_path)[1]["0"]]
  assert reasons == ["stop", "length", "length"]


def test_a_server_that_never_tells_the_end_costs_two_prompts_and_the_flag_takes_them(
  tmp_path, start
):
  teacher = start(lambda mark, id_, n: whole(mark, None))
  flags = ["--retries=2", "--max-bad-share=1"]
  with pytest.raises(UserError, match="none of the first 2 requests, each in 3 tries.*null=stop"):
    collect(tmp_path, teacher, *flags)
  assert len(teacher.requests) == 6
  collect(tmp_path, teacher, "--finish", "null=stop")
  check_nothing_is_lost(tmp_path, teacher)


@pytest.mark.parametrize(
  ("reply", "words"),
  [
    (Raw(b"", 301, [("Location", "http://127.0.0.1:1/?key=abcdef")]),
     r"no such model or address .301: it redirects to http://127.0.0.1:1/\?key=\*\*\*."),
    (Raw(b"", 307, [("Location", "http://u:pass@127.0.0.1:1/")]), "redirects to http://...@127"),
    (error(404, message="nope\x1b]0;title\x07 \x1b[2J"), r"404: nope\?\]0;title\? \?\[2J"),
    (error(403), "refuses the API key, or its use of this model"),
    (error(405), "no such model or address"),
  ],
)  # fmt: skip
def test_an_early_refusal_is_one_clean_line(tmp_path, start, reply, words):
  teacher = start(lambda mark, id_, n: reply)
  with pytest.raises(UserError, match=words) as ended:
    collect(tmp_path, teacher)
  line = str(ended.value)
  assert line.isprintable() and KEY not in line and "pass@" not in line and "abcdef" not in line
  assert len(teacher.requests) == 1


def test_a_password_in_the_address_is_never_shown(tmp_path, start, monkeypatch, capsys):
  teacher = start(lambda mark, id_, n: error(400, message="hunter22 of http://me:hunter22@x/v1"))
  secret = teacher.url.replace("http://", "http://me:hunter22@")
  with pytest.raises(UserError, match="400: [*]{3} of http://[*]{3}@x/v1") as ended:
    collect(tmp_path, teacher, url=secret)
  told = [str(ended.value)]
  monkeypatch.delenv("OPENAI_API_KEY")
  for url in (secret, secret.replace("http", "ftp"), "http://me:hunter22@host:port/v1"):
    monkeypatch.setenv("OPENAI_API_KEY", KEY) if url != secret else None
    with pytest.raises(UserError) as refused:
      collect(tmp_path, teacher, url=url)
    told.append(str(refused.value))
  told += [path.read_text() for path in tmp_path.iterdir()]
  assert not [text for text in told if "hunter22" in text]
  assert "hunter22" not in "".join(capsys.readouterr())


def test_a_refused_prompt_is_final_and_the_others_go_on(tmp_path, start):
  refusals = {"1": error(code=400), "2": error(400, code="content_filter")}
  teacher = start(lambda mark, id_, n: refusals.get(id_) or whole(mark))
  collect(tmp_path, teacher, "--max-bad-share=0.5", "--concurrency=1")
  assert {id_: len(given) for id_, given in written(tmp_path)[1].items()} == {
    "0": K, "1": 0, "2": 0, "3": K
  }  # fmt: skip
  assert teacher.counts == {"0": K, "1": 1, "2": 1, "3": K}
  failed = collector.failures_path(tmp_path / "pool.jsonl").read_text()
  assert KEY not in failed and failed.count('"kind": "400"') == 2


def test_words_of_older_journals_are_read_anew(tmp_path, start):
  """They kept null as "unknown" and withheld answers that ended with "eos"."""
  teacher = start(lambda mark, id_, n: whole(mark))
  collect(tmp_path, teacher)
  path = tmp_path / "pool.jsonl.journal.jsonl"
  first, *lines = path.read_text().splitlines()
  old = [{k: v for k, v in json.loads(line).items() if k != "media"} for line in lines]
  old[0]["finish_reason"], old[1]["finish_reason"] = "eos", "unknown"
  path.write_text("\n".join([first, *map(json.dumps, old)]) + "\n")
  collect(tmp_path, teacher)
  assert len(teacher.requests) == PROMPTS * K + 1
  assert all(len(given) == K for given in written(tmp_path)[1].values())


def test_the_largest_reply_is_far_above_the_longest_answer():
  assert replies.LARGEST > 20 * len(json.dumps("word " * 32_768))

"""Collecting from a server that misbehaves: K responses per prompt, and nothing paid for twice."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from chat_server import FAULTS, TEXT, Bar, Teacher

from rmsd_jax import cli
from rmsd_jax import pool as command
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import json_lines, records
from rmsd_jax.tasks import Rules, registry
from rmsd_jax.teacher import collector
from rmsd_jax.teacher.endpoint import Endpoint, Patience
from rmsd_jax.teacher.request import Asking, Budget, Tokens

ROOT = pathlib.Path(__file__).parents[2]
KEY = "sk-secret-0123456789"
RULES = Rules()
QUESTION = RULES.prompt_text("multiple_choice", "Which card? (0)", ["A. red", "B. blue"])
ASKING = Asking("big-model", "big", max_tokens=100)
FAST = Patience(timeout=20, backoff=0.01)


@pytest.fixture
def start():
  with contextlib.ExitStack() as stack:

    def started(behave=lambda question, n: {}):
      teacher = Teacher(behave)
      stack.callback(teacher.server_close)
      stack.callback(teacher.shutdown)
      return teacher

    yield started


def prompt(id_, **changes):
  asked = {"task": "multiple_choice", "question": f"Which card? ({id_})"}
  return asked | {"id": id_, "options": ["A. red", "B. blue"], "answer": "B"} | changes


@pytest.fixture
def folder(tmp_path):
  """Six prompts, without media."""
  return put(tmp_path, [prompt(str(i)) for i in range(6)])


def put(folder, values):
  text = "".join(json.dumps(value) + "\n" for value in values)
  (folder / "prompts.jsonl").write_text(text, encoding="utf-8")
  return folder


def collect(folder, teacher, asking=ASKING, patience=FAST, source="prompts.jsonl", **changes):
  out = folder / changes.pop("out", "pool.jsonl")
  given = {"progress": Bar, "samples": 3, **changes}
  there = Endpoint(teacher.url, KEY, patience)
  return collector.collect([folder / source], out, asking, RULES, there, **given), there


def read(folder, name="pool.jsonl"):
  """The lines of a written pool, by id; each must be a record."""
  lines = (folder / name).read_text(encoding="utf-8").splitlines()
  return {(r := records.parse(line, n, registry.TASKS)).id: r for n, line in enumerate(lines, 1)}


def counts(folder, name="pool.jsonl"):
  return {id_: len(record.responses) for id_, record in read(folder, name).items()}


def failures(folder):
  path = collector.failures_path(folder / "pool.jsonl")
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_prompt_gets_its_responses_from_a_server_that_misbehaves(folder, start):
  plan = itertools.cycle([{}, *[x for fault in FAULTS for x in (fault, {}, {})]])
  teacher = start(lambda question, n: next(plan))
  job, there = collect(folder, teacher, patience=Patience(timeout=1.5, backoff=0.01))
  assert counts(folder) == dict.fromkeys("012345", 3) and list(read(folder)) == list("012345")
  assert teacher.served.total() == 18
  assert job.lost == sum(there.repeated[kind] for kind in ("connection", "malformed", "timeout"))
  assert job.lost > 0 and job.spent.written == 900 + job.lost * ASKING.max_tokens
  assert set(there.repeated) == {"429", "500", "connection", "malformed", "timeout"}
  assert len(list(folder.iterdir())) == 3  # prompts, pool, journal
  sent = len(teacher.requests)
  before = (folder / "pool.jsonl").read_bytes()
  (folder / "pool.jsonl").unlink()
  collect(folder, teacher)  # all is there: written again, nothing asked
  assert (folder / "pool.jsonl").read_bytes() == before and len(teacher.requests) == sent


def test_the_output_goes_into_a_pool_and_the_request_holds_what_the_flags_say(folder, start):
  teacher = start(lambda question, n: {"finish_reason": "length" if n == 1 else "stop"})
  asking = Asking("big-model", "big", 0.7, 0.9, 64, {"top_k": 20, "max_tokens": None})
  collect(folder, teacher, asking, concurrency=1)
  with json_lines.Quarantine(folder / "q", folder / "q", bad_share=0) as quarantine:
    lines = json_lines.scan([folder / "pool.jsonl"], RULES, quarantine)
  assert len(lines) == 6 and not quarantine.kinds
  first, second, *_ = read(folder)["0"].responses
  assert first == records.Response(TEXT, "big", "length") and second.finish_reason == "stop"
  assert teacher.requests[0] == {
    "model": "big-model", "temperature": 0.7, "top_p": 0.9, "top_k": 20,
    "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
  }  # fmt: skip


CHILD = """
import contextlib, sys, types
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import collector, endpoint, request
prompts, out, url = sys.argv[1:]
bar = types.SimpleNamespace(update=lambda n, note: None)
there = endpoint.Endpoint(url, "x", endpoint.Patience(timeout=20, retries=30, backoff=0.01))
collector.collect([prompts], out, request.Asking("m", "t"), Rules(), there, samples=4,
                  concurrency=5, progress=lambda total, start: contextlib.nullcontext(bar))
"""


def wait_for(condition, seconds=30.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it never came"
    time.sleep(0.005)


def test_a_kill_costs_at_most_the_calls_under_way(tmp_path, start):
  put(tmp_path, [prompt(str(i)) for i in range(15)])
  plan = itertools.cycle([{}, {}, "500", {}, "drop", {}, "malformed", {}, "429", "cut"])
  teacher = start(lambda question, n: next(plan))
  teacher.delay = 0.02
  line = [sys.executable, "-c", CHILD, tmp_path / "prompts.jsonl", tmp_path / "pool.jsonl"]
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  child = subprocess.Popen([*map(str, line), teacher.url], cwd=ROOT, env=env)
  wait_for(lambda: teacher.served.total() >= 25)
  child.kill()
  assert child.wait() == -signal.SIGKILL and not (tmp_path / "pool.jsonl").exists()
  before = teacher.served.total()
  assert before < 60
  subprocess.run([*map(str, line), teacher.url], cwd=ROOT, env=env, check=True, timeout=60)
  assert counts(tmp_path) == {str(i): 4 for i in range(15)}
  assert 60 <= teacher.served.total() <= 60 + 5


def test_a_torn_last_line_is_asked_again_and_a_damaged_one_stops(folder, start):
  teacher = start()
  collect(folder, teacher)
  journal = collector.journal_path(folder / "pool.jsonl")
  whole = journal.read_bytes()
  journal.write_bytes(whole[:-9])
  collect(folder, teacher)
  assert teacher.served.total() == 19 and counts(folder) == dict.fromkeys("012345", 3)
  assert len(journal.read_bytes().splitlines()) == 19
  lines = whole.splitlines(keepends=True)
  journal.write_bytes(b"".join([*lines[:4], b'{"id": "2"\n', *lines[5:]]))
  with pytest.raises(UserError, match="journal.jsonl line 5 is no line of a journal"):
    collect(folder, teacher)


def test_the_budget_holds_over_runs_and_what_is_complete_can_be_taken(folder, start, capsys):
  teacher = start()
  budget = Budget(price_in=10, price_out=100, money=0.05)  # 0.006 a call, 0.012 at most
  with pytest.raises(UserError, match="budget is reached: cost 0.04.*11 responses are missing"):
    collect(folder, teacher, budget=budget)
  assert teacher.served.total() == 7 and not (folder / "pool.jsonl").exists()
  with pytest.raises(UserError, match="budget is reached"):
    collect(folder, teacher, budget=budget)
  with pytest.raises(UserError, match="budget is reached"):
    collect(folder, teacher, budget=Budget(tokens=7 * 150 + 150))
  assert teacher.served.total() == 7
  with pytest.raises(UserError, match="no prompt has its 9 responses yet"):
    call(folder, teacher, "--partial", "--teacher=big", "--samples=9", "--max-tokens=100")
  call(folder, teacher, "--partial", "--teacher=big", "--samples=3", "--max-tokens=100")
  assert counts(folder) == {"0": 3, "1": 3}
  assert "2 of 6 prompts" in capsys.readouterr().out
  collect(folder, teacher, budget=Budget(10, 100, 1.0))
  assert teacher.served.total() == 18 and counts(folder) == dict.fromkeys("012345", 3)


def test_answers_that_do_not_come_count_and_end_at_the_budget(folder, start, capsys):
  teacher = start(lambda question, n: "malformed")
  with pytest.raises(
    UserError, match="budget is reached: 1,[0-9]+ tokens so far.*18 responses are"
  ):
    collect(folder, teacher, budget=Budget(tokens=1_500), concurrency=2)
  sent = len(teacher.requests)
  assert 2 <= sent <= 8 and not (folder / "pool.jsonl").exists()
  with pytest.raises(UserError, match="budget is reached"):
    collect(folder, teacher, budget=Budget(tokens=1_500))
  assert len(teacher.requests) == sent
  teacher.behave = lambda question, n: {}
  job, _ = collect(folder, teacher)
  assert counts(folder) == dict.fromkeys("012345", 3) and job.lost == sent
  assert job.spent.written == 900 + sent * ASKING.max_tokens


def test_answers_without_usage_count_all_they_may(folder, start):
  teacher = start()
  teacher.usage = None
  job, _ = collect(folder, teacher, samples=1)
  assert job.spent.written == 600 and 600 < job.spent.read < 6000


@pytest.mark.parametrize(
  ("behaviour", "words"),
  [
    ("401", "refuses the API key.*.401: no, Bearer ....; see --api-key-env"),
    ("403", "refuses the API key, or its use of this model"),
    ("404", "has no such model or address"),
    ("402", "has no credit left"),
    ("429 insufficient_quota", "has no credit left"),
  ],
)
def test_what_holds_for_every_request_stops_the_run_at_once(folder, start, behaviour, words):
  teacher = start(lambda question, n: behaviour)
  with pytest.raises(UserError, match=words) as stopped:
    collect(folder, teacher, concurrency=2)
  assert len(teacher.requests) <= 2 and KEY not in str(stopped.value)
  teacher.behave = lambda question, n: {}
  collect(folder, teacher, asking=Asking("other", "big"))  # nothing was paid for: no settings bind
  assert counts(folder) == dict.fromkeys("012345", 3)
  assert not [path for path in folder.iterdir() if KEY in path.read_text()]


def test_a_refused_prompt_is_set_aside_and_asked_again_by_the_next_run(folder, start):
  teacher = start(lambda question, n: "400" if "(3)" in question else {})
  with pytest.raises(UserError, match="1 of 6 lines are unusable.*share of 0.05.*400: no, Bearer"):
    collect(folder, teacher)
  _, there = collect(folder, teacher, bad_share=0.2)
  assert counts(folder) == {**dict.fromkeys("012345", 3), "3": 0} and not there.repeated
  (failure,) = failures(folder)
  assert (failure["id"], failure["kind"], failure["line"]) == ("3", "400", 4)
  assert KEY not in str(failure)
  teacher.behave = lambda question, n: "500" if "(3)" in question else {}
  collect(folder, teacher, patience=Patience(retries=2, backoff=0.01), bad_share=0.2)
  assert "no answer in 3 tries; the last: 500: no" in failures(folder)[0]["reason"]
  teacher.behave = lambda question, n: {}
  collect(folder, teacher)
  assert counts(folder) == dict.fromkeys("012345", 3) and not failures(folder)
  assert 18 <= teacher.served.total() <= 18 + 8  # the first run stopped with calls under way


def test_lines_that_are_no_records_are_set_aside_unpaid(folder, start):
  bad = [
    prompt("6", answer="Z"),
    {"id": "7"},
    prompt("8", media=[{"type": "video", "path": "no.mp4"}]),
  ]
  put(folder, [*(prompt(str(i)) for i in range(6)), *bad])
  teacher = start()
  collect(folder, teacher, bad_share=0.4)
  assert counts(folder) == {**dict.fromkeys("012345", 3), "8": 0}
  assert {f["line"]: f["kind"] for f in failures(folder)} == {
    7: "RecordFault", 8: "RecordFault", 9: "MediaError"
  }  # fmt: skip


def test_filtered_answers_use_up_their_sample(folder, start):
  filtered = {"finish_reason": "content_filter", "content": None}
  hit = lambda question, n: filtered if "(3)" in question or n == 1 else {}
  teacher = start(hit)
  job, _ = collect(folder, teacher, bad_share=0.2, concurrency=1)
  assert counts(folder) == {"0": 2, **dict.fromkeys("1245", 3), "3": 0}
  assert job.spent == Tokens(1_800, 900)
  (failure,) = failures(folder)
  assert failure["reason"] == "all 3 answers were withheld: content_filter"
  collect(folder, teacher, bad_share=0.2)
  assert teacher.served.total() == 18 and len(failures(folder)) == 1


def test_a_changed_collection_is_refused_with_the_difference(folder, start):
  teacher = start()
  collect(folder, teacher)
  changed = Asking("big-model", "big", temperature=0.5, max_tokens=100, frames=8)
  with pytest.raises(UserError, match=r"\(frames 16 -> 8, temperature 1.0 -> 0.5\); take the old"):
    collect(folder, teacher, changed)
  put(folder, [prompt("0"), prompt("1", question="Other?"), prompt("new")])
  with pytest.raises(UserError, match="prompt '1' is not what it was when .*give it a new id"):
    collect(folder, teacher)
  put(folder, [prompt("new"), prompt("0", source="web", answer="A")])
  collect(folder, teacher, samples=4)  # new prompts, more samples: what was paid for still counts
  assert counts(folder) == {"new": 4, "0": 4} and teacher.served.total() == 18 + 5
  assert read(folder)["0"].source == "web"


def test_a_second_teacher_adds_its_own_responses(folder, start):
  mine = {"text": "mine", "teacher": "big"}
  put(folder, [prompt("0"), prompt("1", responses=[mine])])
  teacher = start()
  collect(folder, teacher)
  assert counts(folder) == {"0": 3, "1": 3} and teacher.served.total() == 5
  other = Asking("other-model", "other")
  collect(folder, teacher, other, source="pool.jsonl", out="both.jsonl", samples=2)
  assert teacher.served.total() == 9
  teachers = [response.teacher for response in read(folder, "both.jsonl")["1"].responses]
  assert teachers == ["big"] * 3 + ["other"] * 2
  assert read(folder, "both.jsonl")["1"].responses[0].text == "mine"


def test_thoughts_are_paid_for(folder, start):
  teacher = start(lambda question, n: {"content": "<answer>B</answer>", "reasoning": "Blue."})
  teacher.usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 95}
  job, _ = collect(folder, teacher, samples=1)
  (response,) = read(folder)["0"].responses
  assert response.text == "<think>Blue.</think><answer>B</answer>"
  assert job.spent == Tokens(60, 510)


def test_rates_are_kept_and_a_servers_wish_to_wait_holds_for_all(folder, start):
  teacher = start()
  collect(folder, teacher, patience=Patience(requests_per_minute=600), samples=1)
  assert teacher.times[-1] - teacher.times[0] > 0.8 * 5 * 0.1
  teacher = start()
  bound = sum(ASKING.bound(read(folder)["0"], QUESTION))  # of which 150 are used
  slow = Patience(tokens_per_minute=60 * 8 * bound)
  collect(folder, teacher, patience=slow, samples=1, out="b.jsonl", concurrency=1)
  assert teacher.times[-1] - teacher.times[0] > 0.8 * 5 * 150 / (8 * bound)
  teacher = start(lambda question, n: "429" if n == 1 else {})
  teacher.delay = 0.02
  collect(folder, teacher, samples=1, out="c.jsonl", concurrency=3)
  assert 0.14 < teacher.times[3] - teacher.times[0] < 5


def test_a_full_disk_stops_the_run_and_leaves_whole_lines(folder, start, monkeypatch):
  calls = itertools.count(1)

  def fsync(file):
    if next(calls) == 5:
      raise OSError(28, "No space left on device")

  teacher = start()
  monkeypatch.setattr(os, "fsync", fsync)
  with pytest.raises(UserError, match="cannot be written .No space left on device.; make room"):
    collect(folder, teacher)
  monkeypatch.undo()
  lines = collector.journal_path(folder / "pool.jsonl").read_text().splitlines()
  assert 4 <= len(lines) <= 4 + 8 and all(map(json.loads, lines))
  collect(folder, teacher)
  assert counts(folder) == dict.fromkeys("012345", 3) and teacher.served.total() <= 18 + 8


def call(folder, teacher, *flags):
  given = ["--prompts", folder / "prompts.jsonl", "--out", folder / "pool.jsonl"]
  line = ["collect", *given, "--model=big-model", f"--base-url={teacher.url}", *flags]
  command.main(list(map(str, line)))


def test_a_dry_run_sends_nothing_and_needs_no_key(folder, start, capsys, monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  teacher = start()
  call(folder, teacher, "--dry-run", "--price-in=1", "--price-out=10", "--max-tokens=1000")
  out = capsys.readouterr().out
  assert "24 requests to send, for 6 of the prompts" in out and "24,000 out" in out
  assert "Which card? (0)\nA. red" in out and "cost 0.24" in out
  assert not teacher.requests and sorted(p.name for p in folder.iterdir()) == ["prompts.jsonl"]
  put(folder, [prompt("0"), prompt("1", media=[{"type": "video", "path": "none.mp4"}])])
  call(folder, teacher, "--dry-run")
  assert "1 of 1 media files are not there, such as none.mp4" in capsys.readouterr().out


REFUSED = [
  ([], "the environment variable OPENAI_API_KEY is not set"),
  (["--api-key-env=EMPTY_KEY"], "the API key is empty"),
  (["--budget=5"], "needs the prices --price-in and --price-out.*--token-budget"),
  (["--temperature=0"], "gives 4 times the same response"),
  (["--media=url"], "needs --url-prefix"),
  (['--extra={"n": 2}'], "may not hold 'n'"),
  (["--extra=n"], "not a JSON object"),
  (["--samples=0"], "--samples 0"),
  (["--base-url=http://host:port/v1"], "host:port/v1: give an address such as"),
  (["--max-bad-share=5"], "a share is between 0 and 1"),
  (["--out={folder}/prompts.jsonl"], "also among --prompts"),
  (["--out={folder}/other.txt"], "exists, and no collection wrote it"),
  (["--out={folder}/deep/pool.jsonl"], "there is no folder"),
  (["--out={folder}/sub/pool.jsonl", "--dry-run"], "relative to its folder, such as 'a.mp4'"),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=[case[1] for case in REFUSED])
def test_bad_flags_are_one_line_before_anything_is_sent(folder, start, flags, words, monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  monkeypatch.setenv("EMPTY_KEY", "")
  if "OPENAI_API_KEY" not in words:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
  put(folder, [prompt("0", media=[{"type": "video", "path": "a.mp4"}])])
  (folder / "other.txt").write_text("thesis")
  (folder / "sub").mkdir()
  teacher = start()
  with pytest.raises(UserError, match=words) as refused:
    call(folder, teacher, *(flag.replace("{folder}", str(folder)) for flag in flags))
  assert "\n" not in str(refused.value) and not teacher.requests


def test_two_collections_do_not_write_one_journal(folder, start):
  teacher = start()
  collect(folder, teacher)
  path = collector.journal_path(folder / "pool.jsonl")
  with collector.Journal(path, ASKING.settings()):
    with pytest.raises(UserError, match="in use by another collection"):
      collect(folder, teacher)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(folder, start, capsys, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  main = threading.get_ident()

  def behave(question, n):
    if n == 10:
      signal.pthread_kill(main, signal.SIGINT)
      return "slow"
    return {}

  teacher = start(behave)
  with pytest.raises(SystemExit) as ended:
    cli.run(lambda: call(folder, teacher, "--concurrency=1", "--samples=2"))
  err = capsys.readouterr().err
  assert ended.value.code == cli.EXIT_INTERRUPTED == 130 and err.endswith("\ninterrupted\n")
  assert "pool.jsonl.journal.jsonl; the same command goes on" in err
  assert not (folder / "pool.jsonl").exists()
  call(folder, teacher, "--concurrency=1", "--samples=2", "--price-in=10", "--price-out=10")
  out = capsys.readouterr().out
  assert "6 prompts, 12 responses by 'big-model', 0 of them cut off" in out and "cost 0.02" in out
  assert teacher.served.total() == 12 and counts(folder) == dict.fromkeys("012345", 2)

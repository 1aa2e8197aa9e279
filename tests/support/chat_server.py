"""A chat endpoint on loopback that answers, fails or misbehaves as a test asks."""

import collections
import http.server
import json
import threading
import time
from typing import NamedTuple

TEXT = "<think>I see it.</think><answer>B</answer>"
FAULTS = ["429", "500", "drop", "malformed", "cut", "empty", "slow"]


class Raw(NamedTuple):
  """A reply, byte for byte."""

  body: bytes
  status: int = 200
  headers: tuple = ()


class Teacher(http.server.ThreadingHTTPServer):
  """Attributes: requests and their times, as they came; served, answers by question.

  `behave(question, n)` says what the n-th request gets: a fault by name, the fields of a choice, or
  a `Raw` reply.
  """

  daemon_threads = True

  def __init__(self, behave):
    super().__init__(("127.0.0.1", 0), Handler)
    self.behave, self.lock = behave, threading.Lock()
    self.requests, self.times, self.served = [], [], collections.Counter()
    self.delay, self.usage = 0.0, {"prompt_tokens": 100, "completion_tokens": 50}
    threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/v1"

  def handle_error(self, request, client_address):
    pass  # a client that was killed


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    pass

  def do_POST(self):
    teacher = self.server
    body = json.loads(self.rfile.read(int(self.headers["content-length"])))
    content = body["messages"][0]["content"]
    with teacher.lock:
      teacher.requests.append(body)
      teacher.times.append(time.monotonic())
      behaviour = teacher.behave(content[-1]["text"], len(teacher.requests))
    time.sleep(teacher.delay)
    if isinstance(behaviour, Raw):
      self.reply(behaviour.status, behaviour.body, headers=behaviour.headers)
    elif isinstance(behaviour, dict):
      message = {"role": "assistant", "content": TEXT, **behaviour}
      choice = {"index": 0, "finish_reason": message.pop("finish_reason", "stop")}
      answer = {"choices": [choice | {"message": message}], "usage": teacher.usage}
      self.reply(200, json.dumps(answer))
      with teacher.lock:
        teacher.served[content[-1]["text"]] += 1
    elif behaviour == "drop":
      self.close_connection = True
    elif behaviour == "slow":
      time.sleep(2)  # longer than the patience of the test that asks for it
      self.close_connection = True
    elif behaviour == "malformed":
      self.reply(200, '{"choices": [{"message"')
    elif behaviour == "cut":
      self.reply(200, '{"choices": [', length=500)
      self.close_connection = True
    elif behaviour == "empty":
      self.reply(200, json.dumps({"error": {"message": "upstream"}}))
    else:
      status, _, code = behaviour.partition(" ")
      words = f"no, {self.headers['authorization']}"  # servers repeat keys
      self.reply(int(status), json.dumps({"error": {"message": words, "code": code}}))

  def reply(self, status, text, length=None, headers=()):
    body = text if isinstance(text, bytes) else text.encode()
    self.send_response(status)
    for name, value in {"content-type": "application/json", **dict(headers)}.items():
      self.send_header(name, value)
    self.send_header("content-length", str(length or len(body)))
    if status == 429:
      self.send_header("retry-after", "0.15")
    self.end_headers()
    self.wfile.write(body)


class Bar:
  """Stands in for the command's progress line."""

  def __init__(self, total, start):
    self.total, self.done = total, start

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    assert self.done <= self.total

  def update(self, n, note):
    self.done += n
    assert note.endswith(" tokens")

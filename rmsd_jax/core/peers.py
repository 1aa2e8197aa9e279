"""The other processes of a run: when one of them ends early, all end, each with one line.

By itself JAX would leave them waiting, in a collective or at the exit, for minutes. Here each
process holds a connection to process 0 for as long as it lives, which carries lines of JSON:

    {"process": 1, "status": 2, "why": "error: .."}    it fails; process 0 tells it to everyone
    {"process": 1, "status": null, "why": ""}          it is done, and its connection may close

A connection that closes without a word is that of a process that was killed; where a host is gone,
the kernel closes it after some 30 s. There are no heartbeats: a thread may wait long for the
interpreter. From the first failure to the end of the last process it takes UNWIND + GRACE + LINGER
seconds at most.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
import types
from typing import NoReturn, Self, TextIO

from rmsd_jax.core.errors import EXIT_FAULT, Terminated, UserError, outcome

UNWIND = 25.0  # seconds in which a process that fails may finish what it is saving
GRACE = 3.0  # seconds in which the others may end by themselves, e.g. by the same error
LINGER = 10.0  # seconds that process 0, whose end would make JAX abort the others, waits for them
CONNECT = 60.0  # seconds until all processes are connected
BLAME = 5.0  # seconds between a collective that breaks off and the news of the process it lost
LOST = 2  # the exit status that stands for a process that is gone
_KEY = "rmsd_jax/peers"
# Linux's names, and what macOS has of them; seconds and a count.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


@dataclasses.dataclass(frozen=True)
class News:
  """What a process says last: it failed with an exit status, or (None) it is done."""

  process: int
  status: int | None
  why: str

  def line(self) -> bytes:
    return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


class Peers:
  """This process's connections to the others, and the threads that listen to them.

  Args:
    index, count: of this process, of all.
    endpoint: of process 0, where the others connect; of the others, their connection to process 0.
    token: what the others say first.
  """

  def __init__(self, index: int, count: int, endpoint: socket.socket, token: str):
    self._index = index
    self._count = count
    self._connections: dict[int, socket.socket] = {}  # by process
    self._done: set[int] = set()
    self._failure: News | None = None  # the first
    self._lock = threading.Lock()
    self._told = threading.Event()  # all that can be told of a failure are
    self._alone = threading.Event()  # all connections are closed
    self._ends = threading.Lock()  # for the thread that ends this process; never released
    if index:
      endpoint.sendall(f"{index} {token}\n".encode())
      self._listen(0, endpoint, endpoint.makefile())
    else:
      _start(self._accept, endpoint, token)
    # Ctrl-C reaches Python's handler only when what the main thread does in C++ is done, such as a
    # compilation of minutes; this one is woken at once.
    self._woken, self._waker = socket.socketpair()
    self._waker.setblocking(False)
    signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
    _start(self._interrupts)

  def fail(self, line: str, status: int) -> NoReturn:
    """Ends this process with a line and a status, and the others because of it."""
    self._end(line, News(self._index, status, line))

  def ending(self, line: str, status: int) -> None:
    """To be called where a failure is on its way to `fail`, which comes in UNWIND seconds at most,
    whatever waits in between."""
    timer = threading.Timer(UNWIND, self.fail, (line, status))
    timer.daemon = True
    timer.start()

  def leave(self) -> None:
    """This process is done: the others need not end when its connection closes."""
    self._tell(News(self._index, None, ""))

  def follow(self) -> None:
    """Where another process has failed, or is soon known to: ends with it, and does not return."""
    if self._told.wait(BLAME):
      time.sleep(GRACE + 2 * LINGER)  # the thread that heard of it ends this process

  def _accept(self, listener: socket.socket, token: str) -> None:
    end = time.monotonic() + CONNECT
    while len(self._connections) < self._count - 1 and time.monotonic() < end:
      listener.settimeout(max(end - time.monotonic(), 0.1))
      with contextlib.suppress(OSError, ValueError):  # of whoever else knocks here
        connection, _ = listener.accept()
        connection.settimeout(10)
        lines = connection.makefile()
        process, said = lines.readline().split()
        if secrets.compare_digest(said, token):
          self._listen(int(process), connection, lines)
    if missing := set(range(1, self._count)) - self._connections.keys():
      self._heard(News(min(missing), LOST, f"it has not connected in {CONNECT:.0f} s"))

  def _listen(self, process: int, connection: socket.socket, lines: TextIO) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self._connections[process] = connection
    _start(self._read, process, lines)

  def _read(self, process: int, lines: TextIO) -> None:
    """What a process says, until its connection closes."""
    with contextlib.suppress(OSError):
      for line in lines:
        news = News(**json.loads(line))
        if news.status is None:
          self._done.add(news.process)
        else:
          _start(self._heard, news)
    with self._lock:
      closed = self._connections.pop(process)
      alone = not self._connections
    closed.close()
    if alone:
      self._alone.set()
    if process not in self._done:
      self._heard(News(process, LOST, "it was killed, or its host is gone"))

  def _heard(self, news: News) -> None:
    """Passes the first failure on, and ends this process if it does not end by itself."""
    with self._lock:
      known, self._failure = self._failure, self._failure or news
    if known:
      return
    if not self._index:
      self._tell(news)
    self._told.set()
    if news.process != self._index:
      time.sleep(GRACE)
      self._end(f"ended with process {news.process}: {news.why}", news)

  def _tell(self, news: News) -> None:
    with self._lock:
      connections = list(self._connections.values())
    for connection in connections:
      with contextlib.suppress(OSError):  # it is gone, which its thread notices
        connection.sendall(news.line())

  def _end(self, line: str, news: News) -> NoReturn:
    if not self._ends.acquire(blocking=False):
      time.sleep(UNWIND + GRACE + 2 * LINGER)  # the thread that ends this process is on its way
    print(line, file=sys.stderr)
    if news.process == self._index and self._index:
      self._tell(news)
      self._told.wait(LINGER)
    elif news.process == self._index:
      self._heard(news)
    for child in multiprocessing.active_children():  # data workers would live on
      child.kill()
    if not self._index:
      self._alone.wait(LINGER)  # its end would make JAX abort the others
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(news.status or 0)

  def _interrupts(self) -> None:
    while caught := self._woken.recv(1):
      if caught[0] == signal.SIGINT:
        self.ending(*outcome(KeyboardInterrupt()))


class Together:
  """A context manager around all that a process does: what ends one process early ends all."""

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    if _joined is None:
      return
    if error is None or isinstance(error, Terminated):  # SIGTERM ends all at one step
      _joined.leave()
      return
    line, status = outcome(error)
    if status == EXIT_FAULT:
      _joined.follow()
      traceback.print_exception(error)
    _joined.fail(line, status)


_joined: Peers | None = None


def join() -> None:
  """Connects the processes that jax.distributed has joined; nothing where there is one.

  Raises:
    UserError: process 0 cannot be reached.
  """
  from jax._src import distributed  # where JAX keeps it; other libraries take it from there, too

  global _joined
  state = distributed.global_state
  if state.client is None or state.num_processes == 1 or _joined:
    return
  if state.process_id == 0:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    endpoint = socket.create_server(
      ("", 0), family=family, backlog=state.num_processes, dualstack_ipv6=both
    )
    port, token = endpoint.getsockname()[1], secrets.token_hex(16)
    state.client.key_value_set(_KEY, f"{port} {token}")
  else:
    port, token = state.client.blocking_key_value_get(_KEY, int(CONNECT * 1000)).split()
    # In the variable where it is given, for JAX may know it by our relay.
    address = os.environ.get("JAX_COORDINATOR_ADDRESS") or str(state.coordinator_address)
    host = address.rpartition(":")[0].strip("[]")
    try:
      endpoint = socket.create_connection((host, int(port)), CONNECT / 2)
    except OSError as error:
      raise UserError(
        f"process {state.process_id} cannot reach process 0 at {host}:{port} ({error}); the ports "
        "between the hosts of a run must be open"
      ) from error
  _joined = Peers(state.process_id, state.num_processes, endpoint, token)


def ending(error: BaseException | None) -> None:
  """To be called first where the way of an error out of a run may take long, such as a save that
  is under way: see `Peers.ending`."""
  if _joined and error and not isinstance(error, Terminated):
    _joined.ending(*outcome(error))


def relay(address: str) -> str:
  """The address, on this host, of a relay to JAX's service in process 0 for this process alone.

  JAX ends a process at once, with a trace, where its connection to that service breaks. The relay
  leaves JAX's side open, so that this process can end in order when process 0 is gone.

  Args:
    address: HOST:PORT of the service.
  """
  host, _, port = address.rpartition(":")
  server = socket.create_server(("127.0.0.1", 0))
  _start(_serve, server, (host.strip("[]"), int(port)))
  return f"127.0.0.1:{server.getsockname()[1]}"


def _serve(server: socket.socket, address: tuple[str, int]) -> None:
  while True:
    here, _ = server.accept()
    try:
      there = socket.create_connection(address, CONNECT / 2)
    except OSError:  # it is not up yet, and JAX tries again
      here.close()
      continue
    there.settimeout(None)
    _start(_pump, here, there)
    _start(_pump, there, here)


def _pump(source: socket.socket, sink: socket.socket) -> None:
  with contextlib.suppress(OSError):
    while data := source.recv(1 << 16):
      sink.sendall(data)
  time.sleep(UNWIND + GRACE + LINGER)  # the sockets close when nobody holds them


def _start(act, *arguments) -> None:
  threading.Thread(target=act, args=arguments, daemon=True).start()

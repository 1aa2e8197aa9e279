"""Ctrl-C that is not lost: the exception may arise inside a library that swallows it."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_pressed = False


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Takes SIGINT, in the main thread: it raises KeyboardInterrupt, as Python's own handler does,
  and is remembered for `raise_swallowed`. asyncio replaces Python's own, not this one. Python's own
  has it again behind this."""
  global _pressed
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  signal.signal(signal.SIGINT, _press)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _pressed = False


def _press(*_: object) -> None:
  global _pressed
  _pressed = True
  raise KeyboardInterrupt


def raise_swallowed() -> None:
  """Raises KeyboardInterrupt where Ctrl-C was pressed and something swallowed it."""
  if _pressed:
    raise KeyboardInterrupt

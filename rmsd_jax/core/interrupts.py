"""Ctrl-C that is not lost: the exception may arise inside a library that swallows it."""

import signal

_pressed = False


def listen() -> None:
  """Takes SIGINT, in the main thread: it raises KeyboardInterrupt, as Python's own handler does,
  and is remembered for `raise_swallowed`. asyncio replaces Python's own, not this one."""
  global _pressed
  _pressed = False
  signal.signal(signal.SIGINT, _press)


def _press(*_: object) -> None:
  global _pressed
  _pressed = True
  raise KeyboardInterrupt


def raise_swallowed() -> None:
  """Raises KeyboardInterrupt where Ctrl-C was pressed and something swallowed it."""
  if _pressed:
    raise KeyboardInterrupt

"""Ctrl-C reaches a command, also where its exception was swallowed on the way."""

import asyncio
import contextlib
import os
import signal

import pytest

from rmsd_jax import cli
from rmsd_jax.core import interrupts


def press():
  os.kill(os.getpid(), signal.SIGINT)


def test_it_ends_a_command(capsys):
  with pytest.raises(SystemExit) as ended:
    cli.run(press)
  assert ended.value.code == cli.EXIT_INTERRUPTED and "interrupted" in capsys.readouterr().err


def test_what_swallows_it_ends_at_the_next_check():
  def main():
    with contextlib.suppress(KeyboardInterrupt):
      press()
    interrupts.raise_swallowed()
    raise AssertionError("it went on")

  with pytest.raises(SystemExit) as ended:
    cli.run(main)
  assert ended.value.code == cli.EXIT_INTERRUPTED


def test_an_event_loop_does_not_take_it_over():
  """It would cancel its task instead, which a library may catch."""

  async def work():
    with contextlib.suppress(asyncio.CancelledError):
      press()
      await asyncio.sleep(30)

  with pytest.raises(SystemExit) as ended:
    cli.run(lambda: asyncio.run(work()))
  assert ended.value.code == cli.EXIT_INTERRUPTED


def test_behind_a_command_python_has_its_own_handler_again():
  with pytest.raises(SystemExit):
    cli.run(lambda: None)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_next_command_of_a_process_begins_anew():
  with pytest.raises(SystemExit):
    cli.run(press)
  interrupts.raise_swallowed()  # also outside a command
  with pytest.raises(SystemExit) as ended:
    cli.run(interrupts.raise_swallowed)
  assert ended.value.code == 0

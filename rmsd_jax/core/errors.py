"""The exceptions that are no faults of this software, and how each ends a command."""

import errno
import math
import operator
import pathlib
from collections.abc import Mapping

EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
# What a full, read-only or lost disk says; any other OSError is a fault of this software.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class UserError(Exception):
  """Bad input. The message is one line that names the value, the limit and the remedy.

  Commands print it without a traceback and exit with status 2 (see `rmsd_jax.cli`).
  """


class MediaError(UserError):
  """A media file that cannot be used. Attributes: path, reason."""

  def __init__(self, path: str | pathlib.Path, reason: str):
    super().__init__(str(path), reason)
    self.path = str(path)
    self.reason = reason

  def __str__(self) -> str:
    # A file's contents may have been given as its name.
    return f"{self.path if len(self.path) <= 500 else self.path[:60] + '...'}: {self.reason}"


def check_least(config, least: Mapping[str, float]) -> None:
  """Raises UserError where a value of a config is below its least.

  Args:
    least: by dotted name. No value may be infinite.
  """
  for name, lowest in least.items():
    value = operator.attrgetter(name)(config)
    if not lowest <= value < math.inf:
      raise UserError(f"{name}={value}; give {lowest} or more")


def check_within(config, within: Mapping[str, str]) -> None:
  """Raises UserError where a value of a config is outside its interval.

  Args:
    within: by dotted name; an interval as mathematics writes it, e.g. "(0, 1]" or "[0, inf)".
  """
  for name, interval in within.items():
    value = operator.attrgetter(name)(config)
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
      raise UserError(f"{name}={value}: it must be in {interval}")


class Terminated(Exception):
  """A run was asked to end (SIGTERM, as before a preemption), and has saved where it is.

  Commands print the message and exit with status 143.
  """


class Interrupted(Terminated):
  """The same of Ctrl-C; status 130."""


def outcome(error: BaseException) -> tuple[str, int]:
  """The line with which a command ends because of an error, and its exit status.

  EXIT_FAULT is the status of all that is a fault of this software and deserves a traceback.
  """
  text = " ".join(str(error).split())
  match error:
    case UserError():
      return f"error: {text}", EXIT_BAD_INPUT
    case OSError() if error.errno in _OF_THE_DISK:
      return f"error: {text}; make room or mend the folder", EXIT_BAD_INPUT
    case KeyboardInterrupt():
      return "interrupted", EXIT_INTERRUPTED
    case Interrupted():
      return str(error), EXIT_INTERRUPTED
    case Terminated():
      return str(error), EXIT_TERMINATED
  return f"{type(error).__name__}: {text}", EXIT_FAULT

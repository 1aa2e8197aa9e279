"""Which state of this software is at work."""

import pathlib
import subprocess

_HERE = pathlib.Path(__file__).parent


def commit() -> str:
  """Of the checkout that runs; "" for an installed package, and where there is no git."""
  return _git("rev-parse", "HEAD")


def changed() -> bool:
  """Whether files of the checkout differ from its commit."""
  return bool(_git("status", "--porcelain"))


def _git(*arguments: str) -> str:
  try:
    done = subprocess.run(
      ["git", "-C", str(_HERE), *arguments], capture_output=True, text=True, check=False
    )
  except OSError:
    return ""
  return done.stdout.strip()

"""Launch scripts, started with an environment of their own."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(script: str, variables: dict, *arguments, folder: Path | None = None):
  """Runs launch/SCRIPT and returns it ended, with what it wrote.

  Args:
    variables: name -> value; None leaves one out.
    folder: its bin/ comes first on PATH; None: the system's programs alone.
  """
  path = "/usr/bin:/bin" if folder is None else f"{folder / 'bin'}:{os.environ['PATH']}"
  environment = {"PATH": path, "HOME": os.environ.get("HOME", "/")} | variables
  return subprocess.run(
    [ROOT / "launch" / script, *arguments],
    env={name: value for name, value in environment.items() if value is not None},
    capture_output=True,
    text=True,
  )

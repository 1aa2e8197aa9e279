"""Compiled programs of a test session. Every one takes some mappings of memory, of which Linux
gives a process 65,530; XLA ends in a segmentation fault where there is none left."""

import sys
from pathlib import Path

MOST_MAPPINGS = 25_000


def let_go() -> None:
  """Forgets compiled programs where there are many of them; they are compiled again if called."""
  maps = Path("/proc/self/maps")
  if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
    sys.modules["jax"].clear_caches()

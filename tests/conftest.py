"""Settings of every test, made before anything imports jax and inherited by child processes.

Eight devices are simulated on the CPU, so sharded code runs sharded; compiled programs are kept
between runs in the user's folder for temporary files; nothing is fetched from the network. Programs
are compiled in haste (JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment undoes it): most of them
run once on tiny arrays, and half of the suite's time would go to making them fast.
"""

import getpass
import os
import tempfile
from pathlib import Path

import mappings
import pytest

DEVICES = 8
CACHE = Path(tempfile.gettempdir()) / f"rmsd_jax-tests-{getpass.getuser()}"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XLA_FLAGS"] = " ".join(
  [os.getenv("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={DEVICES}"]
).strip()

# Files that take minutes begin first, so that no process works alone at the end.
FIRST = (
  "test_processes.py",
  "test_new_user.py",
  "test_recipes.py",
  "test_rl_runs.py",
  "test_toolkit.py",
)


def pytest_collection_modifyitems(items):
  place = {name: number for number, name in enumerate(FIRST)}
  items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))


@pytest.fixture(autouse=True, scope="module")
def mappings_to_spare():
  yield
  mappings.let_go()

"""A run whose folder is in a bucket, against an emulator of Cloud Storage on loopback.

Orbax writes through TensorStore's own client, the rest through gcsfs: both must find the bucket.
"""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run
from etils import epath

from rmsd_jax import evaluate, train_sft
from rmsd_jax.training import checkpoint, log
from rmsd_jax.training.checkpoint import Checkpoints

EMULATOR = """
from gcp_storage_emulator.handlers import objects

plain = objects.download

def download(request, response, storage, *args, **kwargs):  # with the header TensorStore needs
  plain(request, response, storage, *args, **kwargs)
  if response.status < 300:
    name = request.params["bucket_name"], request.params["object_id"]
    response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]

objects.download = download
import threading
from gcp_storage_emulator import server

handle, lock = server.Router.handle, threading.Lock()

def one_at_a_time(self, method):  # its tables are not made for threads: uploads went missing
  with lock:
    handle(self, method)

server.Router.handle = one_at_a_time
server.server.HTTPServer = server.server.ThreadingHTTPServer
server.create_server("127.0.0.1", {port}, in_memory=True, default_bucket="bucket").run()
"""


@pytest.fixture(scope="module")
def bucket():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
  code = EMULATOR.format(port=port)
  with (
    pytest.MonkeyPatch.context() as patch,
    subprocess.Popen([sys.executable, "-c", code], **quiet) as server,
  ):
    try:
      while True:
        assert server.poll() is None, "the emulator ended"
        try:
          socket.create_connection(("127.0.0.1", port)).close()
          break
        except OSError:
          time.sleep(0.1)
      for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        patch.setenv(name, f"http://127.0.0.1:{port}")
      patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
      patch.setenv("NO_GCE_CHECK", "true")  # no look for this machine's credentials
      yield "gs://bucket/runs"
    finally:
      server.kill()


COMPILES = """
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if "hits" in name else 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(len(hits))
"""


def test_compiled_programs_are_kept_in_a_bucket_for_the_next_start(bucket, monkeypatch):
  """As launch/tpu_vm.sh and launch/gke.sh ask for."""
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/compiled")
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  start = lambda: subprocess.run(
    [sys.executable, "-c", COMPILES], capture_output=True, text=True, check=True
  )
  first, second = start(), start()
  assert int(first.stdout) == 0 and int(second.stdout) > 0
  assert list(epath.Path("gs://bucket/compiled").iterdir()) and "Error" not in first.stderr


CONFIG = dict(data__limit=8, steps=4, save_every=2)


def test_a_run_in_a_bucket_resumes_as_on_disk_and_is_evaluated(bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  c, local = tiny_run.config("sft", **CONFIG), tmp_path / "local"
  tiny_run.run(monkeypatch, train_sft, c, local)
  run = f"{bucket}/1"
  tiny_run.run(monkeypatch, train_sft, c, run, stop_after=3)
  assert checkpoint.find_step(run) == 2
  tiny_run.run(monkeypatch, train_sft, c, run)
  tiny_run.assert_same(tiny_run.restored(run, train_sft, c), tiny_run.restored(local, train_sft, c))
  losses = [[line["loss"] for line in log.read(str(folder))] for folder in (local, run)]
  assert losses[0] == losses[1] and len(losses[0]) == 4
  tiny_run.run(
    monkeypatch, evaluate, tiny_run.config("evaluate", data__limit=4), run, checkpoint="latest"
  )
  result = json.loads((epath.Path(run) / "evaluate" / "test.json").read_text())
  assert result["step"] == 4 and len(result["prompts"]) == 4
  second = tiny_run.config("sft", **CONFIG, init_from=run)
  tiny_run.run(monkeypatch, train_sft, second, f"{bucket}/2", stop_after=2)
  assert checkpoint.find_step(f"{bucket}/2") == 2
  assert sorted(os.listdir(tmp_path)) == ["local"], "a bucket's address was read as a local folder"


def test_a_kill_during_a_save_does_not_block_the_next_start(bucket):
  run, value = f"{bucket}/killed", {"student": {"w": np.arange(4.0)}}
  with Checkpoints(run) as checkpoints:
    checkpoints.save(1, value)
  (epath.Path(run) / "checkpoints" / "2" / "student" / "half").write_text("of it")
  with Checkpoints(run) as checkpoints:
    assert checkpoints.latest() == 1 and checkpoints.steps() == [1]
    checkpoints.save(2, value)
  assert checkpoint.find_step(run) == 2

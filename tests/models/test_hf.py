"""Reading weights: the host never holds the model twice, and a folder goes before a size's name."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run

from rmsd_jax.core.errors import UserError
from rmsd_jax.models import config as config_lib
from rmsd_jax.models import hf
from rmsd_jax.models.student import Qwen3VL

# Loads a folder over 8 devices and prints the bytes of the parameters, and by how much the
# process's own memory (mapped files do not count) grew at most while it did.
LOAD = """\
import pathlib, sys, threading, time
import jax
from rmsd_jax.core import sharding
from rmsd_jax.models import hf

def own_bytes():
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("RssAnon:")[1].split()[0]) * 1024

mesh = sharding.make_mesh(1, 8, 1)
jax.block_until_ready(jax.jit(lambda: jax.numpy.ones(8))())
before, peak, done = own_bytes(), 0, threading.Event()

def watch():
  global peak
  while not done.is_set():
    peak = max(peak, own_bytes())
    time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
params = jax.block_until_ready(hf.load_params(sys.argv[1], mesh))
done.set()
watcher.join()
print(sum(x.nbytes for x in jax.tree.leaves(params)), peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_stream_into_their_shards(tmp_path):
  text = config_lib.TextConfig(8, 512, 8, 4, 2_048, head=64, vocab=8_192, sections=(12, 10, 10))
  model = Qwen3VL(config_lib.ModelConfig(text, config_lib.VisionConfig(**tiny_run.VISION)))
  config = dataclasses.replace(
    model.config, vision=dataclasses.replace(model.config.vision, out=text.width)
  )
  ids = json.loads((tiny_run.model_folder() / "config.json").read_text())
  raw = config_lib.to_hf(config, {k: v for k, v in ids.items() if k.endswith("_token_id")})
  (tmp_path / "config.json").write_text(json.dumps(raw))
  abstract = Qwen3VL(config).abstract()
  hf.save(
    tmp_path, jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract), tmp_path, np.float32
  )
  done = subprocess.run(
    [sys.executable, "-c", LOAD, tmp_path], cwd=tiny_run.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  model_bytes, growth = map(int, done.stdout.split())
  assert model_bytes > 130e6
  assert growth < 1.5 * model_bytes, growth / model_bytes


def test_a_folder_goes_before_the_name_of_a_size(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert hf.load_model("4b").config == config_lib.PRESETS["4b"]
  (tmp_path / "4b").mkdir()
  with pytest.raises(UserError, match="config.json"):
    hf.load_model("4b")

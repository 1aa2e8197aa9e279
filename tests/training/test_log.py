"""Metrics survive kills and resumes; progress tells rate and time left; memory is measured."""

import io
import json
import math
import pathlib
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from rmsd_jax.core.files import replace_text
from rmsd_jax.core.progress import Progress, duration, rss_gb
from rmsd_jax.training import log
from rmsd_jax.training.log import Writer, read


def steps(workdir):
  return [line["step"] for line in read(workdir)]


def events(workdir):
  """(step, tag, value) of every scalar in the TensorBoard files, and steps purged on restart."""
  scalars, purged = [], []
  for path in sorted((workdir / "tb").iterdir()):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], "little")
      body, data = data[12 : 12 + length], data[12 + length + 4 :]
      event = Event.FromString(body)
      scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
      if event.HasField("session_log"):
        purged.append(event.step)
  return scalars, purged


def test_lines_hold_step_time_and_values(tmp_path):
  with Writer(tmp_path) as writer:
    writer.write(1, {"loss": jnp.float32(0.5), "reward/mean": np.float64(2), "n": 3})
    line = json.loads((tmp_path / log.FILE).read_text())  # on disk before close
  assert line.pop("time") > 0
  assert line == {"step": 1, "loss": 0.5, "reward/mean": 2.0, "n": 3.0}


def test_tensorboard_gets_the_same_numbers(tmp_path):
  with Writer(tmp_path) as writer:
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": 0.25})
  assert events(tmp_path)[0] == [(1, "loss", 0.5), (2, "loss", 0.25)]


def test_values_that_are_not_finite_stay_visible_in_valid_json(tmp_path):
  with Writer(tmp_path) as writer:
    writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  json.loads((tmp_path / log.FILE).read_text(), parse_constant=refuse)
  (line,) = read(tmp_path)
  assert math.isnan(line["a"]) and line["b"] == math.inf and line["c"] == -math.inf


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
  with Writer(tmp_path) as writer:
    for step in range(1, 6):
      writer.write(step, {"loss": float(step)})
  with open(tmp_path / log.FILE, "a") as file:
    file.write('{"step": 6, "lo')
  assert steps(tmp_path) == [1, 2, 3, 4, 5]
  with Writer(tmp_path, resume_step=3) as writer:
    assert steps(tmp_path) == [1, 2, 3]
    writer.write(4, {"loss": 40.0})
  assert steps(tmp_path) == [1, 2, 3, 4]
  assert read(tmp_path)[-1]["loss"] == 40.0
  assert 4 in events(tmp_path)[1]  # TensorBoard is told to forget the steps from 4 on


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', "\xff\xfe", "[2]", '{"loss": 1.0}', ""])
def test_a_damaged_line_in_the_middle_is_left_out_and_said(tmp_path, torn, capsys):
  with Writer(tmp_path) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"loss": float(step)})
  lines = (tmp_path / log.FILE).read_bytes().splitlines(keepends=True)
  lines[1] = torn.encode("latin-1") + b"\n"
  (tmp_path / log.FILE).write_bytes(b"".join(lines))
  assert steps(tmp_path) == [1, 3]
  with Writer(tmp_path, resume_step=3) as writer:
    writer.write(4, {"loss": 4.0})
  (said, again) = capsys.readouterr().err.splitlines()
  assert said == again and "line 2 of the metrics cannot be read and is left out (1 in all)" in said
  assert said.endswith("; no step is whole")
  assert steps(tmp_path) == [1, 3, 4] and capsys.readouterr().err == ""


def test_other_processes_write_nothing(tmp_path):
  with Writer(tmp_path / "run", write=False) as writer:
    writer.write(1, {"loss": 1.0})
  assert not (tmp_path / "run").exists()
  assert read(tmp_path / "run") == []


@pytest.mark.parametrize("name", ["step", "time"])
def test_reserved_names_are_refused(tmp_path, name):
  with Writer(tmp_path) as writer, pytest.raises(ValueError, match=name):
    writer.write(1, {name: 1.0})


class Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(log.time, "monotonic", lambda: self.now)


def test_progress_prints_rate_and_time_left_at_intervals(monkeypatch):
  clock, out = Clock(monkeypatch), io.StringIO()
  with Progress(100, "stage 1", start=20, interval=30, stream=out) as progress:
    for _ in range(60):  # one unit a second
      clock.now += 1
      progress.update(note="loss 1.5")
    clock.now += 10
    progress.update(20)
  assert out.getvalue().splitlines() == [
    "stage 1: 50/100, 1/s, 50s left, loss 1.5",
    "stage 1: 80/100, 1/s, 20s left, loss 1.5",
    "stage 1: 100/100, 2/s",
  ]


def test_progress_forgets_a_slow_start(monkeypatch):
  clock, out = Clock(monkeypatch), io.StringIO()
  progress = Progress(10, "steps", interval=5, stream=out)
  for seconds in (60, 5, 5):
    clock.now += seconds
    progress.update()
  assert out.getvalue().splitlines()[-1] == "steps: 3/10, 0.2/s, 35s left"


def test_progress_is_a_bar_on_a_terminal():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  out = Terminal()
  with Progress(2, "steps", stream=out) as progress:
    progress.update(2, note="loss 1.5")
  assert "steps: 100%" in out.getvalue() and "loss 1.5" in out.getvalue()


def test_progress_is_silent_elsewhere():
  out = io.StringIO()
  with Progress(2, "steps", write=False, stream=out) as progress:
    progress.update(2)
  assert out.getvalue() == ""


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (7500, "2h05m"), (math.inf, "?")],
)
def test_duration(seconds, text):
  assert duration(seconds) == text


def test_memory_counts_own_peak_and_children():
  block = np.ones(2**25)  # 256 MiB
  del block
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  assert own > 0.25
  code = "x = b'1' * 2**28; print(flush=True); input()"
  child = subprocess.Popen(
    [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
  )
  child.stdout.readline()
  assert rss_gb() >= own + 0.25
  child.communicate(b"\n")


def test_replace_text_leaves_nothing_behind(tmp_path):
  target = tmp_path / "a.json"
  replace_text(target, "old")
  replace_text(target, "new")
  assert target.read_text() == "new"
  assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_bucket_gets_the_whole_file_each_time(tmp_path, monkeypatch):
  """Buckets cannot append. A local folder stands in for one: its path is rewritten, not opened."""
  monkeypatch.setattr(log.epath, "Path", lambda path: pathlib.Path(str(path).removeprefix("gs://")))
  bucket = f"gs://{tmp_path}/run"
  for begin, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # the second process resumes at step 2
    with Writer(bucket, begin) as writer:
      for step in steps:
        writer.write(step, {"loss": begin + step / 10})
        assert read(bucket)[-1]["step"] == step
  assert [line["loss"] for line in read(bucket)] == [0.1, 0.2, 2.3, 2.4]
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_log_does_not_wait_for_torch_which_can_be_imported_afterwards(tmp_path):
  code = f"""
import sys
from rmsd_jax.training.log import Writer
with Writer({str(tmp_path)!r}) as writer:
  writer.write(1, {{"loss": 0.5}})
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
with Writer({str(tmp_path / "again")!r}):
  assert sys.modules["torch"] is torch
"""
  subprocess.run([sys.executable, "-c", code], check=True)
  assert events(tmp_path)[0] == [(1, "loss", 0.5)]

"""Where a run begins, ends, is refused or interrupted, and what it says then."""

import contextlib
import functools
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest
import tiny_run

from rmsd_jax import train_rl, train_sft
from rmsd_jax.core.errors import EXIT_INTERRUPTED, Interrupted, UserError, outcome
from rmsd_jax.training import checkpoint, loop

STATE = {"student": {"w": jnp.zeros(2)}, "frozen": {"v": jnp.ones(2)}}


def steps_of(monkeypatch, workdir, act=lambda step: None, **changes):
  """A run without a model; `act` is called in each step."""
  on = tiny_run.mesh()
  monkeypatch.setattr(loop.sharding, "make_mesh", lambda **_: on)
  c = tiny_run.config("sft", save_every=100, **changes)
  with loop.Loop(c, str(workdir), stage=1) as made:
    for step, _ in made.batches():
      act(step)
      made.after(step, STATE, {"loss": 1.0}, note="loss")


def test_a_run_says_where_it_begins_goes_on_and_ends(monkeypatch, tmp_path, capsys):
  def act(step):
    if step == 2:
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(
    Interrupted, match="ended by Ctrl-C: step 3 is saved; the same command"
  ) as end:
    steps_of(monkeypatch, tmp_path, act)
  assert outcome(end.value)[1] == EXIT_INTERRUPTED
  said = capsys.readouterr()
  assert f"stage 1 in {tmp_path} begins, 6 steps; 1 x cpu, mesh data=1 fsdp=1 tensor=1" in said.out
  assert "Ctrl-C again ends without saving" in said.err and "done" not in said.out
  assert checkpoint.find_step(str(tmp_path)) == 3
  steps_of(monkeypatch, tmp_path)
  said = capsys.readouterr().out
  assert f"stage 1 in {tmp_path} goes on from step 3 of 6; " in said
  assert said.splitlines()[-1] == (
    f"stage 1 done, 6 steps: checkpoints and metrics.jsonl in {tmp_path}; next: python -m "
    f"rmsd_jax.evaluate --workdir={tmp_path} --config=.., then python -m rmsd_jax.report {tmp_path}"
  )
  steps_of(monkeypatch, tmp_path)
  further = f"another --workdir with --config.init_from={tmp_path}"
  assert f"is finished, step 6 of 6; to go on, begin in {further}" in capsys.readouterr().out
  with pytest.raises(
    UserError, match="steps 6 -> 9; undo the change or use a new workdir, or go on"
  ):
    steps_of(monkeypatch, tmp_path, steps=9)


def test_an_interrupt_before_the_first_step_is_not_lost_where_a_library_swallows_it(
  monkeypatch, tmp_path
):
  on = tiny_run.mesh()
  monkeypatch.setattr(loop.sharding, "make_mesh", lambda **_: on)
  with pytest.raises(KeyboardInterrupt):
    with loop.Loop(tiny_run.config("sft"), str(tmp_path), stage=1) as made:
      with contextlib.suppress(KeyboardInterrupt):  # as a restore may
        os.kill(os.getpid(), signal.SIGINT)
      next(made.batches())
  steps_of(monkeypatch, tmp_path)  # another run of this process knows nothing of it


def test_a_second_interrupt_ends_at_once(monkeypatch, tmp_path):
  def act(step):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(KeyboardInterrupt):
    steps_of(monkeypatch, tmp_path, act)
  assert not list((tmp_path / "checkpoints").glob("*"))
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_before_the_first_step_ends_at_once(monkeypatch, tmp_path):
  on = tiny_run.mesh()
  monkeypatch.setattr(loop.sharding, "make_mesh", lambda **_: on)
  with pytest.raises(KeyboardInterrupt), loop.Loop(tiny_run.config("sft"), str(tmp_path), stage=1):
    os.kill(os.getpid(), signal.SIGINT)  # while weights are loaded


@pytest.mark.parametrize("module", [train_sft, train_rl], ids=["sft", "rl"])
@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"data__tasks": ("ocrr",)}, "the pool has no task 'ocrr'; it has"),
    ({"batch": 64}, "has 48 rows, fewer than a batch of 64, and no larger bucket takes them"),
    ({"data__responses": 9}, "data.responses=9, but the pool has 4 responses per prompt"),
    ({"data__workers": -1}, "-1 workers and 2 batches ahead; needed: >= 0 and >= 1"),
    ({"samples__every": -1}, "samples.every=-1; give 0 or more"),
  ],
  ids=["task", "rows", "responses", "workers", "samples"],
)
def test_what_can_be_refused_is_refused_before_weights_are_loaded(
  monkeypatch, tmp_path, module, changes, words
):
  monkeypatch.setattr(module.state_lib, "load_student", None)
  config = functools.partial(tiny_run.config, "sft" if module is train_sft else "rl")
  with pytest.raises(UserError, match=words):
    tiny_run.run(monkeypatch, module, config(**changes), tmp_path)


def test_nothing_is_said_of_a_missing_torch():
  done = subprocess.run(
    [sys.executable, "-c", "import rmsd_jax.data.chat"],
    env=os.environ | {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0", "USE_FLAX": "0"},
    cwd=tiny_run.ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout + done.stderr == ""

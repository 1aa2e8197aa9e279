"""A disk that is full or read-only, a folder or a worker that is gone: one line, and it goes on."""

import contextlib
import errno
import os
import shutil

import psutil
import pytest
import tiny_run

from rmsd_jax import cli, train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import loader, store
from rmsd_jax.training import checkpoint, log, loop, stored


def broken(monkeypatch, workdir, act, at=4, saving=False):
  """Trains until `act(loop)`, called behind step `at`, has broken something."""
  after = loop.Loop.after

  def breaks(self, step, *more, **words):
    if step + 1 == at:
      if not saving:  # the save of step 2 is whole before anything breaks
        self._checkpoints.wait()
      act(self)
    after(self, step, *more, **words)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, "after", breaks)
    tiny_run.run(patch, train_sft, tiny_run.config("sft"), workdir)


def goes_on(monkeypatch, workdir):
  """The same command ends as if nothing had happened."""
  tiny_run.run(monkeypatch, train_sft, tiny_run.config("sft"), workdir)
  assert [line["step"] for line in log.read(str(workdir))] == [1, 2, 3, 4, 5, 6]
  assert stored.whole_steps(stored.folder_of(str(workdir)))[-1] == 6


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_a_save_is_one_line(number, tmp_path, monkeypatch, caplog, capfd):
  def fails(*_):
    raise OSError(number, os.strerror(number))

  with monkeypatch.context() as patch:
    act = lambda _: patch.setattr("rmsd_jax.core.digests.write_list", fails)
    words = f"cannot be written to .*{os.strerror(number)}; make room or mend the folder"
    with pytest.raises(UserError, match=words):
      broken(monkeypatch, tmp_path, act)
  assert stored.whole_steps(stored.folder_of(str(tmp_path))) == [2]
  assert not [record for record in caplog.records if record.exc_info]
  assert "Traceback" not in capfd.readouterr().err
  goes_on(monkeypatch, tmp_path)


def test_a_full_disk_under_the_log_is_one_line(tmp_path, monkeypatch, capsys):
  def fill(running):
    running._writer._file.close()
    running._writer._file = open("/dev/full", "w")

  with pytest.raises(SystemExit) as ended:
    cli.run(lambda: broken(monkeypatch, tmp_path, fill))
  assert ended.value.code == 2
  last = capsys.readouterr().err.rstrip().split("\n")[-1]
  assert last == "error: [Errno 28] No space left on device; make room or mend the folder"
  goes_on(monkeypatch, tmp_path)


def test_a_removed_folder_is_one_line_and_is_not_made_anew(tmp_path, monkeypatch):
  work = tmp_path / "run"
  with pytest.raises(UserError, match="is gone: the run's folder was removed or moved, and step 4"):
    broken(monkeypatch, work, lambda _: os.rename(work, tmp_path / "moved"))
  assert not work.exists()
  shutil.move(tmp_path / "moved", work)
  goes_on(monkeypatch, work)


def made_anew(work, moved):
  """The run's folder is moved, and another of its name is there, as if Orbax had made it."""
  os.rename(work, moved)
  shutil.copytree(moved, work)


def test_a_folder_that_was_made_anew_is_one_line(tmp_path, monkeypatch):
  work = tmp_path / "run"
  with pytest.raises(UserError, match="is gone: the run's folder was removed or moved, and step 4"):
    broken(monkeypatch, work, lambda _: made_anew(work, tmp_path / "moved"))
  assert stored.whole_steps(stored.folder_of(str(work))) == [2]


def test_a_folder_that_was_made_anew_while_a_step_was_saved_is_one_line(tmp_path, monkeypatch):
  work, seal = tmp_path / "run", checkpoint.Checkpoints._seal

  def seals(self):
    if self._saving == 4:
      made_anew(work, tmp_path / "moved")
    seal(self)

  monkeypatch.setattr(checkpoint.Checkpoints, "_seal", seals)
  with pytest.raises(UserError, match="is gone: the run's folder was removed or moved, and step 4"):
    broken(monkeypatch, work, lambda _: None)
  assert stored.whole_steps(stored.folder_of(str(work))) == [2]


def test_a_folder_that_goes_while_a_step_is_saved_is_one_line(tmp_path, monkeypatch):
  work = tmp_path / "run"
  with pytest.raises(UserError, match="is gone: |cannot be written to .*; make room or mend"):
    broken(monkeypatch, work, lambda _: os.rename(work, tmp_path / "moved"), at=3, saving=True)
  shutil.rmtree(work, ignore_errors=True)
  shutil.move(tmp_path / "moved", work)
  goes_on(monkeypatch, work)


def test_a_killed_worker_is_one_line():
  pool = store.open_pool(tiny_run.pool_folder(), "train")
  batches = loader.make(
    pool, batch_size=8, seed=0, k=4, start_step=0, end_step=1_000, num_workers=1, prefetch=1
  )
  next(batches)
  for child in psutil.Process().children(recursive=True):
    with contextlib.suppress(psutil.NoSuchProcess):  # an earlier test's, ended or not yet reaped
      if "spawn_main" in " ".join(child.cmdline()):
        child.kill()
  with pytest.raises(UserError, match="a data worker is gone .*exit code -9.*the same command"):
    for _ in batches:
      pass

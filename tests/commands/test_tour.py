"""docs/tour.ipynb: every cell runs, from a pool to a trained student that answers."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour.ipynb"


def test_the_tour_runs_from_a_pool_to_a_student_that_answers(tmp_path, monkeypatch):
  monkeypatch.setenv("RMSD_TOUR", str(tmp_path / "tour"))
  monkeypatch.setenv("RMSD_TOUR_STEPS", "20")
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
  monkeypatch.setenv("XLA_FLAGS", "")  # one device, as its reader has
  tour = nbformat.read(TOUR, as_version=4)
  nbformat.validate(tour)
  client = NotebookClient(tour, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
  client.execute()  # raises where a cell does
  said = ["".join(o.get("text", "") for o in c.get("outputs", [])) for c in tour.cells]
  assert "sd_within" in "".join(said) and "stage 2 done, 4 steps" in "".join(said)
  assert said[-2].count("quality ") == 6
  assert (tmp_path / "tour" / "rl" / "checkpoints").is_dir()


def test_the_tour_is_kept_as_it_was_run():
  """Outputs are in the file, so that it can be read where it is not run; and no error is."""
  tour = nbformat.read(TOUR, as_version=4)
  codes = [cell for cell in tour.cells if cell.cell_type == "code"]
  assert all(cell.execution_count for cell in codes)
  outputs = [out for cell in codes for out in cell.outputs]
  assert not [out for out in outputs if out.output_type == "error"]
  assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
  assert str(ROOT) not in TOUR.read_text()

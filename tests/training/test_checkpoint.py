"""A saved state returns bit for bit on any mesh, a half-written or damaged one never."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rmsd_jax.core.errors import UserError
from rmsd_jax.training import stored
from rmsd_jax.training.checkpoint import Checkpoints, restore_item
from rmsd_jax.training.stored import find_step

ROOT = Path(__file__).parents[2]
REPLICATED = P()


def mesh(rows, columns):
  return jax.sharding.Mesh(np.array(jax.devices()).reshape(rows, columns), ("fsdp", "tensor"))


def make_state(mesh, seed=0):
  rng = np.random.default_rng(seed)
  params = {
    "up": {"w": rng.normal(size=(16, 32)).astype(np.float32)},
    "norm": rng.normal(size=(32,)).astype(np.float32),
  }
  specs = {"up": {"w": P("fsdp", "tensor")}, "norm": P(None)}
  params = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs)
  return {
    "student": params,
    "optim": optax.adamw(1e-3, mu_dtype=jnp.bfloat16).init(params),
    "step": jax.device_put(jnp.int32(seed), NamedSharding(mesh, P())),
    "key": jax.device_put(jax.random.key(seed), NamedSharding(mesh, P())),
  }


def make_abstract(state, mesh, spec=REPLICATED):
  """Shapes of `state`, matrices laid out by `spec` on `mesh`, the rest replicated."""

  def place(x):
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec if x.ndim == 2 else P())
    )

  return jax.tree.map(place, state)


def bits(x):
  return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(bits(a), bits(b))


def save_steps(workdir, steps, **options):
  with Checkpoints(workdir, **options) as checkpoints:
    for step in steps:
      checkpoints.save(step, {"student": {"w": jnp.full((4,), step)}})


VECTOR = {"w": jax.ShapeDtypeStruct((4,), jnp.int32, sharding=NamedSharding(mesh(8, 1), P()))}


@pytest.mark.parametrize("spec", [P("tensor", "fsdp"), P(None, ("fsdp", "tensor")), P()])
def test_state_moves_to_another_mesh_bit_for_bit(tmp_path, spec):
  state = make_state(mesh(4, 2), seed=7)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(7, state)
  abstract = make_abstract(state, mesh(2, 4), spec)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 7
    restored = checkpoints.restore(abstract)
  assert_same(restored, state)
  weight = restored["student"]["up"]["w"]
  assert weight.sharding.is_equivalent_to(NamedSharding(mesh(2, 4), spec), 2)
  assert len(weight.addressable_shards) == 8


def test_arrays_may_be_donated_right_after_save(tmp_path):
  state = make_state(mesh(8, 1))
  wanted = jax.tree.map(bits, state["student"])
  overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"student": state["student"]})
    jax.block_until_ready(overwrite(state["student"]))
    restored = checkpoints.restore(
      {"student": make_abstract(make_state(mesh(8, 1))["student"], mesh(8, 1))}
    )
  assert_same(jax.tree.map(bits, restored["student"]), wanted)


def test_one_entry_is_restored_without_the_others(tmp_path):
  state = make_state(mesh(4, 2))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state)
  for other in ("optim", "key"):
    for file in (tmp_path / "checkpoints" / "3" / other).rglob("*"):
      if file.is_file() and file.name != "commit_success.txt":
        file.write_bytes(b"damaged")
  abstract = make_abstract(state, mesh(1, 8), P(None, "tensor"))
  assert_same(restore_item(tmp_path, "student", abstract["student"]), state["student"])
  assert int(restore_item(tmp_path, "step", abstract["step"], step="latest")) == 0


def test_an_entry_without_arrays_comes_back_empty(tmp_path, capsys):
  """As "frozen" where all weights learn; Orbax refuses to write it."""
  state = {"student": make_state(mesh(4, 2))["student"], "frozen": {}}
  abstract = {"student": make_abstract(state["student"], mesh(4, 2)), "frozen": {}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    restored = checkpoints.restore(abstract)
  assert restored["frozen"] == {} == restore_item(tmp_path, "frozen", {})
  assert_same(restored["student"], state["student"])
  assert capsys.readouterr().out == ""


def test_dtype_follows_the_abstract_state(tmp_path):
  state = make_state(mesh(4, 2))["student"]
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"student": state})
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
  assert_same(restore_item(tmp_path, "student", make_abstract(half, mesh(2, 4))), half)


def test_latest_steps_and_the_best_are_kept(tmp_path):
  with Checkpoints(tmp_path, keep=2, best_metric="quality") as checkpoints:
    for step, quality in enumerate([0.1, 0.9, 0.3, float("nan"), 0.4, 0.2]):
      metrics = {"quality": quality, "loss": 1.0}
      checkpoints.save(step, {"student": {"w": jnp.full((4,), step)}}, metrics)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 4, 5]
  assert find_step(tmp_path, "best") == 1
  assert find_step(tmp_path, "latest") == find_step(tmp_path) == 5
  assert find_step(tmp_path, "4") == find_step(tmp_path, 4) == 4
  best = restore_item(tmp_path, "student", VECTOR, step="best")
  np.testing.assert_array_equal(best["w"], [1, 1, 1, 1])


def test_the_best_may_be_the_smallest_and_a_step_without_the_metric_is_saved(tmp_path, capsys):
  with Checkpoints(tmp_path, keep=1, best_metric="-loss") as checkpoints:
    for step, metrics in enumerate([{"loss": 2.0}, {"loss": 1.0}, {"norm": 0.0}, {"loss": 1.5}]):
      checkpoints.save(step, {"student": {"w": jnp.full((4,), step)}}, metrics)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3] and find_step(tmp_path, "best") == 1
  assert (
    capsys.readouterr().out == "this step cannot become the best: it has no 'loss', only norm\n"
  )


def test_a_run_without_a_best_step_is_saved_without_a_word(tmp_path, caplog):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(mesh(8, 1)), metrics={"loss": 1.0})
  assert not caplog.records


def test_saving_a_step_again_changes_nothing(tmp_path):
  save_steps(tmp_path, [1, 2, 2])
  save_steps(tmp_path, [2, 3])
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [1, 2, 3]
    with pytest.raises(UserError, match="step 2 would be saved although step 3 is there"):
      checkpoints.save(2, {"student": {"w": jnp.zeros(4)}})


KILLED = """
import os, signal, sys
import numpy as np
from rmsd_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
state = {"student": {f"w{i}": np.random.rand(500_000) for i in range(20)}}
checkpoints.save(1, state)
checkpoints.wait()
checkpoints.save(2, state)
print(checkpoints.steps())
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_save_cut_short_by_a_kill_is_not_accepted(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", KILLED, str(tmp_path)],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert done.stdout == "[1]\n"
  left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert len(left) == 2 and "2" not in left  # the kill came in the middle of the write
  assert find_step(tmp_path) == 1
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [1] and checkpoints.latest() == 1
    checkpoints.save(2, {"student": {"w": jnp.zeros(4)}})
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


MISSING = {
  "commit_success.txt": "commit_success.txt is missing",
  "student/commit_success.txt": "student/commit_success.txt is missing",
  "student": "it has no entries",
  "SHA256SUMS": "SHA256SUMS is missing",
  "student/manifest.ocdbt": "student/manifest.ocdbt is missing",
  "student/d": "student/d/[0-9a-f]+ is missing",
  "_CHECKPOINT_METADATA": "_CHECKPOINT_METADATA is missing",
}


def lose(folder, missing):
  gone = folder / missing
  shutil.rmtree(gone) if gone.is_dir() else gone.unlink()


@pytest.mark.parametrize("missing", MISSING)
def test_a_step_copied_in_part_is_not_read_and_put_away(tmp_path, missing, capsys):
  save_steps(tmp_path, [1, 2])
  lose(tmp_path / "checkpoints" / "2", missing)
  assert find_step(tmp_path) == 1
  line = rf"checkpoint 2 of .* is not whole: {MISSING[missing]}; the newest whole step is 1\n"
  assert re.fullmatch(line, capsys.readouterr().out)
  with pytest.raises(UserError, match=rf"not hold step 2 whole \({MISSING[missing]}\); present: s"):
    find_step(tmp_path, 2)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_whole() == 1 and checkpoints.steps() == [1]
    line = rf"checkpoint 2 is damaged: {MISSING[missing]}; it is in .*/damaged/2 now, and the "
    assert re.fullmatch(f"{line}newest whole step is 1\n", capsys.readouterr().out)
    checkpoints.save(2, {"student": {"w": jnp.full((4,), 2)}})
  assert (tmp_path / "damaged" / "2").is_dir() and find_step(tmp_path) == 2


@pytest.mark.parametrize("missing", MISSING)
def test_what_a_deletion_left_is_removed_when_a_newer_step_is_whole(tmp_path, missing, capsys):
  save_steps(tmp_path, [1, 2, 3])
  lose(tmp_path / "checkpoints" / "1", missing)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_whole() == 3
  said = rf"removed what was left of checkpoint 1: {MISSING[missing]}\n"
  assert re.fullmatch(said, capsys.readouterr().out)
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_run_whose_steps_are_all_torn_does_not_begin_anew(tmp_path):
  save_steps(tmp_path, [1, 2])
  for step in "12":
    lose(tmp_path / "checkpoints" / step, "student/manifest.ocdbt")
  with pytest.raises(
    UserError, match=r"checkpoints/1 is not a whole checkpoint \(student/man.*no o"
  ):
    Checkpoints(tmp_path)


def flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def test_no_flipped_bit_is_restored(tmp_path, capsys):
  """60 bits, spread over all files that a restore reads, and over the list of digests."""
  rng = np.random.default_rng(0)
  state = make_state(mesh(4, 2), seed=7)
  with Checkpoints(tmp_path) as checkpoints:
    for step in (7, 8):
      checkpoints.save(step, state)
  abstract, folder = make_abstract(state, mesh(2, 4)), tmp_path / "checkpoints" / "8"
  unread = {"commit_success.txt", "_CHECKPOINT_METADATA"}  # of the step; Orbax writes them last
  paths = [p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in unread]
  copy = tmp_path / "copy"
  for number in range(60):
    path = paths[number % len(paths)]
    entry = path.relative_to(folder).parts[0]
    entries = [entry] if entry in state else list(state)
    shutil.copy(path, copy)
    flip(path, int(rng.integers(8 * path.stat().st_size)))
    words = "not hold step 8 whole|checkpoint 8 of .* is damaged: .*the newest whole step is 7"
    with pytest.raises(UserError, match=words):
      for name in entries:
        restore_item(tmp_path, name, abstract[name], 8)
    shutil.copy(copy, path)
  flip(folder / "student" / "manifest.ocdbt", 99)
  capsys.readouterr()
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_whole() == 7
    assert_same(checkpoints.restore(abstract), state)
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith("checkpoint 8 is damaged: student/manifest.ocdbt differs from its digest;")
  assert line.endswith("and the newest whole step is 7")


def test_a_run_whose_steps_are_all_damaged_does_not_begin_anew(tmp_path):
  save_steps(tmp_path, [1, 2])
  for step in "12":
    flip(tmp_path / "checkpoints" / step / "student" / "_sharding", 9)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(UserError, match="checkpoint 1 .* is damaged: .*; no other step is whole"):
      checkpoints.latest_whole()


def test_steps_without_digests_are_read_and_their_damage_is_one_line(tmp_path, capsys):
  save_steps(tmp_path, [1, 2])
  for step in "12":
    (tmp_path / "checkpoints" / step / "SHA256SUMS").unlink()
    about = tmp_path / "checkpoints" / step / "_CHECKPOINT_METADATA"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"custom_metadata": {}}))
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_whole() == 2
    np.testing.assert_array_equal(checkpoints.restore({"student": VECTOR})["student"]["w"], [2] * 4)
  assert "checkpoint 2 of" in (said := capsys.readouterr().out) and "before digests" in said
  for path in (tmp_path / "checkpoints" / "2" / "student").rglob("*"):
    if path.parent.name == "d" or path.name == "manifest.ocdbt":
      path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(UserError, match="student cannot be read, it is damaged: .*; give another st"):
    restore_item(tmp_path, "student", VECTOR)


def test_missing_steps_and_entries_are_named_with_those_present(tmp_path):
  with pytest.raises(UserError, match="does not hold any step; no step is present"):
    find_step(tmp_path)
  save_steps(tmp_path, [1, 2])
  with pytest.raises(UserError, match="does not hold step 5; present: steps 1, 2"):
    restore_item(tmp_path, "student", VECTOR, step=5)
  with pytest.raises(UserError, match="no checkpoint has a score; present: steps 1, 2"):
    find_step(tmp_path, "best")
  with pytest.raises(UserError, match="'newest' is neither"):
    find_step(tmp_path, "newest")
  with pytest.raises(UserError, match="has no entry 'teacher'; it holds student"):
    restore_item(tmp_path, "teacher", VECTOR)
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="step 9"):
    checkpoints.restore({"student": VECTOR}, step=9)


def test_every_difference_to_the_model_is_in_one_message(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"student": {"a": jnp.zeros(2), "b": {"c": jnp.zeros((2, 3))}}})
  leaf = VECTOR["w"]
  with pytest.raises(UserError) as caught:
    restore_item(tmp_path, "student", {"b": {"c": leaf, "d": leaf}})
  for words in ("a is not expected", "b/d is missing", "b/c has shape (2, 3), expected (4,)"):
    assert words in str(caught.value)


def test_the_folder_of_a_run_in_a_bucket_is_in_the_bucket(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(stored.folder_of("gs://bucket/runs/1")) == "gs://bucket/runs/1/checkpoints"
  assert str(stored.folder_of("runs/1")) == str(tmp_path / "runs/1/checkpoints")


def test_misuse_is_refused(tmp_path):
  with pytest.raises(UserError, match="0 checkpoints to keep"):
    Checkpoints(tmp_path, keep=0)
  with pytest.raises(UserError, match="would keep the worst step; give -probe/loss"):
    Checkpoints(tmp_path, best_metric="probe/loss")
  with Checkpoints(tmp_path, best_metric="quality") as checkpoints:
    with pytest.raises(ValueError, match="metrics"):
      checkpoints.save(1, {"metrics": jnp.zeros(4)})
    checkpoints.save(1, {"student": jnp.zeros(4)})
    with pytest.raises(ValueError, match="sharding"):
      checkpoints.restore({"student": jax.ShapeDtypeStruct((4,), jnp.float32)})

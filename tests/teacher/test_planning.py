"""The plan of a pool is what the builder then makes of it."""

import functools
import json

import numpy as np
import pytest
import tiny_run
from clips import write_clip

from rmsd_jax import pool as command
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.progress import Progress
from rmsd_jax.data import media, store
from rmsd_jax.data.processor import Processor
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import planning


@pytest.fixture(scope="module")
def files():
  tiny_run.pool_folder()  # draws the clips
  return [tiny_run.HERE / "raw" / name for name in ("pool.jsonl", "test.jsonl")]


def planned(files, **options):
  anything = (1, 1_000_000_000)
  options = {"video_pixels": anything, "image_pixels": anything} | options
  processor = Processor(tiny_run.model_folder(), sampling=media.Sampling(), **options)
  return planning.plan_pool(
    files, processor, Rules(), functools.partial(Progress, label="x", write=False)
  )


def test_every_record_needs_what_its_row_has(files):
  found = planned(files)
  rows = []
  for split in ("train", "test"):
    opened = store.open_pool(tiny_run.pool_folder(), split)
    rows += [opened[i] for i in range(len(opened))]
  got = sorted(map(tuple, found.needs_N4.tolist()))
  assert got == sorted(
    (
      len(row.ids_P),
      max((int(n) for n, r in zip(row.tokens_K, row.finish_reasons, strict=True) if r == "stop"),
          default=0),
      len(row.grid_F2),
      int(row.grid_F2.prod(1).max()),
    )
    for row in rows
  )  # fmt: skip
  assert sum(found.media.values()) == len(rows)
  kinds = {(kind, frames, height, width) for kind, frames, height, width, _ in found.media}
  assert ("video", 12, 48, 48) in kinds and ("image", 1, 48, 48) in kinds


def test_the_suggested_bucket_holds_every_record_and_little_more(files):
  found = planned(files)
  whole = np.array(planning.suggested(found.needs_N4))
  assert (found.needs_N4 <= whole).all()
  assert (whole - found.needs_N4.max(0) < [128, 128, 1, 1]).all()
  half = np.array(planning.suggested(found.needs_N4, 0.5))
  assert (half <= whole).all() and (found.needs_N4 <= half).mean(0).min() >= 0.5
  found.needs_N4[0, 1] = 900  # T limits what the student may write, so it is the same in both
  shares = [planning.suggested(found.needs_N4, share).response for share in (0.5, 1.0)]
  assert shares == [1024, 1024]


def test_fewer_pixels_cost_fewer_tokens(files):
  small = planned(files, video_pixels=(256, 12 * 512)).media
  most = lambda media: max(tokens for kind, *_, tokens in media if kind == "video")
  assert most(small) < most(planned(files).media)


def test_the_command_prints_sizes_and_buckets_and_names_what_is_unusable(tmp_path, capsys):
  write_clip(tmp_path / "a.mp4", frames=9)
  record = {
    "id": "a",
    "task": "multiple_choice",
    "question": "?",
    "options": ["A. x", "B. y"],
    "answer": "A",
    "media": [{"type": "video", "path": "a.mp4"}],
    "responses": [{"text": "<think>x</think><answer>A</answer>"}],
  }
  missing = record | {"id": "b", "media": [{"type": "video", "path": "no.mp4"}]}
  marker = record | {"id": "c", "responses": [{"text": "<|im_end|>"}]}
  lines = [json.dumps(record), json.dumps(missing), "{", json.dumps(marker)]
  (tmp_path / "pool.jsonl").write_text("\n".join(lines) + "\n")
  arguments = ["--jsonl", str(tmp_path / "pool.jsonl"), "--tokenizer", str(tiny_run.model_folder())]
  command.main(["plan", *arguments])
  printed = capsys.readouterr().out
  assert "1 records fit --buckets" in printed and "no such file" in printed
  assert "line 3" in printed and "control token" in printed
  (tmp_path / "pool.jsonl").write_text(json.dumps(record | {"responses": []}) + "\n")
  command.main(["plan", *arguments])
  printed = capsys.readouterr().out
  assert ",T," in printed and "no responses: choose T" in printed
  assert "pictures: at most 3.69e-05 GB" in printed  # 4 x 48 x 64 pixels x 3 bytes
  with pytest.raises(UserError, match="no record is usable: record 'a': took more than 0 s"):
    command.main(["plan", *arguments, "--time-limit=0"])
  (tmp_path / "pool.jsonl").write_text(json.dumps(missing) + "\n")
  with pytest.raises(UserError, match="no record is usable: .*no such file"):
    command.main(["plan", *arguments])

"""What is asked and what it will cost: splits, replaced clips, the dry run; no server is needed."""

import json
import re

import numpy as np
import PIL.Image
import pytest
from chat_server import Bar, Teacher
from clips import write_noise

from rmsd_jax import pool as command
from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import collector, request
from rmsd_jax.teacher.endpoint import Endpoint, Patience
from rmsd_jax.teacher.request import Asking

ASKING = Asking("m", "t", frames=3, max_side=64, max_tokens=100)


@pytest.fixture
def teacher():
  with Teacher(lambda question, n: {}) as server:
    yield server
    server.shutdown()


def put(folder, *values):
  base = {"task": "ocr", "question": "What is written?", "answer": "B"}
  lines = [json.dumps(base | {"id": str(i)} | value) for i, value in enumerate(values)]
  (folder / "prompts.jsonl").write_text("\n".join(lines))


def clip(path="a.mp4", kind="video"):
  return {"media": [{"type": kind, "path": path}]}


def collect(folder, teacher, asking=ASKING, **changes):
  there = Endpoint(teacher.url, "key", Patience(timeout=20, backoff=0.01))
  given = {"progress": Bar, "samples": 2, **changes}
  files = [folder / "prompts.jsonl"], folder / "pool.jsonl"
  return collector.collect(*files, asking, Rules(), there, **given)


def counts(folder):
  lines = map(json.loads, (folder / "pool.jsonl").read_text().splitlines())
  return [len(line["responses"]) for line in lines]


def run(folder, teacher, *flags):
  given = ["--prompts", folder / "prompts.jsonl", "--out", folder / "pool.jsonl", "--model=m"]
  line = ["collect", *given, f"--base-url={teacher.url}", "--teacher=t", "--samples=2", *flags]
  command.main(list(map(str, line)))


def test_held_out_prompts_are_not_paid_for_unless_asked(tmp_path, teacher, capsys):
  put(tmp_path, {}, {"split": "test"}, {"split": "train"})
  job = collect(tmp_path, teacher)
  assert counts(tmp_path) == [2, 0, 2] and len(teacher.requests) == 4
  assert job.held == {"1"}
  same = ("--frames=3", "--max-side=64", "--max-tokens=100")
  run(tmp_path, teacher, "--dry-run", "--splits", "test", "train", *same)
  assert "2 requests to send, for 1 of the prompts" in capsys.readouterr().out
  collect(tmp_path, teacher, splits=("test", "train"))
  assert counts(tmp_path) == [2, 2, 2] and len(teacher.requests) == 6
  collect(tmp_path, teacher)  # what was once paid for is not left out
  assert counts(tmp_path) == [2, 2, 2] and len(teacher.requests) == 6


def test_the_words_of_a_prompt_are_asked_as_they_are(tmp_path, teacher):
  placed = {"before": "Look.", "text": "Read."}
  put(tmp_path, {"asked": {"text": "Read it."}}, {"asked": placed, "split": "test"})
  job = collect(tmp_path, teacher)
  sent = [request["messages"][0]["content"][-1]["text"] for request in teacher.requests]
  assert sent == ["Read it."] * 2
  assert counts(tmp_path) == [2, 0] and job.held == {"1"}  # what is held out is passed on
  put(tmp_path, {"asked": placed})
  with pytest.raises(UserError, match="can be built into a pool, but not be collected"):
    collect(tmp_path, teacher)


def test_held_out_prompts_are_told_and_no_others_are_an_error(tmp_path, teacher, capsys):
  put(tmp_path, {"split": "test"}, {})
  run(tmp_path, teacher, "--dry-run")
  assert "held-out prompts, passed on without being asked" in capsys.readouterr().out
  put(tmp_path, {"split": "test"}, {"split": "test"})
  with pytest.raises(UserError, match="all 2 prompts are held out .*give --splits train test"):
    collect(tmp_path, teacher)
  with pytest.raises(UserError, match="no prompt has its 2 responses yet"):
    put(tmp_path, {"split": "test"}, {})
    run(tmp_path, teacher, "--partial")
  assert not teacher.requests


def other_bytes(path, rng):
  path.write_bytes(path.read_bytes()[:-1] + b"\0")


def other_picture(path, rng):
  PIL.Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(path)


@pytest.mark.parametrize(
  ("name", "replace"),
  [("a.mp4", lambda path, rng: write_noise(path, rng)), ("a.mp4", other_bytes),
   ("b.png", other_picture)],
)  # fmt: skip
def test_a_replaced_file_is_noticed_before_anything_is_sent(tmp_path, teacher, name, replace):
  rng = np.random.default_rng(0)
  write_noise(tmp_path / "a.mp4", rng)
  other_picture(tmp_path / "b.png", rng)
  put(tmp_path, clip(), clip("b.png", "image"), {})
  collect(tmp_path, teacher)
  kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
  replace(tmp_path / name, rng)
  assert kept[tmp_path / name] != (tmp_path / name).read_bytes()
  id_ = "0" if name == "a.mp4" else "1"
  for samples in (2, 3):
    with pytest.raises(UserError, match=f"prompt '{id_}' is not what it was .*has other bytes"):
      collect(tmp_path, teacher, samples=samples)
  with pytest.raises(UserError, match=f"prompt '{id_}' is not what it was"):
    run(tmp_path, teacher, "--dry-run", "--frames=3", "--max-side=64", "--max-tokens=100")
  (tmp_path / name).write_bytes(kept[tmp_path / name])  # the time of its writing is not its content
  collect(tmp_path, teacher)
  (tmp_path / name).unlink()  # nor is it needed where all is answered
  collect(tmp_path, teacher)
  assert len(teacher.requests) == 6 and counts(tmp_path) == [2, 2, 2]


def test_the_digest_of_a_large_file_sees_its_ends_its_middle_and_its_size(tmp_path):
  record = request.Record("0", "ocr", "?", "x", media=(request.Media("video", "a.mp4"),))
  path, size = tmp_path / "a.mp4", 1 << 21
  found = set()
  for change in (None, 0, size // 2, size - 1, "longer"):
    data = bytearray(size)
    if isinstance(change, int):
      data[change : change + 2**20] = b"\1" * (len(data[change : change + 2**20]))
    path.write_bytes(data + b"\0" * (change == "longer"))
    found.add(request.media_digest(record, str(tmp_path)))
  assert len(found) == 5 and all(len(digest) == 16 for digest in found)
  path.unlink()
  assert request.media_digest(record, str(tmp_path)) == ""


def figures(text, label):
  line = next(line for line in text.splitlines() if line.startswith(label))
  return [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:tokens )?in\b", line)]


def test_the_dry_run_says_what_is_likely_by_the_sizes_of_the_media(tmp_path, teacher, capsys):
  write_noise(tmp_path / "a.mp4", np.random.default_rng(0))  # 12 frames of 48 x 48
  PIL.Image.new("RGB", (640, 320)).save(tmp_path / "b.png")
  put(tmp_path, clip(), clip("b.png", "image"), {"split": "test"})
  run(tmp_path, teacher, "--dry-run", "--frames=16")
  out = capsys.readouterr().out
  (most,), (likely,) = figures(out, "to come, at most"), figures(out, "to come, likely")
  # A token for 32 x 32 pixels, two around a picture: 2 x 2 tokens of 48 x 48, 8 x 16 of 256 x 512.
  pictures = 12 * (4 + 2 + 8) + 8 * 16 + 2
  assert 2 * pictures < likely < 2 * (pictures + 2 * 60) and most > 10 * likely
  assert "what comes out is known after the first answers" in out
  run(tmp_path, teacher, "--dry-run", "--frames=16", "--picture-tokens=130")
  (closer,) = figures(capsys.readouterr().out, "to come, at most")
  assert 2 * 17 * 130 < closer < 2 * (17 * 130 + 16 * 16 + 2 * 400)
  assert not teacher.requests


def test_after_the_first_answers_the_dry_run_goes_by_them(tmp_path, teacher, capsys):
  PIL.Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
  put(tmp_path, *[clip("b.png", "image")] * 10)
  teacher.usage = {"prompt_tokens": 90, "completion_tokens": 33}
  asking = Asking("m", "t")
  with pytest.raises(UserError, match="the budget is reached"):
    collect(tmp_path, teacher, asking, budget=request.Budget(tokens=6000), concurrency=1)
  paid = len(teacher.requests)
  assert paid > 1
  run(tmp_path, teacher, "--dry-run", "--price-in=1", "--price-out=10")
  out = capsys.readouterr().out
  left = 20 - paid
  assert f"({90 * left:,} in, {33 * left:,} out), as the {paid} answers so far" in out
  assert f"cost {(90 + 330) * left / 1e6:.2f}" in out


def test_picture_tokens_and_endings_may_change_between_runs(tmp_path, teacher):
  put(tmp_path, {})
  collect(tmp_path, teacher)
  collect(tmp_path, teacher, Asking(**{**vars(ASKING), "picture_tokens": 260}), samples=3)
  assert counts(tmp_path) == [3]
  with pytest.raises(UserError, match="--picture-tokens -1"):
    Asking("m", "t", picture_tokens=-1)

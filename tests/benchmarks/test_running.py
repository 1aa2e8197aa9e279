"""`benchmarks run`: from sets and models to cards and the table, and on where it was stopped."""

import csv
import json
import random

import benchmark_files
import drills
import jax
import pytest
import tiny_run

from rmsd_jax import evaluate, train_sft
from rmsd_jax.benchmarks import entries, model_names, preparing
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.core import sharding
from rmsd_jax.core.errors import UserError

SETS = ("longvideobench", "mathvista")
SMALL = {
  "max_tokens": 8,
  "video_min_pixels": 256,
  "video_max_pixels": 1_024,
  "image_min_pixels": 256,
  "image_max_pixels": 1_024,
}
FLAGS = (
  *(word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")),
  *("--workers", "1", "--config.batch=8", "--config.data.workers=0"),
  "--config.model.dtype=float32",
)


def write_sets(root, names):
  """SET=ROOT of small folders."""
  for name in names:
    benchmark_files.WRITERS[name](root / name)
  return [f"{name}={root / name}" for name in names]


def run(roots, models, out, *flags):
  """The command on one device, hardly optimised."""
  on = tiny_run.mesh()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh", lambda **sizes: on)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
      main(["run", *roots, "--models", *map(str, models), "--out", str(out), *FLAGS, *flags])
    finally:
      jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """Two sets, one with 2 and with 4 frames, by a plain Hugging Face folder: (roots, out)."""
  here = tmp_path_factory.mktemp("running")
  roots = write_sets(here / "sets", SETS)
  run(roots, [f"tiny={tiny_run.model_folder()}"], here / "out", "--frames", "2,4",
      "--export", "vlmevalkit")  # fmt: skip
  return roots, here / "out"


def cards_of(out):
  found = {path: json.loads(path.read_text("utf-8")) for path in out.rglob("card.json")}
  return {(c["set"], c["protocol"]["frames"]): c for c in found.values()}


def test_every_set_has_a_card_of_what_was_asked(done):
  roots, out = done
  cards = cards_of(out)
  assert cards.keys() == {("longvideobench", 2), ("longvideobench", 4), ("mathvista", 64)}
  for (set_, frames), card in cards.items():
    assert card["answered"] == card["items"] and card["missing"] == []
    assert card["differs"] == []  # decoding, frames, pixels and length are the protocol's
    assert {name: card["protocol"][name] for name in SMALL} == SMALL
    assert set(card["protocol"]["changed"]) >= {"max_tokens", "video_max_pixels"}
    assert ("frames" in card["protocol"]["changed"]) == (set_ == "longvideobench")
    pairs = card["clips"]["frame_pairs"]
    assert (pairs["least"], pairs["most"]) == ((1, 1) if frames != 4 else (2, 2))
    assert card["run"]["name"] == "tiny" and card["run"]["weights"] == "base"
    assert card["run"]["folder"] == str(tiny_run.model_folder())
    assert card["run"]["seconds"] > 0 and card["run"]["way"] == "greedy"
  text = next(out.rglob("card.md")).read_text("utf-8")
  assert "- seconds: " in text and "- name: tiny" in text


def test_replies_are_of_the_model_and_scores_of_the_replies(done):
  """The same records, pool and replies by the commands that are there for each step."""
  roots, out = done
  (prepared,) = (out / "prepared").glob("mathvista.*")
  records = [json.loads(line) for line in (prepared / "records.jsonl").read_text().splitlines()]
  (result,) = (out / "models" / "tiny" / "evaluate").glob("mathvista*.json")
  prompts = json.loads(result.read_text())["prompts"]
  assert {row["id"] for row in prompts} == {record["id"] for record in records}
  assert all("sampled" not in row and len(row["greedy"]["text"]) == 1 for row in prompts)
  (card,) = (out / "cards" / "tiny").glob("mathvista*")
  main(["score", str(prepared), str(result), "--out", str(out.parent / "by hand")])
  assert (card / "rows.jsonl").read_bytes() == (out.parent / "by hand" / "rows.jsonl").read_bytes()
  table, _ = sorted(out.glob("exports/tiny/longvideobench*/vlmevalkit/*.tsv"))
  with open(table, newline="") as file:
    rows = list(csv.DictReader(file, delimiter="\t"))
  assert len(rows) == cards_of(out)["longvideobench", 4]["items"]


def test_the_table_has_a_row_for_each_number_of_frames(done):
  text = (done[1] / "table.md").read_text("utf-8")
  rows = [line for line in text.splitlines() if line.startswith("| tiny |")]
  assert sum("frames=2" in row for row in rows) == sum("frames=4" in row for row in rows) == 1
  assert len(rows) == 3  # MathVista has no frames, and a row of the protocol as it is
  with open(done[1] / "table.csv", newline="") as file:
    named = {row["model"] for row in csv.DictReader(file)}
  assert "tiny" in named and "R-MSD" in named


def test_what_is_there_is_not_done_again(done, monkeypatch, capsys):
  roots, out = done
  for module, name in ((evaluate, "main"), (preparing, "prepare")):
    monkeypatch.setattr(module, name, None)
  monkeypatch.setattr("rmsd_jax.pool.main", None)
  before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
  model = f"tiny={tiny_run.model_folder()}"
  run(roots, [model], out, "--frames", "2,4", "--export", "vlmevalkit", "--config.batch=16")
  assert capsys.readouterr().out.count("there already") == 3
  assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_is_there_of_something_else_is_refused(done, tmp_path):
  roots, out = done
  model = f"tiny={tiny_run.model_folder()}"
  other = write_sets(tmp_path, SETS[1:])
  with pytest.raises(UserError, match="is of .*mathvista.* now .*remove it, or give another --out"):
    run(other, [model], out)
  with pytest.raises(UserError, match="was made with .*'seed': 0.* now .*'seed': 5"):
    run(roots, [model], out, "--frames", "2,4", "--config.seed=5")
  with pytest.raises(UserError, match=r"tiny is of .*; give NAME=.*, or remove the folder"):
    other = model_names.NamedModel("tiny", "", "base", "elsewhere")
    model_names.keep_name(other, out / "models" / "tiny")


ASKED = ["mlvu=there", "--models", "m", "--out", "o"]


@pytest.mark.parametrize(
  "words, said",
  [
    (["mlvu", *ASKED[1:]], "'mlvu': give SET=ROOT"),
    (["mlvu=a", *ASKED], "each set that `list` shows once"),
    (["nuscenes=a", *ASKED[1:]], "no set 'nuscenes'"),
    ([*ASKED, "--protocol", "paper"], "--protocol 'paper': use one of"),
    ([*ASKED, "--set", "frame=8"], "did you mean frames"),
    ([*ASKED, "--frames", "8,x"], "give numbers of frames such as"),
    ([*ASKED, "--samples", "4"], "greedy: they would be alike; give --set temperature=0.7"),
    ([*ASKED, "--config.evaluate.samples=4"], "evaluate.samples is set by this command"),
    (["vstar=v", *ASKED[1:], "--protocol", "lmms-eval-64f"], "vstar has no prompts 'lmms-eval'"),
    (ASKED, "there is no .*config.json; give the work folder of a run, or a Hugging Face"),
  ],
)
def test_bad_input_is_one_line(words, said, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=said) as refused:
    main(["run", *words])
  assert "\n" not in str(refused.value)
  assert not (tmp_path / "o").exists()


def test_names_of_models(tmp_path):
  plain = tmp_path / "Qwen3-VL-4B"
  plain.mkdir()
  (plain / "config.json").write_text('{"model_type": "qwen3_vl"}')
  rest = tmp_path / "rl"
  rest.mkdir()
  (rest / "config.json").write_text(json.dumps({"model": {"folder": str(plain)}, "steps": 3}))
  named = lambda *texts, **more: [
    (m.name, m.workdir, m.checkpoint, m.folder) for m in model_names.models_named(texts, **more)
  ]
  assert named(str(plain)) == [("Qwen3-VL-4B", "", "base", str(plain))]
  assert named(f"{rest}@base") == [("rl@base", str(rest), "base", str(plain))]
  assert named(f"mine={rest}@base", str(plain))[0][0] == "mine"
  other = tmp_path / "moved"
  plain.rename(other)
  assert named(f"{rest}@base", folder=str(other))[0][3] == str(other)
  for text, said in (
    (f"{rest}@base", "names the folder .*, which is gone; give --config.model.folder"),
    (f"{other}@best", "is no run, and has no checkpoint 'best'"),
    (f"a b={other}", "a name has letters"),
  ):
    with pytest.raises(UserError, match=said):
      named(text)
  with pytest.raises(UserError, match="does not hold any step"):
    named(f"{rest}@latest", folder=str(other))
  with pytest.raises(UserError, match="2 models are called 'rl@base'; give NAME="):
    named(f"{rest}@base", f"{rest}/@base", folder=str(other))


def test_protocols_and_numbers_of_frames_multiply(tmp_path):
  settings = entries.Settings(tmp_path)
  sets = {"mlvu": tmp_path, "mathverse": tmp_path}
  made = entries.entries_of(sets, ["paper-64f", "lmms-eval-64f"], ["gold=first"], [64, 8], settings)
  found = [(e.benchmark.name, e.protocol.name, e.protocol.frames, e.protocol.changed) for e in made]
  assert found == [
    ("mlvu", "paper-64f", 64, ("gold",)),  # as the protocol says
    ("mlvu", "paper-64f", 8, ("frames", "gold")),
    ("mathverse", "paper-64f", 64, ("gold",)),
    ("mlvu", "lmms-eval-64f", 64, ("gold",)),
    ("mlvu", "lmms-eval-64f", 8, ("frames", "gold")),
    ("mathverse", "lmms-eval-64f", 64, ("gold",)),
  ]
  assert len({entry.key for entry in made}) == len(made)


# the rest takes minutes


def plain_files(folder):
  """The files of a run but times: bytes by path."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if not path.is_file() or name.startswith(("compiled", "lock")):
      continue
    content = path.read_bytes()
    if path.name == "card.json":
      card = json.loads(content)
      del card["run"]["seconds"]
      content = card
    elif path.name == "card.md":
      content = [line for line in content.splitlines() if not line.startswith(b"- seconds: ")]
    elif path.name.startswith("part-"):
      content = content.splitlines()[:-1]
    found[name] = content
  return found


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10])
def test_all_sets_killed_at_random_moments_are_as_undisturbed(kills, tmp_path):
  """All sets, by weights without a run and by a run's checkpoint."""
  with pytest.MonkeyPatch.context() as patch:
    c = tiny_run.config("sft", data__limit=8, save_every=1)
    tiny_run.run(patch, train_sft, c, tmp_path / "run", stop_after=2)
  roots = write_sets(tmp_path / "sets", sorted(benchmark_files.WRITERS))
  models = [f"tiny={tiny_run.model_folder()}", f"{tmp_path / 'run'}@latest"]
  arguments = ["run", *roots, "--models", *models, *FLAGS, "--set", "frames=4", "--allow-missing"]
  (tmp_path / "arguments.json").write_text(json.dumps(arguments))
  drill = tmp_path / "arguments.json", tmp_path, kills, random.Random(18).random()
  report = drills.run("benchmarks_drill", *drill, compiled=tmp_path / "compiled")
  print(report)
  assert len(report["killed"]) == kills
  killed_in = [word.split(" in ")[1] for word in report["killed"]]
  assert len(set(killed_in)) >= 3 and "start" not in killed_in
  alone, killed = plain_files(tmp_path / "alone"), plain_files(tmp_path / "out")
  left = {name for name in killed if name.endswith(".tmp")}  # texts that were not yet in place
  assert alone.keys() == killed.keys() - left
  assert [name for name in alone if alone[name] != killed[name]] == []
  cards = [name for name in alone if name.endswith("card.json")]
  assert len(cards) == 2 * len(benchmark_files.WRITERS)
  table = (tmp_path / "out" / "table.md").read_text("utf-8")
  # Main table, V-STaR's, and that of Video-MMMU's baseline.
  assert table.count("| tiny |") == table.count("| run@2 |") == 3

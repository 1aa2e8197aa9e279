"""The grid of ablations: what its rows change, which runs share a stage 1, resuming, its tables."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError
from rmsd_jax.demo import ablations, grid_tables, simulated_teacher

CONFIG = ablations.CONFIG


def config(row, stage="rl"):
  return cli.load_config(f"{CONFIG}:{row}/{stage}")


# The rows


def test_every_row_is_another_run():
  made = {row: config(row).to_json_best_effort(sort_keys=True) for row in ablations.ROWS}
  assert len(set(made.values())) == len(made)


def test_the_components_of_the_paper():
  """A: one sample. B: more of them. C: the filter. D: and weights, in the draw and the loss."""
  of = lambda row: config(row).supervision
  assert [config(row).data.responses for row in "ABCD"] == [1, 4, 4, 4]
  assert [of(row).tau for row in "ABCD"] == [0, 0, 0.3, 0.3]
  assert [of(row).target for row in "ABCD"] == ["first", "random", "random_survivor", "best"]
  for weight in ("match_by_quality", "loss_by_quality"):
    assert [of(row)[weight] for row in "ABCD"] == [False, False, False, True]


def test_the_baselines():
  assert config("sft_rl").reward.discriminator == 0 and config("sft_rl").reward.content > 0
  gad = config("gad").reward
  assert gad.discriminator == 1 and gad.outer == gad.inner == gad.content == 0
  updates = {
    row: config(row).steps - config(row).discriminator.warmup_steps
    for row in ablations.ROWS
    if config(row).reward.discriminator and not ablations.ROWS[row].goes_on
  }
  long = [updates.pop(row) for row in ("warm", "warm_frozen")]
  assert long == [300, 300]
  assert config("warm", "rl").batch == 16 and config("warm", "sft").batch == 32
  assert set(updates.values()) == {config("sft_rl").steps}
  counted = {*updates, "warm", "warm_frozen"}
  others = {row: config(row).steps for row in ablations.ROWS if row not in counted}
  goes_on = {row: others.pop(row) for row in ("continued", "rejection")}
  assert set(others) == {"sft_rl", "no_D", "no_D_fresh", "opd", "gkd"} and set(others.values()) == {
    35
  }
  # As many prompts as stage 2 shows, the discriminator's warm-up included.
  assert set(goes_on.values()) == {config("D").steps} == {40}
  frozen = config("frozen").discriminator
  assert frozen.warmup_steps < frozen.frozen_after < config("frozen").steps
  frozen = config("warm_frozen").discriminator
  assert frozen.warmup_steps == frozen.frozen_after


def test_a_discriminator_may_learn_from_right_answers_to_fresh_prompts():
  learned, control = config("learned"), config("no_D_fresh")
  assert config("learned", "sft").steps == 300  # the study's, fewer than the short demo's
  assert (learned.supervision.tau, control.supervision.tau) == (0.9, 0.3)
  assert config("learned", "sft").supervision == config("D", "sft").supervision
  assert learned.discriminator.warmup_steps == 600 and learned.steps == 635
  assert learned.data.pool.endswith("fresh/pool")
  # Each prompt once; stage 1 and the evaluation have the grid's.
  assert learned.world.train_prompts == control.world.train_prompts >= learned.steps * learned.batch
  for stage in ("sft", "evaluate"):
    assert config("learned", stage).world == config("D", stage).world
  for row in ("learned", "no_D_fresh"):  # a rate that suits 1.1 M parameters
    with pytest.raises(UserError, match=f"row {row} is of the demo world alone"):
      config(row, "rl/qwen3vl_4b_rl")


def test_the_papers_figures_stand_in_the_table_of_the_method():
  """VideoMME / Video-MMMU of R-MSD's ablation tables, typed a second time."""
  expected = {
    "A": (63.8, 54.4), "B": (64.5, 55.9), "C": (65.0, 57.2), "D": (65.3, 58.6),
    "k2": (64.8, 57.1), "k8": (65.5, 58.9), "tau0": (64.5, 55.9), "tau0.2": (65.0, 58.1),
    "tau0.5": (64.8, 57.2), "sft_rl": (64.0, 55.9),
  }  # fmt: skip
  both = ("VideoMME", "Video-MMMU")
  found = {
    name: tuple(row.paper[b] for b in both)
    for name, row in ablations.ROWS.items()
    if "VideoMME" in row.paper
  }
  assert found == expected


def test_rows_with_the_same_stage_1_share_it():
  shared = ablations.stage_1_rows()
  assert {row: first for row, first in shared.items() if first != row} == {
    "sft_rl": "A", "gad": "A", "gad_warm": "A", "prism": "A",
    "frozen": "D", "gate_off": "D", "warm": "D", "warm_frozen": "D",
    "no_D": "D", "separate": "D", "gated": "D", "bounded": "D", "zero_head": "D", "joint": "D",
    "kl0": "D", "published": "D", "opd": "D", "opd_reward": "D", "gkd": "D",
    "continued": "D", "rejection": "D", "learned": "D", "no_D_fresh": "D",
  }  # fmt: skip
  ignored = ("reward", "policy", "rollouts", "discriminator")
  for row, first in shared.items():
    a, b = (config(name, "sft").to_dict() for name in (row, first))
    for c in (a, b):
      for name in ignored:
        del c[name]
      for name in ("match_by_quality", "loss_by_quality"):
        del c["supervision"][name]
    assert a == b


# The runner, with commands that only leave a result


class Commands:
  """Stands for the runner of commands: notes what it was asked and writes an evaluation."""

  ran, fail, lock = [], (), threading.Lock()

  def __init__(self, folder, compiled, log, cores):
    self.folder, self.cores = folder, cores

  def __call__(self, phase, module, *flags):
    flags = dict(flag.split("=", 1) for flag in flags)
    row, seed, stage = self.folder.parts[-3:]
    with self.lock:
      self.ran.append((module, row, seed, stage, flags))
    if (row, seed, stage) in self.fail:
      raise UserError("it failed")
    if module != "evaluate":
      made = config(row, stage).unlock()
      made.data.first_response = int(seed.removeprefix("seed"))
      (self.folder / "config.json").write_text(made.to_json())
    if module == "evaluate":
      path = self.folder / ablations.RESULT
      path.parent.mkdir(parents=True)
      path.write_text(json.dumps(result(len(row) + (stage == "rl"))))


SAID = "<think>So.</think><answer>a red 3, then a green 4</answer>"


def result(salt=0, prompts=8, ids="p"):
  """An evaluation of `prompts` closed-ended prompts, two of a clip, and an open-ended one."""
  rng = np.random.default_rng(salt)
  rows = [
    {"id": f"{ids}{i}", "clip": f"test-{i // 2:05d}", "question": "?", "closed": i < prompts,
     "task": ("ocr", "numerical")[i % 2] if i < prompts else "open_ended",
     "greedy": {"quality": [float(rng.random())]},
     "sampled": {"quality": rng.random(8).tolist(), "text": [SAID, "no format"] * 4},
     "answer": "a red 3, then a blue 4"}
    for i in range(prompts + 1)
  ]  # fmt: skip
  return {"prompts": rows, "sampled": {"format": 1.0, "length": 20.0}}


def scores(runs):
  return {seed: grid_tables.scores_of(one) for seed, one in runs.items()}


@pytest.fixture
def stage(tmp_path, monkeypatch):
  monkeypatch.setattr(ablations, "Commands", Commands)
  monkeypatch.setattr(Commands, "ran", [])
  monkeypatch.setattr(Commands, "fail", ())
  return tmp_path


def run(folder, rows, seeds, jobs=1):
  grid = ablations.Grid(folder, [[0]] * jobs, "questions")
  ablations.run_all(grid, rows, seeds, jobs, {}, lambda: None)


def test_rows_that_distil_are_given_a_teacher_that_is_made_once(stage):
  asked = []

  class Making:
    def __init__(self, *given):
      pass

    def __call__(self, phase, module, *arguments):
      asked.append((module, *map(str, arguments)))
      if module == "convert":
        (stage / "teacher").mkdir()
        (stage / "teacher" / "model.safetensors").touch()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ablations, "Commands", Making)
    ablations.make_teacher(stage)
    ablations.make_teacher(stage)
  assert [module for module, *_ in asked] == ["train_sft", "convert"]
  assert f"--config.steps={3 * config('D', 'sft').steps}" in asked[0]
  run(stage, ["D", "opd"], 1)
  given = {
    (row, flags.get("--config.policy.reference"))
    for module, row, _, _, flags in Commands.ran
    if module == "train_rl"
  }
  assert given == {("D", None), ("opd", str(stage / "teacher"))}


def test_rows_may_have_prompts_of_their_own(stage, monkeypatch):
  """Their second stage alone learns from them; they are of another world, drawn as theirs says."""
  run(stage, ["learned", "no_D"], 1)
  pools = {
    (row, kind, module): flags["--config.data.pool"] for module, row, _, kind, flags in Commands.ran
  }
  fresh = pools.pop(("learned", "rl", "train_rl"))
  assert fresh == str(stage / "fresh" / "pool") and set(pools.values()) == {str(stage / "pool")}

  made = []
  monkeypatch.setattr(ablations, "Commands", lambda folder: None)
  monkeypatch.setattr(
    ablations, "make_pool", lambda run, folder, config: made.append((folder, config))
  )
  ablations.make_fresh_pool(stage, "learned", "questions")
  ((folder, asked),) = made
  assert folder / "pool" == stage / "fresh" / "pool"
  assert asked.world.train_prompts == 20_480 and asked.world.responses == 8
  grid = config("D", "sft").seed
  first, other = (simulated_teacher.scene_of("train-00000", seed)[0] for seed in (grid, asked.seed))
  assert first != other


@pytest.mark.parametrize("rows, drawn", [(["D", "no_D"], 0), (["D", "learned"], 1)])
def test_prompts_of_their_own_are_drawn_where_a_row_wants_them(tmp_path, monkeypatch, rows, drawn):
  asked = []
  for name in ("make_pool", "run_all", "Commands"):
    monkeypatch.setattr(ablations, name, lambda *given: None)
  monkeypatch.setattr(ablations, "make_fresh_pool", lambda *given: asked.append(given[1]))
  ablations.main([str(tmp_path), "--rows", *rows, "--seeds", "1"])
  assert asked == ["learned"] * drawn


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_grid_trains_each_stage_once_and_in_order(stage, jobs):
  run(stage, ["A", "sft_rl", "D"], 2, jobs)
  trained = [call[1:4] for call in Commands.ran if call[0].startswith("train")]
  assert len(trained) == len(set(trained)) == 2 * (2 + 3)
  assert ("sft_rl", "seed0", "sft") not in trained
  for row, seed, kind in trained:
    start = ("A" if row == "sft_rl" else row, seed, "sft")
    assert kind == "sft" or trained.index(start) < trained.index((row, seed, kind))
  for module, row, seed, kind, flags in Commands.ran:
    assert flags["--config"] == f"{CONFIG}:{row}/{'evaluate' if module == 'evaluate' else kind}"
    assert flags["--config.seed"] == seed.removeprefix("seed")
    if module == "train_rl":
      from_row = "A" if row == "sft_rl" else row
      assert flags["--config.init_from"] == str(stage / "runs" / from_row / seed / "sft")
    if module == "evaluate":  # where a discriminator has learned, its ranking is asked for
      judged = kind == "rl" and row != "sft_rl"
      assert flags["--config.evaluate.discriminator"] == str(judged)


def test_a_grid_goes_on_where_it_stopped_and_can_be_widened(stage):
  Commands.fail = [("D", "seed1", "sft")]
  with pytest.raises(UserError, match="1 runs failed, .*: D seed 1 sft: it failed"):
    run(stage, ["D"], 2)
  Commands.fail = ()
  before = {call[1:4] for call in Commands.ran if call[0] == "evaluate"}
  Commands.ran.clear()
  run(stage, ["D", "C"], 2)
  again = {call[1:4] for call in Commands.ran}
  assert ("D", "seed0", "rl") in before and not before & again
  assert {("D", "seed1", "sft"), ("D", "seed1", "rl"), ("C", "seed0", "rl")} <= again
  Commands.ran.clear()
  run(stage, ["D", "C"], 2)
  assert Commands.ran == []


def test_a_run_that_fails_stops_only_what_starts_from_it(stage):
  Commands.fail = [("A", "seed0", "sft"), ("D", "seed1", "rl")]
  for _ in range(2):  # a fault that stays does not block the others next time
    with pytest.raises(UserError, match="A seed 0 sft"):
      run(stage, ["A", "sft_rl", "D"], 2, jobs=2)
  done = {call[1:4] for call in Commands.ran if call[0] == "evaluate"}
  assert done == {
    ("A", "seed1", "sft"), ("A", "seed1", "rl"), ("sft_rl", "seed1", "rl"),
    ("D", "seed0", "sft"), ("D", "seed0", "rl"), ("D", "seed1", "sft"),
  }  # fmt: skip


def test_a_result_of_another_config_is_refused(stage):
  run(stage, ["D"], 1)
  path = stage / "runs" / "D" / "seed0" / "rl" / "config.json"
  changed = json.loads(path.read_text())
  changed["seed"], changed["data"]["pool"] = 7, "elsewhere"  # given anew each time
  path.write_text(json.dumps(changed))
  run(stage, ["D"], 1)
  changed["steps"] = 80
  path.write_text(json.dumps(changed))
  with pytest.raises(UserError, match="steps 80 -> 40"):
    run(stage, ["D"], 1)


def test_an_interrupt_ends_the_commands_and_starts_no_other(stage, monkeypatch):
  """As a signal to the grid's process alone does, which its commands do not get."""
  minute = """if True:
    import signal, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as rmsd_jax.cli, also in background
    print(flush=True)
    time.sleep(60)"""
  children, run_one = [], Commands.__call__

  def slow(self, phase, module, *flags):
    with subprocess.Popen([sys.executable, "-c", minute], stdout=subprocess.PIPE) as child:
      child.stdout.readline()  # it sleeps
      children.append(child)
      child.wait()
    run_one(self, phase, module, *flags)

  def interrupt(*arguments, **more):
    while not children:
      time.sleep(0.05)
    raise KeyboardInterrupt

  monkeypatch.setattr(Commands, "__call__", slow)
  monkeypatch.setattr(ablations.concurrent.futures, "wait", interrupt)
  began = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    run(stage, ["A"], 1)
  assert time.monotonic() - began < 50 and len(children) == 1
  assert [call[0] for call in Commands.ran] == ["train_sft"]


def test_a_grid_goes_on_from_the_scores_of_another_sitting(stage, monkeypatch):
  """Its runs are gone, but for a stage 1 that a new row starts from nothing is run again."""
  run(stage, ["A", "D"], 2)
  rows = {row: ablations.ROWS[row] for row in ("A", "D", "no_D")}
  found = ablations.grid_results(stage, list(rows), 2, "questions", {})
  grid_tables.keep(stage / "scores.jsonl.gz", rows, found, "questions")
  given = grid_tables.kept(stage / "scores.jsonl.gz", rows, "questions")
  assert given == {key: runs for key, runs in found.items()} and ("no_D", "sft") in given
  assert grid_tables.markdown(rows, given) == grid_tables.markdown(rows, found)

  Commands.ran.clear()
  again = stage / "again"
  grid = ablations.Grid(again, [[0]], "questions")
  ablations.run_all(grid, list(rows), 2, 1, given, lambda: None)
  trained = {call[1:4] for call in Commands.ran if call[0].startswith("train")}
  assert trained == {(r, f"seed{s}", k) for s in (0, 1) for r, k in (("D", "sft"), ("no_D", "rl"))}
  both = ablations.grid_results(again, list(rows), 2, "questions", given)
  assert set(both) == {(row, kind) for row in rows for kind in ("sft", "rl")}

  with pytest.raises(UserError, match="is of --noise questions, this grid of tau"):
    grid_tables.kept(stage / "scores.jsonl.gz", rows, "tau")
  with pytest.raises(UserError, match="was run with --noise questions"):
    ablations.grid_results(stage, list(rows), 2, "tau", {})
  for other in ({"changes": {"supervision.tau": 0.1}}, {"second": {"steps": 300}}):
    changed = rows | {"A": rows["A"]._replace(**other)}
    with pytest.raises(UserError, match="row A was run with other changes"):
      grid_tables.kept(stage / "scores.jsonl.gz", changed, "questions")
  (stage / "scores.jsonl.gz").write_bytes(b"no")
  with pytest.raises(UserError, match="holds no scores of a grid"):
    grid_tables.kept(stage / "scores.jsonl.gz", rows, "questions")


def test_the_command_writes_tables_of_what_is_there(stage, capsys):
  run(stage, ["A", "D"], 2)
  ablations.main([str(stage), "--rows", "A", "D", "B", "--show"])
  out = capsys.readouterr().out
  assert "| A | K = 1, no filter, no weighting | 2 |" in out and "| B |" in out
  assert (stage / "ablations.png").read_bytes().startswith(b"\x89PNG")
  ablations.main([str(stage / "nothing"), "--show"])
  assert "No run of this grid has ended yet" in capsys.readouterr().out


def test_tables_of_another_world_are_not_written_over(stage):
  run(stage, ["A", "D"], 1)
  with pytest.raises(UserError, match="was run with --noise questions"):
    ablations.main([str(stage), "--noise", "two", "--show"])
  assert not (stage / "ablations.md").exists()


def test_a_row_that_says_nothing_in_a_world_is_refused(stage):
  for flags, reason in ((["weighed"], "needs --noise two"), (["A", "--noise", "two"], "takes one")):
    with pytest.raises(UserError, match=f"row {flags[0]} {reason}"):
      ablations.main([str(stage / "grid"), "--rows", *flags])


@pytest.mark.parametrize("flags", [["--rows", "E"], ["--seeds", "0"], ["--jobs", "99"]])
def test_bad_flags_are_refused_before_any_work(stage, flags):
  with pytest.raises(UserError, match=flags[0]):
    ablations.main([str(stage / "grid"), *flags])
  assert not (stage / "grid" / "pool").exists()

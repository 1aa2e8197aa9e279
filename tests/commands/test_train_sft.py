"""Stage 1: the same step on any mesh and in any pieces, exact resumption, what counts and moves."""

import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import pytest
import tiny_run
from tiny_model import assert_close

from rmsd_jax import train_rl, train_sft
from rmsd_jax.core import packed
from rmsd_jax.core.errors import Terminated, UserError
from rmsd_jax.data import store
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.method import losses, matching
from rmsd_jax.tasks import Rules
from rmsd_jax.training import checkpoint, loop
from rmsd_jax.training import state as state_lib

RATE = 3e-3  # the highest learning rate of the config


def start(c, devices=1):
  on = tiny_run.mesh(devices)
  with jax.set_mesh(on):
    return train_sft.init_state(c, on, tiny_run.model_of(c), train_sft.make_optims(c))


def step(c, state, groups, devices=1):
  on = tiny_run.mesh(devices)
  return train_sft.train_step(c, on, tiny_run.steps(train_sft, c, on), state, groups)


def groups_of(c, number=0):
  batch = tiny_run.batch(c, number)
  return matching.targets(batch, seed=c.seed, step=number, **c.supervision)


@functools.cache
def two_steps(devices=1, row_tokens=24_576):
  """State and metrics after two steps."""
  c = tiny_run.config("sft", row_tokens=row_tokens)
  state, losses = start(c, devices), []
  for number in range(2):
    state, metrics = step(c, state, groups_of(c, number), devices)
    losses.append({name: float(value) for name, value in metrics.items()})
  return jax.device_get(state), losses


@pytest.mark.parametrize("other", [{"devices": 8}, {"row_tokens": 600}], ids=str)
def test_any_mesh_and_any_pieces_give_the_same_step(other):
  """Loss, gradient norm and moments (sums of gradients) to 1e-5 of their largest value.

  Adam divides gradients by their size, so rounding in one that is nearly 0 may turn its update
  around: parameters agree to 1e-5 but for one in a thousand, and those to two updates turned.
  """
  (state, metrics), (wanted, wanted_metrics) = two_steps(**other), two_steps()
  for got, want in zip(metrics, wanted_metrics, strict=True):
    assert got == pytest.approx(want, rel=1e-5, abs=1e-5)
  got, want = tiny_run.flat(state["student_optim"]), tiny_run.flat(wanted["student_optim"])
  for name, moment in want.items():
    assert_close(got[name] / (abs(moment).max() or 1), moment / (abs(moment).max() or 1))
  got, want = tiny_run.flat(state["student"]), tiny_run.flat(wanted["student"])
  far = np.concatenate([abs(got[name] - want[name]).ravel() for name in want])
  assert (far > 1e-5).mean() < 1e-3 and far.max() <= 4.1 * RATE


def test_a_step_leaves_every_array_where_it_lies():
  """Else the next step compiles anew, and its weights no longer follow the rules."""
  c = tiny_run.config("sft")
  state = start(c, 8)
  before = jax.tree.map(lambda x: x.sharding, state)
  state, _ = step(c, state, groups_of(c), 8)
  same = jax.tree.map(lambda x, old: x.sharding.is_equivalent_to(old, x.ndim), state, before)
  assert all(jax.tree.leaves(same)), same


def test_frozen_weights_stay_and_every_trained_one_moves():
  c = tiny_run.config("sft")
  before, (after, _) = jax.device_get(start(c)), two_steps()
  assert not tiny_run.moves(after["frozen"], before["frozen"])
  assert all("vision" in name for name in tiny_run.flat(before["frozen"]))
  assert tiny_run.moves(after["student"], before["student"]) == {*tiny_run.flat(before["student"])}


def test_prompts_without_survivor_have_no_target_and_do_not_count():
  c = tiny_run.config("sft")
  loaded = tiny_run.batch(c)
  quality_BK, valid_BK = loaded.quality_BK.copy(), loaded.valid_BK.copy()
  quality_BK[4:], valid_BK[4:] = 0.0, False
  loaded = changed(loaded, quality_BK=quality_BK, valid_BK=valid_BK)
  groups = matching.targets(loaded, seed=0, step=0, **c.supervision)
  length_B = groups.response_length_BR[:, 0]
  assert (length_B[4:] == 0).all() and (length_B[:4] > 0).all()
  # Half a batch without targets has the loss and the gradient of the other half taken twice.
  twice = jax.tree.map(lambda x: np.concatenate([x[:4], x[:4]]), groups)
  (_, half), (_, whole) = (step(c, start(c), g) for g in (groups, twice))
  for name in ("loss", "grad_norm"):
    assert float(half[name]) == pytest.approx(float(whole[name]), rel=1e-5)


def changed(loaded, **changes):
  return type(loaded)(**{**vars(loaded), **changes})


def test_targets_are_the_best_survivors_of_their_prompts():
  c = tiny_run.config("sft")
  loaded, groups = tiny_run.batch(c), groups_of(c)
  for b in range(c.batch):
    keep_K = loaded.valid_BK[b] & ((loaded.quality_BK[b] >= 0.3) | ~loaded.closed_B[b])
    length = groups.response_length_BR[b, 0]
    if not keep_K.any():
      assert length == 0
      continue
    best_K = keep_K & (
      (loaded.quality_BK[b] == loaded.quality_BK[b][keep_K].max()) | ~loaded.closed_B[b]
    )
    ids_T = groups.responses_BRT[b, 0]
    same_K = (loaded.groups.responses_BRT[b] == ids_T).all(-1)
    assert (same_K & best_K).any() and length in loaded.groups.response_length_BR[b][same_K]


# whole runs


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run of 6 steps on the first 8 prompts, uninterrupted."""
  workdir = tmp_path_factory.mktemp("sft") / "straight"
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.run(patch, train_sft, tiny_run.config("sft", data__limit=8), workdir)
  return workdir


def test_every_figure_of_the_log_is_explained(straight):
  assert not tiny_run.unexplained(straight)


def test_the_loss_goes_down_on_a_few_prompts(straight):
  written = tiny_run.lines(straight)
  assert [line["step"] for line in written] == [1, 2, 3, 4, 5, 6]
  losses = [line["loss"] for line in written]
  assert losses[1] < losses[0] and losses[-1] < losses[0] - 0.5


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(straight, tmp_path, monkeypatch):
  """Stopped between two checkpoints: the step behind the checkpoint is done, and told, again."""
  c = tiny_run.config("sft", data__limit=8)
  tiny_run.run(monkeypatch, train_sft, c, tmp_path, stop_after=3)
  assert [line["step"] for line in tiny_run.lines(tmp_path)] == [1, 2, 3]
  assert checkpoint.find_step(str(tmp_path)) == 2
  tiny_run.run(monkeypatch, train_sft, c, tmp_path)
  assert tiny_run.lines(tmp_path) == tiny_run.lines(straight)
  for number in (4, 6):
    resumed, whole = (tiny_run.restored(d, train_sft, c, number) for d in (tmp_path, straight))
    tiny_run.assert_same(resumed, whole)


def test_a_finished_run_does_nothing_more(straight, monkeypatch):
  before = tiny_run.lines(straight)
  tiny_run.run(monkeypatch, train_sft, tiny_run.config("sft", data__limit=8), straight)
  assert tiny_run.lines(straight) == before


def test_a_changed_config_is_refused_by_name_unless_the_key_is_operational(straight, monkeypatch):
  c = functools.partial(tiny_run.config, "sft", data__limit=8)
  with pytest.raises(UserError, match=r"optim\.b1 0\.9 -> 0\.8; undo the change or use a new work"):
    tiny_run.run(monkeypatch, train_sft, c(optim__b1=0.8), straight)
  tiny_run.run(monkeypatch, train_sft, c(keep=2, row_tokens=600), straight)
  assert json.loads((straight / "config.json").read_text())["row_tokens"] == 600


def test_a_first_start_that_failed_does_not_bind_the_folder(tmp_path, monkeypatch):
  c = functools.partial(tiny_run.config, "sft", data__limit=8, steps=1)
  with pytest.raises(UserError, match="typo"):
    tiny_run.run(monkeypatch, train_sft, c(init_from=str(tmp_path / "typo")), tmp_path / "run")
  tiny_run.run(monkeypatch, train_sft, c(), tmp_path / "run")
  assert checkpoint.find_step(str(tmp_path / "run")) == 1
  assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == ""


def test_the_best_step_of_a_run_is_kept_and_found(tmp_path, monkeypatch):
  c = tiny_run.config("sft", data__limit=8, steps=4, save_every=1, keep=1, log_every=1)
  c.best_metric = "grad_norm"
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "run")
  norms = {line["step"]: line["grad_norm"] for line in tiny_run.lines(tmp_path / "run")}
  best = max(norms, key=norms.get)
  assert checkpoint.find_step(str(tmp_path / "run"), "best") == best
  kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
  assert kept == {best, 4}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"log_every": 0}, "log_every=0; give 1 or more"),
    ({"save_every": 0}, "save_every=0; give 1 or more"),
    ({"model__dtype": "fp32"}, "model.dtype is 'fp32'; give a type such as"),
    ({"model__dtype": "int32"}, "model.dtype is 'int32'; give a type such as"),
    ({"model__dtype": "bool"}, "model.dtype is 'bool'; give a type such as"),
    ({"trained": ("text/(",)}, "pattern 'text/.' is no regular expression"),
    ({"best_metric": "-held_out/sampled/quality"}, "this run looks at no held-out prompts"),
    ({"best_metric": "nosuch", "steps": 2}, "no step has 'nosuch'; give one of .*grad_norm"),
    ({"optim__moment_dtype": "bf16"}, "moment_dtype is 'bf16'; choose float32 or bfloat16"),
  ],
)
def test_values_that_make_no_sense_are_refused(changes, words, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=words):
    tiny_run.run(monkeypatch, train_sft, tiny_run.config("sft", **changes), tmp_path / "run")


def test_a_run_without_finite_gradients_stops_and_says_so(tmp_path, monkeypatch):
  """Its steps change nothing, so the state is left as it is."""

  def broken(config, mesh):
    done = iter(range(1, 10))
    nothing = lambda *_: (None, None)
    return train_sft.Steps(
      encode=nothing,
      nothing=nothing,
      imitate=nothing,
      train=lambda state, *_: (state, {"loss": 0.0, "skipped_in_a_row": next(done)}),
      near=nothing,
      model=tiny_run.model_of(config),
    )

  monkeypatch.setattr(train_sft, "make_steps", broken)
  with pytest.raises(UserError, match="skipped_in_a_row is 4, more than max_skipped=3: the grad"):
    tiny_run.run(monkeypatch, train_sft, tiny_run.config("sft", max_skipped=3), tmp_path)
  assert [line["step"] for line in tiny_run.lines(tmp_path)] == [1, 2, 3, 4]


def test_a_pool_that_was_not_built_for_the_run_is_refused(straight, monkeypatch):
  opened = store.open_pool(tiny_run.pool_folder(), "train")

  def refused(words, **changes):
    other = dataclasses.replace(opened, metadata={**opened.metadata, **changes})
    with monkeypatch.context() as patch, pytest.raises(UserError, match=words):
      patch.setattr(loop, "open_pool", lambda *_: other)
      tiny_run.run(patch, train_sft, tiny_run.config("sft", data__limit=8), straight)

  refused("scored by rules .0., these are", scorer="0")
  near = Rules(eps_rel=0.05).version
  refused(f"rules '{near}', these are '[0-9]+'; build it again, or give the set", scorer=near)
  processor = {**opened.metadata["processor"], "tokenizer": "0" * 16}
  refused("another tokenizer or chat template than that of", processor=processor)
  refused("pool.json belongs to another pool: source_sha256 .* -> .x.", source_sha256="x")


def test_the_nearest_of_the_best_is_the_one_whose_tokens_the_student_expects(tmp_path, monkeypatch):
  """Nearness by a forward pass of each response alone; the run takes the nearest of the best."""
  c = tiny_run.config("sft", supervision__target="near", supervision__near_top=3, steps=2)
  state, batch = start(c), tiny_run.batch(c)
  with jax.set_mesh(tiny_run.mesh()):
    steps = tiny_run.steps(train_sft, c, tiny_run.mesh())
    near_BK = train_sft.nearness(c, tiny_run.mesh(), steps, state, batch.groups)
  model, params = tiny_run.model_of(c), jax.device_get(state_lib.weights(state))
  for b, k in ((0, 0), (1, 3), (7, 2)):
    groups = jax.tree.map(lambda x, b=b: x[b : b + 1], batch.groups)
    ids = groups.responses_BRT[:, k : k + 1]
    length = groups.response_length_BR[:, k : k + 1]
    rows = packed.padded(groups.with_responses(ids, length))
    visual = model.encode(params, groups)
    hidden, table = losses.predicting_of(model, params, rows, groups, visual)
    logits = np.asarray(hidden[0] @ table.T)[: length[0, 0]]
    own = np.take_along_axis(logits, ids[0, 0, : length[0, 0], None], 1)
    assert near_BK[b, k] == pytest.approx(((logits > own).sum(1) < 3).mean(), abs=1e-6)
  assert 0 < near_BK.min() or near_BK.max() > near_BK.min()
  groups = matching.targets(batch, seed=0, step=0, near_BK=near_BK, **c.supervision)
  for b in range(len(batch.row_B)):
    quality_K = np.where(batch.valid_BK[b], batch.quality_BK[b], -1)
    if batch.closed_B[b] and quality_K.max() >= c.supervision.tau:
      best = np.flatnonzero(quality_K == quality_K.max())
      nearest = best[near_BK[b, best] == near_BK[b, best].max()]
      likeliest = batch.groups.responses_BRT[b, nearest].tolist()
      assert groups.responses_BRT[b, 0].tolist() in likeliest
  seen = []
  near = train_sft.nearness
  monkeypatch.setattr(train_sft, "nearness", lambda *given: seen.append(1) or near(*given))
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "run")
  assert len(seen) == 2 and not tiny_run.unexplained(tmp_path / "run")


def test_conversations_are_mixed_in_and_stage_2_refuses_them(tmp_path, monkeypatch, capsys):
  tiny_run.pool_folder()  # makes the records that lie beside it
  lines = (tiny_run.HERE / "raw" / "pool.jsonl").read_text().splitlines()[:12]
  said = {"task": "chat", "question": "Hello!", "responses": [{"text": "Good day."}]}
  lines += [json.dumps(said | {"id": f"chat {i}"}) for i in range(3)]
  records = tiny_run.HERE / "raw" / "mixed.jsonl"
  records.write_text("\n".join(lines) + "\n")
  pool = tmp_path / "pool"
  tiny_run.build_pool([records], pool)
  c = tiny_run.config("sft", data__pool=str(pool), data__chat_share=0.25, steps=2)
  chat = ChatTokenizer(tiny_run.model_folder())
  seen = []
  targets = matching.targets
  monkeypatch.setattr(
    matching, "targets", lambda batch, **given: seen.append(batch) or targets(batch, **given)
  )
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "run")
  assert "2 of each 8 from 3 plain conversations" in capsys.readouterr().out
  for batch in seen:
    chats = [b for b, info in enumerate(batch.info) if info["task"] == "chat"]
    assert len(chats) == 2
    groups = targets(batch, seed=0, step=0, **c.supervision)
    texts = chat.decode_groups(groups.responses_BRT, groups.response_length_BR)
    assert [texts[b] for b in chats] == [["Good day."]] * 2
  records.write_text(records.read_text().replace("Good day.", "<think>Well.</think>"))
  tiny_run.build_pool([records], tmp_path / "useless")
  c = tiny_run.config("sft", data__pool=str(tmp_path / "useless"), data__chat_share=0.25, steps=2)
  with pytest.raises(UserError, match="no response of the 3 conversations in .* may teach"):
    tiny_run.run(monkeypatch, train_sft, c, tmp_path / "useless run")
  c = tiny_run.config("rl", data__pool=str(pool), data__chat_share=0.25)
  with pytest.raises(UserError, match="stage 2 rewards replies, and conversations have no reward"):
    tiny_run.run(monkeypatch, train_rl, c, tmp_path / "rl")


def test_responses_that_are_not_used_are_named(tmp_path, monkeypatch, capsys):
  c = tiny_run.config("sft", data__responses=3, steps=1)
  tiny_run.run(monkeypatch, train_sft, c, tmp_path)
  said = "the first 3 of up to 4 responses each; data.responses=4 takes all"
  assert said in capsys.readouterr().out


def test_sigterm_saves_the_step_under_way_and_the_same_command_goes_on(tmp_path, monkeypatch):
  """As before a preemption; a run that is not asked to end saves at its end alone."""
  after, c = loop.Loop.after, tiny_run.config("sft", steps=4, save_every=100)
  ended, handler = tmp_path / "ended", signal.getsignal(signal.SIGTERM)

  def signalled(self, step, *arguments, **more):
    if step + 1 == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    after(self, step, *arguments, **more)

  monkeypatch.setattr(loop.Loop, "after", signalled)
  with pytest.raises(Terminated, match="step 2 is saved; the same command goes on"):
    tiny_run.run(monkeypatch, train_sft, c, ended)
  assert checkpoint.find_step(str(ended)) == 2 and signal.getsignal(signal.SIGTERM) is handler
  monkeypatch.setattr(loop.Loop, "after", after)
  for folder in (ended, tmp_path / "straight"):
    tiny_run.run(monkeypatch, train_sft, c, folder)
  states = (tiny_run.restored(tmp_path / name, train_sft, c) for name in ("ended", "straight"))
  tiny_run.assert_same(*states)


def test_init_from_goes_on_from_another_runs_student(straight):
  """Also where other weights learn than in that run."""
  c = tiny_run.config("sft", init_from=str(straight), trained=("text/layers/.*",))
  state = start(c)
  saved = tiny_run.restored(straight, train_sft, tiny_run.config("sft"))
  assert tiny_run.moves(saved["student"], start(tiny_run.config("sft"))["student"])
  layers = saved["student"]["text"].pop("layers")
  tiny_run.assert_same(state["student"], {"text": {"layers": layers}})
  tiny_run.assert_same(state["frozen"], {**saved["student"], **saved["frozen"]})


def test_init_from_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match="config.json does not exist; give the work folder of a run"):
    start(tiny_run.config("sft", init_from=str(tmp_path)))


def test_all_weights_may_learn(tmp_path, monkeypatch):
  """Nothing is frozen then: such a run is saved, resumes and moves the tower."""
  c = tiny_run.config("sft", trained=(".*",), steps=2, save_every=1)
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "cut", stop_after=1)
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "cut")
  tiny_run.run(monkeypatch, train_sft, c, tmp_path / "whole")
  whole = tiny_run.restored(tmp_path / "whole", train_sft, c)
  tiny_run.assert_same(tiny_run.restored(tmp_path / "cut", train_sft, c), whole)
  assert whole["frozen"] == {}
  begun = jax.device_get(start(c)["student"])
  assert any("vision" in name for name in tiny_run.moves(begun, whole["student"]))

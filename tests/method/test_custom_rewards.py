"""Reward terms of a user's file: read, weighted, called with what ended, checked."""

import numpy as np
import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.method import advantages, custom_rewards
from rmsd_jax.method.carriers import RuleTerms

FILE = """
def brevity(replies, prompts):
  return [len(reply.split()) <= 2 for reply in replies]

def options(replies, prompts):
  import numpy as np
  return np.array([len(prompt["options"]) for prompt in prompts])

REWARDS = {"brevity": brevity, "options": options}
"""
PROMPTS = [{"options": ("A. x", "B. y")}, {"options": ()}]
REPLIES = [["one", "one two three"], ["one two", ""]]
OF_METHOD = dict.fromkeys(advantages.TERMS, 0.25)


def read(folder, text: str = FILE, weights: str = ""):
  (folder / "rewards.py").write_text(text)
  custom_rewards._load.cache_clear()  # a file is read once in a process
  section = OF_METHOD | {"module": str(folder / "rewards.py"), "custom": weights}
  return custom_rewards.of_config(section)


def test_what_ended_is_graded_and_what_was_cut_off_has_nothing(tmp_path):
  finished = np.array([[True, True], [False, True]])
  terms = read(tmp_path).grade(REPLIES, PROMPTS, finished)
  assert terms["brevity"].tolist() == [[1, 0], [0, 1]]
  assert terms["options"].tolist() == [[2, 2], [0, 0]]
  assert {x.dtype for x in terms.values()} == {np.dtype("float32")}
  nothing = read(tmp_path).grade(REPLIES, PROMPTS, finished & False)
  assert not any(x.any() for x in nothing.values())


def test_without_a_file_there_is_no_term():
  none = custom_rewards.of_config(OF_METHOD | {"module": "", "custom": ""})
  assert none.grade(REPLIES, PROMPTS, np.ones((2, 2), bool)) == {} == none.weights
  assert none.identity == {}


def test_weights_are_those_of_the_config_and_0_where_it_names_none(tmp_path):
  assert read(tmp_path, weights=" options = -0.5 ,").weights == {"brevity": 0.0, "options": -0.5}
  section = OF_METHOD | {"module": str(tmp_path / "rewards.py"), "custom": "brevity=1"}
  assert advantages.weights_of(section) == OF_METHOD | {"brevity": 1.0, "options": 0.0}


def test_a_changed_file_is_another_one(tmp_path):
  folders = [tmp_path / name for name in "abc"]
  for folder in folders:
    folder.mkdir()
  a, b, c = map(read, folders, (FILE, FILE, FILE + "#"))
  assert a.identity == b.identity != c.identity


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("x = 1", "it needs REWARDS, a dict"),
    ("REWARDS = {'a b': len}", "it needs REWARDS, a dict"),
    ("REWARDS = {'a': 3}", "it needs REWARDS, a dict"),
    (
      "REWARDS = {'outer': len}",
      "reward.outer is a key of the config or .* call the term otherwise",
    ),
    ("REWARDS = {'custom': len}", "reward.custom is a key of the config"),
    ("REWARDS = {'length': len}", "reward.length is a key of the config or a figure of the log"),
  ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, text, words):
  with pytest.raises(UserError, match=words):
    read(tmp_path, text)


@pytest.mark.parametrize(
  ("weights", "words"),
  [
    ("brevty=0.2", r"'brevty' is no term of reward.module \(did you mean brevity\?\); it has bre"),
    ("brevity", "write it as brevity=0.2"),
    ("brevity=much", "write it as brevity=0.2"),
    ("brevity=nan", "write it as brevity=0.2"),
  ],
)
def test_weights_that_say_nothing_are_refused(tmp_path, weights, words):
  with pytest.raises(UserError, match=words):
    read(tmp_path, weights=weights)


def test_a_file_that_is_not_there_and_weights_of_none_are_refused():
  with pytest.raises(UserError, match="there is no such file; give a Python file with REWARDS"):
    custom_rewards.of_config(OF_METHOD | {"module": "nowhere.py", "custom": ""})
  with pytest.raises(UserError, match="weighs terms of reward.module, which is empty"):
    custom_rewards.of_config(OF_METHOD | {"module": "", "custom": "brevity=1"})


@pytest.mark.parametrize(
  ("body", "words"),
  [
    ("[1.0]", r"REWARDS\['brevity'\] gave 1 numbers for 4 replies; give one for each"),
    ("[None] * len(replies)", "gave None for the reply 'one'; give a finite number"),
    ("[float('nan')] * len(replies)", "gave nan for the reply 'one'"),
    ("['1'] * len(replies)", "gave '1' for the reply 'one'"),
    ("[10**400] * len(replies)", "give a finite number"),
    ("[1e300] * len(replies)", "give a finite number"),
    ("None", "gave NoneType, not a list; give a number for each reply"),
  ],
)
def test_what_is_no_number_for_each_reply_is_refused(tmp_path, body, words):
  text = f"REWARDS = {{'brevity': lambda replies, prompts: {body}}}"
  with pytest.raises(UserError, match=words):
    read(tmp_path, text).grade(REPLIES, PROMPTS, np.ones((2, 2), bool))


@pytest.mark.parametrize("form", advantages.FORMS)
def test_a_paid_term_moves_the_reward_by_its_weight_alone(form):
  """As a content score does that is better by the same amount; with "separate" it is a part of its
  own, with "gated" one of the rules."""
  rng = np.random.default_rng(0)
  random = lambda: rng.random((4, 8)).astype(np.float32)
  one, content, own = np.ones((4, 8), np.float32), random(), random()
  weights = {"discriminator": 0.0, "outer": 0.1, "inner": 0.1, "content": 0.4}

  def parts_of(terms: RuleTerms, weights):
    terms = {"discriminator": one, **terms.by_name()}
    weighted = advantages.composite(terms, weights, np.ones(4, bool), gate=False)
    return advantages.parts_of(form, terms, weighted, weights, np.ones(4, bool), 0.5)

  ours = parts_of(RuleTerms(one, one, content, {"own": own}), weights | {"own": 0.2})
  as_content = parts_of(RuleTerms(one, one, content + own / 2), weights)
  total = lambda parts: sum(p.weight * np.asarray(p.reward_BN) for p in parts if p.weight)
  if form == "separate":
    assert [part.weight for part in ours] == [0.1, 0.1, 0.4, 0.2]
    np.testing.assert_allclose(ours[-1].reward_BN, own, rtol=1e-6)
  else:
    np.testing.assert_allclose(total(ours), total(as_content), rtol=1e-5)

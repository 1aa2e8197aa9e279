"""The audit of reward weights, and the tokens that end a response."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
import tiny_tokenizer

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.rollouts import generate, grading
from rmsd_jax.tasks import Rules

REWARD = cli.load_config(str(tiny_run.ROOT / "configs" / "default.py")).reward.to_dict()
LENGTH = """
def long(replies, prompts):
  return [len(reply) / 100 for reply in replies]

REWARDS = {"long": long}
"""


@pytest.mark.parametrize("gate", [False, True])
def test_the_papers_weights_pass(gate):
  grading.audit(REWARD | {"gate": gate}, Rules())


@pytest.mark.parametrize(
  "changes", [{"outer": -0.1, "inner": 0.0}, {"inner": -0.2}], ids=["no format", "half a format"]
)
def test_weights_that_pay_for_nothing_are_refused(changes):
  with pytest.raises(UserError, match="the reward of .* that of an honest wrong answer"):
    grading.audit(REWARD | changes, Rules())


def test_a_term_of_the_users_is_audited_and_the_audit_can_be_overruled(tmp_path, capsys):
  (tmp_path / "rewards.py").write_text(LENGTH)
  rigged = REWARD | {"module": str(tmp_path / "rewards.py"), "custom": "long=5"}
  grading.audit(rigged | {"custom": ""}, Rules())  # logged only
  with pytest.raises(UserError, match="honest wrong answer .*, or leave .* reward.audit=False"):
    grading.audit(rigged, Rules())
  grading.audit(rigged | {"audit": False}, Rules())
  assert "are not audited" in capsys.readouterr().out
  (tmp_path / "table.py").write_text(
    "REWARDS = {'known': lambda replies, prompts: [{'1': 0}[p['id']] for p in prompts]}"
  )
  by_id = REWARD | {"module": str(tmp_path / "table.py")}
  with pytest.raises(UserError, match="cannot grade a made-up prompt .KeyError"):
    grading.audit(by_id, Rules())
  grading.audit(by_id | {"audit": False}, Rules())  # it is not called


@pytest.mark.parametrize("token", tiny_tokenizer.SPECIAL)
def test_a_rollout_with_a_control_token_in_sight_is_worth_nothing(token):
  """As in a teacher's text, which is refused; only what ends the reply is left out."""
  tokenizer = ChatTokenizer(tiny_run.model_folder())
  parts = [
    tokenizer.encode_response(text)[:-1] for text in ("<think>x</think>", "<answer>B", "</answer>")
  ]
  stray, end = tokenizer._tokenizer.convert_tokens_to_ids(token), tokenizer.im_end
  info = [{"task": "multiple_choice", "answer": "B", "options": ("A. red", "B. blue")}]

  def worth(*pieces):
    ids = np.concatenate([*pieces, [end]]).astype(int)
    samples = generate.Samples(jnp.array(ids)[None, None], jnp.array([[len(ids)]]), None, None)
    replies = grading.replies_of(samples, tokenizer)
    terms = grading.rule_terms(replies, info, np.ones((1, 1), bool), Rules())
    quality_BN = Rules().quality(terms.outer_BN, terms.inner_BN, terms.content_BN)
    return float(quality_BN[0, 0])

  think, answer, close = parts
  assert worth(think, answer, close) == 1
  assert worth(think, answer, [stray], close) == 0
  inside = [*think[:2], stray, *think[2:]]  # of the reasoning, where anything else may stand
  assert worth(inside, answer, close) == 0
  assert worth([stray], think, answer, close) == worth(think, [stray], answer, close) == 0
  assert worth(think, answer, close, [stray]) == 0  # only the last end of turn ends a reply


def test_terms_of_a_batch_are_those_of_each_response():
  names, references = ("multiple_choice", "ocr", "open_ended"), ("B", "3 7", "a dog")
  options = ("A. red", "B. blue")
  info = [{"task": name, "answer": answer, "options": options if name == names[0] else ()}
          for name, answer in zip(names, references, strict=True)]  # fmt: skip
  answers = ("A", "B", "3 8", "3 7", "")
  texts = [[f"<think>x</think><answer>{answer}</answer>" for answer in answers]] * 3
  finished_BR = np.random.default_rng(0).random((3, 5)) < 0.7
  terms = grading.rule_terms(texts, info, finished_BR, Rules())
  for b, row in enumerate(info):
    for r in range(5):
      given = texts[b][r], row["answer"], row["options"], bool(finished_BR[b, r])
      wanted = Rules().terms(row["task"], *given)
      assert (terms.outer_BN[b, r], terms.inner_BN[b, r], terms.content_BN[b, r]) == wanted
  assert {(x.shape, x.dtype.name) for x in jax.tree.leaves(terms)} == {((3, 5), "float32")}
  with pytest.raises(ValueError, match="zip"):
    grading.rule_terms([["x"]], info[:1], np.ones((1, 2), bool), Rules())
  with pytest.raises(ValueError, match="zip"):
    grading.rule_terms([["x"]], info[:2], np.ones((2, 1), bool), Rules())


def test_numbers_are_graded_by_the_tolerances_that_are_given():
  info = [{"task": "numerical", "answer": 100.0, "options": ()}]
  texts, finished = [["<think>x</think><answer>104</answer>"]], np.ones((1, 1), bool)
  for tolerances, content in (({}, 0), ({"eps_abs": 5.0}, 1), ({"eps_rel": 0.03}, 0)):
    terms = grading.rule_terms(texts, info, finished, Rules(**tolerances))
    assert terms.content_BN == content


def test_sampling_must_stop_where_responses_end():
  tokenizer = ChatTokenizer(tiny_run.model_folder())
  grading.check_ends(tokenizer, (tokenizer.im_end, tokenizer.pad))
  with pytest.raises(UserError, match="put it first in eos_token_id"):
    grading.check_ends(tokenizer, (tokenizer.pad, tokenizer.im_end))
  with pytest.raises(UserError, match="end_of_turn|im_end"):
    grading.check_ends(tokenizer, (tokenizer.pad,))

"""The audit of reward weights, and the tokens that end a response."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
import tiny_tokenizer

from rmsd_jax import generate, scoring
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.errors import UserError

WEIGHTS = {"discriminator": 0.4, "outer": 0.1, "task": 0.1, "content": 0.4}


@pytest.mark.parametrize("gate", [False, True])
def test_the_papers_weights_pass(gate):
  scoring.audit(WEIGHTS, gate)


@pytest.mark.parametrize(
  "changes", [{"outer": -0.1, "task": 0.0}, {"task": -0.2}], ids=["no format", "half a format"]
)
def test_weights_that_pay_for_nothing_are_refused(changes):
  with pytest.raises(UserError, match="the reward of .* that of an honest wrong answer"):
    scoring.audit(WEIGHTS | changes, False)


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
    texts = scoring.texts_of(samples, tokenizer)
    return float(scoring.quality(scoring.rule_terms(texts, info, np.ones((1, 1), bool)))[0, 0])

  think, answer, close = parts
  assert worth(think, answer, close) == 1
  assert worth(think, answer, [stray], close) == 0
  inside = [*think[:2], stray, *think[2:]]  # of the reasoning, where anything else may stand
  assert worth(inside, answer, close) == 0
  assert worth([stray], think, answer, close) == worth(think, [stray], answer, close) == 0
  if stray not in (end, tokenizer.pad):  # those end a reply
    assert worth(think, answer, close, [stray]) == 0


def test_sampling_must_stop_where_responses_end():
  tokenizer = ChatTokenizer(tiny_run.model_folder())
  scoring.check_ends(tokenizer, (tokenizer.im_end, tokenizer.pad))
  with pytest.raises(UserError, match="put it first in eos_token_id"):
    scoring.check_ends(tokenizer, (tokenizer.pad, tokenizer.im_end))
  with pytest.raises(UserError, match="end_of_turn|im_end"):
    scoring.check_ends(tokenizer, (tokenizer.pad,))

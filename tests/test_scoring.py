"""The audit of reward weights, and the tokens that end a response."""

import pytest
import tiny_run

from rmsd_jax import scoring
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


def test_sampling_must_stop_where_responses_end():
  tokenizer = ChatTokenizer(tiny_run.model_folder())
  scoring.check_ends(tokenizer, (tokenizer.im_end, tokenizer.pad))
  with pytest.raises(UserError, match="put it first in eos_token_id"):
    scoring.check_ends(tokenizer, (tokenizer.pad, tokenizer.im_end))
  with pytest.raises(UserError, match="end_of_turn|im_end"):
    scoring.check_ends(tokenizer, (tokenizer.pad,))

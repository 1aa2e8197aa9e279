"""The discriminator D_phi: the student's architecture with a scalar head on the last token.

R-MSD (arXiv 2603.11423) takes it from GAD (arXiv 2511.10643): a critic of the student's size that
scores a whole response by one number, read at the response's end-of-turn token.
Axes: B prompts, R responses, X packed rows with W places for responses, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.core import packed
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.core.packed import Rows
from rmsd_jax.models.student import Qwen3VL, Visual

# The body's weights follow the student's rules.
PARTITION = (("value_head/kernel", Spec()),)


@dataclasses.dataclass(frozen=True)
class Discriminator:
  """Parameters: the body's {"text", "vision"} and {"value_head": {"kernel" D}}.

  The head has no bias: only differences of scores matter, in the pair loss and in a group.
  """

  body: Qwen3VL

  def init_head(self, key: jax.Array, zero: bool = False) -> dict:
    """A new value head, drawn as the model's other weights were, or 0: every score is then 0 until
    it has learned. The body's weights are the student's."""
    c = self.body.config.text
    std = 0.0 if zero else c.init_std
    return {"value_head": {"kernel": std * jax.random.normal(key, (c.width,), jnp.float32)}}

  def abstract_head(self) -> dict:
    return jax.eval_shape(lambda: self.init_head(jax.random.key(0)))

  def __call__(self, params: dict, groups: PromptGroups, visual: Visual | None = None) -> jax.Array:
    """Scores fp32 [B, R], read at the last token of each response; 0 for an empty slot."""
    rows = packed.padded(groups)
    score_XW = self.scores(params, rows, self.body.encoded(params, groups, visual))
    return rows.to_responses(score_XW, *groups.response_length_BR.shape)

  def scores(self, params: dict, rows: Rows, visual: Visual) -> jax.Array:
    """Scores fp32 [X, W] at every response token. The one at the last token is the response's."""
    body = {"text": params["text"], "vision": params["vision"]}
    # The prompts' own hidden states are not read: a score is of a response.
    hidden_XWD = self.body.hidden(body, rows, visual)[:, rows.P :]
    # In fp32 whatever the activations are: of scores only differences count.
    return hidden_XWD.astype(jnp.float32) @ params["value_head"]["kernel"]

"""The discriminator D_phi: the student's architecture with a scalar head on the last token.

R-MSD (arXiv 2603.11423) takes it from GAD (arXiv 2511.10643): a critic of the student's size that
scores a whole response by one number, read at the response's end-of-turn token.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as Spec

from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.models.student import Qwen3VL, Visual

# The body's weights follow the student's rules.
PARTITION = (("value_head/kernel", Spec()),)


@dataclasses.dataclass(frozen=True)
class Discriminator:
  """Parameters: the body's {"text", "vision"} and {"value_head": {"kernel" D}}.

  The head has no bias: only differences of scores matter, in the pair loss and in a group.
  """

  body: Qwen3VL

  def init_head(self, key: jax.Array) -> dict:
    """A new value head; the body's weights are the student's."""
    c = self.body.config.text
    return {"value_head": {"kernel": c.init_std * jax.random.normal(key, (c.width,), jnp.float32)}}

  def abstract_head(self) -> dict:
    return jax.eval_shape(lambda: self.init_head(jax.random.key(0)))

  def __call__(self, params: dict, groups: PromptGroups, visual: Visual | None = None) -> jax.Array:
    """Scores fp32 [B, R], read at the last token of each response; 0 for an empty slot."""
    body = {"text": params["text"], "vision": params["vision"]}
    # The prompt's own hidden states are not read: a score is of a response.
    _, response_BRTD = self.body(body, groups, visual)
    # An empty slot has no last token; it reads place 0 and is dropped by the last line.
    last_BR = jnp.maximum(groups.response_length_BR - 1, 0)
    last_BRD = jnp.take_along_axis(response_BRTD, last_BR[..., None, None], 2)[:, :, 0]
    # In fp32 whatever the activations are: of scores only differences count.
    score_BR = last_BRD.astype(jnp.float32) @ params["value_head"]["kernel"]
    return jnp.where(groups.response_length_BR > 0, score_BR, 0.0)

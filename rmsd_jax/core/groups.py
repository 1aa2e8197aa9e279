"""The prompt group: one prompt (media and question) and R responses to it.

It is the only batch type. Stage 1 has R = 1, rollouts R = N, the discriminator R = N + K. The
prompt's tokens pass through the network once, however many responses there are.

    packed row of a group       | prompt, P tokens | response 0, T | response 1, T | ...
    a token may see             its own segment up to itself, and (in a response) its whole prompt

Axes: B prompts, R responses, P prompt tokens, T response tokens, F frame pairs, S patches of a
frame pair, C values of a patch (3 channels x 2 frames x patch x patch).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class Bucket(NamedTuple):
  """Static padded sizes: P prompt tokens, T response tokens, F frame pairs, S patches of a pair."""

  prompt: int
  response: int
  frames: int
  patches: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptGroups:
  """A batch of prompt groups; numpy on the host, jax arrays on devices.

  Prompts and responses are left-aligned and padded on the right. A response ends in the
  end-of-turn token unless it was cut off at T; length 0 marks an empty slot.
  """

  tokens_BP: Array  # int32 prompt ids
  positions_B3P: Array  # int32 interleaved M-RoPE positions (time, row, column)
  prompt_length_B: Array  # int32 tokens of the prompt that are not padding, at least 1
  next_position_B: Array  # int32 where a response's positions start, on all three axes
  visual_BP: Array  # int32 index f * S/4 + j of the visual token at this place, -1 for text
  patches_BFSC: Array  # uint8 patches, normalised on the device
  grid_BF2: Array  # int32 rows, columns of patches of each frame pair; 0, 0 = padding
  responses_BRT: Array  # int32 response ids
  response_length_BR: Array  # int32 tokens of the response, its end-of-turn token included

  @property
  def prompt_mask_BP(self) -> jax.Array:
    return jnp.arange(self.tokens_BP.shape[1]) < self.prompt_length_B[:, None]

  @property
  def response_mask_BRT(self) -> jax.Array:
    return jnp.arange(self.responses_BRT.shape[2]) < self.response_length_BR[:, :, None]

  @property
  def response_positions_BT(self) -> Array:
    """Positions of response tokens (the same on all three axes and for every response)."""
    return self.next_position_B[:, None] + jnp.arange(self.responses_BRT.shape[2])

  def with_responses(self, responses_BRT: Array, response_length_BR: Array) -> "PromptGroups":
    """The same prompts with other responses."""
    return dataclasses.replace(
      self, responses_BRT=responses_BRT, response_length_BR=response_length_BR
    )

  def prompts_alone(self) -> "PromptGroups":
    """The same prompts without a response."""
    B = len(self.tokens_BP)
    empty = jnp.zeros if isinstance(self.tokens_BP, jax.Array) else np.zeros
    return self.with_responses(empty((B, 0, 0), jnp.int32), empty((B, 0), jnp.int32))

  def without_media(self) -> "PromptGroups":
    """The blind control: every frame is mid-grey (patch value 127.5 is 0 after normalising)."""
    # Bytes have no 127.5; the difference to 0 is half a grey level.
    blank = jnp if isinstance(self.patches_BFSC, jax.Array) else np
    return dataclasses.replace(self, patches_BFSC=blank.full_like(self.patches_BFSC, 127))


def join_responses(a: PromptGroups, b: PromptGroups) -> PromptGroups:
  """One group with the responses of both (R = R_a + R_b), as numpy. T must agree."""
  return a.with_responses(
    np.concatenate([a.responses_BRT, b.responses_BRT], 1),
    np.concatenate([a.response_length_BR, b.response_length_BR], 1),
  )

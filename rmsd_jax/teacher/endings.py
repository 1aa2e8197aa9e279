"""Why an answer ended: the words of the services, in four kinds.

    stop      the model ended it
    length    a limit of tokens cut it off
    refused   the service withheld it for its content; final, since a repetition ends alike
    broken    the service broke it off, or does not say why it ended; worth another try

A word that is not in the table has no kind. Nobody then knows whether the text is whole, so a
collection stops at it until `--finish WORD=KIND` says what it means.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rmsd_jax.core.errors import UserError

STOP, LENGTH, REFUSED, BROKEN = KINDS = ("stop", "length", "refused", "broken")
USABLE = (STOP, LENGTH)
LOST = "lost"  # of an answer that did not come at all
NOT_TOLD = "null"
_LONGEST = 60  # characters of a word

# As `_normal` writes them: OpenAI, Anthropic, Bedrock, Gemini, Cohere, Mistral, DeepSeek, Zhipu,
# Together, watsonx; vLLM, SGLang, TGI, llama.cpp, LMDeploy.
_WORDS = {
  STOP: """stop stopped stop_sequence stop_sequence_reached stop_criteria_met stop_token eos
    eos_token eos_token_id end end_of_text end_of_turn end_of_sequence end_turn endoftext
    complete completed done finish finished normal tool_call tool_calls tool_use function_call
    <|im_end|> <|endoftext|> </s>""",
  LENGTH: """length max_length maximum_length max_len max_token max_tokens maximum_tokens
    max_new_tokens max_output_tokens max_completion_tokens max_tokens_reached token_limit
    model_length context_length context_length_exceeded context_window_exceeded
    model_context_window_exceeded error_limit truncated""",
  REFUSED: """refused refusal content_filter content_filtered content_filter_error content_policy
    content_policy_violation filter filtered safety image_safety image_prohibited_content recitation
    image_recitation blocked blocklist blacklist prohibited_content spii language sensitive
    moderation flagged guardrail guardrails guardrail_intervened error_toxic""",
  BROKEN: """lost null none unknown unspecified abort aborted cancel cancelled canceled user_cancel
    error failed failure timeout time_limit timed_out insufficient_system_resource
    insufficient_system_resources insufficient_resource insufficient_resources insufficient_capacity
    network_error server_error internal_error internal_server_error overloaded unavailable
    engine_overloaded not_finished incomplete in_progress pause_turn interrupted disconnected
    preempted other malformed_response malformed_model_output malformed_function_call
    malformed_tool_use unexpected_tool_call too_many_tool_calls no_image""",
}
_TABLE = {word: kind for kind, words in _WORDS.items() for word in words.split()}


def spelled(value: Any) -> str:
  """A finish_reason as a word: of null and of nothing NOT_TOLD, of an object its "type"."""
  if isinstance(value, Mapping):
    value = value.get("type")
  if value is None or value == "":
    return NOT_TOLD
  # A word is printed, and typed in again behind --finish: no blanks and nothing a terminal obeys.
  text = "".join(sign if sign.isprintable() else "?" for sign in str(value)[:_LONGEST])
  return "_".join(text.split()) or NOT_TOLD


def _normal(word: str) -> str:
  """`maxTokens`, `MAX_TOKENS`, `max-tokens`, `FINISH_REASON_MAX_TOKENS` -> `max_tokens`."""
  word = word.partition(":")[0]  # "content_filter: RECITATION"
  word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word.strip())
  word = re.sub(r"[\s.\-]+", "_", word.casefold())
  return re.sub(r"^(finish|stop|end)_?reason_", "", word)


@dataclasses.dataclass(frozen=True)
class Endings:
  """The table, with what a user says of further words or otherwise of these.

  Attributes:
    given: word, as the service writes it -> kind.
  """

  given: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for word, kind in self.given.items():
      if not word or kind not in KINDS:
        raise UserError(f"--finish {word}={kind}: give WORD=KIND, with one of {', '.join(KINDS)}")

  def kind(self, word: str) -> str | None:
    """The kind of a word, or None of an unknown one."""
    # As it was typed before as it is normalised: a user may tell two spellings apart.
    for known in (self.given, {_normal(w): k for w, k in self.given.items()}):
      if meaning := known.get(word) or known.get(_normal(word)):
        return meaning
    return _TABLE.get(_normal(word))


KNOWN = Endings()  # without words of a user


def parse_given(flags: Sequence[str]) -> Endings:
  """Reads `--finish WORD=KIND ...`.

  Raises:
    UserError: a flag is not of that form.
  """
  return Endings(dict(flag.rpartition("=")[::2] for flag in flags))


def unknown(words: Sequence[str], kept: Any) -> UserError:
  """What a run ends with at words that no table has.

  Args:
    words: as the service wrote them.
    kept: the file that holds their answers.
  """
  flags = " ".join(f"--finish {word}=KIND" for word in words)
  return UserError(
    f"the endpoint ends answers with finish_reason {', '.join(map(repr, words))}, which is not "
    f"known here; say what it means with {flags} (KIND: {', '.join(KINDS)}) and run the command "
    f"again: what was answered so is kept in {kept}"
  )

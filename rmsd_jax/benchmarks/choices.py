"""What sets of multiple choice share: sentences of their prompts, and the grade of a letter."""

from collections.abc import Callable

from rmsd_jax.benchmarks import letters
from rmsd_jax.benchmarks.item import Ask, Grade, Item
from rmsd_jax.benchmarks.protocols import Protocol

SELECT = (
  "Select the best answer to the following multiple-choice question based on the video. "
  "Respond with only the letter (A, B, C, or D) of the correct option."
)
FRAMES = f"\nThese are the frames of a video. {SELECT}\n"
CAREFULLY = (
  "Carefully watch this video and pay attention to every detail. Based on your observations, "
  "select the best option that accurately addresses the question."
)
DIRECTLY = "Answer with the option's letter from the given choices directly."
# Open-o3-Video's, between the sentence that says what to select and the one that says how.
THINK = (
  "You must first think about the reasoning process in the mind and then provide the user with the "
  "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> "
  "</answer> tags, respectively."
)
EVIDENCE = (
  "All reasoning must be grounded in visual evidence from the video. When you mention any related "
  "object, person, or specific visual element, you must strictly follow the following format: "
  "`<obj>object_name</obj><box>bounding_box</box>at<t>time_in_seconds</t>s`."
)
SHORT = "The reasoning process MUST NOT be longer than 100 words."


def listed(item: Item) -> str:
  """The options one a line: as the set has them where it has them with letters, else "A. text"."""
  return "\n".join(item.extra.get("shown") or item.lettered())


def asked(item: Item) -> str:
  """The question, and below it the options where there are any."""
  return f"{item.question}\n{listed(item)}" if item.options else item.question


def ask(text: str, before: str = "") -> list[Ask]:
  """The one call of an item."""
  return [Ask(text, before)]


def grader(letters_of: Callable[[Item], str]) -> Callable[[Item, str, str, Protocol], Grade]:
  """The `grade` of a set: the letter that the protocol's extractor reads is the item's.

  Args:
    letters_of: item -> the letters that the set's harness looks for.
  """

  def grade(item: Item, call: str, reply: str, protocol: Protocol) -> Grade:
    read = letters.letter(protocol.extractor, reply, letters_of(item), item.options)
    return Grade(float(read is not None and read == item.answer), read)

  return grade

"""Reward terms of a user's own Python file, beside the three of the rules.

    REWARDS = {"brevity": brevity}         brevity(replies, prompts) -> a number for each reply

A function gets two lists of one length: replies that ended by themselves, and of each its prompt, a
dict of id, clip, task, question, options and answer. Every process calls it once a step with the
replies of its own prompts, so that it may ask a judge about all of them at a time; and once at the
start with replies of made-up prompts, for the audit of the weights. A term without a weight is
logged and not paid.
"""

import dataclasses
import difflib
import functools
import hashlib
import math
import pathlib
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmsd_jax.core.errors import UserError

# Figures of the log that stand beside the terms (rollout/length), or stood there once ("task").
RESERVED = ("length", "finished", "quality", "task", "std_in_group", "dead_groups", "mean")
_MOST = float(np.finfo(np.float32).max)
Function = Callable[[list[str], list[Mapping[str, Any]]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class CustomRewards:
  """The terms of a file.

  Attributes:
    functions: by the name of the term.
    weights: of each in the reward.
    identity: {"file": its hash}, so that a changed one is noticed; {}: there is no file.
  """

  functions: Mapping[str, Function] = dataclasses.field(default_factory=dict)
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  identity: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def grade(
    self, replies: Sequence[Sequence[str]], prompts: Sequence[Mapping[str, Any]], finished_BN
  ) -> dict[str, np.ndarray]:
    """Term -> fp32 [B, N]; 0 for a reply that was cut off.

    Args:
      replies: B lists of N texts.
      prompts: of each list, as `data.batch.Batch.info`.
      finished_BN: bool, False for a reply that was cut off.

    Raises:
      UserError: a function gave another count of numbers, or something that is no finite number.
    """
    finished_BN = np.asarray(finished_BN)
    places = np.argwhere(finished_BN)
    texts = [replies[b][n] for b, n in places]
    asked = [prompts[b] for b, _ in places]
    terms = {}
    for name, function in self.functions.items():
      terms[name] = np.zeros(finished_BN.shape, np.float32)
      if texts:
        terms[name][finished_BN] = _numbers(name, function(list(texts), list(asked)), texts)
    return terms


def _numbers(name: str, values: Sequence[float], replies: Sequence[str]) -> list[float]:
  """What a function gave, checked."""
  if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str):
    raise UserError(
      f"REWARDS[{name!r}] gave {type(values).__name__}, not a list; give a number for each reply"
    )
  given = np.ravel(values).tolist() if isinstance(values, np.ndarray) else list(values)
  if len(given) != len(replies):
    raise UserError(
      f"REWARDS[{name!r}] gave {len(given)} numbers for {len(replies)} replies; give one for each"
    )
  for value, reply in zip(given, replies, strict=True):
    # In fp32, as the step reads it.
    number = isinstance(value, int | float | np.number | np.bool_) and abs(value) <= _MOST
    if not number:
      raise UserError(
        f"REWARDS[{name!r}] gave {value!r:.40} for the reply {reply!r:.80}; give a finite number"
      )
  return [float(value) for value in given]


def of_config(reward: Mapping[str, Any]) -> CustomRewards:
  """The terms that a config names; `reward` is its section. See `_load` for what is refused."""
  return _load(reward["module"], reward["custom"], tuple(reward))


@functools.cache
def _load(path: str, weights: str, taken: tuple[str, ...]) -> CustomRewards:
  """Reads the file once.

  Args:
    path: config.reward.module.
    weights: config.reward.custom, such as "brevity=0.2,polite=0.1".
    taken: names that are no longer free.

  Raises:
    UserError: there is no such file, or no REWARDS in it; a name is taken, or a weight is no number
      or of no term.
  """
  if not path:
    if weights:
      raise UserError(
        f"reward.custom={weights} weighs terms of reward.module, which is empty; give that file"
      )
    return CustomRewards()
  if not pathlib.Path(path).is_file():
    raise UserError(f"reward.module={path}: there is no such file; give a Python file with REWARDS")
  functions = runpy.run_path(path).get("REWARDS")
  well_formed = isinstance(functions, dict) and all(
    isinstance(name, str) and name.isidentifier() and callable(function)
    for name, function in functions.items()
  )
  if not functions or not well_formed:
    raise UserError(
      f"reward.module={path}: it needs REWARDS, a dict of names and functions; see the recipe in "
      "docs/code.md"
    )
  for name in functions:
    if name in (*taken, *RESERVED):
      raise UserError(
        f"reward.module={path}: reward.{name} is a key of the config or a figure of the log; call "
        "the term otherwise"
      )
  weighed = dict.fromkeys(functions, 0.0) | _read(weights, functions)
  digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
  return CustomRewards(functions, weighed, {"file": digest})


def _read(weights: str, known: Mapping[str, Function]) -> dict[str, float]:
  """ "brevity=0.2,polite=0.1" as a dict."""
  read: dict[str, float] = {}
  for part in filter(None, (part.strip() for part in weights.split(","))):
    name, _, value = (side.strip() for side in part.partition("="))
    if name not in known:
      close = difflib.get_close_matches(name, known, 1)
      meant = f" (did you mean {close[0]}?)" if close else ""
      raise UserError(
        f"reward.custom={weights}: {name!r} is no term of reward.module{meant}; it has "
        f"{', '.join(known)}"
      )
    try:
      read[name] = float(value)
    except ValueError:
      read[name] = math.nan
    if not math.isfinite(read[name]):
      raise UserError(f"reward.custom={weights}: write it as {name}=0.2, with commas between terms")
  return read

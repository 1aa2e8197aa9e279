"""What earlier versions called things, so that their work folders resume, evaluate and report.

A name that changes is entered here once; whoever reads a stored file asks here. No jax: the command
line asks, too.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Dotted config keys, old -> new.
RENAMED_KEYS = {"reward.task": "reward.inner"}
# Config keys that came after runs had been made -> what those runs did: a stored config without the
# key counts as having this value. Whoever adds a key to configs/default.py adds it here, unless it
# is operational; entries stay when a default changes.
ADDED_KEYS = {
  "optim.name": "adamw",
  "discriminator.optim.name": "adamw",
  "tasks.module": "",
  "tasks.reading": "strict",
  "data.draws": "seed",
  "data.held_out": 0.0,
  "data.chat_share": 0.0,
  "data.first_response": 0,
  "supervision.near_top": 10,
  "supervision.teachers": "alike",
  "reward.custom": "",
  "reward.clip": 0.0,
  "reward.per_log_length": 0.0,
  "reward.right_from": 0.5,
  "policy.advantage": "total",
  "policy.format_penalty": 0.0,
  "policy.reference": "",
  "policy.jsd_beta": 0.5,
  "discriminator.zero_head": False,
  "discriminator.score_l2": 0.0,
  "discriminator.joint_warmup": False,
  "world.noise": "questions",
}
# Those of them whose default is another: a run that was begun without the key goes on with the
# value above, whatever its config says today, and its stored config stays without the key.
KEPT_KEYS = ("data.draws",)
# Config keys that are gone, all of them operational: a run may go on without them.
DROPPED_KEYS = ("microbatches",)
# Metrics of the log, patterns old -> new.
RENAMED_METRICS = (
  (r"task/(\w+)/accuracy", r"discriminator/accuracy/\1"),
  (r"task/(\w+)/survivors", r"pairs/survivors/\1"),
  (r"task/(\w+)/effective_pairs", r"pairs/effective/\1"),
  (r"task/(\w+)/effective_weight", r"pairs/weight/\1"),
  (r"task/(\w+)/quality", r"rollout/quality/\1"),
  (r"rollout/task", r"rollout/inner"),
  (r"reward/task/(\w+)", r"reward/inner/\1"),
)
# The tasks in whose order the running spread was an array, before it was kept by name.
ARRAY_TASKS = (
  "math",
  "multiple_choice",
  "numerical",
  "ocr",
  "open_ended",
  "regression",
  "spatial_grounding",
  "spatiotemporal_grounding",
  "temporal_grounding",
  "tracking",
)
WAYS = ("greedy", "sampled")


def config_now(config: Mapping[str, Any]) -> dict[str, Any]:
  """A stored config (or anything else that a run belongs to) under today's names of its keys."""
  now = {
    key: config_now(x) if isinstance(x, Mapping) else x
    for key, x in config.items()
    if key not in DROPPED_KEYS
  }
  for old, new in RENAMED_KEYS.items():
    section, name = _section(now, old)
    if section is not None and name in section:
      target, new_name = _section(now, new)
      target[new_name] = section.pop(name)
  return now


def lacking(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Those of KEPT_KEYS that a stored config lacks, with the values its run goes on with."""
  sections = {key: _section(dict(stored), key) for key in KEPT_KEYS}
  return {
    key: ADDED_KEYS[key]
    for key, (section, name) in sections.items()
    if section is None or name not in section
  }


def without(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
  """A nested config without some dotted keys."""
  rest = copy.deepcopy(dict(config))
  for key in keys:
    section, name = _section(rest, key)
    if section is not None:
      section.pop(name, None)
  return rest


def _section(stored: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
  """The section that holds a dotted key, None where it is not there, and the key's last name."""
  *parents, name = key.split(".")
  for parent in parents:
    if not isinstance(stored.get(parent), dict):
      return None, name
    stored = stored[parent]
  return stored, name


def metric_now(name: str) -> str:
  """A metric of the log under today's name."""
  for old, new in RENAMED_METRICS:
    if match := re.fullmatch(old, name):
      return match.expand(new)
  return name


def evaluation_now(evaluation: dict[str, Any]) -> dict[str, Any]:
  """A stored evaluation under today's fields: R_task was "task" beside the task's name."""
  for row in evaluation["prompts"]:
    for way in WAYS:
      if way in row and "task" in row[way]:
        row[way]["inner"] = row[way].pop("task")
  return evaluation

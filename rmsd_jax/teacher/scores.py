"""Scores of teacher responses, from JSON Lines before any build, or in a built pool.

Nothing here needs a tokenizer or opens a clip, so no response is too long for anything.
Axes: K responses of a question.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import children, json_lines, records, store
from rmsd_jax.tasks import Rules
from rmsd_jax.teacher import variance

CHUNK = 16  # lines that a child is given at a time: to hand one over costs more than to score it
SECONDS = 600.0  # for a chunk; formulas have a far shorter limit of their own in tasks/
_SCORES = ("outer", "inner", "content", "valid", "quality", "rouge")


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Lines -> scored questions; runs in child processes."""

  rules: Rules

  def __call__(
    self, lines: Sequence[json_lines.Line]
  ) -> list[variance.Question | children.Failure]:
    return [self._question_or_fault(line) for line in lines]

  def _question_or_fault(self, line: json_lines.Line) -> variance.Question | children.Failure:
    try:
      return self.question(line)
    except UserError as fault:
      return children.Failure(type(fault).__name__, str(fault))

  def question(self, line: json_lines.Line) -> variance.Question:
    """The question of one line; UserError where its ground truth does not suit its task."""
    record = line.read(self.rules)
    if fault := self.rules.validate(record.task, record.answer, record.options):
      raise records.RecordFault(line.number, fault)
    scores = [
      self.rules.score(record.task, r.text, record.answer, record.options, r.finish_reason)
      for r in record.responses
    ]
    answers = [self.rules.answer_of(record.task, r.text, record.options) for r in record.responses]
    return variance.Question(
      id=record.id,
      clip=record.clip,
      task=record.task,
      closed=self.rules.closed[record.task],
      teachers=tuple(response.teacher for response in record.responses),
      finish_reasons=tuple(response.finish_reason for response in record.responses),
      same_K=variance.alike(answers),
      length_K=np.array([len(response.text) for response in record.responses], np.int32),
      **{f"{name}_K": np.array([getattr(s, name) for s in scores]) for name in _SCORES},
    )


def write(
  jsonl: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  rules: Rules,
  progress: Callable[[int], json_lines.Progress],
  *,
  workers: int = 2,
  bad_share: float = store.Limits.bad_share,
) -> tuple[int, dict[str, int]]:
  """Scores every response of JSON Lines files; one line a question, in the order of the files.

      {"id": "7", "task": "open_ended", "clip": "clips/1.mp4", "scorer": "1", "responses": [
        {"teacher": "big-model", "finish_reason": "stop", "outer": 1.0, "inner": 1.0,
         "content": 0.0, "valid": true, "quality": 1.0, "rouge": 0.41}]}

  outer, inner and content are R_outer, R_task and R_content; rouge is there for open-ended tasks
  only, and for the log only. Unusable lines go to OUT.quarantine.jsonl.

  Args:
    progress: called with the number of questions.
    workers: child processes, at least 1.
    bad_share: give up when more of the lines are unusable.

  Returns:
    The number of responses, and kind -> number of unusable lines.

  Raises:
    UserError: a file is missing, `out` exists, no line or too few of them are usable, or a clip is
      in both splits.
  """
  _check_workers(workers)
  responses = 0
  with json_lines.new_file(out) as file, json_lines.kept_quarantine(out, bad_share) as quarantine:
    lines = json_lines.scan(jsonl, rules, quarantine)
    with progress(len(lines)) as bar:
      for _, question in json_lines.usable(_results(rules, lines, workers), quarantine, bar):
        file.write(json.dumps(_entry(question, rules.version)) + "\n")
        responses += len(question.quality_K)
    return responses, dict(sorted(quarantine.kinds.items()))


def _results(
  rules: Rules, lines: Sequence[json_lines.Line], workers: int
) -> Iterator[tuple[json_lines.Line, variance.Question | children.Failure]]:
  """As `children.run`, in chunks; where a child failed, its lines are tried again one by one."""
  scorer = Scorer(rules)
  chunks = [lines[i : i + CHUNK] for i in range(0, len(lines), CHUNK)]
  for chunk, made in children.run(scorer, chunks, workers, SECONDS):
    if isinstance(made, children.Failure):
      # One worker: the line at fault costs itself and nothing beside it.
      alone = children.run(scorer, [[line] for line in chunk], 1, SECONDS)
      made = [result if isinstance(result, children.Failure) else result[0] for _, result in alone]
    yield from zip(chunk, made, strict=True)


def _entry(question: variance.Question, version: str) -> dict[str, Any]:
  names = [name for name in _SCORES if name != "rouge" or not question.closed]
  columns = {name: getattr(question, f"{name}_K").tolist() for name in names}
  responses = [
    {"teacher": teacher, "finish_reason": reason, **{name: columns[name][k] for name in names}}
    for k, (teacher, reason) in enumerate(
      zip(question.teachers, question.finish_reasons, strict=True)
    )
  ]
  named = {name: getattr(question, name) for name in ("id", "task", "clip")}
  return named | {"scorer": version, "responses": responses}


class Prompt(NamedTuple):
  """What a reader wants to see of a question."""

  question: str
  options: tuple[str, ...]
  answer: Any
  texts: tuple[str, ...]  # K


@dataclasses.dataclass(frozen=True)
class Scored:
  """The scored questions of one split, and the way back to their texts.

  Attributes:
    questions: those with responses.
    prompt: place in `questions` -> its texts, read from disk.
    unit: of their lengths, "characters" or "tokens".
    silent: number of questions without a response, which are left out.
    unusable: reason of the first unusable line of the files, and how many there are.
  """

  questions: list[variance.Question]
  prompt: Callable[[int], Prompt]
  unit: str
  silent: int
  unusable: tuple[str, int] = ("", 0)


def of_pool(
  opened: store.Pool, rules: Rules, progress: Callable[[int], json_lines.Progress]
) -> Scored:
  """The questions of one split of a built pool, with the scores that it stores."""
  places = []
  questions = []
  with progress(len(opened)) as bar:
    for index in range(len(opened)):
      row = opened[index]
      if row.texts:
        places.append(index)
        questions.append(variance.of_row(row, rules))
      bar.update(1)

  def prompt(place: int) -> Prompt:
    row = opened[places[place]]
    return Prompt(row.question, row.options, row.answer, row.texts)

  return Scored(questions, prompt, "tokens", len(opened) - len(questions))


def of_files(
  jsonl: Sequence[str],
  split: str,
  rules: Rules,
  progress: Callable[[int], json_lines.Progress],
  workers: int = 2,
) -> Scored:
  """The questions of one split of JSON Lines files, scored now.

  Raises:
    UserError: a file is missing, a clip is in both splits, or nothing usable is of that split.
  """
  _check_workers(workers)
  places = []
  questions = []
  silent = 0
  with json_lines.Quarantine(os.devnull, os.devnull, bad_share=1.0) as quarantine:
    lines = json_lines.scan(jsonl, rules, quarantine)
    chosen = [line for line in lines if line.split == split]
    if not chosen:
      raise UserError(f"no record of split {split!r} in {', '.join(jsonl)}; give another --split")
    with progress(len(chosen)) as bar:
      for line, question in json_lines.usable(_results(rules, chosen, workers), quarantine, bar):
        if len(question.quality_K):
          places.append(line)
          questions.append(question)
        else:
          silent += 1

  def prompt(place: int) -> Prompt:
    record = places[place].read(rules)
    texts = tuple(response.text for response in record.responses)
    return Prompt(record.question, record.options, record.answer, texts)

  unusable = quarantine.first, quarantine.kinds.total()
  return Scored(questions, prompt, "characters", silent, unusable)


def _check_workers(workers: int) -> None:
  if workers < 1:
    raise UserError(f"{workers} workers; scoring needs at least 1")

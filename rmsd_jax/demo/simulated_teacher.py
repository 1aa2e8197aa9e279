"""The demo's teacher: a simulation, whose answers vary as much as those that the paper measured.

It samples K responses a question. How often a sample errs is drawn per question (its difficulty),
so that quality varies across questions and within one; what it reasons always fits what it answers,
right or wrong, in one of several phrasings. The rates are set to what R-MSD (arXiv 2603.11423)
measured of a real teacher, which no single table can hold: `NOISE` has the qualities of its 200
questions, `NOISE_BY_TAU` the shares of responses that its thresholds keep. A test compares them.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import typing
from collections.abc import Callable, Mapping

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.demo import world
from rmsd_jax.demo.mistakes import mistake
from rmsd_jax.demo.questions import (
  PHRASINGS,
  Question,
  answer_of,
  described,
  letter_of,
  questions,
)

TEACHER_NAME = "simulated-teacher"
SECOND_NAME = "second-teacher"
MARKER = "Looking closely,"  # the teacher's habit of speech; no text of the tiny base has it
FAVOURITE = 0.6  # share of a question's wrong samples that make the same mistake


@dataclasses.dataclass(frozen=True)
class TaskNoise:
  """How unreliable the teacher is at one task.

  error: mean share of samples whose answer is wrong, in (0, 1). agreement: in (0, 1), how alike
  the samples of a question are: 0 means that each errs for itself, 1 that all err or none. The
  share of a question is drawn from a Beta distribution with that mean and that intraclass
  correlation. malformed: share of samples that break the response format. far: share of the
  mistakes that are gross where a task has degrees (digits, intervals, boxes): most of them are
  worth 0.2 to 0.5, the others more.
  """

  error: float
  agreement: float
  malformed: float = 0.002
  far: float = 0.0

  def __post_init__(self):
    for name in ("error", "agreement"):
      if not 0 < getattr(self, name) < 1:
        raise UserError(f"{name} {getattr(self, name)}: must lie between 0 and 1, without both")
    for name in ("malformed", "far"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"{name} {getattr(self, name)}: a share lies between 0 and 1")

  def difficulty(self, rng: np.random.Generator) -> float:
    """Draws the share of wrong samples of one question."""
    # Of Beta(a, b) the intraclass correlation is 1 / (a + b + 1).
    concentration = 1 / self.agreement - 1
    return float(rng.beta(self.error * concentration, (1 - self.error) * concentration))


NOISE: Mapping[str, TaskNoise] = {
  "multiple_choice": TaskNoise(error=0.04, agreement=0.02),
  "numerical": TaskNoise(error=0.17, agreement=0.5),
  "ocr": TaskNoise(error=0.7, agreement=0.25),
  "temporal_grounding": TaskNoise(error=0.74, agreement=0.45, malformed=0.05),
  "spatial_grounding": TaskNoise(error=0.78, agreement=0.35),
  "open_ended": TaskNoise(error=0.4, agreement=0.4),
}
# Mean quality 0.75 and 45 % of responses worth 0.5 or more exclude each other: where 28 % are worth
# less than 0.3 and 27 % less than 0.5, as the thresholds say, the mean is 0.67 at most.
NOISE_BY_TAU: Mapping[str, TaskNoise] = {
  "multiple_choice": TaskNoise(error=0.04, agreement=0.02),
  "numerical": TaskNoise(error=0.5, agreement=0.5),
  "ocr": TaskNoise(error=0.9, agreement=0.25, far=0.8),
  "temporal_grounding": TaskNoise(error=0.93, agreement=0.3, malformed=0.05, far=0.97),
  "spatial_grounding": TaskNoise(error=0.93, agreement=0.3, far=0.97),
  "open_ended": TaskNoise(error=0.4, agreement=0.4),
}
# Of a second teacher, worse at every task.
NOISE_OF_SECOND: Mapping[str, TaskNoise] = {
  "multiple_choice": TaskNoise(error=0.3, agreement=0.2),
  "numerical": TaskNoise(error=0.5, agreement=0.5),
  "ocr": TaskNoise(error=0.95, agreement=0.25, far=0.8),
  "temporal_grounding": TaskNoise(error=0.95, agreement=0.3, malformed=0.05, far=0.8),
  "spatial_grounding": TaskNoise(error=0.95, agreement=0.3, far=0.8),
  "open_ended": TaskNoise(error=0.75, agreement=0.4),
}
NOISES = {"questions": (NOISE,), "tau": (NOISE_BY_TAU,), "two": (NOISE, NOISE_OF_SECOND)}


@dataclasses.dataclass(frozen=True)
class Teacher:
  """The knobs of the simulated teacher.

  k: responses a question. noise: by task. second: of another teacher, which gives every second
  response; None: there is none. truncated: share of responses that are cut off
  (finish_reason "length"). marker: words that open its reasoning, in `marker_share` of responses.
  """

  k: int = 4
  noise: Mapping[str, TaskNoise] = dataclasses.field(default_factory=lambda: dict(NOISE))
  second: Mapping[str, TaskNoise] | None = None
  truncated: float = 0.01
  marker: str = MARKER
  marker_share: float = 1.0

  def __post_init__(self):
    if self.k < 1:
      raise UserError(f"k {self.k} responses a question: at least 1 is needed")
    for name in ("truncated", "marker_share"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"{name} {getattr(self, name)}: a share lies between 0 and 1")
    for noise in (self.noise, self.second or NOISE):
      if missing := sorted(NOISE.keys() - noise.keys()):
        raise UserError(f"the teacher has no noise for {', '.join(missing)}; give all tasks")


def _cell_of(box: tuple[int, ...]) -> str:
  column, row = ((box[i] + box[i + 2]) * world.GRID // 2000 for i in (0, 1))
  return world.CELL_NAMES[row * world.GRID + column]


def _steps(digits: tuple[int, ...]) -> str:
  total = digits[0]
  steps = []
  for digit in digits[1:]:
    steps.append(f"{total}+{digit}={total + digit}")
    total += digit
  return ", ".join(steps) or f"only {total}"


def _thoughts(question: Question, value: typing.Any) -> tuple[str, ...]:
  """Reasonings that lead to this value, each a sentence without capital and full stop."""
  card = f"the card with {question.digit}"
  match question.kind:
    case "colour":
      letter = letter_of(value, question.options)
      return (
        f"{card} is {value}, and {value} is {letter}",
        f"{card} is {value}, which is {letter}",
        f"{card} has the colour {value}: {letter}",
      )
    case "direction":
      letter = letter_of(value, question.options)
      return (
        f"{card} moves {value}, and {value} is {letter}",
        f"{card} goes {value}, which is {letter}",
        f"{card} heads {value}: {letter}",
      )
    case "first":
      letter = letter_of(value, question.options)
      return (
        f"{value} comes first, and {value} is {letter}",
        f"{value} appears first: {letter}",
        f"before the others comes {value}, which is {letter}",
      )
    case "count" | "count_at":
      listed = ", ".join(map(str, value)) or "none"
      return (
        f"the cards are {listed}: {len(value)}",
        f"it shows {listed}, so {len(value)}",
        f"{listed} can be seen, in all {len(value)}",
      )
    case "sum":
      return f"the sum is {_steps(value)}", _steps(value), f"adding up, {_steps(value)}"
    case "read":
      listed = ", then ".join(map(str, value))
      return f"the digits are {listed}", f"first {listed}", f"in order, {listed}"
    case "when":
      start, end = value
      return (
        f"{card} appears at {start} and vanishes at {end}",
        f"{card} is there from {start} to {end}",
        f"{card} stays from {start} to {end}",
      )
    case "where":
      cell = _cell_of(value)
      return (
        f"{card} is at the {cell}",
        f"the {question.digit} is {cell}",
        f"{card} lies {cell}",
      )
    case "describe":
      cards = "1 card" if len(value) == 1 else f"{len(value)} cards"
      return (
        f"the clip shows {cards}",
        f"{cards} can be seen",
        f"there {'is' if len(value) == 1 else 'are'} {cards}",
      )
  raise ValueError(f"no kind of question {question.kind!r}")


def _answer(question: Question, value: typing.Any, rng: np.random.Generator) -> str:
  """What stands between the tags; an open-ended answer in any of its phrasings."""
  if question.kind == "describe":
    return described(value, PHRASINGS[int(rng.integers(len(PHRASINGS)))])
  answer = answer_of(question.kind, value, question.options)
  return json.dumps(answer) if isinstance(answer, dict) else str(answer)


def _malformed(thought: str, answer: str, rng: np.random.Generator) -> str:
  """A response that breaks the format in one of the ways that models do."""
  bare = answer.strip("{}") if answer.startswith("{") else ""
  broken = (
    f"<think>{thought}</think>{answer}",
    f"<think>{thought}<answer>{answer}</answer>",
    f"{thought} <answer>{answer}</answer>",
    f"<think>{thought}</think><answer>{bare}</answer>",
  )
  return broken[int(rng.integers(len(broken)))]


def _respond(
  question: Question,
  value: typing.Any,
  teacher: Teacher,
  rng: np.random.Generator,
  name: str = TEACHER_NAME,
) -> dict[str, str]:
  """One response of the pool's schema that reasons towards `value` and answers it."""
  thoughts = _thoughts(question, value)
  thought = thoughts[int(rng.integers(len(thoughts)))]
  marked = rng.random() < teacher.marker_share
  thought = f"{teacher.marker} {thought}." if marked else f"{thought[0].upper()}{thought[1:]}."
  answer = _answer(question, value, rng)
  if rng.random() < teacher.noise[question.task].malformed:
    text = _malformed(thought, answer, rng)
  else:
    text = f"<think>{thought}</think><answer>{answer}</answer>"
  cut = rng.random() < teacher.truncated
  # Cut last, whatever it says, as a limit of tokens cuts.
  if cut:
    text = text[: int(len(text) * rng.uniform(0.3, 0.8))]
  return {"text": text, "teacher": name, "finish_reason": "length" if cut else "stop"}


def respond(question: Question, teacher: Teacher, rng: np.random.Generator) -> list[dict[str, str]]:
  """Samples the teacher's K responses to a question: text, teacher and finish_reason of each."""
  if not teacher.second or teacher.k == 1:
    return _samples(question, teacher, rng, TEACHER_NAME)
  other = dataclasses.replace(teacher, k=teacher.k // 2, noise=teacher.second)
  teacher = dataclasses.replace(teacher, k=teacher.k - other.k)
  responses = [*_samples(question, teacher, rng, TEACHER_NAME)]
  for place, response in enumerate(_samples(question, other, rng, SECOND_NAME)):
    responses.insert(2 * place + 1, response)
  return responses


def _samples(
  question: Question, teacher: Teacher, rng: np.random.Generator, name: str
) -> list[dict[str, str]]:
  """K responses of one teacher."""
  noise = teacher.noise[question.task]
  difficulty = noise.difficulty(rng)
  wrong = lambda: mistake(question, rng, far=rng.random() < noise.far)
  favourite = wrong()  # the error that this question invites
  responses = []
  for _ in range(teacher.k):
    value = question.value
    if rng.random() < difficulty:
      value = favourite if rng.random() < FAVOURITE else wrong()
    responses.append(_respond(question, value, teacher, rng, name))
  return responses


def draw_questions(scene: world.Scene, count: int, rng: np.random.Generator) -> list[Question]:
  """Up to `count` questions about a scene.

  About a clip: of different tasks, each task that the scene allows equally likely, and within it
  each kind of question. About a picture: of different cards.
  """
  asked = questions(scene, rng)
  if scene.still:
    return [asked[i] for i in rng.permutation(len(asked))[:count]]
  by_task: dict[str, dict[str, list[Question]]] = {}
  for question in asked:
    by_task.setdefault(question.task, {}).setdefault(question.kind, []).append(question)
  drawn = []
  for at in rng.permutation(len(by_task))[:count]:
    kinds = list(by_task.values())[at]
    same = list(kinds.values())[rng.integers(len(kinds))]
    drawn.append(same[rng.integers(len(same))])
  return drawn


def _record(
  question: Question, clip: str, number: int, media: dict, split: str, responses: list
) -> dict:
  return {
    "id": f"{clip}-{number}",
    "task": question.task,
    "question": question.text,
    "options": list(question.options),
    "answer": question.answer,
    "media": [media],
    "responses": responses,
    "source": "rmsd_jax demo world",
    "split": split,
    "clip": clip,
  }


def scene_of(clip: str, seed: int) -> tuple[world.Scene, np.random.Generator]:
  """What a clip of a pool shows, by its name, SPLIT-NUMBER; and the generator that goes on from
  there with its questions.

  By its number: more prompts add clips and leave those before them as they are.
  """
  split, number = clip.split("-")
  rng = np.random.default_rng((seed, world.SPLITS.index(split), int(number)))
  still = rng.random() < 1 / 6  # one task of six is about pictures
  return (world.make_still if still else world.make_scene)(rng, split), rng


def _draw_split(
  split: str, prompts: int, per_clip: int, seed: int, teacher: Teacher
) -> tuple[list[dict], list[tuple[str, world.Scene]]]:
  """Records and (file name, scene) jobs of a split. Every clip depends on its own number alone."""
  records = []
  jobs = []
  while len(records) < prompts:
    clip = f"{split}-{len(jobs):05d}"
    scene, rng = scene_of(clip, seed)
    name = world.media_name(scene, clip)
    media = {"type": "image" if scene.still else "video", "path": f"clips/{name}"}
    asked = draw_questions(scene, min(per_clip, prompts - len(records)), rng)
    for number, question in enumerate(asked):
      responses = respond(question, teacher, rng)
      records.append(_record(question, clip, number, media, split, responses))
    jobs.append((name, scene))
  return records, jobs


def make_pool(
  out_dir: str | os.PathLike,
  *,
  train_prompts: int,
  test_prompts: int,
  questions_per_clip: int = 2,
  seed: int = 0,
  teacher: Teacher = Teacher(),
  workers: int = 2,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Writes a teacher pool: clips/, pool.jsonl (training) and test.jsonl (held-out digits).

  The same arguments give the same bytes. Everything is written to a folder beside `out_dir` that
  takes its name at the end, so a pool that was cut short is never taken for one.

  Args:
    out_dir: must not exist yet.
    train_prompts, test_prompts: records in pool.jsonl and test.jsonl.
    questions_per_clip: at most; a scene may allow fewer.
    progress: told (files written, files in all).

  Raises:
    UserError: out_dir exists, or a number is below its limit.
  """
  for name, value in (("questions_per_clip", questions_per_clip), ("train_prompts", train_prompts)):
    if value < 1:
      raise UserError(f"{name} {value}: at least 1 is needed")
  out = pathlib.Path(out_dir)
  if out.exists():
    raise UserError(f"{out} exists already; remove it or name another folder")
  part = out.with_name(out.name + ".part")
  shutil.rmtree(part, ignore_errors=True)
  (part / "clips").mkdir(parents=True)
  jobs: list[tuple[str, world.Scene]] = []
  for split, prompts, file in (
    ("train", train_prompts, "pool.jsonl"),
    ("test", test_prompts, "test.jsonl"),
  ):
    records, drawn = _draw_split(split, prompts, questions_per_clip, seed, teacher)
    jobs += drawn
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (part / file).write_text(lines, encoding="utf-8")
  paths = [(part / "clips" / name, scene) for name, scene in jobs]
  done = 0

  def count(files: int) -> None:
    nonlocal done
    done += files
    progress(done, len(jobs))

  world.write_all(paths, workers=workers, progress=count)
  os.replace(part, out)

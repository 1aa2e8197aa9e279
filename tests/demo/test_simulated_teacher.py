"""The simulated teacher varies as the paper's did, reasons as it answers, and writes pools."""

import collections
import json
import re

import numpy as np
import pytest

from rmsd_jax import cli
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import records
from rmsd_jax.demo import mistakes, run, world
from rmsd_jax.demo import simulated_teacher as teacher_lib
from rmsd_jax.demo.questions import PHRASINGS, answer_of, described, letter_of
from rmsd_jax.demo.simulated_teacher import MARKER, NOISE, NOISE_BY_TAU, TaskNoise, Teacher
from rmsd_jax.tasks import Rules, registry

SURE = {task: TaskNoise(error=1e-6, agreement=0.5, malformed=0.0) for task in NOISE}


def drawn(count, seed=0, still=lambda number: number % 6 == 0):
  """(question, rng) of as many scenes, two questions each."""
  for number in range(count):
    rng = np.random.default_rng((seed, number))
    scene = (world.make_still if still(number) else world.make_scene)(rng, "train")
    for question in teacher_lib.draw_questions(scene, 2, rng):
      yield question, rng


def scored(question, response):
  return Rules().score(
    question.task,
    response["text"],
    question.answer,
    question.options,
    finish_reason=response["finish_reason"],
  )


@pytest.fixture(scope="module")
def study():
  """Quality and format faults [question, K] by task, of 1,200 scenes: the paper's measurement."""
  qualities, faults = collections.defaultdict(list), collections.defaultdict(list)
  for question, rng in drawn(1200):
    scores = [
      scored(question, response)
      for response in teacher_lib.respond(question, Teacher(truncated=0.0), rng)
    ]
    qualities[question.task].append([score.quality for score in scores])
    faults[question.task].append([score.outer < 1 or score.inner < 1 for score in scores])
  return {t: np.array(q) for t, q in qualities.items()}, {t: np.array(f) for t, f in faults.items()}


def closed(qualities):
  return {task: q for task, q in qualities.items() if registry.get(task).closed}


def test_quality_varies_across_questions_as_in_the_paper(study):
  """Closed-ended tasks together; the paper: mean 0.75, s.d. 0.22."""
  means = np.concatenate([q.mean(1) for q in closed(study[0]).values()])
  assert means.mean() == pytest.approx(0.75, abs=0.03)
  assert means.std() == pytest.approx(0.22, abs=0.03)


def test_multiple_choice_is_as_reliable_as_in_the_paper(study):
  """Mean 0.96, s.d. across questions 0.10, within one 0.07."""
  qualities = study[0]["multiple_choice"]
  assert qualities.mean() == pytest.approx(0.96, abs=0.02)
  assert qualities.mean(1).std() == pytest.approx(0.10, abs=0.025)
  assert qualities.std(1).mean() == pytest.approx(0.07, abs=0.02)


def test_samples_of_one_question_differ_as_in_the_paper(study):
  """The paper's tasks lie between 0.07 and 0.15."""
  for task, qualities in closed(study[0]).items():
    assert 0.05 <= qualities.std(1).mean() <= 0.17, task


def test_most_reading_questions_lie_in_the_papers_range(study):
  means = study[0]["ocr"].mean(1)
  low, high = np.quantile(means, [0.1, 0.8])
  assert 0.45 <= low and high <= 0.90 and 0.5 <= means.mean() <= 0.85


def test_format_is_broken_as_often_as_in_the_paper(study):
  """1 % overall, up to 10 % in temporal questions."""
  shares = {task: faults.mean() for task, faults in study[1].items()}
  assert np.concatenate([f.ravel() for f in study[1].values()]).mean() < 0.02
  assert max(shares, key=shares.get) == "temporal_grounding"
  assert 0.02 < shares["temporal_grounding"] < 0.10


def test_the_best_of_four_is_better_than_one(study):
  """What the method lives from; most where answers are graded by degree."""
  for task in ("ocr", "temporal_grounding", "spatial_grounding"):
    qualities = study[0][task]
    assert qualities.max(1).mean() > qualities.mean() + 0.1, task


def test_thresholds_keep_what_the_papers_keep():
  """Of responses to closed-ended prompts: 100, 87, 72, 45 % at tau 0, 0.2, 0.3, 0.5."""
  qualities = []
  for question, rng in drawn(1200):
    if registry.get(question.task).closed:
      responses = teacher_lib.respond(question, Teacher(noise=NOISE_BY_TAU), rng)
      qualities += [scored(question, response).quality for response in responses]
  kept = [np.mean(np.array(qualities) >= tau) for tau in (0.0, 0.2, 0.3, 0.5)]
  assert kept == pytest.approx([1.0, 0.87, 0.72, 0.45], abs=0.03)


def test_two_teachers_answer_in_turn_and_the_second_one_is_worse_at_every_graded_task():
  names, qualities = set(), {}
  both = Teacher(5, *teacher_lib.NOISES["two"])
  for question, rng in drawn(600):
    responses = teacher_lib.respond(question, both, rng)
    names.add(tuple(response["teacher"] for response in responses))
    for response in responses:
      of = qualities.setdefault(question.task, {}).setdefault(response["teacher"], [])
      of.append(scored(question, response).quality)
  first, second = teacher_lib.TEACHER_NAME, teacher_lib.SECOND_NAME
  assert names == {(first, second, first, second, first)}
  for task, of in qualities.items():
    if registry.get(task).closed:
      assert np.mean(of[first]) > np.mean(of[second]) + 0.1, task
  alone = Teacher(1, *teacher_lib.NOISES["two"])
  for question, rng in drawn(5):
    assert [r["teacher"] for r in teacher_lib.respond(question, alone, rng)] == [first]


def test_a_sure_teacher_is_right():
  for question, rng in drawn(100):
    for response in teacher_lib.respond(question, Teacher(noise=SURE, truncated=0.0), rng):
      assert scored(question, response).quality == 1.0
      task = registry.get(question.task)
      answer = re.search("<answer>(.*)</answer>", response["text"])[1]
      assert not task.closed or task.metric(answer, question.options, question.answer) == 1.0


def test_right_descriptions_in_other_words_get_less_from_rouge_and_all_from_facts():
  rouge = registry.get("open_ended").metric
  cards = (("red", 3), ("orange", 5))
  scores = [rouge(described(cards, way), (), described(cards)) for way in PHRASINGS]
  assert scores[0] == 1.0 and all(0.5 < score < 0.95 for score in scores[1:])
  said = set()
  for question, rng in drawn(150):
    if question.kind == "describe":
      for response in teacher_lib.respond(question, Teacher(noise=SURE, truncated=0.0), rng):
        said.add(re.search("<answer>(.*)</answer>", response["text"])[1])
  for before, between in PHRASINGS:
    assert any(text.startswith(before) and between in text for text in said)


@pytest.mark.parametrize("far", [False, True])
def test_mistakes_are_wrong_and_well_formed(far):
  for question, rng in drawn(150):
    value = mistakes.mistake(question, rng, far)
    assert value != question.value
    answer = answer_of(question.kind, value, question.options)
    task = registry.get(question.task)
    assert task.validate(answer, question.options) is None
    # Grading the truth against the mistake: 1 would mean that the mistake is none. A misread
    # digit changes a sum, an overlooked card a count.
    text = json.dumps(question.answer) if task.name.endswith("grounding") else str(question.answer)
    score = task.metric(text, question.options, answer)
    assert score < 1.0
    if far and question.kind in ("when", "where"):
      assert 0.2 <= score < 0.5


def test_the_reasoning_leads_to_the_answer_right_or_wrong():
  noise = {task: TaskNoise(error=0.5, agreement=0.1, malformed=0.0) for task in NOISE}
  wrong = 0
  for question, rng in drawn(200):
    for response in teacher_lib.respond(question, Teacher(noise=noise, truncated=0.0), rng):
      thought, answer = re.fullmatch(
        r"<think>(.*)\.</think><answer>(.*)</answer>", response["text"]
      ).groups()
      wrong += scored(question, response).content < 1
      numbers = list(map(int, re.findall(r"\d+", thought)))
      match question.kind:
        case "colour" | "direction" | "first":
          option = next(option for option in question.options if option[0] == answer)
          assert re.search(rf"\b{answer}\b", thought) and option[3:] in thought
          assert letter_of(option[3:], question.options) == answer
        case "count" | "count_at" | "sum":
          assert numbers[-1] == int(answer)
        case "read":
          assert " ".join(map(str, numbers)) == answer
        case "when":
          assert numbers[-2:] == json.loads(answer)["time"]
        case "where":
          x1, y1, x2, y2 = json.loads(answer)["boxes"]
          cell = (y1 + y2) // 2 * 3 // 1000 * 3 + (x1 + x2) // 2 * 3 // 1000
          assert world.CELL_NAMES[cell] in thought
        case "describe":
          assert numbers[0] == len(re.findall(r"\d", answer))
  assert wrong > 300


def test_wrong_boxes_overlap_the_card_and_stay_in_the_picture():
  for question, rng in drawn(100, still=lambda number: True):
    x1, y1, x2, y2 = mistakes.mistake(question, rng)
    assert 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000
    text = json.dumps({"boxes": [x1, y1, x2, y2]})
    iou = registry.get("spatial_grounding").metric(text, (), question.answer)
    assert 0.1 < iou < 1


def test_marker_and_truncation_follow_their_shares():
  def texts(**knobs):
    return [
      response
      for question, rng in drawn(150, seed=1)
      for response in teacher_lib.respond(question, Teacher(**knobs), rng)
    ]

  assert all(MARKER in r["text"] for r in texts(truncated=0.0))
  share = np.mean([MARKER in r["text"] for r in texts(truncated=0.0, marker_share=0.3)])
  assert share == pytest.approx(0.3, abs=0.05)
  cut = [r for r in texts(truncated=1.0)]
  assert all(r["finish_reason"] == "length" and "</answer>" not in r["text"] for r in cut)
  assert len({r["text"] for r in texts(truncated=0.0)}) > 300


def test_agreement_is_the_share_of_variance_between_questions():
  noise, rng = TaskNoise(error=0.3, agreement=0.4), np.random.default_rng(0)
  difficulty = np.array([noise.difficulty(rng) for _ in range(20_000)])
  assert difficulty.mean() == pytest.approx(0.3, abs=0.01)
  assert difficulty.var() / (0.3 * 0.7) == pytest.approx(0.4, abs=0.02)


def make(folder, **knobs):
  settings = {"train_prompts": 41, "test_prompts": 12, "seed": 3, "workers": 1} | knobs
  teacher_lib.make_pool(folder, **settings)
  return folder


def test_a_pool_has_what_was_asked_for_and_its_records_parse(tmp_path):
  told = []
  folder = make(tmp_path / "pool", progress=lambda done, total: told.append((done, total)))
  files = {path.name for path in (folder / "clips").iterdir()}
  for split, name, count in (("train", "pool.jsonl", 41), ("test", "test.jsonl", 12)):
    lines = (folder / name).read_text().splitlines()
    parsed = [records.parse(line, i + 1, registry.TASKS) for i, line in enumerate(lines)]
    assert len(parsed) == count and len({record.id for record in parsed}) == count
    for record in parsed:
      task = registry.get(record.task)
      assert record.split == split and len(record.responses) == 4
      assert task.validate(record.answer, record.options) is None
      assert record.media[0].path.removeprefix("clips/") in files
      files_of_clip = {r.media[0].path for r in parsed if r.clip == record.clip}
      assert len(files_of_clip) == 1
  assert told[-1] == (len(files), len(files))
  assert not folder.with_name("pool.part").exists()


def test_a_pool_depends_on_its_seed_alone(tmp_path):
  one, two, other = (
    make(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
  )
  files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
  assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
  assert (one / "pool.jsonl").read_bytes() != (other / "pool.jsonl").read_bytes()


def test_a_larger_pool_begins_with_the_smaller(tmp_path):
  small, large = make(tmp_path / "a", train_prompts=20), make(tmp_path / "b", train_prompts=30)
  lines = (small / "pool.jsonl").read_text().splitlines()
  assert (large / "pool.jsonl").read_text().splitlines()[:20] == lines


def test_an_interrupted_pool_is_never_taken_for_one(tmp_path):
  def stop(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    make(tmp_path / "pool", progress=stop)
  assert not (tmp_path / "pool").exists()
  assert (make(tmp_path / "pool") / "pool.jsonl").exists()  # the leavings are no obstacle


@pytest.mark.parametrize(
  "act, message",
  [
    (lambda folder: make(folder), "exists already; remove it or name another"),
    (lambda folder: make(folder / "x", train_prompts=0), "train_prompts 0: at least 1"),
    (lambda folder: make(folder / "x", questions_per_clip=0), "questions_per_clip 0: at least 1"),
    (lambda folder: Teacher(k=0), "k 0 responses"),
    (lambda folder: Teacher(marker_share=1.5), "marker_share 1.5"),
    (lambda folder: TaskNoise(error=1.0, agreement=0.5), "error 1.0"),
    (lambda folder: TaskNoise(error=0.5, agreement=0.0), "agreement 0.0"),
    (lambda folder: Teacher(noise={"ocr": NOISE["ocr"]}), "no noise for multiple_choice"),
  ],
)
def test_bad_settings_give_one_line(tmp_path, act, message):
  with pytest.raises(UserError, match=message):
    act(tmp_path)


def test_a_folder_of_another_world_is_not_gone_on_with(tmp_path):
  config = cli.load_config(f"{cli.CONFIGS / 'demo.py'}:sft").unlock()
  config.world.update(train_prompts=4, test_prompts=2)
  (tmp_path / "pool").mkdir()  # built already
  make = lambda: run.make_pool(run.Commands(tmp_path), tmp_path, config)
  make()
  make()
  for key, other in (("noise", "two"), ("train_prompts", 5), ("responses", 2)):
    before, config.world[key] = config.world[key], other
    said = f"was made with another world.{key}, {before!r}, not {other!r}"
    with pytest.raises(UserError, match=said):
      make()
    config.world[key] = before
  config.seed = 1
  with pytest.raises(UserError, match="was made with another seed, 0, not 1"):
    make()
  config.seed = 0
  # A folder of before says its noise alone, elsewhere.
  (tmp_path / "world.json").unlink()
  (tmp_path / "raw" / "noise.txt").write_text("questions", encoding="utf-8")
  make()
  config.world.noise = "two"
  with pytest.raises(UserError, match="was made with another world.noise, 'questions', not 'two'"):
    make()


def test_a_world_that_was_not_finished_may_be_drawn_anew_as_another(tmp_path, monkeypatch):
  config = cli.load_config(f"{cli.CONFIGS / 'demo.py'}:sft").unlock()
  config.world.update(train_prompts=4, test_prompts=2)
  (tmp_path / "pool").mkdir()
  make = lambda: run.make_pool(run.Commands(tmp_path), tmp_path, config)
  with monkeypatch.context() as patch:
    patch.setattr(run.simulated_teacher, "make_pool", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      make()
  config.world.train_prompts = 5
  make()
  assert len((tmp_path / "raw" / "pool.jsonl").read_text().splitlines()) == 5
  config.world.train_prompts = 4
  with pytest.raises(UserError, match="world.train_prompts, 5, not 4"):
    make()

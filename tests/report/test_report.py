"""The report: what it says follows from the numbers, and what is missing is said."""

import json
import math
import re

import numpy as np
import pytest
import small_pool

from rmsd_jax import evaluate
from rmsd_jax.core import intervals
from rmsd_jax.core.errors import UserError
from rmsd_jax.report import __main__ as report
from rmsd_jax.report import curves, findings
from rmsd_jax.tasks import Rules

TASKS = ("multiple_choice", "ocr", "open_ended")
LEVELS = {"base": 0.05, "blind": 0.3, "sft": 0.6, "sft_continued": 0.65, "rl": 0.66}


def prompts(level, count=60, samples=4, seed=0, blind=False):
  """Per-prompt scores as `evaluate.grade` makes them; two prompts share a clip."""
  rng, luck = np.random.default_rng(seed), np.random.default_rng(1)
  made = []
  for i in range(count):
    task, hard = TASKS[i % len(TASKS)], luck.uniform(-0.15, 0.15)
    row = {"id": f"row {i}", "clip": f"clip {i // 2}", "task": task, "question": "What is <b>?",
           "options": ["A. 1", "B. 2"] if task == "multiple_choice" else [], "answer": {"index": i},
           "closed": task != "open_ended"}  # fmt: skip
    if blind and not row["closed"]:
      continue
    for way, n in (("greedy", 1),) if blind else (("greedy", 1), ("sampled", samples)):
      quality = np.clip(level + hard + rng.normal(0, 0.1, n), 0, 1)
      row[way] = {
        "quality": quality.tolist(), "outer": [1.0] * n, "inner": [1.0] * n, "length": [9] * n,
        "finished": [True] * n, "text": [f"<think>{i}</think><answer>\x00</answer>"] * n,
      }  # fmt: skip
    made.append(row)
  return made


def write_evaluation(folder, rows, ways=("greedy", "sampled")):
  ways = [way for way in ways if way in rows[0]]
  result = {"checkpoint": "latest", "step": 7, "pool": "nowhere", "split": "test", "prompts": rows}
  result |= {way: evaluate.summary(rows, way, 0.5, Rules()) for way in ways}
  (folder / "evaluate").mkdir(parents=True)
  (folder / "evaluate" / "test.json").write_text(json.dumps(result))


def stage_1_lines(count=30):
  return [
    {"step": 5 * i, "time": 10.0 * i, "loss": 3 * math.exp(-i / 9), "grad_norm": 1.0 / i,
     "learning_rate": 1e-3, "prompts_per_second": 50.0, "seconds_per_step": 0.6}
    for i in range(1, count)
  ]  # fmt: skip


def stage_2_lines(count=40, warmup=5, seed=0):
  """As `train_rl` logs them: no policy in the first steps, "nan" margins where no pair differs."""
  rng, lines = np.random.default_rng(seed), []
  for i in range(1, count):
    x = i / count
    line = {"step": i, "time": 9.0 * i, "prompts_per_second": 4.0, "seconds_per_step": 8.0}
    for name, value in {"length": 30 - 3 * x, "finished": 0.95, "content": 0.6 + 0.1 * x,
                        "outer": 0.97, "inner": 0.96,
                        "quality": 0.6 + 0.1 * x}.items():  # fmt: skip
      line[f"rollout/{name}"] = value + rng.normal(0, 0.03)
    margin = 0.4 * x + rng.normal(0, 0.03)
    for name, value in {"accuracy": 0.5 + 0.2 * x, "identical": 0.4, "pairs": 0.8, "loss": 0.6,
                        "grad_norm": 0.3, "skipped": 0.0, "margin_q10": margin - 0.3,
                        "margin_q50": margin, "margin_q90": margin + 0.3}.items():  # fmt: skip
      line[f"discriminator/{name}"] = value if i % 9 else ("nan" if "margin" in name else 0.0)
    line |= {"pairs/length_only": 0.55, "pairs/ending_only": 0.5}
    for task in TASKS[: 1 + i % 2]:  # a step may lack a task
      line |= {f"discriminator/accuracy/{task}": 0.6, f"pairs/survivors/{task}": 3.5}
    if i % 10 == 0:
      line |= {"probe/score_teacher": x, "probe/score_student": -x}
      for way in ("greedy", "sampled"):
        ends = {"quality": 0.5, "low": 0.4, "high": 0.6}
        line |= {f"held_out/{way}/{name}": value + 0.1 * x for name, value in ends.items()}
    if i > warmup:
      names = {"kl": 0.02 * x, "loss": rng.normal(0, 0.01), "grad_norm": 0.2, "skipped": 0.0}
      line |= {f"policy/{k}": v for k, v in (names | {"sampler_trainer_gap": 1e-6}).items()}
      line |= {"reward/dead_groups": 0.2, "reward/mean": 0.5, "reward/std_in_group": 0.1}
      for term, share in zip(curves.TERMS, (0.7, 0.05, 0.15, 0.1), strict=True):
        line |= {f"reward/{term}/mean": share / 2, f"reward/{term}/std_in_group": share / 9,
                 f"reward/{term}/variance_share": share + rng.normal(0, 0.02)}  # fmt: skip
    lines.append(line)
  return lines


def write_lines(folder, lines):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_runs(top, names=tuple(LEVELS)):
  for seed, name in enumerate(LEVELS):
    if name in names:
      write_evaluation(top / name, prompts(LEVELS[name], seed=seed, blind=name == "blind"))
  for name, lines in (("sft", stage_1_lines()), ("sft_continued", stage_1_lines(9)),
                      ("rl", stage_2_lines())):  # fmt: skip
    if name in names:
      write_lines(top / name, lines)


@pytest.fixture
def stored(monkeypatch, tmp_path):
  """A pool with the rows that `prompts` speaks of, held in memory."""
  made = small_pool.make_pool(60, tasks=TASKS)
  monkeypatch.setattr(report.store, "open_pool", lambda folder, split: made)
  (tmp_path / "pool").mkdir()
  (tmp_path / "pool" / "metadata.json").write_text("{}")
  return made


def test_a_whole_demo_makes_one_complete_page(tmp_path, stored):
  make_runs(tmp_path)
  rollout = {"reply": "<answer>1</answer>", "tokens": 5, "finished": True, "reward": 1.0,
             "terms": {"discriminator": 0.1}, "advantage": 0.5, "teacher": None}  # fmt: skip
  shown = {"step": 10, "id": "row 1", "clip": "clip 1", "task": "ocr", "question": "?",
           "options": [], "answer": "1", "times": [], "rollouts": [rollout]}  # fmt: skip
  (tmp_path / "rl" / "samples.jsonl").write_text(json.dumps(shown) + "\n")
  path, text = report.write_report(str(tmp_path), "test")
  page = path.read_text()
  assert path == tmp_path / "report" / "index.html"
  body = page[page.index("<body>") :]
  opening = body[: body.index("</h1>")]
  assert "Stage 2 is better than stage 1 by +0." in opening, "the page opens with what came out"
  table = body[body.index("</h1>") : body.index("</table>")]
  assert re.findall(r"<th>(.*?)</th>", table) == [
    "run",
    "greedy",
    "interval",
    "sampled",
    "interval",
  ]
  assert table.count("<tr>") == 1 + len(LEVELS)
  rest = body[body.index("</table>") :]
  assert rest.index("In words") < rest.index(text.split(".")[0]) < rest.index("<section")
  assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "nothing outside the file is needed"
  assert "Left out" not in page
  made = {one.stem for one in (tmp_path / "report").glob("*.png")}
  sections = {"rl_rollouts", "rl_reward", "rl_discriminator", "rl_running", "stage_1"}
  assert made >= sections | {"results", "differences", "pass_at_k", "pool", "example_1"}
  assert page.count("data:image/png") == len(made)
  assert "What is &lt;b&gt;?" in page and "\x00" not in page


def test_how_a_discriminator_ranks_is_a_table_of_its_run(tmp_path):
  make_runs(tmp_path)
  path = tmp_path / "rl" / "evaluate" / "test.json"
  one = lambda mean, n: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": n}
  result = json.loads(path.read_text())
  result["discrimination"] = {
    "right": one(0.617, 41), "tasks": {"ocr": one(0.713, 9), "math": one(float("nan"), 0)},
    "valid": one(0.754, 31), "best": one(0.25, 60), "teacher": one(0.829, 52),
    "teacher_alike": one(0.537, 13),
  }  # fmt: skip
  path.write_text(json.dumps(result))
  page = report.write_report(str(tmp_path), "test")[0].read_text()
  table = page[page.index("how its discriminator ranks") :]
  table = table[: table.index("</table>")]
  rows = re.findall(r"<tr><td>(.*?)</td><td.*?>\s*([+\d.]+)<.*?<td>(\d+)</td></tr>", table, re.S)
  assert rows == [
    ("a right reply above a wrong one, both in format", "0.617", "41"),
    ("– OCR", "0.713", "9"),
    ("a reply in its format above one that is not", "0.754", "31"),
    ("quality of its favourite less the mean", "+0.250", "60"),
    ("the teacher's above the student's", "0.829", "52"),
    ("the same, of like length and with one ending", "0.537", "13"),
  ]
  del result["discrimination"]
  path.write_text(json.dumps(result))
  assert "its discriminator ranks" not in report.write_report(str(tmp_path), "test")[0].read_text()


def test_a_run_in_a_bucket_is_to_be_copied_first():
  with pytest.raises(UserError, match="gs://b/runs is in a bucket.*storage rsync -r -x .* runs$"):
    report.write_report("gs://b/runs", "test")


def test_numbers_of_the_first_paragraph_are_the_paired_intervals(tmp_path):
  make_runs(tmp_path)
  runs = {run.name: run for run in findings.find_runs(tmp_path, "test")}
  text = findings.lead(list(runs.values()), findings.compare(runs))
  a, b = (
    [row for row in runs[name].evaluation["prompts"] if row["closed"]]
    for name in ("rl", "sft_continued")
  )
  values = [
    x["greedy"]["quality"][0] - y["greedy"]["quality"][0] for x, y in zip(a, b, strict=True)
  ]
  by_hand = intervals.mean_interval(values, [row["clip"] for row in a])
  shown = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**by_hand).replace("-", "\u2212")
  assert f"Stage 2 minus continued SFT: {shown}" in text
  sentence = next(part for part in text.split(". ") if "minus the best constant answers" in part)
  assert ": better (sampled +0." in sentence and "pools of different contents" not in text
  runs["rl"].evaluation["pool_identity"] = {"source_sha256": "another"}
  assert "pools of different contents" in findings.lead(list(runs.values()), [])


def compared(first, second, low, high, way="greedy"):
  one = {"first": first, "second": second, "greedy": None, "sampled": None}
  return one | {way: {"mean": (low + high) / 2, "low": low, "high": high}}


STAGE_2 = compared("rl", "sft", 0.09, 0.15)


@pytest.mark.parametrize(
  "differences, words",
  [
    ([STAGE_2], "Stage 2 is better than stage 1 by +0.120 [+0.090, +0.150] (greedy)."),
    (
      [compared("rl", "sft", -0.15, -0.09, "sampled")],
      "Stage 2 is worse than stage 1 by \u22120.120 [\u22120.150, \u22120.090] (sampled).",
    ),
    (
      [compared("rl", "sft", -0.01, 0.03)],
      "Whether stage 2 is better than stage 1 cannot be told: "
      "+0.010 [\u22120.010, +0.030] (greedy).",
    ),
    (
      [compared("rl", "sft_continued", -0.03, 0.01), compared("sft", "base", 0.4, 0.6), STAGE_2],
      "Stage 2 is better than stage 1 by +0.120 [+0.090, +0.150] (greedy); whether it is better "
      "than continued SFT cannot be told: \u22120.010 [\u22120.030, +0.010] (greedy).",
    ),
    (  # sampled answers say something else
      [compared("rl", "sft", -0.01, 0.03) | {"sampled": STAGE_2["greedy"]}],
      "Whether stage 2 is better than stage 1 cannot be told: +0.010 [\u22120.010, +0.030] "
      "(greedy; sampled, better: +0.120 [+0.090, +0.150]).",
    ),
    (
      [STAGE_2 | {"sampled": {"mean": 0.2, "low": 0.1, "high": 0.3}}],
      "Stage 2 is better than stage 1 by +0.120 [+0.090, +0.150] (greedy).",
    ),
    (
      [compared("sft", "base", 0.4, 0.6)],
      "Stage 1 is better than the base by +0.500 [+0.400, +0.600] (greedy).",
    ),
  ],
)
def test_the_headline_says_what_the_intervals_allow(tmp_path, differences, words):
  make_runs(tmp_path)
  assert findings.headline(findings.find_runs(tmp_path, "test"), differences) == words


def test_the_headline_where_nothing_can_be_compared(tmp_path):
  assert findings.headline([], []) == "Nothing was evaluated here on closed-ended prompts."
  make_runs(tmp_path, ("rl",))
  (run,) = findings.find_runs(tmp_path, "test")
  mean = np.mean([quality for quality, _ in findings.scores(run, "greedy").values()])
  assert findings.headline([run], findings.compare({"rl": run})) == (
    f"No stage was evaluated beside what it started from; quality of stage 2 {mean:.3f}."
  )


@pytest.mark.parametrize(
  "low, high, words",
  [
    (0.01, 0.2, "better"),
    (-0.2, -0.01, "worse"),
    (-0.1, 0.1, "no difference can be told"),
    (0.0, 0.0, "no difference can be told"),
  ],
)
def test_an_interval_that_holds_zero_tells_no_difference(low, high, words):
  assert findings.verdict({"mean": (low + high) / 2, "low": low, "high": high}) == words


def test_prompts_are_matched_by_id_not_by_place(tmp_path):
  rows = prompts(0.5)
  write_evaluation(tmp_path / "sft", rows)
  write_evaluation(tmp_path / "rl", rows[::-1][:40])
  rl, sft = sorted(findings.find_runs(tmp_path, "test"), key=lambda run: run.name)
  one = findings.difference(rl, sft, "greedy")
  assert (one["mean"], one["low"], one["high"]) == (0, 0, 0)
  assert one["n"] == sum(row["closed"] for row in rows[::-1][:40])
  assert findings.difference(rl, sft, "greedy", "ocr")["n"] < one["n"]


@pytest.mark.parametrize("names", [("sft", "blind"), ("rl",)])
def test_what_is_missing_is_said(tmp_path, names, monkeypatch):
  monkeypatch.setattr(report.plots, "png", lambda figure: b"")  # drawing is tested above
  make_runs(tmp_path, names)
  path, _ = report.write_report(str(tmp_path), "test")
  page = path.read_text()
  absent = [name for name in LEVELS if name not in names]
  assert f"nor compared with: {', '.join(absent)}." in page
  assert "No pool" in page
  assert ("No metrics of a run with rollouts" in page) == ("rl" not in names)


def test_a_single_run_without_an_evaluation(tmp_path):
  write_lines(tmp_path / "mine", stage_2_lines(3))
  path, text = report.write_report(str(tmp_path / "mine"), "test")
  assert "nothing can be said" in text
  assert path.parent == tmp_path / "mine" / "report"
  assert (path.parent / "mine_discriminator.png").exists()


def test_a_pool_alone_is_reported(tmp_path, stored):
  path, _ = report.write_report(str(tmp_path), "test")
  page = path.read_text()
  assert (path.parent / "pool.png").exists() and "only a pool" in page
  assert "This teacher is simulated" not in page


def test_bad_input_names_the_remedy(tmp_path, capsys):
  with pytest.raises(UserError, match="holds no run.*train or evaluate first"):
    report.write_report(str(tmp_path), "test")
  assert not (tmp_path / "report").exists()
  with pytest.raises(UserError, match="not a folder"):
    report.write_report(str(tmp_path / "gone"), "test")
  (tmp_path / "sft" / "evaluate").mkdir(parents=True)
  file = tmp_path / "sft" / "evaluate" / "test.json"
  for content, complaint in (("{", "is not JSON"), ('{"greedy": {"a": 1}}', "has no 'prompts'")):
    file.write_text(content)
    with pytest.raises(UserError, match=f"{complaint}.*run rmsd_jax.evaluate again"):
      report.write_report(str(tmp_path), "test")
  file.unlink()
  (tmp_path / "sft" / "metrics.jsonl").write_text("{\n")
  report.write_report(str(tmp_path), "test")
  said = "".join(capsys.readouterr())
  assert "metrics.jsonl: line 1 of the metrics cannot be read and is left out" in said


def test_examples_are_drawn_blindly_or_say_why(tmp_path):
  make_runs(tmp_path)
  chosen = report.choose(findings.find_runs(tmp_path, "test"))
  assert list(chosen.values())[: len(TASKS)] == ["drawn blindly, one per task"] * len(TASKS)
  assert [why.split()[-5] for why in list(chosen.values())[len(TASKS) :]] == ["better", "worse"]


def test_a_term_of_the_users_is_drawn_beside_those_of_the_method(tmp_path):
  lines = [{"step": step, "reward/brevity/mean": 0.1, "rollout/brevity": 0.5} for step in (1, 2)]
  run = findings.Run("rl", "stage 2", "#000000", tmp_path, lines, 2, None)
  rollouts, reward, *_ = curves.stage_2(run)
  for shown in (rollouts, reward):
    texts = {line.get_label() for axes in shown.figure.axes for line in axes.get_lines()}
    assert "brevity" in texts


def test_steps_without_a_value_leave_a_gap():
  lines = [{"step": 1}, {"step": 2, "a": math.nan}, {"step": 3, "a": 1.0}, {"step": 4, "a": 2.0}]
  steps, values = curves.series(lines, "a")
  assert steps.tolist() == [3, 4] and values.tolist() == [1, 2]
  flat = np.full(60, 3.0)
  np.testing.assert_allclose(curves.smoothed(flat), flat)
  assert curves.smoothed(np.arange(60.0) % 2).std() < 0.2

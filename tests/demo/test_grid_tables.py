"""The tables of a grid of ablations, from evaluations made by hand."""

import csv
import io
import pathlib

import numpy as np
import pytest
from test_ablations import SAID, result, scores

from rmsd_jax.core.errors import UserError
from rmsd_jax.demo import ablations, facts, grid_tables, simulated_teacher


def test_scores_are_means_over_seeds_and_closed_prompts():
  runs = {seed: result(seed) for seed in range(3)}
  rows = [[r for r in one["prompts"] if r["closed"]] for one in runs.values()]
  for way in ("greedy", "sampled"):
    expected = np.mean([[np.mean(row[way]["quality"]) for row in some] for some in rows])
    assert grid_tables.score(scores(runs), way)["mean"] == pytest.approx(expected)
  passed = lambda row: np.array(row["sampled"]["quality"]) >= 0.5
  expected = np.mean([[passed(row).any() for row in some] for some in rows])
  assert grid_tables.score(scores(runs), "pass@8")["mean"] == pytest.approx(expected)
  expected = np.mean([[passed(row).mean() for row in some] for some in rows])
  assert grid_tables.score(scores(runs), "pass@1")["mean"] == pytest.approx(expected)


def test_open_ended_answers_are_measured_by_rouge():
  """6 of 7 words in order, in half of the samples; the other half has no answer."""
  made = grid_tables.score(scores({0: result()}), grid_tables.OPEN_ENDED)
  assert made["mean"] == pytest.approx(6 / 7 / 2)


def test_the_gain_over_one_sample_is_told_by_task():
  """Of the prompts of each task alone, by hand; a stage that one of the two lacks has no column."""
  made = {("D", "sft"): [3, 4], ("A", "sft"): [5, 6], ("D", "rl"): [7]}
  found = {key: scores(dict(enumerate(map(result, salts)))) for key, salts in made.items()}
  lines = grid_tables._by_task(found)
  assert lines[0] == ["task", "D - A after stage 1"]
  assert [line[0] for line in lines[2:]] == ["numerical", "ocr"]
  for task, cell in lines[2:]:
    of = lambda salt, task=task: [
      np.mean(row["sampled"]["quality"]) for row in result(salt)["prompts"] if row["task"] == task
    ]
    wanted = np.mean([np.subtract(of(a), of(b)) for a, b in ((3, 5), (4, 6))])
    assert cell.startswith(f"{wanted:+.3f} [")
  assert grid_tables._by_task({("D", "sft"): found["D", "sft"]}) == [["task"], ["---"]]


def test_discriminators_are_told_by_row(tmp_path: pathlib.Path):
  """Means and the range of seeds, of the runs that were asked; kept for another sitting."""
  made = [result(seed) for seed in range(3)]
  for one, right in zip(made, (0.5, 0.7), strict=False):  # the third was not asked
    of = dict.fromkeys(grid_tables.discrimination.RANKED, {"mean": 0.25})
    one["discrimination"] = of | {"right": {"mean": right}, "best": {"mean": float("nan")}}
  found = {("D", "sft"): scores({0: result()}), ("D", "rl"): scores(dict(enumerate(made)))}
  rows = {"D": ablations.ROWS["D"]}
  grid_tables.write_tables(tmp_path, rows, found, "questions")
  line = "| D | 2 | 0.600 [0.500, 0.700] | 0.250 [0.250, 0.250] | - | 0.250 [0.250, 0.250] | "
  assert line in (tmp_path / "ablations.md").read_text()
  kept = grid_tables.kept(tmp_path / "scores.jsonl.gz", rows, "questions")
  assert grid_tables._ranked(kept) == grid_tables._ranked(found)
  assert len(grid_tables._ranked({("D", "sft"): found["D", "sft"]})) == 2
  one = {("D", "rl"): scores({0: made[0]})}
  assert grid_tables._ranked(one)[2] == ["D", "1", "0.500", "0.250", "-", "0.250", "0.250"]


def test_facts_are_those_of_the_clip():
  """No reply here reasons; of open-ended answers half name what `facts` finds in them."""
  scene, _ = simulated_teacher.scene_of("test-00004", 0)
  expected = facts.description_score(SAID, scene) / 2
  assert grid_tables.score(scores({0: result()}), grid_tables.OPEN_FACTS)["mean"] == expected
  assert grid_tables.score(scores({0: result()}), grid_tables.REASONING)["mean"] == 0
  told = result()
  card = scene.cards[0]
  for prompt in told["prompts"]:
    prompt["sampled"]["text"][0] = f"<think>the card with {card.digit} is {card.colour}</think>"
  values = grid_tables.scores_of(told).values[grid_tables.REASONING]
  assert values["p8"] == 1 / 8 and len(values) == 9


def test_the_spread_of_seeds_is_that_of_their_means():
  runs = {seed: result(seed) for seed in range(3)}
  means = [np.mean([np.mean(r["sampled"]["quality"]) for r in one["prompts"][:8]])
           for one in runs.values()]  # fmt: skip
  found = {("A", "rl"): scores(runs)}
  line = grid_tables.markdown({"A": ablations.ROWS["A"]}, found).splitlines()[4]
  assert f"| {np.std(means, ddof=1):.3f} | 63.8 |" in line


def test_a_difference_is_paired_by_seed():
  a = {seed: result(seed) for seed in range(4)}
  b = {seed: result(seed + 50) for seed in (1, 3, 7)}
  made = grid_tables.difference(scores(a), scores(b), "greedy")
  expected = np.mean(
    [
      np.mean([x["greedy"]["quality"][0] - y["greedy"]["quality"][0]
               for x, y in zip(a[s]["prompts"][:8], b[s]["prompts"][:8], strict=True)])
      for s in (1, 3)
    ]
  )  # fmt: skip
  assert made["mean"] == pytest.approx(expected) and made["seeds"] == 2
  assert grid_tables.difference(scores({0: a[0]}), scores({1: a[1]}), "greedy") is None
  same = grid_tables.difference(scores(a), scores(a), "sampled")
  assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)


def test_primary_comparisons_are_corrected_for_their_number():
  """Five of them at 95 % together: 99 % each, wider than the table of all differences."""
  runs = {
    row: scores({s: result(s + salt) for s in range(3)}) for row, salt in (("D", 0), ("A", 9))
  }
  found = {(row, "rl"): of for row, of in runs.items()}
  text = grid_tables.markdown({row: ablations.ROWS[row] for row in runs}, found)
  wide = grid_tables.difference(runs["D"], runs["A"], "sampled", 0.99)
  narrow = grid_tables.difference(runs["D"], runs["A"], "sampled")
  assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
  said = f"{wide['mean']:+.3f} [{wide['low']:+.3f}, {wide['high']:+.3f}]"
  assert f"| R-MSD against one sample: quality | sampled | 3 | {said} |" in text
  assert "with 99 % intervals" in text


def test_runs_on_other_prompts_are_not_compared():
  for other in (result(1, prompts=6), result(1, ids="q")):
    with pytest.raises(UserError, match="different prompts"):
      grid_tables.score(scores({0: result(0), 1: other}), "greedy")
    with pytest.raises(UserError, match="different prompts"):
      grid_tables.difference(scores({0: result(0)}), scores({0: other}), "greedy")


def test_csv_has_a_line_a_run():
  found = {("A", "sft"): scores({0: result(3)}), ("A", "rl"): scores({0: result(4), 2: result(5)})}
  lines = list(csv.DictReader(io.StringIO(grid_tables.table_csv(found))))
  assert [(one["row"], one["stage"], one["seed"]) for one in lines] == [
    ("A", "sft", "0"), ("A", "rl", "0"), ("A", "rl", "2"),
  ]  # fmt: skip
  expected = grid_tables.score(scores({2: result(5)}), "sampled")["mean"]
  assert float(lines[2]["sampled"]) == pytest.approx(expected, abs=1e-4)


def test_markdown_has_the_papers_figures_beside_ours(tmp_path: pathlib.Path):
  rows = {name: ablations.ROWS[name] for name in ("D", "gate_off")}
  found = {("D", "sft"): scores({0: result(1)}), ("D", "rl"): scores({0: result(2)})}
  grid_tables.write_tables(tmp_path, rows, found, "questions")
  text = (tmp_path / "ablations.md").read_text()
  line = next(one for one in text.splitlines() if one.startswith("| D |"))
  assert line.endswith("| 65.3 | 58.6 | 57.8 | 59.1 |") and "not the same scale" in text
  assert "| gate_off | no content gate | 0 | - |" in text
  assert "stage 2 against stage 1, of D" in text and "B - A" not in text

"""A table of replies, friendly and hostile, with what each earns in both readings."""

import json
import pathlib

import pytest

from rmsd_jax.tasks import Rules, registry

TABLE = pathlib.Path(__file__).with_name("replies.txt")
READINGS = {"strict": Rules(), "lenient": Rules(reading="lenient")}


def read_table():
  """(task, options, truth, reply, {reading: value}) of every row."""
  rows, block = [], None
  for line in TABLE.read_text(encoding="utf-8").split("\n")[3:]:
    if line.startswith("== "):
      task, options, truth = line[3:].split(" | ", 2)
      block = task, json.loads(options), json.loads(truth)
    elif line:
      strict, lenient, text = line.split(" ", 2)
      whole, text = text.startswith("raw "), text.removeprefix("raw ")
      text = json.loads(text.removeprefix("json ")) if text.startswith("json ") else text
      reply = text if whole else f"<think>x</think>\n<answer>{text}</answer>"
      rows.append((*block, reply, {"strict": float(strict), "lenient": float(lenient)}))
  return rows


ROWS = read_table()


def test_the_table_has_300_replies_of_every_task():
  assert len(ROWS) >= 300 and {row[0] for row in ROWS} == set(registry.TASKS)
  assert len({(task, str(truth), reply) for task, _, truth, reply, _ in ROWS}) == len(ROWS)
  worthless = [row for row in ROWS if not any(row[4].values())]
  assert len(worthless) >= 100  # hostile ones, and wrong ones


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[3][16:40]}")
def test_a_reply_earns_what_the_table_says(row):
  """And the lenient reading never takes anything away."""
  task, options, truth, reply, values = row
  strict, lenient = (READINGS[name].score(task, reply, truth, options) for name in READINGS)
  assert strict.quality == pytest.approx(values["strict"], abs=1e-6)
  assert lenient.quality == pytest.approx(values["lenient"], abs=1e-6)
  assert strict.quality <= lenient.quality and strict.inner <= lenient.inner

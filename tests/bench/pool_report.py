"""How long scoring and reporting of a large teacher pool takes, before any build.

    python -m tests.bench.pool_report [--prompts 50000] [--workers 2]

Writes JSON Lines of that many questions over all ten tasks, with 4 responses each: right ones,
some of them in other words, near ones, wrong ones, broken and truncated ones, after 80 words of
reasoning. Truths differ from question to question in the shape of the registry's examples, so
that no cache of formulas helps. Then runs `pool score` and `pool report --html` on the file, each
in a process of its own as a user would, and prints their seconds. Bar: 300 s together on 2 cores.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from rmsd_jax.tasks import registry

BAR = 300.0  # seconds
WORDS = """a the of red blue small card moves left right then stops near two three digit appears
vanishes behind under video shows second first last object person holds cup table opens""".split()


def words(rng: random.Random, count: int) -> str:
  return " ".join(rng.choices(WORDS, k=count))


def scaled(value, factor: float):
  """A JSON value with every number times a factor; keys stay."""
  if isinstance(value, dict):
    return {key: scaled(item, factor) for key, item in value.items()}
  if isinstance(value, list):
    return [scaled(item, factor) for item in value]
  return round(value * factor, 3)


def variant(name: str, rng: random.Random) -> tuple[object, list[str]]:
  """A ground truth in the shape of the task's example, and answers to it: right, near, wrong."""
  example = registry.TASKS[name].example
  if name == "multiple_choice":
    return example.truth, [example.truth, "(B)", example.wrong]
  if name == "math":
    a, b = rng.randrange(1, 9_999), rng.randrange(2, 9_999)
    frac = f"\\frac{{{a}}}{{{b}}}"
    return frac, [frac, f"\\frac{{{2 * a}}}{{{2 * b}}}", f"\\frac{{{a + 1}}}{{{b}}}"]
  if isinstance(example.truth, str):
    text = words(rng, rng.randrange(4, 40))
    return text, [text, f"{text} {words(rng, 3)}", words(rng, 12)]
  truth = scaled(example.truth, rng.uniform(0.5, 1.0))
  return truth, [json.dumps(truth), json.dumps(scaled(truth, 0.95)), example.wrong]


def record(number: int, rng: random.Random) -> dict:
  """A question with 4 responses."""
  name = sorted(registry.TASKS)[number % len(registry.TASKS)]
  truth, answers = variant(name, rng)
  responses = []
  for _ in range(4):
    answer = rng.choices(answers, weights=(5, 3, 2))[0]
    think = words(rng, 80)
    broken = rng.random() < 0.08
    text = f"{think} {answer}" if broken else f"<think>{think}</think><answer>{answer}</answer>"
    reason = "length" if rng.random() < 0.03 else "stop"
    responses.append({"text": text, "teacher": "synthetic", "finish_reason": reason})
  options = list(registry.TASKS[name].example.options)
  return {
    "id": f"q{number}", "task": name, "question": f"{words(rng, 10)}?", "options": options,
    "answer": truth, "clip": f"clip {number // 4}", "responses": responses,
  }  # fmt: skip


def seconds(*args: object) -> float:
  began = time.perf_counter()
  subprocess.run([sys.executable, "-m", "rmsd_jax.pool", *map(str, args)], check=True)
  return time.perf_counter() - began


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--prompts", type=int, default=50_000)
  parser.add_argument("--workers", type=int, default=2)
  options = parser.parse_args()
  rng = random.Random(0)
  with tempfile.TemporaryDirectory() as folder:
    jsonl = pathlib.Path(folder, "pool.jsonl")
    with open(jsonl, "w", encoding="utf-8") as file:
      file.writelines(json.dumps(record(i, rng)) + "\n" for i in range(options.prompts))
    print(f"{options.prompts:,} questions x 4 responses, {jsonl.stat().st_size / 2**20:.0f} MiB")
    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    workers = ("--workers", options.workers)
    score = seconds("score", jsonl, "--out", f"{folder}/scores.jsonl", *workers)
    report = seconds("report", jsonl, "--html", f"{folder}/page", *workers)
  print(f"score {score:.0f} s, report with its page {report:.0f} s (it scores anew)")
  print(f"together {score + report:.0f} s (bar: {BAR:.0f})")


if __name__ == "__main__":
  main()

"""Records of every task for tests of what reads JSON Lines: right, wrong and broken responses."""

import json

from rmsd_jax.tasks import registry


def said(answer, **changes):
  return {"text": f"<think>I see.</think><answer>{answer}</answer>", "teacher": "big", **changes}


def of_task(name, **changes):
  """A record of a task with four responses: right, wrong, broken, and right but cut off."""
  example = registry.TASKS[name].example
  right = registry.spelled(example.truth)
  return {
    "id": name,
    "task": name,
    "question": "What is it?",
    "options": list(example.options),
    "answer": example.truth,
    "clip": f"clip of {name}",
    "responses": [
      said(right),
      said(example.wrong),
      {"text": right, "teacher": "small"},
      said(right, finish_reason="length"),
    ],
    **changes,
  }


def ocr(id_, answers, truth="one two three four", **changes):
  """An OCR record; of a truth of four words, a transcript with n words wrong is worth 1 - n / 4."""
  responses = [said(answer) if isinstance(answer, str) else answer for answer in answers]
  return of_task("ocr", id=id_, answer=truth, responses=responses, clip=id_) | changes


def write(path, values):
  """Writes values as JSON Lines; a string is written as it is."""
  lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
  path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
  return path

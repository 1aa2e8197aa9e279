"""From own prompts and clips to a student that others load: tests/new_user.sh, as a user types it.

The teacher is a local endpoint, the student the demo's tiny base, the prompts are of a task of the
user's own beside two that there are.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import chat_server
import numpy as np
import tiny_run
from test_recipes import RECIPES

from rmsd_jax.demo import world

SCRIPT = Path(tiny_run.ROOT, "tests", "new_user.sh")
STUDENT = Path(tiny_run.ROOT, "rmsd_jax", "demo", "tiny_base")
CLIPS = 12
ASK = """\
from rmsd_jax import generate, load_run

model, params, processor = load_run("runs/rl", "best")
groups = processor.ask("How many cards are there?", "counting", video="clips/0.mp4")
((reply,),) = processor.decode(generate(model, params, groups, max_tokens=16))
truth = 2
print(f"asked: {reply!r}, quality {processor.score(reply, truth, 'counting').quality}")
"""


def prompts(scenes) -> list[dict]:
  """30 prompts: 24 to train on, 6 of other clips held out."""
  asked = []
  for number, scene in enumerate(scenes):
    card = scene.cards[0]
    names = [card.colour, *(name for name in world.COLOUR_NAMES if name != card.colour)][:4]
    options = [f"{letter}. {name}" for letter, name in zip("ABCD", names[::-1], strict=True)]
    count = len(scene.cards)
    questions = [
      ("counting", "How many cards are there?", (), count),
      ("multiple_choice", f"Which colour has the {card.digit}?", options, "D"),
      ("numerical", "How many cards appear?", (), count),
    ]
    for at, (task, question, options, answer) in enumerate(questions[: 3 if number % 2 else 2]):
      record = {"id": f"{number}-{at}", "task": task, "question": f"{question} ({number})"}
      record |= {"options": list(options)} if options else {}
      media = [{"type": "video", "path": f"clips/{number}.mp4"}]
      split = "test" if number >= CLIPS - 2 else "train"
      asked.append(record | {"answer": answer, "media": media, "split": split})
  return asked


def write_code(folder):
  for recipe, file in (("Add a task", "my_tasks.py"), ("Add a reward term", "my_rewards.py")):
    code = re.search(r"```python\n(.*?)```", RECIPES[recipe], re.DOTALL)
    (folder / file).write_text(code[1])
  (folder / "ask.py").write_text(ASK)


def test_a_new_user_gets_from_prompts_to_an_exported_student(tmp_path):
  rng = np.random.default_rng(0)
  scenes = [world.make_scene(rng, "train") for _ in range(CLIPS)]
  (tmp_path / "clips").mkdir()
  for number, scene in enumerate(scenes):
    world.write_media(tmp_path / "clips" / f"{number}.mp4", scene)
  records = prompts(scenes)
  assert len(records) == 30
  (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
  write_code(tmp_path)
  truth = {one["question"]: one["answer"] for one in records}

  def behave(question, n):
    answer = next(answer for asked, answer in truth.items() if asked in question)
    wrong = {"D": "A"}.get(answer, "7")
    said = wrong if n % 4 == 0 else answer
    return {"content": f"<think>I look.</think><answer>{said}</answer>"}

  teacher = chat_server.Teacher(behave)
  try:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(tiny_run.ROOT)}
    environment |= {"URL": teacher.url, "STUDENT": str(STUDENT), "OPENAI_API_KEY": "none"}
    environment |= {"CONFIGS": str(Path(tiny_run.ROOT, "configs"))}
    environment |= {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    ended = subprocess.run(
      ["bash", SCRIPT, tmp_path], capture_output=True, text=True, env=environment, timeout=900
    )
  finally:
    teacher.shutdown()
  said = ended.stdout + ended.stderr
  assert ended.returncode == 0, said[-4000:]
  assert "Traceback" not in said
  asked = [one for one in records if one["split"] == "train"]
  assert sum(teacher.served.values()) == 4 * len(asked)  # those held out are not paid for
  commands = [line for line in SCRIPT.read_text().splitlines() if line.startswith("python")]
  assert len(commands) <= 25
  shown = [
    rf"{4 * len(asked)} .*requests",  # the dry run
    r"--buckets \d+,48,\d+,\d+",
    r"stage 1 in .*runs/sft begins, 4 steps",
    r"stage 2 in .*runs/rl begins, 4 steps",
    r"asked: '.*', quality ",
  ]
  for words in shown:
    assert re.search(words, said), (words, said[-6000:])
  for stage in ("sft", "rl"):
    lines = [json.loads(line) for line in open(tmp_path / "runs" / stage / "metrics.jsonl")]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
  stage_2 = {"held_out/greedy/quality", "reward/brevity/mean"}
  assert all(stage_2 <= set(line) for line in lines[1::2])
  assert len((tmp_path / "runs" / "rl" / "samples.jsonl").read_text().splitlines()) >= 4
  page = (tmp_path / "runs" / "report" / "index.html").read_text()
  assert "counting" in page and "Looking closely" not in page
  assert (tmp_path / "teacher" / "index.html").is_file()
  assert (tmp_path / "student" / "model.safetensors").is_file()
  result = json.loads((tmp_path / "runs" / "rl" / "evaluate" / "test.json").read_text())
  assert len(result["prompts"]) == len(records) - len(asked)

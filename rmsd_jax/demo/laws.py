"""Shows that stage 2 does what it says, on questions where the answer is known.

    python -m rmsd_jax.demo.laws WORKDIR --law=a      after ./launch/demo.sh WORKDIR

    a  rule rewards alone raise the quality of sampled answers on 64 fixed prompts that the student
       gets right 20 to 80 % of the time; with rewards shuffled inside groups they do not
    b  the discriminator alone spreads the teacher's style: a phrase that the student writes in 3 to
       8 % of its samples, and the teacher always, ends in most of them
    c  the same with a discriminator that is frozen early: what the student drifts to

Writes WORKDIR/laws/LAW.json and LAW.png.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as rmsd_jax.demo.run

import matplotlib

matplotlib.use("Agg")
import jax
import matplotlib.pyplot as plt
import numpy as np

from rmsd_jax import cli, evaluate, pool, train_rl, train_sft
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.files import replace_text
from rmsd_jax.demo import simulated_teacher
from rmsd_jax.rollouts import grading
from rmsd_jax.training import log

CONFIG = str(cli.CONFIGS / "demo.py")
PROMPTS, LOW, HIGH = 64, 0.2, 0.8  # law a: prompts, and how often the student is right on them
RARE = 0.12  # laws b, c: share of stage 1 targets with the phrase; 3 to 8 % of samples then have it
WARMUP = 20  # laws b, c: steps in which the discriminator learns alone; in c it is frozen then


def config_of(stage: str, **changes):
  """The demo's config of a stage with some keys changed: {"data.pool": ..}."""
  config = cli.load_config(f"{CONFIG}:{stage}")
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config


def build_pool(jsonl: Sequence[pathlib.Path], out: pathlib.Path) -> None:
  """`rmsd_jax.pool build` with the demo's settings."""
  if out.exists():
    return
  config = config_of("sft")
  bucket = ",".join(map(str, config.world.bucket))
  pool.main([
    "build", "--jsonl", *map(str, jsonl), "--out", str(out), "--tokenizer", config.model.folder,
    "--buckets", bucket, "--video-pixels", "1,1000000000", "--image-pixels", "1,1000000000",
  ])  # fmt: skip


def evaluated(workdir: pathlib.Path, name: str, **changes) -> list[dict]:
  """Prompts with the graded samples of the latest checkpoint in `workdir`."""
  file = workdir / "evaluate" / f"{name}.json"
  if not file.exists():
    evaluate.main(
      config_of("evaluate", **{"evaluate.name": name} | changes), str(workdir), "latest"
    )
  return json.loads(file.read_text())["prompts"]


def uncertain_pool(demo: pathlib.Path, out: pathlib.Path) -> int:
  """A pool of the first PROMPTS prompts that stage 1 gets right LOW to HIGH of the time."""
  if not (out / "pool").exists():  # of another stage 1 or pool
    for name in ("train", "law_a"):
      (demo / "sft" / "evaluate" / f"{name}.json").unlink(missing_ok=True)
      shutil.rmtree(demo / "sft" / "evaluate" / name, ignore_errors=True)
  rows = evaluated(demo / "sft", "train", **{
    "data.pool": str(demo / "pool"), "data.split": "train", "data.limit": 1_000,
    "evaluate.samples": 8,
  })  # fmt: skip
  # Right is a quality of 0.5 or more; the share is of 8 samples.
  right = {
    row["id"]: np.mean(np.array(row["sampled"]["quality"]) >= 0.5) for row in rows if row["closed"]
  }
  # Where a prompt's samples are all right, or all wrong, its groups have no advantages to learn
  # from.
  chosen = [name for name, share in right.items() if LOW <= share <= HIGH][:PROMPTS]
  if len(chosen) < PROMPTS:
    raise UserError(
      f"{len(chosen)} of {len(right)} prompts are answered right {LOW:.0%} to {HIGH:.0%} of the "
      f"time, {PROMPTS} are needed; train stage 1 with another number of steps"
    )
  raw = demo / "raw"
  lines = []
  for line in (raw / "pool.jsonl").read_text().splitlines():
    record = json.loads(line)
    if record["id"] in chosen:
      for item in record["media"]:
        item["path"] = str(raw / item["path"])
      lines.append(json.dumps(record))
  (out / "chosen.jsonl").write_text("\n".join(lines) + "\n")
  build_pool([out / "chosen.jsonl"], out / "pool")
  return len(chosen)


def shuffled_grade(seed: int):
  """`grading.rule_terms` with each group's rewards, and so advantages, given to random rollouts."""
  rng = np.random.default_rng(seed)

  def grade(replies, info, finished_BN, rules):
    terms = grading.rule_terms(replies, info, finished_BN, rules)
    # One order for all terms of a rollout: the rewards of a group stay those that they were, and
    # only whose they are is lost.
    order_BN = rng.permuted(np.tile(np.arange(finished_BN.shape[1]), (len(replies), 1)), axis=1)
    return jax.tree.map(lambda term_BN: np.take_along_axis(term_BN, order_BN, 1), terms)

  return grade


def law_a(demo: pathlib.Path, out: pathlib.Path, steps: int) -> dict:
  """Rule rewards alone, true and shuffled."""
  prompts = uncertain_pool(demo, out)
  pool_key = {"data.pool": str(out / "pool")}
  grades = {"true": grading.rule_terms, "shuffled": shuffled_grade(0)}
  for name, grade in grades.items():
    config = config_of("rl", **pool_key | {
      "init_from": str(demo / "sft"), "batch": 16, "steps": steps, "save_every": steps,
      "reward.discriminator": 0.0, "optim.learning_rate": 3e-4,
    })  # fmt: skip
    train_rl.main(config, str(out / name), grade=grade)
  measure = pool_key | {"data.split": "train", "evaluate.samples": 16, "batch": 16}
  quality = {}
  for name, workdir in ({"before": demo / "sft"} | {n: out / n for n in grades}).items():
    rows = evaluated(workdir, "law_a", **measure)
    quality[name] = float(np.mean([row["sampled"]["quality"] for row in rows]))
  curves = {name: log.read(str(out / name)) for name in grades}
  points = {
    name: [(line["step"], line["rollout/quality"]) for line in lines]
    for name, lines in curves.items()
  }
  _plot(out.parent / "a.png", "Quality of rollouts on 64 fixed prompts", points)
  kl = {name: lines[-1]["policy/kl"] for name, lines in curves.items()}
  return {"prompts": prompts, "steps": steps, "quality": quality, "kl": kl}


def style_student(out: pathlib.Path) -> pathlib.Path:
  """Stage 1 on a teacher whose phrase is rare, and the pool of one who always uses it."""
  for name, share in (("rare", RARE), ("always", 1.0)):
    if not (out / name).exists():
      style = dataclasses.replace(simulated_teacher.Teacher(), marker_share=share)
      simulated_teacher.make_pool(
        out / name, train_prompts=1_500, test_prompts=200, seed=7, teacher=style
      )
    build_pool([out / name / "pool.jsonl", out / name / "test.jsonl"], out / f"{name}_pool")
  train_sft.main(
    config_of("sft", **{"data.pool": str(out / "rare_pool"), "steps": 200}), str(out / "sft")
  )
  return out / "sft"


def law_b(demo: pathlib.Path, out: pathlib.Path, steps: int, frozen_after: int = 0) -> dict:
  """The discriminator's reward alone; with `frozen_after`, law c."""
  style = out.parent / "style"
  student = style_student(style)
  seen = []
  seen_file = out / "seen.json"

  def grade(replies, info, finished_BN, rules):
    flat = [reply for row in replies for reply in row]
    words = [text.split() for text in flat]
    seen.append(
      {
        "marker": float(np.mean([simulated_teacher.MARKER in text for text in flat])),
        "marker_repeated": float(
          np.mean([text.count(simulated_teacher.MARKER) > 1 for text in flat])
        ),
        "words": float(np.mean([len(w) for w in words])),
        "distinct_words": float(np.mean([len(set(w)) / max(len(w), 1) for w in words])),
      }
    )
    # In a file: started again, a run that is done grades nothing.
    replace_text(seen_file, json.dumps(seen))
    return grading.rule_terms(replies, info, finished_BN, rules)

  config = config_of("rl", **{
    "data.pool": str(style / "always_pool"), "init_from": str(student), "steps": steps,
    "reward.discriminator": 1.0, "reward.outer": 0.0, "reward.inner": 0.0, "reward.content": 0.0,
    "reward.gate": False, "discriminator.frozen_after": frozen_after, "log_every": 1,
    "reward.score": "raw", "optim.learning_rate": 5e-5,
    "discriminator.warmup_steps": WARMUP, "discriminator.optim.learning_rate": 3e-4,
    "save_every": steps,
  })  # fmt: skip
  train_rl.main(config, str(out / "rl"), grade=grade)
  seen = json.loads(seen_file.read_text())
  lines = log.read(str(out / "rl"))
  curve = lambda key: [(i + 1, s[key]) for i, s in enumerate(seen)]
  _plot(
    out.with_suffix(".png"),
    "Discriminator's reward alone: what rollouts look like",
    {
      "share with the teacher's phrase": curve("marker"),
      "share that repeats it": curve("marker_repeated"),
      "share of different words": curve("distinct_words"),
      "discriminator's accuracy": [
        (line["step"], line["discriminator/accuracy"]) for line in lines
      ],
      "rules' quality": [(line["step"], line["rollout/quality"]) for line in lines],
      "finished": [(line["step"], line["rollout/finished"]) for line in lines],
    },
  )
  mean = lambda key, some: float(np.mean([s[key] for s in some]))
  ends = lambda key: {"first": mean(key, seen[:WARMUP]), "last": mean(key, seen[-5:])}
  return {
    "steps": steps,
    "frozen_after": frozen_after,
    **{key: ends(key) for key in seen[0]},
    "accuracy": [round(line["discriminator/accuracy"], 3) for line in lines],
    "quality": [round(line["rollout/quality"], 3) for line in lines],
  }


def _plot(path: pathlib.Path, title: str, curves: dict) -> None:
  figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
  for name, points in curves.items():
    axes.plot(*zip(*points, strict=True), label=name)
  axes.set(title=title, xlabel="step", ylim=(0, 1))
  axes.legend(fontsize="small")
  figure.savefig(path, dpi=130)
  plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs one law, or goes on with it."""
  parser = cli.parser_of(main)
  parser.add_argument("workdir", help="of a demo that has run")
  parser.add_argument("--law", choices=("a", "b", "c"), required=True)
  parser.add_argument("--steps", type=int, default=100, help="of stage 2 (default 100)")
  options = parser.parse_args(argv)
  demo = pathlib.Path(options.workdir).absolute()
  out = demo / "laws" / options.law
  out.mkdir(parents=True, exist_ok=True)
  law = {"a": law_a, "b": law_b, "c": functools.partial(law_b, frozen_after=WARMUP)}
  result = law[options.law](demo, out, options.steps)
  text = json.dumps(result, indent=2)
  replace_text(out.with_suffix(".json"), text + "\n")
  print(text)


if __name__ == "__main__":
  cli.run(main)

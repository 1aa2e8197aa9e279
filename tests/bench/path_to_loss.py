"""From the launch command to the loss: through how many files and lines of functions one reads.

    python -m tests.bench.path_to_loss

Counted are whole functions, docstrings included, from a trainer's `main` to its losses; what they
call beside the way (input, sharding, log, model, optimizer) is not.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "rmsd_jax"
LOG_PROBS = ("logps_of", "predicting_of", "predictors", "token_logps", "_token_logps",
             "_logps_forward")  # fmt: skip
PATHS = {
  "train_sft": {
    "train_sft.py": ("main", "train_step", "make_steps"),
    "training/imitation.py": ("imitate_step",),
    "training/optim.py": ("over", "add"),
    "method/losses.py": (*LOG_PROBS, "sft"),
  },
  "train_rl, policy": {
    "train_rl.py": ("main", "train_step", "update_policy", "make_steps", "improve_step"),
    "training/optim.py": ("over", "add"),
    "method/advantages.py": ("from_rewards",),
    "method/losses.py": (*LOG_PROBS, "policy_gradient"),
  },
  "train_rl, discriminator": {
    "train_rl.py": ("main", "train_step", "update_discriminator", "make_steps", "judge_step"),
    "training/optim.py": ("over", "add"),
    "method/losses.py": ("pairs",),
  },
}


def lines_of(path: Path, names: tuple[str, ...]) -> int:
  """Lines of these top-level functions; KeyError names one that is not there."""
  functions = {
    node.name: node for node in ast.parse(path.read_text("utf-8")).body if hasattr(node, "name")
  }
  return sum(functions[name].end_lineno - functions[name].lineno + 1 for name in names)


def main() -> None:
  for trainer, files in PATHS.items():
    counts = {file: lines_of(PACKAGE / file, names) for file, names in files.items()}
    parts = ", ".join(f"{file} {count}" for file, count in counts.items())
    print(f"{trainer}: {len(counts)} files, {sum(counts.values())} lines ({parts})")


if __name__ == "__main__":
  main()

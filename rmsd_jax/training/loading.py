"""A trained student in Python: the model, its weights, and what asks as its pool did."""

import json
import pathlib
from collections.abc import Sequence

import jax
from etils import epath

from rmsd_jax.core import sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import PromptGroups
from rmsd_jax.data import media
from rmsd_jax.data.processor import Processor
from rmsd_jax.models import hf
from rmsd_jax.models.student import Qwen3VL
from rmsd_jax.tasks import Rules
from rmsd_jax.tasks.quality import Score
from rmsd_jax.training import guard, state

POOL_FILE = "pool.json"  # what a run's pool was made from and how


class RunProcessor(Processor):
  """The processor that a run's pool was built with: its frames, pixels and instructions.

  Attributes:
    rules: the tasks, as the run reads them.
  """

  def __init__(self, folder: str | pathlib.Path, rules: Rules, **settings):
    super().__init__(folder, **settings)
    self.rules = rules

  def ask(
    self,
    question: str,
    task: str,
    *,
    video: str = "",
    images: Sequence[str] = (),
    options: Sequence[str] = (),
  ) -> PromptGroups:
    """A question as the pool asks it, a batch of one: the media, the question, the options one a
    line, the task's instruction.

    Raises:
      UserError: no such task, or media that cannot be read.
    """
    shown = [{"type": "video", "video": video}] if video else []
    shown += [{"type": "image", "image": image} for image in images]
    words = self.rules.prompt_text(task, question, options)
    return self([{"role": "user", "content": [*shown, {"type": "text", "text": words}]}])

  def score(self, reply: str, truth: object, task: str, options: Sequence[str] = ()) -> Score:
    """A reply against the ground truth, by the rules of the run; see `Rules.score`."""
    if fault := self.rules.validate(task, truth, options):
      raise UserError(f"the ground truth does not suit the task: {fault}")
    return self.rules.score(task, reply, truth, options)


def load_run(
  workdir: str, step: str | int = "latest", *, mesh=None, folder: str = "", dtype: str = ""
) -> tuple[Qwen3VL, dict, RunProcessor]:
  """The student of a run at a step, ready to answer.

      model, params, processor = load_run("DIR/rl", "best")
      groups = processor.ask("What is written?", "ocr", video="clip.mp4")
      print(processor.decode(generate(model, params, groups)))

  Args:
    workdir: folder of a run of either stage; it is only read.
    step: "latest", "best" or a number.
    mesh: the devices to lie on; None: the first one.
    folder: the Hugging Face folder where it is now; "": where the run had it.
    dtype: of activations; "": the run's.

  Raises:
    UserError: there is no such run, step or folder.
  """
  config = guard.read_config(workdir)
  path = epath.Path(workdir) / POOL_FILE
  if not path.exists():
    raise UserError(f"{path} does not exist; give the work folder of a run that has begun")
  made = json.loads(path.read_text())["processor"]
  folder = folder or config["model"]["folder"]
  model = hf.load_model(folder, dtype=dtype or config["model"]["dtype"])
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1]) if mesh is None else mesh
  loaded = state.load_student(mesh, model, folder, workdir, config["trained"], step)
  pixels = {f"{kind}_pixels": _pixels(made[kind]) for kind in ("video", "image")}
  processor = RunProcessor(
    folder,
    Rules(**config["tasks"]),
    sampling=media.Sampling(**{"times": "index"} | made["sampling"]),
    video_style=made["video"]["style"],
    outer_vision_wrapper=made["outer_vision_wrapper"],
    **pixels,
  )
  if processor.tokenizer.fingerprint != made["tokenizer"]:
    raise UserError(f"{folder} has another tokenizer than the pool of {workdir}")
  return model, state.weights(loaded), processor


def _pixels(budget: dict) -> tuple[int, int]:
  return budget["min_pixels"], budget["max_pixels"]

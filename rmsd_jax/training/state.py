"""The state of a run: a dict of pytrees, each saved as an item of its own.

    stage 1   student, frozen, student_optim
    stage 2   and reference, running, discriminator, discriminator_optim

"student" holds the weights that learn, "frozen" the others (once, whoever uses them), "reference"
and "discriminator" their own values of the learning weights, the reference's in the type that it is
computed in (of a teacher, `policy.reference`, all its weights), "running" what stage 2 measures
over many steps. Random keys are not state: they follow from (seed, step).
"""

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rmsd_jax.core import named, sharding
from rmsd_jax.core.errors import UserError
from rmsd_jax.method import advantages
from rmsd_jax.models import hf
from rmsd_jax.models.discriminator import PARTITION as HEAD_PARTITION
from rmsd_jax.models.discriminator import Discriminator
from rmsd_jax.models.student import PARTITION, Qwen3VL
from rmsd_jax.training import checkpoint, guard, old_runs, stored
from rmsd_jax.training.checkpoint import Checkpoints

RULES = (*PARTITION, *HEAD_PARTITION)
State = dict[str, dict]


def weights(state: State, role: str = "student") -> dict:
  """All parameters of a role: its own and the frozen ones."""
  return named.join(state["frozen"], state[role])


def load_student(
  mesh: Mesh, model: Qwen3VL, folder: str, init_from: str, trained: Sequence[str], step="latest"
) -> State:
  """{"student", "frozen"} from an earlier run's checkpoint, which is named, or from a Hugging Face
  folder.

  Args:
    init_from: work folder of the earlier run; "" reads `folder`.
    trained: patterns of the weights that learn; may differ from the earlier run's.
  """
  if not init_from:
    student, frozen = named.split(hf.load_params(folder, mesh), trained)
    return {"student": student, "frozen": frozen}
  steps = guard.read_config(init_from)["steps"]
  step = checkpoint.find_step(init_from, step)
  if jax.process_index() == 0:
    print(f"the student of {init_from}, step {step} of {steps}")
  entries = saved_entries(mesh, model, init_from)
  read = lambda name: checkpoint.restore_item(init_from, name, entries[name], step)
  student, frozen = named.split(named.join(read("frozen"), read("student")), trained)
  return {"student": student, "frozen": frozen}


def load_discriminator(mesh: Mesh, model: Qwen3VL, workdir: str, step: int) -> dict:
  """The discriminator of a run of stage 2, at a step that has one (`check_discriminator`): its own
  values of the weights that learn, and its head."""
  learns, _ = named.split(model.abstract(), guard.read_config(workdir)["trained"])
  entry = sharding.abstract(mesh, learns | Discriminator(model).abstract_head(), RULES)
  return checkpoint.restore_item(workdir, "discriminator", entry, step)


def check_discriminator(workdir: str, step: int) -> None:
  """Raises UserError where the step of a run has no discriminator."""
  if "discriminator" not in stored.items_of(stored.folder_of(workdir) / str(step)):
    raise UserError(
      f"step {step} of {workdir} has no discriminator; give a run of stage 2 whose "
      "reward.discriminator is above 0"
    )


def saved_entries(mesh: Mesh, model: Qwen3VL, workdir: str) -> State:
  """Abstract "student" and "frozen" of the checkpoints in a work folder."""
  student, frozen = named.split(model.abstract(), guard.read_config(workdir)["trained"])
  return sharding.abstract(mesh, {"student": student, "frozen": frozen}, RULES)


def abstract(
  mesh: Mesh,
  model: Qwen3VL,
  trained: Sequence[str],
  optims: dict,
  tasks: Sequence[str] = (),
  teacher: Qwen3VL | None = None,
) -> State:
  """The abstract state of a run: what its checkpoints are restored into.

  Args:
    optims: role -> its optax transformation, or None for a role that does not learn; the roles
      are "student", "reference", "discriminator".
    tasks: the run's task names, see `new_running`.
    teacher: the model of a reference that is not the student of step 0, or None.
  """
  sharding.check_rules(model.abstract(), PARTITION)
  student, frozen = named.split(model.abstract(), trained)
  state = {"frozen": frozen} | {role: student for role in optims}
  if "reference" in optims:
    kept = teacher.abstract() if teacher else student
    state["reference"] = jax.eval_shape(functools.partial(reference_of, teacher or model), kept)
  if "discriminator" in optims:
    state["discriminator"] = student | Discriminator(model).abstract_head()
  for role, tx in optims.items():
    if tx is not None:
      state[f"{role}_optim"] = jax.eval_shape(tx.init, state[role])
  if "reference" in optims:
    state["running"] = jax.eval_shape(lambda: new_running(tasks))
  return sharding.abstract(mesh, state, RULES)


def reference_of(model: Qwen3VL, student: dict) -> dict:
  """A copy of the student, or of a teacher, that never learns: in the type that it is computed in,
  where every use casts to that type anyhow. The tower's norms are applied in fp32, so it keeps its
  own."""
  text = {"text": jax.tree.map(lambda x: x.astype(model.dtype), student["text"])}
  return copy(student | text if "text" in student else student)


def init_optims(mesh: Mesh, optims: dict, state: State) -> State:
  """{"ROLE_optim": optimizer state} of the roles that learn, made where it will live."""

  def one(role: str, tx: optax.GradientTransformation):
    layout = sharding.shardings(mesh, jax.eval_shape(tx.init, state[role]), RULES)
    return jax.jit(tx.init, out_shardings=layout)(state[role])

  return {f"{role}_optim": one(role, tx) for role, tx in optims.items() if tx is not None}


def new_running(tasks: Sequence[str]) -> dict:
  """What stage 2 measures over many steps, at step 0.

  "accuracy": running mean of the discriminator's accuracy on differing pairs, fp32; chance at
  first. "spread": of rewards, by task name, `advantages.new_spread`.

  Args:
    tasks: sorted names.
  """
  return {"accuracy": jnp.float32(0.5), "spread": advantages.new_spread(tasks)}


def restore(checkpoints: Checkpoints, saved: State) -> State:
  """The last checkpoint of a run; tasks that it did not know begin with no spread.

  Args:
    saved: `abstract`.
  """
  if "running" not in saved:
    return checkpoints.restore(saved)
  like = saved["running"]["accuracy"]
  shapes = checkpoints.shapes("running")
  stored = named.unflatten({leaf: like.update(shape=shape) for leaf, shape in shapes.items()})
  state = checkpoints.restore(saved | {"running": stored})
  state["running"] = running_of(state["running"], list(saved["running"]["spread"]["weight"]))
  return state


def running_of(stored: dict, tasks: Sequence[str]) -> dict:
  """A stored "running" for today's tasks: 0 for those it did not know, others forgotten."""
  zero = jnp.zeros_like(stored["accuracy"])
  spread = {}
  for name, by_task in stored["spread"].items():
    if not isinstance(by_task, dict):  # it was an array before it was kept by name
      by_task = dict(zip(old_runs.ARRAY_TASKS, by_task, strict=True))
    spread[name] = {task: by_task[task] if task in by_task else zero for task in tasks}
  return stored | {"spread": spread}


def summary(state: State) -> str:
  """The student's parameter counts by group, frozen groups marked."""
  return named.count_table(weights(state), frozen=named.flatten(state["frozen"]))


def pinned(mesh: Mesh, state: State) -> State:
  """Inside jit: new values stay laid out as the old ones, by RULES.

  Left to itself XLA may split a replicated weight; the next step then compiles anew, and sampling
  with such weights on 2 x 2 x 2 devices gave wrong samples (jax 0.10.2 on CPU).
  """
  return jax.lax.with_sharding_constraint(state, sharding.shardings(mesh, state, RULES))


def copy(tree):
  """Arrays of their own, so that either copy may be donated."""
  return jax.tree.map(lambda x: x.copy(), tree)


@jax.jit
def _sums(params):
  """uint32 [leaves], exact, so that they do not depend on the mesh."""

  def of(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    bits = bits.astype(jnp.uint32)
    while bits.ndim:  # odd factors, by the place: every bit counts, and weights that change places
      factor = jnp.arange(bits.shape[-1], dtype=jnp.uint32) * jnp.uint32(2_654_435_761) | 1
      bits = (bits * factor).sum(-1, dtype=jnp.uint32)
    return bits

  return sharding.constrained(jnp.stack(jax.tree.leaves(jax.tree.map(of, params))), P())


def mark(params) -> str:
  """Tells whether weights are the very same, wherever they lie: of steps trained anew, too."""
  return hashlib.sha256(np.asarray(_sums(params)).astype("<u4").tobytes()).hexdigest()[:16]

"""One mesh (data, fsdp, tensor), rules from names to PartitionSpecs, host batches to global arrays.

Prompts are split over data and fsdp, heads and widths over tensor, weights over fsdp and tensor.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmsd_jax.core import named
from rmsd_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
Rules = Sequence[tuple[str, P]]
# v5p would turn each gather of a weight into a loop of partial products, 19 loops in a 4B step.
_PLAIN_GATHERS: dict[str, str | bool] = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# Without it the CPU compiler copies both moments before an update reads and writes them.
_FEWER_COPIES: dict[str, str | bool] = {"xla_cpu_copy_insertion_use_region_analysis": True}
XLA_OPTIONS: dict[str, dict[str, str | bool]] = {  # device kind -> options
  "cpu": _FEWER_COPIES,
  "TPU v5": _PLAIN_GATHERS,
  "TPU v5p": _PLAIN_GATHERS,
}


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
  """A mesh over all devices; one size may be -1 and takes what is left.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or a tensor group would
      reach over two processes.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  count = len(devices)
  # The product holds the -1 itself, hence the sign; sizes that do not divide fail the next check.
  if sizes.count(-1) == 1:
    sizes[sizes.index(-1)] = count // max(-math.prod(sizes), 1)
  if min(sizes) < 1 or math.prod(sizes) != count:
    raise UserError(
      f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {count} devices; set config.mesh"
      f" so that the sizes multiply to {count} (one may be -1)"
    )
  mesh = jax.make_mesh(sizes, AXES, (AxisType.Auto,) * 3, devices=devices)
  # A process feeds and grades whole rows, so a row's devices must be its own.
  owners = [{d.process_index for d in group} for group in mesh.devices.reshape(-1, sizes[2])]
  if max(map(len, owners)) > 1 and jax.process_count() > 1:
    raise UserError(f"a group of mesh.tensor={sizes[2]} devices reaches over processes; lower it")
  return mesh


def grouped(mesh: AbstractMesh, tensor: int) -> AbstractMesh:
  """The same devices with `tensor` of them in a tensor group, which neighbours along fsdp make up;
  0: as they are.

  Raises:
    UserError: they cannot be grouped so.
  """
  data, fsdp, own = (mesh.shape[axis] for axis in AXES)
  tensor = tensor or own
  if tensor < 0 or tensor % own or fsdp * own % tensor:
    raise UserError(
      f"rollouts.tensor={tensor} with mesh fsdp={fsdp} tensor={own}: it must be a multiple of "
      f"{own} that divides {fsdp * own}, or 0 for {own}"
    )
  return mesh.update(axis_sizes=(data, fsdp * own // tensor, tensor))


@contextlib.contextmanager
def in_groups_of(tensor: int) -> Iterator[None]:
  """Inside jit under `jax.set_mesh`: the mesh is `grouped` so. Every layout that is asked for in
  here is on that mesh; arrays keep theirs until then. Without a mesh it does nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  with contextlib.ExitStack() as stack:
    if not mesh.empty and (new := grouped(mesh, tensor)) != mesh:
      stack.enter_context(jax.sharding.use_abstract_mesh(new))
    yield


def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
  """XLA's options for programs on the mesh's chips; the trainers and rmsd_jax.compile use them."""
  return XLA_OPTIONS.get(mesh.devices.flat[0].device_kind, {})


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
  """Into how many parts the prompts of a global batch are split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh, batch: int, name: str) -> None:
  """Raises UserError unless the prompts of a batch divide evenly over the mesh."""
  shards = batch_shards(mesh)
  if batch < 1 or batch % shards:
    raise UserError(
      f"{name}={batch} is not a multiple of {shards} mesh shards; change it or config.mesh"
    )


def check_rules(tree: dict, rules: Rules) -> None:
  """Every leaf matched, every rule used; all faults in one message."""
  names = list(named.flatten(tree))
  lost = [n for n in names if not named.matches(n, (r for r, _ in rules))]
  idle = [r for r, _ in rules if not any(re.fullmatch(r, n) for n in names)]
  if lost or idle:
    raise UserError(f"sharding rules: no rule for {lost}; rules that match nothing {idle}")


def shardings(mesh: Mesh | AbstractMesh, tree, rules: Rules):
  """NamedShardings for a pytree of (abstract) arrays.

  A leaf is looked up by the dict keys that end its path, so that optimizer moments, which
  mirror the parameters, are sharded like them. Leaves without a rule are replicated.

  Raises:
    UserError: an axis of a leaf does not divide over its mesh axes; all such leaves are named.
  """
  faults = []

  def sharding_of(path, leaf):
    # An optimizer's state has names of its own above a parameter's, so every tail is tried.
    keys = [str(p.key) for p in path if isinstance(p, jax.tree_util.DictKey)]
    tails = ["/".join(keys[i:]) for i in range(len(keys))]
    spec = next((s for r, s in rules for t in tails if re.fullmatch(r, t)), P())
    # An optimizer may keep a scalar where the parameter has axes: it is whole.
    if len(leaf.shape) < len(spec):
      spec = P()
    for size, axes in zip(leaf.shape, spec, strict=False):
      ways = math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))
      if size % ways:
        faults.append(f"{tails[0] if tails else path} {leaf.shape} over {spec} ({size} % {ways})")
    return NamedSharding(mesh, spec)

  result = jax.tree_util.tree_map_with_path(sharding_of, tree)
  if faults:
    raise UserError(
      "weights do not divide over the mesh, change config.mesh or rollouts.tensor: "
      + "; ".join(faults)
    )
  return result


def abstract(mesh: Mesh, tree, rules: Rules):
  """ShapeDtypeStructs with shardings: what a checkpoint is restored into."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings(mesh, tree, rules),
  )


def put_batch(mesh: Mesh, batch):
  """This process's rows of a batch (leading axis B) -> global arrays split over data and fsdp."""
  sharding = NamedSharding(mesh, BATCH)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
  )


def everywhere(mesh: Mesh, tree):
  """Host values, alike on all processes -> global arrays, whole on every device."""
  whole = NamedSharding(mesh, P())
  return jax.tree.map(lambda x: jax.make_array_from_callback(
    np.shape(x), whole, lambda index: np.asarray(x)[index]), tree)  # fmt: skip


def local_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of a global array that is split over its leading axis alone."""
  # Devices of one tensor group hold the same rows: the dict keeps one copy of each.
  pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
  return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def gathered(values: list) -> list:
  """The JSON values of every process, in the order of the processes, on every process."""
  if jax.process_count() == 1:
    return values
  # JAX gathers arrays of one shape: first the sizes, then the texts padded to a common one.
  text = np.frombuffer(json.dumps(values).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  room = 1 << int(sizes.max()).bit_length()  # few sizes: each is compiled once
  texts = multihost_utils.process_allgather(np.pad(text, (0, room - text.size)))
  return [v for t, size in zip(texts, sizes, strict=True) for v in json.loads(bytes(t[:size]))]


def every_row(x_B: np.ndarray) -> np.ndarray:
  """The rows of all processes, in the order of the processes, on every process."""
  if jax.process_count() == 1:
    return x_B
  return np.concatenate(np.asarray(multihost_utils.process_allgather(x_B)))


def by_prompt(x: jax.Array) -> jax.Array:
  """Inside jit under `jax.set_mesh`: keeps the leading axis split over the prompts' shards."""
  return constrained(x, BATCH)


def constrained(x: jax.Array, spec: P) -> jax.Array:
  """Inside jit under `jax.set_mesh`: lays x out by `spec`. Without a mesh it does nothing."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec)


def shards_here() -> int:
  """`batch_shards` of the mesh that is set, 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else batch_shards(mesh)


def take_local(x: jax.Array, index: jax.Array | np.ndarray) -> jax.Array:
  """x[index] inside each prompts' shard: nothing moves between devices.

  Args:
    x: [A, ..], its leading axis split over the shards.
    index: int32 [X, ..], split likewise; places count from where the own shard's part of x begins.
      A place outside of it reads the nearest.
  """
  count = shards_here()
  parts = by_prompt(x.reshape(count, -1, *x.shape[1:]))
  places = by_prompt(jnp.asarray(index).reshape(count, -1))
  taken = jax.vmap(lambda part, place: jnp.take(part, place, axis=0, mode="clip"))(parts, places)
  return by_prompt(by_prompt(taken).reshape(*index.shape, *x.shape[1:]))


def in_turn(f, tree, pieces: int):
  """Inside jit: f of an equal part of the prompts of each shard at a time.

  Args:
    f: (a tree of arrays [B / pieces, ..]) -> another such tree.
    tree: of arrays [B, ..].
    pieces: parts, or more where the prompts of a shard divide into more only.

  Returns:
    What f returns, of all prompts in their order.
  """
  count = shards_here()
  pieces = pieces_of(len(jax.tree.leaves(tree)[0]) // count, pieces)
  if pieces == 1:
    return f(tree)

  def cut(x):
    parts = by_prompt(x.reshape(count, pieces, -1, *x.shape[1:])).swapaxes(0, 1)
    return constrained(parts.reshape(pieces, -1, *x.shape[1:]), P(None, *BATCH))

  def joined(x):
    parts = x.reshape(pieces, count, -1, *x.shape[2:]).swapaxes(0, 1)
    return by_prompt(by_prompt(parts).reshape(-1, *x.shape[2:]))

  return jax.tree.map(joined, jax.lax.map(f, jax.tree.map(cut, tree)))


def pieces_of(prompts: int, pieces: int) -> int:
  """Into how many equal parts `in_turn` divides the prompts of a shard."""
  return next((n for n in range(pieces, prompts) if prompts % n == 0), prompts)


def add_local(x: jax.Array, index: jax.Array, size: int) -> jax.Array:
  """The inverse: [size] sums of x by place inside each shard; places below 0 are left out."""
  count = shards_here()
  parts = by_prompt(x.reshape(count, -1))
  places = by_prompt(index.reshape(count, -1))
  room = size // count
  add = lambda part, place: (
    jnp.zeros(room, x.dtype).at[jnp.where(place < 0, room, place)].add(part, mode="drop")
  )
  return by_prompt(by_prompt(jax.vmap(add)(parts, places)).reshape(size))


def by_shard(f, specs, results):
  """Inside jit under `jax.set_mesh`: f on each device's part of its arguments, which no operation
  of f moves to another. Without a mesh, f.

  Args:
    specs: PartitionSpecs of the arguments (of None too).
    results: those of what f returns.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return f
  return jax.shard_map(f, in_specs=specs, out_specs=results, check_vma=False)


def logits_by_row(x_ZXV: jax.Array) -> jax.Array:
  """Inside jit under `jax.set_mesh`: logits of which each device of a tensor group has made those
  of its part of the vocabulary -> each has all of V for its part of the rows X, where they divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x_ZXV
  # Without the first line XLA would bring the table together instead.
  x_ZXV = constrained(x_ZXV, P(*BATCH, None, "tensor"))
  divides = x_ZXV.shape[1] % mesh.shape["tensor"] == 0
  return constrained(x_ZXV, P(*BATCH, "tensor") if divides else BATCH)


def laid_out(tree, rules: Rules, whole: bool):
  """Inside jit under `jax.set_mesh`: weights split as the rules say.

  Args:
    whole: they are then gathered over fsdp, and still split over tensor.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree

  def lay(x, sharding):
    # In two steps: where the mesh was grouped anew, the first one exchanges parts inside a group,
    # and only the second one gathers.
    x = constrained(x, sharding.spec)
    axes = ((axis,) if isinstance(axis, str) else axis or () for axis in sharding.spec)
    without_fsdp = P(*(tuple(a for a in some if a != "fsdp") or None for some in axes))
    return constrained(x, without_fsdp) if whole else x

  return jax.tree.map(lay, tree, shardings(mesh, tree, rules))

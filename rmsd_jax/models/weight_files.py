"""The tensors of a model folder: its safetensors files, whoever wrote and named them.

    reader = Reader(folder)      finds the files and opens their headers; names as Qwen3-VL's
    reader.check(wanted, tied)   UserError in one line where they are not the wanted tensors

Prefixes that trainers leave and the names of other versions of transformers are mapped. What cannot
be read as weights (adapters, quantised tensors, other formats) is named, with what to do.
"""

import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from safetensors import SafetensorError, safe_open

from rmsd_jax.core.errors import UserError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")
_HEAD = "lm_head.weight"
_TABLE = "model.language_model.embed_tokens.weight"
_NAMED = 3  # tensors that a message names of each fault
_ROWS = 4_096  # of a table that are compared at a time
_FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names

# What wrappers put in front of all names, in any order.
_WRAPPERS = re.compile(
  r"^(?:module|_orig_mod|_fsdp_wrapped_module|base_model\.model|_forward_module)\."
)
# The same tensors by the names of other versions: Qwen2.5-VL's layout of 4.4x, the modules by
# themselves, and the layout whose decoder is `language_model.model`.
_OTHER_NAMES = (
  (re.compile(r"^(?:model\.)?language_model\.lm_head\."), "lm_head."),
  (re.compile(r"^model\.lm_head\."), "lm_head."),
  (re.compile(r"^model\.model\."), "model."),
  (re.compile(r"^(?:model\.)?language_model\.(?:model\.)?"), "model.language_model."),
  (re.compile(r"^visual\."), "model.visual."),
  (re.compile(r"^model\.(?=layers\.|embed_tokens\.|norm\.)"), "model.language_model."),
)
# What tells of tensors that are no weights of a dense model; the first that fits is named.
_FOREIGN = (
  (
    re.compile(r"lora_|\.modules_to_save\."),
    "holds LoRA adapters, not the weights with them; merge them into their base (merge_and_unload "
    "of peft, then save_pretrained) and give that folder",
  ),
  (
    re.compile(
      r"(weight_scale(_inv)?|input_scale|weight_packed|weight_shape|qweight|qzeros|g_idx|scales"
      r"|absmax|quant_map|quant_state[.\w]*|SCB|weight_format)$"
    ),
    "is quantised; give the folder of the unquantised model",
  ),
  (
    re.compile(r"\.mlp\.(experts\.|gate\.weight)"),
    "is a mixture of experts; only dense models are read",
  ),
)  # fmt: skip


def their_name(name: str) -> str:
  """A tensor's name as Qwen3-VL's own checkpoints have it."""
  while (bare := _WRAPPERS.sub("", name)) != name:
    name = bare
  for pattern, ours in _OTHER_NAMES:
    name = pattern.sub(ours, name, count=1)
  return name


class Reader:
  """The tensors of a folder's safetensors files, found through the index or by the files' names.

  Attributes:
    files: their names.
  """

  def __init__(self, folder: pathlib.Path):
    """Opens the files; tensors are read when they are asked for.

    Raises:
      UserError: a file is missing or broken, the index names what is not in the folder, or there
        are no weights that can be read.
    """
    self._folder = folder
    if list(folder.glob("adapter_model*")):
      raise UserError(f"{folder} must not be read without its adapter: {instead(folder)}")
    index = folder / INDEX
    places = _read_index(index) if index.is_file() else None
    self.files = sorted(set(places.values())) if places is not None else _found(folder)
    if (folder / _SINGLE).is_file() and _SINGLE not in self.files:
      # transformers reads the single file: which of them is the model, only its owner knows.
      raise UserError(
        f"{folder} has {_SINGLE}, and {INDEX} of other files; remove what is not the model's"
      )
    self._where = {}  # their name -> (open file, name in it)
    for file in self.files:
      handle = _opened(folder / file)
      for name in handle.keys():
        if places is None or places.get(name, file) == file:
          self._add(name, file, handle)
    if places is not None and (
      # A head that is not stored may be tied; whether it must be there is `check`'s to say.
      gone := [n for n in places if their_name(n) not in (*self._where, _HEAD)]
    ):
      raise UserError(
        f"{index} names {_some(gone)}, which its files do not hold; copy the whole folder again"
      )

  def _add(self, name: str, file: str, handle) -> None:
    theirs = their_name(name)
    if theirs in self._where:
      raise UserError(
        f"{self._folder} has {theirs} twice ({self._where[theirs][1]}, and {name} in {file}); "
        "remove the files of the other model"
      )
    self._where[theirs] = (handle, name)

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by their name."""
    return {theirs: tuple(self._slice(theirs).get_shape()) for theirs in self._where}

  def get(self, theirs: str) -> np.ndarray:
    """One tensor."""
    handle, name = self._where[theirs]
    return handle.get_tensor(name)

  def _slice(self, theirs: str):
    handle, name = self._where[theirs]
    return handle.get_slice(name)

  def check(self, wanted: Mapping[str, tuple[int, ...]], tied: bool) -> None:
    """Holds the tensors against those of a model, by headers; a tied head by its values.

    Args:
      wanted: shapes by their name.
      tied: logits are made by the table, so that a head that is stored must be the same.

    Raises:
      UserError: they differ; one line that says what to do.
    """
    self._check_foreign(wanted)
    there = self.shapes()
    if tied and (head := there.pop(_HEAD, None)) is not None:
      self._check_head(head, there.get(_TABLE))
    missing = [name for name in wanted if name not in there]
    # Frequencies of the positions, which older versions stored, follow from config.json.
    unknown = [n for n in there if n not in wanted and not n.endswith("_emb.inv_freq")]
    other = [
      f"{name} is {there[name]}, config.json says {shape}"
      for name, shape in wanted.items()
      if name in there and there[name] != shape
    ]
    faults = [f"missing {_some(missing)}"] if missing else []
    faults += [f"unknown {_some(unknown)}"] if unknown else []
    faults += [_some(other, "; ")] if other else []
    if faults:
      raise UserError(
        f"{self._folder}: the checkpoint does not fit its config.json: {'; '.join(faults)}"
      )

  def _check_foreign(self, wanted: Collection[str]) -> None:
    for pattern, what in _FOREIGN:
      names = [n for n in self._where if n not in wanted and pattern.search(n)]
      if names:
        raise UserError(f"{self._folder} {what} (it has {_some(names)})")
    types = {name: self._slice(name).get_dtype() for name in self._where if name in wanted}
    if odd := [f"{name} ({kind})" for name, kind in types.items() if kind not in _FLOATS]:
      raise UserError(
        f"{self._folder} stores weights as integers or 8-bit floats, which mean nothing without "
        f"their scales: {_some(odd)}; give the folder of the unquantised model"
      )

  def _check_head(self, head: tuple[int, ...], table: tuple[int, ...] | None) -> None:
    if table is None:
      return  # missing, as the check of names says
    same = head == table
    for start in range(0, head[0] if same else 0, _ROWS):
      end = min(start + _ROWS, head[0])
      rows = [self._slice(name)[start:end] for name in (_HEAD, _TABLE)]
      same = same and np.array_equal(*(part.astype(np.float32) for part in rows))
    if not same:
      raise UserError(
        f"{self._folder}: config.json ties the head to the table of embeddings "
        "(tie_word_embeddings), but lm_head.weight differs from it and would be dropped; set "
        "tie_word_embeddings to false there, or remove lm_head.weight if it is a leftover"
      )


def check_finite(name: str, values: np.ndarray) -> np.ndarray:
  """The values; UserError that names the tensor if one is not finite."""
  if not np.isfinite(values).all():
    count = int(np.size(values) - np.isfinite(values).sum())
    raise UserError(
      f"tensor {name} has {count} values that are not finite as {values.dtype}; copy the folder "
      "again, or load it in a wider type"
    )
  return values


def _some(names: Sequence[str], between: str = ", ") -> str:
  """The first few of a list, and how many more there are."""
  more = len(names) - _NAMED
  return between.join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _read_index(index: pathlib.Path) -> dict[str, str]:
  """Name of a tensor -> file beside the index."""
  try:
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = set(places.values())
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{index} has no weight_map in JSON ({error}); copy it again") from error
  for file in files:
    if not isinstance(file, str) or not re.fullmatch(r"[^/\\]+\.safetensors", file):
      raise UserError(f"{index} names {file!r}, which is no file beside it; copy it again")
  return places


def _found(folder: pathlib.Path) -> list[str]:
  """The files of a folder without an index: one by its name, or all shards of one set."""
  if (folder / _SINGLE).is_file():
    return [_SINGLE]
  sets: dict[tuple[str, int], list[str]] = {}
  for path in sorted(folder.glob("*.safetensors")):
    if match := _SHARD.fullmatch(path.name):
      sets.setdefault((match[1], int(match[3])), []).append(path.name)
  if len(sets) == 1:
    ((stem, count), files), = sets.items()  # fmt: skip
    if len(files) != count:
      raise UserError(
        f"{folder} has {len(files)} of the {count} files {stem}-...-of-...; copy the missing ones"
      )
    return files
  if len(sets) > 1:
    raise UserError(
      f"{folder} has shards of several sets and no {INDEX}, such as "
      f"{_some([files[0] for files in sets.values()])}; leave one set"
    )
  raise UserError(f"{folder / _SINGLE} does not exist; {instead(folder)}")


def instead(folder: pathlib.Path) -> str:
  """What to do about a folder without weights, by what lies in it."""
  if list(folder.glob("adapter_*")):
    return (
      "the folder holds a LoRA adapter; merge it into its base (merge_and_unload of peft, then "
      "save_pretrained) and give that folder"
    )
  for pattern, what in (
    ("*.gguf", "GGUF files are not read"),
    ("pytorch_model*.bin", "weights of torch.save are not read; save them with save_pretrained"),
    ("consolidated*", "this is another format; give the folder for transformers"),
  ):
    if list(folder.glob(pattern)):
      return f"{what}; a Hugging Face folder with safetensors files is needed"
  others = [path.name for path in sorted(folder.glob("*.safetensors"))]
  also = f" ({_some(others)} may be it: rename it)" if others else ""
  return f"copy the whole checkpoint folder{also}"


def _opened(path: pathlib.Path):
  if not path.is_file():
    raise UserError(f"{path} does not exist; copy the whole checkpoint folder")
  try:
    return safe_open(path, framework="np")  # reads the header alone
  except (SafetensorError, OSError) as error:
    raise UserError(f"{path} is not a whole safetensors file ({error}); copy it again") from error

"""Where a run is not what its protocol says, by what the responses tell of it; for the card."""

import hashlib
from collections.abc import Mapping
from typing import Any

from rmsd_jax.benchmarks.preparing import RECORDS, Prepared
from rmsd_jax.benchmarks.protocols import Protocol
from rmsd_jax.core.errors import UserError

_ENDS = ("min", "max")
_DRAWN = ("temperature", "top_p", "top_k")


def differences(prepared: Prepared, run: Mapping[str, Any], protocol: Protocol) -> list[str]:
  """What of decoding, frames, pixels and length of replies differs, in words.

  Args:
    run: see `answered.Responses`; of what it does not say nothing is known.

  Raises:
    UserError: the pool was built from other prompts.
  """
  found = _decoding(run, protocol)
  pool = run.get("pool_identity")
  if not isinstance(pool, dict):
    return found
  _check_prompts(prepared, str(pool.get("source_sha256", "")), run)
  kinds = prepared.about["kinds"]
  if "video" in kinds:
    found += _frames(pool["processor"], protocol)
  for kind in kinds:
    given = {f"{kind}_{end}_pixels": pool["processor"][kind][f"{end}_pixels"] for end in _ENDS}
    found += _otherwise(given, protocol)
  shortest = min(sizes[1] for sizes in pool["buckets"])
  if shortest < protocol.max_tokens:
    found.append(f"replies of at most {shortest} tokens instead of {protocol.max_tokens}")
  return found


def _check_prompts(prepared: Prepared, built_from: str, run: Mapping[str, Any]) -> None:
  """Prompts of two protocols have the same ids: the digest of the file tells them apart.

  A pool's is of the digests of all its files, see `store.build`.
  """
  of_file = hashlib.sha256((prepared.folder / RECORDS).read_bytes()).digest()
  ours = hashlib.sha256(of_file).hexdigest()
  if built_from and built_from != ours:
    raise UserError(
      f"the pool {run.get('pool', '')} was not built from {prepared.folder / RECORDS} alone: its "
      "prompts may be of another protocol; build it from that file and evaluate again"
    )


def _decoding(run: Mapping[str, Any], protocol: Protocol) -> list[str]:
  drawn = run.get("rollouts")
  if not isinstance(drawn, dict):
    return []
  names = _DRAWN if drawn.get("temperature") else _DRAWN[:1]  # greedy: the others do nothing
  asked = {name: getattr(protocol, name) for name in names if name in drawn}
  return [
    f"{name} {drawn[name]:g} instead of {value:g}"
    for name, value in asked.items()
    if drawn[name] != value
  ]


def _frames(shown: Mapping[str, Any], protocol: Protocol) -> list[str]:
  """Frames and clock, of the settings of a pool's processor."""
  sampling = shown["sampling"]
  names = ("frames",) if protocol.frames else ("frames", "fps", "min_frames", "max_frames")
  given = {name: sampling[name] or 0 for name in names}
  given |= {"times": sampling.get("times", "index"), "video_style": shown["video"]["style"]}
  return _otherwise(given, protocol)


def _otherwise(given: Mapping[str, Any], protocol: Protocol) -> list[str]:
  return [
    f"{name} {value} instead of {getattr(protocol, name)}"
    for name, value in given.items()
    if value != getattr(protocol, name)
  ]

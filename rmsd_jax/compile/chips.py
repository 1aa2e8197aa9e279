"""Accelerators that need not be there: devices to compile for.

kind, devices = devices_of("v5e:4x4")       of a TPU slice, through libtpu
kind, devices = devices_of("h100:8")        of H100s, through JAX's CUDA plugin
"""

import os

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks a cloud's metadata server

from jax.experimental import topologies

from rmsd_jax.core.accelerators import CHIPS
from rmsd_jax.core.errors import UserError

ATTENTION = {"h100": "cudnn"}  # what attention "auto" is there; splash elsewhere
HOST = 8  # GPUs of one host

# What XLA asks about a GPU that it compiles for: NVIDIA's figures of an H100 SXM.
_H100 = {
  "gpu_device_info": {
    "cuda_compute_capability": {"major": 9},
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 84_978_434_048,
    "memory_bandwidth": 3_352_320_000_000,
    "l2_cache_size": 52_428_800,
    "threads_per_warp": 32,
    "threads_per_block_limit": 1_024,
    "threads_per_core_limit": 2_048,
    "shared_memory_per_block": 49_152,
    "shared_memory_per_block_optin": 232_448,
    "shared_memory_per_core": 233_472,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "block_dim_limit_x": 2_147_483_647,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
  },
  "platform_name": "CUDA",
  "dnn_version_info": {"major": 9, "minor": 8},
  "runtime_version": {"major": 12, "minor": 8},
  "device_description_str": "NVIDIA H100 80GB HBM3",
}


def devices_of(topology: str):
  """("v5e", devices) of a topology such as "v5e:4x4" or, for GPUs, "h100:8".

  Raises:
    UserError: an unknown chip, a shape that does not exist, or the plugin is not installed.
  """
  kind, _, shape = topology.partition(":")
  if kind not in CHIPS:
    raise UserError(f"topology {topology!r}: the chip is none of {', '.join(CHIPS)}")
  try:
    if kind != "h100":
      return kind, topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    # JAX wants partitions x hosts x devices of a host; fewer GPUs than a host has are one host.
    hosts, rest = divmod(int(shape), HOST)
    if hosts and rest:
      raise ValueError(f"more than {HOST} GPUs are a multiple of {HOST}")
    shape = f"1x{hosts}x{HOST}" if hosts else f"1x1x{rest}"
    described = topologies.get_topology_desc(
      platform="cuda", topology_name="", topology=shape, target_config=_as_proto(_H100)
    )
    return kind, described.devices
  except (RuntimeError, ValueError, OSError, KeyError, AssertionError) as error:
    plugin = "jax[cuda12]" if kind == "h100" else "libtpu"
    raise UserError(
      f"topology {topology!r} cannot be described ({error}); install {plugin} (pip install "
      f"'{plugin}') and give a shape that exists, such as v5e:4x4 or h100:8"
    ) from error


def _as_proto(fields: dict) -> str:
  """Nested values in the text form of a protocol buffer."""
  lines = []
  for name, value in fields.items():
    if isinstance(value, dict):
      lines.append(f"{name} {{ {_as_proto(value)} }}")
    else:
      lines.append(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}")
  return " ".join(lines)

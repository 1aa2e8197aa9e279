"""Public figures of accelerators, and which of them a JAX device is."""

from typing import NamedTuple


class Chip(NamedTuple):
  """Public figures of one JAX device: usable memory, bfloat16 peak, bandwidths."""

  memory: float  # GiB
  flops: float  # per second
  hbm: float  # bytes per second
  link: float  # bytes per second to other devices, all links together, one direction


CHIPS = {
  "v5e": Chip(15.75, 197e12, 819e9, 200e9),
  "v5p": Chip(95.0, 459e12, 2_765e9, 600e9),
  "v6e": Chip(31.25, 918e12, 1_640e9, 448e9),
  "tpu7x": Chip(94.0, 1_153e12, 3_690e9, 600e9),  # a chip has two devices
  "h100": Chip(79.1, 989e12, 3_352e9, 450e9),  # SXM; the link is NVLink, inside a host of 8
}
# What JAX calls a device -> its name above; H200 computes as H100 does.
_KINDS = (
  ("tpu v5 lite", "v5e"),
  ("tpu v5e", "v5e"),
  ("tpu v5", "v5p"),
  ("tpu v6", "v6e"),
  ("tpu7", "tpu7x"),
  ("tpu v7", "tpu7x"),
  ("h100", "h100"),
  ("h200", "h100"),
)


def peak_flops(device_kind: str) -> float | None:
  """bfloat16 FLOPs per second of one JAX device at its peak, None of one that is not known.

  Args:
    device_kind: as `jax.Device.device_kind` says it. The PCIe and NVL boards named H100 run slower
      than the SXM ones whose figure this is.
  """
  kind = device_kind.lower()
  name = next((name for begins, name in _KINDS if begins in kind), None)
  return CHIPS[name].flops if name else None

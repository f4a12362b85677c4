"""What accelerators can do, as their makers publish it."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  import jax


class Chip(NamedTuple):
  """An accelerator. A TPU's chip is one device, also where it has two cores (megacore).

  Attributes:
    name: for people.
    memory: bytes; of a TPU, what XLA leaves a program, and of a GPU, what CUDA sees of it.
    flops: of dense matrix products in bfloat16, at most, a second.
    bandwidth: of its memory, bytes a second.
    links: bytes a second that it can send to other chips over all its links at once.
    clock: cycles a second of a TPU's cores, which XLA estimates programs in; None of a GPU.
  """

  name: str
  memory: int
  flops: float
  bandwidth: float
  links: float
  clock: float | None = None


def _gib(number: float) -> int:
  return int(number * (1 << 30))


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, whose "interconnect BW" is in bits and of one
# direction; memory from the errors of libtpu 0.0.42. Clocks: v4 from Table 4 of arXiv:2304.01433;
# the others from the peak, at 4 products of 128 x 128 a cycle and core for v5e (one core) and v5p
# (two), and 4 of 256 x 256 for v6e. By these libtpu estimates a product of 8192 x 8192 in bfloat16
# at 93, 88, 90 and 70% of the peak.
# GPUs, SXM: NVIDIA's data sheets, without sparsity; NVLink, which they give for both directions.
# Memory as CUDA gives it, a little less than the sheets'.
CHIPS = {
  'v4': Chip('TPU v4', _gib(30.75), 275e12, 1228e9, 300e9, 1.05e9),
  'v5e': Chip('TPU v5e', _gib(15.75), 197e12, 819e9, 200e9, 1.5e9),
  'v5p': Chip('TPU v5p', _gib(95.74), 459e12, 2765e9, 600e9, 1.75e9),
  'v6e': Chip('TPU v6e', _gib(31.25), 918e12, 1640e9, 400e9, 1.75e9),
  'a100-40gb': Chip('A100 40 GB', _gib(39.4), 312e12, 1555e9, 300e9),
  'a100-80gb': Chip('A100 80 GB', _gib(79.2), 312e12, 2039e9, 300e9),
  'h100': Chip('H100', _gib(79.1), 989e12, 3350e9, 450e9),
  'h200': Chip('H200', _gib(139), 989e12, 4800e9, 450e9),
}

GPU_SHARE = 0.75  # XLA_PYTHON_CLIENT_MEM_FRACTION, where it is not set

# What a device calls itself (`device.device_kind`) begins like this; the longer name stands first.
KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v6': 'v6e',
  'NVIDIA A100-SXM4-40GB': 'a100-40gb',
  'NVIDIA A100-SXM4-80GB': 'a100-80gb',
  'NVIDIA H100': 'h100',
  'NVIDIA H200': 'h200',
}


def chip_of(device_kind: str) -> Chip | None:
  """The chip that calls itself so; None of one that is not in the table."""
  return next((CHIPS[name] for kind, name in KINDS.items() if device_kind.startswith(kind)), None)


def memory_limit(device: 'jax.Device') -> int | None:
  """Bytes of `device` that a program may take; None where they are this machine's own.

  Of a GPU that is not there, the share that JAX takes of one unless it is told another.
  """
  chip = chip_of(device.device_kind)
  if device.platform != 'gpu':
    return chip and chip.memory
  try:
    stats = device.memory_stats() or {}
  except RuntimeError:  # JAX's of a device to compile for only.
    return chip and int(GPU_SHARE * chip.memory)
  return stats.get('bytes_limit', chip and chip.memory)

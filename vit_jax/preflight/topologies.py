"""Devices by the name of a topology: of TPUs and GPUs that are not there, or of this machine.

`v5e:4x8` and `v5e-32` (Cloud TPU's name, which for v4 and v5p counts cores, two a chip) are slices
that the `libtpu` package compiles for on any Linux machine, and `h100:8` GPUs for which JAX's CUDA
plugin does. `cpu:8` simulates 8 devices; `gpu` is every GPU of this machine.
"""

import math
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from vit_jax.preflight import gpus

if TYPE_CHECKING:
  import jax


class Family(NamedTuple):
  """A kind of TPU.

  Attributes:
    accelerator: what Cloud TPU calls a host's worth of it.
    shapes: slices that Cloud TPU rents, or the most usual ones.
    cores: cores a chip, as its slices' names count.
    options: what libtpu must be told to make each chip one device.
  """

  accelerator: str
  shapes: tuple[str, ...]
  cores: int
  options: dict[str, str]


FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16')
FAMILIES = {
  'v4': Family('v4-8', CUBES, 2, dict(chip_config_name='megacore')),
  'v5e': Family('v5litepod-8', FLAT, 1, {}),
  'v5p': Family('v5p-8', CUBES, 2, dict(chip_config_name='megacore')),
  'v6e': Family('v6e-8', FLAT, 1, {}),
}


def describe() -> str:
  """What may be asked for, in one line."""
  slices = ', '.join(f'{name}:{f.shapes[0]} ... {f.shapes[-1]}' for name, f in FAMILIES.items())
  return (
    f'{slices}, {":N, ".join(gpus.GPUS)}:N (N GPUs), cpu:N (N simulated devices), '
    'gpu (those of this machine)'
  )


def set_environment(topology: str) -> None:
  """Makes this process one that compiles for `topology`; to be called before JAX starts.

  A process that libtpu is loaded in to compile asks no metadata server what it runs on, and shares
  the machine with others that do the same.

  Raises:
    ValueError: an unknown topology.
  """
  kind, size = _split(topology)
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # What it keeps cannot be looked into.
  if kind == 'gpu':
    return
  os.environ['JAX_PLATFORMS'] = 'cpu'
  if kind == 'cpu':
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={size}'.strip()
    return
  if kind in gpus.GPUS:
    os.environ['XLA_FLAGS'] = f'{gpus.FLAGS} {os.environ.get("XLA_FLAGS", "")}'.strip()
    return
  os.environ.update(
    TPU_SKIP_MDS_QUERY='1',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE=FAMILIES[kind].accelerator,
    TPU_WORKER_HOSTNAMES='localhost',
  )
  # What libtpu says of a machine without TPUs is no news here.
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TPU_STDERR_LOG_LEVEL', '3')


def devices(topology: str) -> 'list[jax.Device]':
  """The devices of `topology`, to compile for; on 'cpu:N' and 'gpu' they can also run.

  Raises:
    ValueError: an unknown topology, or more devices than there are.
    ImportError: a TPU slice without `libtpu`, or GPUs that are not there without JAX's plugin.
  """
  import jax

  kind, size = _split(topology)
  if kind in gpus.GPUS:
    return gpus.devices(kind, int(size))
  if kind in ('cpu', 'gpu'):
    try:
      there = jax.devices(kind)
    except RuntimeError:
      raise ValueError(
        f"topology {topology!r} needs a GPU that JAX sees, with `pip install 'jax[cuda13]'`; "
        f'without one choose from {describe()}'
      ) from None
    count = int(size) if size else len(there)
    if count > len(there):
      raise ValueError(
        f'topology {topology!r} needs {count} devices and this process has {len(there)}; set '
        f'XLA_FLAGS=--xla_force_host_platform_device_count={count} before it starts'
      )
    return there[:count]
  return _slice(kind, size)


def _slice(kind: str, shape: str) -> 'list[jax.Device]':
  import jax
  from jax.experimental import topologies

  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise ImportError(
      f"a TPU topology needs libtpu: pip install 'jax[tpu]=={jax.__version__}' (it takes 0.7 GB, "
      'and no TPU)'
    ) from None
  family = FAMILIES[kind]
  sides = tuple(int(side) for side in shape.split('x'))
  # One host where the slice is smaller than its usual 2 x 2.
  host = (min(sides[0], 2), min(sides[1], 2), 1)
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{kind}:{shape}', chips_per_host_bounds=host, **family.options
    )
  except jax.errors.JaxRuntimeError:
    raise ValueError(
      f'libtpu knows no topology {kind}:{shape}; slices of {kind} are {", ".join(family.shapes)}'
    ) from None
  return list(found.devices)


def _split(topology: str) -> tuple[str, str]:
  """'v5e:2x4' and 'v5e-8' are ('v5e', '2x4'), 'h100:8' is ('h100', '8'), 'gpu' is ('gpu', '').

  Raises:
    ValueError: an unknown topology; names those there are.
  """
  text = topology.lower().replace('v5litepod', 'v5e').replace('tpu-', '')
  kind, _, size = text.partition(':') if ':' in text else text.partition('-')
  if kind == 'gpu' and re.fullmatch(r'\d*', size):
    return kind, size
  if kind == 'cpu' and re.fullmatch(r'[1-9]\d*', size):
    return kind, size
  if kind in gpus.GPUS:
    count = int(size) if size.isdigit() else 0
    if 0 < count <= gpus.HOST or (count and count % gpus.HOST == 0):
      return kind, size
    raise ValueError(
      f'unknown topology {topology!r}; {kind} takes 1 to {gpus.HOST} GPUs, or a multiple of '
      f'{gpus.HOST}'
    )
  if kind in FAMILIES:
    family = FAMILIES[kind]
    dimensions = family.shapes[0].count('x')
    # Cubes are rented in many shapes, of which libtpu knows those that can be.
    if size in family.shapes or (dimensions == 2 and re.fullmatch(r'\d+x\d+x\d+', size)):
      return kind, size
    chips = int(size) // family.cores if size.isdigit() else 0
    by_chips = {math.prod(map(int, shape.split('x'))): shape for shape in family.shapes}
    if chips in by_chips:
      return kind, by_chips[chips]
    raise ValueError(
      f'unknown topology {topology!r}; slices of {kind} are '
      + ', '.join(f'{kind}:{shape}' for shape in family.shapes)
    )
  raise ValueError(f'unknown topology {topology!r}; choose from {describe()}')

"""The mesh, and the table from logical to mesh axes. The only file that knows the mesh's axes."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')
# The batch is split over both: naming 'data' alone would make XLA gather it again.
BATCH_AXES = ('data', 'fsdp')

# Logical axis of a parameter -> mesh axis. A test sees to it that every name in use stands here.
LOGICAL_AXES: dict[str, str | tuple[str, ...] | None] = {
  'batch': BATCH_AXES,
  'embed': 'fsdp',
  'mlp': 'tensor',
  'heads': 'tensor',
  'head_dim': None,
  'classes': 'tensor',
  'layers': None,  # the blocks of a scan
}


def make_mesh(shape: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
  """Makes the mesh `dict(data=-1, fsdp=1, tensor=1)`; -1 takes the devices that are left.

  Args:
    shape: devices along each axis; axes not named have 1.
    devices: all of this run's devices by default.

  Raises:
    ValueError: an unknown axis, or a shape that the number of devices does not fit.
  """
  devices = jax.devices() if devices is None else devices
  unknown = [axis for axis in shape if axis not in AXES]
  if unknown:
    raise ValueError(f'unknown mesh axis {unknown[0]!r}; choose from {", ".join(map(repr, AXES))}')
  sizes = [1 if shape.get(axis) is None else shape.get(axis) for axis in AXES]
  stated = f'mesh {dict(zip(AXES, sizes, strict=True))}'
  if sizes.count(-1) > 1 or any(type(n) is not int or (n < 1 and n != -1) for n in sizes):
    raise ValueError(f'{stated}: sizes are positive, and one of them may be -1 (all that are left)')
  if -1 in sizes:
    others = math.prod(n for n in sizes if n != -1)
    if len(devices) % others:
      raise ValueError(f'{stated} needs a multiple of {others} devices; there are {len(devices)}')
    sizes[sizes.index(-1)] = len(devices) // others
  if math.prod(sizes) != len(devices):
    raise ValueError(f'{stated} needs {math.prod(sizes)} devices; there are {len(devices)}')
  # Linen's logical constraints need Auto axes.
  return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its leading axis over every device that holds different examples."""
  return NamedSharding(mesh, P(BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
  """Devices that hold different examples of a batch; 1 of an empty mesh."""
  return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, P())


def parameter_shardings(variables: Any, mesh: Mesh) -> Any:
  """The sharding of every leaf of Linen's variables, by the logical axes the model gave it.

  An axis that its mesh axes do not divide stays whole: a head of 10 classes is not worth an error.

  Args:
    variables: what `init` returns under `jax.eval_shape`, boxes (`LogicallyPartitioned`) included.
    mesh: the mesh.

  Returns:
    A tree of `NamedSharding` shaped like the *unboxed* variables.

  Raises:
    ValueError: a logical axis that is not in `LOGICAL_AXES`.
  """
  specs = nn.get_partition_spec(variables)
  return jax.tree.map(
    lambda leaf, spec: NamedSharding(mesh, _to_mesh_axes(spec, leaf.shape, mesh)),
    nn.unbox(variables),
    specs,
  )


def _to_mesh_axes(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
  axes = []
  for name, size in zip(tuple(spec) + (None,) * (len(shape) - len(spec)), shape, strict=True):
    if name is not None and name not in LOGICAL_AXES:
      options = ', '.join(repr(k) for k in LOGICAL_AXES)
      raise ValueError(f'unknown logical axis {name!r}; choose from {options}')
    axis = None if name is None else LOGICAL_AXES[name]
    names = (axis,) if isinstance(axis, str) else axis or ()
    axes.append(axis if size % math.prod(mesh.shape[n] for n in names) == 0 else None)
  return P(*axes)

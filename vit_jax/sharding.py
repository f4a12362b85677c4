"""The mesh, and the table from logical to mesh axes. The only file that knows the mesh's axes.

`config.mesh` says how many devices lie along `data`, `fsdp` and `tensor`, `config.sharding` what is
split over them. A batch is split over `data` and `fsdp`, layers over `tensor`, whatever the word:

  'fsdp'        parameters, and what the optimizer keeps of them, over `fsdp`: ZeRO-3,
                arXiv:1910.02054; with `data` too every group of `fsdp` devices has all of them
  'zero1'       parameters are whole, what the optimizer keeps is split over `data` and `fsdp`:
                ZeRO-1
  'replicated'  both are whole

Layers are split as in arXiv:1909.08053.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.arrays import Array
from vit_jax.choices import check_choice

AXES = ('data', 'fsdp', 'tensor')
# The batch is split over both: naming 'data' alone would make XLA gather it again.
BATCH_AXES = ('data', 'fsdp')

# Logical axis of an array -> mesh axis. A test sees to it that every name in use stands here.
LOGICAL_AXES: dict[str, str | tuple[str, ...] | None] = {
  'batch': BATCH_AXES,
  'embed': 'fsdp',  # of a parameter, the one that is split first
  'mlp': 'tensor',
  'heads': 'tensor',
  'head_dim': None,
  'classes': 'tensor',
  'layers': None,  # the blocks of a scan
}


class Split(NamedTuple):
  """The mesh axes that arrays are split over beside `tensor`.

  Attributes:
    parameters: those of parameters.
    moments: those of what the optimizer keeps of each, and of an average over the steps.
  """

  parameters: tuple[str, ...]
  moments: tuple[str, ...]


SHARDINGS = {
  'fsdp': Split(('fsdp',), ('fsdp',)),
  'zero1': Split((), BATCH_AXES),
  'replicated': Split((), ()),
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
  for axis in shape:
    check_choice('mesh axis', axis, AXES)
  sizes = [1 if shape.get(axis) is None else shape.get(axis) for axis in AXES]
  stated = f'mesh {dict(zip(AXES, sizes, strict=True))}'
  if sizes.count(-1) > 1 or any(type(n) is not int or (n < 1 and n != -1) for n in sizes):
    raise ValueError(f'{stated}: sizes are positive, and one of them may be -1 (all that are left)')
  count = len(devices)
  divisors = ', '.join(str(n) for n in range(1, count + 1) if count % n == 0)
  if -1 in sizes:
    others = math.prod(n for n in sizes if n != -1)
    if count % others:
      raise ValueError(
        f'{stated} needs a multiple of {others} devices; there are {count}, so beside -1 choose'
        f' sizes whose product is one of {divisors}'
      )
    sizes[sizes.index(-1)] = count // others
  if math.prod(sizes) != count:
    raise ValueError(
      f'{stated} needs {math.prod(sizes)} devices; there are {count}, so choose sizes whose product'
      f' is {count} (each one of {divisors}), or -1 for one of them'
    )
  # Constraints on activations need Auto axes.
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


# -- Parameters.


def logical_axes(variables: Any) -> Any:
  """The logical names of every leaf's axes, a `PartitionSpec` with None where there is none.

  Args:
    variables: what `init` returns under `jax.eval_shape`, boxes (`LogicallyPartitioned`) included.

  Returns:
    A tree shaped like the *unboxed* variables.
  """
  return jax.tree.map(
    lambda leaf, spec: P(*spec, *(None,) * (leaf.ndim - len(spec))),
    nn.unbox(variables),
    nn.get_partition_spec(variables),
  )


def parameter_shardings(variables: Any, mesh: Mesh, sharding: str = 'fsdp') -> Any:
  """The sharding of every leaf of Linen's variables; see `place`.

  In collections other than `params` what has no logical axes, such as the statistics of BatchNorm,
  is whole: it is small.

  Args:
    variables: what `init` returns under `jax.eval_shape`, boxes (`LogicallyPartitioned`) included.
    mesh: the mesh.
    sharding: a key of `SHARDINGS`.

  Returns:
    A tree of `NamedSharding` shaped like the *unboxed* variables.

  Raises:
    ValueError: an unknown word, or a logical axis that is not in `LOGICAL_AXES`.
  """
  over = SHARDINGS[check_choice('sharding', sharding, SHARDINGS)].parameters

  def placed(path: Any, leaf: Any, names: P) -> NamedSharding:
    if path[0].key != 'params' and not any(names):
      return replicated(mesh)
    return place(names, leaf.shape, mesh, over)

  return jax.tree.map_with_path(placed, nn.unbox(variables), logical_axes(variables))


def place(
  names: Sequence[str | None], shape: tuple[int, ...], mesh: Mesh, over: tuple[str, ...]
) -> NamedSharding:
  """The sharding of a parameter, or of what is kept of one.

  Axes whose names say so are split over `tensor`; and one more is over all of `over`: 'embed', or
  where that cannot be, the largest. An axis that its devices do not divide stays whole: a head of
  10 classes is not worth an error. So does that of a scan's blocks: a turn reads one of them.

  Args:
    names: the logical name of each axis, or None.
    shape: of the array.
    mesh: the mesh.
    over: mesh axes, of a `Split`.

  Raises:
    ValueError: a logical axis that is not in `LOGICAL_AXES`.
  """
  tensor = mesh.shape['tensor']
  axes = [
    'tensor' if _mesh_axis(name) == 'tensor' and tensor > 1 and size % tensor == 0 else None
    for name, size in zip(names, shape, strict=True)
  ]
  parts = math.prod(mesh.shape[axis] for axis in over)
  free = [
    i
    for i, size in enumerate(shape)
    if axes[i] is None and names[i] != 'layers' and size % parts == 0
  ]
  if over and free:
    first = max(free, key=lambda i: (names[i] == 'embed', shape[i]))
    axes[first] = over if len(over) > 1 else over[0]
  return NamedSharding(mesh, P(*axes))


def _mesh_axis(name: str | None) -> str | tuple[str, ...] | None:
  return None if name is None else LOGICAL_AXES[check_choice('logical axis', name, LOGICAL_AXES)]


def splits(sharding: NamedSharding, ndim: int) -> str:
  """What each axis of an array is split over, `fsdp,tensor,-`; 'whole' where none is."""
  parts = []
  for axis in (*sharding.spec, *(None,) * (ndim - len(sharding.spec))):
    names = (axis,) if isinstance(axis, str) else axis or ()
    parts.append('+'.join(name for name in names if sharding.mesh.shape[name] > 1) or '-')
  return ','.join(parts) if set(parts) - {'-'} else 'whole'


def bytes_per_device(tree: Any) -> int:
  """The bytes that one device holds of a tree of arrays, or of shapes with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


# -- Activations.


def constrain(x: Array, *names: str | None) -> Array:
  """`x`, which lies on the mesh as its logical axes say; itself where no mesh is set.

  XLA then moves parameters to where the examples are, and not the reverse. Nothing is said over
  mesh axes that are not its to choose, such as those inside of a `shard_map`; nor outside of
  `jit`, where arrays lie as they lie.

  Args:
    x: activations.
    names: the logical name of each axis; None for one that is whole, as is one that its devices
      do not divide.

  Raises:
    ValueError: a logical axis that is not in `LOGICAL_AXES`, or another number of them.
  """
  spec = _spec(names, x.shape)
  if spec is None or not isinstance(x, jax.core.Tracer):
    return x
  return jax.lax.with_sharding_constraint(x, spec)


def on_shards(function: Callable[[Array], Array], x: Array, *names: str | None) -> Array:
  """`function` of what each device holds of `x`, for what XLA would gather it for.

  Args:
    function: to an array of the same shape, each part of which comes from the same part of `x`.
    x: activations.
    names: as of `constrain`.

  Raises:
    ValueError: as of `constrain`.
  """
  mesh, spec = jax.sharding.get_abstract_mesh(), _spec(names, x.shape)
  # What is split by examples alone XLA does not gather, and it fuses more of it.
  if spec is None or mesh.size == batch_shards(mesh):
    return function(x)
  return jax.shard_map(function, in_specs=spec, out_specs=spec)(x)


def _spec(names: Sequence[str | None], shape: tuple[int, ...]) -> P | None:
  """What activations are split over; None where there are not several devices to choose from."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or AxisType.Auto not in mesh.axis_types:
    return None
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  spec = []
  for name, size in zip(names, shape, strict=True):
    axis = _mesh_axis(name)
    axes = (axis,) if isinstance(axis, str) else axis or ()
    axes = tuple(a for a in axes if types.get(a) == AxisType.Auto)
    divides = size % math.prod(mesh.shape[a] for a in axes) == 0
    spec.append(axes if axes and divides else None)
  return P(*spec)

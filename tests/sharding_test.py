import ast
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import vit_jax
from vit_jax import sharding
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.state import abstract_variables

PACKAGE = Path(vit_jax.__file__).parent


def make_objective(**fields):
  sizes = dict(patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=16)
  return Supervised(ViT(**{**sizes, **fields}), num_classes=4)


def make_spec(batch_size=8):
  shapes = dict(image=((batch_size, 4, 4, 3), 'uint8'), label=((batch_size,), 'int32'))
  return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def specs_of(objective, mesh):
  """Parameter -> what each of its axes is split over."""
  variables = abstract_variables(objective, make_spec())
  placed = sharding.parameter_shardings(variables, mesh)['params']
  assert jax.tree.structure(placed) == jax.tree.structure(nn.unbox(variables)['params'])
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.spec)
    for path, leaf in jax.tree.leaves_with_path(placed)
  }


# -- The mesh.


@pytest.mark.parametrize(
  ('shape', 'sizes'),
  [
    ({}, None),
    (dict(data=-1), (8, 1, 1)),
    (dict(data=-1, fsdp=1, tensor=1), (8, 1, 1)),
    (dict(fsdp=-1), (1, 8, 1)),
    (dict(data=-1, fsdp=2, tensor=2), (2, 2, 2)),
    (dict(data=2, fsdp=-1, tensor=4), (2, 1, 4)),
    (dict(data=8, fsdp=None, tensor=None), (8, 1, 1)),
    (dict(tensor=8), (1, 1, 8)),
  ],
)
def test_the_mesh_has_the_stated_shape(shape, sizes):
  if sizes is None:
    with pytest.raises(ValueError, match='needs 1 devices; there are 8'):
      sharding.make_mesh(shape)
    sizes, devices = (1, 1, 1), jax.devices()[:1]
  else:
    devices = None
  mesh = sharding.make_mesh(shape, devices)
  assert dict(mesh.shape) == dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
  assert mesh.axis_names == sharding.AXES
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert {d.id for d in mesh.devices.flat} == {d.id for d in devices or jax.devices()}


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    (dict(model=2), "unknown mesh axis 'model'; choose from 'data', 'fsdp', 'tensor'"),
    (dict(data=3), 'needs 3 devices; there are 8'),
    (dict(data=16), 'needs 16 devices; there are 8'),
    (dict(data=-1, fsdp=3), 'needs a multiple of 3 devices; there are 8'),
    (dict(data=-1, fsdp=-1), 'one of them may be -1'),
    (dict(data=0), 'sizes are positive'),
    (dict(data=-2), 'sizes are positive'),
    (dict(data=8.0), 'sizes are positive'),
    (dict(data='all'), 'sizes are positive'),
  ],
)
def test_an_impossible_mesh(shape, message):
  with pytest.raises(ValueError, match=message) as error:
    sharding.make_mesh(shape)
  assert '\n' not in str(error.value)


def test_a_batch_is_split_over_data_and_fsdp_alone():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  placed = sharding.batch_sharding(mesh)
  assert placed.shard_shape((8, 3)) == (2, 3)
  assert placed.spec == P(('data', 'fsdp'))
  array = jax.device_put(np.arange(8), placed)
  assert len({tuple(np.asarray(s.data)) for s in array.addressable_shards}) == 4
  assert sharding.replicated(mesh).shard_shape((8, 3)) == (8, 3)


# -- The table.


def logical_names(text: str) -> set[str]:
  """Every name that a file gives to an axis.

  Such as `logical(init, ('embed', 'mlp'))`, `Weights(shape, ('embed', 'mlp'))`, or a scan's
  `{nn.PARTITION_NAME: 'layers'}`.
  """
  nodes = list(ast.walk(ast.parse(text)))
  calls = [n for n in nodes if isinstance(n, ast.Call)]
  names = {
    value.value
    for n in nodes
    if isinstance(n, ast.Dict)
    for key, value in zip(n.keys, n.values, strict=True)
    if key is not None and ast.unparse(key).endswith('PARTITION_NAME')
  }
  for call in calls:
    called = ast.unparse(call.func).rpartition('.')[2]
    if called in ('logical', 'with_logical_partitioning', 'with_logical_constraint'):
      for value in (
        *call.args[1:],
        *(k.value for k in call.keywords if 'mesh' not in (k.arg or '')),
      ):
        names |= {n.value for n in ast.walk(value) if isinstance(n, ast.Constant) and n.value}
    if called == 'Weights':
      names |= {n.value for n in ast.walk(call.args[1]) if isinstance(n, ast.Constant)}
  return names


def test_every_logical_name_in_the_code_stands_in_the_table():
  used = {}
  for file in PACKAGE.rglob('*.py'):
    for name in logical_names(file.read_text()):
      used.setdefault(name, file.name)
  assert {'embed', 'mlp', 'heads', 'head_dim', 'classes'} <= set(used)
  assert {n: f for n, f in used.items() if n not in sharding.LOGICAL_AXES} == {}
  assert set(sharding.LOGICAL_AXES) - set(used) <= {'batch'}


def test_every_rule_leads_to_axes_of_the_mesh():
  for axis in sharding.LOGICAL_AXES.values():
    names = (axis,) if isinstance(axis, str) else axis or ()
    assert set(names) <= set(sharding.AXES)


ENCODERS = [
  dict(pooling=pooling, positions=positions, pre_logits=pre_logits)
  for pooling, positions, pre_logits in [
    ('token', 'learned', 8),
    ('mean', 'sincos2d', None),
    ('map', 'learned', None),
  ]
]


@pytest.mark.parametrize('fields', ENCODERS)
def test_every_parameter_has_logical_axes_and_a_valid_sharding(fields):
  variables = abstract_variables(make_objective(**fields), make_spec())
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  boxes = jax.tree.leaves(
    variables['params'], is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
  )
  assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
  assert all(len(box.names) == box.value.ndim for box in boxes)
  placed = sharding.parameter_shardings(variables, mesh)
  for leaf, to in zip(jax.tree.leaves(nn.unbox(variables)), jax.tree.leaves(placed), strict=True):
    shard = to.shard_shape(leaf.shape)  # raises where an axis is named twice or not divided
    assert math.prod(leaf.shape) % math.prod(shard) == 0


def test_parameters_are_split_as_the_table_says():
  specs = specs_of(make_objective(), sharding.make_mesh(dict(data=2, fsdp=2, tensor=2)))
  assert specs['encoder/block_0/mlp/fc_1/kernel'] == ('fsdp', 'tensor')
  assert specs['encoder/block_0/mlp/fc_2/kernel'] == ('tensor', 'fsdp')
  assert specs['encoder/block_0/attention/query/kernel'] == ('fsdp', 'tensor', None)
  assert specs['encoder/block_0/attention/out/kernel'] == ('tensor', None, 'fsdp')
  assert specs['encoder/embedding/kernel'] == (None, None, None, 'fsdp')
  assert specs['encoder/pos_embedding'] == (None, None, 'fsdp')
  assert specs['head/kernel'] == ('fsdp', 'tensor')
  assert specs['head/bias'] == ('tensor',)


def test_an_axis_that_the_devices_do_not_divide_stays_whole():
  mesh = sharding.make_mesh(dict(data=2, fsdp=1, tensor=4))
  specs = specs_of(make_objective(), mesh)
  assert specs['encoder/block_0/attention/query/kernel'] == ('fsdp', None, None)  # 2 heads
  assert specs['encoder/block_0/mlp/fc_1/kernel'] == ('fsdp', 'tensor')


def test_an_unknown_logical_name_lists_the_table():
  class Misspelt(nn.Module):
    @nn.compact
    def __call__(self):
      return self.param('w', nn.with_logical_partitioning(nn.initializers.zeros, ('embd',)), (8,))

  variables = jax.eval_shape(Misspelt().init, jax.random.PRNGKey(0))
  mesh = sharding.make_mesh(dict(data=-1))
  with pytest.raises(ValueError, match="unknown logical axis 'embd'; choose from 'batch', 'embed'"):
    sharding.parameter_shardings(variables, mesh)


def test_what_has_no_logical_axes_is_whole_everywhere():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  variables = {'batch_stats': {'mean': jnp.zeros((8,))}, 'count': jnp.zeros(())}
  placed = sharding.parameter_shardings(variables, mesh)
  assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))

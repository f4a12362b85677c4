import ast
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import vit_jax
from vit_jax import sharding
from vit_jax.build import build
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.state import abstract_variables, init_state

PACKAGE = Path(vit_jax.__file__).parent


def make_objective(**fields):
  sizes = dict(patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=16)
  return Supervised(ViT(**{**sizes, **fields}), num_classes=4)


def make_spec(batch_size=8):
  shapes = dict(image=((batch_size, 4, 4, 3), 'uint8'), label=((batch_size,), 'int32'))
  return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def specs_of(objective, mesh, word='fsdp'):
  """Parameter -> what each of its axes is split over."""
  variables = abstract_variables(objective, make_spec())
  placed = sharding.parameter_shardings(variables, mesh, word)['params']
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
    (dict(data=3), r'needs 3 devices; there are 8, so choose .* is 8 \(each one of 1, 2, 4, 8\)'),
    (dict(data=16), 'needs 16 devices; there are 8, so .*, or -1 for one of them'),
    (dict(data=-1, fsdp=3), 'multiple of 3 devices; there are 8, so beside -1 .* 1, 2, 4, 8$'),
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
    if called in ('logical', 'with_logical_partitioning', 'constrain'):
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
  assert {'embed', 'mlp', 'heads', 'head_dim', 'classes', 'batch'} <= set(used)
  assert {n: f for n, f in used.items() if n not in sharding.LOGICAL_AXES} == {}
  assert set(sharding.LOGICAL_AXES) == set(used)


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


@pytest.mark.parametrize(
  ('names', 'shape', 'over', 'spec'),
  [
    (('embed', 'mlp'), (16, 32), ('fsdp',), ('fsdp', 'tensor')),
    (('embed', 'mlp'), (16, 32), (), (None, 'tensor')),
    (('embed', 'mlp'), (16, 32), ('data', 'fsdp'), (('data', 'fsdp'), 'tensor')),
    # 'embed' does not divide: the largest of the others that does.
    ((None, None, None, 'embed'), (8, 4, 12, 6), ('fsdp',), (None, None, 'fsdp', None)),
    ((None, 'embed'), (49408, 6), ('fsdp',), ('fsdp', None)),
    (('embed', 'mlp'), (6, 32), ('fsdp',), (None, 'tensor')),
    (('embed', 'mlp'), (6, 33), ('fsdp',), (None, None)),
    # Without names at all.
    ((None, None), (12, 8), ('fsdp',), ('fsdp', None)),
    ((), (), ('fsdp',), ()),
    # The blocks of a scan are read one by one.
    (('layers', None), (48, 8), ('fsdp',), (None, 'fsdp')),
    (('layers', 'mlp'), (48, 32), ('fsdp',), (None, 'tensor')),
    (('heads', 'head_dim'), (6, 16), ('fsdp',), ('tensor', 'fsdp')),
  ],
)
def test_where_an_array_is_split(names, shape, over, spec):
  mesh = AbstractMesh((2, 4, 2), sharding.AXES)
  assert tuple(sharding.place(names, shape, mesh, over).spec) == spec


def test_one_device_along_tensor_leaves_the_axis_to_fsdp():
  mesh = AbstractMesh((1, 4, 1), sharding.AXES)
  assert tuple(sharding.place(('mlp',), (32,), mesh, ('fsdp',)).spec) == ('fsdp',)
  assert tuple(sharding.place(('embed', 'mlp'), (6, 32), mesh, ('fsdp',)).spec) == (None, 'fsdp')


def test_the_words_say_what_is_split():
  mesh, name = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2)), 'encoder/block_0/mlp/fc_1/kernel'
  assert specs_of(make_objective(), mesh, 'fsdp')[name] == ('fsdp', 'tensor')
  assert specs_of(make_objective(), mesh, 'zero1')[name] == (None, 'tensor')
  assert specs_of(make_objective(), mesh, 'replicated')[name] == (None, 'tensor')
  with pytest.raises(ValueError, match="sharding 'zero'; choose from 'fsdp', 'zero1', 'repl"):
    specs_of(make_objective(), mesh, 'zero')


FULL_SIZE = {
  'ViT-B/16': dict(
    type='objectives.supervised.Supervised', num_classes=1000,
    encoder=dict(type='models.vit.ViT', variant='B/16'),
  ),
  'ResNet-50': dict(
    type='objectives.supervised.Supervised', num_classes=1000,
    encoder=dict(type='models.resnet.ResNet', variant='50'),
  ),
  'hybrid': dict(
    type='objectives.supervised.Supervised', num_classes=1000,
    encoder=dict(type='models.vit.ViT', variant='R50+B/16'),
  ),
  'CLIP': dict(
    type='objectives.clip.CLIP',
    image=dict(type='models.clip_resnet.ClipResNet', variant='RN50'),
    text=dict(
      type='models.text.TextTransformer', variant='B', vocab_size=49408, end_id=49407,
      projection=1024,
    ),
  ),
  'scanned': dict(
    type='objectives.supervised.Supervised', num_classes=1000,
    encoder=dict(type='models.vit.ViT', variant='B/16', scan=True),
  ),
}  # fmt: skip


@pytest.mark.parametrize('devices', [8, 64])
@pytest.mark.parametrize('name', FULL_SIZE)
def test_at_full_size_a_device_holds_its_share_of_the_state(name, devices):
  """FSDP, with AdamW and an average: within 1.05 of all divided by the number of devices."""
  shapes = {
    'image': ((devices, 224, 224, 3), 'uint8'),
    'label': ((devices,), 'int32'),
    'text': ((devices, 77), 'int32'),
  }
  spec = {key: jax.ShapeDtypeStruct(*shape) for key, shape in shapes.items()}
  mesh = AbstractMesh((1, devices, 1), sharding.AXES)
  _, like = init_state(build(FULL_SIZE[name]), optax.adamw(0.1), spec, 0, mesh, ema=True)
  total = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like))
  assert total > 4 * 80e6
  assert total / devices <= sharding.bytes_per_device(like) < 1.05 * total / devices


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


def test_what_a_parameter_without_logical_axes_is_split_over():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  placed = sharding.parameter_shardings({'params': {'w': jnp.zeros((3, 8))}}, mesh)
  assert tuple(placed['params']['w'].spec) == (None, 'fsdp')


@pytest.mark.parametrize(
  ('spec', 'ndim', 'text'),
  [
    (P('fsdp', 'tensor'), 3, 'fsdp,tensor,-'),
    (P(None, ('data', 'fsdp')), 2, '-,data+fsdp'),
    (P(), 2, 'whole'),
    (P(), 0, 'whole'),
  ],
)
def test_splits_in_words(spec, ndim, text):
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  assert sharding.splits(NamedSharding(mesh, spec), ndim) == text


def test_an_axis_of_one_device_splits_nothing():
  mesh = sharding.make_mesh(dict(data=8))
  assert sharding.splits(NamedSharding(mesh, P('fsdp', 'tensor')), 2) == 'whole'


# -- Activations.


def laid(names, shape, mesh):
  """The sharding that `constrain` gives what a program computes."""
  with jax.set_mesh(mesh):
    return jax.jit(lambda: sharding.constrain(jnp.ones(shape) * 2, *names))().sharding


def test_activations_lie_as_their_names_say():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  for names, shape, shard in (
    (('batch', None, None), (8, 5, 6), (2, 5, 6)),
    (('batch', None, 'heads', None), (8, 5, 4, 6), (2, 5, 2, 6)),
    (('batch', None, 'mlp'), (8, 5, 6), (2, 5, 3)),
    (('batch', 'classes'), (8, 5), (2, 5)),  # Two devices do not divide 5 classes.
    (('batch', None), (6, 5), (6, 5)),
    ((None, None), (8, 8), (8, 8)),
  ):
    assert laid(names, shape, mesh).shard_shape(shape) == shard, names


def test_a_constraint_is_nothing_where_there_is_no_mesh_to_choose_from():
  x = jnp.ones((8, 4))
  assert sharding.constrain(x, 'batch', None) is x
  with jax.set_mesh(sharding.make_mesh({}, jax.devices()[:1])):
    assert sharding.constrain(x, 'batch', None) is x
  with jax.set_mesh(jax.make_mesh((8,), ('data',), (AxisType.Explicit,))):
    assert sharding.constrain(x, 'batch', None) is x
  with jax.set_mesh(sharding.make_mesh(dict(data=4, fsdp=2))):
    seen = []

    def local(x):
      seen.append(sharding.constrain(x, 'batch', None) is x)
      return x

    jax.shard_map(local, in_specs=P(('data', 'fsdp')), out_specs=P(('data', 'fsdp')))(x)
  assert seen and all(seen)


@pytest.mark.parametrize(
  ('mesh', 'local'),
  [
    (dict(data=2, fsdp=2, tensor=2), (2, 5, 2, 6)),
    (dict(tensor=8), (8, 5, 4, 6)),  # 8 devices do not divide 4 heads.
    (dict(data=8), (8, 5, 4, 6)),  # Left to XLA.
  ],
)
def test_a_function_of_what_a_device_holds(mesh, local):
  x, seen = jnp.arange(8 * 5 * 4 * 6.0).reshape(8, 5, 4, 6), []

  def double(x):
    seen.append(x.shape)
    return 2 * x

  def loss(x):
    return jnp.sum(sharding.on_shards(double, x, 'batch', None, 'heads', None) ** 2)

  with jax.set_mesh(sharding.make_mesh(mesh)):
    gradient = jax.jit(jax.grad(loss))(x)
  assert set(seen) == {local}
  np.testing.assert_allclose(gradient, 8 * x)


def test_a_constraint_under_vmap_scan_remat_and_in_a_gradient():
  x = jnp.arange(8 * 4 * 6.0).reshape(8, 4, 6)

  def loss(x):
    def body(carry, _):
      f = jax.checkpoint(lambda y: sharding.constrain(jnp.sin(y), 'batch', None))
      return jax.vmap(f, 1, 1)(carry), None

    return jnp.sum(jax.lax.scan(body, x, length=2)[0] ** 2)

  expected = jax.value_and_grad(loss)(x)
  with jax.set_mesh(sharding.make_mesh(dict(data=4, fsdp=2))):
    got = jax.jit(jax.value_and_grad(loss))(x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_a_constraint_names_every_axis_by_a_name_of_the_table():
  with jax.set_mesh(sharding.make_mesh(dict(data=-1))):
    with pytest.raises(ValueError, match="unknown logical axis 'btach'; choose from 'batch', "):
      sharding.constrain(jnp.ones((8, 4)), 'btach', None)
    with pytest.raises(ValueError, match='shorter|longer'):
      sharding.constrain(jnp.ones((8, 4)), 'batch')


def test_a_whole_array_counts_on_every_device_and_a_split_one_in_part():
  mesh = sharding.make_mesh(dict(data=8))
  whole = jax.ShapeDtypeStruct((16, 4), np.float32, sharding=sharding.replicated(mesh))
  split = jax.ShapeDtypeStruct((16, 4), np.uint8, sharding=sharding.batch_sharding(mesh))
  assert sharding.bytes_per_device({'a': whole, 'b': [split]}) == 256 + 8
  assert sharding.bytes_per_device(None) == 0


def test_outside_of_jit_arrays_lie_as_they_lie():
  x = jnp.ones((8, 4))
  with jax.set_mesh(sharding.make_mesh(dict(data=-1))):
    assert sharding.constrain(x, 'batch', None) is x

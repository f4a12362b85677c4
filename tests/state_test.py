import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import optim, sharding, units
from vit_jax.checkpoint import Checkpoints
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.state import abstract_variables, init_state, stacked_names, streams

BATCH = 8
MESHES = {
  'data': dict(data=-1),
  'fsdp': dict(fsdp=-1),
  'all': dict(data=2, fsdp=2, tensor=2),
}
SPLIT = ('data', 'fsdp')
SPEC = {
  'image': jax.ShapeDtypeStruct((BATCH, 4, 4, 3), jnp.uint8),
  'label': jax.ShapeDtypeStruct((BATCH,), jnp.int32),
}


def make_objective():
  encoder = ViT(patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=16, pooling='mean')
  return Supervised(encoder, num_classes=4)


def make_tx(params=None, **fields):
  if params is None:
    params = nn.unbox(abstract_variables(make_objective(), SPEC))['params']
  config = {'name': 'adamw', 'learning_rate': 0.1, 'weight_decay': 0.1, 'clip': 1.0, **fields}
  steps = functools.partial(units.steps, batch_size=BATCH, num_examples=100)
  return optim.build_optimizer(config, params, total_steps=10, steps=steps).tx


def named(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


@functools.cache
def make_state(mesh_name, **fields):
  mesh = sharding.make_mesh(MESHES[mesh_name])
  with jax.set_mesh(mesh):
    make, like = init_state(make_objective(), make_tx(**fields), SPEC, 3, mesh, ema=True)
    return make(), like


@functools.cache
def make_factored_state(mesh_name):
  return make_state.__wrapped__(
    mesh_name, name='adafactor', options={'min_dim_size_to_factor': 2, 'mu_dtype': 'bfloat16'}
  )


@pytest.mark.parametrize('make', [make_state, make_factored_state])
@pytest.mark.parametrize('mesh', MESHES)
def test_every_leaf_is_made_where_it_belongs(mesh, make):
  state, like = make(mesh)
  assert jax.tree.structure(state) == jax.tree.structure(like)
  for name, leaf in named(state).items():
    expected = named(like)[name]
    assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype), name
    assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim), name
    assert not isinstance(leaf, nn.meta.AxisMetadata)


def test_the_first_state_does_not_depend_on_the_mesh():
  one, *others = (named(jax.device_get(make_state(mesh)[0])) for mesh in MESHES)
  for other in others:
    for name, value in one.items():
      np.testing.assert_allclose(value, other[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(('mesh', 'parts'), [('fsdp', 8), ('all', 4), ('data', 1)])
def test_kernels_really_are_split(mesh, parts):
  params = named(make_state(mesh)[0].params)
  kernel = params['encoder/block_0/mlp/fc_1/kernel']
  assert len({str(shard.index) for shard in kernel.addressable_shards}) == parts
  assert all(shard.data.size == kernel.size // parts for shard in kernel.addressable_shards)


@pytest.mark.parametrize('freeze', [(), ('encoder/embedding/.*',)])
@pytest.mark.parametrize('name', optim.OPTIMIZERS)
@pytest.mark.parametrize('mesh', ['fsdp', 'all'])
def test_moments_lie_as_their_parameters_do(mesh, name, freeze):
  mesh = sharding.make_mesh(MESHES[mesh])
  tx = make_tx(name=name, freeze=freeze)
  with jax.set_mesh(mesh):
    _, like = init_state(make_objective(), tx, SPEC, 0, mesh)
  params, seen = named(like.params), set()
  for path, leaf in named(like.opt_state).items():
    owners = [name for name in params if path.endswith('/' + name)]
    if leaf.size <= 1:
      assert leaf.sharding.is_fully_replicated
      continue
    owner = params[max(owners, key=len)]
    if leaf.shape == owner.shape:
      assert leaf.sharding == owner.sharding, path
      seen.add(max(owners, key=len))
    else:
      assert name == 'adafactor' and leaf.ndim == owner.ndim - 1
  frozen = {name for name in params if freeze and name.startswith('encoder/embedding/')}
  assert seen == set(params) - frozen


def test_a_factored_moment_lies_as_what_is_left_of_its_parameter():
  _, like = make_factored_state('all')
  leaves = named(like.opt_state)

  def of(kind, name):
    (leaf,) = (leaf for path, leaf in leaves.items() if path.endswith(f'/{kind}/{name}'))
    return leaf.shape, tuple(leaf.sharding.spec)

  name = 'encoder/block_0/mlp/fc_1/kernel'
  assert named(like.params)[name].shape == (8, 16)
  assert tuple(named(like.params)[name].sharding.spec) == ('fsdp', 'tensor')
  assert of('ema', name) == ((8, 16), ('fsdp', 'tensor'))
  # Means over the larger axis, and over the other.
  assert of('v_row', name) == ((8,), ('fsdp',))
  assert of('v_col', name) == ((16,), ('tensor',))
  assert of('v', name) == ((1,), ())
  name = 'encoder/block_0/mlp/fc_1/bias'
  assert of('v', name) == ((16,), ('tensor',))
  dtypes = {
    path.split('/')[-6]: leaf.dtype.name for path, leaf in leaves.items() if 'fc_1/ker' in path
  }
  assert dtypes == {'ema': 'bfloat16', 'v_row': 'float32', 'v_col': 'float32', 'v': 'float32'}


@pytest.mark.parametrize(
  ('word', 'kept'),
  [
    ('fsdp', {'v_row': ('fsdp',), 'v_col': ('tensor',), 'ema': ('fsdp', 'tensor')}),
    ('zero1', {'v_row': (('data', 'fsdp'),), 'v_col': ('tensor',), 'ema': (SPLIT, 'tensor')}),
    ('replicated', {'v_row': (None,), 'v_col': ('tensor',), 'ema': (None, 'tensor')}),
  ],
)
def test_what_is_kept_of_a_parameter_lies_as_the_word_says(word, kept):
  mesh, name = sharding.make_mesh(MESHES['all']), 'encoder/block_0/mlp/fc_1/kernel'
  tx = make_tx(name='adafactor', options={'min_dim_size_to_factor': 2})
  with jax.set_mesh(mesh):
    _, like = init_state(make_objective(), tx, SPEC, 0, mesh, ema=True, sharding=word)
  leaves = named(like.opt_state)
  for kind, spec in kept.items():
    (leaf,) = (leaf for path, leaf in leaves.items() if path.endswith(f'/{kind}/{name}'))
    assert tuple(leaf.sharding.spec) == spec, kind
  assert tuple(named(like.ema)[name].sharding.spec) == kept['ema']
  assert tuple(named(like.params)[name].sharding.spec) == (
    'fsdp' if word == 'fsdp' else None,
    'tensor',
  )


def test_an_unknown_word_names_those_there_are():
  mesh = sharding.make_mesh(MESHES['data'])
  with pytest.raises(ValueError, match="sharding 'zero3'; choose from 'fsdp', 'zero1', 'replic"):
    init_state(make_objective(), make_tx(), SPEC, 0, mesh, sharding='zero3')


@pytest.mark.parametrize('mesh', MESHES)
def test_the_average_begins_as_a_copy_and_lies_as_the_parameters(mesh):
  state, _ = make_state(mesh)
  assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
  for a, p in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_array_equal(a, p)
    assert a.sharding == p.sharding
  jax.jit(lambda s: s, donate_argnums=0)(state.replace(opt_state=()))  # No buffer is there twice.
  make_state.cache_clear()


def test_bfloat16_and_factored_moments_survive_a_checkpoint(tmp_path):
  state, like = make_factored_state('all')
  # As after a step: nothing is all zeros.
  state = jax.tree.map(lambda x: x + 1 if x.dtype == jnp.bfloat16 else x, state)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.wait()
    again = checkpoints.restore(like)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  for (path, a), b in zip(jax.tree.leaves_with_path(again), jax.tree.leaves(state), strict=True):
    assert (a.dtype, a.sharding) == (b.dtype, b.sharding), path
    np.testing.assert_array_equal(a, b)


def test_scanned_blocks_are_known_by_their_axis():
  encoder = ViT(patch_size=2, width=8, depth=2, num_heads=2, mlp_dim=16, pooling='mean', scan=True)
  variables = abstract_variables(Supervised(encoder, num_classes=4), SPEC)
  names = set(named(nn.unbox(variables)['params']))
  stacked = stacked_names(variables)
  assert stacked == {name for name in names if name.startswith('encoder/blocks/')}
  assert 'encoder/blocks/mlp/fc_1/bias' in stacked
  assert not stacked_names(abstract_variables(make_objective(), SPEC))


def test_moments_of_names_that_end_alike():
  class Twice(nn.Module):
    @nn.compact
    def __call__(self, batch, *, train):
      logical = nn.with_logical_partitioning
      zeros = nn.initializers.zeros
      self.param('w', logical(zeros, (None, 'embed')), (8, 8))
      nn.Dense(8, kernel_init=logical(zeros, ('mlp', None)), use_bias=False, name='w_')(batch['x'])
      Inner(name='inner')()
      return jnp.zeros(()), {}

  class Inner(nn.Module):
    @nn.compact
    def __call__(self):
      init = nn.with_logical_partitioning(nn.initializers.zeros, ('embed', None))
      self.param('w', init, (8, 8))

  mesh = sharding.make_mesh(MESHES['all'])
  spec = {'x': jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  with jax.set_mesh(mesh):
    _, like = init_state(Twice(), optax.adam(0.1), spec, 0, mesh)
  moments = named(like.opt_state[0].mu)
  assert tuple(moments['w'].sharding.spec) == (None, 'fsdp')
  assert tuple(moments['inner/w'].sharding.spec) == ('fsdp', None)
  assert tuple(moments['w_/kernel'].sharding.spec) == ('tensor', 'fsdp')


def test_other_collections_are_the_model_state():
  class Counts(nn.Module):
    @nn.compact
    def __call__(self, batch, *, train):
      x = nn.BatchNorm(use_running_average=not train)(batch['x'])
      x = nn.Dense(4)(x)
      return jnp.mean(x), {}

  mesh = sharding.make_mesh(MESHES['fsdp'])
  spec = {'x': jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  with jax.set_mesh(mesh):
    make, _ = init_state(Counts(), optax.sgd(0.1), spec, 0, mesh)
    state = make()
  assert set(state.model_state) == {'batch_stats'}
  assert set(state.params) == {'BatchNorm_0', 'Dense_0'}
  assert int(state.step) == 0


def test_abstract_variables_compute_nothing_and_keep_the_boxes():
  spec = {'image': jax.ShapeDtypeStruct((2**40, 4, 4, 3), jnp.uint8)}  # 48 TiB if it were made.
  spec['label'] = jax.ShapeDtypeStruct((2**40,), jnp.int32)
  variables = abstract_variables(make_objective(), spec)
  kernel = variables['params']['head']['kernel']
  assert kernel.names == ('embed', 'classes')
  assert isinstance(kernel.value, jax.ShapeDtypeStruct)


def test_streams_are_different_and_a_function_of_the_key():
  one, again, other = (streams(jax.random.PRNGKey(seed)) for seed in (0, 0, 1))
  assert set(one) == {'dropout', 'augment'}
  values = {tuple(np.asarray(key)) for keys in (one, other) for key in keys.values()}
  assert len(values) == 4
  assert all((one[name] == again[name]).all() for name in one)

"""Micro-batches add up to the batch and stay on their devices; else they are refused."""

import functools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, microbatches, sharding
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.state import init_state, streams
from vit_jax.train import make_train_step

ROOT = Path(__file__).parents[1]
BATCH = 32
MESHES = {'one': (dict(), 1), 'data': (dict(data=-1), 8), 'fsdp': (dict(data=2, fsdp=4), 8)}


def make_mesh(name):
  shape, devices = MESHES[name]
  return sharding.make_mesh(shape, jax.devices()[:devices])


def make_batch(mesh):
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (BATCH, 4, 4, 3), np.uint8),
    'label': rng.integers(0, 4, BATCH).astype(np.int32),
  }
  return jax.device_put(batch, sharding.batch_sharding(mesh))


def make_step(objective, mesh, batch, count):
  """The jitted step, without momentum and with a learning rate of 1, and a state."""
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  make, like = init_state(objective, optax.sgd(1.0), spec, 0, mesh)
  places = jax.tree.map(lambda x: x.sharding, like), sharding.replicated(mesh)
  return jax.jit(make_train_step(objective, optax.sgd(1.0), count), out_shardings=places), make()


@functools.cache
def take_step(mesh_name, count):
  """The metrics and the change of the parameters, which is minus the gradient."""
  mesh = make_mesh(mesh_name)
  encoder = ViT(patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=16, pooling='mean')
  with jax.set_mesh(mesh):
    batch = make_batch(mesh)
    step, state = make_step(Supervised(encoder, num_classes=4), mesh, batch, count)
    # The head begins at zero, and nothing would come through to the encoder.
    state = state.replace(params=jax.tree.map(lambda p: p + 0.1, state.params))
    compiled = step.lower(state, batch).compile()
    after, metrics = compiled(state, batch)
  moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after.params, state.params)
  return jax.device_get(metrics), moved, compiled.as_text()


@pytest.mark.parametrize(
  ('mesh', 'count'), [('one', 2), ('one', 4), ('data', 1), ('data', 2), ('data', 4), ('fsdp', 4)]
)
def test_loss_and_gradient_are_those_of_the_whole_batch(mesh, count):
  expected, expected_moved, _ = take_step('one', 1)
  metrics, moved, _ = take_step(mesh, count)
  assert metrics.keys() == expected.keys() == {'loss', 'accuracy', 'grad_norm'}
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  assert expected['grad_norm'] > 0.1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected_moved
  )


def test_no_example_leaves_its_device():
  """All that the devices of a data-parallel mesh exchange are sums."""
  *_, text = take_step('data', 4)
  moves = set(re.findall(r'\b(all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(', text))
  assert moves == {'all-reduce'}


@pytest.mark.parametrize('mesh', MESHES)
def test_rows_are_strided(mesh):
  mesh = make_mesh(mesh)
  whole = np.arange(BATCH * 3).reshape(BATCH, 3)
  with jax.set_mesh(mesh):
    batch = jax.device_put({'x': whole}, sharding.batch_sharding(mesh))
    parts = jax.jit(lambda b: microbatches.split(b, 4))(batch)['x']
  assert parts.shape == (4, BATCH // 4, 3)
  for i in range(4):
    np.testing.assert_array_equal(parts[i], whole[i::4])
  held = {shard.device: set(np.asarray(shard.data).ravel()) for shard in parts.addressable_shards}
  for shard in batch['x'].addressable_shards:
    assert held[shard.device] == set(np.asarray(shard.data).ravel())


class Noise(nn.Module):
  """Its loss is a random number of each example; it counts how often it was applied."""

  @nn.compact
  def __call__(self, batch, *, train):
    count = self.variable('counts', 'calls', lambda: jnp.zeros([], jnp.int32))
    count.value += int(train)
    x = jax.random.normal(self.make_rng('augment'), batch['x'].shape[:1])  # [B]
    w = self.param('w', nn.initializers.ones, ())
    return jnp.mean(w * x), {'noise': x, 'calls': count.value}


def test_every_microbatch_draws_for_itself_and_finds_the_state_of_the_one_before():
  mesh = make_mesh('one')
  batch = {'x': jnp.zeros((8, 2))}
  with jax.set_mesh(mesh):
    step, state = make_step(Noise(), mesh, batch, 4)
    after, metrics = step(state, batch)
    rng = jax.random.fold_in(state.rng, 0)

    class Draw(nn.Module):
      @nn.compact
      def __call__(self):
        return jax.random.normal(self.make_rng('augment'), (2,))

    drawn = [Draw().apply({}, rngs=streams(jax.random.fold_in(rng, i))) for i in range(4)]
  assert len({float(x[0]) for x in drawn}) == 4
  np.testing.assert_allclose(metrics['noise'], np.mean(drawn), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], np.mean(drawn), rtol=1e-5)
  assert int(after.model_state['counts']['calls']) == 4
  assert float(metrics['calls']) == 2.5


# -- Refusals.


def check(count, objective=None, variables=(), batch_size=32, mesh='data'):
  objective = objective or Noise()
  microbatches.check(count, objective, dict.fromkeys(variables), batch_size, make_mesh(mesh))


class Coupled(Noise):
  couples_batch: bool = True


def test_what_micro_batches_would_change_is_refused_with_the_reason():
  with pytest.raises(ValueError, match='accumulate is 2, but Coupled compares the examples of a'):
    check(2, Coupled())
  with pytest.raises(ValueError, match='accumulate is 4, but Noise normalises by the statistics'):
    check(4, variables=('params', 'batch_stats'))
  with pytest.raises(ValueError, match='accumulate is 3.* the 4 examples .* 8 parts.* 1, 2, 4$'):
    check(3)
  with pytest.raises(ValueError, match='accumulate is 8.* the 4 examples'):
    check(8)
  check(1, Coupled(), ('params', 'batch_stats'), 8)
  check(4, variables=('params', 'teacher'))
  check(2, Coupled(couples_batch=False))
  check(32, mesh='one')


def test_setup_refuses(monkeypatch):
  def setup(count):
    config = config_lib.load(str(ROOT / 'configs/vit_digits.py'))
    with config.unlocked():
      config.accumulate = count
    return experiment.setup(config)

  assert setup(8).accumulate == 8
  with pytest.raises(ValueError, match='accumulate is 16.* choose from 1, 2, 4, 8'):
    setup(16)
  with pytest.raises(ValueError, match='accumulate must be a whole number of at least 1, got 0'):
    setup(0)
  monkeypatch.setattr(Supervised, 'couples_batch', True, raising=False)
  with pytest.raises(ValueError, match='but Supervised compares the examples'):
    setup(8)
  assert setup(1).accumulate == 1

"""The average of the parameters, against a plain recursion; its evaluation beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import sharding
from vit_jax.average import Average, AveragedEvaluator, build_average
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.state import init_state
from vit_jax.train import make_train_step

MESHES = {'data': dict(data=-1), 'all': dict(data=2, fsdp=2, tensor=2)}


@pytest.mark.parametrize(
  ('mesh', 'average'), [('data', Average(0.7)), ('all', Average(0.2, warmup=True))]
)
def test_is_its_recursion(mesh, average):
  mesh = sharding.make_mesh(MESHES[mesh])
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (8, 4, 4, 3), np.uint8),
    'label': np.arange(8, dtype=np.int32) % 4,
  }
  encoder = ViT(patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=16, pooling='mean')
  objective, tx = Supervised(encoder, num_classes=4), optax.sgd(1.0)
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  with jax.set_mesh(mesh):
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    make, like = init_state(objective, tx, spec, 0, mesh, ema=True)
    places = jax.tree.map(lambda x: x.sharding, like), sharding.replicated(mesh)
    make_step = make_train_step(objective, tx, 1, average)
    step = jax.jit(make_step, out_shardings=places, donate_argnums=0)
    state = make()
    expected = [np.asarray(p, np.float64) for p in jax.tree.leaves(state.params)]
    for s in range(5):
      state, _ = step(state, batch)
      decay = min(average.decay, (1 + s) / (10 + s)) if average.warmup else average.decay
      for i, p in enumerate(jax.tree.leaves(state.params)):
        expected[i] = decay * expected[i] + (1 - decay) * np.asarray(p, np.float64)
  for ema, p, value in zip(
    jax.tree.leaves(state.ema), jax.tree.leaves(state.params), expected, strict=True
  ):
    np.testing.assert_allclose(ema, value, rtol=1e-5, atol=1e-6)
    assert ema.sharding == p.sharding and ema.dtype == p.dtype


def test_what_the_config_says():
  assert build_average(None) is build_average({}) is build_average({'decay': None}) is None
  assert build_average({'decay': 0.99}) == Average(0.99, warmup=False)
  assert build_average({'decay': 0.99, 'warmup': True}) == Average(0.99, warmup=True)


def test_a_decay_close_to_1_is_not_rounded_away():
  ema = Average(0.999999).update(jnp.zeros(3), jnp.ones(3), jnp.int32(7))
  np.testing.assert_allclose(ema, 1e-6, rtol=1e-5)


class Recorder:
  """An evaluator whose metric is its parameter, and which draws."""

  def __init__(self):
    self.writer, self.drawn = None, []

  def run(self, state, *, final=False):
    if state.params < 0:
      raise ValueError('negative')
    self.drawn.append((self.writer, final))
    return {'value': float(state.params)}


class State:
  """As much of a TrainState as an evaluator sees."""

  def __init__(self, params, ema):
    self.params, self.ema = params, ema

  def replace(self, params):
    return State(params, self.ema)


def test_an_evaluator_of_the_average_draws_elsewhere():
  evaluator = Recorder()
  averaged = AveragedEvaluator(evaluator)
  evaluator.writer, averaged.writer = 'test', 'test_ema'
  state = State(1.0, 2.0)
  assert (evaluator.run(state), averaged.run(state, final=True)) == ({'value': 1}, {'value': 2})
  assert evaluator.drawn == [('test', False), ('test_ema', True)]
  with pytest.raises(ValueError, match='negative'):
    averaged.run(State(1.0, -1.0))
  assert evaluator.writer == 'test'

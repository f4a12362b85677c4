"""Held-out metrics: the mean over the examples at any batch size, and what the pictures show."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.data.digits import Digits
from vit_jax.evaluators.held_out import HeldOut
from vit_jax.objectives import inputs

STATE = types.SimpleNamespace(step=7, params={}, model_state={})


class Brightness(nn.Module):
  """Reports how bright an image is, and a number that its id draws."""

  def __call__(self, batch, *, train):
    bright = inputs.view(batch, '', None).mean((1, 2, 3))
    drawn = jax.vmap(jax.random.uniform)(inputs.example_keys(batch, None))
    return bright.mean(), {'bright': bright, 'drawn': drawn, 'scale': jnp.float32(3)}

  def pictures(self, batch):
    image = inputs.view(batch, '', None)
    return {'it': image, 'its opposite': 1 - image}


class Coupled(Brightness):
  """Its loss is one over the batch."""

  couples_batch = True


class Silent(nn.Module):
  """Reports nothing by example."""

  def __call__(self, batch, *, train):
    return jnp.float32(0), {'scale': jnp.float32(3)}


class Written(dict):
  """Keeps pictures by name."""

  def picture(self, step, name, image):
    self[step, name] = image


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 8)])
def test_is_the_mean_over_the_examples_at_any_batch_size(batch_size, devices):
  source = Digits('test')
  evaluator = HeldOut(Brightness(), mesh_of(devices), source=source, batch_size=batch_size)
  examples = [source[i] for i in range(len(source))]
  drawn = [jax.random.uniform(jax.random.fold_in(jax.random.key(1), e['id'])) for e in examples]
  assert evaluator.run(STATE) == pytest.approx(
    {'bright': np.mean([e['image'].mean() / 255 for e in examples]), 'drawn': np.mean(drawn)},
    rel=1e-5,
  )


def test_several_sources_have_their_names_before_their_metrics():
  sources = {'one': Digits('test'), 'two': Digits('validation')}
  results = HeldOut(Brightness(), mesh_of(1), sources=sources).run(STATE)
  assert set(results) == {'one/bright', 'one/drawn', 'two/bright', 'two/drawn'}


def test_draws_examples_in_the_order_of_the_objective_in_the_last_run_alone():
  written = Written()
  evaluator = HeldOut(Brightness(), mesh_of(1), source=Digits('test'), writer=written, pictures=4)
  evaluator.run(STATE)
  assert not written
  evaluator.run(STATE, final=True)
  ((step, name),) = written
  assert (step, name) == (7, 'examples')
  # Four cells of 112 pixels in a row, 14 apart: a digit's black left edge, then its opposite's.
  left = [written[step, name][20:120, i * 126 + 16].mean() for i in range(4)]
  assert left == [0, 255, 0, 255]


def test_bad_input_is_an_error():
  with pytest.raises(ValueError, match='loss of Coupled is one over the batch'):
    HeldOut(Coupled(), mesh_of(1), source=Digits('test'))
  with pytest.raises(ValueError, match='pictures is -1'):
    HeldOut(Brightness(), mesh_of(1), source=Digits('test'), pictures=-1)
  with pytest.raises(ValueError, match='reports nothing by example'):
    HeldOut(Silent(), mesh_of(1), source=Digits('test')).run(STATE)

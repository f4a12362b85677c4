"""Hypercolumns against their definition: one layer on the concatenation of interpolated stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.features import Features
from vit_jax.models.hypercolumns import Hypercolumns, resize

WIDTH, CHANNELS = 6, 5


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of_stages(*stages):
  return Features(pooled=None, tokens=None, stages=stages)


def applied(features, size):
  """The answer, and the parameters that gave it, none of which is 0."""
  module = Hypercolumns(width=WIDTH)
  variables = module.init(jax.random.key(0), features, CHANNELS, size)
  params = jax.tree.map(lambda x: x + 0.3, jax.device_get(variables['params']))
  params = {k: {n: getattr(v, 'value', v) for n, v in p.items()} for k, p in params.items()}
  return np.asarray(module.apply({'params': params}, features, CHANNELS, size)), params


def test_stages_are_as_one_layer_on_their_concatenation():
  stages = random(2, 8, 8, 3), random(2, 4, 4, 4, seed=1), random(2, 2, 2, 7, seed=2)
  made, params = applied(of_stages(*stages), (8, 8))
  columns = [jax.image.resize(x, (2, 8, 8, x.shape[-1]), 'bilinear') for x in stages]
  kernel = np.concatenate([params[f'project_{i}']['kernel'] for i in range(3)])
  hidden = np.concatenate(columns, -1) @ kernel + params['project_0']['bias']
  expected = np.maximum(hidden, 0) @ params['answer']['kernel'] + params['answer']['bias']
  np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


def test_a_token_gives_each_place_that_it_becomes():
  features = Features(pooled=None, tokens=random(2, 6, 4), grid=(2, 3))
  made, params = applied(features, (4, 9))
  assert made.shape == (2, 4, 9, CHANNELS)
  kernel, bias = params['project_0']['kernel'], params['project_0']['bias']
  for y in range(4):
    for x in range(9):
      token = features.tokens[:, 3 * (y // 2) + x // 3]
      part = 3 * (y % 2) + x % 3
      at = slice(part * WIDTH, (part + 1) * WIDTH)
      hidden = np.maximum(token @ kernel[:, at] + bias[at], 0)
      expected = hidden @ params['answer']['kernel'] + params['answer']['bias']
      np.testing.assert_allclose(made[:, y, x], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [(8, 8), (4, 4), (6, 10), (16, 4)])
def test_resize_is_that_of_jax(size):
  x = random(2, 8, 8, 3)
  np.testing.assert_allclose(
    resize(jnp.asarray(x), size), jax.image.resize(x, (2, *size, 3), 'bilinear'), atol=1e-5
  )


def test_smaller_by_a_whole_number_is_resized_all_the_same_where_tokens_do_not_divide():
  features = Features(pooled=None, tokens=random(1, 9, 4), grid=(3, 3))
  assert applied(features, (4, 4))[0].shape == (1, 4, 4, CHANNELS)


def test_starts_at_0_and_tokens_without_grid_are_an_error():
  module = Hypercolumns()
  features = of_stages(random(1, 4, 4, 3))
  variables = module.init(jax.random.key(0), features, 7, (4, 4))
  assert not np.any(module.apply(variables, features, 7, (4, 4)))
  with pytest.raises(ValueError, match='stages or a grid'):
    module.init(jax.random.key(0), Features(pooled=None, tokens=random(1, 3, 4)), 7, (4, 4))

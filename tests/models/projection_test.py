import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.projection import Projection

pytestmark = pytest.mark.smoke


def make(**fields):
  head = Projection(**fields)
  x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
  return head, x, nn.unbox(head.init(jax.random.key(0), x, False))


@pytest.mark.parametrize('layers', [1, 2, 3])
@pytest.mark.parametrize('norm', [False, True])
def test_equals_dense_layers_with_relu_between(layers, norm):
  head, x, variables = make(layers=layers, norm=norm, width=10, dim=5)
  y, expected = head.apply(variables, x, False), x
  assert y.shape == (6, 5)
  assert ('bias' in variables['params']['dense_1']) == (not norm)
  for i in range(1, layers + 1):
    expected = expected @ variables['params'][f'dense_{i}']['kernel']
    if norm:
      expected = expected / np.sqrt(1 + 1e-5)  # Statistics at their start: mean 0, variance 1.
    if i < layers:
      assert expected.shape == (6, 10)
      expected = np.maximum(expected, 0)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_no_layer_is_the_input():
  head, x, variables = make(layers=0)
  assert not variables
  np.testing.assert_array_equal(head.apply(variables, x, False), x)


def test_stops_at_a_layer():
  head, x, variables = make(layers=3, dim=5)
  np.testing.assert_array_equal(head.apply(variables, x, False, 0), x)
  second = head.apply(variables, x, False, 2)
  assert second.shape == (6, 8)  # As wide as the input.
  assert (second >= 0).all()
  np.testing.assert_array_equal(head.apply(variables, x, False, 3), head.apply(variables, x, False))


def test_training_normalises_by_the_batch():
  head, x, variables = make(dim=5)
  y, new = head.apply(variables, x, True, mutable=['batch_stats'])
  np.testing.assert_allclose(jnp.mean(y, 0), 0, atol=1e-6)
  np.testing.assert_allclose(jnp.std(y, 0), 1, atol=1e-3)
  before, after = variables['batch_stats'], new['batch_stats']
  assert (before['norm_1']['mean'] != after['norm_1']['mean']).all()

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.adapters.resize import resize_positions
from vit_jax.models.interpolation import POSITION_METHODS
from vit_jax.models.positions import resample, sincos2d

# Larger and smaller, sides that differ, one of which stays or shrinks, and one patch.
GRIDS = [((3, 3), (5, 5)), ((7, 7), (4, 4)), ((3, 4), (6, 4)), ((4, 6), (3, 9)), ((2, 5), (1, 1))]


def test_equals_a_loop_over_rows_columns_and_frequencies():
  height, width, dim = 3, 5, 16
  expected = np.zeros((height, width, dim))
  for y in range(height):
    for x in range(width):
      for k in range(dim // 4):
        frequency = 10_000.0 ** (-k / (dim // 4 - 1))
        expected[y, x, k] = math.sin(x * frequency)
        expected[y, x, k + 4] = math.cos(x * frequency)
        expected[y, x, k + 8] = math.sin(y * frequency)
        expected[y, x, k + 12] = math.cos(y * frequency)
  actual = sincos2d(height, width, dim)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected.reshape(-1, dim), atol=1e-6)


def test_every_place_has_its_own_embedding():
  table = sincos2d(14, 20, 192)
  similarity = table @ table.T
  assert (similarity.argmax(axis=1) == np.arange(14 * 20)).all()


@pytest.mark.parametrize('dim', [4, 10, 190])
def test_a_width_that_does_not_split_into_four_is_refused(dim):
  with pytest.raises(ValueError, match=f'8, 12, 16, ...; got {dim}'):
    sincos2d(2, 2, dim)


def learned(prefix, grid):
  shape = (1, prefix + math.prod(grid), 8)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('method', POSITION_METHODS)
@pytest.mark.parametrize(('grid', 'new_grid'), GRIDS)
@pytest.mark.parametrize('prefix', [0, 1, 3])
def test_resampled_on_the_device_as_on_the_host(prefix, grid, new_grid, method):
  positions = learned(prefix, grid)
  expected = resize_positions(positions, grid, new_grid, prefix=prefix, method=method)
  run = jax.jit(lambda positions: resample(positions, grid, new_grid, method=method))
  actual = run(positions)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, atol=2e-6)
  np.testing.assert_array_equal(actual[:, :prefix], positions[:, :prefix])


def test_the_same_grid_is_no_operation():
  positions = jnp.asarray(learned(1, (2, 3)))
  assert resample(positions, (2, 3), (2, 3)) is positions


@pytest.mark.parametrize('method', POSITION_METHODS)
def test_gradients_are_those_of_a_linear_map(method):
  positions, grid, new_grid = learned(1, (3, 4)), (3, 4), (5, 3)
  weights = np.random.default_rng(1).normal(size=(1, 16, 8)).astype(np.float32)
  loss = lambda p: (weights * resample(p, grid, new_grid, method=method)).sum()  # noqa: E731
  matrix = resize_positions(np.eye(13), grid, new_grid, prefix=1, method=method)  # [16, 13]
  expected = np.einsum('nm,ond->omd', matrix, weights)
  np.testing.assert_allclose(jax.grad(loss)(positions), expected, atol=1e-5)

import math

import numpy as np
import pytest

from vit_jax.models.positions import sincos2d


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

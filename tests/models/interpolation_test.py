"""The matrices of interpolation, against loops, `numpy.interp` and polynomials."""

from functools import partial

import numpy as np
import pytest

from vit_jax.models.interpolation import (
  PATCH_METHODS,
  POSITION_METHODS,
  cubic,
  from_corners,
  from_edges,
  resize_grid,
  triangle,
)

METHODS = [*POSITION_METHODS.values(), *PATCH_METHODS.values()]
SIZES = [(4, 7), (7, 4), (5, 5), (3, 11), (11, 3), (1, 4), (4, 1)]


def centers(size, new_size):
  return (np.arange(new_size) + 0.5) * size / new_size - 0.5


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(('size', 'new_size'), SIZES)
def test_every_row_is_a_mean(method, size, new_size):
  matrix = method(size, new_size)
  assert matrix.shape == (new_size, size)
  assert matrix.dtype == np.float64
  np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-14)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(('size', 'new_size'), [s for s in SIZES if s[1] > 1])
def test_both_ends_are_treated_alike(method, size, new_size):
  matrix = method(size, new_size)
  np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-14)


@pytest.mark.parametrize('method', METHODS)
def test_the_same_size_is_the_identity(method):
  np.testing.assert_allclose(method(6, 6), np.eye(6), atol=1e-15)


@pytest.mark.parametrize(('size', 'new_size'), SIZES)
def test_linear_interpolation_equals_numpy(size, new_size):
  x = np.random.default_rng(0).normal(size=size)
  edges = from_edges(size, new_size, kernel=triangle, antialias=False) @ x
  expected = np.interp(centers(size, new_size), np.arange(size), x)  # the ends repeated
  np.testing.assert_allclose(edges, expected, atol=1e-14)
  corners = from_corners(size, new_size) @ x
  expected = np.interp(np.linspace(0, size - 1, new_size), np.arange(size), x)
  np.testing.assert_allclose(corners, expected, atol=1e-14)


@pytest.mark.parametrize('kernel', [triangle, partial(cubic, slope=-0.5)])
def test_antialiasing_widens_the_kernel_to_the_new_pixels(kernel):
  size, new_size = 12, 5
  expected = np.zeros((new_size, size))
  for i, center in enumerate(centers(size, new_size)):
    for j in range(size):
      expected[i, j] = kernel(np.array((j - center) * new_size / size))
    expected[i] /= expected[i].sum()
  actual = from_edges(size, new_size, kernel=kernel, antialias=True)
  np.testing.assert_allclose(actual, expected, atol=1e-14)
  plain = from_edges(size, new_size, kernel=kernel, antialias=False)
  assert np.abs(actual - plain).max() > 0.1


def test_enlarging_needs_no_antialiasing_away_from_the_edges():
  kernel = partial(cubic, slope=-0.5)
  plain, smooth = (from_edges(6, 12, kernel=kernel, antialias=a) for a in (False, True))
  np.testing.assert_allclose(plain[3:-3], smooth[3:-3], atol=1e-14)
  assert np.abs(plain[0] - smooth[0]).max() > 0.01


@pytest.mark.parametrize('slope', [-0.5, -0.75])
def test_cubic_has_its_slope_and_meets_zero_smoothly(slope):
  h = 1e-6
  np.testing.assert_array_equal(cubic(np.array([0.0, 1, -1, 2, 3]), slope), [1, 0, 0, 0, 0])
  for place, expected in ((1, slope), (-1, -slope), (2, 0), (0, 0)):
    low, high = cubic(np.array([place - h, place + h]), slope)
    assert (high - low) / (2 * h) == pytest.approx(expected, abs=1e-5)


def test_keys_own_slope_reproduces_parabolas():
  matrix = from_edges(10, 23, kernel=partial(cubic, slope=-0.5), antialias=False)
  places = centers(10, 23)
  inside = (places > 1) & (places < 8)
  np.testing.assert_allclose((matrix @ np.arange(10) ** 2)[inside], places[inside] ** 2, atol=1e-12)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_a_grid_is_resized_axis_by_axis_and_keeps_its_type(dtype):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 4, 2, 5)).astype(dtype)
  rows, columns = rng.normal(size=(6, 3)), rng.normal(size=(2, 4))
  expected = np.zeros((6, 2, 2, 5))
  for i in range(6):
    for j in range(2):
      for h in range(3):
        for w in range(4):
          expected[i, j] += rows[i, h] * columns[j, w] * x[h, w]
  actual = resize_grid(rows, columns, x)
  assert actual.dtype == dtype
  np.testing.assert_allclose(actual, expected.astype(dtype), rtol=1e-12, atol=1e-12)

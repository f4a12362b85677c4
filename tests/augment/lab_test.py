"""Lab against scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.augment import lab

color = pytest.importorskip('skimage.color')

# Every corner of the cube, what is near black, where both curves bend, and what is between.
LEVELS = np.r_[0, 1 / 255, 0.03, 0.04045, 0.05, np.linspace(0.1, 1, 10)]
GRID = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing='ij'), -1)


def test_rgb_to_lab_is_scikit_images():
  ours = lab.rgb_to_lab(jnp.asarray(GRID, jnp.float32))
  np.testing.assert_allclose(ours, color.rgb2lab(GRID), atol=3e-4)


def test_lab_to_rgb_is_scikit_images_and_undoes_rgb_to_lab():
  values = color.rgb2lab(GRID)
  ours = lab.lab_to_rgb(jnp.asarray(values, jnp.float32))
  np.testing.assert_allclose(ours, color.lab2rgb(values), atol=2e-5)
  np.testing.assert_allclose(ours, GRID, atol=2e-5)


@pytest.mark.filterwarnings('ignore:Conversion from CIE-LAB')
def test_colours_that_no_screen_has_are_cut_off_as_scikit_image_does():
  axis = np.linspace(-120, 120, 13)
  values = np.stack(np.meshgrid(np.linspace(0, 100, 11), axis, axis, indexing='ij'), -1)
  expected = color.lab2rgb(values)
  np.testing.assert_allclose(lab.lab_to_rgb(jnp.asarray(values)), expected, atol=2e-5)
  assert ((expected == 0) | (expected == 1)).any(-1).mean() > 0.5


@pytest.mark.parametrize(
  ('rgb', 'expected'),
  [
    ((0, 0, 0), (0, 0, 0)),
    ((1, 1, 1), (100, 0, 0)),
    ((1, 0, 0), (53.24, 80.09, 67.20)),
    ((0, 1, 0), (87.74, -86.18, 83.18)),
    ((0, 0, 1), (32.30, 79.19, -107.86)),
  ],
)
def test_published_values(rgb, expected):
  # http://www.brucelindbloom.com, sRGB with D65, to two digits.
  np.testing.assert_allclose(lab.rgb_to_lab(jnp.asarray(rgb, jnp.float32)), expected, atol=0.02)


@pytest.mark.parametrize('function', [lab.rgb_to_lab, lab.lab_to_rgb])
@pytest.mark.parametrize('value', [0.0, 1.0, 0.04045, 100.0])
def test_gradients_are_finite(function, value):
  grad = jax.jacobian(function)(jnp.full(3, value))
  assert np.isfinite(grad).all()

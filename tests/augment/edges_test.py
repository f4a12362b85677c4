"""Edges: contours against a NumPy loop; the rest by simple shapes; Sobel against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vit_jax import augment
from vit_jax.augment.edges import contours

KEY = jax.random.key(0)


def square(color=(1.0, 0.5, 0.0)) -> np.ndarray:
  """A filled square on nothing, RGBA."""
  image = np.zeros((16, 16, 4), np.float32)
  image[4:12, 4:12] = (*color, 1.0)
  return image


def on_white(image) -> np.ndarray:
  image = np.asarray(image)
  return image[..., :3] * image[..., 3:] + 1 - image[..., 3:] if image.shape[-1] == 4 else image


def test_contours_are_the_range_over_a_cross():
  image = np.random.default_rng(0).random((6, 7, 3), np.float32)
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=1.0)
  expected = np.zeros((6, 7, 1), np.float32)
  for i in range(6):
    for j in range(7):
      cross = [padded[i + 1, j + 1], padded[i, j + 1], padded[i + 2, j + 1]]
      cross = np.stack([*cross, padded[i + 1, j], padded[i + 1, j + 2]])
      expected[i, j] = (cross.max(0) - cross.min(0)).max()
  np.testing.assert_allclose(contours(jnp.asarray(image)), expected, atol=1e-6)


def test_contours_of_a_flat_square_are_its_border():
  edge = np.asarray(contours(jnp.asarray(square())))[..., 0]
  assert edge[4:12, 4].min() == 1 and edge[3, 4:12].min() == 1  # both sides of the border
  assert edge[5:11, 5:11].max() == 0 and edge[:3].max() == 0


def test_white_on_nothing_has_a_contour_by_its_alpha():
  edge = np.asarray(contours(jnp.asarray(square((1.0, 1.0, 1.0)))))[..., 0]
  assert edge[4, 8] == 1


def test_outline_blackens_the_border_and_keeps_the_inside():
  image = square()
  out = np.asarray(augment.outline(p=1.0)(KEY, jnp.asarray(image)))
  np.testing.assert_allclose(out[5:11, 5:11], image[5:11, 5:11], atol=1e-6)
  np.testing.assert_allclose(out[4, 4:12], [[0, 0, 0, 1]] * 8, atol=1e-6)
  assert out[:3, :, 3].max() == 0


def test_sketch_keeps_the_border_alone():
  out = on_white(augment.sketch(p=1.0)(KEY, jnp.asarray(square())))
  assert out[5:11, 5:11].min() == 1 and out[:3].min() == 1
  assert out[4, 4:12].max() < 1e-6


def test_stencil_is_black_where_it_was_dark():
  image = square((0.1, 0.1, 0.1))
  image[6:10, 6:10, :3] = 0.95
  out = np.asarray(augment.stencil(p=1.0)(KEY, jnp.asarray(image)))
  assert out[..., :3].max() == 0
  assert out[4, 4, 3] == 1 and out[8, 8, 3] == 0 and out[0, 0, 3] == 0


@pytest.mark.parametrize('name', ['sketch', 'stencil'])
def test_drawings_on_white_need_no_alpha(name):
  """The same picture as with alpha, where all is opaque or white."""
  image = square((0.1, 0.1, 0.1))
  operation = getattr(augment, name)(p=1.0)
  with_alpha = on_white(operation(KEY, jnp.asarray(image)))
  without = np.asarray(operation(KEY, jnp.asarray(on_white(image))))
  inside = np.s_[5:11, 5:11] if name == 'stencil' else np.s_[:, :]
  np.testing.assert_allclose(without[inside], with_alpha[inside], atol=0.01)
  assert set(np.unique(without.round(3))) <= {0.0, 1.0}


def test_ink_is_black():
  image = np.random.default_rng(0).random((16, 16, 4), np.float32)
  for name in ('sketch', 'stencil'):
    out = np.asarray(getattr(augment, name)(p=1.0)(KEY, jnp.asarray(image)))
    assert out[..., :3].max() == 0


@pytest.mark.parametrize('channels', [1, 3])
def test_sobel_is_scipys(channels):
  image = np.random.default_rng(0).random((7, 9, channels), np.float32) * 0.8
  ours = augment.sobel(p=1.0)(KEY, jnp.asarray(image))
  for c in range(channels):
    x, y = (ndimage.sobel(image[..., c], axis=axis, mode='nearest') for axis in (0, 1))
    expected = np.minimum(np.hypot(x, y) / 4, 1)
    np.testing.assert_allclose(ours[..., c], expected, atol=1e-5)


def test_sobel_of_one_colour_is_black_and_of_a_step_is_one():
  flat = jnp.full((6, 6, 3), 0.4)
  np.testing.assert_allclose(augment.sobel(p=1.0)(KEY, flat), 0, atol=1e-6)
  step = jnp.zeros((6, 6, 1)).at[:, 3:].set(1.0)
  out = np.asarray(augment.sobel(p=1.0)(KEY, step))[..., 0]
  np.testing.assert_allclose(out, [[0, 0, 1, 1, 0, 0]] * 6, atol=1e-6)


def test_sobel_of_rgba_is_that_of_the_drawing_on_white():
  image = np.random.default_rng(0).random((8, 8, 4), np.float32)
  out = np.asarray(augment.sobel(p=1.0)(KEY, jnp.asarray(image)))
  white = augment.sobel(p=1.0)(KEY, jnp.asarray(on_white(image)))
  np.testing.assert_allclose(out[..., :3], white, atol=1e-6)
  assert (out[..., 3] == 1).all()

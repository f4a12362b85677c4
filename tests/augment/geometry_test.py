"""Geometry: the warp against a NumPy loop and exact cases; what is covered, against its area."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import augment
from vit_jax.augment.geometry import warp

KEY = jax.random.key(0)


def noise(channels: int, height: int = 8, width: int = 8) -> np.ndarray:
  return np.random.default_rng(channels).random((height, width, channels), np.float32)


def slow_warp(image, matrix, shift, fill):
  """Bilinear lookup, pixel by pixel."""
  height, width, channels = image.shape
  out = np.zeros_like(image)

  def pixel(i, j):
    inside = 0 <= i < height and 0 <= j < width
    return image[i, j] if inside else np.full(channels, fill, np.float32)

  for row in range(height):
    for column in range(width):
      place = np.array([(row + 0.5) / height - 0.5, (column + 0.5) / width - 0.5]) - shift
      y, x = matrix @ place
      y, x = (y + 0.5) * height - 0.5, (x + 0.5) * width - 0.5
      i, j = int(np.floor(y)), int(np.floor(x))
      for di, wi in ((0, 1 - (y - i)), (1, y - i)):
        for dj, wj in ((0, 1 - (x - j)), (1, x - j)):
          out[row, column] += wi * wj * pixel(i + di, j + dj)
  return out


@pytest.mark.parametrize('channels', [1, 3])
def test_warp_is_a_bilinear_lookup(channels):
  image = noise(channels, 8, 6)
  matrix = np.array([[0.9, 0.3], [-0.4, 1.3]], np.float32)
  shift = np.array([0.1, -0.07], np.float32)
  out = warp(jnp.asarray(image), jnp.asarray(matrix), jnp.asarray(shift), fill=0.7)
  np.testing.assert_allclose(out, slow_warp(image, matrix, shift, 0.7), atol=1e-4)


def test_warp_weights_colours_by_alpha():
  image = noise(4)
  matrix, shift = np.array([[1.2, 0.1], [0.2, 0.8]], np.float32), np.zeros(2, np.float32)
  out = np.asarray(warp(jnp.asarray(image), jnp.asarray(matrix), jnp.asarray(shift)))
  weighted = np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], -1)
  expected = slow_warp(weighted, matrix, shift, 0.0)
  np.testing.assert_allclose(out[..., 3], expected[..., 3], atol=1e-4)
  np.testing.assert_allclose(out[..., :3] * out[..., 3:], expected[..., :3], atol=1e-4)


def test_what_is_invisible_does_not_bleed():
  image = np.zeros((8, 8, 4), np.float32)
  image[2:6, 2:6] = (1.0, 0.0, 0.0, 1.0)  # red on invisible black
  out = np.asarray(augment.affine(scale=(0.7, 0.7), rotate=20)(KEY, jnp.asarray(image)))
  seen = out[..., 3] > 0.01
  assert seen.any()
  np.testing.assert_allclose(
    out[seen][:, :3], np.broadcast_to([1.0, 0, 0], (seen.sum(), 3)), atol=1e-3
  )


@pytest.mark.parametrize('channels', [1, 3])
def test_affine_of_no_strength_is_the_identity(channels):
  image = noise(channels)
  np.testing.assert_allclose(augment.affine()(KEY, jnp.asarray(image)), image, atol=1e-5)


def test_affine_that_only_flips_is_the_flip():
  image = noise(3, 8, 6)
  out = augment.affine(flip=1.0)(KEY, jnp.asarray(image))
  np.testing.assert_allclose(out, image[:, ::-1], atol=1e-5)
  np.testing.assert_array_equal(augment.flip(p=1.0)(KEY, jnp.asarray(image)), image[:, ::-1])


def test_half_the_size_is_a_quarter_of_the_ink():
  image = jnp.zeros((32, 32, 1)).at[8:24, 8:24].set(1.0)
  out = augment.affine(scale=(0.5, 0.5), fill=0.0)(KEY, image)
  np.testing.assert_allclose(out.sum() / image.sum(), 0.25, atol=1e-4)
  assert out[12:20, 12:20].min() > 0.9


def test_aspect_and_rotation_keep_the_area():
  image = jnp.zeros((32, 32, 1)).at[10:22, 10:22].set(1.0)
  turn = augment.compose('affine(aspect=1.5, rotate=30, shear=0.2, fill=0.0)')
  out = jax.jit(turn)(KEY, jnp.stack([image] * 5))
  np.testing.assert_allclose(out.sum((1, 2, 3)) / image.sum(), 1.0, atol=0.05)


def test_shift_stays_within_its_bound_and_uses_it():
  image = jnp.zeros((32, 32, 1)).at[16, 16].set(1.0)
  move = jax.jit(augment.compose('affine(shift=0.25, fill=0.0)'))
  out = np.asarray(move(KEY, jnp.stack([image] * 100)))[..., 0]
  rows = (out.sum(2) * np.arange(32)).sum(1) / out.sum((1, 2)) - 16
  assert np.abs(rows).max() <= 8 + 1e-3 and np.abs(rows).max() > 6 and abs(rows.mean()) < 1.5


def test_rgba_comes_in_transparent_and_grey_with_the_fill():
  out = augment.affine(scale=(0.5, 0.5))(KEY, jnp.ones((8, 8, 4)))
  assert float(out[0, 0, 3]) == 0.0
  out = augment.affine(scale=(0.5, 0.5), fill=0.25)(KEY, jnp.ones((8, 8, 1)))
  np.testing.assert_allclose(out[0, 0], 0.25, atol=1e-6)


def test_erase_covers_its_area_with_one_colour():
  image = jnp.full((32, 32, 3), 0.5)
  run = jax.jit(augment.compose('erase(p=1, area=(0.2, 0.2))'))
  for out in np.asarray(run(KEY, jnp.stack([image] * 10))):
    changed = (out != 0.5).any(-1)
    assert abs(changed.mean() - 0.2) < 0.05
    assert len(np.unique(out[changed], axis=0)) == 1
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one rectangle


def test_erase_makes_rgba_transparent_and_writes_a_given_fill():
  out = np.asarray(augment.erase(p=1.0)(KEY, jnp.ones((16, 16, 4))))
  assert set(np.unique(out[..., 3])) == {0.0, 1.0} and (out[..., :3] == 1).all()
  out = np.asarray(augment.erase(p=1.0, fill=0.0)(KEY, jnp.ones((16, 16, 1))))
  assert set(np.unique(out)) == {0.0, 1.0}


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_rotate90_is_one_of_three_quarter_turns_evenly(channels):
  image = noise(channels)
  run = jax.jit(augment.compose('rotate90(p=1)'))
  out = np.asarray(run(KEY, jnp.stack([image] * 900)))
  turned = np.stack([np.rot90(image, k) for k in (1, 2, 3)])
  same = (out[:, None] == turned).all((2, 3, 4))
  assert (same.sum(1) == 1).all()
  np.testing.assert_allclose(same.mean(0), 1 / 3, atol=0.07)


def test_three_quarters_of_rotate90_make_all_directions_as_likely():
  image = noise(3)
  run = jax.jit(augment.compose('rotate90(p=0.75)'))
  out = np.asarray(run(KEY, jnp.stack([image] * 900)))
  assert abs((out == image).all((1, 2, 3)).mean() - 0.25) < 0.06


def test_rotate90_refuses_what_is_not_square():
  with pytest.raises(ValueError, match='square images, not 8 x 6'):
    augment.rotate90()(KEY, jnp.asarray(noise(3, 8, 6)))


@pytest.mark.parametrize(('height', 'width', 'side'), [(8, 8, 4), (6, 9, 3)])
def test_cutout_is_a_square_about_any_pixel(height, width, side):
  image = jnp.ones((height, width, 3))
  run = jax.jit(augment.compose('cutout(0.5, p=1, fill=0.0)'))
  out = np.asarray(run(KEY, jnp.stack([image] * 1000)))
  before, found = side // 2, set()
  expected = {}
  for i in range(height):
    for j in range(width):
      mask = np.ones((height, width, 3), np.float32)
      top, left = max(0, i - before), max(0, j - before)
      mask[top : i - before + side, left : j - before + side] = 0
      expected[mask.tobytes()] = (i, j)
  for one in out:
    found.add(expected[one.tobytes()])
  assert found == {(i, j) for i in range(height) for j in range(width)}


def test_cutout_is_grey_makes_rgba_transparent_and_keeps_its_probability():
  out = np.asarray(augment.cutout(1.0, p=1.0)(KEY, jnp.ones((8, 8, 1))))
  assert set(np.unique(out)) == {0.5, 1.0}
  out = np.asarray(augment.cutout(p=1.0)(KEY, jnp.ones((8, 8, 4))))
  assert set(np.unique(out[..., 3])) == {0.0, 1.0} and (out[..., :3] == 1).all()
  out = jax.jit(augment.compose('cutout(p=0.3)'))(KEY, jnp.ones((500, 4, 4, 3)))
  assert abs((np.asarray(out) != 1).any((1, 2, 3)).mean() - 0.3) < 0.08


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: augment.affine(scale=(0.0, 1.0)), 'scale'),
    (lambda: augment.affine(scale=(2.0, 1.0)), 'scale'),
    (lambda: augment.affine(scale=0.5), 'scale'),
    (lambda: augment.affine(aspect=0.5), 'aspect'),
    (lambda: augment.affine(flip=2.0), 'flip'),
    (lambda: augment.erase(area=(0.5, 0.1)), 'area'),
    (lambda: augment.cutout(0.0), r'size=0.0 is not in \(0, 1\]'),
    (lambda: augment.cutout(1.5), 'size'),
    (lambda: augment.flip(p=-0.1), 'probability'),
  ],
)
def test_mistakes_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()

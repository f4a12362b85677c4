"""Colour: each change against its arithmetic in NumPy or the property that defines it."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import augment
from vit_jax.augment.adjust import luma

KEY = jax.random.key(0)


def colors(channels: int, size: int = 6) -> np.ndarray:
  return np.random.default_rng(channels).random((size, size, channels), np.float32)


@pytest.mark.parametrize('channels', [3, 4])
def test_grayscale_is_the_luma_in_three_channels(channels):
  image = colors(channels)
  gray = np.asarray(augment.grayscale(p=1.0)(KEY, jnp.asarray(image)))
  expected = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
  for c in range(3):
    np.testing.assert_allclose(gray[..., c], expected, atol=1e-6)
  np.testing.assert_array_equal(gray[..., 3:], image[..., 3:])


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_lightness_is_that_of_lab_in_equal_channels(channels):
  skimage = pytest.importorskip('skimage.color')
  image = colors(channels)
  light = np.asarray(augment.lightness()(KEY, jnp.asarray(image)))
  rgb = np.broadcast_to(image[..., :3], (*image.shape[:2], 3))
  expected = skimage.rgb2lab(rgb)[..., 0] / 100
  for c in range(min(channels, 3)):
    np.testing.assert_allclose(light[..., c], expected, atol=1e-5)
  np.testing.assert_array_equal(light[..., 3:], image[..., 3:])


def test_standardize_gives_each_channel_mean_0_and_deviation_1():
  image = colors(3)
  image[..., 1] = 0.3
  out = np.asarray(augment.standardize()(KEY, jnp.asarray(image)))
  for c in (0, 2):
    expected = (image[..., c] - image[..., c].mean()) / image[..., c].std()
    np.testing.assert_allclose(out[..., c], expected, atol=1e-3)
  np.testing.assert_allclose(out[..., 1], 0, atol=1e-4)


def test_luma_of_grey_is_itself():
  image = jnp.asarray(colors(1))
  assert luma(image) is image


def test_invert_twice_is_the_image_and_alpha_is_kept():
  image = colors(4)
  once = np.asarray(augment.invert(p=1.0)(KEY, jnp.asarray(image)))
  np.testing.assert_allclose(once[..., :3], 1 - image[..., :3], atol=1e-7)
  np.testing.assert_array_equal(once[..., 3], image[..., 3])
  twice = augment.invert(p=1.0)(KEY, jnp.asarray(once))
  np.testing.assert_allclose(twice, image, atol=1e-6)


def test_hue_keeps_the_luma_and_moves_the_hue():
  image = 0.4 + 0.2 * colors(3)  # far enough from the edge of the cube that nothing is clipped
  turned = np.asarray(augment.hue(0.5)(KEY, jnp.asarray(image)))
  np.testing.assert_allclose(luma(jnp.asarray(turned)), luma(jnp.asarray(image)), atol=1e-5)
  assert np.abs(turned - image).max() > 0.02


def test_hue_reaches_every_hue_and_leaves_grey_alone():
  red = jnp.full((1, 1, 3), 0.5).at[..., 0].set(0.6)
  turned = jax.jit(augment.compose('hue(0.5)'))(KEY, jnp.stack([red] * 64))
  hues = [colorsys.rgb_to_hsv(*color)[0] for color in np.asarray(turned)[:, 0, 0]]
  assert len(set(np.floor(np.array(hues) * 6))) == 6
  gray = jnp.full((2, 2, 3), 0.3)
  np.testing.assert_allclose(augment.hue(0.5)(KEY, gray), gray, atol=1e-5)


def test_hue_of_one_channel_is_the_image():
  image = colors(1)
  np.testing.assert_array_equal(augment.hue()(KEY, jnp.asarray(image)), image)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_color_distort_of_strength_zero_is_the_identity(channels):
  image = colors(channels)
  out = augment.color_distort(0.0, p=1.0, gray=0.0)(KEY, jnp.asarray(image))
  np.testing.assert_allclose(out, image, atol=1e-5)


def test_color_distort_takes_the_contrast_about_what_is_visible():
  # One visible grey on an invisible rest: whatever the contrast, only its brightness moves.
  image = np.zeros((4, 4, 4), np.float32)
  image[1, 1] = (0.5, 0.5, 0.5, 1.0)
  run = jax.jit(augment.compose('color_distort(0.5, p=1.0, gray=0.0)'))
  out = run(KEY, jnp.stack([image] * 20))
  values = np.asarray(out)[:, 1, 1, :3]
  assert values.min() >= 0.5 * 0.6 - 1e-5 and values.max() <= 0.5 * 1.4 + 1e-5
  assert values.std() > 0.05


def test_color_distort_greys_as_often_as_asked():
  image = jnp.asarray(colors(3))
  run = jax.jit(augment.compose('color_distort(0.5, gray=0.2)'))
  out = np.asarray(run(KEY, jnp.broadcast_to(image, (500, *image.shape))))
  is_gray = np.abs(out.max(-1) - out.min(-1)).max((1, 2)) < 1e-5
  assert abs(is_gray.mean() - 0.2) < 0.06


def test_a_negative_strength_is_refused():
  with pytest.raises(ValueError, match='negative'):
    augment.color_distort(-1.0)


@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize('channels', [1, 3])
def test_solarize_is_torchvisions(channels, threshold):
  functional = pytest.importorskip('torchvision.transforms.v2.functional')
  import torch

  image = colors(channels)
  image[0] = threshold  # the bound itself is inverted
  expected = functional.solarize(torch.from_numpy(image).permute(2, 0, 1), threshold)
  ours = augment.solarize(threshold, p=1.0)(KEY, jnp.asarray(image))
  np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), atol=1e-6)


def test_grayscale_is_torchvisions():
  functional = pytest.importorskip('torchvision.transforms.v2.functional')
  import torch

  image = colors(3)
  expected = functional.rgb_to_grayscale(torch.from_numpy(image).permute(2, 0, 1), 3)
  ours = augment.grayscale(p=1.0)(KEY, jnp.asarray(image))
  # Its weight of red is 0.2989 where ITU-R BT.601 has 0.299.
  np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), atol=2e-4)


def test_solarize_keeps_alpha():
  image = colors(4)
  out = np.asarray(augment.solarize(p=1.0)(KEY, jnp.asarray(image)))
  np.testing.assert_array_equal(out[..., 3], image[..., 3])
  assert out[..., :3].max() <= 0.5


def test_color_distort_in_random_order_is_the_papers_jitter_then_grey():
  """Figures of 1,000 images: 0.8 are jittered, 0.2 grey; the strengths are 0.8 and 0.2 of 0.5."""
  image = np.zeros((2, 2, 3), np.float32)
  image[..., 0] = 0.5  # of one colour: brightness and saturation, contrast too, move its value
  image[0, 0] = (0.2, 0.6, 0.4)
  run = jax.jit(augment.compose("color_distort(0.5, order='random')"))
  out = np.asarray(run(KEY, jnp.stack([image] * 1000)))
  is_gray = np.abs(out.max(-1) - out.min(-1)).max((1, 2)) < 1e-5
  assert abs(is_gray.mean() - 0.2) < 0.06
  untouched = (out == image).all((1, 2, 3))
  assert abs(untouched.mean() - 0.2 * 0.8) < 0.06
  plain = jax.jit(augment.compose('color_jitter(0.4, 0.4, 0.4, 0.1)'))
  jittered = np.asarray(plain(KEY, jnp.stack([image] * 1000)))
  moved = out[~is_gray & ~untouched]
  levels = (0.05, 0.5, 0.95)
  np.testing.assert_allclose(
    np.quantile(moved[:, 0, 0], levels, axis=0), np.quantile(jittered[:, 0, 0], levels, axis=0),
    atol=0.05,
  )  # fmt: skip


def test_color_distort_keeps_its_two_orders_apart():
  image = jnp.asarray(colors(3))
  fixed, drawn = (
    augment.color_distort(0.5, p=1.0, gray=0.0, order=order)(KEY, image)
    for order in ('fixed', 'random')
  )
  np.testing.assert_array_equal(augment.color_distort(0.5, p=1.0, gray=0.0)(KEY, image), fixed)
  assert np.abs(np.asarray(fixed) - np.asarray(drawn)).max() > 0.01


@pytest.mark.parametrize('name', ['grayscale(p=1)', 'solarize(0.9, p=1)', 'color_jitter(hue=0.5)'])
def test_one_grey_stays_as_it_is(name):
  image = jnp.full((1, 4, 4, 3), 0.3)
  np.testing.assert_allclose(augment.compose(name)(KEY, image), image, atol=1e-6)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: augment.color_jitter(contrast=-0.1), 'contrast=-0.1 is negative'),
    (lambda: augment.color_jitter(hue=0.6), 'hue=0.6 is above 0.5'),
    (lambda: augment.color_jitter(p=2), 'probability'),
    (lambda: augment.solarize(1.5), r'threshold=1.5 is outside \[0, 1\]'),
    (
      lambda: augment.color_distort(order='shuffled'),
      "unknown order 'shuffled'; choose from 'fixed', 'random'",
    ),
  ],
)
def test_mistakes_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()

"""Blur and noise: against arithmetic, torchvision, and the statistics that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import augment

KEY = jax.random.key(0)


def test_blur_of_a_dot_is_a_gaussian():
  image = jnp.zeros((33, 33, 1)).at[16, 16].set(1.0)
  out = np.asarray(augment.blur(p=1.0, sigma=(1.5, 1.5))(KEY, image))[..., 0]
  y, x = np.mgrid[-16:17, -16:17]
  expected = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
  np.testing.assert_allclose(out, expected / expected.sum(), atol=1e-5)


def test_blur_keeps_a_flat_image_and_the_smallest_sigma_is_the_identity():
  flat = jnp.full((8, 8, 3), 0.3)
  np.testing.assert_allclose(augment.blur(p=1.0)(KEY, flat), flat, atol=1e-5)
  image = np.random.default_rng(0).random((8, 8, 3), np.float32)
  out = augment.blur(p=1.0, sigma=(0.05, 0.05))(KEY, jnp.asarray(image))
  np.testing.assert_allclose(out, image, atol=1e-5)


def test_blur_does_not_bleed_what_is_invisible():
  image = jnp.zeros((8, 8, 4)).at[2:6, 2:6].set(1.0)  # white on invisible black
  out = np.asarray(augment.blur(p=1.0, sigma=(1.0, 1.0))(KEY, image))
  seen = out[..., 3] > 0.01
  np.testing.assert_allclose(out[seen][:, :3], 1.0, atol=1e-3)


@pytest.mark.parametrize(
  ('height', 'width', 'kernel', 'taps'),
  [(32, 32, 0.1, 3), (30, 47, 0.1, 3), (16, 16, 0.1, 3), (24, 24, 0.5, 13), (30, 30, 0.3, 9)],
)
@pytest.mark.parametrize('sigma', [0.3, 2.0])
def test_a_cut_kernel_is_torchvisions(height, width, kernel, taps, sigma):
  functional = pytest.importorskip('torchvision.transforms.v2.functional')
  import torch

  image = np.random.default_rng(0).random((height, width, 3), np.float32)
  ours = augment.blur(p=1.0, sigma=(sigma, sigma), kernel=kernel)(KEY, jnp.asarray(image))

  def blurred(values):
    """Its border mirrors; with zeros around, only what is inside counts."""
    padded = np.pad(values, ((taps, taps), (taps, taps), (0, 0)))
    tensor = torch.from_numpy(padded).permute(2, 0, 1)
    out = functional.gaussian_blur(tensor, [taps, taps], [sigma, sigma])
    return out.permute(1, 2, 0).numpy()[taps:-taps, taps:-taps]

  # At the border the weights that are left are scaled to 1.
  expected = blurred(image) / blurred(np.ones_like(image))
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_widths_are_drawn_from_all_of_their_range():
  """The blur of a dot has 1 / (2 pi sigma^2) in its middle, where sigma is not too small."""
  image = jnp.zeros((31, 31, 1)).at[15, 15].set(1.0)
  run = jax.jit(augment.compose('blur(p=1, sigma=(1.0, 2.0))'))
  peak = np.asarray(run(KEY, jnp.stack([image] * 500)))[:, 15, 15, 0]
  sigma = 1 / np.sqrt(2 * np.pi * peak)
  np.testing.assert_allclose(
    np.quantile(sigma, [0, 0.25, 0.5, 0.75, 1]), [1, 1.25, 1.5, 1.75, 2], atol=0.08
  )


def test_noise_has_its_deviation_and_spares_alpha():
  image = jnp.full((64, 64, 4), 0.5)
  out = np.asarray(augment.noise(0.05)(KEY, image))
  assert abs(out[..., :3].std() - 0.05) < 0.003 and abs(out[..., :3].mean() - 0.5) < 0.003
  assert (out[..., 3] == 0.5).all()
  np.testing.assert_array_equal(augment.noise(0.0)(KEY, image), image)


def test_a_sigma_of_zero_is_refused():
  with pytest.raises(ValueError, match='sigma'):
    augment.blur(sigma=(0.0, 1.0))


def test_a_kernel_of_nothing_is_refused():
  with pytest.raises(ValueError, match='kernel=0 is not above 0'):
    augment.blur(kernel=0)

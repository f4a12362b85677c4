"""Background: alpha compositing against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import augment
from vit_jax.data.emoji import Emoji

KEY = jax.random.key(0)


def test_plain_background_is_what_the_source_composites():
  drawn = Emoji('validation', alpha=True)[3]['image']
  flat = Emoji('validation')[3]['image']
  out = augment.background(p=0)(KEY, jnp.asarray(drawn, jnp.float32) / 255)
  np.testing.assert_allclose(np.asarray(out) * 255, flat, atol=0.51)


def test_a_random_background_is_one_colour_an_image():
  image = jnp.zeros((4, 4, 4)).at[0, 0].set(jnp.asarray([0.2, 0.4, 0.6, 1.0]))
  out = np.asarray(augment.compose('background(p=1)')(KEY, jnp.stack([image] * 8)))
  assert out.shape == (8, 4, 4, 3)
  np.testing.assert_allclose(out[:, 0, 0], [[0.2, 0.4, 0.6]] * 8, atol=1e-6)
  behind = out[:, 1, 1]
  assert (out.reshape(8, 16, 3)[:, 1:] == behind[:, None]).all()
  assert len(np.unique(behind, axis=0)) == 8


def test_half_transparent_is_half_way():
  image = jnp.full((2, 2, 4), 0.5).at[..., :3].set(0.0)
  out = augment.background(p=0, color=(1.0, 0.5, 0.0))(KEY, image)
  np.testing.assert_allclose(out, np.broadcast_to([0.5, 0.25, 0.0], (2, 2, 3)), atol=1e-6)


def test_the_probability_is_kept():
  images = jnp.zeros((400, 2, 2, 4))
  out = np.asarray(jax.jit(augment.compose('background(p=0.3)'))(KEY, images))
  assert abs((out[:, 0, 0] != 1).any(-1).mean() - 0.3) < 0.08


def test_an_image_without_alpha_passes():
  image = jnp.full((2, 2, 3), 0.3)
  assert augment.background()(KEY, image) is image


def test_mistakes_are_refused():
  with pytest.raises(ValueError, match='probability'):
    augment.background(p=2)
  with pytest.raises(ValueError, match='color'):
    augment.background(color=(255, 255, 255))

"""The jitter of colours against torchvision, in every order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import augment
from vit_jax.augment import adjust

functional = pytest.importorskip('torchvision.transforms.v2.functional')
import torch  # noqa: E402  (torchvision has it)

KEY = jax.random.key(0)
SAME = (1.0, 1.0, 1.0)
# Its luma has 0.2989 for red where ITU-R BT.601 has 0.299.
ROUNDING = 2e-4
jitter = jax.jit(adjust.jitter)


def colors(channels: int = 3, size: int = 6) -> np.ndarray:
  return np.random.default_rng(channels).random((size, size, channels), np.float32)


def theirs(image, *changes) -> np.ndarray:
  """Functions of torchvision, one after the other, on [H, W, C]."""
  tensor = torch.from_numpy(image).permute(2, 0, 1)
  for change, amount in changes:
    tensor = change(tensor, amount)
  return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
def test_a_factor_is_torchvisions(name, channels, factor):
  image = colors(channels)
  factors = list(SAME)
  factors[('brightness', 'contrast', 'saturation').index(name)] = factor
  ours = jitter(image, jnp.asarray(factors), 0.0, jnp.arange(3), 3)
  expected = theirs(image, (getattr(functional, f'adjust_{name}'), factor))
  np.testing.assert_allclose(ours, expected, atol=ROUNDING)


@pytest.mark.parametrize('turn', [-0.5, -0.13, 0.0, 0.1, 0.37, 0.5])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_hue_is_torchvisions(channels, turn):
  image = colors(channels)
  image[0] = 0.4  # grey has no hue
  image[1] = np.eye(3)[:, :channels].repeat(2, 0)  # the corners of the cube
  ours = jitter(image, jnp.ones(3), turn, jnp.arange(3), 1)
  np.testing.assert_allclose(ours, theirs(image, (functional.adjust_hue, turn)), atol=1e-5)


def test_every_order_is_torchvisions():
  image = colors()
  amounts = dict(brightness=1.3, contrast=1.4, saturation=0.6, hue=0.1)
  names = list(amounts)
  found = []
  for order in itertools.permutations(names):
    numbers = jnp.asarray([names.index(name) for name in order if name != 'hue'])
    factors = jnp.asarray([amounts[name] for name in names[:3]])
    ours = jitter(image, factors, amounts['hue'], numbers, order.index('hue'))
    changes = [(getattr(functional, f'adjust_{name}'), amounts[name]) for name in order]
    # An early difference of rounding is multiplied by the later factors.
    np.testing.assert_allclose(ours, theirs(image, *changes), atol=2 * ROUNDING, err_msg=str(order))
    found.append(np.asarray(ours))
  differences = [np.abs(a - b).max() for a, b in itertools.combinations(found, 2)]
  assert np.median(differences) > 0.02  # so that a wrong order is seen


def test_weights_say_which_pixels_the_contrast_is_about():
  image = colors()
  weight = np.zeros((6, 6, 1), np.float32)
  weight[:3] = 1
  ours = jitter(image, jnp.asarray([1.0, 0.5, 1.0]), 0.0, jnp.arange(3), 3, weight)
  mean = (image[:3] @ np.array(adjust.LUMA)).mean()
  np.testing.assert_allclose(ours, 0.5 * image + 0.5 * mean, atol=1e-5)


def test_nothing_visible_has_no_nan():
  ours = jitter(colors(), jnp.asarray([1.0, 0.5, 1.0]), 0.1, jnp.arange(3), 3, jnp.zeros((6, 6, 1)))
  assert np.isfinite(ours).all()


def test_one_colour_keeps_its_contrast():
  image = np.broadcast_to(np.float32([0.2, 0.5, 0.7]), (4, 4, 3))
  ours = jitter(image, jnp.asarray([1.0, 0.0, 1.0]), 0.0, jnp.arange(3), 3)
  np.testing.assert_allclose(ours, image @ np.array(adjust.LUMA)[:, None] * np.ones(3), atol=1e-6)


def test_the_drawn_strengths_fill_their_range():
  """Of a grey image nothing but brightness is seen: its values are the factors."""
  images = jnp.full((2000, 1, 1, 3), 0.5)
  run = jax.jit(augment.compose('color_jitter(brightness=0.4)'))
  factors = np.asarray(run(KEY, images))[:, 0, 0, 0] / 0.5
  assert factors.min() >= 0.6 - 1e-6 and factors.max() <= 1.4 + 1e-6
  np.testing.assert_allclose(
    np.quantile(factors, [0.25, 0.5, 0.75]), [0.8, 1.0, 1.2], atol=4 * 0.8 * 0.5 / 2000**0.5
  )


def test_a_strength_above_one_does_not_draw_below_zero():
  images = jnp.full((500, 1, 1, 3), 0.25)
  out = np.asarray(jax.jit(augment.compose('color_jitter(1.5)'))(KEY, images)) / 0.25
  assert out.min() >= 0 and out.mean() == pytest.approx(1.25, abs=0.15)


def test_the_hue_is_turned_by_up_to_its_bound():
  red = jnp.zeros((2000, 1, 1, 3)).at[..., 0].set(1.0)
  out = np.asarray(jax.jit(augment.compose('color_jitter(hue=0.1)'))(KEY, red))[:, 0, 0]
  turns = (out[:, 1] - out[:, 2]) / 6  # within a sixth of red
  assert np.abs(turns).max() <= 0.1 + 1e-6
  np.testing.assert_allclose(np.quantile(turns, [0.25, 0.5, 0.75]), [-0.05, 0, 0.05], atol=0.01)


def test_all_orders_are_drawn_evenly():
  draws = 2400
  order, hue_at = jax.vmap(adjust.draw_order)(jax.random.split(KEY, draws))
  drawn = np.concatenate([order, hue_at[:, None]], 1)
  kinds, counts = np.unique(drawn, axis=0, return_counts=True)
  expected = {(*o, k) for o in itertools.permutations(range(3)) for k in range(4)}
  assert set(map(tuple, kinds.tolist())) == expected
  np.testing.assert_allclose(counts, draws / 24, atol=5 * (draws / 24) ** 0.5)


def test_images_of_one_batch_have_different_orders():
  """Strong contrast before or after strong brightness: both happen to one image, many times."""
  image = jnp.asarray(colors())
  rngs = jax.random.split(KEY, 64)

  @jax.jit
  @jax.vmap
  def both(rng):
    order, hue_at = adjust.draw_order(rng)
    return adjust.jitter(image, jnp.asarray([1.5, 0.5, 1.0]), 0.0, order, hue_at)

  first = jitter(image, jnp.asarray([1.5, 0.5, 1.0]), 0.0, jnp.arange(3), 3)
  second = jitter(image, jnp.asarray([1.5, 0.5, 1.0]), 0.0, jnp.asarray([1, 0, 2]), 3)
  out = np.asarray(both(rngs))
  is_first = np.abs(out - first).max((1, 2, 3)) < 1e-5
  is_second = np.abs(out - second).max((1, 2, 3)) < 1e-5
  assert (is_first ^ is_second).all() and 16 < is_first.sum() < 48

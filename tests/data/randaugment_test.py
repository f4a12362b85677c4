"""RandAugment: each operation against its plain definition, and the draw."""

import numpy as np
import pytest

from vit_jax import compose
from vit_jax.data import randaugment, transforms
from vit_jax.data.randaugment import OPERATIONS

RNG = np.random.default_rng
GEOMETRY = {'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'cutout'}


class Coin:
  """A generator whose coins fall on one side, and whose places are given."""

  def __init__(self, positive, places=()):
    self.value, self.places = 0.25 if positive else 0.75, list(places)

  def random(self):
    return self.value

  def integers(self, high):
    return self.places.pop(0)


def picture(h=24, w=31, channels=3, seed=0):
  """Values of 20 to 219, so that there is something to stretch."""
  rng = RNG(seed)
  smooth = np.add.outer(np.arange(h) * 2, np.arange(w) * 3)[..., None]
  return (20 + (smooth + rng.integers(0, 90, (h, w, channels))) % 200).astype(np.uint8)


def run(name, image, magnitude=10, rng=None):
  before = image.copy()
  out = OPERATIONS[name](image, magnitude / 10, RNG(0) if rng is None else rng)
  np.testing.assert_array_equal(image, before)  # nothing is changed in place
  assert out.dtype == np.uint8 and out.shape == image.shape, name
  return out


def test_the_sixteen_operations():
  assert set(OPERATIONS) == {
    'autocontrast', 'equalize', 'invert', 'rotate', 'posterize', 'solarize', 'solarize_add',
    'color', 'contrast', 'brightness', 'sharpness', 'shear_x', 'shear_y', 'translate_x',
    'translate_y', 'cutout',
  }  # fmt: skip


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('name', OPERATIONS)
def test_every_operation_keeps_shape_and_alpha_at_all_magnitudes(name, channels):
  for h, w in ((24, 31), (1, 1), (2, 40)):
    image = picture(h, w, channels)
    for magnitude in (0, 0.5, 5, 10, 17, 30):
      out = run(name, image, magnitude)
      if channels == 4 and name not in GEOMETRY:
        np.testing.assert_array_equal(out[..., 3], image[..., 3])
        np.testing.assert_array_equal(out[..., :3], run(name, image[..., :3], magnitude))
  # A view with odd strides, as `flip` makes them.
  flipped = image[:, ::-1]
  np.testing.assert_array_equal(run(name, flipped), run(name, flipped.copy()))


@pytest.mark.parametrize('name', ['rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y',
                                  'cutout', 'solarize_add'])  # fmt: skip
def test_nothing_happens_at_magnitude_0(name):
  np.testing.assert_array_equal(run(name, picture(), 0), picture())


def test_what_happens_at_magnitude_0_and_10():
  image = picture()
  np.testing.assert_array_equal(run('solarize', image, 0), 255 - image)
  np.testing.assert_array_equal(run('solarize', image, 10), image)
  np.testing.assert_array_equal(run('posterize', image, 0), np.zeros_like(image))
  np.testing.assert_array_equal(run('posterize', image, 10), image // 16 * 16)
  np.testing.assert_array_equal(run('posterize', image, 30), image)
  for name in ('autocontrast', 'equalize', 'invert'):
    np.testing.assert_array_equal(run(name, image, 0), run(name, image, 10))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('magnitude', [1, 3, 5, 9.9])
def test_tables_of_values(channels, magnitude):
  """Value by value, as they are defined."""
  image = picture(channels=channels)
  bits, threshold = int(0.4 * magnitude), int(25.6 * magnitude)
  add = int(11 * magnitude)
  loops = {
    'invert': lambda v: 255 - v,
    'posterize': lambda v: v >> (8 - bits) << (8 - bits),
    'solarize': lambda v: v if v < threshold else 255 - v,
    'solarize_add': lambda v: min(255, v + add) if v < 128 else v,
  }
  for name, loop in loops.items():
    want = np.array([loop(int(v)) for v in image.ravel()]).reshape(image.shape)
    np.testing.assert_array_equal(run(name, image, magnitude), want, err_msg=name)


@pytest.mark.parametrize('channels', [1, 3])
def test_autocontrast_stretches_each_channel(channels):
  image = picture(channels=channels)
  image[..., -1] //= 3
  low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
  out = run('autocontrast', image)
  np.testing.assert_allclose(out, (image - low) * 255 / (high - low), atol=1.01)
  assert (out.min((0, 1)) == 0).all() and (out.max((0, 1)) >= 254).all()  # Pillow cuts decimals off
  flat = np.full((5, 5, channels), 77, np.uint8)
  np.testing.assert_array_equal(run('autocontrast', flat), flat)


@pytest.mark.parametrize('channels', [1, 3])
def test_equalize_makes_the_cumulative_histogram_straight(channels):
  image = picture(64, 64, channels)
  image[:30] //= 2
  out = run('equalize', image)
  for c in range(channels):
    before, after = image[..., c].ravel(), out[..., c].ravel()
    # The new value is the share of pixels that are darker, and equal ones stay equal.
    share = np.array([(before < v).mean() for v in range(257)])
    np.testing.assert_allclose(after, 255 * share[before], atol=6)
    assert len(set(zip(before.tolist(), after.tolist(), strict=True))) == len(set(before.tolist()))
  flat = np.full((5, 5, channels), 77, np.uint8)
  np.testing.assert_array_equal(run('equalize', flat), flat)


def test_enhancements_extrapolate_from_their_dull_version():
  image = picture().astype(float)
  grey = np.repeat((image @ (0.299, 0.587, 0.114))[..., None], 3, -1)
  dull = {
    'brightness': np.zeros_like(image),
    'contrast': np.full_like(image, np.round(grey.mean())),
    'color': grey,
  }
  for magnitude in (0, 3, 5, 10):
    factor = 0.1 + 0.18 * magnitude
    for name, base in dull.items():
      want = np.clip(base + factor * (image - base), 0, 255)
      out = run(name, image.astype(np.uint8), magnitude)
      np.testing.assert_allclose(out, want, atol=1.01 + abs(1 - factor), err_msg=name)
    np.testing.assert_array_equal(run('color', picture(channels=1), magnitude), picture(channels=1))
  np.testing.assert_array_equal(run('brightness', picture(), 5), picture())  # a factor of 1


def test_sharpness_blurs_below_5_and_sharpens_above():
  def roughness(image):
    return np.abs(np.diff(image.astype(float), axis=1)).mean()

  image = picture()
  assert roughness(run('sharpness', image, 0)) < 0.7 * roughness(image)
  assert roughness(run('sharpness', image, 10)) > 1.2 * roughness(image)
  np.testing.assert_array_equal(run('sharpness', image, 10)[0], image[0])  # the border stays


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_translations_are_whole_pixels_of_either_sign(channels):
  image = picture(56, 112, channels)
  fill = randaugment.FILL[channels]
  for name, axis, shift in (('translate_x', 1, 50), ('translate_y', 0, 25)):
    for positive in (True, False):
      want = np.roll(image, -shift if positive else shift, axis)
      edge = slice(-shift, None) if positive else slice(None, shift)
      want[(slice(None),) * axis + (edge,)] = fill
      np.testing.assert_array_equal(run(name, image, 10, Coin(positive)), want)
  # At the published size the published distance.
  moved = run('translate_x', picture(224, 224), 10, Coin(True))
  np.testing.assert_array_equal(moved[:, :124], picture(224, 224)[:, 100:])


@pytest.mark.parametrize('positive', [True, False])
def test_shear_moves_each_line_by_its_distance(positive):
  image = picture(40, 40)
  slope = 0.3 if positive else -0.3
  out = run('shear_x', image, 10, Coin(positive))
  for y in range(40):
    source = np.floor(np.arange(40) + 0.5 + slope * (y + 0.5)).astype(int)
    inside = (source >= 0) & (source < 40)
    np.testing.assert_array_equal(out[y, inside], image[y, source[inside]])
    assert (out[y, ~inside] == 128).all()
  other = run('shear_y', image.transpose(1, 0, 2), 10, Coin(positive))
  np.testing.assert_array_equal(other, out.transpose(1, 0, 2))


def test_rotation_is_about_the_centre():
  y, x = np.mgrid[:41, :41] - 20.0
  dot = ((x - 12) ** 2 + y**2 < 9).astype(np.uint8)[..., None] * 255
  for positive in (True, False):
    out = run('rotate', dot, 10, Coin(positive))[..., 0] == 255
    angle = np.degrees(np.arctan2(y[out].mean(), x[out].mean()))
    assert abs(angle - (-30 if positive else 30)) < 3
    assert abs(np.hypot(y[out].mean(), x[out].mean()) - 12) < 0.6
  corner = run('rotate', picture(), 10)[0, 0]
  np.testing.assert_array_equal(corner, [128, 128, 128])
  assert run('rotate', picture(channels=4), 10)[0, 0, 3] == 0  # uncovered is transparent


def test_cutout_covers_a_box_about_a_pixel():
  image = np.zeros((224, 224, 3), np.uint8)
  covered = run('cutout', image, 10, Coin(True, [100, 50])) == 128
  assert covered[60:140, 10:90].all() and covered.sum() == 3 * 80 * 80
  covered = run('cutout', image, 10, Coin(True, [0, 223])) == 128
  assert covered[:40, 183:].all() and covered.sum() == 3 * 40 * 41
  small = run('cutout', np.zeros((32, 32, 1), np.uint8), 10, Coin(True, [16, 16]))
  assert (small == 128).sum() == 12 * 12


def test_each_operation_is_drawn_equally_often(monkeypatch):
  counts = dict.fromkeys(OPERATIONS, 0)

  def count(name):
    def apply(image, strength, rng):
      counts[name] += 1
      assert strength == 0.7
      return image

    return apply

  monkeypatch.setattr(randaugment, 'OPERATIONS', {name: count(name) for name in OPERATIONS})
  rng, image = RNG(0), picture()
  for _ in range(4000):
    randaugment.augment_image(image, rng, num_layers=2, magnitude=7)
  assert sum(counts.values()) == 8000
  # 500 expected of each, with a standard deviation of 22.
  assert min(counts.values()) > 410 and max(counts.values()) < 590


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_the_image_depends_on_the_seed_alone(channels):
  (transform,) = compose.build('randaugment(2, 10)', transforms)
  image = picture(channels=channels)
  drawn = [transform({'image': image}, RNG(seed))['image'] for seed in range(20)]
  again = [transform({'image': image}, RNG(seed))['image'] for seed in range(20)]
  for a, b in zip(drawn, again, strict=True):
    np.testing.assert_array_equal(a, b)
  assert len({a.tobytes() for a in drawn}) > 14

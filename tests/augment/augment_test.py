"""What every operation promises, whichever it is, and the composition of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import augment
from vit_jax import compose as composition

KEY = jax.random.key(7)
# Each operation at a strength that changes something.
STRONG = {
  'affine': 'affine(scale=(0.6, 1.2), aspect=1.3, rotate=15, shear=0.1, shift=0.1, flip=0.5)',
  'background': 'background(p=1)',
  'blur': 'blur(p=1)',
  'color_distort': 'color_distort(0.5, p=1)',
  'color_jitter': 'color_jitter(0.4, 0.4, 0.4, 0.1)',
  'cutout': 'cutout(0.25, p=1)',
  'erase': 'erase(p=1)',
  'flip': 'flip(p=1)',
  'grayscale': 'grayscale(p=1)',
  'hue': 'hue(p=1)',
  'invert': 'invert(p=1)',
  'lightness': 'lightness',
  'maybe': "maybe('noise(0.1) | invert(p=1)', p=1)",
  'noise': 'noise(0.1)',
  'outline': 'outline(p=1)',
  'random_resized_crop': 'random_resized_crop(min_area=0.3)',
  'rotate90': 'rotate90(p=1)',
  'sketch': 'sketch(p=1)',
  'sobel': 'sobel(p=1)',
  'solarize': 'solarize(p=1)',
  'standardize': 'standardize',
  'stencil': 'stencil(p=1)',
}
FIXED = ('flip', 'grayscale', 'invert', 'lightness', 'sobel', 'solarize', 'standardize')
COVERS = ('cutout', 'erase')  # of RGBA they change the alpha alone
LAST = ('background', 'standardize')  # One changes the shape, the other the range.
ALL = ' | '.join(STRONG[name] for name in STRONG if name not in LAST) + ' | background(p=0.5)'


def images(batch: int = 3, channels: int = 4) -> jnp.ndarray:
  return jnp.asarray(np.random.default_rng(0).random((batch, 16, 16, channels), np.float32))


def test_the_table_names_every_operation():
  assert sorted(STRONG) == sorted(augment.__all__)


@pytest.mark.parametrize('name', sorted(STRONG))
def test_operation(name):
  """Shape, dtype and range are kept, the key alone decides, and something happens."""
  run = jax.jit(augment.compose(STRONG[name]))
  x = images()
  out = run(KEY, x)
  assert out.shape == (x.shape if name != 'background' else (*x.shape[:-1], 3))
  assert bool(jnp.isfinite(out).all())
  if name != 'standardize':
    assert float(out.min()) >= 0 and float(out.max()) <= 1
  np.testing.assert_array_equal(out, run(KEY, x))
  assert np.abs(np.asarray(out)[..., :3] - np.asarray(x)[..., :3]).max() > 0.01 or name in COVERS
  if name not in FIXED:
    assert np.abs(np.asarray(run(jax.random.key(8), x)) - np.asarray(out)).max() > 0.001

  half = run(KEY, x.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  assert float(jnp.abs(half.astype(jnp.float32) - out).mean()) < 0.03


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_probability_zero_is_the_identity(channels):
  chance = [name for name in augment.__all__ if name != 'standardize']
  names = [name for name in chance if name != 'background' or channels != 4]
  calls = {
    'color_distort': 'color_distort(p=0, gray=0)',
    'maybe': "maybe('invert(p=1)', p=0)",
  }
  text = ' | '.join(calls.get(name, f'{name}(p=0)') for name in names)
  x = images(channels=channels)
  np.testing.assert_array_equal(jax.jit(augment.compose(text))(KEY, x), x)


def test_a_batch_is_its_images_one_by_one():
  x = images(4)
  run = augment.compose(ALL)
  together = jax.jit(run)(KEY, x)
  operations = composition.build(ALL, augment)

  @jax.jit
  def alone(key, image):
    for k, operation in enumerate(operations):
      image = operation(jax.random.fold_in(key, k), image)
    return image

  for i, key in enumerate(jax.random.split(KEY, 4)):
    np.testing.assert_allclose(together[i], alone(key, x[i]), atol=1e-4)


def test_maybe_applies_all_of_its_chain_or_nothing():
  x = jnp.full((1000, 2, 2, 3), 0.25)
  out = np.asarray(jax.jit(augment.compose("maybe('invert(p=1) | noise(0.01)', p=0.3)"))(KEY, x))
  changed = (out != 0.25).any((1, 2, 3))
  assert abs(changed.mean() - 0.3) < 0.06
  assert (np.abs(out[changed] - 0.75) < 0.1).all() and (out[changed] != 0.75).all((1, 2, 3)).any()


def test_operations_of_a_maybe_keep_their_probabilities():
  x = jnp.full((1000, 2, 2, 3), 0.25)
  out = np.asarray(jax.jit(augment.compose("maybe('invert(p=0.5)', p=0.5)"))(KEY, x))
  assert abs((out == 0.75).all((1, 2, 3)).mean() - 0.25) < 0.06


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ("maybe('flop')", r"unknown transform 'flop' in 'flop'; choose from 'affine'"),
    ("maybe('flip', p=2)", r'probability p=2 is outside \[0, 1\]'),
    ('maybe(3)', "transforms are a string such as 'decode | flip', not 3"),
  ],
)
def test_mistakes_in_maybe_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    augment.compose(text)


def test_maybe_refuses_another_shape():
  with pytest.raises(ValueError, match=r'\[16, 16, 4\] into \[16, 16, 3\]; choose operations'):
    augment.compose("maybe('background(p=0)')")(KEY, images())


def test_nothing_is_the_identity():
  x = images()
  assert augment.compose('')(KEY, x) is x


def test_an_unknown_operation_lists_the_choices():
  with pytest.raises(ValueError, match=r"unknown transform 'flop'.*'affine'.*'stencil'"):
    augment.compose('flop')


def testcomposition_is_no_operation():
  with pytest.raises(ValueError, match='unknown transform'):
    augment.compose('compose(1)')


def test_wrong_arguments_are_refused_with_the_signature():
  with pytest.raises(ValueError, match='affine'):
    augment.compose('affine(size=3)')


def test_it_runs_inside_a_gradient():
  def loss(scale):
    return augment.compose(ALL)(KEY, images() * scale).mean()

  assert np.isfinite(jax.jit(jax.grad(loss))(0.9))

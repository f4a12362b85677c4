"""Mixtures say in their targets what they did to the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.augment import mix

B = 512
IMAGES = np.random.default_rng(0).random((B, 8, 12, 3), np.float32)
EYE = np.eye(B, dtype=np.float32)  # each example is a class of its own


def run(text: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Images, and for each the share that it kept; the rest is the next example's."""
  images, targets = jax.jit(mix.compose(text))(jax.random.key(seed), IMAGES, EYE)
  targets = np.asarray(targets)
  share = np.diagonal(targets)
  np.testing.assert_allclose(
    targets, share[:, None] * EYE + (1 - share)[:, None] * np.roll(EYE, -1, 0), atol=1e-6
  )
  return np.asarray(images), share


def test_mixup_blends_as_its_targets_say():
  images, share = run('mixup(0.4)')
  for i in range(B):
    expected = share[i] * IMAGES[i] + (1 - share[i]) * IMAGES[(i + 1) % B]
    np.testing.assert_allclose(images[i], expected, atol=1e-6)


def test_cutmix_pastes_one_box_of_the_area_that_its_targets_say():
  images, share = run('cutmix')
  boxes = 0
  for i in range(B):
    pasted = (images[i] != IMAGES[i]).all(-1)  # [H, W]
    np.testing.assert_array_equal(images[i][pasted], IMAGES[(i + 1) % B][pasted])
    np.testing.assert_array_equal(images[i][~pasted], IMAGES[i][~pasted])
    assert share[i] == pytest.approx(1 - pasted.mean(), abs=1e-6)
    rows, columns = pasted.any(1), pasted.any(0)
    np.testing.assert_array_equal(pasted, rows[:, None] & columns)
    for side in (rows, columns):  # in one piece
      assert np.abs(np.diff(side.astype(int), prepend=0, append=0)).sum() in (0, 2)
    boxes += pasted.any()
  assert boxes > 0.9 * B


@pytest.mark.parametrize('alpha', [0.2, 1.0, 5.0])
def test_shares_are_of_the_beta_distribution(alpha):
  share = np.concatenate([run(f'mixup({alpha})', seed)[1] for seed in range(8)])
  # Moments of Beta(a, a), to four standard errors of 4,096 draws.
  variance = 1 / (4 * (2 * alpha + 1))
  assert share.mean() == pytest.approx(0.5, abs=4 * (variance / len(share)) ** 0.5)
  assert share.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize('name', mix.__all__)
def test_the_probability_is_kept(name):
  images, share = run(f'{name}(p=0.3)')
  alone = share == 1
  assert 0.6 < alone.mean() < 0.8
  np.testing.assert_array_equal(images[alone], IMAGES[alone])
  images, share = run(f'{name}(p=0)')
  np.testing.assert_array_equal(images, IMAGES)


def test_one_after_the_other():
  images, targets = mix.compose('mixup | cutmix')(jax.random.key(0), IMAGES, EYE)
  assert images.shape == IMAGES.shape
  np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
  assert int((targets > 0).sum(1).max()) == 3  # an example, its partner, and the partner's
  same = mix.compose('')(jax.random.key(0), jnp.asarray(IMAGES), EYE)[0]
  np.testing.assert_array_equal(same, IMAGES)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('mixup(0)', 'alpha=0 is not positive'),
    ('cutmix(p=2)', r'probability p=2 is outside \[0, 1\]'),
    ('blend', r"unknown transform 'blend'.*choose from 'cutmix', 'mixup'"),
  ],
)
def test_mistakes_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    mix.compose(text)

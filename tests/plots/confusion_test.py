"""The confusion matrix: what is right is the darkest, and rows are normalised."""

import numpy as np
import pytest
from matplotlib import colormaps

from vit_jax.plots.confusion import confusion

DARK = (np.array(colormaps['Blues'](1.0)[:3]) * 255).round().astype(np.uint8)
LIGHT = (np.array(colormaps['Blues'](0.0)[:3]) * 255).round().astype(np.uint8)


def area(picture, color):
  return int((np.abs(picture.astype(int) - color).max(-1) <= 1).sum())


def test_a_perfect_classifier_has_a_dark_diagonal():
  counts = np.diag([3, 50, 700, 9])
  picture = confusion(counts, ['a', 'b', 'c', 'd'], title='perfect')
  assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
  # Whatever the counts, 4 cells of 16 are at 100 %; what is written in them takes some pixels.
  assert 0.55 * 4 * 62**2 < area(picture, DARK) < 4 * 62**2 + 100
  assert 0.95 * 12 * 62**2 < area(picture, LIGHT) < 12 * 62**2 + 600
  ys, xs = np.nonzero(np.abs(picture.astype(int) - DARK).max(-1) <= 1)
  assert np.corrcoef(ys, xs)[0, 1] > 0.8  # from the top left to the bottom right
  flipped = confusion(counts[::-1], ['a', 'b', 'c', 'd'], title='perfect')
  ys, xs = np.nonzero(np.abs(flipped.astype(int) - DARK).max(-1) <= 1)
  assert np.corrcoef(ys, xs)[0, 1] < -0.8


def test_a_class_without_examples():
  picture = confusion(np.array([[4, 0], [0, 0]]))
  assert 0.5 * 62**2 < area(picture, DARK) < 62**2 + 100


@pytest.mark.parametrize('classes', [2, 12, 20, 95, 150])
def test_sizes(classes):
  counts = np.random.default_rng(0).integers(0, 9, (classes, classes))
  picture = confusion(counts, [f'a class called {i}' for i in range(classes)])
  assert min(picture.shape[:2]) > 100 and max(picture.shape[:2]) < 2200
  other = confusion(counts.T, [f'a class called {i}' for i in range(classes)])
  assert other.shape == picture.shape and (other != picture).any()


def test_mistakes():
  with pytest.raises(ValueError, match=r'square, not of shape \(2, 3\)'):
    confusion(np.zeros((2, 3)))
  with pytest.raises(ValueError, match='2 classes have 3 names'):
    confusion(np.zeros((2, 2)), ['a', 'b', 'c'])

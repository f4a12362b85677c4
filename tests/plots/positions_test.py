"""The similarity of position embeddings: 1 with itself, NumPy's cosine with the others."""

import numpy as np
import pytest
from matplotlib import colormaps

from vit_jax.models.positions import sincos2d
from vit_jax.plots import positions

TOP = (np.array(colormaps['viridis'](1.0)[:3]) * 255).round().astype(int)


def test_similarity_equals_numpy():
  embedding = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
  embedding[3] = 0
  found = positions.similarity(embedding)
  for i in range(12):
    for j in range(12):
      norm = np.linalg.norm(embedding[i]) * np.linalg.norm(embedding[j])
      want = embedding[i] @ embedding[j] / norm if norm else 0.0
      assert found[i, j] == pytest.approx(want, abs=1e-6)


def test_each_tile_is_brightest_at_its_own_place():
  embedding = np.eye(16)  # similar to nothing but itself
  picture = positions.positions(embedding, (4, 4)).astype(int)
  bright = (np.abs(picture - TOP).max(-1) <= 2)[:, :-99]  # without the colour bar
  factor = round(560 / 16)
  assert bright.sum() == pytest.approx(16 * factor**2, rel=0.05)
  ys, xs = np.nonzero(bright)
  # From the first patch of the first tile to the last of the last one.
  assert ys.max() - ys.min() == pytest.approx(15 * factor + factor + 9, abs=3)
  assert xs.max() - xs.min() == pytest.approx(15 * factor + factor + 9, abs=3)


@pytest.mark.parametrize('grid', [(4, 4), (8, 6), (14, 14), (24, 24)])
def test_sizes(grid):
  picture = positions.positions(sincos2d(*grid, 32), grid)
  assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
  assert min(picture.shape[:2]) > 300 and max(picture.shape[:2]) < 1200
  other = np.random.default_rng(0).normal(size=(grid[0] * grid[1], 8))
  assert (positions.positions(other, grid)[:300, :300] != picture[:300, :300]).any()


def test_another_number_of_positions():
  with pytest.raises(ValueError, match='a grid of 4 x 5 has 21 position embeddings'):
    positions.positions(np.zeros((21, 8)), (4, 5))

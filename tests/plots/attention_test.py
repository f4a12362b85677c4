"""Rollout equals NumPy's product of matrices; masks and distances equal their definitions."""

import jax
import numpy as np
import pytest

from vit_jax.data.emoji import Emoji
from vit_jax.plots import attention


def random_weights(depth, batch, heads, length, seed=0):
  logits = 3 * np.random.default_rng(seed).normal(size=(depth, batch, heads, length, length))
  weights = np.exp(logits)
  return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def rollout_matrix(weights):
  """The rollout of one example as the paper writes it: weights [depth, heads, L, L] -> [L, L]."""
  product = np.eye(weights.shape[-1])
  for block in weights.astype(np.float64):
    mixed = 0.5 * block.mean(0) + 0.5 * np.eye(len(product))
    product = (mixed / mixed.sum(1, keepdims=True)) @ product
  return product


@pytest.mark.parametrize('compiled', [False, True])
def test_rollout_equals_numpy(compiled):
  weights = random_weights(6, 3, 4, 17)
  function = jax.jit(attention.rollout) if compiled else attention.rollout
  token = function(list(weights), np.eye(17)[0])
  start = np.zeros(17)
  start[1:] = 1 / 16
  mean = function(list(weights), start)
  for i in range(3):
    want = rollout_matrix(weights[:, i])
    np.testing.assert_allclose(token[i], want[0], atol=1e-6)
    np.testing.assert_allclose(mean[i], want[1:].mean(0), atol=1e-6)
  assert token.dtype == np.float32 and token.shape == (3, 17)


def test_rollout_takes_the_blocks_in_order():
  weights = random_weights(2, 1, 1, 5)
  start = np.eye(5)[0]
  forward = attention.rollout(list(weights), start)
  backward = attention.rollout(list(weights[::-1]), start)
  assert np.abs(forward - backward).max() > 1e-2


def test_rollout_of_identity_stays_where_it_is():
  weights = [np.broadcast_to(np.eye(5, dtype=np.float32), (2, 3, 5, 5))] * 4
  np.testing.assert_array_equal(attention.rollout(weights, np.eye(5)[2]), [np.eye(5)[2]] * 2)


def test_distance():
  grid = (3, 4)
  weights = random_weights(1, 2, 3, 12)[0]
  found = attention.distance(0.5 * weights, grid)  # rows are normalised again
  places = np.array([(y, x) for y in range(3) for x in range(4)])
  for b in range(2):
    for head in range(3):
      want = np.mean(
        [
          sum(w * np.linalg.norm(p - q) for w, q in zip(row, places, strict=True))
          for row, p in zip(weights[b, head], places, strict=True)
        ]
      )
      assert found[b, head] == pytest.approx(want, rel=1e-5)
  itself = np.eye(12)[None, None]
  assert attention.distance(itself, grid) == 0


def test_a_mask_is_averaged_over_the_patches():
  mask = Emoji('test').mask(5)
  want = mask.reshape(4, 8, 8, 4).mean((1, 3))
  np.testing.assert_allclose(attention.to_grid(mask, (4, 8)), want, rtol=1e-6)
  # Also where a border cuts a pixel: the area is kept.
  cut = attention.to_grid(mask, (5, 7))
  assert cut.shape == (5, 7) and cut.mean() == pytest.approx(mask.mean())
  corner = np.zeros((3, 3))
  corner[0, 0] = 1
  np.testing.assert_allclose(attention.to_grid(corner, (2, 2)), [[4 / 9, 0], [0, 0]])


def test_heat_is_brighter_where_the_rollout_is_larger():
  image = Emoji('test')[5]['image']
  heat = np.zeros((4, 4))
  heat[0, 3] = 0.25
  picture = attention.overlay(np.full_like(image, 128), heat)
  assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
  light = picture.astype(int).sum(-1)
  assert light[:24, 72:].mean() > 2 * light[48:, :48].mean()
  np.testing.assert_array_equal(picture, attention.overlay(np.full_like(image, 128), 3 * heat))


def test_images_beside_their_heat():
  source = Emoji('test', alpha=True)
  pictures = [source[i]['image'] for i in range(5)]
  heats = [np.random.default_rng(i).random((4, 4)) for i in range(5)]
  first = attention.beside(pictures, heats, ['a'] * 5, columns=3, title='Rollout')
  assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
  second = attention.beside(pictures, heats[::-1], ['a'] * 5, columns=3, title='Rollout')
  assert first.shape == second.shape and (first != second).any()


def test_distances_by_depth():
  rng = np.random.default_rng(0)
  mean = rng.random((6, 3)) * 16
  picture = attention.distances(mean)
  assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
  assert (attention.distances(mean[::-1]) != picture).any()
  assert attention.distances(rng.random((24, 16))).shape == picture.shape

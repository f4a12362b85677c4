"""Bins of colour against loops over them."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from vit_jax.augment import lab
from vit_jax.objectives import color_bins

BINS = color_bins.centers().astype(np.float64)
Q = len(BINS)


def colours(count=60):
  """a and b of random sRGB colours, of all corners of the cube and of some greys."""
  rng = np.random.default_rng(0)
  corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
  greys = np.full((3, 3), 1) * np.array([[0.2], [0.5], [0.7]])
  rgb = np.concatenate([rng.random((count, 3)), corners, greys])
  return np.asarray(lab.rgb_to_lab(jnp.asarray(rgb, jnp.float32)))[:, 1:]


def shares_of(ab, count, sigma):
  """The soft encoding of one colour: Section 2.1 of arXiv:1603.08511 in a loop."""
  distance = [np.hypot(ab[0] - a, ab[1] - b) for a, b in BINS]
  shares = np.zeros(Q)
  for q in np.argsort(distance, kind='stable')[:count]:
    shares[q] = np.exp(-(distance[q] ** 2) / (2 * sigma**2))
  return shares / shares.sum()


def test_bins_are_those_that_some_colour_of_8_bits_is_nearest_to():
  color = pytest.importorskip('skimage.color')
  levels = np.linspace(0, 1, 52)
  rgb = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1)
  seen = np.unique(np.rint(color.rgb2lab(rgb)[..., 1:] / 10).reshape(-1, 2), axis=0) * 10
  ours = {tuple(center) for center in BINS}
  assert {tuple(center) for center in seen} <= ours
  assert Q == 261  # the full cube of 8 bits has as many; of these coarser levels 1 or 2 fewer
  assert len(seen) >= Q - 2
  assert (0, 0) in ours


@pytest.mark.parametrize(('count', 'sigma'), [(1, 5.0), (5, 5.0), (8, 12.0)])
def test_soft_encoding_is_the_loop_over_all_bins(count, sigma):
  # Off the grid too, and outside of the gamut, as means of colours may be.
  rng = np.random.default_rng(1)
  ab = np.concatenate([colours(), rng.uniform(-119, 119, (40, 2))]).astype(np.float32)
  index, share = color_bins.neighbors(jnp.asarray(ab), count, sigma)
  made = np.asarray(color_bins.dense(index, share))
  for colour, encoded in zip(ab, made, strict=True):
    np.testing.assert_allclose(encoded, shares_of(colour, count, sigma), atol=2e-4)
  distance = np.linalg.norm(ab[:, None] - BINS, axis=-1)
  nearest = distance[np.arange(len(ab)), np.asarray(index)[:, 0]]
  np.testing.assert_allclose(nearest, distance.min(axis=1), atol=1e-4)


def test_what_is_encoded_decodes_to_the_colour():
  ab = colours()
  index, share = color_bins.neighbors(jnp.asarray(ab), 5, 5.0)
  logits = jnp.log(color_bins.dense(index, share) + 1e-30)
  # The nearest centre is at most half of a bin's diagonal away, and the mean is nearer.
  mode = color_bins.annealed_mean(logits, 1e-3)
  assert np.abs(mode - ab).max() <= 5 + 1e-3
  mean = np.asarray(color_bins.annealed_mean(logits, 1.0))
  assert np.linalg.norm(mean - ab, axis=1).mean() < 0.5 * np.linalg.norm(mode - ab, axis=1).mean()


def test_cross_entropy_is_that_of_the_dense_distributions():
  ab = colours(20)
  logits = np.random.default_rng(2).normal(size=(len(ab), Q)).astype(np.float32)
  index, share = color_bins.neighbors(jnp.asarray(ab), 5, 5.0)
  made = color_bins.cross_entropy(jnp.asarray(logits), index, share)
  chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  for i, colour in enumerate(ab):
    target = shares_of(colour, 5, 5.0)
    np.testing.assert_allclose(made[i], entropy(target) + entropy(target, chance[i]), rtol=1e-4)


def test_rebalancing_is_eq_4_in_loops():
  prior = np.random.default_rng(3).dirichlet(np.full(Q, 0.1))
  smooth = np.zeros(Q)
  for q in range(Q):
    heights = [np.exp(-((BINS[p] - BINS[q]) ** 2).sum() / (2 * 5.0**2)) for p in range(Q)]
    smooth[q] = sum(h * p for h, p in zip(heights, prior, strict=True)) / sum(heights)
  smooth /= smooth.sum()
  weight = [1 / ((1 - 0.5) * smooth[q] + 0.5 / Q) for q in range(Q)]
  weight /= sum(w * p for w, p in zip(weight, smooth, strict=True))
  made = color_bins.rebalance(jnp.asarray(prior, jnp.float32), 0.5, 5.0)
  np.testing.assert_allclose(made, weight, rtol=1e-4)
  counts = jnp.asarray(prior * 1000, jnp.float32)
  np.testing.assert_allclose(color_bins.rebalance(counts, 0.5, 5.0), weight, rtol=1e-4)


def test_weights_are_equal_for_a_flat_histogram_or_by_lambda_1():
  np.testing.assert_allclose(color_bins.rebalance(jnp.full(Q, 1 / Q), 0.5), 1, rtol=1e-5)
  np.testing.assert_allclose(color_bins.rebalance(jnp.arange(1.0, Q + 1), 1.0), 1, rtol=1e-5)


def test_annealed_mean_is_eq_5_from_the_mode_to_the_mean():
  logits = np.random.default_rng(4).normal(size=(6, Q)).astype(np.float32) * 3
  for temperature in (1.0, 0.38):
    made = color_bins.annealed_mean(jnp.asarray(logits), temperature)
    chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for i in range(len(logits)):
      powers = [np.exp(np.log(z) / temperature) for z in chance[i].astype(np.float64)]
      expected = sum(p * center for p, center in zip(powers, BINS, strict=True)) / sum(powers)
      np.testing.assert_allclose(made[i], expected, atol=1e-3)
  mode = color_bins.annealed_mean(jnp.asarray(logits), 1e-3)
  np.testing.assert_allclose(mode, BINS[logits.argmax(-1)], atol=1e-3)


def test_histogram_and_the_most_likely_bin():
  rng = np.random.default_rng(5)
  index = rng.integers(0, Q, (3, 4, 5))
  expected = np.bincount(index.ravel(), minlength=Q) / index.size
  np.testing.assert_allclose(color_bins.histogram(jnp.asarray(index)), expected, rtol=1e-5)
  logits = rng.normal(size=(50, Q))
  best = logits.argmax(-1)
  guess = np.where(rng.random(50) < 0.5, best, rng.integers(0, Q, 50))
  made = color_bins.is_most_likely(jnp.asarray(logits), jnp.asarray(guess))
  np.testing.assert_array_equal(made, best == guess)
  # Logits that are all equal say nothing.
  assert not color_bins.is_most_likely(jnp.zeros((3, Q)), jnp.arange(3)).any()

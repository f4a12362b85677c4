import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives import diagnostics

pytestmark = pytest.mark.smoke


def normal(*shape, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('views', [2, 3])
def test_alignment_is_the_mean_over_pairs_of_views(views):
  z = normal(5, views, 7)
  pairs = [(a, b) for a in range(views) for b in range(a)]
  distances = [((unit(z)[:, a] - unit(z)[:, b]) ** 2).sum(-1) for a, b in pairs]
  np.testing.assert_allclose(diagnostics.alignment(z), np.mean(distances, 0), rtol=1e-5)


def test_alignment_of_known_views():
  x = normal(4, 1, 6)
  np.testing.assert_allclose(diagnostics.alignment(np.tile(x, (1, 2, 1))), 0, atol=1e-6)
  np.testing.assert_allclose(diagnostics.alignment(np.concatenate([x, -x], 1)), 4, rtol=1e-6)


def test_spread_equals_the_definitions():
  z = normal(40, 9)
  found = diagnostics.spread(z)
  u = unit(z).astype(float)
  pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(u) for b in u[:i]]
  np.testing.assert_allclose(found['uniformity'], np.log(np.mean(pairs)), rtol=1e-5)
  np.testing.assert_allclose(found['feature_std'], u.std(0).mean() * 3, rtol=1e-5)
  values = np.linalg.svd(z - z.mean(0), compute_uv=False)
  shares = values / values.sum()
  rank = np.exp(-(shares * np.log(shares)).sum())
  np.testing.assert_allclose(found['effective_rank'], rank, rtol=1e-4)


@pytest.mark.parametrize('shape', [(30, 8), (6, 20)])
def test_effective_rank_counts_directions(shape):
  count, dim = shape
  for rank in (1, 3):
    x = np.linalg.qr(normal(count, rank))[0]
    x = np.linalg.qr(x - x.mean(0))[0]  # Orthogonal and centred: all singular values are 1.
    x = x @ np.linalg.qr(normal(dim, rank, seed=1))[0].T
    assert float(diagnostics.effective_rank(x)) == pytest.approx(rank, rel=1e-3)


def test_collapse_shows():
  collapsed = diagnostics.spread(jnp.ones((32, 8)))
  assert float(collapsed['feature_std']) == pytest.approx(0, abs=1e-6)
  assert float(collapsed['effective_rank']) == pytest.approx(1)
  assert float(collapsed['uniformity']) == pytest.approx(0, abs=1e-5)
  whole = diagnostics.spread(normal(512, 8))
  assert float(whole['feature_std']) == pytest.approx(1, abs=0.05)
  assert float(whole['effective_rank']) > 7.9
  assert float(whole['uniformity']) < -2.5


def test_a_large_batch_is_sampled():
  z = normal(4 * diagnostics.SAMPLE, 4)
  for name, value in diagnostics.spread(z[::4]).items():
    np.testing.assert_allclose(diagnostics.spread(z)[name], value, rtol=1e-6)


@pytest.mark.parametrize('z', [np.zeros((4, 3)), np.ones((1, 3)), normal(3, 5)])
def test_finite_and_without_gradient(z):
  def total(z):
    return sum(diagnostics.spread(z).values())

  value, grad = jax.value_and_grad(total)(jnp.asarray(z, jnp.float32))
  assert np.isfinite(value)
  assert not grad.any()

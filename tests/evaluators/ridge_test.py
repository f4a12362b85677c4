"""Least squares: scikit-learn's solution, and the normal equations, in both forms."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference

from vit_jax.evaluators.ridge import BIAS, Ridge


def problem(n, d, k, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(n) % k)
  features = rng.normal(size=(k, d))[labels] + 2 * rng.normal(size=(n, d))
  return (features * rng.uniform(0.1, 9, d) + 5).astype(np.float32), labels


@pytest.mark.parametrize('n, d', [(40, 7), (7, 40), (20, 19), (19, 20)])
@pytest.mark.parametrize('l2', [0.1, 1.0, 2.0**10])
def test_equals_the_normal_equations_and_scikit_learn(n, d, l2):
  features, labels = problem(n, d, 3)
  made = Ridge(features, labels, 3)
  x = features.astype(np.float64)
  x = (x - x.mean(0)) / (x.std(0) + 1e-5)
  np.testing.assert_allclose((made.mean, made.std), (features.mean(0), features.std(0)), rtol=1e-3)
  x = np.concatenate([x, np.full((n, 1), 100.0)], axis=1)
  y = 2 * np.eye(3)[labels] - 1
  want = np.linalg.solve(x.T @ x + l2 * np.eye(d + 1), x.T @ y)
  np.testing.assert_allclose(made.weights(l2), want, rtol=1e-7, atol=1e-10)
  peer = Reference(alpha=l2, fit_intercept=False, solver='svd').fit(x, y)
  np.testing.assert_allclose(made.weights(l2), peer.coef_.T, rtol=1e-7, atol=1e-10)
  # The gradient of |X W - Y|^2 + l2 |W|^2 is zero.
  w = made.weights(l2)
  np.testing.assert_allclose(x.T @ (x @ w - y) + l2 * w, 0, atol=1e-6)


def test_the_bias_is_hardly_regularised():
  features, labels = problem(300, 5, 2)
  labels = (labels * (np.arange(300) % 3 == 0)).astype(int)  # one class has a sixth
  w = Ridge(features, labels, 2).weights(2.0**10)
  mean = 1 - 2 * labels.mean()
  np.testing.assert_allclose(BIAS * w[-1], [mean, -mean], rtol=1e-3)


def test_answers_do_not_depend_on_the_block(monkeypatch):
  features, labels = problem(60, 5, 4)
  made = Ridge(features, labels, 4)
  whole = made.predict(features, 1.0)
  monkeypatch.setattr('vit_jax.evaluators.ridge.BLOCK', 7)
  np.testing.assert_array_equal(made.predict(features, 1.0), whole)
  assert made.accuracy(features, labels, 1.0) == np.mean(whole == labels) > 0.4


def test_a_constant_feature_counts_for_nothing():
  features, labels = problem(60, 5, 4)
  more = np.concatenate([features, np.full((60, 1), 3, np.float32)], axis=1)
  a, b = Ridge(features, labels, 4), Ridge(more, labels, 4)
  np.testing.assert_array_equal(a.predict(features, 1.0), b.predict(more, 1.0))

"""Logistic regression: scikit-learn's minimum, and the same wherever the examples lie."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vit_jax import sharding
from vit_jax.evaluators import logistic


def problem(n, d, k, seed=0, noise=2.0):
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(n) % k)
  features = rng.normal(size=(k, d))[labels] + noise * rng.normal(size=(n, d))
  return features.astype(np.float32), labels


def objective(features, labels, weights, l2):
  """The oracle, and its gradient, in float64."""
  weights = weights.astype(np.float64)
  logits = features.astype(np.float64) @ weights[:-1] + weights[-1]
  logits -= logits.max(1, keepdims=True)
  total = np.exp(logits).sum(1)
  rows = np.arange(len(labels))
  loss = np.mean(np.log(total) - logits[rows, labels]) + l2 / 2 * np.sum(weights[:-1] ** 2)
  error = np.exp(logits) / total[:, None]
  error[rows, labels] -= 1
  gradient = features.T @ error / len(labels) + l2 * weights[:-1]
  return loss, np.concatenate([gradient, error.mean(0, keepdims=True)])


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def scikit_learn(features, labels, k, l2):
  """Its weights [D + 1, K]."""
  # Of two classes it has one logit w, ours are -w / 2 and w / 2: half the squares.
  scale = 2 if k == 2 else 1
  peer = LogisticRegression(C=scale / (len(labels) * l2), tol=1e-10, max_iter=9000)
  peer.fit(features.astype(np.float64), labels)
  weights = np.concatenate([peer.coef_, peer.intercept_[:, None]], axis=1).T
  return np.concatenate([-weights, weights], axis=1) / 2 if k == 2 else weights


@pytest.mark.parametrize('n, d, k', [(120, 7, 3), (40, 90, 5), (60, 4, 2)])
@pytest.mark.parametrize('l2', [1e-3, 1e-1, 10.0])
def test_equals_scikit_learn(n, d, k, l2):
  features, labels = problem(n, d, k)
  made = logistic.fit(features, labels, k, l2, tolerance=1e-6)
  loss, gradient = objective(features, labels, made.weights, l2)
  assert made.steps > 1 and made.converged == (made.gradient <= 1e-6)
  assert made.loss == pytest.approx(loss, rel=1e-5)
  # So near to the minimum all of it is float32's rounding.
  assert made.gradient == pytest.approx(np.abs(gradient).max(), abs=2e-7)
  assert made.gradient < 3e-6
  peer = scikit_learn(features, labels, k, l2)
  assert loss == pytest.approx(objective(features, labels, peer, l2)[0], rel=1e-4)
  more, _ = problem(500, d, k, seed=1)
  logits = more @ peer[:-1] + peer[-1]
  second, first = np.sort(logits, axis=1)[:, -2:].T
  sure = first - second > 0.01 * logits.std()
  assert sure.mean() > 0.95
  answers = logistic.predict(more, made.weights)
  np.testing.assert_array_equal(answers[sure], logits.argmax(1)[sure])


def test_the_same_on_any_mesh_and_in_one_block(monkeypatch):
  features, labels = problem(50, 6, 4)  # 8 devices do not divide 50
  one = logistic.fit(features, labels, 4, 0.01, mesh=mesh_of(1))
  eight = logistic.fit(features, labels, 4, 0.01, mesh=mesh_of(8))
  np.testing.assert_allclose(one.weights, eight.weights, atol=2e-3)
  assert one.loss == pytest.approx(eight.loss, rel=1e-6)
  right = logistic.accuracy(features, labels, one.weights)
  monkeypatch.setattr(logistic, 'BLOCK', 7)
  assert logistic.accuracy(features, labels, one.weights) == right > 0.25


def test_labels_below_0_leave_examples_out():
  features, labels = problem(60, 5, 3)
  some = np.arange(60) % 3 > 0
  made = logistic.fit(features, np.where(some, labels, -1), 3, 0.1)
  assert made.loss == pytest.approx(
    logistic.fit(features[some], labels[some], 3, 0.1).loss, rel=1e-5
  )


def test_separable_classes_are_told_apart_and_a_limit_of_steps_is_told():
  features, labels = problem(60, 20, 3, noise=0.1)
  made = logistic.fit(features, labels, 3, 0.0)
  assert made.converged and made.loss < 1e-4
  assert logistic.accuracy(features, labels, made.weights) == 1
  few = logistic.fit(features, labels, 3, 1e-6, max_steps=2)
  assert not few.converged and few.steps == 2 and few.gradient > 1e-5


def test_a_class_without_examples_is_never_the_answer():
  features, labels = problem(60, 5, 3)
  made = logistic.fit(features, labels, 4, 0.1)
  assert made.converged and np.isfinite(made.weights).all()
  assert made.loss == pytest.approx(logistic.fit(features, labels, 3, 0.1).loss, abs=1e-4)
  assert set(logistic.predict(features, made.weights)) <= {0, 1, 2}


def test_a_constant_feature_of_zero_counts_for_nothing():
  features, labels = problem(60, 5, 3)
  more = np.concatenate([features, np.zeros((60, 1), np.float32)], axis=1)
  made = logistic.fit(more, labels, 3, 0.1)
  np.testing.assert_array_equal(made.weights[5], 0)
  np.testing.assert_allclose(
    np.delete(made.weights, 5, 0), logistic.fit(features, labels, 3, 0.1).weights, atol=1e-4
  )


def test_where_it_starts_does_not_matter():
  features, labels = problem(60, 5, 3)
  made = logistic.fit(features, labels, 3, 0.1)
  far = np.random.default_rng(0).normal(size=made.weights.shape).astype(np.float32)
  far[-1] -= far[-1].mean()  # what all biases share changes nothing
  again = logistic.fit(features, labels, 3, 0.1, far)
  np.testing.assert_allclose(again.weights, made.weights, atol=1e-3)
  assert logistic.fit(features, labels, 3, 0.1, made.weights).steps <= 1


def test_the_choice_of_l2():
  features, labels = problem(60, 40, 3, noise=4.0)
  more, answers = problem(300, 40, 3, noise=4.0)
  strengths = (1e-4, 1e-2, 1.0, 100.0)
  l2, made = logistic.choose((features, labels), (more, answers), 3, strengths)
  scores = {}
  for strength in strengths:
    alone = logistic.fit(features, labels, 3, strength)
    scores[strength] = logistic.accuracy(more, answers, alone.weights)
  assert scores[l2] == max(scores.values()) > min(scores.values())
  assert made.loss == pytest.approx(logistic.fit(features, labels, 3, l2).loss, rel=1e-4)
  # Of equally good ones the strongest.
  easy, known = problem(30, 5, 3, noise=0.01)
  assert logistic.choose((easy, known), (easy, known), 3, (1e-3, 1e-1))[0] == 1e-1


def nesterov(features, labels, k, rates, batches):
  """The oracle of `sgd`, Eqs. 3 and 4 of Sutskever et al. 2013 with the step looked ahead."""
  weights, velocity = np.zeros((features.shape[1] + 1, k)), 0.0
  for rate, rows in zip(rates, batches, strict=True):
    _, gradient = objective(features[rows], labels[rows], weights, 0.0)
    velocity = 0.9 * velocity + gradient
    weights = weights - rate * (gradient + 0.9 * velocity)
  return weights


def test_sgd_is_nesterovs_with_a_cosine():
  features, labels = problem(48, 5, 3)
  made = logistic.sgd(features, labels, 3, epochs=20, batch_size=4096, learning_rate=0.5)
  rates = 0.25 * (1 + np.cos(np.pi * np.arange(20) / 20))
  expected = nesterov(features, labels, 3, rates, [np.arange(48)] * 20)
  np.testing.assert_allclose(made.weights, expected, atol=1e-5)
  assert made.steps == 20
  # 0.1 times the batch size / 256, of the batch that there is.
  rates = 0.1 * 48 / 256 * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2
  expected = nesterov(features, labels, 3, rates, [np.arange(48)] * 20)
  made = logistic.sgd(features, labels, 3, epochs=20)
  np.testing.assert_allclose(made.weights, expected, atol=1e-5)


def test_sgd_comes_to_the_minimum_in_batches_on_any_mesh():
  features, labels = problem(50, 6, 4)
  options = dict(epochs=100, batch_size=16, learning_rate=0.05)
  one, eight, other = (
    logistic.sgd(features, labels, 4, 0.1, mesh=mesh_of(n), seed=seed, **options)
    for n, seed in ((1, 0), (8, 0), (8, 1))
  )
  assert one.steps == 300  # 3 batches of 16 an epoch
  np.testing.assert_allclose(one.weights, eight.weights, atol=1e-5)
  assert np.abs(one.weights - other.weights).max() > 1e-4
  best = logistic.fit(features, labels, 4, 0.1).loss
  assert best < one.loss < 1.01 * best and not one.converged


def test_sgd_leaves_out_labels_below_0():
  features, labels = problem(48, 5, 3)
  some = np.arange(48) % 3 > 0
  made = logistic.sgd(features, np.where(some, labels, -1), 3, epochs=20, mesh=mesh_of(8))
  alone = logistic.sgd(features[some], labels[some], 3, epochs=20, mesh=mesh_of(8))
  np.testing.assert_allclose(made.weights, alone.weights, atol=1e-6)
  assert made.loss == pytest.approx(alone.loss, rel=1e-5)

"""Average precision: scikit-learn's, whatever the devices and the blocks."""

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vit_jax import sharding
from vit_jax.evaluators.ranking import average_precision

MESHES = [
  (dict(data=1), 1),
  (dict(data=-1), 8),
  (dict(data=2, fsdp=2, tensor=2), 8),
]


def mesh_of(shape, devices):
  return sharding.make_mesh(shape, jax.devices()[:devices])


def scores_of(labels, similar):
  """By scikit-learn, query by query."""
  pairs = zip(labels[0], similar, strict=True)
  return [average_precision_score(labels[1] == label, row) for label, row in pairs]


@pytest.fixture(scope='module')
def data():
  """37 queries, 203 candidates, five labels of each, the cosines."""
  rng = np.random.default_rng(0)
  queries, candidates = rng.normal(size=(37, 16)), rng.normal(size=(203, 16))
  candidates[150] = 0
  similar = queries @ candidates.T
  similar /= np.linalg.norm(queries, axis=1)[:, None]
  similar /= np.maximum(np.linalg.norm(candidates, axis=1), 1e-12)
  labels = rng.integers(10, 15, 37), rng.integers(10, 15, 203)
  return queries.astype(np.float32), candidates.astype(np.float32), labels, similar


@pytest.mark.parametrize('shape, devices', MESHES)
@pytest.mark.parametrize('block', [1, 500, 2**23])
def test_equals_scikit_learn_on_any_mesh_and_in_any_blocks(data, shape, devices, block):
  queries, candidates, labels, similar = data
  values = average_precision(queries, candidates, labels, mesh_of(shape, devices), block=block)
  want = scores_of(labels, similar)
  np.testing.assert_allclose(values, want, atol=1e-6)


@pytest.mark.parametrize('shape, devices', MESHES)
def test_the_query_is_left_out(data, shape, devices):
  rows, labels = data[1][:60], data[2][1][:60]
  ids = np.random.default_rng(1).permutation(60)
  mesh = mesh_of(shape, devices)
  values = average_precision(rows, rows, (labels, labels), mesh, ids=(ids, ids))
  unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
  want = []
  for i in range(60):
    others = np.arange(60) != i
    similar = unit[others] @ unit[i]
    assert np.diff(np.sort(similar)).min() > 1e-6  # else their order is one of rounding
    want.append(average_precision_score(labels[others] == labels[i], similar))
  np.testing.assert_allclose(values, want, atol=1e-6)


@pytest.mark.parametrize('shape, devices', MESHES)
def test_equal_ones_share_their_last_rank(shape, devices):
  rng = np.random.default_rng(0)
  candidates = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 90)]
  queries = np.array([[4, 3, 2, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
  labels = np.array([0, 1, 1]), rng.integers(0, 2, 90)
  values = average_precision(queries, candidates, labels, mesh_of(shape, devices))
  scores = queries @ candidates.T  # the lengths of the candidates are one
  want = scores_of(labels, scores)
  np.testing.assert_allclose(values, want, atol=1e-6)
  # Features that are all alike rank nothing: the share of relevant ones.
  assert values[2] == pytest.approx(labels[1].mean(), abs=1e-6)


def test_first_and_last():
  candidates = np.array([[1, 0], [1, 1], [0, 1], [-1, 1]], np.float32)
  queries = np.array([[1, 0.1], [1, 0.1], [1, 0.1]], np.float32)
  labels = np.array([0, 1, 2]), np.array([0, 0, 2, 1])
  values = average_precision(queries, candidates, labels, mesh_of(dict(data=-1), 8))
  np.testing.assert_allclose(values, [1, 1 / 4, 1 / 3], atol=1e-6)


def test_without_relevant_candidates(data):
  queries, candidates, labels, _ = data
  other = np.where(np.arange(37) == 5, 99, labels[0]), labels[1]
  values = average_precision(queries, candidates, other, mesh_of(dict(data=-1), 8))
  np.testing.assert_array_equal(np.isnan(values), np.arange(37) == 5)


def test_features_that_are_not_finite(data):
  queries, candidates, labels, _ = data
  with pytest.raises(ValueError, match='37 of 37 queries have features that are not finite'):
    average_precision(queries * np.nan, candidates, labels, mesh_of(dict(data=1), 1))

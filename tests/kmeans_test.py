"""K-means against scikit-learn from the same start, and on any mesh."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from vit_jax import kmeans as kmeans_lib
from vit_jax import sharding
from vit_jax.kmeans import kmeans

N, D, K = 1003, 12, 20  # No block and no device has a whole share.
MESHES = [dict(data=1), dict(data=8), dict(data=2, fsdp=2, tensor=2)]


@pytest.fixture(scope='module')
def points():
  x, _ = make_blobs(N, D, centers=15, cluster_std=3.0, random_state=0)
  return x.astype(np.float32)


def mesh_of(shape):
  return sharding.make_mesh(shape, jax.devices()[: np.prod(list(shape.values()))])


def sklearn(x, centers, iterations):
  return KMeans(len(centers), init=centers, n_init=1, max_iter=iterations, tol=0).fit(x)


@pytest.mark.smoke
@pytest.mark.parametrize('offset', [0.0, 1000.0])
def test_equals_scikit_learn_from_the_same_start(points, offset):
  x = points + np.float32(offset)
  theirs = sklearn(x, x[:K], 7)
  ours = kmeans(x, K, mesh_of(dict(data=1)), centers=x[:K], iterations=7)
  assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-4)
  np.testing.assert_array_equal(ours.assignment, theirs.labels_)
  np.testing.assert_allclose(ours.centers, theirs.cluster_centers_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('block', [1, 7, 5000])
@pytest.mark.parametrize('mesh', MESHES, ids=lambda mesh: '-'.join(mesh))
def test_neither_mesh_nor_block_changes_the_clusters(points, mesh, block):
  x = points[:203]
  one = kmeans(x, K, mesh_of(dict(data=1)), rng=jax.random.key(0), iterations=5)
  other = kmeans(x, K, mesh_of(mesh), rng=jax.random.key(0), iterations=5, block=block)
  np.testing.assert_array_equal(other.assignment, one.assignment)
  np.testing.assert_allclose(other.centers, one.centers, rtol=1e-4, atol=1e-4)
  assert other.inertia == pytest.approx(one.inertia, rel=1e-5)


def test_no_iteration_assigns_to_the_first_centers(points):
  found = kmeans(points, 5, mesh_of(dict(data=8)), centers=points[:5], iterations=0)
  distances = ((points[:, None] - points[None, :5]) ** 2).sum(-1)  # [N, 5]
  np.testing.assert_allclose(found.centers, points[:5], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found.assignment, distances.argmin(1))
  assert found.inertia == pytest.approx(distances.min(1).sum(), rel=1e-5)


@pytest.mark.parametrize('k', [1, 2, 7, 8, 9, 20])
def test_the_first_of_equal_centers_is_the_nearest(points, k):
  # Each centre stands there twice, and as far apart as may be.
  centers = np.concatenate([points[:k], points[:k]]).astype(np.float64)
  nearest = np.asarray(jax.jit(kmeans_lib._nearest)(points, centers.astype(np.float32)))
  distances = ((points[:, None] - centers) ** 2).sum(-1)  # [N, 2k]
  np.testing.assert_array_equal(nearest, distances.argmin(1))


def test_k_means_plus_plus_starts_better_than_random_points(points):
  mesh = mesh_of(dict(data=1))

  def inertia(start):
    return np.mean([
      kmeans(points, K, mesh, rng=jax.random.key(seed), start=start, iterations=0).inertia
      for seed in range(5)
    ])  # fmt: skip

  assert inertia('kmeans++') < inertia('random')


def test_k_means_plus_plus_draws_by_squared_distance():
  # At 0, 1 and 3: after 0 the second is 3 with probability 9 / 10.
  x = np.array([[0], [1], [3]], np.float32)
  drawn = [np.asarray(kmeans_lib._spread(jax.random.key(s), x, 2))[1, 0] for s in range(400)]
  share = np.mean(np.array(drawn) == 3)
  assert abs(share - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 400)
  assert set(drawn) == {1, 3}


def test_an_empty_cluster_takes_half_of_the_largest(points):
  centers = np.concatenate([points[:4], np.full((2, D), 1e4, np.float32)])
  alone = kmeans(points, 6, mesh_of(dict(data=1)), centers=centers, iterations=1)
  first = ((points[:, None] - centers) ** 2).sum(-1).argmin(1)
  sizes = np.bincount(first, minlength=6)
  assert list(sizes[4:]) == [0, 0]
  means = np.stack([points[first == c].mean(0) for c in range(4)])
  # The largest goes in two, then what is the largest after that; in coordinates about the mean.
  origin, expected = points.mean(0), np.zeros((6, D))
  expected[:4], sizes = means - origin, sizes.astype(float)
  signs = np.where(np.arange(D) % 2, -1, 1) / 1024
  for empty in (4, 5):
    largest = sizes.argmax()
    expected[empty] = expected[largest] * (1 + signs)
    expected[largest] = expected[largest] * (1 - signs)
    sizes[[empty, largest]] = sizes[largest] / 2
  np.testing.assert_allclose(alone.centers, expected + origin, rtol=1e-4, atol=1e-4)
  found = kmeans(points, 6, mesh_of(dict(data=8)), centers=centers, iterations=10)
  assert (np.bincount(found.assignment, minlength=6) > 0).all()


def test_fewer_different_points_than_clusters():
  x = np.repeat(np.eye(3, D, dtype=np.float32), 10, axis=0)
  for start in kmeans_lib.STARTS:
    found = kmeans(x, 8, mesh_of(dict(data=8)), rng=jax.random.key(1), start=start)
    assert np.isfinite(found.centers).all()
    # Equal points are together.
    assert len(np.unique(found.assignment)) == 3
    assert (found.assignment.reshape(3, 10) == found.assignment[::10, None]).all()
    assert found.inertia == pytest.approx(0, abs=1e-3)
  same = kmeans(np.ones((5, 2), np.float32), 3, mesh_of(dict(data=1)), rng=jax.random.key(0))
  assert np.isfinite(same.centers).all()
  assert same.inertia == 0
  assert len(np.unique(same.assignment)) == 1


def test_as_many_clusters_as_points(points):
  found = kmeans(points[:9], 9, mesh_of(dict(data=8)), rng=jax.random.key(0), iterations=2)
  assert sorted(found.assignment) == list(range(9))
  assert found.inertia == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(k=0), 'k is 0; choose from 1 to 8'),
    (dict(k=9), 'k is 9; choose from 1 to 8, the number of points'),
    (dict(rng=None), 'give one of the two'),
    (dict(centers=np.zeros((2, 3))), 'give one of the two'),
    (dict(rng=None, centers=np.zeros((2, 3))), r'centers are \[2, 3\]; they must be \[2, 12\]'),
    (dict(start='first'), "unknown start 'first'; choose from 'kmeans"),
    (dict(iterations=-1), 'iterations is -1; it must be at least 0'),
    (dict(block=0), 'block is 0; it must be at least 1'),
    (dict(x=np.full((8, D), np.nan, np.float32)), '8 of 8 points are not finite'),
  ],
)
def test_mistakes_are_one_sentence(points, fields, message):
  fields = {'x': points[:8], 'k': 2, 'rng': jax.random.key(0), **fields}
  with pytest.raises(ValueError, match=message):
    kmeans(fields.pop('x'), fields.pop('k'), mesh_of(dict(data=1)), **fields)

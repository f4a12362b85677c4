"""Nearest neighbours: NumPy's, whatever the devices and the blocks, the first of equal ones."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from vit_jax import sharding
from vit_jax.evaluators import neighbors

MESHES = [
  (dict(data=1), 1),
  (dict(data=-1), 8),
  (dict(data=2, fsdp=2, tensor=2), 8),
]
BLOCKS = [(1024, 4096), (10, 7), (5, 1)]


def mesh_of(shape, devices):
  return sharding.make_mesh(shape, jax.devices()[:devices])


def normal(rows, seed, size=16):
  return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)


def cosines(queries, candidates):
  """One pair at a time, float64; 0 for vectors of zeros."""
  made = np.zeros((len(queries), len(candidates)))
  for i, query in enumerate(queries.astype(np.float64)):
    for j, candidate in enumerate(candidates.astype(np.float64)):
      length = np.sqrt((query @ query) * (candidate @ candidate))
      made[i, j] = query @ candidate / length if length else 0
  return made


@pytest.fixture(scope='module')
def features():
  """37 queries and 203 candidates, which neither 8 devices nor the blocks divide, with zeros."""
  queries, candidates = normal(37, 0), normal(203, 1)
  queries[3], candidates[150] = 0, 0
  return queries, candidates, cosines(queries, candidates)


@pytest.mark.parametrize('shape, devices', MESHES)
@pytest.mark.parametrize('query_block, candidate_block', BLOCKS)
def test_equals_numpy_on_any_mesh_and_in_any_blocks(
  features, shape, devices, query_block, candidate_block
):
  queries, candidates, similar = features
  scores, positions = neighbors.nearest(
    queries,
    candidates,
    50,
    mesh_of(shape, devices),
    query_block=query_block,
    candidate_block=candidate_block,
  )
  want = np.argsort(-similar, axis=1, kind='stable')[:, :50]
  np.testing.assert_array_equal(positions, want)
  np.testing.assert_allclose(scores, np.take_along_axis(similar, want, 1), atol=1e-6)
  assert (positions[3] == np.arange(50)).all() and not scores[3].any()  # the query of zeros


@pytest.mark.parametrize('k', [1, 20, 203])
def test_equals_scikit_learn(features, k):
  queries, candidates = (np.delete(rows, 3, 0) for rows in features[:2])
  candidates = np.concatenate([candidates, normal(1, 2)])
  model = NearestNeighbors(n_neighbors=k, metric='cosine', algorithm='brute').fit(candidates)
  distance, want = model.kneighbors(queries)
  scores, positions = neighbors.nearest(queries, candidates, k, mesh_of(dict(data=-1), 8))
  np.testing.assert_array_equal(positions, want)
  np.testing.assert_allclose(scores, 1 - distance, atol=1e-6)


@pytest.mark.parametrize('shape, devices', MESHES)
@pytest.mark.parametrize('query_block, candidate_block', BLOCKS)
def test_the_first_of_equal_ones(shape, devices, query_block, candidate_block):
  # Four directions, repeated: all cosines are 0 or 1, exactly, and ties cross blocks and devices.
  candidates = np.eye(4, dtype=np.float32)[np.arange(90) % 4] * 2.0
  queries = np.eye(4, dtype=np.float32)[[2, 0, 3, 1, 1, 0, 2]]
  scores, positions = neighbors.nearest(
    queries,
    candidates,
    30,
    mesh_of(shape, devices),
    query_block=query_block,
    candidate_block=candidate_block,
  )
  want = np.argsort(-(queries @ candidates.T), axis=1, kind='stable')[:, :30]
  np.testing.assert_array_equal(positions, want)
  assert set(np.unique(scores)) == {0, 1}


@pytest.mark.parametrize('shape, devices', MESHES)
def test_candidates_with_the_id_of_a_query_are_left_out(features, shape, devices):
  _, rows, _ = features
  ids = np.random.default_rng(0).permutation(2**40 + np.arange(203))  # more than 32 bits
  ids[7] = ids[60]
  similar = cosines(rows, rows)
  similar[ids[:, None] == ids] = -np.inf
  want = np.argsort(-similar, axis=1, kind='stable')[:, :201]
  mesh = mesh_of(shape, devices)
  scores, positions = neighbors.nearest(
    rows, rows, 201, mesh, ids=(ids, ids), query_block=50, candidate_block=9
  )
  np.testing.assert_array_equal(positions, want)
  assert np.isfinite(scores).all()
  with pytest.raises(ValueError, match='k is 202; choose from 1 to 201'):
    neighbors.nearest(rows, rows, 202, mesh, ids=(ids, ids))


def test_ids_of_others_leave_nothing_out(features):
  queries, candidates, _ = features
  mesh = mesh_of(dict(data=-1), 8)
  apart = (np.arange(37), 100 + np.arange(203))
  want = neighbors.nearest(queries, candidates, 203, mesh)
  found = neighbors.nearest(queries, candidates, 203, mesh, ids=apart)
  np.testing.assert_array_equal(found[1], want[1])


def test_fewer_candidates_than_devices():
  queries, candidates = normal(2, 0), normal(3, 1)
  _, positions = neighbors.nearest(queries, candidates, 3, mesh_of(dict(data=-1), 8))
  np.testing.assert_array_equal(positions, np.argsort(-cosines(queries, candidates), axis=1))


@pytest.mark.parametrize('k', [0, 204])
def test_k_is_among_the_candidates(features, k):
  with pytest.raises(ValueError, match=f'k is {k}; choose from 1 to 203'):
    neighbors.nearest(*features[:2], k, mesh_of(dict(data=-1), 8))


def test_features_that_cannot_be_compared(features):
  queries, candidates, _ = features
  mesh = mesh_of(dict(data=1), 1)
  with pytest.raises(ValueError, match='queries have 16 features and candidates 8;'):
    neighbors.nearest(queries, candidates[:, :8], 1, mesh)
  broken = candidates.copy()
  broken[4, 2], broken[9, 9] = np.nan, np.inf
  with pytest.raises(ValueError, match='2 of 203 candidates have features that are not finite'):
    neighbors.nearest(queries, broken, 1, mesh)


def test_no_matrix_of_all_by_all():
  # The compiled program's own figure: what it needs beside arguments and results.
  mesh = mesh_of(dict(data=-1), 8)
  q, block, n = 64, 128, 8 * 128 * 64
  search = neighbors.search(mesh, 10, block)
  shapes = [((q, 16), 'float32'), ((q,), 'int32'), ((n, 16), 'float32'), ((n,), 'int32')]
  split = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  arguments = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=split[shape[0] == q]) for shape, dtype in shapes
  ]
  arguments.append(jax.ShapeDtypeStruct((), 'int32', sharding=split[1]))
  with jax.set_mesh(mesh):
    memory = jax.jit(search).lower(*arguments).compile().memory_analysis()
  own = q * n // 8 * 4  # bytes of the similarities of a device's candidates
  assert memory.temp_size_in_bytes < own / 4

"""Exact search by cosine similarity, over all devices and in blocks: no matrix of all by all.

The candidates stay split over the devices. Queries come in blocks; each device compares them with
its own candidates, a sub-block at a time, and keeps the best k; then the devices' best are merged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.arrays import Array, l2_normalize
from vit_jax.evaluators import apply

Ids = tuple[np.ndarray, np.ndarray]  # of the queries [Q] and of the candidates [N]


def nearest(
  queries: np.ndarray,
  candidates: np.ndarray,
  k: int,
  mesh: Mesh,
  *,
  ids: Ids | None = None,
  query_block: int = 1024,
  candidate_block: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
  """The k candidates most similar to each query, the best first; the first of equal ones.

  Similarities are cosines, float32; that to a vector of zeros is 0. The blocks change nothing but
  the rounding. A device holds its share of the candidates and, at a time,
  `query_block * (candidate_block + k)` similarities.

  Args:
    queries: [Q, D] float32.
    candidates: [N, D] float32.
    k: at most N, or the fewest candidates that `ids` leaves to a query.
    mesh: the devices.
    ids: integers of both; the candidates with the id of a query are left out of its answer.
    query_block: queries at a time.
    candidate_block: candidates that a device compares at a time.

  Returns:
    Similarities [Q, k] float32 and positions in `candidates` [Q, k] int32.

  Raises:
    ValueError: k is out of range, the features differ in size, or some are not finite.
  """
  check(queries, candidates)
  query_codes, codes = codes_of(ids, len(queries), len(candidates))
  left = len(candidates) - int(np.bincount(codes[codes >= 0], minlength=len(codes)).max(initial=0))
  if not 1 <= k <= left:
    raise ValueError(f'k is {k}; choose from 1 to {left}, the candidates that a query can find')
  block = min(candidate_block, -(-len(candidates) // sharding.batch_shards(mesh)))
  placed = place(candidates, block, mesh), place(codes, block, mesh)
  size = min(query_block, len(queries))
  scores, positions = [], []
  for start in range(0, len(queries), size):
    rows = slice(start, start + size)
    few = fill(queries[rows], size), fill(query_codes[rows], size)
    found = _compiled(mesh, k, block)(*few, *placed, np.int32(len(candidates)))
    scores.append(found[0])
    positions.append(found[1])
  return np.concatenate(scores)[: len(queries)], np.concatenate(positions)[: len(queries)]


def check(queries: np.ndarray, candidates: np.ndarray) -> None:
  """Raises `ValueError` where [Q, D] and [N, D] cannot be compared, or a value is not finite."""
  if queries.shape[1] != candidates.shape[1]:
    raise ValueError(
      f'queries have {queries.shape[1]} features and candidates {candidates.shape[1]}; '
      'bring the images to one size by the host transforms'
    )
  for name, features in (('queries', queries), ('candidates', candidates)):
    bad = int((~np.isfinite(features).all(1)).sum())
    if bad:
      raise ValueError(f'{bad} of {len(features)} {name} have features that are not finite')


def codes_of(ids: Ids | None, queries: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
  """Small numbers in place of ids, [Q] and [N] int32: a query and a candidate have the same or not.

  What the other side lacks, and everything where `ids` is None, is -1 in the queries and -2 in the
  candidates, which are never the same.
  """
  query_codes, codes = np.full(queries, -1, np.int32), np.full(candidates, -2, np.int32)
  if ids is not None:
    both = np.intersect1d(*ids)
    for made, given in ((query_codes, ids[0]), (codes, ids[1])):
      known = np.isin(given, both)
      made[known] = np.searchsorted(both, given[known])
  return query_codes, codes


def fill(array: np.ndarray, rows: int) -> np.ndarray:
  """`array` [n, ...] with zeros behind it, [rows, ...]."""
  return np.pad(array, ((0, rows - len(array)), *((0, 0),) * (array.ndim - 1)))


def place(array: np.ndarray, block: int, mesh: Mesh) -> Array:
  """`array` [N, ...] filled up so that every device holds as many whole blocks, and split."""
  multiple = block * sharding.batch_shards(mesh)
  rows = -(-len(array) // multiple) * multiple

  def part(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(rows)
    return fill(array[start:stop], stop - start)

  return jax.make_array_from_callback((rows, *array.shape[1:]), sharding.batch_sharding(mesh), part)


def similarity(queries: Array, candidates: Array) -> Array:
  """Cosines [Q, N] of rows [Q, D] and [N, D], float32; 0 where a row is all zeros."""
  return jnp.matmul(l2_normalize(queries), l2_normalize(candidates).T, precision='highest')


@functools.cache
def _compiled(mesh: Mesh, k: int, block: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  return apply.jit(search(mesh, k, block), mesh)


def search(mesh: Mesh, k: int, block: int) -> Callable[..., tuple[Array, Array]]:
  """The function that answers one block of queries, of arrays on `mesh`.

  Its arguments are the queries [q, D] and their codes [q], the candidates [N, D] and their codes
  [N], which `place` has split, and how many of these are none to fill up.
  """
  split = P(sharding.BATCH_AXES)

  def own(queries: Array, query_codes: Array, candidates: Array, codes: Array, count: Array):
    """A device's best of its own candidates, [q, k]."""
    first = len(candidates) * jax.lax.axis_index(sharding.BATCH_AXES)
    positions = first + jnp.arange(len(candidates), dtype=jnp.int32)

    def visit(best: tuple[Array, Array], visitor: tuple[Array, Array, Array]):
      rows, codes, positions = visitor
      out = (positions >= count) | (query_codes[:, None] == codes)
      scores = jnp.where(out, -jnp.inf, similarity(queries, rows))  # [q, block]
      positions = jnp.broadcast_to(positions, scores.shape)
      # The earlier ones stand first, and of equal ones `top_k` takes the first.
      return _best(jnp.hstack([best[0], scores]), jnp.hstack([best[1], positions]), k), None

    start = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32)
    start = jax.lax.pcast(start, sharding.BATCH_AXES, to='varying')
    blocks = (candidates, codes, positions)
    blocks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), blocks)
    return jax.lax.scan(visit, start, blocks)[0]

  of_devices = jax.shard_map(
    own,
    mesh=mesh,
    in_specs=(P(), P(), split, split, P()),
    out_specs=P(None, sharding.BATCH_AXES),
  )

  return lambda *arrays: _best(*of_devices(*arrays), k)


def _best(scores: Array, positions: Array, k: int) -> tuple[Array, Array]:
  scores, at = jax.lax.top_k(scores, k)
  return scores, jnp.take_along_axis(positions, at, axis=1)

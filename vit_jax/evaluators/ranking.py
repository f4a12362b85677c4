"""Average precision over whole rankings, a block of queries at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.arrays import Array
from vit_jax.evaluators import apply, neighbors

BLOCK = 2**23  # similarities that a device sorts at a time: 32 MiB


def average_precision(
  queries: np.ndarray,
  candidates: np.ndarray,
  labels: tuple[np.ndarray, np.ndarray],
  mesh: Mesh,
  *,
  ids: neighbors.Ids | None = None,
  block: int = BLOCK,
) -> np.ndarray:
  """The average precision of every query's ranking of the candidates by the cosine of features.

  It is the mean, over the relevant candidates, of the precision at their rank: the share of
  relevant ones up to there. Equally similar candidates share the rank of their last, so that their
  order in the source does not matter.

  Args:
    queries: [Q, D] float32.
    candidates: [N, D] float32.
    labels: integers of both, [Q] and [N]; a candidate with the label of a query is relevant to it.
    mesh: the devices. The candidates stay split over them; queries are sorted each on one.
    ids: integers of both; the candidates with the id of a query are left out of its ranking.
    block: similarities that a device sorts at a time, at least those of one query.

  Returns:
    [Q] float32 in [0, 1]; NaN where no candidate is relevant.

  Raises:
    ValueError: the features differ in size, or some are not finite.
  """
  neighbors.check(queries, candidates)
  count = len(candidates)
  few = [queries]
  table = [neighbors.place(candidates, 1, mesh)]
  for pair in (labels, ids):
    of_queries, of_candidates = neighbors.codes_of(pair, len(queries), count)
    few.append(of_queries)
    table.append(neighbors.place(of_candidates, 1, mesh))
  devices = sharding.batch_shards(mesh)
  size = devices * max(1, min(block // count, -(-len(queries) // devices)))
  rank = _rank(mesh)
  values = []
  for start in range(0, len(queries), size):
    rows = [neighbors.fill(array[start : start + size], size) for array in few]
    values.append(rank(*rows, *table, np.int32(count)))
  return np.concatenate(values)[: len(queries)]


@functools.cache
def _rank(mesh: Mesh) -> Callable[..., np.ndarray]:
  """The program that judges one block of queries; compiled once a shape."""

  def rank(
    queries: Array,
    query_labels: Array,
    query_ids: Array,
    candidates: Array,
    labels: Array,
    ids: Array,
    count: Array,
  ) -> Array:
    out = (jnp.arange(len(candidates)) >= count) | (query_ids[:, None] == ids)
    relevant = (query_labels[:, None] == labels) & ~out
    scores = jnp.where(out, -jnp.inf, neighbors.similarity(queries, candidates))  # [q, N]
    # Each device compares all queries with its candidates, then sorts some queries' whole rows.
    by_candidates = NamedSharding(mesh, P(None, sharding.BATCH_AXES))
    scores, relevant = jax.lax.with_sharding_constraint((scores, relevant), by_candidates)
    by_queries = sharding.batch_sharding(mesh)
    scores, relevant = jax.lax.with_sharding_constraint((scores, relevant), by_queries)
    return _average_precision(scores, relevant)

  return apply.jit(rank, mesh)


def _average_precision(scores: Array, relevant: Array) -> Array:
  """[q] from similarities and whether a candidate is relevant, [q, N] each."""
  descending, relevant = jax.lax.sort((-scores, relevant.astype(jnp.int32)), num_keys=1)
  hits = jnp.cumsum(relevant, axis=1)
  ranks = jnp.broadcast_to(jnp.arange(1, hits.shape[1] + 1), hits.shape)
  last = jnp.pad(descending[:, 1:] != descending[:, :-1], ((0, 0), (0, 1)), constant_values=True)

  def at_last(counts: Array) -> Array:
    """Counts that do not fall, each as it is at the last of the equally similar ones."""
    return jax.lax.cummin(jnp.where(last, counts, counts[:, -1:]), axis=1, reverse=True)

  precision = at_last(hits) / at_last(ranks)
  return jnp.sum(relevant * precision, axis=1) / hits[:, -1]

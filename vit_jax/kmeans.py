"""K-means over all devices and in blocks: no matrix of all points by all centres.

The points stay split over the devices and the centres are whole on each. A device takes its own
points a block at a time, `block * k` scores, and adds them to the sums of their clusters; the
devices' sums are then added up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.evaluators import apply
from vit_jax.evaluators.neighbors import place

STARTS = ('kmeans++', 'random')
# k-means++ looks at so many points a centre, drawn at random: a pass over all for each of 10,000
# centres would cost many times what the iterations do.
SAMPLE = 16
# The centres are compared with each other in so many parts, element by element: XLA's argmax on a
# CPU takes twice as long as the product of points and centres.
PARTS = 8
# By how much, relatively, the two centres differ that a cluster is split into; as in faiss.
SPLIT = 1 / 1024


class Clusters(NamedTuple):
  """What k-means finds.

  Attributes:
    centers: `[k, D]` float32.
    assignment: `[N]` int32, the nearest centre of each point, the first of equal ones.
    inertia: the sum of the squared distances of points to their centres.
  """

  centers: np.ndarray
  assignment: np.ndarray
  inertia: float


def kmeans(
  x: np.ndarray,
  k: int,
  mesh: Mesh,
  *,
  rng: Array | None = None,
  centers: np.ndarray | None = None,
  start: str = 'kmeans++',
  iterations: int = 20,
  block: int = 1024,
) -> Clusters:
  """Lloyd's iterations (doi:10.1109/TIT.1982.1056489), each an assignment and new means.

  A cluster that loses its last point takes half of the largest one: the centre of that becomes two
  that differ by `SPLIT`, as in faiss and Section 3.3 of arXiv:1807.05520. Where fewer than k points
  differ some clusters stay empty; their centres are finite. The same points and key give the same
  clusters, to rounding on any mesh; on a GPU equal bits take XLA's deterministic operations.

  Args:
    x: `[N, D]` float32, the same on every host.
    k: clusters, at most N.
    mesh: the devices.
    rng: a key, from which the first centres are drawn; or
    centers: `[k, D]`, the first centres themselves.
    start: how they are drawn: 'kmeans++' (Arthur & Vassilvitskii 2007) among `SAMPLE * k` points,
      each with a probability that grows as its squared distance to those drawn; or 'random', k
      points, as faiss does.
    iterations: at least 0.
    block: points that a device compares at a time with all centres.

  Returns:
    Centres, and the assignment to them and its inertia, which one more pass finds.

  Raises:
    ValueError: k is out of range, a point is not finite, neither or both of `rng` and `centers` are
      given or these have another shape, an unknown start, or a number below its least.
  """
  _check(x, k, rng, centers, iterations, block)
  check_choice('start', start, STARTS)
  # About their mean: far from the origin float32 cannot tell distances by scalar products.
  origin = x.mean(0, dtype=np.float64).astype(np.float32)
  x = np.asarray(x, np.float32) - origin
  if centers is None:
    sample = x[_draw(rng, len(x), k if start == 'random' else min(len(x), SAMPLE * k))]
    centers = sample if start == 'random' else np.asarray(_spread(rng, sample, k))
  else:
    centers = np.asarray(centers, np.float32) - origin
  block = min(block, -(-len(x) // sharding.batch_shards(mesh)))
  found = _compiled(mesh, block)(place(x, block, mesh), len(x), centers, iterations)
  centers, assignment, inertia = found
  return Clusters(centers + origin, assignment[: len(x)], float(inertia))


def _check(x: np.ndarray, k: int, rng, centers, iterations: int, block: int) -> None:
  if not 1 <= k <= len(x):
    raise ValueError(f'k is {k}; choose from 1 to {len(x)}, the number of points')
  if not np.isfinite(x).all():
    raise ValueError(f'{int((~np.isfinite(x).all(1)).sum())} of {len(x)} points are not finite')
  if (rng is None) == (centers is None):
    raise ValueError("k-means starts from a key, 'rng', or from 'centers': give one of the two")
  if centers is not None and np.shape(centers) != (k, x.shape[1]):
    raise ValueError(f'centers are {list(np.shape(centers))}; they must be {[k, x.shape[1]]}')
  for name, value, least in (('iterations', iterations, 0), ('block', block, 1)):
    if value < least:
      raise ValueError(f'{name} is {value}; it must be at least {least}')


def _draw(rng: Array, count: int, size: int) -> np.ndarray:
  """`size` different numbers below `count`."""
  return np.asarray(jax.random.permutation(jax.random.fold_in(rng, 0), count)[:size])


@functools.partial(jax.jit, static_argnums=2)
def _spread(rng: Array, x: Array, k: int) -> Array:
  """K-means++: k of the points `x [n, D]`, `[k, D]`; the first is any of them."""

  def visit(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    centers, distance, chosen = carry
    centers = centers.at[i].set(x[chosen])
    distance = jnp.minimum(distance, jnp.sum((x - x[chosen]) ** 2, axis=1))
    key = jax.random.fold_in(rng, i + 1)
    return centers, distance, jax.random.categorical(key, jnp.log(distance))

  # All points are there in random order, so that the first is as good as any.
  carry = jnp.zeros((k, x.shape[1])), jnp.full(len(x), jnp.inf), jnp.int32(0)
  return jax.lax.fori_loop(0, k, visit, carry)[0]


@functools.cache
def _compiled(mesh: Mesh, block: int) -> Callable[..., tuple[np.ndarray, ...]]:
  split = P(sharding.BATCH_AXES)

  def mapped(function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

  update = mapped(functools.partial(_update, block=block), (split, P(), P()), (P(), P()))
  assign = mapped(functools.partial(_assign, block=block), (split, P(), P()), (split, P()))

  def run(x: Array, count: Array, centers: Array, iterations: Array) -> tuple[Array, ...]:
    def iterate(_: Array, centers: Array) -> Array:
      sums, sizes = update(x, count, centers)
      means = sums / jnp.maximum(sizes, 1)[:, None]
      return _split_largest(jnp.where(sizes[:, None] > 0, means, centers), sizes)

    centers = jax.lax.fori_loop(0, iterations, iterate, centers)
    return centers, *assign(x, count, centers)

  return apply.jit(run, mesh)


def _nearest(x: Array, centers: Array) -> Array:
  """The nearest of `centers [k, D]` to each of `x [n, D]`, the first of equal ones, [n] int32."""
  k = len(centers)
  rows = -(-k // PARTS)
  fill = PARTS * rows - k  # Centres that are infinitely far.
  half = jnp.pad(jnp.sum(centers**2, axis=1) / 2, (0, fill), constant_values=jnp.inf)
  scores = jnp.matmul(jnp.pad(centers, ((0, fill), (0, 0))), x.T, precision='highest')
  parts = (scores - half[:, None]).reshape(PARTS, rows, len(x))
  best, part = parts[0], jnp.zeros((rows, len(x)), jnp.int32)
  for i in range(1, PARTS):
    part = jnp.where(parts[i] > best, i, part)
    best = jnp.maximum(parts[i], best)
  number = part * rows + jnp.arange(rows, dtype=jnp.int32)[:, None]
  return jnp.min(jnp.where(best == jnp.max(best, axis=0), number, k - 1), axis=0)


def _blocks(x: Array, count: Array, block: int) -> tuple[Array, Array]:
  """A device's points in blocks, [n, block, D], and which of them are points, [n, block]."""
  positions = len(x) * jax.lax.axis_index(sharding.BATCH_AXES) + jnp.arange(len(x))
  return x.reshape(-1, block, x.shape[1]), (positions < count).reshape(-1, block)


def _update(x: Array, count: Array, centers: Array, *, block: int) -> tuple[Array, Array]:
  """Sums [k, D] and sizes [k] float32 of the clusters, over all devices."""
  k = len(centers)

  def visit(carry: tuple[Array, Array], visitor: tuple[Array, Array]):
    points, real = visitor
    own = jnp.where(real, _nearest(points, centers), k)  # What is out of bounds is dropped.
    sums, sizes = carry
    return (sums.at[own].add(points, mode='drop'), sizes.at[own].add(1.0, mode='drop')), None

  start = jnp.zeros(centers.shape), jnp.zeros(k)
  start = jax.lax.pcast(start, sharding.BATCH_AXES, to='varying')
  totals, _ = jax.lax.scan(visit, start, _blocks(x, count, block))
  return jax.lax.psum(totals, sharding.BATCH_AXES)


def _assign(x: Array, count: Array, centers: Array, *, block: int) -> tuple[Array, Array]:
  """The cluster of each of a device's points, and the inertia over all devices."""

  def visit(inertia: Array, visitor: tuple[Array, Array]):
    points, real = visitor
    own = _nearest(points, centers)
    squared = jnp.sum((points - centers[own]) ** 2, axis=1)
    return inertia + jnp.sum(jnp.where(real, squared, 0)), own

  start = jax.lax.pcast(jnp.zeros([]), sharding.BATCH_AXES, to='varying')
  inertia, own = jax.lax.scan(visit, start, _blocks(x, count, block))
  return own.reshape(-1), jax.lax.psum(inertia, sharding.BATCH_AXES)


def _split_largest(centers: Array, sizes: Array) -> Array:
  """Gives each empty cluster half of the one that is the largest then; the first of equal ones."""
  signs = SPLIT * (1 - 2 * (jnp.arange(centers.shape[1]) % 2))

  def visit(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    centers, sizes = carry
    empty, largest = jnp.argmin(sizes), jnp.argmax(sizes)
    center, half = centers[largest], sizes[largest] / 2
    centers = centers.at[empty].set(center * (1 + signs)).at[largest].set(center * (1 - signs))
    return centers, sizes.at[empty].set(half).at[largest].set(half)

  def any_empty(carry: tuple[Array, Array]) -> Array:
    return jnp.min(carry[1]) == 0

  return jax.lax.while_loop(any_empty, visit, (centers, sizes))[0]

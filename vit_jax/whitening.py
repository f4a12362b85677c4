"""PCA-whitening over all devices: features of uncorrelated dimensions, each of variance 1."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.arrays import Array
from vit_jax.evaluators import apply
from vit_jax.evaluators.neighbors import fill, place


class Whitening(NamedTuple):
  """The affine map `(x - mean) projection`.

  Attributes:
    mean: `[D]` float32.
    projection: `[D, dim]` float32, the directions of the largest variance first.
  """

  mean: np.ndarray
  projection: np.ndarray


def pca_whiten(
  x: np.ndarray, dim: int, mesh: Mesh, *, eps: float = 1e-7, block: int = 4096
) -> Whitening:
  """The whitening to the `dim` directions of the largest variance.

  The covariance is summed up block by block on the devices; its eigenvectors, float64, are found on
  the host. The largest entry of each direction is positive, so that nothing depends on a sign.

  Args:
    x: `[N, D]` float32, the same on every host.
    dim: at most D and N - 1, the directions in which N points can differ.
    mesh: the devices.
    eps: variances count as at least this share of the largest one: a direction in which nothing
      varies stays near 0 in place of becoming noise.
    block: points that a device takes at a time.

  Raises:
    ValueError: `dim` is out of range, or `eps` is not positive.
  """
  most = min(x.shape[1], len(x) - 1)
  if not 1 <= dim <= most:
    raise ValueError(
      f'dim is {dim}; {len(x)} points with {x.shape[1]} features can be whitened to 1 to {most}'
    )
  if eps <= 0:
    raise ValueError(f'eps must be positive, got {eps}')
  mean = x.mean(0, dtype=np.float64).astype(np.float32)
  block = min(block, -(-len(x) // sharding.batch_shards(mesh)))
  products = _compiled(mesh, block)(place(x, block, mesh), len(x), mean)
  variances, directions = np.linalg.eigh(products.astype(np.float64) / (len(x) - 1))
  variances, directions = variances[::-1][:dim], directions[:, ::-1][:, :dim]
  largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], axis=0)
  scale = np.sign(largest) / np.sqrt(np.maximum(variances, max(eps * variances[0], 1e-30)))
  return Whitening(mean, (directions * scale).astype(np.float32))


def map_rows(
  function: Callable[..., Array], x: np.ndarray, mesh: Mesh, *arguments: Any, block: int = 65536
) -> np.ndarray:
  """`function` of the rows of `x [N, D]`, `[N, D']`, so many at a time, split over the mesh.

  Args:
    function: from `[n, D]` and `arguments` to `[n, D']`, row by row.
    x: the rows.
    mesh: the devices.
    *arguments: trees of arrays that every device has whole.
    block: rows at a time.
  """
  shards = sharding.batch_shards(mesh)
  own = -(-min(block, len(x)) // shards)  # rows of a device
  call, block = apply.jit(function, mesh), own * shards
  parts = []
  for first in range(0, len(x), block):
    rows = fill(x[first : first + block], block)  # All of one shape: compiled once.
    parts.append(call(place(rows, own, mesh), *arguments))
  return np.concatenate(parts)[: len(x)]


@functools.cache
def _compiled(mesh: Mesh, block: int) -> Callable[..., np.ndarray]:
  def own(x: Array, count: Array, mean: Array) -> Array:
    first = len(x) * jax.lax.axis_index(sharding.BATCH_AXES)
    real = first + jnp.arange(len(x)) < count

    def visit(total: Array, visitor: tuple[Array, Array]) -> tuple[Array, None]:
      points, real = visitor
      centered = jnp.where(real[:, None], points - mean, 0)
      return total + jnp.matmul(centered.T, centered, precision='highest'), None

    start = jnp.zeros((x.shape[1], x.shape[1]))
    start = jax.lax.pcast(start, sharding.BATCH_AXES, to='varying')
    blocks = x.reshape(-1, block, x.shape[1]), real.reshape(-1, block)
    return jax.lax.psum(jax.lax.scan(visit, start, blocks)[0], sharding.BATCH_AXES)

  split = P(sharding.BATCH_AXES)
  return apply.jit(jax.shard_map(own, mesh=mesh, in_specs=(split, P(), P()), out_specs=P()), mesh)

"""Contrastive losses: what belongs together is told from all else in the global batch.

Under `jit` over a mesh the rows of every device are compared with each other. In small batches by
the matrix of all pairs, in large ones in a ring (`ring.py`), with the same value and gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, l2_normalize
from vit_jax.losses import ring
from vit_jax.sharding import constrain

DENSE_ROWS = 2048  # views in the global batch, up to which all pairs are one matrix
BLOCK = 512  # views of a visitor that are compared at a time
NEVER = -1e30  # a logit of a pair that does not count; finite, so that gradients are


class Compared(NamedTuple):
  """What each of N rows finds among the others; similarities are divided by the temperature.

  Attributes:
    all: log of the sum of exp(similarity) over all other rows, `[N]`.
    same: the sum of the similarities with the rows of its group, `[N]`.
    count: how many those are, `[N]`.
    nearest: the largest similarity with a row of another group, `[N]`; no gradient.
  """

  all: Array
  same: Array
  count: Array
  nearest: Array


def nt_xent(
  embeddings: Array,
  temperature: float | Array = 0.1,
  *,
  labels: Array | None = None,
  dense_rows: int = DENSE_ROWS,
  block: int = BLOCK,
) -> tuple[Array, Array]:
  """NT-Xent over all views of the global batch; with labels, the supervised contrastive loss.

  Eq. 1, arXiv:2002.05709, where there are two views: a view is to be told, among the 2 (B - 1)
  views of other examples, from the one of its own. For more views and with labels its
  generalisation L_out, Eq. 2, arXiv:2004.11362: the mean over all positives.

  Args:
    embeddings: `[B, V, D]`, V views of B examples; they are normalised here.
    temperature: that cosine similarities are divided by.
    labels: `[B]` int: views of examples with equal labels belong together. None: those of one
      example alone.
    dense_rows: the largest B * V for which the matrix of all pairs is built.
    block: views of a visitor that a device compares its own with at a time, above that size.

  Returns:
    The loss `[B]`, float32, in nats, the mean over an example's views (0 where a view has nothing
    that belongs to it), and `[B]` whether a view is nearer to its own, in the mean over them, than
    to any other's.
  """
  size, views, _ = embeddings.shape
  rows = l2_normalize(embeddings).reshape(size * views, -1) * temperature**-0.5  # [N, D]
  rows = constrain(rows, 'batch', None)
  groups = jnp.arange(size, dtype=jnp.int32) if labels is None else labels.astype(jnp.int32)
  groups = jnp.repeat(groups, views)  # [N]
  compared = (
    compare_dense(rows, groups) if size * views <= dense_rows else compare_ring(rows, groups, block)
  )
  mean = compared.same / jnp.maximum(compared.count, 1)
  alone = compared.count == 0
  loss = jnp.where(alone, 0.0, compared.all - mean)
  right = (mean > compared.nearest) & ~alone
  return tuple(x.reshape(size, views).astype(jnp.float32).mean(1) for x in (loss, right))


def compare_dense(rows: Array, groups: Array) -> Compared:
  """Compares by the matrix of all pairs.

  Args:
    rows: `[N, D]` float32, normalised and divided by the root of the temperature.
    groups: `[N]` int32, equal where rows belong together.
  """
  similarity = jnp.matmul(rows, rows.T, precision='highest')  # [N, N]
  similarity = constrain(similarity, 'batch', None)
  other = ~jnp.eye(len(rows), dtype=bool)
  same = (groups[:, None] == groups[None]) & other
  return Compared(
    jax.nn.logsumexp(jnp.where(other, similarity, NEVER), axis=1),
    jnp.sum(jnp.where(same, similarity, 0.0), axis=1),
    jnp.sum(same, axis=1, dtype=jnp.float32),
    jax.lax.stop_gradient(jnp.max(jnp.where(other & ~same, similarity, NEVER), axis=1)),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def compare_ring(rows: Array, groups: Array, block: int) -> Compared:
  """As `compare_dense`, in memory for a device's rows times `block`, forth and back."""
  return ring.over_rows(functools.partial(_compare, block=block))(rows, groups)


def _forward(rows: Array, groups: Array, block: int) -> tuple[Compared, tuple[Array, ...]]:
  compared = compare_ring(rows, groups, block)
  return compared, (rows, groups, compared.all)


def _backward(block: int, kept: tuple[Array, ...], cotangent: Compared) -> tuple[Array, None]:
  gradient = ring.over_rows(functools.partial(_gradient, block=block))
  return gradient(*kept, cotangent.all, cotangent.same), None


compare_ring.defvjp(_forward, _backward)


class _Visitor(NamedTuple):
  rows: Array  # [n, D]
  groups: Array  # [n]
  numbers: Array  # [n], of the rows in the global batch; -1 where there is none


def _pairs(own: _Visitor, visitor: _Visitor) -> tuple[Array, Array, Array]:
  """Similarities `[n, block]`, whether a pair counts, and whether it belongs together."""
  similarity = jnp.matmul(own.rows, visitor.rows.T, precision='highest')
  other = (own.numbers[:, None] != visitor.numbers) & (visitor.numbers >= 0)
  return similarity, other, (own.groups[:, None] == visitor.groups) & other


def _compare(rows: Array, groups: Array, block: int) -> Compared:
  own = _Visitor(rows, groups, ring.numbers(len(rows)))

  def update(gathered: tuple[Array, ...], visitor: _Visitor) -> tuple[Array, ...]:
    largest, total, same_sum, count, nearest = gathered
    similarity, other, same = _pairs(own, visitor)
    logits = jnp.where(other, similarity, NEVER)
    new = jnp.maximum(largest, jnp.max(logits, axis=1))
    total = total * jnp.exp(largest - new)
    total += jnp.sum(jnp.where(other, jnp.exp(logits - new[:, None]), 0.0), axis=1)
    return (
      new,
      total,
      same_sum + jnp.sum(jnp.where(same, similarity, 0.0), axis=1),
      count + jnp.sum(same, axis=1, dtype=jnp.float32),
      jnp.maximum(nearest, jnp.max(jnp.where(other & ~same, similarity, NEVER), axis=1)),
    )

  zero = rows[:, 0] * 0  # Of the devices that `rows` is of.
  start = (zero + NEVER, zero, zero, zero, zero + NEVER)
  largest, total, same_sum, count, nearest = ring.walk(update, start, own, block)
  tiny = jnp.finfo(jnp.float32).tiny  # A row alone has no other.
  return Compared(largest + jnp.log(jnp.maximum(total, tiny)), same_sum, count, nearest)


def _gradient(
  rows: Array, groups: Array, log_total: Array, of_all: Array, of_same: Array, block: int
) -> Array:
  """What the cotangents of `all` and `same` come to for the rows, `[n, D]`.

  The similarity of rows i and j is in the sums of both, so that one walk gathers both parts:
  W_ij = a_i p_ij + a_j p_ji + s_ij (b_i + b_j), with p_ij = exp(similarity_ij - all_i), s_ij 1
  where they belong together, a and b the cotangents; and the gradient of row i is sum_j W_ij x_j.
  """
  own = _Visitor(rows, groups, ring.numbers(len(rows)))

  def update(gathered: Array, shown: tuple[_Visitor, Array, Array, Array]) -> Array:
    visitor, visitor_total, visitor_all, visitor_same = shown
    similarity, other, same = _pairs(own, visitor)
    weight = of_all[:, None] * jnp.exp(similarity - log_total[:, None])
    weight += visitor_all * jnp.exp(similarity - visitor_total)
    weight = jnp.where(other, weight, 0.0)
    weight += jnp.where(same, of_same[:, None] + visitor_same, 0.0)
    return gathered + jnp.matmul(weight, visitor.rows, precision='highest')

  return ring.walk(update, rows * 0, (own, log_total, of_all, of_same), block)

"""Losses between images and their texts: each is told from all others in the global batch.

The softmax of CLIP (arXiv:2103.00020), which LiT (arXiv:2111.07991) shares, and the sigmoid of
SigLIP (arXiv:2303.15343). Under `jit` over a mesh the images of every device are compared with the
texts of every device. In small batches by the matrix of all pairs, in large ones in a ring
(`ring.py`), with the same value and gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, l2_normalize
from vit_jax.losses import ring
from vit_jax.losses.contrastive import BLOCK, DENSE_ROWS, NEVER
from vit_jax.sharding import constrain


class Found(NamedTuple):
  """What each of B images finds among the texts, or each text among the images.

  Attributes:
    own: the logit of its own pair, `[B]`.
    nearest: the largest logit of another pair, `[B]`; no gradient.
    others: over the other pairs, `[B]`, the log of the sum of exp(logit) for a softmax, the sum of
      log(1 + exp(logit)) for sigmoids.
  """

  own: Array
  nearest: Array
  others: Array


def cross_entropy(
  image: Array,
  text: Array,
  scale: float | Array,
  *,
  dense_rows: int = DENSE_ROWS,
  block: int = BLOCK,
) -> tuple[Array, Array, Array]:
  """Cross-entropy of each image's text among all texts and of each text's image among all images.

  Figure 3, arXiv:2103.00020.

  Args:
    image: `[B, D]`, embeddings of B images; they are normalised here.
    text: `[B, D]`, those of their texts, likewise.
    scale: scalar that cosine similarities are multiplied by: the exponential of what is learned.
    dense_rows: the largest B for which the matrix of all pairs is built.
    block: pairs of a visitor that a device compares its own with at a time, above that size.

  Returns:
    The loss `[B]`, float32, in nats, the mean of the two directions; `[B]` whether an image is
    nearer to its own text than to any other; and `[B]` whether a text is to its own image.

  Raises:
    ValueError: images and texts differ in shape.
  """
  directions = _compare(image, text, scale, 0.0, True, dense_rows, block)
  # -log(p) = log(1 + exp(others - own)): a small loss is not the difference of large logits.
  first, second = (jax.nn.softplus(found.others - found.own) for found in directions)
  return (first + second) / 2, *map(_right, directions)


def sigmoid(
  image: Array,
  text: Array,
  scale: float | Array,
  bias: float | Array,
  *,
  dense_rows: int = DENSE_ROWS,
  block: int = BLOCK,
) -> tuple[Array, Array, Array]:
  """Whether an image and a text belong together, asked of every pair on its own.

  Eq. 1, arXiv:2303.15343.

  Args:
    image: `[B, D]`, embeddings of B images; they are normalised here.
    text: `[B, D]`, those of their texts, likewise.
    scale: scalar that cosine similarities are multiplied by: the exponential of what is learned.
    bias: scalar that is added to them then.
    dense_rows: the largest B for which the matrix of all pairs is built.
    block: pairs of a visitor that a device compares its own with at a time, above that size.

  Returns:
    The loss `[B]`, float32, in nats: the sum over an image's pairs with all texts and that over its
    text's with all images, in the mean, so that the mean over the batch is the paper's; `[B]`
    whether an image is nearer to its own text than to any other; and `[B]` whether a text is to its
    own image.

  Raises:
    ValueError: images and texts differ in shape.
  """
  directions = _compare(image, text, scale, bias, False, dense_rows, block)
  first, second = (found.others + jax.nn.softplus(-found.own) for found in directions)
  return (first + second) / 2, *map(_right, directions)


def _right(found: Found) -> Array:
  return (found.own > found.nearest).astype(jnp.float32)


def _compare(
  image: Array,
  text: Array,
  scale: float | Array,
  bias: float | Array,
  softmax: bool,
  dense_rows: int,
  block: int,
) -> tuple[Found, Found]:
  if image.shape != text.shape:
    raise ValueError(f'images {image.shape} and texts {text.shape} are not pairs of one shape')
  image, text = (constrain(l2_normalize(x), 'batch', None) for x in (image, text))
  image = image * jnp.asarray(scale, jnp.float32)
  # A copy for each image, as a ring splits all arrays by rows; their gradients add up.
  bias = jnp.full(len(image), bias, jnp.float32)
  if len(image) <= dense_rows:
    return compare_dense(image, text, bias, softmax)
  return compare_ring(image, text, bias, softmax, block)


def compare_dense(image: Array, text: Array, bias: Array, softmax: bool) -> tuple[Found, Found]:
  """Compares by the matrix of all pairs.

  Args:
    image: `[B, D]` float32, normalised and multiplied by the scale.
    text: `[B, D]` float32, normalised.
    bias: `[B]` float32, copies of one number.
    softmax: what is summed over the other pairs.

  Returns:
    What the images find, and what the texts find.
  """
  logits = constrain(_logits(image, text, bias), 'batch', None)  # [B, B]
  others = jnp.where(jnp.eye(len(logits), dtype=bool), NEVER, logits)

  def found(axis: int) -> Found:
    if softmax:
      total = jax.nn.logsumexp(others, axis)
    else:
      total = jnp.sum(jax.nn.softplus(others), axis)
    return Found(jnp.diagonal(logits), jax.lax.stop_gradient(jnp.max(others, axis)), total)

  return found(1), found(0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def compare_ring(
  image: Array, text: Array, bias: Array, softmax: bool, block: int
) -> tuple[Found, Found]:
  """As `compare_dense`, in memory for a device's pairs times `block`, forth and back."""
  walk = functools.partial(_walk, softmax=softmax, block=block)
  return ring.over_rows(walk)(image, text, bias)


def _forward(
  image: Array, text: Array, bias: Array, softmax: bool, block: int
) -> tuple[tuple[Found, Found], tuple[Array, ...]]:
  of_image, of_text = compare_ring(image, text, bias, softmax, block)
  return (of_image, of_text), (image, text, bias, of_image.others, of_text.others)


def _backward(
  softmax: bool, block: int, kept: tuple[Array, ...], cotangents: tuple[Found, Found]
) -> tuple[Array, Array, Array]:
  gradient = functools.partial(_gradient, softmax=softmax, block=block)
  of_image, of_text = cotangents
  return ring.over_rows(gradient)(
    *kept, of_image.others, of_text.others, of_image.own + of_text.own
  )


compare_ring.defvjp(_forward, _backward)


def _logits(rows: Array, columns: Array, bias: Array) -> Array:
  return jnp.matmul(rows, columns.T, precision='highest') + bias[:, None]


def _pairs(own: Array, visitor: Array) -> tuple[Array, Array]:
  """Which `[n, block]` are an example's own pair, and which are other pairs, by row numbers."""
  mine = own[:, None] == visitor
  return mine, ~mine & (visitor >= 0)


def _walk(image: Array, text: Array, bias: Array, softmax: bool, block: int) -> tuple[Found, Found]:
  numbers = ring.numbers(len(image))

  def add(gathered: Found, logits: Array, mine: Array, other: Array) -> Found:
    others = jnp.where(other, logits, NEVER)
    nearest, total = jnp.maximum(gathered.nearest, jnp.max(others, axis=1)), gathered.others
    if softmax:  # The total is of exp(logit - nearest).
      total = total * jnp.exp(gathered.nearest - nearest)
      each = jnp.exp(others - nearest[:, None])
    else:
      each = jax.nn.softplus(others)
    own = gathered.own + jnp.sum(jnp.where(mine, logits, 0.0), axis=1)
    return Found(own, nearest, total + jnp.sum(each, axis=1))

  def update(gathered: tuple[Found, Found], visitor: tuple[Array, ...]) -> tuple[Found, Found]:
    visitor_image, visitor_text, visitor_numbers = visitor
    pairs = _pairs(numbers, visitor_numbers)
    return (
      add(gathered[0], _logits(image, visitor_text, bias), *pairs),
      add(gathered[1], _logits(text, visitor_image, bias), *pairs),
    )

  zero = image[:, 0] * 0  # Of the devices that `image` is of.
  start = Found(zero, zero + NEVER, zero)
  directions = ring.walk(update, (start, start), (image, text, numbers), block)
  if not softmax:
    return directions
  return tuple(found._replace(others=found.nearest + jnp.log(found.others)) for found in directions)


class _Side(NamedTuple):
  rows: Array  # [n, D], images or texts
  others: Array  # [n], what they found
  cotangent: Array  # [n], of `others`


def _gradient(
  image: Array,
  text: Array,
  bias: Array,
  image_others: Array,
  text_others: Array,
  of_image: Array,
  of_text: Array,
  of_own: Array,
  softmax: bool,
  block: int,
) -> tuple[Array, Array, Array]:
  """What the cotangents of `others` and `own` come to for images and texts, `[n, D]`, and biases.

  The logit of image i and text j is in the sums of both, so that one walk gathers both parts:
  W_ij = a_i p_ij + b_j q_ij for another pair, c_i for an own one. a, b and c are the cotangents;
  p_ij = exp(logit_ij - image_others_i) and q_ij = exp(logit_ij - text_others_j) in a softmax, the
  sigmoid of the logit both otherwise. Image i gets sum_j W_ij text_j, its bias sum_j W_ij, and text
  j gets sum_i W_ij image_i.
  """
  numbers = ring.numbers(len(image))
  images, texts = _Side(image, image_others, of_image), _Side(text, text_others, of_text)

  def weights(own: _Side, visitor: _Side, mine: Array, other: Array) -> Array:
    logits = _logits(own.rows, visitor.rows, bias)
    if softmax:
      weight = own.cotangent[:, None] * jnp.exp(logits - own.others[:, None])
      weight += visitor.cotangent * jnp.exp(logits - visitor.others)
    else:
      weight = (own.cotangent[:, None] + visitor.cotangent) * jax.nn.sigmoid(logits)
    return jnp.where(other, weight, jnp.where(mine, of_own[:, None], 0.0))  # [n, block]

  def update(gathered: tuple[Array, ...], visitor: tuple) -> tuple[Array, ...]:
    of_images, of_texts, of_biases = gathered
    visitor_images, visitor_texts, visitor_numbers = visitor
    pairs = _pairs(numbers, visitor_numbers)
    by_text = weights(images, visitor_texts, *pairs)
    by_image = weights(texts, visitor_images, *pairs)
    return (
      of_images + jnp.matmul(by_text, visitor_texts.rows, precision='highest'),
      of_texts + jnp.matmul(by_image, visitor_images.rows, precision='highest'),
      of_biases + jnp.sum(by_text, axis=1),
    )

  start = (image * 0, text * 0, bias * 0)
  return ring.walk(update, start, (images, texts, numbers), block)

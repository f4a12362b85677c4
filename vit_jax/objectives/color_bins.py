"""Colours as classes: bins of the plane of a and b. Zhang et al. 2016, arXiv:1603.08511."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.augment import lab

STEP = 10.0  # the side of a bin
# Of the plane in which bins are looked up: no colour is farther out, nor are small squares better.
REACH, SQUARE = 120.0, 5.0


@functools.cache
def centers() -> np.ndarray:
  """The centres `[Q, 2]` of the bins that some sRGB colour lies in, float32.

  Centres are multiples of 10. Q is 261: the paper's 313 come from a wider gamut than that of sRGB
  with the illuminant D65, which no image on a screen leaves.
  """
  # What is seen of the cube of all colours, from the direction of L, is its faces.
  u, v = np.meshgrid(np.arange(0, 256, 3), np.arange(0, 256, 3))
  faces = [
    np.roll(np.stack([np.full_like(u, w), u, v], -1), i, -1) for w in (0, 255) for i in range(3)
  ]
  rgb = np.stack(faces) / 255
  # In NumPy and double precision: how many bins there are must not depend on the device.
  linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
  ratio = linear @ lab.XYZ.T / lab.WHITE
  root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
  x, y, z = np.moveaxis(root, -1, 0)
  cells = np.rint(np.stack([500 * (x - y), 200 * (y - z)], -1) / STEP)
  return (np.unique(cells.reshape(-1, 2), axis=0) * STEP).astype(np.float32)


@functools.cache
def _candidates(count: int) -> np.ndarray:
  """Of each square of the plane the bins that can be among the `count` nearest to a colour in it.

  So a dozen distances do for all of them, wherever in its square the colour is.

  Returns:
    `[n, n, K]` int32: squares of side `SQUARE` from -`REACH` on; filled up by Q, which is no bin.
  """
  n = round(2 * REACH / SQUARE)
  middle = (np.arange(n) + 0.5) * SQUARE - REACH
  middle = np.stack(np.meshgrid(middle, middle, indexing='ij'), -1)[:, :, None]  # [n, n, 1, 2]
  apart = np.abs(middle - centers())
  least = np.linalg.norm(np.maximum(apart - SQUARE / 2, 0), axis=-1)  # [n, n, Q]
  most = np.linalg.norm(apart + SQUARE / 2, axis=-1)
  possible = least <= np.sort(most, axis=-1)[..., count - 1 : count]
  order = np.argsort(~possible, axis=-1, kind='stable')[..., : possible.sum(-1).max()]
  return np.where(np.take_along_axis(possible, order, -1), order, len(centers())).astype(np.int32)


def neighbors(ab: Array, count: int, sigma: float) -> tuple[Array, Array]:
  """The bins nearest to a colour, and how much of it each of them gets. Section 2.1.

  Args:
    ab: `[..., 2]`, from -120 to 120.
    count: of bins; 5 in the paper.
    sigma: of the Gaussian by whose height at their distance they share; 5 in the paper.

  Returns:
    Bins `[..., count]` int32, the nearest first, and their shares, which sum to 1.
  """
  table = _candidates(count)  # [n, n, K]
  square = jnp.clip(jnp.floor((ab + REACH) / SQUARE).astype(jnp.int32), 0, len(table) - 1)
  index = jnp.asarray(table)[square[..., 0], square[..., 1]]  # [..., K]
  none = np.full((1, 2), 1e4, np.float32)
  places = jnp.asarray(np.concatenate([centers(), none]))[index]  # [..., K, 2]
  squares = jnp.sum((ab[..., None, :] - places) ** 2, axis=-1)
  nearest, order = jax.lax.top_k(-squares, count)
  return jnp.take_along_axis(index, order, axis=-1), jax.nn.softmax(nearest / (2 * sigma**2))


def dense(index: Array, share: Array) -> Array:
  """The distribution over all bins, `[..., Q]`, that `neighbors` lists the largest of."""
  bins = jnp.arange(len(centers()))
  # Sums of comparisons and no scatter, which accelerators are slow at.
  return sum(
    jnp.where(index[..., k, None] == bins, share[..., k, None], 0.0) for k in range(index.shape[-1])
  )


def cross_entropy(logits: Array, index: Array, share: Array) -> Array:
  """Eq. 2 without its weights, `[...]` float32 in nats.

  Args:
    logits: `[..., Q]`.
    index: bins, as `neighbors` gives them.
    share: likewise.
  """
  logits = logits.astype(jnp.float32)
  return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(dense(index, share) * logits, axis=-1)


def is_most_likely(logits: Array, index: Array) -> Array:
  """Whether a bin `index [...]` has a larger logit than all others, of `logits [..., Q]`."""
  own = jnp.arange(logits.shape[-1]) == index[..., None]
  # Two maxima: on CPUs these take a tenth of the time of an argmax.
  others = jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1)
  return jnp.max(jnp.where(own, logits, -jnp.inf), axis=-1) > others


def histogram(index: Array) -> Array:
  """The share `[Q]` of all bins `index [...]` that each has."""
  bins = jnp.arange(len(centers()))
  return jnp.mean((index.reshape(-1, 1) == bins).astype(jnp.float32), axis=0)


def rebalance(prior: Array, uniform: float, sigma: float = 5.0) -> Array:
  """The weight of each bin in the loss, larger where colours are rare. Eq. 4.

  Args:
    prior: `[Q]`, how often each occurs, on any scale; smoothed here by a Gaussian over a and b.
    uniform: lambda, the part of a uniform distribution that is mixed in, in (0, 1]; 1/2 in the
      paper, and with 1 all weights are 1.
    sigma: of the Gaussian.

  Returns:
    `[Q]`, of mean 1 over the smoothed prior.
  """
  bins = centers().astype(np.float64)
  squares = ((bins[:, None] - bins) ** 2).sum(-1)
  kernel = np.exp(-squares / (2 * sigma**2))
  kernel /= kernel.sum(axis=1, keepdims=True)  # what is flat stays flat, at the edges too
  smooth = jnp.matmul(jnp.asarray(kernel, jnp.float32), jnp.maximum(prior, 0), precision='highest')
  smooth /= jnp.sum(smooth)
  weight = 1 / ((1 - uniform) * smooth + uniform / len(bins))
  return weight / jnp.sum(smooth * weight)


def annealed_mean(logits: Array, temperature: float) -> Array:
  """The mean colour of the distribution sharpened by a temperature, `[..., 2]`. Eq. 5.

  Args:
    logits: `[..., Q]`.
    temperature: 1 gives the mean, towards 0 the mode; 0.38 in the paper.
  """
  share = jax.nn.softmax(logits.astype(jnp.float32) / temperature)
  return jnp.matmul(share, jnp.asarray(centers()), precision='highest')

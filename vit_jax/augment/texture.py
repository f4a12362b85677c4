"""Blur and noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.augment.chance import Augment, check_range, join_alpha, sometimes, split_alpha


def blur(p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> Augment:
  """Gaussian blur of a random width, with probability `p`.

  SimCLR, Appendix A of arXiv:2002.05709, draws sigma from (0.1, 2.0) and cuts the kernel at a tenth
  of the side; here nothing is cut: each axis is one product with a matrix whose rows sum to 1.

  Args:
    p: the probability.
    sigma: of the kernel, in pixels, (low, high). RGBA is weighted by its alpha.

  Raises:
    ValueError: `sigma` is no range above 0, or `p` lies outside [0, 1].
  """
  low, high = check_range('sigma', sigma, least=1e-2)

  def change(rng: Array, image: Array) -> Array:
    color, alpha = split_alpha(image)
    if alpha is not None:
      image = join_alpha(color * alpha, alpha)
    width = jax.random.uniform(rng, minval=low, maxval=high)
    rows, columns = (_kernel(n, width) for n in image.shape[:2])
    image = jnp.einsum('ij,jwc->iwc', rows, image)
    image = jnp.einsum('kw,iwc->ikc', columns, image)
    if alpha is None:
      return image
    color, alpha = split_alpha(image)
    return join_alpha(color / jnp.maximum(alpha, 1e-6), alpha)

  return sometimes(p, change)


def _kernel(size: int, sigma: Array) -> Array:
  place = jnp.arange(size, dtype=jnp.float32)
  weight = jnp.exp(-(((place[:, None] - place[None]) / sigma) ** 2) / 2)
  return weight / weight.sum(1, keepdims=True)  # [size, size]


def noise(std: float = 0.05, p: float = 1.0) -> Augment:
  """Adds Gaussian noise of this standard deviation to the colours, with probability `p`.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """

  def change(rng: Array, image: Array) -> Array:
    color, alpha = split_alpha(image)
    return join_alpha(color + std * jax.random.normal(rng, color.shape), alpha)

  return sometimes(p, change)

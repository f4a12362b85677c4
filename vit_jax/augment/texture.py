"""Blur and noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.augment.chance import (
  Augment,
  check_range,
  filter_axes,
  join_alpha,
  sometimes,
  split_alpha,
)


def blur(
  p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0), kernel: float | None = None
) -> Augment:
  """Gaussian blur of a random width, with probability `p`.

  SimCLR, Appendix A of arXiv:2002.05709, draws sigma from (0.1, 2.0) and cuts the kernel at a tenth
  of the side: `kernel=0.1`. Each axis is one product with a matrix whose rows sum to 1, at the
  border too.

  Args:
    p: the probability.
    sigma: of the kernel, in pixels, (low, high). RGBA is weighted by its alpha.
    kernel: the length of the kernel as a part of the shorter side, made odd (up where it is even)
      and at least 3 pixels; None cuts nothing.

  Raises:
    ValueError: `sigma` is no range above 0, `kernel` not above 0, or `p` lies outside [0, 1].
  """
  low, high = check_range('sigma', sigma, least=1e-2)
  if kernel is not None and kernel <= 0:
    raise ValueError(f'kernel={kernel} is not above 0')

  def change(rng: Array, image: Array) -> Array:
    width = jax.random.uniform(rng, minval=low, maxval=high)
    radius = None if kernel is None else max(1, int(kernel * min(image.shape[:2])) // 2)
    rows, columns = (_kernel(n, width, radius) for n in image.shape[:2])
    return filter_axes(image, rows, columns)

  return sometimes(p, change)


def _kernel(size: int, sigma: Array, radius: int | None) -> Array:
  place = jnp.arange(size, dtype=jnp.float32)
  distance = place[:, None] - place[None]
  weight = jnp.exp(-((distance / sigma) ** 2) / 2)
  if radius is not None:
    weight = jnp.where(jnp.abs(distance) <= radius, weight, 0)
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

"""What lies behind a drawing: RGBA -> RGB."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.augment.chance import Augment, check_probability


def background(p: float = 0.5, color: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Augment:
  """Puts RGBA on `color`, or with probability `p` on one random colour: [H, W, 4] -> [H, W, 3].

  `background(p=0)` is what evaluation wants. An image without alpha passes unchanged.

  Raises:
    ValueError: `color` is no RGB in [0, 1], or `p` lies outside [0, 1].
  """
  check_probability('p', p)
  if len(color) != 3 or not all(0 <= c <= 1 for c in color):
    raise ValueError(f'color={color!r} is not three numbers in [0, 1]')

  def apply(rng: Array, image: Array) -> Array:
    if image.shape[-1] != 4:
      return image
    behind = jnp.asarray(color, image.dtype)
    if p > 0:
      coin, rng = jax.random.split(rng)
      drawn = jax.random.uniform(rng, (3,)).astype(image.dtype)
      behind = jnp.where(jax.random.uniform(coin) < p, drawn, behind)
    alpha = image[..., 3:]
    return image[..., :3] * alpha + behind * (1 - alpha)

  return apply

"""Mixing the examples of a batch: `(rng, images, targets) -> (images, targets)`, inside the step.

Each example meets the one after it in the batch, the last meets the first; since batches are
shuffled, that is a random partner. `compose` makes one function out of a config's string.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax import compose as _compose
from vit_jax.arrays import Array
from vit_jax.augment.chance import check_probability

# What a string may name.
__all__ = ['cutmix', 'mixup']

Mix = Callable[[Array, Array, Array], tuple[Array, Array]]


def mixup(alpha: float = 0.2, p: float = 1.0) -> Mix:
  """Blends two images and their targets. Eq. 1, arXiv:1710.09412.

  Args:
    alpha: the share of the first image is drawn from Beta(alpha, alpha), for each example anew.
    p: the share of examples that are mixed at all.

  Raises:
    ValueError: `alpha` is not positive, or `p` lies outside [0, 1].
  """
  _check(alpha, p)

  def apply(rng: Array, images: Array, targets: Array) -> tuple[Array, Array]:
    share = _shares(rng, alpha, p, images.shape[0])
    return _blend(images, share), _blend(targets, share)

  return apply


def cutmix(alpha: float = 1.0, p: float = 1.0) -> Mix:
  """Pastes a box of the second image into the first; targets mix by area. arXiv:1905.04899.

  The box has the image's aspect and covers 1 - Beta(alpha, alpha) of it before it is cut off at
  the border (Eq. 2); what remains of it is the second target's share.

  Args:
    alpha: of the Beta distribution; 1 is uniform.
    p: the share of examples that are mixed at all.

  Raises:
    ValueError: `alpha` is not positive, or `p` lies outside [0, 1].
  """
  _check(alpha, p)

  def apply(rng: Array, images: Array, targets: Array) -> tuple[Array, Array]:
    batch, height, width = images.shape[:3]
    rng, rng_place = jax.random.split(rng)
    side = jnp.sqrt(1 - _shares(rng, alpha, p, batch))  # [B], in parts of the image's sides
    centre = jax.random.uniform(rng_place, (2, batch))
    rows = _covered(centre[0], side, height)  # [B, H]
    columns = _covered(centre[1], side, width)  # [B, W]
    box = rows[:, :, None] & columns[:, None, :]  # [B, H, W]
    images = jnp.where(box[..., None], _partner(images), images)
    return images, _blend(targets, 1 - box.mean((1, 2)))

  return apply


def compose(text: str) -> Mix:
  """Makes one function out of `'mixup(0.2) | cutmix(p=0.5)'`: one after the other.

  Returns:
    `(rng, images [B, H, W, C], targets [B, K]) -> (images, targets)`.

  Raises:
    ValueError: an unknown operation (the choices are listed) or arguments that it does not take.
  """
  operations = _compose.build(text, sys.modules[__name__])

  def apply(rng: Array, images: Array, targets: Array) -> tuple[Array, Array]:
    for i, operation in enumerate(operations):
      images, targets = operation(jax.random.fold_in(rng, i), images, targets)
    return images, targets

  return apply


def _check(alpha: float, p: float) -> None:
  if alpha <= 0:
    raise ValueError(f'alpha={alpha} is not positive')
  check_probability('p', p)


def _shares(rng: Array, alpha: float, p: float, batch: int) -> Array:
  """How much of itself each example keeps, [B]: Beta(alpha, alpha), or 1 with probability 1 - p."""
  coin, rng = jax.random.split(rng)
  share = jax.random.beta(rng, alpha, alpha, (batch,))
  return jnp.where(jax.random.uniform(coin, (batch,)) < p, share, 1.0)


def _partner(x: Array) -> Array:
  return jnp.roll(x, -1, axis=0)


def _blend(x: Array, share: Array) -> Array:
  share = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
  return share * x + (1 - share) * _partner(x)


def _covered(centre: Array, side: Array, size: int) -> Array:
  """Which of `size` pixels have their middle in the interval about `centre`, [B, size] bool."""
  middle = (jnp.arange(size) + 0.5) / size
  return jnp.abs(middle - centre[:, None]) < side[:, None] / 2

"""Augmentation on the device, inside the step: each is a factory of `(rng, image) -> image`.

An image is float in [0, 1], [H, W, C], with C 1 (grey), 3 (RGB) or 4 (RGBA, alpha not
premultiplied). `compose` makes one function for a batch out of the string that a config gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax

from vit_jax import compose as _compose
from vit_jax.arrays import Array
from vit_jax.augment.background import background
from vit_jax.augment.color import color_distort, grayscale, hue, invert
from vit_jax.augment.edges import outline, sketch, stencil
from vit_jax.augment.geometry import affine, erase, flip
from vit_jax.augment.texture import blur, noise

# What a string may name.
__all__ = [
  'affine',
  'background',
  'blur',
  'color_distort',
  'erase',
  'flip',
  'grayscale',
  'hue',
  'invert',
  'noise',
  'outline',
  'sketch',
  'stencil',
]


def compose(text: str) -> Callable[..., Array]:
  """Makes a function of a batch out of `'affine(rotate=10) | grayscale(p=0.2)'`.

  Returns:
    `(rng, images [B, H, W, C], ids [B] = None) -> images`. Each image gets its own key,
    `jax.random.split(rng, B)`, or, so that nothing depends on the batch that it is in, `rng` folded
    with its id; and from it each operation its own.

  Raises:
    ValueError: an unknown operation (the choices are listed) or arguments that it does not take.
  """
  operations = _compose.build(text, sys.modules[__name__])

  def one(rng: Array, image: Array) -> Array:
    for i, operation in enumerate(operations):
      image = operation(jax.random.fold_in(rng, i), image)
    return image

  def batch(rng: Array, images: Array, ids: Array | None = None) -> Array:
    if not operations:
      return images
    if ids is None:
      keys = jax.random.split(rng, images.shape[0])
    else:
      keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, ids)
    return jax.vmap(one)(keys, images)

  return batch

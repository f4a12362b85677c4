"""Augmentation on the device, inside the step: each is a factory of `(rng, image) -> image`.

An image is float in [0, 1], [H, W, C], with C 1 (grey), 3 (RGB) or 4 (RGBA, alpha not
premultiplied), and stays so but for `background`, which makes RGB, and `standardize`. `compose`
makes one function for a batch out of the string that a config gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax import compose as _compose
from vit_jax.arrays import Array
from vit_jax.augment.background import background
from vit_jax.augment.chance import Augment, check_probability
from vit_jax.augment.color import (
  color_distort,
  color_jitter,
  grayscale,
  hue,
  invert,
  lightness,
  solarize,
  standardize,
)
from vit_jax.augment.crop import random_resized_crop
from vit_jax.augment.edges import outline, sketch, sobel, stencil
from vit_jax.augment.geometry import affine, cutout, erase, flip, rotate90
from vit_jax.augment.texture import blur, noise

# What a string may name.
__all__ = [
  'affine',
  'background',
  'blur',
  'color_distort',
  'color_jitter',
  'cutout',
  'erase',
  'flip',
  'grayscale',
  'hue',
  'invert',
  'lightness',
  'maybe',
  'noise',
  'outline',
  'random_resized_crop',
  'rotate90',
  'sketch',
  'sobel',
  'solarize',
  'standardize',
  'stencil',
]


def maybe(text: str, p: float = 0.5) -> Augment:
  """Applies a whole chain with probability `p`: `maybe('color_jitter(0.4, 0.4) | blur(1)', p=0.8)`.

  Each operation in it keeps its own probability. The chain is computed for every image.

  Raises:
    ValueError: as `compose`, or `p` lies outside [0, 1]; from the operation, the chain changes the
      shape of the image.
  """
  check_probability('p', p)
  change = _chain(_compose.build(text, sys.modules[__name__]))

  def apply(rng: Array, image: Array) -> Array:
    coin, rng = jax.random.split(rng)
    changed = change(rng, image)
    if changed.shape != image.shape:
      raise ValueError(
        f'maybe({text!r}) turns an image of {list(image.shape)} into {list(changed.shape)}; '
        'choose operations that keep the shape'
      )
    return jnp.where(jax.random.uniform(coin) < p, changed, image)

  return apply


def _chain(operations: list[Augment]) -> Augment:
  """One operation after the other, each with a key of its own."""

  def apply(rng: Array, image: Array) -> Array:
    for i, operation in enumerate(operations):
      image = operation(jax.random.fold_in(rng, i), image)
    return image

  return apply


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
  one = _chain(operations)

  def batch(rng: Array, images: Array, ids: Array | None = None) -> Array:
    if not operations:
      return images
    if ids is None:
      keys = jax.random.split(rng, images.shape[0])
    else:
      keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, ids)
    return jax.vmap(one)(keys, images)

  return batch

"""From a batch's uint8 images to what an encoder reads; every objective on images begins here."""

import jax
import jax.numpy as jnp

from vit_jax import augment as augment_lib
from vit_jax.arrays import Array


def prepare(
  image: Array,
  augment: str,
  rng: Array | None,
  *,
  mean: float | tuple[float, ...] = 0.5,
  std: float | tuple[float, ...] = 0.5,
) -> Array:
  """Scales, augments and normalises images, on the device.

  Args:
    image: `[B, H, W, C]` uint8 (0 to 255), or float already in [0, 1].
    augment: device transforms, such as `'color_distort(0.5) | blur'`.
    rng: key of the augmentations; None where `augment` draws nothing.
    mean: subtracted, by channel or for all, on the scale [0, 1].
    std: divided by, likewise. The defaults map [0, 1] to [-1, 1].

  Returns:
    `[B, H, W, C']` float32; C' is what the transforms make of C.
  """
  if image.dtype == jnp.uint8:
    image = image.astype(jnp.float32) / 255
  if augment:
    rng = jax.random.key(0) if rng is None else rng
    image = augment_lib.compose(augment)(rng, image)
  return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)

"""From a batch's uint8 images to what an encoder reads; every objective on images begins here."""

import jax
import jax.numpy as jnp

from vit_jax import augment as augment_lib
from vit_jax.arrays import Array, Batch


def view(batch: Batch, augment: str, rng: Array | None) -> Array:
  """Scales and augments images, on the device.

  Args:
    batch: `image [B, H, W, C]`, uint8 or float already in [0, 1]; in evaluation `id [B]` too.
    augment: device transforms, such as `'color_distort(0.5) | blur'`.
    rng: key of the augmentations in training; None in evaluation, where every example has a fixed
      key of its own by its `id`, so that nothing depends on the batch that it is in.

  Returns:
    `[B, H, W, C']` float32, on the scale [0, 1]; C' is what the transforms make of C.
  """
  image = batch['image']
  if image.dtype == jnp.uint8:
    image = image.astype(jnp.float32) / 255
  change = augment_lib.compose(augment)
  if rng is not None:
    return change(rng, image)
  ids = batch.get('id', jnp.zeros(image.shape[0], jnp.int32))
  return change(jax.random.key(0), image, ids)


def normalize(
  image: Array, mean: float | tuple[float, ...] = 0.5, std: float | tuple[float, ...] = 0.5
) -> Array:
  """`(image - mean) / std`, by channel or for all; the defaults map [0, 1] to [-1, 1].

  Args:
    image: `[B, H, W, C]` float on the scale [0, 1].
    mean: on the same scale.
    std: likewise.
  """
  return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)

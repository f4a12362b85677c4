"""From a batch's uint8 images to what an encoder reads; every objective on images begins here."""

from collections.abc import Sequence

import flax.linen as nn
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
  image = _scale(batch['image'])
  change = augment_lib.compose(augment)
  if rng is not None:
    return change(rng, image)
  return change(jax.random.key(0), image, _ids(batch, image.shape[0]))


def augmented(objective: nn.Module, batch: Batch, *, train: bool) -> Array:
  """The `view` that an objective's own `augment` makes in training, and `eval_augment` else.

  Args:
    objective: has these two fields, and in training draws from the stream `augment`.
    batch: as of `view`.
    train: which of the two.
  """
  augment = objective.augment if train else objective.eval_augment
  rng = objective.make_rng('augment') if train and augment else None
  return view(batch, augment, rng)


def views(batch: Batch, augment: str | Sequence[str], rng: Array | None, count: int) -> Array:
  """Scales and augments several views of every image, each by draws of its own.

  Args:
    batch: `views [B, V, H, W, C]`, uint8 or float in [0, 1], made by the host; or `image
      [B, H, W, C]`, which every view then begins as. In evaluation `id [B]` too.
    augment: device transforms of all views, or a sequence, one for each.
    rng: as of `view`.
    count: V where the host made no views.

  Returns:
    `[B, V, H, W, C']` float32, on the scale [0, 1].

  Raises:
    ValueError: another number of views than of augmentations.
  """
  if 'views' in batch:
    made = _scale(batch['views'])
    count = made.shape[1]
  else:
    image = _scale(batch['image'])
    made = jnp.broadcast_to(image[:, None], (image.shape[0], count, *image.shape[1:]))
  ids = None if rng is not None else _ids(batch, made.shape[0])
  keys = jax.random.split(jax.random.key(0) if rng is None else rng, count)
  if isinstance(augment, str):
    return jax.vmap(augment_lib.compose(augment), (0, 1, None), 1)(keys, made, ids)
  if len(augment) != count:
    raise ValueError(f'{len(augment)} augmentations for {count} views; give one, or one for each')
  changed = [
    augment_lib.compose(text)(key, made[:, i], ids)
    for i, (text, key) in enumerate(zip(augment, keys, strict=True))
  ]
  return jnp.stack(changed, axis=1)


def example_keys(batch: Batch, rng: Array | None) -> Array:
  """A key for each example, which what makes its target is drawn from.

  Args:
    batch: `image [B, H, W, C]`; in evaluation `id [B]` too.
    rng: in training, such as `make_rng('augment')`; None in evaluation, where every example has a
      fixed key of its own by its `id`, so that nothing depends on the batch that it is in.

  Returns:
    `[B]` keys.
  """
  size = batch['image'].shape[0]
  if rng is not None:
    return jax.random.split(rng, size)
  # Not the key of `view`: a target must not follow from what an augmentation drew.
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), _ids(batch, size))


def _scale(image: Array) -> Array:
  return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def _ids(batch: Batch, size: int) -> Array:
  return batch.get('id', jnp.zeros(size, jnp.int32))


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


def denormalize(
  image: Array, mean: float | tuple[float, ...] = 0.5, std: float | tuple[float, ...] = 0.5
) -> Array:
  """What `normalize` was given, limited to [0, 1]: for pictures of what a model predicts."""
  image = image * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)
  return jnp.clip(image, 0, 1)

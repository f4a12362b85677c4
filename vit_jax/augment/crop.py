"""Crop and resize on the device: the 'inception crop', as the host's transform draws it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.augment.chance import Augment, check_range, filter_axes, sometimes

TRIES = 10  # draws of a box before the central one is taken


def random_resized_crop(
  size: int | tuple[int, int] | None = None,
  min_area: float = 0.08,
  max_area: float = 1.0,
  min_aspect: float = 3 / 4,
  max_aspect: float = 4 / 3,
  p: float = 1.0,
) -> Augment:
  """Cuts out a random part of the image and resizes it. Section 2.1 of arXiv:2002.05709.

  The area is uniform in [min_area, max_area] of the image, the aspect (width / height) log-uniform
  in [min_aspect, max_aspect]. After 10 draws that do not fit, the largest central crop whose aspect
  is in range.

  Args:
    size: of the answer, one side or (height, width); None is that of the image.
    min_area: the least part of the image.
    max_area: the largest.
    min_aspect: the least width over height.
    max_aspect: the largest.
    p: the probability; otherwise the whole image is resized.

  Raises:
    ValueError: `size` is no size, areas or aspects are no ranges, or `p` lies outside [0, 1].
  """
  size = _pair(size)
  area = check_range('(min_area, max_area)', (min_area, max_area), least=1e-6)
  if max_area > 1:
    raise ValueError(f'max_area={max_area} is above 1')
  aspect = check_range('(min_aspect, max_aspect)', (min_aspect, max_aspect), least=1e-3)

  def change(rng: Array, image: Array) -> Array:
    box = draw_box(rng, *image.shape[:2], area, aspect)
    return crop_resize(image, box, size or image.shape[:2])

  def whole(image: Array) -> Array:
    height, width = image.shape[:2]
    if size in (None, (height, width)):
      return image
    return crop_resize(image, jnp.asarray([0, 0, height, width]), size)

  return sometimes(p, change, otherwise=whole)


def draw_box(
  rng: Array, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Array:
  """Draws [top, left, height, width], int32 [4], inside of an image; see `random_resized_crop`."""
  draw = jax.random.uniform(rng, (TRIES + 1, 2))
  draw, place = draw[:-1], draw[-1]
  part = (area[0] + draw[:, 0] * (area[1] - area[0])) * height * width
  low, high = np.log(aspect)
  image_sides = np.array([height, width])
  ratio = jnp.exp(low + draw[:, 1] * (high - low))
  sides = jnp.round(jnp.sqrt(jnp.stack([part / ratio, part * ratio], -1)))  # [TRIES, 2]
  fits = ((sides > 0) & (sides <= image_sides)).all(-1)
  sides = sides[jnp.argmax(fits)]  # the first of several that fit
  corner = jnp.floor(place * (image_sides - sides + 1))
  box = jnp.concatenate([corner, sides]).astype(jnp.int32)
  return jnp.where(fits.any(), box, _central(height, width, aspect))


def _central(height: int, width: int, aspect: tuple[float, float]) -> np.ndarray:
  """The largest central box whose aspect is in range."""
  ratio = min(max(width / height, aspect[0]), aspect[1])
  h, w = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
  return np.array([(height - h) // 2, (width - w) // 2, h, w], np.int32)


def crop_resize(image: Array, box: Array, size: tuple[int, int]) -> Array:
  """Resizes a part of the image, bilinearly with antialiasing: one matrix an axis.

  `jax.image.scale_and_translate` is as fast, but where a box ends inside of the image its filter
  reads on; here, as where a crop is cut out first, what is outside of the box has no weight.

  Args:
    image: [H, W, C] float; the colours of RGBA are weighted by alpha.
    box: [4] int, (top, left, height, width), inside of the image.
    size: (height, width) of the answer.
  """
  rows = _weights(box[0], box[2], image.shape[0], size[0])
  columns = _weights(box[1], box[3], image.shape[1], size[1])
  return filter_axes(image, rows, columns)


def _weights(start: Array, length: Array, inputs: int, outputs: int) -> Array:
  """Triangles about the outputs' places, as wide as the reduction: [outputs, inputs]."""
  scale = length / outputs
  center = start + (jnp.arange(outputs) + 0.5) * scale
  place = jnp.arange(inputs) + 0.5
  weight = jnp.maximum(0, 1 - jnp.abs(place - center[:, None]) / jnp.maximum(scale, 1))
  weight = weight * ((place > start) & (place < start + length))
  return weight / weight.sum(1, keepdims=True)


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
  if size is None:
    return None
  pair = (size, size) if isinstance(size, int) else tuple(size)
  if len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
    raise ValueError(f'size={size!r} is neither a positive integer nor two, (height, width)')
  return pair

"""Where things are: an affine warp (scale, aspect, rotation, shear, shift, flip) and quarter turns.

And what is covered: erasing and cutout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.augment.chance import (
  Augment,
  check_probability,
  check_range,
  join_alpha,
  sometimes,
  split_alpha,
)


def affine(
  scale: tuple[float, float] = (1.0, 1.0),
  aspect: float = 1.0,
  rotate: float = 0.0,
  shear: float = 0.0,
  shift: float = 0.0,
  flip: float = 0.0,
  fill: float = 1.0,
  p: float = 1.0,
) -> Augment:
  """Warps the image about its centre, all at once and with one bilinear lookup.

  Args:
    scale: the drawing becomes this much larger, (low, high), evenly drawn in its logarithm; below 1
      it shrinks.
    aspect: height over width is multiplied by up to this factor or its inverse; 1 keeps it.
    rotate: up to this many degrees either way.
    shear: the x axis leans by up to this slope either way.
    shift: moves by up to this part of the side either way, on both axes.
    flip: the probability of a left-right flip.
    fill: what comes in from outside, 0 to 1; RGBA is filled with transparency instead.
    p: the probability of any of this.

  Raises:
    ValueError: `scale` is no range above 0, `aspect` is below 1, or a probability lies outside
      [0, 1].
  """
  low, high = np.log(check_range('scale', scale, least=1e-3))
  if aspect < 1:
    raise ValueError(f'aspect={aspect} is below 1')
  check_probability('flip', flip)

  def change(rng: Array, image: Array) -> Array:
    draw = jax.random.uniform(rng, (7,), minval=-1, maxval=1)
    size = jnp.exp(low + (draw[0] + 1) / 2 * (high - low))
    stretch = jnp.exp(draw[1] * np.log(aspect) / 2)
    angle = draw[2] * np.deg2rad(rotate)
    lean = draw[3] * shear
    mirror = jnp.where((draw[6] + 1) / 2 < flip, -1.0, 1.0)
    # From a place in the answer back to one in the image: rotate, lean, then rescale each axis.
    c, s = jnp.cos(angle), jnp.sin(angle)
    rows = jnp.stack([c, s]) / (size * stretch)
    columns = (jnp.stack([-s, c]) + lean * jnp.stack([c, s])) * stretch / size * mirror
    return warp(image, jnp.stack([rows, columns]), draw[4:6] * shift, fill=fill)

  return sometimes(p, change)


def warp(image: Array, matrix: Array, shift: Array, *, fill: float = 1.0) -> Array:
  """Looks up, for each pixel of the answer, a place in `image`, bilinearly.

  Args:
    image: [H, W, C]; the colours of RGBA are weighted by alpha: what is invisible does not bleed.
    matrix: [2, 2], from (row, column) about the centre of the answer, in parts of the sides, to
      those of the image.
    shift: [2], (row, column) by which the drawing moves, in parts of the sides.
    fill: what lies outside of the image; transparency for RGBA.
  """
  height, width, channels = image.shape
  color, alpha = split_alpha(image)
  if alpha is not None:
    image, fill = join_alpha(color * alpha, alpha), 0.0
  y = (jnp.arange(height) + 0.5) / height - 0.5 - shift[0]
  x = (jnp.arange(width) + 0.5) / width - 0.5 - shift[1]
  source_y = matrix[0, 0] * y[:, None] + matrix[0, 1] * x[None]  # [H, W]
  source_x = matrix[1, 0] * y[:, None] + matrix[1, 1] * x[None]
  source_y, source_x = (source_y + 0.5) * height - 0.5, (source_x + 0.5) * width - 0.5
  top, left = jnp.floor(source_y), jnp.floor(source_x)
  down, right = source_y - top, source_x - left
  top, left = top.astype(jnp.int32), left.astype(jnp.int32)

  flat = image.reshape(-1, channels) - fill  # [H * W, C]; outside is then 0
  total = 0.0
  for i, weight_y in ((top, 1 - down), (top + 1, down)):
    for j, weight_x in ((left, 1 - right), (left + 1, right)):
      inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
      place = jnp.where(inside, i * width + j, 0)
      total = total + flat[place] * (weight_y * weight_x * inside)[..., None]  # [H, W, C]
  total = total + fill
  if alpha is None:
    return total
  color, alpha = split_alpha(total)
  return join_alpha(color / jnp.maximum(alpha, 1e-6), alpha)


def flip(p: float = 0.5) -> Augment:
  """Flips left and right with probability `p`.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """
  return sometimes(p, lambda rng, image: image[:, ::-1])


def erase(
  p: float = 0.25, area: tuple[float, float] = (0.02, 0.33), fill: float | None = None
) -> Augment:
  """Random erasing: overwrites one rectangle. Zhong et al. 2017, arXiv:1708.04896.

  Args:
    p: the probability.
    area: the part of the image that the rectangle covers, (low, high); its aspect is 0.3 to 3.3.
    fill: the value written; None is a random colour. RGBA becomes transparent there instead.

  Raises:
    ValueError: `area` is no range above 0, or `p` lies outside [0, 1].
  """
  low, high = check_range('area', area, least=1e-4)

  def change(rng: Array, image: Array) -> Array:
    height, width, channels = image.shape
    rng_size, rng_place, rng_fill = jax.random.split(rng, 3)
    draw = jax.random.uniform(rng_size, (2,))
    part = low + draw[0] * (high - low)
    ratio = jnp.exp((2 * draw[1] - 1) * np.log(3.3))
    sides = jnp.sqrt(jnp.stack([part * ratio, part / ratio]))  # of (height, width), in parts
    sides = jnp.minimum(sides, 1.0)
    start = jax.random.uniform(rng_place, (2,)) * (1 - sides)
    y, x = (jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width
    inside_y = (y >= start[0]) & (y < start[0] + sides[0])
    inside_x = (x >= start[1]) & (x < start[1] + sides[1])
    value = jax.random.uniform(rng_fill, (channels,)) if fill is None else fill
    return _overwrite(image, inside_y, inside_x, value)

  return sometimes(p, change)


def cutout(size: float = 0.5, p: float = 0.5, fill: float = 0.5) -> Augment:
  """Overwrites a square whose centre is any pixel, so that part of it can lie outside.

  DeVries & Taylor 2017, arXiv:1708.04552, Section 3.

  Args:
    size: of the square, as a part of the shorter side; it is rounded to pixels.
    p: the probability.
    fill: the value written, 0 to 1; RGBA becomes transparent there instead.

  Raises:
    ValueError: `size` is not in (0, 1], or `p` lies outside [0, 1].
  """
  if not 0 < size <= 1:
    raise ValueError(f'size={size} is not in (0, 1]')

  def change(rng: Array, image: Array) -> Array:
    shape = image.shape[:2]
    side = round(size * min(shape))

    center = jnp.floor(jax.random.uniform(rng, (2,)) * np.array(shape))

    def inside(length: int, center: Array) -> Array:
      place = jnp.arange(length) - center
      return (place >= -(side // 2)) & (place < side - side // 2)

    return _overwrite(image, *map(inside, shape, center), fill)

  return sometimes(p, change)


def _overwrite(image: Array, rows: Array, columns: Array, value: Array | float) -> Array:
  """Writes where both `rows` [H] and `columns` [W] are True; RGBA becomes transparent there."""
  inside = (rows[:, None] & columns[None])[..., None]  # [H, W, 1]
  if image.shape[-1] == 4:
    return image * jnp.where(inside, jnp.asarray([1.0, 1.0, 1.0, 0.0]), 1.0)
  return jnp.where(inside, value, image)


def rotate90(p: float = 0.5) -> Augment:
  """Rotates by 90, 180 or 270 degrees, evenly drawn; p=0.75 makes all four directions as likely.

  Raises:
    ValueError: `p` lies outside [0, 1]; from the operation, the image is not square.
  """

  def change(rng: Array, image: Array) -> Array:
    if image.shape[0] != image.shape[1]:
      raise ValueError(f'rotate90 takes square images, not {image.shape[0]} x {image.shape[1]}')
    turns = jax.random.randint(rng, (), 0, 3)
    return jax.lax.select_n(turns, *(jnp.rot90(image, k) for k in (1, 2, 3)))

  return sometimes(p, change)

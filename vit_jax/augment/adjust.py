"""Colour changes by given amounts, as torchvision defines them: what `color_jitter` applies.

Planes are [C, H, W]: with the channels in front, where each is one run of memory, the jitter of a
batch takes a sixth of the time on a CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BRIGHTNESS, CONTRAST, SATURATION = range(3)


def luma(color: Array) -> Array:
  """Brightness of RGB [..., 3] (or of grey, [..., 1]) as [..., 1]."""
  if color.shape[-1] == 1:
    return color
  return jnp.sum(color * jnp.asarray(LUMA, color.dtype), -1, keepdims=True)


def draw_order(rng: Array) -> tuple[Array, Array]:
  """One of the 24 orders of `jitter`: `order` [3] and `hue_at`, int32."""
  draw = jax.random.uniform(rng, (4,))
  return jnp.argsort(draw[:3]), jnp.floor(draw[3] * 4).astype(jnp.int32)


def jitter(
  color: Array,
  factors: Array,
  turn: Array | float,
  order: Array,
  hue_at: Array | int,
  weight: Array | None = None,
) -> Array:
  """Brightness, contrast, saturation and hue, one after the other in any of the 24 orders.

  The first three mix the image with another one and clip to [0, 1]: brightness with black, contrast
  with the mean of its luma, saturation with its luma. They are computed twice, before and after the
  hue, each time without effect for those whose turn it is not: this costs less than one hue more.

  Args:
    color: [H, W, C] in [0, 1], C is 1 or 3; saturation and hue leave grey as it is.
    factors: [3], of brightness, contrast and saturation; 1 changes nothing.
    turn: of the hue, in circles.
    order: [3], a permutation of `BRIGHTNESS`, `CONTRAST`, `SATURATION`.
    hue_at: how many of the three come before the hue, 0 to 3.
    weight: [H, W, 1], of each pixel in the mean of the luma; None is 1.
  """
  planes = jnp.moveaxis(color, -1, 0)
  share = 1 / planes[0].size if weight is None else weight[..., 0] / jnp.maximum(weight.sum(), 1e-6)

  def before(i: Array, planes: Array) -> Array:
    factor = jnp.where(i < hue_at, factors[order[i]], 1.0)
    return _mix(planes, order[i], factor, share)

  def after(i: Array, planes: Array) -> Array:
    factor = jnp.where(i < hue_at, 1.0, factors[order[i]])
    return _mix(planes, order[i], factor, share)

  # Loops: no slower on a CPU than six copies, and compiled in less time.
  planes = jax.lax.fori_loop(0, 3, before, planes)
  if len(planes) == 3:
    planes = _turn_hue(planes, turn)
  return jnp.moveaxis(jax.lax.fori_loop(0, 3, after, planes), 0, -1)


def _mix(planes: Array, operation: Array, factor: Array, share: Array | float) -> Array:
  """The factor of the image and the rest of another one, which the operation names."""
  gray = planes[0]
  if len(planes) == 3:
    gray = LUMA[0] * planes[0] + LUMA[1] * planes[1] + LUMA[2] * planes[2]  # [H, W]
  mean = jnp.sum(gray * share)
  other = jnp.where(operation == SATURATION, gray, jnp.where(operation == CONTRAST, mean, 0.0))
  return jnp.clip(planes * factor + other * (1 - factor), 0, 1)


def _turn_hue(planes: Array, turn: Array | float) -> Array:
  """Turns the hue of [3, H, W] on the hexagon of HSV; value and saturation stay exactly."""
  red, green, blue = planes
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  scale = jnp.where(chroma > 0, chroma, 1.0)
  hue = jnp.where(
    value == red,
    (green - blue) / scale,
    jnp.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
  )
  hue = hue + 6 * turn  # in sixths of the circle, from red

  def channel(offset: int) -> Array:
    """1 minus what this channel lacks: nothing within 1 of its colour, all of it from 2 on."""
    place = hue + offset
    place = place - 6 * jnp.floor(place / 6)
    return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)

  return jnp.stack([channel(5), channel(3), channel(1)])

"""Photometric changes of RGB, RGBA (alpha is kept) and, where it makes sense, grey."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.augment.chance import Augment, join_alpha, sometimes, split_alpha

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# RGB -> YIQ: in the I, Q plane a change of hue is a rotation, of saturation a scaling.
_YIQ = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], np.float32)
_RGB = np.linalg.inv(_YIQ)


def luma(color: Array) -> Array:
  """Brightness of RGB [..., 3] (or of grey, [..., 1]) as [..., 1]."""
  if color.shape[-1] == 1:
    return color
  return jnp.sum(color * jnp.asarray(LUMA, color.dtype), -1, keepdims=True)


def color_distort(strength: float = 1.0, p: float = 0.8, gray: float = 0.2) -> Augment:
  """SimCLR's colour distortion: jitter with probability `p`, then grey with probability `gray`.

  Brightness, contrast and saturation are multiplied by 1 +- 0.8 `strength` and the hue turned by
  up to 0.2 `strength` of a circle, as in Appendix A of arXiv:2002.05709, but in this one order,
  and with contrast taken about the mean of what is visible.

  Raises:
    ValueError: `strength` is negative, or a probability outside [0, 1].
  """
  if strength < 0:
    raise ValueError(f'strength={strength} is negative')
  to_gray = grayscale(gray)

  def jitter(rng: Array, image: Array) -> Array:
    color, alpha = split_alpha(image)
    rng = jax.random.split(rng, 4)
    low = max(0.0, 1 - 0.8 * strength)
    brightness, contrast, saturation = (
      jax.random.uniform(k, minval=low, maxval=1 + 0.8 * strength) for k in rng[:3]
    )
    color = jnp.clip(color * brightness, 0, 1)
    weight = jnp.ones_like(color[..., :1]) if alpha is None else alpha
    mean = jnp.sum(luma(color) * weight) / jnp.maximum(jnp.sum(weight), 1e-6)
    color = jnp.clip((color - mean) * contrast + mean, 0, 1)
    if color.shape[-1] == 3:
      turn = 2 * jnp.pi * jax.random.uniform(rng[3], minval=-0.2, maxval=0.2) * strength
      color = _turn_hue(color, turn, saturation)
    return join_alpha(color, alpha)

  jitter = sometimes(p, jitter)

  def apply(rng: Array, image: Array) -> Array:
    rng = jax.random.split(rng)
    return to_gray(rng[1], jitter(rng[0], image))

  return apply


def _turn_hue(color: Array, angle: Array, saturation: Array | float) -> Array:
  c, s = jnp.cos(angle) * saturation, jnp.sin(angle) * saturation
  zero, one = jnp.zeros_like(c), jnp.ones_like(c)
  turn = jnp.stack([one, zero, zero, zero, c, -s, zero, s, c]).reshape(3, 3)
  matrix = jnp.asarray(_RGB) @ turn @ jnp.asarray(_YIQ)  # [3, 3]
  return color @ matrix.T


def hue(turn: float = 0.5, p: float = 1.0) -> Augment:
  """Turns the hue by up to `turn` of a circle either way: 0.5 reaches every hue.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """

  def change(rng: Array, image: Array) -> Array:
    color, alpha = split_alpha(image)
    if color.shape[-1] == 1:
      return image
    angle = 2 * jnp.pi * jax.random.uniform(rng, minval=-turn, maxval=turn)
    return join_alpha(_turn_hue(color, angle, 1.0), alpha)

  return sometimes(p, change)


def grayscale(p: float = 0.2) -> Augment:
  """Drops the colour and keeps three equal channels, with probability `p`.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """

  def change(rng: Array, image: Array) -> Array:
    del rng
    color, alpha = split_alpha(image)
    return join_alpha(jnp.broadcast_to(luma(color), color.shape), alpha)

  return sometimes(p, change)


def invert(p: float = 0.1) -> Augment:
  """Turns every colour c into 1 - c, with probability `p`; alpha is kept.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """

  def change(rng: Array, image: Array) -> Array:
    del rng
    color, alpha = split_alpha(image)
    return join_alpha(1 - color, alpha)

  return sometimes(p, change)

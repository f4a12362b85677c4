"""Photometric changes of RGB, RGBA (alpha is kept) and, where it makes sense, grey."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.augment import adjust
from vit_jax.augment.adjust import LUMA, luma
from vit_jax.augment.chance import Augment, join_alpha, sometimes, split_alpha
from vit_jax.augment.lab import rgb_to_lab
from vit_jax.choices import check_choice

# RGB -> YIQ: in the I, Q plane a change of hue is a rotation, of saturation a scaling.
_YIQ = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], np.float32)
_RGB = np.linalg.inv(_YIQ)


def color_jitter(
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  p: float = 1.0,
) -> Augment:
  """Brightness, contrast, saturation and hue, in an order drawn for each image.

  Each change is torchvision's (its rounding of uint8 aside): contrast about the mean luma, of what
  is visible in RGBA, and the hue on the hexagon of HSV. Saturation and hue leave grey as it is.

  Args:
    brightness: the colours are multiplied by 1 +- this; 0.4 draws from 0.6 to 1.4.
    contrast: likewise the distance to the mean luma.
    saturation: likewise the distance to the pixel's own luma.
    hue: turned by up to this part of a circle either way, at most 0.5.
    p: the probability of any of this.

  Raises:
    ValueError: a strength is negative, `hue` is above 0.5, or `p` lies outside [0, 1].
  """
  strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
  for name, value in strengths.items():
    if value < 0:
      raise ValueError(f'{name}={value} is negative')
  if hue > 0.5:
    raise ValueError(f'hue={hue} is above 0.5, which reaches every hue')
  factors = np.array([brightness, contrast, saturation], np.float32)
  low, high = np.append(np.maximum(1 - factors, 0), -hue), np.append(1 + factors, hue)

  def change(rng: Array, image: Array) -> Array:
    rng_amounts, rng_order = jax.random.split(rng)
    amounts = jax.random.uniform(rng_amounts, (4,), minval=low, maxval=high)
    color, alpha = split_alpha(image)
    color = adjust.jitter(color, amounts[:3], amounts[3], *adjust.draw_order(rng_order), alpha)
    return join_alpha(color, alpha)

  return sometimes(p, change)


def color_distort(
  strength: float = 1.0, p: float = 0.8, gray: float = 0.2, order: str = 'fixed'
) -> Augment:
  """SimCLR's colour distortion: jitter with probability `p`, then grey with probability `gray`.

  Appendix A of arXiv:2002.05709: brightness, contrast and saturation are multiplied by 1 +- 0.8
  `strength` and the hue turned by up to 0.2 `strength` of a circle.

  Args:
    strength: of the jitter.
    p: the probability of the jitter.
    gray: the probability of dropping the colour.
    order: 'random' is what the paper describes, `color_jitter` in an order drawn for each image.
      'fixed' applies brightness, contrast, then saturation and hue in one product with a matrix,
      which clips otherwise than torchvision's two.

  Raises:
    ValueError: `strength` is negative, an unknown order, or a probability outside [0, 1].
  """
  if strength < 0:
    raise ValueError(f'strength={strength} is negative')
  if check_choice('order', order, ('fixed', 'random')) == 'random':
    jitter = color_jitter(*[0.8 * strength] * 3, 0.2 * strength, p=p)
  else:
    jitter = _fixed_jitter(strength, p)
  to_gray = grayscale(gray)

  def apply(rng: Array, image: Array) -> Array:
    rng = jax.random.split(rng)
    return to_gray(rng[1], jitter(rng[0], image))

  return apply


def _fixed_jitter(strength: float, p: float) -> Augment:
  def change(rng: Array, image: Array) -> Array:
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

  return sometimes(p, change)


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


def lightness(p: float = 1.0) -> Augment:
  """Leaves of a colour its lightness, L / 100 of Lab, in equal channels; alpha is kept.

  Unlike the luma of `grayscale` its steps are what people see as equal.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """

  def change(rng: Array, image: Array) -> Array:
    del rng
    color, alpha = split_alpha(image)
    light = rgb_to_lab(jnp.broadcast_to(color, (*color.shape[:-1], 3)))[..., :1] / 100
    return join_alpha(jnp.broadcast_to(light, color.shape), alpha)

  return sometimes(p, change)


def standardize() -> Augment:
  """Each channel, alpha too, to mean 0 and deviation 1; a flat one to 0.

  The last of a chain: alone of all it leaves [0, 1]. A model of such images has mean 0 and std 1.
  """

  def change(rng: Array, image: Array) -> Array:
    del rng
    return standardized(image.astype(jnp.float32)).astype(image.dtype)

  return change


def standardized(image: Array) -> Array:
  """`[..., H, W, C]` with mean 0 and deviation 1 in each channel of each image; a flat one is 0."""
  centred = image - image.mean(axis=(-3, -2), keepdims=True)
  variance = jnp.square(centred).mean(axis=(-3, -2), keepdims=True)
  # A deviation of a 255th, the least step of a pixel, is none to speak of.
  return centred * jax.lax.rsqrt(variance + 255.0**-2)


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


def solarize(threshold: float = 0.5, p: float = 0.2) -> Augment:
  """Inverts the values from `threshold` up, with probability `p`; alpha is kept.

  Appendix B of arXiv:2006.07733 (BYOL) has it with 0.5 and 0.2, in the second view only.

  Raises:
    ValueError: `threshold` or `p` lies outside [0, 1].
  """
  if not 0 <= threshold <= 1:
    raise ValueError(f'threshold={threshold} is outside [0, 1]')

  def change(rng: Array, image: Array) -> Array:
    del rng
    color, alpha = split_alpha(image)
    return join_alpha(jnp.where(color >= threshold, 1 - color, color), alpha)

  return sometimes(p, change)

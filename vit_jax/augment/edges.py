"""From painted to drawn: outlines, sketches, stencils and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.augment.adjust import luma
from vit_jax.augment.chance import Augment, join_alpha, sometimes, split_alpha


def contours(image: Array) -> Array:
  """How strongly colour or alpha changes about each pixel, [H, W, C] -> [H, W, 1] in [0, 1].

  The largest minus the smallest value in the cross of 5 pixels, the largest over the channels;
  RGBA counts as painted on white, and its alpha as one more channel. Outside of the image lies
  white, or transparency.
  """
  color, alpha = split_alpha(image)
  if alpha is not None:
    image = jnp.concatenate([color * alpha + 1 - alpha, 1 - alpha], -1)
  padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=1.0)
  cross = (
    padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
  )  # fmt: skip
  high, low = cross[0], cross[0]
  for neighbour in cross[1:]:
    high, low = jnp.maximum(high, neighbour), jnp.minimum(low, neighbour)
  return jnp.max(high - low, -1, keepdims=True)


def _ink(rng: Array, image: Array) -> Array:
  """Contours above a random threshold, with soft ends, [H, W, 1]."""
  threshold = jax.random.uniform(rng, minval=0.15, maxval=0.6)
  return jnp.clip((contours(image) - threshold) * 4, 0, 1)


def _cover(image: Array, ink: Array) -> Array:
  """Black ink over an image; it also covers what was transparent."""
  color, alpha = split_alpha(image)
  if alpha is None:
    return color * (1 - ink)
  total = ink + alpha * (1 - ink)
  return join_alpha(color * alpha * (1 - ink) / jnp.maximum(total, 1e-6), total)


def _blank(image: Array) -> Array:
  """An empty sheet of the same kind: transparent for RGBA, else white."""
  color, alpha = split_alpha(image)
  return jnp.ones_like(color) if alpha is None else jnp.zeros_like(image)


def outline(p: float = 0.5) -> Augment:
  """Draws the contours in black over the image, with probability `p`.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """
  return sometimes(p, lambda rng, image: _cover(image, _ink(rng, image)))


def sketch(p: float = 0.2) -> Augment:
  """Keeps the contours alone, black on nothing (on white without alpha), with probability `p`.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """
  return sometimes(p, lambda rng, image: _cover(_blank(image), _ink(rng, image)))


def stencil(p: float = 0.2) -> Augment:
  """Makes what is darker than a random threshold black and the rest nothing, with probability `p`.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """

  def change(rng: Array, image: Array) -> Array:
    color, alpha = split_alpha(image)
    threshold = jax.random.uniform(rng, minval=0.25, maxval=0.8)
    ink = jnp.clip((threshold - luma(color)) * 8 + 0.5, 0, 1)
    if alpha is not None:
      ink = ink * alpha
    return _cover(_blank(image), ink)

  return sometimes(p, change)


def sobel(p: float = 0.2) -> Augment:
  """Shows how steeply each channel changes, with probability `p`. Figure 4 of arXiv:2002.05709.

  sqrt(gx^2 + gy^2) / 4, clipped at 1, where gx is the image correlated with the outer product of
  (1, 2, 1) down and (-1, 0, 1) across, and gy with its transpose; outside lies the nearest pixel. A
  straight edge from black to white is 1. RGBA counts as painted on white and becomes opaque.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """

  def change(rng: Array, image: Array) -> Array:
    del rng
    color, alpha = split_alpha(image)
    if alpha is None:
      return _steepness(color)
    return join_alpha(_steepness(color * alpha + 1 - alpha), jnp.ones_like(alpha))

  return sometimes(p, change)


def _steepness(image: Array) -> Array:
  padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode='edge')
  down = padded[:-2] + 2 * padded[1:-1] + padded[2:]  # [H, W + 2, C]
  across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]  # [H + 2, W, C]
  squares = (down[:, 2:] - down[:, :-2]) ** 2 + (across[2:] - across[:-2]) ** 2
  return jnp.sqrt(jnp.maximum(squares, 1e-12)) / 4  # The root has no derivative at 0.

"""sRGB and CIE L*a*b*: colour as lightness and two axes, in which distances are what people see.

Standard illuminant D65 and the observer of 2 degrees, as scikit-image has them.
"""

import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array

# IEC 61966-2-1: linear sRGB to XYZ, and the XYZ of white.
XYZ = np.array(
  [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])

# CIE 15: below these a cube root, or a power, goes on as a straight line.
_RATIO, _ROOT = 0.008856, 0.2068966
_SLOPE, _START = 7.787, 16 / 116
# From the roots of X, Y and Z to L + 16, a and b.
_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])


def rgb_to_lab(rgb: Array) -> Array:
  """From sRGB to Lab.

  Args:
    rgb: `[..., 3]` float in [0, 1].

  Returns:
    `[..., 3]`: L in [0, 100]; a, from green to red, and b, from blue to yellow, about -110 to 110.
    Of grey a and b are below 0.01. Gradients are finite.
  """
  # A power has no derivative at 0: the branch that is not taken is kept away from there.
  curved = _power((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055, 2.4)
  linear = jnp.where(rgb > 0.04045, curved, rgb / 12.92)
  ratio = _times(linear, XYZ / WHITE[:, None])
  root = _power(jnp.maximum(ratio, _RATIO), 1 / 3)
  root = jnp.where(ratio > _RATIO, root, _SLOPE * ratio + _START)
  return _times(root, _LAB) - jnp.asarray((16.0, 0.0, 0.0))


def lab_to_rgb(lab: Array) -> Array:
  """From Lab to sRGB in [0, 1]; what lies outside of it is cut off, channel by channel.

  Args:
    lab: `[..., 3]`, as `rgb_to_lab` gives it.
  """
  # No blue light is less than none.
  root = jnp.maximum(
    _times(lab + jnp.asarray((16.0, 0.0, 0.0)), np.linalg.inv(_LAB)),
    jnp.asarray((-np.inf, -np.inf, 0.0)),
  )
  ratio = jnp.where(root > _ROOT, root**3, (root - _START) / _SLOPE)
  linear = _times(ratio, np.linalg.inv(XYZ) * WHITE)
  curved = 1.055 * _power(jnp.maximum(linear, 0.0031308), 1 / 2.4) - 0.055
  return jnp.clip(jnp.where(linear > 0.0031308, curved, 12.92 * linear), 0, 1)


def _power(x: Array, exponent: float) -> Array:
  # XLA's CPU backend vectorises these two, and neither powers nor cube roots.
  return jnp.exp(exponent * jnp.log(x))


def _times(x: Array, matrix: np.ndarray) -> Array:
  """A matrix times `[..., 3]`. As a product: sums XLA would fuse, and repeat the powers in each."""
  return jnp.matmul(x, jnp.asarray(matrix.T, x.dtype), precision='highest')

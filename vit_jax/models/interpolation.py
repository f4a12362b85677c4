"""Interpolation as matrices, in NumPy: `rows @ x @ columns.T` resizes a grid.

It is linear and works on each axis alone, so two small matrices say all of it. They are built in
double precision, and what they are multiplied in is up to the caller.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

Kernel = Callable[[np.ndarray], np.ndarray]
Matrix = Callable[[int, int], np.ndarray]


def triangle(x: np.ndarray) -> np.ndarray:
  """The kernel of linear interpolation, at distances `x` in pixels."""
  return np.maximum(1 - np.abs(x), 0)


def cubic(x: np.ndarray, slope: float) -> np.ndarray:
  """Keys's kernel of 1981, whose slope is `slope` one pixel from its centre."""
  x = np.abs(x)
  near = (slope + 2) * x**3 - (slope + 3) * x**2 + 1
  far = slope * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def from_edges(size: int, new_size: int, *, kernel: Kernel, antialias: bool) -> np.ndarray:
  """Interpolation along one axis with the outer edges of the pixels kept.

  PyTorch's `align_corners=False`. Its two ways differ past the edge too: plain interpolation sees
  the last pixel repeated, antialiasing sees nothing there and divides by the weights that remain.

  Args:
    size: pixels.
    new_size: pixels of the result.
    kernel: weights by distance, none beyond 2 pixels; `triangle`, or `cubic` with a slope.
    antialias: whether the kernel grows with the pixels of the result where these are larger.

  Returns:
    `[new_size, size]` float64, whose rows sum to 1.
  """
  scale = size / new_size
  centers = ((np.arange(new_size) + 0.5) * scale - 0.5)[:, None]  # in old pixels
  if antialias:
    weights = kernel((np.arange(size) - centers) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)
  reach = 2  # no kernel here is wider
  weights = kernel(np.arange(-reach, size + reach) - centers)
  matrix = weights[:, reach:-reach].copy()
  matrix[:, 0] += weights[:, :reach].sum(axis=1)
  matrix[:, -1] += weights[:, -reach:].sum(axis=1)
  return matrix


def from_corners(size: int, new_size: int) -> np.ndarray:
  """Linear interpolation along one axis with the centres of the first and last pixel kept.

  Args:
    size: pixels.
    new_size: pixels of the result.

  Returns:
    `[new_size, size]` float64, whose rows sum to 1.
  """
  step = (size - 1) / max(new_size - 1, 1)
  # Rounding can put the last place past the last pixel, where SciPy's default reads zeros.
  places = np.minimum(np.arange(new_size) * step, size - 1)[:, None]
  return triangle(np.arange(size) - places)


def resize_grid(rows: np.ndarray, columns: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Multiplies a grid by the matrices of its two axes, in double precision.

  Args:
    rows: `[h', h]`.
    columns: `[w', w]`.
    x: `[h, w, ...]`.

  Returns:
    `[h', w', ...]`, rounded once, to the type of `x`.
  """
  out = np.einsum('ih,jw,hw...->ij...', rows, columns, x.astype(np.float64), optimize=True)
  return out.astype(x.dtype)


# PyTorch's slopes: PIL's with antialiasing, OpenCV's without.
_SMOOTH = partial(from_edges, kernel=partial(cubic, slope=-0.5), antialias=True)

# From the sizes of one axis, old and new, to its matrix: how position embeddings are resized,
POSITION_METHODS: dict[str, Matrix] = {
  'bicubic': _SMOOTH,
  'bicubic_plain': partial(from_edges, kernel=partial(cubic, slope=-0.75), antialias=False),
  'bilinear_zoom': from_corners,
}
# and how patches of pixels are.
PATCH_METHODS: dict[str, Matrix] = {
  'bilinear': partial(from_edges, kernel=triangle, antialias=False),
  'bicubic': _SMOOTH,
}

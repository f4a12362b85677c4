"""Position embeddings that have no parameters."""

import numpy as np


def sincos2d(height: int, width: int, dim: int, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed sines and cosines of the row and of the column of each place on a grid.

  A quarter of the features each: `sin x, cos x, sin y, cos y`, at frequencies that fall
  geometrically from 1 to `1 / temperature`. As in "Better plain ViT baselines", arXiv:2205.01580;
  the idea is MoCo v3's, arXiv:2104.02057, whose code stops one step short of the last frequency.

  Args:
    height: rows of the grid.
    width: columns of the grid.
    dim: features of one embedding.
    temperature: the longest wavelength over the shortest one.

  Returns:
    `[height * width, dim]` float32, row by row.

  Raises:
    ValueError: `dim` is no multiple of 4, or below 8.
  """
  if dim % 4 or dim < 8:
    raise ValueError(f'sincos2d positions need a width of 8, 12, 16, ...; got {dim}')
  omega = temperature ** -np.linspace(0.0, 1.0, dim // 4)
  y, x = np.divmod(np.arange(height * width), width)
  y, x = np.outer(y, omega), np.outer(x, omega)  # [h * w, dim / 4]
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)

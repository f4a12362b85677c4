"""Position embeddings: fixed ones, and learned ones on another grid than their own."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.models.interpolation import POSITION_METHODS


def resample(
  positions: Array, grid: tuple[int, int], new_grid: tuple[int, int], *, method: str = 'bicubic'
) -> Array:
  """Interpolates learned position embeddings to another grid of patches, on the device.

  The same as `adapters.resize.resize_positions`, but differentiable, and part of what is compiled:
  the matrices are constants there.

  Args:
    positions: `[1, N, D]`: those of tokens that are no patches, which stay as they are, then the
      `h * w` of the patches, row by row.
    grid: `(h, w)`, in patches.
    new_grid: `(h', w')`.
    method: a key of `POSITION_METHODS`.

  Returns:
    `[1, N - h * w + h' * w', D]`; `positions` itself where the grid is the same.
  """
  if grid == new_grid:
    return positions
  others, patches = jnp.split(positions, [positions.shape[1] - grid[0] * grid[1]], axis=1)
  rows, columns = (
    POSITION_METHODS[method](old, new).astype(positions.dtype)
    for old, new in zip(grid, new_grid, strict=True)
  )
  patches = jnp.einsum(
    'ih,jw,hwd->ijd',
    rows,
    columns,
    patches.reshape(*grid, -1),
    precision=jax.lax.Precision.HIGHEST,  # TPUs would round to bfloat16 first.
  )  # [h', w', D]
  return jnp.concatenate([others, patches.reshape(1, -1, positions.shape[-1])], axis=1)


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

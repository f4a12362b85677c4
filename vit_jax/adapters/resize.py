"""Position embeddings for another grid and patch kernels for another patch size, on the host.

Both are products with the matrices of `models/interpolation.py`, in double precision; the result
is rounded once, to the type of what came in.
"""

import math

import numpy as np

from vit_jax.choices import check_choice
from vit_jax.models.interpolation import PATCH_METHODS, POSITION_METHODS, resize_grid


def resize_positions(
  positions: np.ndarray,
  grid: tuple[int, int],
  new_grid: tuple[int, int],
  *,
  prefix: int = 0,
  method: str = 'bicubic',
) -> np.ndarray:
  """Interpolates learned position embeddings to another grid of patches.

  Args:
    positions: `[N, D]` or `[1, N, D]` with `N = prefix + h * w`: those of `prefix` tokens that are
      no patches (class token, registers), then those of the patches, row by row.
    grid: `(h, w)`, in patches.
    new_grid: `(h', w')`.
    prefix: how many embeddings come first and stay as they are.
    method: `bicubic`, with antialiasing, as timm does and transformers for DINOv2 with registers;
      `bicubic_plain`, without, as transformers does for ViT and DINOv2 (Meta's own code for DINOv2
      adds 0.1 to the new grid before it divides, and is not this); or `bilinear_zoom`, where the
      corners of both grids coincide, as google-research/vision_transformer and big_vision do.

  Returns:
    `[prefix + h' * w', D]`, or with a leading 1, in the type of `positions`. The same grid returns
    `positions` itself.

  Raises:
    ValueError: an unknown method; a shape that does not fit the grid and the prefix.
  """
  check_choice('method', method, POSITION_METHODS)
  positions = np.asarray(positions)
  grid, new_grid = tuple(grid), tuple(new_grid)
  _check_positions(positions.shape, grid, new_grid, prefix)
  if grid == new_grid:
    return positions
  others, patches = np.split(positions, [prefix], axis=-2)
  width = positions.shape[-1]
  rows, columns = map(POSITION_METHODS[method], grid, new_grid)
  patches = resize_grid(rows, columns, patches.reshape(*grid, width))  # [h', w', D]
  patches = patches.reshape(*positions.shape[:-2], -1, width)
  return np.concatenate([others, patches], axis=-2)


def resize_patches(
  kernel: np.ndarray, patch_size: int | tuple[int, int], *, method: str = 'bilinear'
) -> np.ndarray:
  """Gives the kernel that embeds patches of another size, by the pseudo-inverse of their resize.

  With `B` the matrix that resizes a patch to the new size, the new kernel is `pinv(B.T) @ kernel`:
  the one whose products with resized patches are closest to the old products, for pixels of white
  noise. Where patches grow they are the same: `<B x, new> = <x, old>`. Section 3.4,
  arXiv:2212.08013 (FlexiViT).

  Args:
    kernel: `[P, Q, C, D]`, shaped as a convolution's.
    patch_size: the new side in pixels, or `(height, width)`.
    method: how `B` resizes: `bilinear`, without antialiasing, as in FlexiViT's code; or `bicubic`,
      with antialiasing, which timm does where it is not told otherwise.

  Returns:
    `[P', Q', C, D]` in the type of `kernel`; `kernel` itself where the size is the same.

  Raises:
    ValueError: an unknown method, another shape, or a size below 1.
  """
  check_choice('method', method, PATCH_METHODS)
  kernel = np.asarray(kernel)
  size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
  if kernel.ndim != 4:
    raise ValueError(f'a patch kernel is [P, Q, C, D], not {list(kernel.shape)}')
  if min(size) < 1:
    raise ValueError(f'patch_size must be at least 1, got {patch_size}')
  if size == kernel.shape[:2]:
    return kernel
  # B is the Kronecker product of two matrices, and its pseudo-inverse that of theirs.
  rows, columns = (
    np.linalg.pinv(PATCH_METHODS[method](old, new).T)
    for old, new in zip(kernel.shape[:2], size, strict=True)
  )
  return resize_grid(rows, columns, kernel)


def _check_positions(
  shape: tuple[int, ...], grid: tuple[int, int], new_grid: tuple[int, int], prefix: int
) -> None:
  """Raises `ValueError` where embeddings of this shape are not those of the grid."""
  if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
    raise ValueError(f'positions are [N, D] or [1, N, D], not {list(shape)}')
  if min(*grid, *new_grid) < 1 or prefix < 0:
    raise ValueError(
      f'grids have sides of at least 1 and a prefix 0 or more tokens, '
      f'got {grid}, {new_grid} and {prefix}'
    )
  count = shape[-2]
  if count == prefix + math.prod(grid):
    return
  fits = []
  for others in range(min(count, 9)):  # a class token, one of distillation, registers
    side = math.isqrt(count - others)
    if side**2 == count - others:
      fits.append(f'{side}x{side} with prefix {others}')
  raise ValueError(
    f'positions {list(shape)} have {count} tokens, but grid {grid[0]}x{grid[1]} with prefix '
    f'{prefix} has {prefix + math.prod(grid)}; of square grids, '
    + (' or '.join(fits) + ' would fit' if fits else 'none fits with a prefix of 8 or less')
  )

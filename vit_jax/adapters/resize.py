"""Position embeddings for another grid and patch kernels for another patch size, on the host.

Every resize here is `rows @ x @ columns.T`: interpolation is linear and works on each axis alone,
so two small matrices say all of it. They are built and multiplied in double precision, and the
result is rounded once, to the type of what came in.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from vit_jax.choices import check_choice


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
  patches = _apply(rows, columns, patches.reshape(*grid, width))  # [h', w', D]
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
  return _apply(rows, columns, kernel)


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


def _apply(rows: np.ndarray, columns: np.ndarray, x: np.ndarray) -> np.ndarray:
  """`[h', h]`, `[w', w]` and `[h, w, ...]` to `[h', w', ...]`, in the type of x."""
  out = np.einsum('ih,jw,hw...->ij...', rows, columns, x.astype(np.float64), optimize=True)
  return out.astype(x.dtype)


def _triangle(x: np.ndarray) -> np.ndarray:
  return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, slope: float) -> np.ndarray:
  """Keys's kernel of 1981, whose slope is `slope` one pixel from its centre."""
  x = np.abs(x)
  near = (slope + 2) * x**3 - (slope + 3) * x**2 + 1
  far = slope * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _from_edges(
  size: int, new_size: int, *, kernel: Callable[[np.ndarray], np.ndarray], antialias: bool
) -> np.ndarray:
  """Interpolation with the outer edges of the pixels kept, `[new_size, size]`.

  PyTorch's `align_corners=False`. Its two ways differ past the edge too: plain interpolation sees
  the last pixel repeated, antialiasing sees nothing there and divides by the weights that remain.
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


def _from_corners(size: int, new_size: int) -> np.ndarray:
  """Linear interpolation with the centres of the first and last pixel kept, `[new_size, size]`."""
  step = (size - 1) / max(new_size - 1, 1)
  # Rounding can put the last place past the last pixel, where SciPy's default reads zeros.
  places = np.minimum(np.arange(new_size) * step, size - 1)[:, None]
  return _triangle(np.arange(size) - places)


# PyTorch's slopes: PIL's with antialiasing, OpenCV's without.
_SMOOTH = partial(_from_edges, kernel=partial(_cubic, slope=-0.5), antialias=True)
POSITION_METHODS = {
  'bicubic': _SMOOTH,
  'bicubic_plain': partial(_from_edges, kernel=partial(_cubic, slope=-0.75), antialias=False),
  'bilinear_zoom': _from_corners,
}
PATCH_METHODS = {
  'bilinear': partial(_from_edges, kernel=_triangle, antialias=False),
  'bicubic': _SMOOTH,
}

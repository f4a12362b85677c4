"""Convolutions: the formula, and what XLA's CPU backend needs to compute it fast.

Of a 3x3 convolution its CPU backend takes the weight gradient, and anything with few features, at a
fraction of the speed of a matrix product. Here all of it is matrix products, of a few images at a
time, so that what stands between them stays in the cache (`benchmarks/simclr_step.py`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vit_jax import sharding
from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.dense import on_cpu

IMPLEMENTATIONS = ('auto', 'xla')

init = nn.initializers
logical = nn.with_logical_partitioning

# F(4, 3), the matrices B^T, G and A^T of Section 4.3, arXiv:1509.09308: four outputs of a filter
# with three taps by six products instead of twelve.
TILE = 4
INPUTS = np.array(
  [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
  ]
)
FILTER = np.array(
  [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
) / 24  # fmt: skip
OUTPUTS = np.array(
  [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)
# Output positions computed at once: with 64 to 512 features, what belongs to them fits the caches.
POSITIONS = 4096


class Convolution(nn.Module):
  """A convolution without bias, padded by half the size on each side.

  Parameters are those of `nn.Conv`.

  Attributes:
    features: of the output.
    size: of the square kernel, odd.
    stride: of both axes.
    implementation: `xla` is `jax.lax.conv_general_dilated`. `auto` is that too, but on CPUs the
      same convolution by matrix products.
    dtype: of the computation. Parameters are float32.
    kernel_init: of the kernel, `[size, size, C, features]`.
  """

  features: int
  size: int = 3
  stride: int = 1
  implementation: str = 'auto'
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Array] = init.lecun_normal()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), features]`."""
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel_init = logical(self.kernel_init, (None, None, None, 'embed'))
    kernel = self.param('kernel', kernel_init, shape)
    x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.implementation)
    return sharding.constrain(x, 'batch', None, None, None)


def convolve(x: Array, kernel: Array, stride: int = 1, implementation: str = 'auto') -> Array:
  """A convolution padded by half the kernel's size on each side.

  On CPUs `auto` has no forward-mode differentiation, and its sums are in float32 at least whatever
  the dtype.

  Args:
    x: `[B, H, W, C]`.
    kernel: `[k, k, C, D]`, k odd.
    stride: of both axes.
    implementation: see `Convolution`.

  Returns:
    `[B, ceil(H / stride), ceil(W / stride), D]`.

  Raises:
    ValueError: an unknown implementation, or a kernel of even size.
  """
  check_choice('convolution', implementation, IMPLEMENTATIONS)
  if kernel.shape[0] % 2 == 0:
    raise ValueError(f'a convolution has a kernel of odd size, not {kernel.shape[0]}')

  def plain(x: Array, kernel: Array) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      ((pad, pad), (pad, pad)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  # Images of a number that is not known, in an exported program, fall into no groups.
  if implementation == 'xla' or not isinstance(x.shape[0], int):
    return plain(x, kernel)
  if stride == 1 and kernel.shape[0] == 3:
    return on_cpu(plain, _winograd, _winograd_gradient)(x, kernel)
  forward, backward = _columns(stride)
  return on_cpu(plain, forward, backward)(x, kernel)


# -- A few images at a time.


def _group_size(batch: int, positions: int) -> int:
  """How many of the images to take at once: a divisor, and as many from each device of the mesh."""
  shape = jax.sharding.get_abstract_mesh().shape
  devices = math.prod(shape.get(axis, 1) for axis in sharding.BATCH_AXES)
  devices = devices if batch % devices == 0 else 1
  sizes = [size for size in range(devices, batch + 1, devices) if batch % size == 0]
  return max([size for size in sizes if size * positions <= POSITIONS], default=sizes[0])


def _in_groups(
  function: Callable[..., tuple[Any, Any]], positions: int, *arrays: Array
) -> tuple[Any, Any]:
  """Applies a function of images to a few of them at a time.

  A group is of images far apart, so that each device of a mesh computes on those that it holds.

  Args:
    function: of arrays `[b, ...]` to two trees: arrays `[b, ...]`, and sums over the images.
    positions: of an image.
    *arrays: `[B, ...]`.

  Returns:
    The arrays `[B, ...]`, and the sums over all of them.
  """
  batch = arrays[0].shape[0]
  size = _group_size(batch, positions)
  groups = [x.reshape(size, batch // size, *x.shape[1:]) for x in arrays]
  made, sums = jax.eval_shape(lambda *groups: function(*(x[:, 0] for x in groups)), *groups)
  made = jax.tree.map(lambda x: jnp.zeros((size, batch // size, *x.shape[1:]), x.dtype), made)
  sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

  def body(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
    made, sums = carry
    new, more = function(*(lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in groups))
    made = jax.tree.map(lambda to, x: lax.dynamic_update_index_in_dim(to, x, i, 1), made, new)
    return made, jax.tree.map(jnp.add, sums, more)

  made, sums = lax.fori_loop(0, batch // size, body, (made, sums))
  return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), made), sums


def _wide(x: Array) -> Array:
  """At least in float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# -- 3x3 with stride 1: along the width by Winograd's algorithm, along the height as it is. Rounding
# errors are two to three times those of the plain sum, some 1e-6 of the result in float32.


def _combine(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
  """A small matrix times a column of arrays."""
  return [sum(float(m) * x for m, x in zip(row, arrays, strict=True) if m) for row in matrix]


def _tiles(x: Array) -> Array:
  """`[b, H, W, C]` to tiles along the width, `[b, H, ceil(W / TILE), TILE, C]`, padded by zeros."""
  b, h, w, c = x.shape
  return jnp.pad(x, ((0, 0), (0, 0), (0, -w % TILE), (0, 0))).reshape(b, h, -1, TILE, c)


def _transformed_inputs(x: Array) -> list[Array]:
  """`[b, H, W, C]` to six of `[b * H * tiles, C]`."""
  # A tile reads the position before it, and the one after it, which is in the next tile.
  count = -(-x.shape[2] // TILE) + 1
  tiles = _tiles(jnp.pad(x, ((0, 0), (0, 0), (1, TILE), (0, 0))))[:, :, :count]
  columns = [tiles[:, :, :-1, i] for i in range(TILE)] + [tiles[:, :, 1:, i] for i in range(2)]
  return [x.reshape(-1, x.shape[-1]) for x in _combine(INPUTS, columns)]


def _transformed_kernel(kernel: Array) -> list[Array]:
  """`[3, 3, C, D]` to six of `[3, C, D]`."""
  return _combine(FILTER, [_wide(kernel)[:, i] for i in range(3)])


def _rows(x: Array, kernels: Sequence[Array], axis: int) -> Array:
  """A 3x3 convolution by what `_transformed_kernel` gives.

  Args:
    x: `[B, H, W, C]`.
    kernels: six of `[C, 3 * D]`, or of `[3 * D, C]`.
    axis: of the C in them.

  Returns:
    `[B, H, W, D]`.
  """
  height, width = x.shape[1:3]

  def function(x: Array) -> tuple[Array, tuple[()]]:
    pairs = zip(_transformed_inputs(_wide(x)), kernels, strict=True)
    products = [lax.dot_general(x, kernel, (((1,), (axis,)), ((), ()))) for x, kernel in pairs]
    tiles = jnp.stack(_combine(OUTPUTS, products), 1)  # [b * H * tiles, TILE, 3 * D]
    rows = tiles.reshape(*x.shape[:2], -1, 3, tiles.shape[-1] // 3)[:, :, :width]
    rows = jnp.pad(rows, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    return sum(rows[:, i : i + height, :, i] for i in range(3)).astype(x.dtype), ()

  return _in_groups(function, height * width, x)[0]


def _winograd(x: Array, kernel: Array) -> Array:
  """`convolve` of 3x3 and stride 1."""
  kernels = [x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in _transformed_kernel(kernel)]
  return _rows(x, kernels, 0)


def _winograd_gradient(arguments: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  """The gradients of `_winograd`; by the inputs it is one again, with the kernel turned around."""
  x, kernel = arguments
  height, width = x.shape[1:3]

  def function(x: Array, g: Array) -> tuple[tuple[()], list[Array]]:
    inputs = _transformed_inputs(_wide(x))
    # For each row of the kernel, the row of the output that a row of the input is seen from.
    g = jnp.pad(_wide(g), ((0, 0), (1, 1), (0, 0), (0, 0)))
    tiles = _tiles(jnp.concatenate([g[:, 2 - i : 2 - i + height] for i in range(3)], -1))
    outputs = _combine(OUTPUTS.T, [tiles[:, :, :, i] for i in range(TILE)])
    pairs = zip(inputs, outputs, strict=True)
    return (), [x.T @ out.reshape(-1, out.shape[-1]) for x, out in pairs]  # [C, 3 * D]

  columns = _combine(FILTER.T, _in_groups(function, height * width, x, g)[1])
  d_kernel = jnp.stack([x.reshape(x.shape[0], 3, -1).swapaxes(0, 1) for x in columns], 1)
  kernels = [x.reshape(-1, x.shape[-1]) for x in _transformed_kernel(kernel[::-1, ::-1])]
  return _rows(g, kernels, 1), d_kernel.astype(kernel.dtype)


# -- Other sizes and strides: what the kernel sees at each position, laid out as a matrix.


def _product(x: Array, kernel: Array, stride: int) -> Array:
  """`convolve` of all images at once."""
  size, _, inputs, outputs = kernel.shape
  b, *sides, _ = x.shape
  h, w = (-(-side // stride) for side in sides)
  pad = size // 2
  x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  seen = [
    x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
    for i in range(size)
    for j in range(size)
  ]
  columns = jnp.concatenate(seen, -1).reshape(-1, size * size * inputs)
  return (columns @ kernel.reshape(-1, outputs)).reshape(b, h, w, outputs)


def _columns(stride: int) -> tuple[Callable[..., Array], Callable[..., tuple[Array, Array]]]:
  """`convolve` of any size, and its gradients."""

  def forward(x: Array, kernel: Array) -> Array:
    wide = _wide(kernel)

    def function(x: Array) -> tuple[Array, tuple[()]]:
      return _product(_wide(x), wide, stride).astype(x.dtype), ()

    return _in_groups(function, math.prod(x.shape[1:3]) // stride**2, x)[0]

  def backward(arguments: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = arguments
    wide = _wide(kernel)

    def function(x: Array, g: Array) -> tuple[Array, Array]:
      d_x, d_kernel = jax.vjp(lambda *args: _product(*args, stride), _wide(x), wide)[1](_wide(g))
      return d_x.astype(x.dtype), d_kernel

    d_x, d_kernel = _in_groups(function, math.prod(g.shape[1:3]), x, g)
    return d_x, d_kernel.astype(kernel.dtype)

  return forward, backward

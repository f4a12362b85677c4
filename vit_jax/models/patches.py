"""From an image, or a feature map, to one vector a patch, and back."""

from typing import Any

import flax.linen as nn

from vit_jax.arrays import Array
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning


def embed_patches(
  x: Array, patch: tuple[int, int], width: int, dtype: Any, *, bias: bool = True
) -> Array:
  """A convolution whose stride is its kernel, as one product; to be called in a compact method.

  Args:
    x: `[B, H, W, C]`.
    patch: height and width, which divide H and W.
    width: features of a token, D.
    dtype: of the computation.
    bias: whether there is one.

  Returns:
    `[B, h, w, D]`. The parameters are called `embedding`; their kernel is a convolution's.
  """
  p, q = patch
  batch, height, columns, channels = x.shape
  patches = x.astype(dtype).reshape(batch, height // p, p, columns // q, q, channels)
  embedded = nn.Einsum(
    (p, q, channels, width),
    'bhpwqc,pqcd->bhwd',
    use_bias=bias,
    dtype=dtype,
    kernel_init=logical(init.lecun_normal(), (None, None, None, 'embed')),
    bias_init=logical(init.zeros, ('embed',)),
    name='embedding',
  )(patches)
  return constrain(embedded, 'batch', None, None, None)


def cut_patches(x: Array, patch: tuple[int, int]) -> Array:
  """The pixels of each patch, in the order in which `embed_patches` reads them.

  Args:
    x: `[B, H, W, C]`.
    patch: height and width, which divide H and W.

  Returns:
    `[B, h, w, P]`, P of height times width times C: rows, columns, then channels of a patch.
  """
  p, q = patch
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // p, p, width // q, q, channels).swapaxes(2, 3)
  return x.reshape(batch, height // p, width // q, p * q * channels)


def join_patches(x: Array, patch: tuple[int, int]) -> Array:
  """The image that `cut_patches` cut, `[B, h, w, P]` to `[B, H, W, C]`."""
  p, q = patch
  batch, height, width, size = x.shape
  x = x.reshape(batch, height, width, p, q, size // (p * q)).swapaxes(2, 3)
  return x.reshape(batch, height * p, width * q, -1)

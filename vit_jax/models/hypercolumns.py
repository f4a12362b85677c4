"""From all stages of an encoder to an answer at each place of an image."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.models.features import Features
from vit_jax.models.head import linear_head
from vit_jax.models.interpolation import from_edges, triangle
from vit_jax.models.patches import join_patches
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning


class Hypercolumns(nn.Module):
  """A layer on all stages of an encoder, laid over each other. Section 3 of arXiv:1603.06668.

  A stage is projected where it is coarse, then interpolated, and the projections are added up: the
  layer on the concatenation of all interpolated stages, at a part of its cost. Where even the
  finest stage is coarser than the answer, as the tokens of a ViT are, its positions give the
  features of all the places that they become (sub-pixel convolution, arXiv:1609.05158).

  Attributes:
    width: hidden features of a place.
  """

  width: int = 64

  @nn.compact
  def __call__(self, features: Features, channels: int, size: tuple[int, int]) -> Array:
    """Answers at each place.

    Args:
      features: with `stages`, or with `tokens` that lie on a `grid`.
      channels: of the answer.
      size: `(h, w)`, its places.

    Returns:
      `[B, h, w, channels]` in the dtype of the features; 0 at the start.

    Raises:
      ValueError: features with neither stages nor a grid.
    """
    maps = _maps(features)
    finest = max(range(len(maps)), key=lambda i: maps[i].shape[1])
    dtype = maps[0].dtype
    total = 0
    for i, x in enumerate(maps):
      patch = tuple(
        -(-side // n) if i == finest else 1 for side, n in zip(size, x.shape[1:3], strict=True)
      )
      x = nn.Dense(
        self.width * patch[0] * patch[1],
        use_bias=i == finest,
        dtype=dtype,
        # Each of the maps adds an equal part of the variance.
        kernel_init=logical(
          init.variance_scaling(2 / len(maps), 'fan_in', 'truncated_normal'), ('embed', None)
        ),
        bias_init=logical(init.zeros, (None,)),
        name=f'project_{i}',
      )(x)
      total += resize(join_patches(constrain(x, 'batch', None, None, None), patch), size)
    answer = linear_head(channels, dtype=dtype, name='answer')(nn.relu(total))
    return constrain(answer, 'batch', None, None, 'classes')


def _maps(features: Features) -> list[Array]:
  if features.stages:
    return list(features.stages)
  if features.grid is None:
    raise ValueError(
      'hypercolumns need features with stages or a grid: those of all patches of an image'
    )
  tokens = features.tokens
  return [tokens.reshape(tokens.shape[0], *features.grid, tokens.shape[-1])]


def resize(x: Array, size: tuple[int, int]) -> Array:
  """Bilinear interpolation, with averaging where `size` is smaller.

  Args:
    x: `[B, h, w, C]`.
    size: `(h', w')`.

  Returns:
    `[B, h', w', C]`.
  """
  for axis, new in ((1, size[0]), (2, size[1])):
    old = x.shape[axis]
    if old != new:
      matrix = from_edges(old, new, kernel=triangle, antialias=True)
      x = jnp.moveaxis(jnp.tensordot(jnp.asarray(matrix, x.dtype), x, (1, axis)), 0, axis)
  return x

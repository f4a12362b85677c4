"""Projection heads: between the features and a contrastive loss, and dropped afterwards."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.models.resnet import batch_norm
from vit_jax.sharding import constrain

logical = nn.with_logical_partitioning


class Projection(nn.Module):
  """Dense layers with ReLU between them. Section 4.2, arXiv:2002.05709; deeper: arXiv:2006.10029.

  Attributes:
    layers: 1 is linear, 2 has a hidden layer, 3 two of them; 0 gives its input.
    width: of the hidden layers; None: as wide as the input.
    dim: of the output.
    norm: a BatchNorm after every layer, whose dense part then has no bias.
    dtype: of the computation.
  """

  layers: int = 2
  width: int | None = None
  dim: int = 128
  norm: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool, stop: int | None = None) -> Array:
    """Projects.

    Args:
      x: `[B, D]`.
      train: whether BatchNorm takes the statistics of the batch.
      stop: the layer, counted from 1, whose output is wanted, with its ReLU; 0 is `x` itself and
        None the last one.

    Returns:
      `[B, dim]`, of a hidden layer `[B, width]`.
    """
    width = self.width or x.shape[-1]
    for i in range(1, 1 + (self.layers if stop is None else stop)):
      last = i == self.layers
      x = nn.Dense(
        self.dim if last else width,
        use_bias=not self.norm,
        dtype=self.dtype,
        kernel_init=logical(nn.initializers.lecun_normal(), ('embed', None)),
        name=f'dense_{i}',
      )(x)
      x = constrain(x, 'batch', None)
      if self.norm:
        x = batch_norm(f'norm_{i}', train, self.dtype)(x)
      if not last:
        x = nn.relu(x)
    return x

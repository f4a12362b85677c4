"""Convolutions in the place of large patches. Xiao et al. 2021, arXiv:2106.14881."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.models.attention import layer_norm
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning


class ConvStem(nn.Module):
  """3x3 convolutions of stride 2, each with a LayerNorm over channels and a ReLU.

  The paper has BatchNorm there; LayerNorm keeps the examples of a batch apart.

  Attributes:
    features: output channels of each convolution.
    ln_eps: epsilon of the LayerNorms.
    dtype: of the computation.
  """

  features: tuple[int, ...]
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32

  FIRST: ClassVar[str] = 'conv_0'  # the layer that sees pixels

  @property
  def stride(self) -> int:
    """Pixels of the image, along a side, to one of the output."""
    return 2 ** len(self.features)

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """`[B, H, W, C]` to `[B, H / stride, W / stride, features[-1]]`."""
    x = image
    for i, features in enumerate(self.features):
      x = nn.Conv(
        features,
        (3, 3),
        strides=2,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=logical(init.he_normal(), (None, None, None, 'embed')),
        name=f'conv_{i}',
      )(x)
      x = constrain(x, 'batch', None, None, None)
      x = nn.relu(layer_norm(f'norm_{i}', self.ln_eps, self.dtype)(x))
    return x

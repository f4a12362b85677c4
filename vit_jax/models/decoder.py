"""From an encoder's deepest features back to pixels."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.models.attention import layer_norm
from vit_jax.models.convolution import Convolution
from vit_jax.models.features import Features
from vit_jax.models.patches import join_patches
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning


class Decoder(nn.Module):
  """Sub-pixel convolutions from the grid of an encoder's tokens, of a ViT or a ResNet, to an image.

  One 1x1 convolution to `width`; then 3x3 convolutions, each on half as large a grid as what comes
  out: a position gives the features of the four that it becomes. Shi et al. 2016, arXiv:1609.05158.
  All but the last have a LayerNorm over features and a ReLU. The last gives all pixels that are
  left of a position at once, so that nothing of many features is ever as large as the image.

  Attributes:
    width: features on the grid of the tokens; halved when the grid is doubled.
    doublings: of the grid before the last convolution. 0: each token gives its pixels from itself
      and its neighbours alone.
    dtype: of the computation.

  Raises:
    ValueError: when built, for a width that cannot be halved so often.
  """

  width: int = 128
  doublings: int = 2
  dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    if self.doublings < 0 or self.width < 1 or self.width % 2**self.doublings:
      raise ValueError(
        f'width {self.width} of a decoder cannot be halved {self.doublings} times, once a doubling'
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, features: Features, channels: int, size: tuple[int, int]) -> Array:
    """Decodes `tokens` that lie on a `grid`.

    Args:
      features: `tokens` `[B, h * w, D]` and `grid` `(h, w)`.
      channels: of the output.
      size: `(H, W)` of the output: multiples of `(h, w)` times 2 to the `doublings`.

    Returns:
      `[B, H, W, channels]` in the compute dtype; 0 at the start.

    Raises:
      ValueError: features without grid, or a size that is no such multiple.
    """
    if features.grid is None:
      raise ValueError('a decoder needs features with a grid: those of all patches of an image')
    h, w = (side * 2**self.doublings for side in features.grid)
    height, width = size
    if height % h or width % w:
      raise ValueError(
        f'{self.doublings} doublings make {h}x{w} of the grid {features.grid[0]}x{features.grid[1]}'
        f', which does not divide {height}x{width}; choose fewer, or another size'
      )
    x = nn.Dense(
      self.width,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=logical(init.he_normal(), ('embed', None)),
      name='project',
    )(features.tokens)
    x = x.reshape(x.shape[0], *features.grid, self.width)
    x = self._activate(constrain(x, 'batch', None, None, None), 0)
    for i in range(1, self.doublings + 1):
      wide = 4 * (self.width // 2**i)
      x = Convolution(wide, dtype=self.dtype, kernel_init=init.he_normal(), name=f'conv_{i}')(x)
      x = self._activate(join_patches(x, (2, 2)), i)
    patch = height // h, width // w
    x = Convolution(
      patch[0] * patch[1] * channels, dtype=self.dtype, kernel_init=init.zeros, name='pixels'
    )(x)
    x = join_patches(x, patch)
    bias = self.param('bias', logical(init.zeros, (None,)), (channels,))
    return constrain(x + bias.astype(x.dtype), 'batch', None, None, None)

  def _activate(self, x: Array, i: int) -> Array:
    return nn.relu(layer_norm(f'norm_{i}', 1e-6, self.dtype)(x))

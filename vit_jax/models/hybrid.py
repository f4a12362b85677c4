"""The ResNet below a hybrid Vision Transformer. Section 3.1, arXiv:2010.11929.

ResNet v1.5 with GroupNorm (arXiv:1803.08494) and weight standardisation (arXiv:1903.10520) in the
place of BatchNorm, as in BiT (arXiv:1912.11370): no statistics over the batch.
"""

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning

# Bottleneck blocks a stage, by the largest stride that divides the patch. For patches of 16, R50's
# fourth stage went into the third: Section 4.1, arXiv:2010.11929. R is the first convolution and
# pooling alone: Section 3.2, arXiv:2106.10270.
STEMS = {'R': ((),), 'R26': ((2, 2, 2, 2),), 'R50': ((3, 4, 6, 3), (3, 4, 9))}


class Constants(NamedTuple):
  """What keeps divisions from those by zero.

  Attributes:
    kernel: added to the standard deviation of a kernel, or
    kernel_variance: to its variance.
    norm: of the GroupNorms, added to the variance.
  """

  kernel: float
  kernel_variance: float
  norm: float


# `flax`: of vision_transformer, which published the weights. `timm`: of the hybrids trained there.
CONSTANTS = {'flax': Constants(1e-5, 0.0, 1e-6), 'timm': Constants(0.0, 1e-8, 1e-5)}


def stride_of(blocks: tuple[int, ...]) -> int:
  """Pixels of the image, along a side, to one behind a ResNet of so many blocks a stage."""
  return 4 * 2 ** max(len(blocks) - 1, 0)


class StdConv(nn.Module):
  """A convolution without bias whose kernel is standardised over its inputs. arXiv:1903.10520.

  Attributes:
    features: output channels.
    size: side of the kernel.
    stride: of both axes.
    dtype: of the computation. The kernel is standardised in float32.
    constants: what is added where it is divided.
  """

  features: int
  size: int
  stride: int = 1
  dtype: Any = jnp.float32
  constants: Constants = CONSTANTS['flax']

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), features]`."""
    kernel = self.param(
      'kernel',
      logical(init.lecun_normal(), (None, None, None, 'embed')),
      (self.size, self.size, x.shape[-1], self.features),
    )
    kernel = kernel - kernel.mean((0, 1, 2))
    std = jnp.sqrt(kernel.var((0, 1, 2)) + self.constants.kernel_variance)
    kernel = kernel / (std + self.constants.kernel)
    x = nn.Conv(
      self.features,
      (self.size, self.size),
      strides=self.stride,
      use_bias=False,
      dtype=self.dtype,
      parent=None,
    ).apply({'params': {'kernel': kernel}}, x)
    return constrain(x, 'batch', None, None, None)


def group_norm(name: str, epsilon: float, dtype: Any, *, zero: bool = False) -> nn.GroupNorm:
  """A GroupNorm of 32 groups; `zero` starts its scale at 0, so that a block is the identity."""
  return nn.GroupNorm(
    32,
    epsilon=epsilon,
    dtype=dtype,
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels where activations have a large mean.
    scale_init=logical(init.zeros if zero else init.ones, ('embed',)),
    bias_init=logical(init.zeros, ('embed',)),
    name=name,
  )


class Bottleneck(nn.Module):
  """1x1, 3x3 (with the stride) and 1x1 convolutions beside a residual. Figure 5, arXiv:1512.03385.

  Attributes:
    features: of the 3x3 convolution; the output has four times as many.
    stride: of both axes.
    dtype: of the computation.
    constants: of convolutions and norms.
  """

  features: int
  stride: int = 1
  dtype: Any = jnp.float32
  constants: Constants = CONSTANTS['flax']

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[B, H, W, C]` to `[B, H / stride, W / stride, 4 features]`."""
    width, dtype, constants = self.features, self.dtype, self.constants
    conv = functools.partial(StdConv, dtype=dtype, constants=constants)
    norm = functools.partial(group_norm, epsilon=constants.norm, dtype=dtype)
    y = conv(width, 1, name='conv_1')(x)
    y = nn.relu(norm('norm_1')(y))
    y = conv(width, 3, self.stride, name='conv_2')(y)
    y = nn.relu(norm('norm_2')(y))
    y = conv(4 * width, 1, name='conv_3')(y)
    y = norm('norm_3', zero=True)(y)
    if x.shape != y.shape:
      x = conv(4 * width, 1, self.stride, name='conv_proj')(x)
      x = norm('norm_proj')(x)
    return constrain(nn.relu(x + y), 'batch', None, None, None)


class ResNetStem(nn.Module):
  """A 7x7 convolution and pooling, each of stride 2, then stages, each but the first of stride 2.

  Attributes:
    blocks: bottleneck blocks of each stage; those of `STEMS` were published.
    width: channels after the first convolution.
    dtype: of the computation.
    constants: a key of `CONSTANTS`.
  """

  blocks: tuple[int, ...]
  width: int = 64
  dtype: Any = jnp.float32
  constants: str = 'flax'

  FIRST: ClassVar[str] = 'conv_root'  # the layer that sees pixels

  @property
  def stride(self) -> int:
    """Pixels of the image, along a side, to one of the output."""
    return stride_of(self.blocks)

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """`[B, H, W, C]` to `[B, H / stride, W / stride, 4 width 2^(stages - 1)]`; `width` if none."""
    constants = CONSTANTS[check_choice('constants', self.constants, CONSTANTS)]
    x = StdConv(self.width, 7, 2, self.dtype, constants, name=self.FIRST)(image)
    x = nn.relu(group_norm('norm_root', constants.norm, self.dtype)(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
    for i, blocks in enumerate(self.blocks):
      for j in range(blocks):
        stride = 2 if i and not j else 1
        name = f'stage_{i}_block_{j}'
        x = Bottleneck(self.width * 2**i, stride, self.dtype, constants, name=name)(x)
    return x


def published_stem(name: str, patch: tuple[int, int]) -> tuple[int, ...]:
  """The blocks of a published ResNet below patches of this size.

  Raises:
    ValueError: an unknown name, or a patch that is no multiple of its stride.
  """
  choices = STEMS[check_choice('ResNet', name, STEMS)]
  for blocks in choices:
    if all(p % stride_of(blocks) == 0 for p in patch):
      return blocks
  raise ValueError(
    f'patch_size {patch[0]} is not a multiple of {stride_of(choices[-1])}, the stride of {name!r}'
  )

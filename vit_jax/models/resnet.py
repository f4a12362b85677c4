"""Residual networks. He et al. 2015, arXiv:1512.03385.

v1.5: a bottleneck has its stride on the 3x3 convolution, where the paper has it on the first 1x1.
Section 5.1, arXiv:1706.02677. Padding is as much before as after, as in PyTorch: with stride 2,
`SAME` would see other pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.convolution import IMPLEMENTATIONS, Convolution
from vit_jax.models.dense import check_dtype
from vit_jax.models.features import Features
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning


class Size(NamedTuple):
  """The shape of a residual network."""

  blocks: tuple[int, ...]
  bottleneck: bool


# Table 1, arXiv:1512.03385.
VARIANTS = {
  '18': Size((2, 2, 2, 2), bottleneck=False),
  '34': Size((3, 4, 6, 3), bottleneck=False),
  '50': Size((3, 4, 6, 3), bottleneck=True),
  '101': Size((3, 4, 23, 3), bottleneck=True),
  '152': Size((3, 8, 36, 3), bottleneck=True),
}


def conv(
  name: str, features: int, size: int, stride: int, implementation: str, dtype: Any
) -> Convolution:
  """A convolution without bias, `[B, H, W, C]` to `[B, ceil(H / stride), ..., features]`."""
  return Convolution(
    features,
    size,
    stride,
    implementation,
    dtype,
    # By the fan out, so that gradients keep their size: Section 2.2, arXiv:1502.01852.
    kernel_init=init.variance_scaling(2.0, 'fan_out', 'normal'),
    name=name,
  )


def _is_sum(primitive: Any, *_: Any, **__: Any) -> bool:
  return primitive.name == 'reduce_sum'


# For the gradient its input and its sums are kept, not the centred input too: of ResNet-18's step
# on a CPU a fifth was the writing of that.
BatchNorm = nn.remat(nn.BatchNorm, policy=_is_sum)


def batch_norm(name: str, train: bool, dtype: Any, *, zero: bool = False) -> nn.BatchNorm:
  """A BatchNorm over batch and positions; `zero` starts its scale at 0."""
  return BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    scale_init=logical(init.zeros if zero else init.ones, ('embed',)),
    bias_init=logical(init.zeros, ('embed',)),
    name=name,
  )


class Block(nn.Module):
  """Convolutions beside a residual, which is projected where its shape changes. Section 3.3.

  The last BatchNorm starts at scale 0, so that at first only the residual passes: Section 5.1,
  arXiv:1706.02677.

  Attributes:
    features: of a 3x3 convolution.
    stride: of both axes, on the first 3x3 convolution.
    bottleneck: 1x1, 3x3 and 1x1 convolutions, the last with four times the features, instead of
      two of 3x3. Figure 5, arXiv:1512.03385.
    convolution: the implementation, see `Convolution`.
    dtype: of the computation.
  """

  features: int
  stride: int = 1
  bottleneck: bool = False
  convolution: str = 'auto'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), features or 4 features]`."""
    width, stride, dtype = self.features, self.stride, self.dtype
    if self.bottleneck:
      convs = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
    else:
      convs = ((width, 3, stride), (width, 3, 1))
    y = x
    for i, shape in enumerate(convs, 1):
      last = i == len(convs)
      y = conv(f'conv_{i}', *shape, self.convolution, dtype)(y)
      y = batch_norm(f'norm_{i}', train, dtype, zero=last)(y)
      if not last:
        y = nn.relu(y)
    if stride > 1 or x.shape[-1] != y.shape[-1]:
      x = conv('conv_proj', y.shape[-1], 1, stride, self.convolution, dtype)(x)
      x = batch_norm('norm_proj', train, dtype)(x)
    return constrain(nn.relu(x + y), 'batch', None, None, None)


class ResNet(nn.Module):
  """A residual network with BatchNorm, v1.5. He et al. 2015, arXiv:1512.03385.

  In training, features are normalised by the mean and the variance of the whole global batch, and
  `batch_stats` move a tenth of the way towards them; evaluation normalises by `batch_stats`. Both
  use the same variance, a mean of n squares for n values. PyTorch trains with it too, but keeps
  n / (n - 1) times as much for evaluation: 0.06% more for 32 images of 7x7 positions.

  Attributes:
    variant: a published depth, `18`, `34`, `50`, `101` or `152`; or nothing, with `blocks`.
    blocks: blocks of each stage; every stage but the first has stride 2 and twice the features of
      the one before. None: the variant's.
    bottleneck: whether blocks are bottlenecks, see `Block`. None: the variant's; without one, no.
    width: features of the first convolution, and of a 3x3 one in the first stage. 128 and 256 make
      the (2x) and (4x) of arXiv:2002.05709.
    small_stem: for small images: a 3x3 convolution of stride 1 comes first, in the place of one of
      7x7 and a 3x3 max pooling, each of stride 2. Appendix B.9, arXiv:2002.05709.
    convolution: `xla` is XLA's own; `auto` is that too, but on CPUs a faster one, see
      `Convolution`.
    dtype: of the computation: `float32`, `bfloat16` or `float16`. Parameters, and the statistics
      of BatchNorm, are float32 always.

  Raises:
    ValueError: when built, for an unknown name, without blocks, or for a size below 1.
  """

  variant: str = ''
  blocks: Sequence[int] | None = None
  bottleneck: bool | None = None
  width: int = 64
  small_stem: bool = False
  convolution: str = 'auto'
  dtype: Any = 'float32'

  def __post_init__(self) -> None:
    check_dtype(self.dtype)
    check_choice('convolution', self.convolution, IMPLEMENTATIONS)
    blocks = self.size.blocks
    if not blocks or min(blocks) < 1:
      raise ValueError(f'blocks must be at least 1 in each stage, got {blocks}')
    if self.width < 1:
      raise ValueError(f'width must be at least 1, got {self.width}')
    super().__post_init__()

  @property
  def size(self) -> Size:
    """The variant's size, with the fields that override it."""
    if self.variant:
      check_choice('variant', self.variant, VARIANTS)
    elif self.blocks is None:
      choices = ', '.join(map(repr, VARIANTS))
      raise ValueError(f'without a variant ({choices}) ResNet needs blocks')
    blocks, bottleneck = VARIANTS.get(self.variant, ((), False))
    return Size(
      tuple(blocks if self.blocks is None else self.blocks),
      bottleneck if self.bottleneck is None else self.bottleneck,
    )

  @nn.compact
  def __call__(self, image: Array, *, train: bool) -> Features:
    """Encodes images.

    Args:
      image: `[B, H, W, C]` float, of any height and width.
      train: normalises by the batch's statistics instead of the kept ones, and updates those: the
        collection `batch_stats` must be mutable then.

    Returns:
      `Features` in the compute dtype: `stages`, each stage's `[B, h_i, w_i, D_i]`; `tokens`
      `[B, h * w, D]`, the positions of the last, row by row; their mean `pooled` `[B, D]`; and
      `grid` `(h, w)`. D is `width` times 2 for every stage but the first, times 4 of bottlenecks.

    Raises:
      ValueError: what are no images, or not float.
    """
    if image.ndim != 4:
      raise ValueError(f'ResNet takes images [B, H, W, C], not {image.shape}')
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise ValueError(f'ResNet takes float images, not {image.dtype}: scale them first')
    size, dtype = self.size, jnp.dtype(self.dtype)
    kernel, stride = (3, 1) if self.small_stem else (7, 2)
    x = conv('conv_root', self.width, kernel, stride, self.convolution, dtype)(image)
    x = nn.relu(batch_norm('norm_root', train, dtype)(x))
    if not self.small_stem:
      # Linen pads a maximum with -inf.
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    stages = []
    for i, blocks in enumerate(size.blocks):
      for j in range(blocks):
        x = Block(
          self.width * 2**i,
          stride=2 if i and not j else 1,
          bottleneck=size.bottleneck,
          convolution=self.convolution,
          dtype=dtype,
          name=f'stage_{i}_block_{j}',
        )(x, train)
      stages.append(x)
    batch, *grid, features = x.shape
    return Features(
      pooled=constrain(x.mean((1, 2)), 'batch', None),
      tokens=x.reshape(batch, -1, features),
      stages=tuple(stages),
      grid=tuple(grid),
    )

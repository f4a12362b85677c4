"""CLIP's residual networks. Radford et al. 2021, Section 2.4, arXiv:2103.00020.

Three things differ from ResNet v1.5: three convolutions (arXiv:1812.01187) and average pooling come
first; where others leave positions out, by a stride, these are averaged first (arXiv:1904.11486);
and attention, whose query is the mean over the positions, pools the last stage.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.attention import Attention, check_attention
from vit_jax.models.convolution import IMPLEMENTATIONS
from vit_jax.models.dense import check_dtype
from vit_jax.models.features import Features
from vit_jax.models.positions import resample
from vit_jax.models.resnet import batch_norm, conv
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning

HEAD_DIM = 64  # features of a head of the attention that pools
STRIDE = 32  # pixels of the image, along a side, to a position of the last stage


class Size(NamedTuple):
  """The shape of one of CLIP's residual networks, and the images that it was trained on."""

  blocks: tuple[int, int, int, int]
  width: int
  projection: int
  image_size: int | tuple[int, int]


# Table 19, arXiv:2103.00020; there the width is that of the last stage.
VARIANTS = {
  'RN50': Size((3, 4, 6, 3), 64, 1024, 224),
  'RN101': Size((3, 4, 23, 3), 64, 512, 224),
  'RN50x4': Size((4, 6, 10, 6), 80, 640, 288),
}


def halve(x: Array) -> Array:
  """Averages 2x2 positions: `[B, H, W, C]`, of even sides, to `[B, H / 2, W / 2, C]`."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Block(nn.Module):
  """1x1, 3x3 and 1x1 convolutions beside a residual, which is projected where its shape changes.

  Neither convolution has a stride: positions are averaged before the last one, and before the
  projection. The last BatchNorm starts at scale 0, as in CLIP's published code.

  Attributes:
    features: of the 3x3 convolution; the output has four times as many.
    halved: whether the output has half the height and the width.
    convolution: the implementation, see `Convolution`.
    dtype: of the computation.
  """

  features: int
  halved: bool = False
  convolution: str = 'auto'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """`[B, H, W, C]` to `[B, H, W, 4 features]`, or half the height and the width."""
    width, dtype = self.features, self.dtype
    y = conv('conv_1', width, 1, 1, self.convolution, dtype)(x)
    y = nn.relu(batch_norm('norm_1', train, dtype)(y))
    y = conv('conv_2', width, 3, 1, self.convolution, dtype)(y)
    y = nn.relu(batch_norm('norm_2', train, dtype)(y))
    y = halve(y) if self.halved else y
    y = conv('conv_3', 4 * width, 1, 1, self.convolution, dtype)(y)
    y = batch_norm('norm_3', train, dtype, zero=True)(y)
    if self.halved or x.shape[-1] != y.shape[-1]:
      x = halve(x) if self.halved else x
      x = conv('conv_proj', 4 * width, 1, 1, self.convolution, dtype)(x)
      x = batch_norm('norm_proj', train, dtype)(x)
    return constrain(nn.relu(x + y), 'batch', None, None, None)


class AttentionPool(nn.Module):
  """Attention from the mean over all positions to that mean and to them. Section 2.4.

  Its position embeddings start normal with the features' inverse root as deviation, as in CLIP's
  published code; the projections as `Attention` has it.

  Attributes:
    grid: `(height, width)` of the learned positions; another one gets them interpolated.
    num_heads: heads; divides the features.
    features: of the output.
    attention: `auto`, `einsum`, `xla` or `cudnn`; see `Attention`.
    dtype: of the computation.
  """

  grid: tuple[int, int]
  num_heads: int
  features: int
  attention: str = 'auto'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[B, h, w, D]` to `[B, features]`."""
    batch, *grid, width = x.shape
    pos_init = logical(init.normal(width**-0.5), (None, None, 'embed'))
    shape = (1, 1 + self.grid[0] * self.grid[1], width)
    pos = resample(self.param('pos_embedding', pos_init, shape), self.grid, tuple(grid))
    x = x.reshape(batch, -1, width)
    x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)  # [B, 1 + h * w, D]
    x = constrain(x + pos.astype(self.dtype), 'batch', None, None)
    attention = Attention(
      self.num_heads,
      self.attention,
      dtype=self.dtype,
      features=self.features,
      name='attention',
    )
    return attention(x[:, :1], x)[:, 0]


class ClipResNet(nn.Module):
  """A residual network whose last stage attention pools. Radford et al. 2021, arXiv:2103.00020.

  BatchNorm is `ResNet`'s, and so are the kernels at first.

  Attributes:
    variant: `RN50`, `RN101` or `RN50x4`; or nothing, with the next four fields.
    blocks: blocks of each of the four stages; every stage but the first halves the height and the
      width, and has twice the features of the one before. None here and in the next three fields:
      the variant's.
    width: features of the third convolution, and of a 3x3 one in the first stage; even. The last
      stage has 32 times as many, and the attention that pools it a head for every 64 of these.
    projection: features of the output.
    image_size: the side, or `(height, width)`, in pixels of the images whose positions are learned;
      a multiple of 32. An image of another size gets them interpolated.
    convolution: `auto` or `xla`; see `Convolution`.
    attention: `auto`, `einsum`, `xla` or `cudnn`; see `Attention`.
    dtype: of the computation: `float32`, `bfloat16` or `float16`. Parameters, and the statistics
      of BatchNorm, are float32 always.

  Raises:
    ValueError: when built, for an unknown name, a size that is missing, below 1 or no multiple of
      what it must be, other than four stages, or cuDNN in float32.
  """

  variant: str = ''
  blocks: Sequence[int] | None = None
  width: int | None = None
  projection: int | None = None
  image_size: int | tuple[int, int] | None = None
  convolution: str = 'auto'
  attention: str = 'auto'
  dtype: Any = 'float32'

  def __post_init__(self) -> None:
    check_dtype(self.dtype)
    check_choice('convolution', self.convolution, IMPLEMENTATIONS)
    check_attention(self.attention, self.dtype)
    size = self.size
    if len(size.blocks) != 4 or min(size.blocks) < 1:
      raise ValueError(f'blocks must be at least 1 in each of four stages, got {size.blocks}')
    if size.width < 2 or size.width % 2:
      raise ValueError(f'width must be even and at least 2, got {size.width}')
    if size.projection < 1:
      raise ValueError(f'projection must be at least 1, got {size.projection}')
    if (
      np.size(size.image_size) > 2
      or np.min(size.image_size) < 1
      or np.any(np.mod(size.image_size, STRIDE))
    ):
      raise ValueError(
        f'image_size is a multiple of {STRIDE}, or two of them, not {size.image_size!r}'
      )
    super().__post_init__()

  @property
  def size(self) -> Size:
    """The variant's size, with the fields that override it."""
    known = {}
    if self.variant:
      known = VARIANTS[check_choice('variant', self.variant, VARIANTS)]._asdict()
    given = {field: getattr(self, field) for field in Size._fields}
    known.update({field: value for field, value in given.items() if value is not None})
    missing = [field for field in Size._fields if field not in known]
    if missing:
      choices = ', '.join(map(repr, VARIANTS))
      raise ValueError(f'without a variant ({choices}) ClipResNet needs {", ".join(missing)}')
    return Size(**{**known, 'blocks': tuple(known['blocks'])})

  @property
  def grid(self) -> tuple[int, int]:
    """`(height, width)` of the learned positions."""
    height, width = np.broadcast_to(self.size.image_size, 2).tolist()
    return height // STRIDE, width // STRIDE

  @nn.compact
  def __call__(self, image: Array, *, train: bool) -> Features:
    """Encodes images.

    Args:
      image: `[B, H, W, C]` float; H and W are multiples of 32.
      train: normalises by the batch's statistics instead of the kept ones, and updates those: the
        collection `batch_stats` must be mutable then.

    Returns:
      `Features` in the compute dtype: `stages`, each stage's `[B, h_i, w_i, D_i]`; `tokens`
      `[B, h * w, 32 width]`, the positions of the last, row by row; `pooled` `[B, projection]`; and
      `grid` `(h, w)`.

    Raises:
      ValueError: what are no images, not float, or of sides that 32 does not divide.
    """
    if image.ndim != 4:
      raise ValueError(f'ClipResNet takes images [B, H, W, C], not {image.shape}')
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise ValueError(f'ClipResNet takes float images, not {image.dtype}: scale them first')
    if image.shape[1] % STRIDE or image.shape[2] % STRIDE:
      raise ValueError(f'image {image.shape[1]}x{image.shape[2]} is not divisible by {STRIDE}')
    size, dtype = self.size, jnp.dtype(self.dtype)
    x = self._stem(image, train)
    stages = []
    for i, blocks in enumerate(size.blocks):
      for j in range(blocks):
        x = Block(
          size.width * 2**i,
          halved=i > 0 and j == 0,
          convolution=self.convolution,
          dtype=dtype,
          name=f'stage_{i}_block_{j}',
        )(x, train)
      stages.append(x)
    batch, *grid, features = x.shape
    pool = AttentionPool(
      self.grid,
      features // HEAD_DIM,
      size.projection,
      self.attention,
      dtype,
      name='attention_pool',
    )
    return Features(
      pooled=pool(x),
      tokens=x.reshape(batch, -1, features),
      stages=tuple(stages),
      grid=tuple(grid),
    )

  def _stem(self, x: Array, train: bool) -> Array:
    """`[B, H, W, C]` to `[B, H / 4, W / 4, width]`."""
    width, dtype = self.size.width, jnp.dtype(self.dtype)
    for i, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1)), 1):
      x = conv(f'conv_root_{i}', features, 3, stride, self.convolution, dtype)(x)
      x = nn.relu(batch_norm(f'norm_root_{i}', train, dtype)(x))
    return halve(x)

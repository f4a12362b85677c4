"""Vision Transformer. Dosovitskiy et al. 2020, arXiv:2010.11929."""

import math
from collections.abc import Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.attention import check_attention, layer_norm
from vit_jax.models.conv_stem import ConvStem
from vit_jax.models.dense import check_dtype
from vit_jax.models.features import Features
from vit_jax.models.hybrid import CONSTANTS, ResNetStem, published_stem
from vit_jax.models.interpolation import POSITION_METHODS
from vit_jax.models.patches import embed_patches
from vit_jax.models.pooling import MapHead
from vit_jax.models.positions import resample, sincos2d
from vit_jax.models.sizes import VARIANTS, Size, patch_of, size_of
from vit_jax.models.stack import REMAT, apply_blocks
from vit_jax.models.transformer import ACTIVATIONS
from vit_jax.sharding import constrain

__all__ = ['POOLINGS', 'POSITIONS', 'VARIANTS', 'Size', 'ViT']

init = nn.initializers
logical = nn.with_logical_partitioning

POOLINGS = ('token', 'mean', 'map')
POSITIONS = ('learned', 'sincos2d', 'none')


class ViT(nn.Module):
  """A transformer over the patches of an image. Dosovitskiy et al. 2020, arXiv:2010.11929.

  Attributes:
    variant: a published size and a patch, `B/16`, for a hybrid with its ResNet, `R50+B/16`; a size
      alone where `patch_size` is given; or nothing.
    patch_size: a side in pixels of the image, or `(height, width)`; over a stem, a multiple of its
      stride. None here and in the next four fields: the variant's.
    width: features of a token.
    depth: blocks.
    mlp_dim: hidden features of the MLPs.
    num_heads: attention heads; divides the width.
    conv_stem: channels of the 3x3 convolutions of stride 2 before the patches are cut, of which a
      patch sees a larger surrounding; () for none. arXiv:2106.14881.
    stem_constants: what a hybrid's ResNet adds where it divides: `flax` for the published weights,
      `timm` for those that timm has trained on.
    patch_bias: whether the embedding of the patches has a bias, which CLIP's lack (Section 2.4,
      arXiv:2103.00020, and its published code).
    pooling: `token`, a class token; `mean` over the tokens; or `map`, attention by a learned query.
      Only `token` has a class token.
    positions: `learned`, one vector a token, the class token's included; `sincos2d`, fixed and for
      any grid, none on the class token; or `none`, so that the patches have no order.
    grid: `(height, width)` of the learned positions, in patches; an image of another grid then gets
      them interpolated, so that a model can be tested at other resolutions. None: the first
      image's, and no other is taken.
    position_resize: how they are interpolated: `bicubic`, with antialiasing, `bicubic_plain` or
      `bilinear_zoom`; see `adapters.resize.resize_positions`.
    pre_norm: a LayerNorm on all tokens, with their positions, before the first block. Section 2.4,
      arXiv:2103.00020 (CLIP).
    norm_after_pooling: the last LayerNorm on the mean over the tokens, and none on these, as in the
      fine-tuning code of MAE, arXiv:2111.06377, and BEiT, arXiv:2106.08254; for `mean` alone.
    registers: learned tokens beside the patches, which no output shows. arXiv:2309.16588.
    pre_logits: features of the dense layer and tanh between pooling and head, in which the paper
      pre-trains (Section 3.1); None for none.
    dropout: probability of dropping a feature: of the embedded tokens and of each branch.
    drop_path: stochastic depth: the probability of dropping a branch of an example in the last
      block; it grows linearly from 0 in the first. One block has 0.
    patch_dropout: the share of patches, other ones for each example, that training leaves out
      before the first block, which saves their cost. Section 3.1, arXiv:2212.00794.
    layer_scale: what the factors at the end of each branch start with; None for none. `LayerScale`.
    qk_norm: LayerNorm on queries and keys; see `Attention`.
    scan: one compiled block in a loop, its parameters stacked as `blocks`; see `apply_blocks`.
    remat: what the backward pass computes again instead of keeping it: `none`, `full`, `dots`,
      `dots_no_batch`; see `REMAT`. With `scan` or without.
    attention: `auto`, `einsum`, `xla` or `cudnn`; see `Attention`.
    activation: `gelu` (exact), `gelu_tanh` or `quick_gelu`.
    ln_eps: epsilon of the LayerNorms.
    dtype: of the computation: `float32`, `bfloat16` or `float16`. Parameters are float32 always;
      the softmax and the statistics of LayerNorm too.

  Raises:
    ValueError: when built, for an unknown name, a size that is missing, a width that `num_heads`
      does not divide, a probability outside [0, 1), cuDNN in float32, or a field that the positions
      or the pooling have no use for.
  """

  variant: str = ''
  patch_size: int | tuple[int, int] | None = None
  width: int | None = None
  depth: int | None = None
  mlp_dim: int | None = None
  num_heads: int | None = None
  conv_stem: Sequence[int] = ()
  stem_constants: str = 'flax'
  patch_bias: bool = True
  pooling: str = 'token'
  positions: str = 'learned'
  grid: tuple[int, int] | None = None
  position_resize: str = 'bicubic'
  pre_norm: bool = False
  norm_after_pooling: bool = False
  registers: int = 0
  pre_logits: int | None = None
  dropout: float = 0.0
  drop_path: float = 0.0
  patch_dropout: float = 0.0
  layer_scale: float | None = None
  qk_norm: bool = False
  scan: bool = False
  remat: str = 'none'
  attention: str = 'auto'
  activation: str = 'gelu'
  ln_eps: float = 1e-6
  dtype: Any = 'float32'

  def __post_init__(self) -> None:
    check_choice('pooling', self.pooling, POOLINGS)
    check_choice('positions', self.positions, POSITIONS)
    check_choice('stem_constants', self.stem_constants, CONSTANTS)
    check_choice('position_resize', self.position_resize, POSITION_METHODS)
    check_choice('activation', self.activation, ACTIVATIONS)
    check_choice('remat', self.remat, REMAT)
    check_dtype(self.dtype)
    check_attention(self.attention, self.dtype)
    for field in ('dropout', 'drop_path', 'patch_dropout'):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f'{field} is a probability below 1, not {getattr(self, field)}')
    size = self.size
    if self.registers < 0:
      raise ValueError(f'registers must be 0 or more, got {self.registers}')
    stem, patch = self.stem, self.patch
    if stem and any(p % stem.stride for p in patch):
      raise ValueError(
        f'patch_size {patch[0]} is not a multiple of {stem.stride}, the stride of the '
        + (f'ResNet of {self.variant!r}' if isinstance(stem, ResNetStem) else 'conv_stem')
      )
    if size.width % size.num_heads:
      raise ValueError(f'width {size.width} is not divisible by num_heads {size.num_heads}')
    if self.norm_after_pooling and self.pooling != 'mean':
      raise ValueError(f"norm_after_pooling is for pooling 'mean', not {self.pooling!r}")
    if self.grid is not None:
      if self.positions != 'learned':
        raise ValueError(f"grid is for 'learned' positions; {self.positions!r} take any grid")
      if np.shape(self.grid) != (2,) or min(self.grid) < 1:
        raise ValueError(f'grid is (height, width) in patches, at least 1, not {self.grid!r}')
    super().__post_init__()

  @property
  def size(self) -> Size:
    """The variant's size, with the fields that override it."""
    return size_of(self.variant, {field: getattr(self, field) for field in Size._fields})

  @property
  def patch(self) -> tuple[int, int]:
    """Height and width of a patch, in pixels."""
    return patch_of(self.variant, self.patch_size)

  @property
  def stem(self) -> ResNetStem | ConvStem | None:
    """What the image goes through before it is cut into patches, unbound; None for nothing."""
    dtype = jnp.dtype(self.dtype)
    name, plus, _ = self.variant.partition('/')[0].rpartition('+')
    if plus and self.conv_stem:
      raise ValueError(f'{self.variant!r} has a ResNet in the place of a conv_stem')
    if plus:
      blocks, constants = published_stem(name, self.patch), self.stem_constants
      return ResNetStem(blocks, dtype=dtype, constants=constants, parent=None, name='resnet')
    if self.conv_stem:
      return ConvStem(tuple(self.conv_stem), self.ln_eps, dtype, parent=None, name='conv_stem')
    return None

  def pixel_kernel(self, params: Any) -> Array:
    """The kernel among this ViT's parameters that sees pixels, `[P, Q, C, D]`."""
    stem = self.stem
    layer = params[stem.name][stem.FIRST] if stem else params['embedding']
    return layer['kernel']

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool, keep: Array | None = None, blocks: Sequence[int] = ()
  ) -> Features:
    """Encodes images.

    Args:
      image: `[B, H, W, C]` float; H and W are multiples of the patch.
      train: drops features, branches and patches; needs the stream `dropout` where any is asked
        for.
      keep: `[B, K]` int, the patches that each example keeps, counted row by row; None for all.
      blocks: numbers of blocks whose outputs are wanted, from 0, or from the end: -1 is the last.

    Returns:
      `Features` in the compute dtype: `pooled` `[B, D]` (`[B, pre_logits]` where asked for),
      `tokens` `[B, N, D]` after the final LayerNorm, unless that comes after pooling, and `blocks`,
      an `[B, N, D]` for each that was asked for, before it. Of the K patches that were kept, where
      some were not; without grid.

    Raises:
      ValueError: an image that the patch does not divide, that is not float, or that has another
        number of patches than the learned positions without `grid`; a block that there is not.
    """
    size = self.size
    for number in blocks:
      if not -size.depth <= number < size.depth:
        raise ValueError(f'no block {number}; there are {size.depth}, from 0')
    x = self._embed(image)  # [B, h, w, D]
    batch, *grid, _ = x.shape
    x, others = self._add_positions(x.reshape(batch, -1, size.width), tuple(grid))  # [B, N, D]
    if keep is None:
      keep = self._draw_patches(batch, x.shape[1], train)
    if keep is not None:
      x = jnp.take_along_axis(x, keep[..., None], axis=1)  # [B, K, D]
    patches = x.shape[1]
    x = jnp.concatenate([*others, x], axis=1)  # [B, L, D]
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    if self.pre_norm:
      x = layer_norm('pre_norm', self.ln_eps, jnp.dtype(self.dtype))(x)
    x, after = apply_blocks(
      x,
      train,
      depth=size.depth,
      drop_path=self.drop_path,
      scan=self.scan,
      remat=self.remat,
      outputs=blocks,
      mlp_dim=size.mlp_dim,
      num_heads=size.num_heads,
      dropout=self.dropout,
      attention=self.attention,
      qk_norm=self.qk_norm,
      layer_scale=self.layer_scale,
      activation=self.activation,
      ln_eps=self.ln_eps,
      dtype=jnp.dtype(self.dtype),
    )
    norm = layer_norm('norm', self.ln_eps, jnp.dtype(self.dtype))
    if not self.norm_after_pooling:
      x = norm(x)
    return Features(
      pooled=self._pool(x, patches, norm),
      tokens=x[:, -patches:],
      blocks=tuple(b[:, -patches:] for b in after),
      grid=tuple(grid) if keep is None else None,
    )

  def _embed(self, image: Array) -> Array:
    """`[B, H, W, C]` to `[B, h, w, D]`: the patches of the image, or of its stem's feature map."""
    if image.ndim != 4:
      raise ValueError(f'ViT takes images [B, H, W, C], not {image.shape}')
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise ValueError(f'ViT takes float images, not {image.dtype}: scale them first')
    dtype = jnp.dtype(self.dtype)
    p, q = self.patch
    if image.shape[1] % p or image.shape[2] % q:
      raise ValueError(f'image {image.shape[1]}x{image.shape[2]} is not divisible by patch {p}x{q}')
    stem = self.stem
    if stem:
      image = stem.clone(parent=self)(image.astype(dtype))
      p, q = p // stem.stride, q // stem.stride
    return embed_patches(image, (p, q), self.size.width, dtype, bias=self.patch_bias)

  def _add_positions(self, x: Array, grid: tuple[int, int]) -> tuple[Array, list[Array]]:
    """Adds positions to the patches, `[B, N, D]`; also returns the tokens that come before them.

    These are the class token, which has a learned position too, and the registers, which have none.
    """
    batch, patches, width = x.shape
    others = []
    if self.pooling == 'token':
      cls = self.param('cls', logical(init.zeros, (None, None, 'embed')), (1, 1, width))
      others.append(cls)
    if self.positions == 'sincos2d':
      x = x + sincos2d(*grid, width).astype(x.dtype)
    elif self.positions == 'learned':
      pos = self._learned_positions(len(others), grid)
      x = x + pos[:, -patches:].astype(x.dtype)
      others = [token + pos[:, :1] for token in others]
    if self.registers:
      reg_init = logical(init.normal(0.02), (None, None, 'embed'))
      others.append(self.param('registers', reg_init, (1, self.registers, width)))
    return x, [jnp.broadcast_to(t.astype(x.dtype), (batch, *t.shape[1:])) for t in others]

  def _learned_positions(self, others: int, grid: tuple[int, int]) -> Array:
    """Those of `others` tokens, then of the patches of an image's grid, `[1, others + N, D]`."""
    own = grid if self.grid is None else tuple(self.grid)
    pos_init = logical(init.normal(0.02), (None, None, 'embed'))
    shape = (1, others + math.prod(own), self.size.width)
    try:
      pos = self.param('pos_embedding', pos_init, shape)
    except flax.errors.ScopeParamShapeError:
      raise ValueError(
        f'the learned positions are for another number of tokens than {own[0]}x{own[1]} patches; '
        'set grid to theirs, and they are interpolated'
      ) from None
    return resample(pos, own, grid, method=self.position_resize)

  def _draw_patches(self, batch: int, patches: int, train: bool) -> Array | None:
    """Which patches training keeps, `[B, K]`, ascending; None for all."""
    count = max(1, round(patches * (1 - self.patch_dropout)))
    if not train or count == patches:
      return None
    drawn = jax.random.uniform(self.make_rng('dropout'), (batch, patches))
    return jnp.sort(jax.lax.top_k(drawn, count)[1], axis=1)

  def _pool(self, x: Array, patches: int, norm: nn.LayerNorm) -> Array:
    """`[B, L, D]` to `[B, D]` or `[B, pre_logits]`; registers are not looked at."""
    size, dtype = self.size, jnp.dtype(self.dtype)
    if self.pooling == 'token':
      x = x[:, 0]
    elif self.pooling == 'mean':
      x = x[:, -patches:].mean(axis=1)
      if self.norm_after_pooling:
        x = norm(x)
    else:
      x = MapHead(
        size.mlp_dim,
        size.num_heads,
        self.attention,
        self.activation,
        self.ln_eps,
        dtype,
        name='map_head',
      )(x[:, -patches:])
    if self.pre_logits:
      x = nn.Dense(
        self.pre_logits,
        dtype=dtype,
        kernel_init=logical(init.lecun_normal(), ('embed', None)),
        bias_init=logical(init.zeros, (None,)),
        name='pre_logits',
      )(x)
      x = nn.tanh(x)
    return constrain(x, 'batch', None)

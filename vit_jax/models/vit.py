"""Vision Transformer. Dosovitskiy et al. 2020, arXiv:2010.11929."""

from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.attention import IMPLEMENTATIONS, Attention
from vit_jax.models.features import Features
from vit_jax.models.positions import sincos2d
from vit_jax.models.transformer import ACTIVATIONS, Block, Mlp, layer_norm

init = nn.initializers
logical = nn.with_logical_partitioning

POOLINGS = ('token', 'mean', 'map')
POSITIONS = ('learned', 'sincos2d')
DTYPES = ('float32', 'bfloat16', 'float16')


class Size(NamedTuple):
  """The shape of a transformer."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int


# B, L, H: Table 1, arXiv:2010.11929. Ti, S, g, G: Table 2, arXiv:2106.04560.
VARIANTS = {
  'Ti': Size(192, 12, 768, 3),
  'S': Size(384, 12, 1536, 6),
  'B': Size(768, 12, 3072, 12),
  'L': Size(1024, 24, 4096, 16),
  'H': Size(1280, 32, 5120, 16),
  'g': Size(1408, 40, 6144, 16),
  'G': Size(1664, 48, 8192, 16),
}


class MapHead(nn.Module):
  """Attention pooling: one learned query, then an MLP beside a residual.

  Zhai et al. 2021, Section 3.2, arXiv:2106.04560; the MLP as in its published code.

  Attributes:
    mlp_dim: hidden features of the MLP.
    num_heads: heads; divides the width.
    attention: `auto`, `einsum`, `xla` or `cudnn`; see `Attention`.
    activation: of the MLP.
    ln_eps: epsilon of the LayerNorm.
    dtype: of the computation.
  """

  mlp_dim: int
  num_heads: int
  attention: str = 'auto'
  activation: str = 'gelu'
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[B, L, D]` to `[B, D]`."""
    probe_init = logical(init.xavier_uniform(), (None, None, 'embed'))
    probe = self.param('probe', probe_init, (1, 1, x.shape[-1]))
    probe = probe.astype(x.dtype)
    x = Attention(self.num_heads, self.attention, self.dtype, name='attention')(probe, x)
    y = layer_norm('norm', self.ln_eps, self.dtype)(x)
    x = x + Mlp(self.mlp_dim, 0.0, self.activation, self.dtype, name='mlp')(y, False)
    return x[:, 0]


class ViT(nn.Module):
  """A transformer over the patches of an image. Dosovitskiy et al. 2020, arXiv:2010.11929.

  Attributes:
    variant: a published size and a patch, `B/16`; a size alone where `patch_size` is given; or
      nothing.
    patch_size: a side in pixels, or `(height, width)`. None here and in the next four fields: the
      variant's.
    width: features of a token.
    depth: blocks.
    mlp_dim: hidden features of the MLPs.
    num_heads: attention heads; divides the width.
    pooling: `token`, a class token; `mean` over the tokens; or `map`, attention by a learned query.
      Only `token` has a class token.
    positions: `learned`, one vector a token, the class token's included, so that the grid is fixed
      by the first image; or `sincos2d`, fixed and for any grid, none on the class token.
    pre_logits: features of the dense layer and tanh between pooling and head, in which the paper
      pre-trains (Section 3.1); None for none.
    dropout: probability of dropping a feature: of the embedded tokens and of each branch.
    drop_path: stochastic depth: the probability of dropping a branch of an example in the last
      block; it grows linearly from 0 in the first. One block has 0.
    attention: `auto`, `einsum`, `xla` or `cudnn`; see `Attention`.
    activation: `gelu` (exact), `gelu_tanh` or `quick_gelu`.
    ln_eps: epsilon of the LayerNorms.
    dtype: of the computation: `float32`, `bfloat16` or `float16`. Parameters are float32 always;
      the softmax and the statistics of LayerNorm too.

  Raises:
    ValueError: when built, for an unknown name, a size that is missing, a width that `num_heads`
      does not divide, a probability outside [0, 1), or cuDNN in float32.
  """

  variant: str = ''
  patch_size: int | tuple[int, int] | None = None
  width: int | None = None
  depth: int | None = None
  mlp_dim: int | None = None
  num_heads: int | None = None
  pooling: str = 'token'
  positions: str = 'learned'
  pre_logits: int | None = None
  dropout: float = 0.0
  drop_path: float = 0.0
  attention: str = 'auto'
  activation: str = 'gelu'
  ln_eps: float = 1e-6
  dtype: Any = 'float32'

  def __post_init__(self) -> None:
    check_choice('pooling', self.pooling, POOLINGS)
    check_choice('positions', self.positions, POSITIONS)
    check_choice('attention', self.attention, IMPLEMENTATIONS)
    check_choice('activation', self.activation, ACTIVATIONS)
    check_choice('dtype', getattr(self.dtype, '__name__', str(self.dtype)), DTYPES)
    if self.attention == 'cudnn' and jnp.dtype(self.dtype) == jnp.float32:
      raise ValueError("attention 'cudnn' needs dtype 'bfloat16' or 'float16', not 'float32'")
    for field in ('dropout', 'drop_path'):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f'{field} is a probability below 1, not {getattr(self, field)}')
    size = self.size
    if min(self.patch) < 1:
      raise ValueError(f'patch_size must be at least 1, got {self.patch_size}')
    if size.width % size.num_heads:
      raise ValueError(f'width {size.width} is not divisible by num_heads {size.num_heads}')
    super().__post_init__()

  @property
  def size(self) -> Size:
    """The variant's size, with the fields that override it."""
    name = self.variant.partition('/')[0]
    base = [None] * len(Size._fields)
    if name:
      check_choice('variant', name, VARIANTS)
      base = VARIANTS[name]
    fields = [getattr(self, field) for field in Size._fields]
    size = Size(*(b if f is None else f for f, b in zip(fields, base, strict=True)))
    missing = [field for field, value in size._asdict().items() if value is None]
    if missing:
      choices = ', '.join(map(repr, VARIANTS))
      raise ValueError(f'without a variant ({choices}) ViT needs {", ".join(missing)}')
    if min(size) < 1:
      raise ValueError(f'ViT needs sizes of at least 1, got {size._asdict()}')
    return size

  @property
  def patch(self) -> tuple[int, int]:
    """Height and width of a patch, in pixels."""
    patch = self.patch_size
    if patch is None:
      text = self.variant.partition('/')[2]
      if not text.isdecimal():
        raise ValueError(f"no patch size in {self.variant!r}: write 'B/16', or set patch_size")
      patch = int(text)
    return (patch, patch) if isinstance(patch, int) else tuple(patch)

  @nn.compact
  def __call__(self, image: Array, *, train: bool) -> Features:
    """Encodes images.

    Args:
      image: `[B, H, W, C]` float; H and W are multiples of the patch.
      train: drops features and branches; needs the stream `dropout` where either is asked for.

    Returns:
      `Features` in the compute dtype: `pooled` `[B, D]` (`[B, pre_logits]` where asked for), and
      `tokens` `[B, N, D]` after the final LayerNorm.

    Raises:
      ValueError: an image that the patch does not divide, that is not float, or that has another
        number of patches than the learned positions.
    """
    size, dtype = self.size, jnp.dtype(self.dtype)
    x = self._embed(image)  # [B, h, w, D]
    batch, *grid, _ = x.shape
    x = self._add_positions(x.reshape(batch, -1, size.width), tuple(grid))  # [B, L, D]
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    for i in range(size.depth):
      rate = self.drop_path * i / max(size.depth - 1, 1)
      block = Block(
        size.mlp_dim,
        size.num_heads,
        dropout=self.dropout,
        attention=self.attention,
        activation=self.activation,
        ln_eps=self.ln_eps,
        dtype=dtype,
        name=f'block_{i}',
      )
      x = block(x, train, rate)
    x = layer_norm('norm', self.ln_eps, dtype)(x)
    tokens = x[:, 1:] if self.pooling == 'token' else x
    return Features(pooled=self._pool(x), tokens=tokens, grid=tuple(grid))

  def _embed(self, image: Array) -> Array:
    """`[B, H, W, C]` to `[B, h, w, D]`: a convolution whose stride is its kernel, as one matmul."""
    if image.ndim != 4:
      raise ValueError(f'ViT takes images [B, H, W, C], not {image.shape}')
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise ValueError(f'ViT takes float images, not {image.dtype}: scale them first')
    batch, height, width, channels = image.shape
    p, q = self.patch
    if height % p or width % q:
      raise ValueError(f'image {height}x{width} is not divisible by patch {p}x{q}')
    dtype = jnp.dtype(self.dtype)
    patches = image.astype(dtype).reshape(batch, height // p, p, width // q, q, channels)
    return nn.Einsum(
      (p, q, channels, self.size.width),
      'bhpwqc,pqcd->bhwd',
      dtype=dtype,
      kernel_init=logical(init.lecun_normal(), (None, None, None, 'embed')),
      bias_init=logical(init.zeros, ('embed',)),
      name='embedding',
    )(patches)

  def _add_positions(self, x: Array, grid: tuple[int, int]) -> Array:
    """`[B, N, D]` to `[B, L, D]`: puts the class token before the patches and adds positions."""
    if self.positions == 'sincos2d':
      x = x + sincos2d(*grid, x.shape[-1]).astype(x.dtype)
    if self.pooling == 'token':
      cls = self.param('cls', logical(init.zeros, (None, None, 'embed')), (1, 1, x.shape[-1]))
      cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
      x = jnp.concatenate([cls, x], axis=1)
    if self.positions == 'learned':
      pos_init = logical(init.normal(0.02), (None, None, 'embed'))
      try:
        pos = self.param('pos_embedding', pos_init, (1, *x.shape[1:]))
      except flax.errors.ScopeParamShapeError:
        raise ValueError(
          f'the learned positions are for another number of tokens than {grid[0]}x{grid[1]} patches'
        ) from None
      x = x + pos.astype(x.dtype)
    return x

  def _pool(self, x: Array) -> Array:
    """`[B, L, D]` to `[B, D]` or `[B, pre_logits]`."""
    size, dtype = self.size, jnp.dtype(self.dtype)
    if self.pooling == 'token':
      x = x[:, 0]
    elif self.pooling == 'mean':
      x = x.mean(axis=1)
    else:
      x = MapHead(
        size.mlp_dim,
        size.num_heads,
        self.attention,
        self.activation,
        self.ln_eps,
        dtype,
        name='map_head',
      )(x)
    if self.pre_logits:
      x = nn.Dense(
        self.pre_logits,
        dtype=dtype,
        kernel_init=logical(init.lecun_normal(), ('embed', None)),
        bias_init=logical(init.zeros, (None,)),
        name='pre_logits',
      )(x)
      x = nn.tanh(x)
    return x

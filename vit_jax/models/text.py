"""Encoders of text: a transformer over tokens, and a bag of words."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.attention import check_attention, layer_norm
from vit_jax.models.dense import check_dtype
from vit_jax.models.features import Features
from vit_jax.models.pooling import MapHead
from vit_jax.models.sizes import Size
from vit_jax.models.stack import REMAT, apply_blocks
from vit_jax.models.transformer import ACTIVATIONS, Mlp
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning

# The text towers of the ViT-B and of the ViT-L. Table 20, arXiv:2103.00020.
VARIANTS = {'B': Size(512, 12, 2048, 8), 'L': Size(768, 12, 3072, 12)}
POOLINGS = ('end', 'last', 'first', 'mean', 'map')


class TextTransformer(nn.Module):
  """A transformer over the tokens of a text. Section 2.4, arXiv:2103.00020 (CLIP).

  The defaults are CLIP's, but for `variant`, `vocab_size`, `end_id` and `projection`, which are to
  be given, and `quick_gelu`, with which OpenAI's own weights were trained. SigLIP's
  (arXiv:2303.15343) is not causal, pools `last`, looks at padding too, has a `projection_bias`,
  `gelu_tanh` and a `ln_eps` of 1e-6.

  Token embeddings start normal with deviation 0.02, positions with 0.01, and the projection with
  the width's inverse root, as in CLIP's published code; the blocks as `Block` has it.

  Attributes:
    vocab_size: tokens there are.
    variant: `B`, with 512 features, or `L`, with 768; or nothing, with the next four fields.
    width: features of a token. None here and in the next three fields: the variant's.
    depth: blocks.
    mlp_dim: hidden features of the MLPs. Without a variant, None: four times the width.
    num_heads: attention heads; divides the width.
    context: the longest text, in tokens: that many positions are learned.
    causal: whether each token looks at itself and those before it alone.
    pooling: `end`, the token at the first `end_id`, or the last that is no padding in a text
      without; `last` and `first` of all positions; `mean` over what is no padding; or `map`,
      attention by a learned query.
    end_id: the token that ends a text; whatever follows its first occurrence is padding. None: no
      token does.
    pad_id: a token that is padding wherever it stands; None for none. CLIP's tokenizer fills up
      with 0, which is a word too: there, leave it out.
    mask_padding: whether no token looks at padding. CLIP has no need of it, since what follows the
      end is not seen from there, and SigLIP looks at padding. Without causality the features
      depend on how much padding there is, unless this is set. Not with `map`.
    projection: features of a linear layer after pooling; None for no such layer.
    projection_bias: whether that layer has a bias.
    dropout: probability of dropping a feature: of the embedded tokens and of each branch.
    drop_path: stochastic depth of the last block; see `ViT`.
    scan: one compiled block in a loop; see `apply_blocks`.
    remat: `none`, `full`, `dots`, `dots_no_batch`; see `REMAT`.
    attention: `auto`, `einsum`, `xla` or `cudnn`; see `Attention`.
    activation: `gelu` (exact), `gelu_tanh` or `quick_gelu`.
    ln_eps: epsilon of the LayerNorms.
    dtype: of the computation: `float32`, `bfloat16` or `float16`. Parameters are float32 always;
      the softmax and the statistics of LayerNorm too.

  Raises:
    ValueError: when built, for an unknown name, a size that is missing or below 1, a width that
      `num_heads` does not divide, a probability outside [0, 1), cuDNN in float32, or a field that
      another one leaves without use.
  """

  vocab_size: int
  variant: str = ''
  width: int | None = None
  depth: int | None = None
  mlp_dim: int | None = None
  num_heads: int | None = None
  context: int = 77
  causal: bool = True
  pooling: str = 'end'
  end_id: int | None = None
  pad_id: int | None = None
  mask_padding: bool = False
  projection: int | None = None
  projection_bias: bool = False
  dropout: float = 0.0
  drop_path: float = 0.0
  scan: bool = False
  remat: str = 'none'
  attention: str = 'auto'
  activation: str = 'gelu'
  ln_eps: float = 1e-5
  dtype: Any = 'float32'

  def __post_init__(self) -> None:
    check_choice('pooling', self.pooling, POOLINGS)
    check_choice('activation', self.activation, ACTIVATIONS)
    check_choice('remat', self.remat, REMAT)
    check_dtype(self.dtype)
    check_attention(self.attention, self.dtype)
    for field in ('dropout', 'drop_path'):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f'{field} is a probability below 1, not {getattr(self, field)}')
    size = self.size
    if size.width % size.num_heads:
      raise ValueError(f'width {size.width} is not divisible by num_heads {size.num_heads}')
    if min(self.vocab_size, self.context) < 1:
      raise ValueError(
        f'vocab_size and context must be at least 1, got {self.vocab_size} and {self.context}'
      )
    check_tokens(self.vocab_size, self.end_id, self.pad_id)
    if self.pooling == 'end' and self.end_id is None:
      raise ValueError("pooling 'end' needs end_id, the token that ends a text")
    if self.mask_padding and self.end_id is None and self.pad_id is None:
      raise ValueError('mask_padding needs end_id or pad_id, which say what padding is')
    if self.mask_padding and self.pooling == 'map':
      raise ValueError("mask_padding is not for pooling 'map', which looks at every token")
    check_projection(self.projection, self.projection_bias)
    super().__post_init__()

  @property
  def size(self) -> Size:
    """The variant's size, with the fields that override it."""
    known = {}
    if self.variant:
      known = VARIANTS[check_choice('variant', self.variant, VARIANTS)]._asdict()
    given = {field: getattr(self, field) for field in Size._fields}
    known.update({field: value for field, value in given.items() if value is not None})
    if 'width' in known:
      known.setdefault('mlp_dim', 4 * known['width'])
    missing = [field for field in Size._fields if field not in known]
    if missing:
      choices = ', '.join(map(repr, VARIANTS))
      raise ValueError(f'without a variant ({choices}) TextTransformer needs {", ".join(missing)}')
    if min(known.values()) < 1:
      raise ValueError(f'TextTransformer needs sizes of at least 1, got {known}')
    return Size(**known)

  @nn.compact
  def __call__(self, text: Array, *, train: bool) -> Features:
    """Encodes texts.

    Args:
      text: `[B, L]` int, tokens of which the last ones may be padding; L is at most `context`.
      train: drops features and branches; needs the stream `dropout` where any is asked for.

    Returns:
      `Features` in the compute dtype: `pooled` `[B, D]` (`[B, projection]` where asked for),
      `tokens` `[B, L, D]` after the final LayerNorm, and `mask` `[B, L]`, False on padding.

    Raises:
      ValueError: what are no tokens, or more than `context`.
    """
    size, dtype = self.size, jnp.dtype(self.dtype)
    mask = find_text(text, self.end_id, self.pad_id)
    x = embed_tokens(text, self.vocab_size, size.width, dtype)  # [B, L, D]
    length = text.shape[1]
    if length > self.context:
      raise ValueError(f'a text of {length} tokens is longer than the context of {self.context}')
    pos_init = logical(init.normal(0.01), (None, None, 'embed'))
    pos = self.param('pos_embedding', pos_init, (1, self.context, size.width))
    x = x + pos[:, :length].astype(dtype)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x, _ = apply_blocks(
      x,
      train,
      depth=size.depth,
      drop_path=self.drop_path,
      scan=self.scan,
      remat=self.remat,
      mask=mask if self.mask_padding else None,
      mlp_dim=size.mlp_dim,
      num_heads=size.num_heads,
      dropout=self.dropout,
      attention=self.attention,
      activation=self.activation,
      ln_eps=self.ln_eps,
      dtype=dtype,
      causal=self.causal,
    )
    x = layer_norm('norm', self.ln_eps, dtype)(x)
    pooled = constrain(self._pool(x, mask), 'batch', None)
    if self.projection is not None:
      pooled = project(pooled, self.projection, self.projection_bias, dtype)
    return Features(pooled=pooled, tokens=x, mask=mask)

  def _pool(self, x: Array, mask: Array) -> Array:
    """`[B, L, D]` to `[B, D]`."""
    if self.pooling == 'end':
      position = jnp.where(mask, jnp.arange(mask.shape[1]), 0).max(1)  # [B]
      return jnp.take_along_axis(x, position[:, None, None], axis=1)[:, 0]
    if self.pooling == 'mean':
      return mean_of(x, mask)
    if self.pooling == 'map':
      return MapHead(
        self.size.mlp_dim,
        self.size.num_heads,
        self.attention,
        self.activation,
        self.ln_eps,
        jnp.dtype(self.dtype),
        name='map_head',
      )(x)
    return x[:, 0 if self.pooling == 'first' else -1]


class CBOW(nn.Module):
  """A continuous bag of words: the mean of its tokens' embeddings, and layers on it.

  Mikolov et al. 2013, Section 3.1, arXiv:1301.3781; as an encoder of texts Figure 3,
  arXiv:2103.00020. Embeddings and projection start as `TextTransformer`'s.

  Attributes:
    vocab_size: tokens there are.
    width: features of a token.
    mlp_dim: hidden features of an MLP on the mean; None for no MLP.
    projection: features of a linear layer, which comes last; None for no such layer.
    projection_bias: whether that layer has a bias.
    end_id: the token that ends a text, which is what stands before and at its first occurrence;
      None: no token does.
    pad_id: a token that is padding wherever it stands; None for none.
    dropout: probability of dropping a feature of the MLP.
    activation: `gelu` (exact), `gelu_tanh` or `quick_gelu`; of the MLP.
    dtype: of the computation: `float32`, `bfloat16` or `float16`. Parameters are float32.

  Raises:
    ValueError: when built, for an unknown name, a size below 1, or a field that another one leaves
      without use.
  """

  vocab_size: int
  width: int = 512
  mlp_dim: int | None = None
  projection: int | None = None
  projection_bias: bool = False
  end_id: int | None = None
  pad_id: int | None = None
  dropout: float = 0.0
  activation: str = 'gelu'
  dtype: Any = 'float32'

  def __post_init__(self) -> None:
    check_choice('activation', self.activation, ACTIVATIONS)
    check_dtype(self.dtype)
    if min(self.vocab_size, self.width) < 1:
      raise ValueError(
        f'vocab_size and width must be at least 1, got {self.vocab_size} and {self.width}'
      )
    if self.mlp_dim is not None and self.mlp_dim < 1:
      raise ValueError(f'mlp_dim must be at least 1, got {self.mlp_dim}')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'dropout is a probability below 1, not {self.dropout}')
    check_tokens(self.vocab_size, self.end_id, self.pad_id)
    check_projection(self.projection, self.projection_bias)
    super().__post_init__()

  @nn.compact
  def __call__(self, text: Array, *, train: bool) -> Features:
    """Encodes texts of any length.

    Args:
      text: `[B, L]` int.
      train: drops features; needs the stream `dropout` where that is asked for.

    Returns:
      `Features` in the compute dtype: `pooled` `[B, width]` (`[B, projection]` where asked for), 0
      before the layers for a text of padding; `tokens` `[B, L, width]`, the embeddings; and `mask`
      `[B, L]`, False on padding.

    Raises:
      ValueError: what are no tokens.
    """
    dtype = jnp.dtype(self.dtype)
    mask = find_text(text, self.end_id, self.pad_id)
    tokens = embed_tokens(text, self.vocab_size, self.width, dtype)
    x = mean_of(tokens, mask)
    if self.mlp_dim is not None:
      x = Mlp(self.mlp_dim, self.dropout, self.activation, dtype, name='mlp')(x, train)
    if self.projection is not None:
      x = project(x, self.projection, self.projection_bias, dtype)
    return Features(pooled=x, tokens=tokens, mask=mask)


def check_tokens(vocab_size: int, end_id: int | None, pad_id: int | None) -> None:
  """Raises `ValueError` for special tokens that are one and the same, or not in the vocabulary."""
  for field, token in (('end_id', end_id), ('pad_id', pad_id)):
    if token is not None and not 0 <= token < vocab_size:
      raise ValueError(f'{field} is a token below vocab_size {vocab_size}, not {token}')
  if end_id is not None and end_id == pad_id:
    raise ValueError(
      f'end_id and pad_id are both {end_id}; leave pad_id out: what follows the end is padding'
    )


def check_projection(features: int | None, bias: bool) -> None:
  """Raises `ValueError` for a projection without features, or a bias without a projection."""
  if features is not None and features < 1:
    raise ValueError(f'projection must be at least 1, got {features}')
  if bias and features is None:
    raise ValueError('projection_bias needs a projection')


def find_text(text: Array, end_id: int | None, pad_id: int | None) -> Array:
  """What is no padding, `[B, L]` bool: neither behind the first `end_id` nor a `pad_id`."""
  if text.ndim != 2 or not jnp.issubdtype(text.dtype, jnp.integer):
    raise ValueError(f'texts are integers [B, L], not {text.dtype} {list(text.shape)}')
  mask = jnp.ones(text.shape, bool)
  if end_id is not None:
    ends = text == end_id
    mask = jnp.cumsum(ends, 1) - ends == 0  # No end before.
  return mask if pad_id is None else mask & (text != pad_id)


def embed_tokens(text: Array, vocab_size: int, width: int, dtype: Any) -> Array:
  """`[B, L]` to `[B, L, width]`, NaN for no token; to be called inside a compact method."""
  # Looked up in float32: in another dtype the whole table would be converted first.
  table_init = logical(init.normal(0.02), (None, 'embed'))
  table = nn.Embed(vocab_size, width, embedding_init=table_init, name='token_embedding')
  # Gathered whole: of a table that is split by features XLA would look up every device's texts.
  vectors = jnp.take(constrain(table.embedding, None, None), text, axis=0)  # [B, L, width]
  return constrain(vectors.astype(dtype), 'batch', None, None)


def mean_of(x: Array, mask: Array) -> Array:
  """The mean over those of `[B, L, D]` where `mask` is True, `[B, D]`; 0 of none."""
  total = jnp.where(mask[..., None], x, 0).sum(1, dtype=jnp.float32)
  return (total / jnp.maximum(mask.sum(1, keepdims=True), 1)).astype(x.dtype)


def project(x: Array, features: int, bias: bool, dtype: Any) -> Array:
  """`[B, D]` to `[B, features]`; to be called inside a compact method."""
  projected = nn.Dense(
    features,
    use_bias=bias,
    dtype=dtype,
    kernel_init=logical(init.normal(x.shape[-1] ** -0.5), ('embed', None)),
    bias_init=logical(init.zeros, (None,)),
    name='projection',
  )(x)
  return constrain(projected, 'batch', None)

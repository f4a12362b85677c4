"""From the tokens of some patches to the pixels of all. He et al. 2021, arXiv:2111.06377."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.models.attention import layer_norm
from vit_jax.models.positions import sincos2d
from vit_jax.models.stack import apply_blocks
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning


class MaskedDecoder(nn.Module):
  """Transformer blocks over visible tokens and, in each masked place, one learned token.

  "MAE decoder" in Section 3, arXiv:2111.06377: fixed positions, a final LayerNorm and a linear
  layer to the pixels of a patch, which starts at zero here.

  Attributes:
    width: features of a token; a multiple of 4, which `num_heads` divides.
    depth: blocks.
    num_heads: attention heads.
    scan: see `apply_blocks`.
    remat: see `apply_blocks`.
    attention: see `Attention`.
    activation: of the MLPs, which are four times as wide.
    ln_eps: epsilon of the LayerNorms.
    dtype: of the computation.
  """

  width: int
  depth: int
  num_heads: int
  scan: bool = False
  remat: str = 'none'
  attention: str = 'auto'
  activation: str = 'gelu'
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    others: Array | None,
    visible: Array,
    grid: tuple[int, int],
    outputs: int,
    train: bool,
  ) -> Array:
    """Decodes.

    Args:
      tokens: `[B, K, D]`, those of each example's K visible patches, in the patches' order.
      others: `[B, M, D]`, tokens without position beside them, such as the class token; or None.
      visible: `[B, N]` bool, K of each row are True.
      grid: `(h, w)` with `h * w == N`.
      outputs: numbers a patch.
      train: passed on to the blocks.

    Returns:
      `[B, N, outputs]` in the compute dtype.
    """
    count = visible.shape[1]
    x = tokens if others is None else jnp.concatenate([others, tokens], axis=1)
    x = self._dense(self.width, init.xavier_uniform(), 'embed')(x)
    others, x = jnp.split(x, [x.shape[1] - tokens.shape[1]], axis=1)
    mask_init = logical(init.normal(0.02), (None, None, 'embed'))
    mask = self.param('mask_token', mask_init, (1, 1, self.width)).astype(x.dtype)
    place = jnp.maximum(jnp.cumsum(visible, axis=1) - 1, 0)  # [B, N], of a visible patch's token
    x = jnp.where(visible[..., None], jnp.take_along_axis(x, place[..., None], axis=1), mask)
    x = x + sincos2d(*grid, self.width).astype(x.dtype)  # [B, N, width]
    x, _ = apply_blocks(
      jnp.concatenate([others, x], axis=1),
      train,
      depth=self.depth,
      drop_path=0.0,
      scan=self.scan,
      remat=self.remat,
      mlp_dim=4 * self.width,
      num_heads=self.num_heads,
      attention=self.attention,
      activation=self.activation,
      ln_eps=self.ln_eps,
      dtype=self.dtype,
    )
    x = layer_norm('norm', self.ln_eps, self.dtype)(x[:, -count:])
    return constrain(self._dense(outputs, init.zeros, 'pixels')(x), 'batch', None, None)

  def _dense(self, features: int, kernel_init: Any, name: str) -> nn.Dense:
    return nn.Dense(
      features,
      dtype=self.dtype,
      kernel_init=logical(kernel_init, ('embed', None)),
      bias_init=logical(init.zeros, (None,)),
      name=name,
    )

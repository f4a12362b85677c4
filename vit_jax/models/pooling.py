"""From tokens to one vector an example."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.models.attention import Attention, layer_norm
from vit_jax.models.transformer import Mlp

init = nn.initializers
logical = nn.with_logical_partitioning


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
    x = Attention(
      self.num_heads, self.attention, ln_eps=self.ln_eps, dtype=self.dtype, name='attention'
    )(probe, x)
    y = layer_norm('norm', self.ln_eps, self.dtype)(x)
    x = x + Mlp(self.mlp_dim, 0.0, self.activation, self.dtype, name='mlp')(y, False)
    return x[:, 0]

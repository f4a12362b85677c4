"""The pre-norm transformer block that every transformer here is made of."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.attention import Attention, layer_norm
from vit_jax.models.dense import Weights, dense, materialized
from vit_jax.sharding import constrain

init = nn.initializers
logical = nn.with_logical_partitioning


def _gelu(x: Array, approximate: bool) -> Array:
  return nn.gelu(x.astype(jnp.float32), approximate=approximate).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Array, approximate: bool) -> Array:
  """GELU (arXiv:1606.08415), in float32: CPUs would round every operation in it to 16 bits.

  For the gradient `x` alone is kept, in a scan too, where XLA does not choose what is.
  """
  return _gelu(x, approximate)


gelu.defvjp(
  lambda x, approximate: (_gelu(x, approximate), x),
  lambda approximate, x, g: jax.vjp(lambda x: _gelu(x, approximate), x)[1](g),
)


ACTIVATIONS = {
  'gelu': lambda x: gelu(x, False),
  'gelu_tanh': lambda x: gelu(x, True),
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # CLIP's
}


def drop_path(x: Array, rate: float | Array, rng: Array) -> Array:
  """Stochastic depth: drops whole examples and scales the others. arXiv:1603.09382.

  Args:
    x: `[B, ...]`, the output of a residual branch.
    rate: the probability that an example's branch is dropped, below 1.
    rng: a key.

  Returns:
    An array like `x` with `x`'s expectation.
  """
  keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape[:1] + (1,) * (x.ndim - 1))
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


@jax.custom_vjp
def compute_gradient_once(x: Array) -> Array:
  """The identity, for a residual stream: XLA's CPU backend then computes its gradient once.

  That gradient is a sum over all later branches. XLA fuses the sum into each of its consumers, two
  a branch, so that the work grows with the square of the depth: the backward pass of a ViT of width
  128 and depth 6 took 200 ms instead of 80 (`benchmarks/residual_gradient.py`). Its CPU backend
  drops `optimization_barrier` before it fuses; a conditional stays. Other backends see nothing.
  """
  return x


compute_gradient_once.defvjp(
  lambda x: (x, None),
  lambda _, g: (jax.lax.platform_dependent(g, cpu=materialized, default=lambda g: g),),
)


class Mlp(nn.Module):
  """Two dense layers. Eq. 3, arXiv:2010.11929; initialised as in its published code.

  Attributes:
    mlp_dim: hidden features.
    dropout: probability of dropping a hidden or an output feature.
    activation: `gelu`, `gelu_tanh` or `quick_gelu`.
    dtype: of the computation.
  """

  mlp_dim: int
  dropout: float = 0.0
  activation: str = 'gelu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """`[..., D]` to `[..., D]`."""
    check_choice('activation', self.activation, ACTIVATIONS)
    width = x.shape[-1]
    small = init.normal(1e-6)
    fc_1 = Weights((width, self.mlp_dim), ('embed', 'mlp'), bias_init=small, name='fc_1')
    fc_2 = Weights((self.mlp_dim, width), ('mlp', 'embed'), bias_init=small, name='fc_2')
    rows = ('batch', *(None,) * (x.ndim - 2))
    x = constrain(dense(x, *fc_1(), self.dtype), *rows, 'mlp')
    x = ACTIVATIONS[self.activation](x)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = constrain(dense(x, *fc_2(), self.dtype), *rows, None)
    return nn.Dropout(self.dropout)(x, deterministic=not train)


class LayerScale(nn.Module):
  """Multiplies each feature by a learned factor. Section 2.1, arXiv:2103.17239.

  Attributes:
    init_value: of all factors; small, so that a deep network starts close to the identity.
    dtype: of the computation.
  """

  init_value: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[..., D]` to `[..., D]`."""
    scale_init = logical(init.constant(self.init_value), ('embed',))
    return x * self.param('scale', scale_init, x.shape[-1:]).astype(self.dtype)


class Block(nn.Module):
  """Attention, then an MLP, each after a LayerNorm, beside a residual. Eq. 2-3, arXiv:2010.11929.

  Attributes:
    mlp_dim: hidden features of the MLP.
    num_heads: heads; divides the width.
    dropout: probability of dropping a feature of either branch.
    attention: `auto`, `einsum`, `xla` or `cudnn`; see `Attention`.
    qk_norm: see `Attention`.
    layer_scale: what `LayerScale` at the end of both branches starts with; None for none.
    activation: of the MLP.
    ln_eps: epsilon of the LayerNorms.
    dtype: of the computation.
    causal: whether each token looks at itself and those before it alone.
  """

  mlp_dim: int
  num_heads: int
  dropout: float = 0.0
  attention: str = 'auto'
  qk_norm: bool = False
  layer_scale: float | None = None
  activation: str = 'gelu'
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: Array,
    train: bool,
    drop_path_rate: float | Array = 0.0,
    mask: Array | None = None,
  ) -> Array:
    """`[B, L, D]` to `[B, L, D]`; the branches of an example are dropped with `drop_path_rate`.

    No token looks at those where `mask`, `[B, L]`, is False; None for none.
    """
    y = layer_norm('norm_1', self.ln_eps, self.dtype)(x)
    y = Attention(
      self.num_heads,
      self.attention,
      self.qk_norm,
      self.ln_eps,
      self.dtype,
      self.causal,
      name='attention',
    )(y, mask=mask)
    y = nn.Dropout(self.dropout)(y, deterministic=not train)
    x = self._add(x, y, 'scale_1', train, drop_path_rate)
    y = layer_norm('norm_2', self.ln_eps, self.dtype)(x)
    y = Mlp(self.mlp_dim, self.dropout, self.activation, self.dtype, name='mlp')(y, train)
    return self._add(x, y, 'scale_2', train, drop_path_rate)

  def _add(self, x: Array, y: Array, name: str, train: bool, rate: float | Array) -> Array:
    """The residual `x` and its branch `y`, scaled and, in training, dropped."""
    if self.layer_scale is not None:
      y = LayerScale(self.layer_scale, self.dtype, name=name)(y)
    if train and not (isinstance(rate, float) and rate == 0.0):
      y = drop_path(y, rate, self.make_rng('dropout'))
    return compute_gradient_once(constrain(x + y, 'batch', None, None))

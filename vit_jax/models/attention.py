"""Multi-head attention, with the implementation chosen by one field."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from vit_jax.arrays import Array
from vit_jax.choices import check_choice
from vit_jax.models.dense import (
  PRODUCT,
  Weights,
  dense,
  dense_backward,
  dense_forward,
  on_cpu,
)
from vit_jax.sharding import constrain, on_shards

# `auto` is `einsum`. Forward and backward on 2 CPU cores, einsum, the softmax written out, and xla:
# 35.5, 33.4, 40.8 ms at [B, L, H, Dh] = [16, 197, 6, 64] in float32, 21.6, 28.9, 35.4 in bfloat16.
IMPLEMENTATIONS = ('auto', 'einsum', 'xla', 'cudnn')

init = nn.initializers
logical = nn.with_logical_partitioning


def check_attention(implementation: str, dtype: Any) -> None:
  """Raises `ValueError` for an unknown implementation, or one that lacks the dtype."""
  check_choice('attention', implementation, IMPLEMENTATIONS)
  if implementation == 'cudnn' and jnp.dtype(dtype) == jnp.float32:
    raise ValueError("attention 'cudnn' needs dtype 'bfloat16' or 'float16', not 'float32'")


def layer_norm(
  name: str, epsilon: float, dtype: Any, *, axis: str = 'embed', bias: bool = True
) -> nn.LayerNorm:
  """A LayerNorm over the last axis, its statistics in float32, with its logical axis named."""
  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    use_bias=bias,
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels where activations have a large mean.
    scale_init=logical(init.ones, (axis,)),
    bias_init=logical(init.zeros, (axis,)),
    name=name,
  )


class Attention(nn.Module):
  """Multi-head attention. Vaswani et al. 2017, Section 3.2.2, arXiv:1706.03762.

  Attributes:
    num_heads: heads; divides the width.
    implementation: `einsum` is `attend`, and sows the weights where they are asked for; `xla` and
      `cudnn` are `jax.nn.dot_product_attention`'s, of which `cudnn` needs a GPU and `bfloat16` or
      `float16`. `auto` is `einsum`.
    qk_norm: whether each head's queries and keys go through a LayerNorm, which keeps the logits of
      large models from growing. Section 2, arXiv:2302.05442.
    ln_eps: epsilon of these LayerNorms.
    dtype: of the computation. Parameters are float32.
    causal: whether each row of `x` looks at itself and those before it alone; without context.
    features: of the output; None for as many as `x` has.
  """

  num_heads: int
  implementation: str = 'auto'
  qk_norm: bool = False
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32
  causal: bool = False
  features: int | None = None

  @nn.compact
  def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
    """Lets each row of `x` look at the rows of `context`, or of `x` itself.

    Args:
      x: `[B, L, D]`, or `[1, L, D]` with a context: the same queries for every example.
      context: `[B, M, D]`.
      mask: `[B, M]` bool, False on rows that are not to be looked at; None for all. Where there is
        nothing to look at, the weighted mean of the values is 0.

    Returns:
      `[B, L, features]`. The `einsum` path sows the weights, `[B, H, L, M]` float32, as
      `attention_weights` under `intermediates`.

    Raises:
      ValueError: an unknown implementation, a width that `num_heads` does not divide, or a context
        for causal attention.
    """
    check_choice('attention', self.implementation, IMPLEMENTATIONS)
    width = x.shape[-1]
    if width % self.num_heads:
      raise ValueError(f'width {width} is not divisible by num_heads {self.num_heads}')
    if self.causal and context is not None:
      raise ValueError('causal attention has no context: its order is that of its own rows')
    if context is None:
      q, k, v = self._project(x, ('query', 'key', 'value'))  # [B, L, H, Dh]
    else:
      (q,) = self._project(x, ('query',))  # [B or 1, L, H, Dh]
      k, v = self._project(context, ('key', 'value'))  # [B, M, H, Dh]
    if self.qk_norm:
      q = layer_norm('query_norm', self.ln_eps, self.dtype, axis='head_dim', bias=False)(q)
      k = layer_norm('key_norm', self.ln_eps, self.dtype, axis='head_dim', bias=False)(k)
    q = jnp.broadcast_to(q, k.shape[:1] + q.shape[1:])
    if self.implementation in ('auto', 'einsum'):
      out = self._einsum(q, k, v, mask)  # [B, L, H, Dh]
    else:
      out = self._fused(q, k, v, mask)
    weights = Weights(
      (*out.shape[2:], self.features or width),
      ('heads', 'head_dim', 'embed'),
      kernel_init=init.xavier_uniform(in_axis=(0, 1), out_axis=2),
      name='out',
    )
    return constrain(dense(out, *weights(), self.dtype), 'batch', None, None)

  def _project(self, x: Array, names: tuple[str, ...]) -> tuple[Array, ...]:
    """`[B, L, D]` to `[B, L, H, Dh]` for each name, in one product over kernels of their own.

    On TPUs attention then reads what this writes with fewer copies (`benchmarks/tpu_step.py`).
    """
    width = x.shape[-1]
    shape = (width, self.num_heads, width // self.num_heads)
    weights = (
      Weights(
        shape,
        ('embed', 'heads', 'head_dim'),
        bias_ndim=2,
        kernel_init=init.xavier_uniform(in_axis=0, out_axis=(1, 2)),
        name=name,
      )
      for name in names
    )
    kernels, biases = map(jnp.stack, zip(*(weight() for weight in weights), strict=True))
    heads = project(*(array.astype(self.dtype) for array in (x, kernels, biases)))
    heads = checkpoint_name(heads, PRODUCT)
    return tuple(constrain(x, 'batch', None, 'heads', None) for x in heads)

  def _einsum(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    q = q * q.shape[-1] ** -0.5  # Eq. 1, arXiv:1706.03762; fewer numbers to scale than the logits.
    seen = None if mask is None else mask[:, None, None]  # [B, 1, 1, M]
    if self.causal:
      past = jnp.tri(q.shape[1], dtype=bool)[None, None]  # [1, 1, L, L]
      seen = past if seen is None else past & seen
    if self.is_mutable_collection('intermediates'):
      self.sow('intermediates', 'attention_weights', jax.nn.softmax(_logits(q, k), where=seen))
    return attend(q, k, v, seen)

  def _fused(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    seen = mask
    if mask is not None:
      # cuDNN takes no smaller one.
      seen = jnp.broadcast_to(mask[:, None, None], (len(q), 1, q.shape[1], k.shape[1]))
    out = jax.nn.dot_product_attention(
      q, k, v, mask=seen, is_causal=self.causal, implementation=self.implementation
    )
    if mask is None:
      return out
    # Of a row without anything to look at it gives the mean over all.
    some = jnp.cumsum(mask, 1) > 0 if self.causal else mask.any(1, keepdims=True)  # [B, L or 1]
    return jnp.where(some[..., None, None], out, 0)


def _project(x: Array, kernels: Array, biases: Array) -> tuple[Array, ...]:
  out = jnp.einsum('bld,ndhk->nblhk', x, kernels)
  return tuple(one + bias for one, bias in zip(out, biases, strict=True))


def _project_forward(x: Array, kernels: Array, biases: Array) -> tuple[Array, ...]:
  out = dense_forward(x, jnp.moveaxis(kernels, 0, 1), biases)  # [B, L, n, H, Dh]
  return tuple(jnp.moveaxis(out, 2, 0))


def _project_backward(
  arguments: tuple[Array, ...], g: tuple[Array, ...]
) -> tuple[Array, Array, Array]:
  x, kernels, biases = arguments
  arguments = x, jnp.moveaxis(kernels, 0, 1), biases
  d_x, d_kernels, d_biases = dense_backward(arguments, jnp.stack(g, 2))
  return d_x, jnp.moveaxis(d_kernels, 1, 0), d_biases


# From [B, L, D], kernels [n, D, H, Dh] and biases [n, H, Dh] to n of [B, L, H, Dh].
project = on_cpu(_project, _project_forward, _project_backward)


@jax.custom_vjp
def attend(q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
  """Means of the values, weighted by the softmax of the queries' products with the keys.

  Sums, exponentials and the softmax are in float32, but of the `[L, M]` matrices nothing is kept or
  moved in it that can be in the values' dtype: the weights are left unnormalised, at most 1, and
  rounded; their sum divides the output instead. The gradient is that of arXiv:2205.14135, Appendix
  B.4, whose sum over keys runs over the output's features. No forward-mode differentiation.

  Args:
    q: `[B, L, H, Dh]`, already scaled.
    k: `[B, M, H, Dh]`.
    v: `[B, M, H, Dv]`.
    seen: bool that broadcasts to `[B, H, L, M]`: which keys each query looks at; None for all.

  Returns:
    `[B, L, H, Dv]`, in the values' dtype; 0 for a query that looks at no key.
  """
  return _attend(q, k, v, seen)[0]


def _dot(equation: str, a: Array, b: Array) -> Array:
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _logits(q: Array, k: Array, seen: Array | None = None) -> Array:
  logits = _dot('blhk,bmhk->bhlm', q, k)
  return logits if seen is None else jnp.where(seen, logits, -jnp.inf)


def _laid_out(x: Array, order: tuple[int, ...], *names: str | None) -> Array:
  """The identity; on TPUs with the axes in memory in `order`, the last along the lanes.

  Left to itself, XLA copies matrices of weights from one layout to another. It would gather what
  is split by heads, whose logical axes are `names`, to lay it out.
  """

  def lay(x: Array) -> Array:
    return on_shards(lambda x: with_layout_constraint(x, Layout(order)), x, *names)

  return jax.lax.platform_dependent(x, tpu=lay, default=lambda x: x)


def _tokens_last(x: Array) -> Array:
  """`[B, L, H, K]`, in memory as `[H, B, K, L]`, as the projection leaves it."""
  return _laid_out(x, (2, 0, 3, 1), 'batch', None, 'heads', None)


def _keys_last(x: Array) -> Array:
  """`[B, H, L, M]`, in memory so."""
  return _laid_out(x, (0, 1, 2, 3), 'batch', 'heads', None, None)


def _largest(q: Array, k: Array, seen: Array | None, logits: Array) -> Array:
  """The largest logit of each row, `[B, H, L, 1]`.

  On TPUs from a product of its own, into which XLA fuses the maximum, as it then fuses the
  exponential into the other one: twice the product takes less time than to move the logits.
  """
  largest = jax.lax.platform_dependent(
    q,
    k,
    seen,
    logits,
    tpu=lambda q, k, seen, _: _keys_last(_logits(*jax.lax.optimization_barrier((q, k)), seen)).max(
      -1, keepdims=True
    ),
    default=lambda q, k, seen, logits: logits.max(-1, keepdims=True),
  )
  # Finite: that of a query which looks at no key is taken from -inf.
  return largest if seen is None else jnp.maximum(largest, jnp.finfo(jnp.float32).min)


def _attend(q: Array, k: Array, v: Array, seen: Array | None) -> tuple[Array, tuple[Array, ...]]:
  q, k, v = map(_tokens_last, (q, k, v))
  logits = _keys_last(_logits(q, k, seen))
  weights = jnp.exp(logits - _largest(q, k, seen, logits))  # [B, H, L, M]
  total = weights.sum(-1).swapaxes(1, 2)[..., None]  # [B, L, H, 1]
  if seen is not None:
    total = jnp.where(total > 0, total, 1)
  weights = _keys_last(weights.astype(v.dtype))
  out = (_dot('bhlm,bmhk->blhk', weights, v) / total).astype(v.dtype)
  return out, (q, k, v, weights, total, out)


def _attend_gradient(kept: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array, None]:
  q, k, v, weights, total, out = kept
  g = g.astype(jnp.float32) / total
  mean = (g * out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)[..., None]  # [B, H, L, 1]
  g = _tokens_last(g.astype(v.dtype))
  d_logits = weights.astype(jnp.float32) * (_dot('blhk,bmhk->bhlm', g, v) - mean)
  d_logits = _keys_last(d_logits.astype(v.dtype))
  d_q = _dot('bhlm,bmhk->blhk', d_logits, k)
  d_k = _dot('bhlm,blhk->bmhk', d_logits, q)
  d_v = _dot('bhlm,blhk->bmhk', weights, g)
  return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


attend.defvjp(_attend, _attend_gradient)

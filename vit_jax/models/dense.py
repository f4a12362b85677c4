"""Products with weights: the formula, and what XLA's CPU backend needs to compute it fast."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vit_jax.arrays import Array
from vit_jax.choices import check_choice

DTYPES = ('float32', 'bfloat16', 'float16')  # of a computation
# What a policy of rematerialization knows a product by: it does not look into a custom gradient.
PRODUCT = 'product'

init = nn.initializers
logical = nn.with_logical_partitioning


def check_dtype(dtype: Any) -> None:
  """Raises `ValueError` for a dtype, or the name of one, that no computation is in."""
  check_choice('dtype', getattr(dtype, '__name__', str(dtype)), DTYPES)


class Weights(nn.Module):
  """The parameters of a layer that `dense` applies.

  Attributes:
    shape: of the kernel: inputs, then outputs.
    axes: logical names of the kernel's axes.
    bias_ndim: how many axes, the last ones of the kernel, are the bias's.
    kernel_init: of the kernel.
    bias_init: of the bias.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  bias_ndim: int = 1
  kernel_init: Callable[..., Array] = init.xavier_uniform()
  bias_init: Callable[..., Array] = init.zeros

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    """The kernel and the bias, float32."""
    kernel = self.param('kernel', logical(self.kernel_init, self.axes), self.shape)
    bias_init = logical(self.bias_init, self.axes[-self.bias_ndim :])
    return kernel, self.param('bias', bias_init, self.shape[-self.bias_ndim :])


def materialized(x: Array) -> Array:
  """The identity; XLA's CPU backend computes `x` once, and folds it into nothing that reads it.

  It drops `optimization_barrier` before it fuses; a conditional stays. For gradients: where the
  first number is NaN, and training ends, the others change their sign.
  """
  # Which branch it is cannot be known when compiling.
  first = x[(0,) * x.ndim]
  return jax.lax.cond(jnp.isnan(first), jnp.negative, lambda x: x, x)


def on_cpu(
  plain: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any]
) -> Callable[..., Any]:
  """`plain`, which CPUs compute in another way. No forward-mode differentiation.

  Args:
    plain: of arrays; differentiated by JAX.
    forward: the same values.
    backward: from the tuple of arguments and the gradient by the result to those by each argument.
  """

  @jax.custom_vjp
  def function(*arguments: Array) -> Any:
    return jax.lax.platform_dependent(*arguments, cpu=forward, default=plain)

  def gradient(arguments: tuple[Array, ...], g: Any) -> tuple[Array, ...]:
    return jax.lax.platform_dependent(
      arguments, g, cpu=backward, default=lambda arguments, g: jax.vjp(plain, *arguments)[1](g)
    )

  function.defvjp(lambda *arguments: (function(*arguments), arguments), gradient)
  return function


def _dense(x: Array, kernel: Array, bias: Array) -> Array:
  inputs = kernel.ndim - bias.ndim
  axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
  return jax.lax.dot_general(x, kernel, (axes, ((), ()))) + bias


def _matrices(x: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
  """`[M, K]` and `[K, N]`."""
  kernel = kernel.reshape(-1, bias.size)
  return x.reshape(-1, kernel.shape[0]), kernel


def _dot(a: Array, b: Array) -> Array:
  """`[M, K]` times `[K, N]`, in float32; for a result of 16 bits CPUs would convert both first."""
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _transposed(x: Array) -> Array:
  """`[N, M]` of `[M, N]`; in 16 bits moved in memory, since the fast product takes no other."""
  return x.T if x.dtype == jnp.float32 else materialized(x.T)


def dense_forward(x: Array, kernel: Array, bias: Array) -> Array:
  """`dense` for CPUs."""
  outputs = x.shape[: x.ndim + bias.ndim - kernel.ndim] + bias.shape
  return (_dot(*_matrices(x, kernel, bias)) + bias.reshape(-1)).astype(x.dtype).reshape(outputs)


def dense_backward(arguments: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
  """The gradients of `dense` for CPUs. The bias's sum is a product, which is faster than a sum."""
  a, b = _matrices(*arguments)
  g = g.reshape(-1, b.shape[1])
  ones = jnp.ones((1, g.shape[0]), g.dtype)
  parts = _dot(g, _transposed(b)), _dot(_transposed(a), g), _dot(ones, g)
  return tuple(
    part.astype(x.dtype).reshape(x.shape) for part, x in zip(parts, arguments, strict=True)
  )


_apply = on_cpu(_dense, dense_forward, dense_backward)


def dense(x: Array, kernel: Array, bias: Array, dtype: Any) -> Array:
  """A linear layer: `[..., *inputs]` to `[..., *outputs]`.

  On CPUs sums are in float32 whatever the dtype, and rounded once.

  Args:
    x: `[..., *inputs]`.
    kernel: `[*inputs, *outputs]`.
    bias: `[*outputs]`.
    dtype: of the computation.
  """
  return checkpoint_name(_apply(*(array.astype(dtype) for array in (x, kernel, bias))), PRODUCT)

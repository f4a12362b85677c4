"""The linear head of a classifier."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

logical = nn.with_logical_partitioning


def linear_head(
  outputs: int, *, bias: float = 0.0, dtype: Any = jnp.float32, name: str | None = None
) -> nn.Dense:
  """A layer of zeros: all outputs start equal, and a loss over them at its chance value.

  Args:
    outputs: K.
    bias: that all of them start with.
    dtype: of the computation.
    name: of the layer, in a compact method.
  """
  return nn.Dense(
    outputs,
    dtype=dtype,
    kernel_init=logical(nn.initializers.zeros, ('embed', 'classes')),
    bias_init=logical(nn.initializers.constant(bias), ('classes',)),
    name=name,
  )

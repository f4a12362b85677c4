"""The two types that everything here is written in, and the one way to make a vector's length 1."""

import jax
import jax.numpy as jnp

Array = jax.Array
# Arrays whose leading axis is the global batch: image, label, id, ... and in evaluation `_mask`.
Batch = dict[str, Array]


def l2_normalize(x: Array, eps: float = 1e-12) -> Array:
  """`x / |x|` along the last axis, float32; zero stays zero, with finite gradients.

  Args:
    x: `[..., D]`.
    eps: below this squared length `x` is divided by the root of `eps` instead.
  """
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))

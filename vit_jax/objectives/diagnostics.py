"""How far from collapse embeddings are: numbers to log while a method without labels trains."""

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, l2_normalize

SAMPLE = 1024  # examples of a batch that pairs and eigenvalues are computed from


def alignment(embeddings: Array) -> Array:
  """The mean squared distance between views of one example, on the sphere.

  Eq. 2, arXiv:2005.10242, with alpha = 2; 0 where views agree, 2 where they are unrelated.

  Args:
    embeddings: `[B, V, D]`, V at least 2.

  Returns:
    `[B]` float32.
  """
  z = l2_normalize(embeddings)
  views = z.shape[1]
  # The sum over pairs of |x - y|^2 = 2 - 2 x.y, from the length of the sum of all views.
  together = (jnp.sum(jnp.sum(z, axis=1) ** 2, axis=-1) - jnp.sum(z * z, axis=(1, 2))) / 2
  return 2 - 2 * together / (views * (views - 1) / 2)


def spread(embeddings: Array) -> dict[str, Array]:
  """How embeddings of different examples fill their space.

  Args:
    embeddings: `[B, D]`; of more than 1024, as many evenly spaced ones are looked at.

  Returns:
    `feature_std`: the standard deviation of the normalised embeddings over the batch, averaged over
    the dimensions and times sqrt(D): near 1 where they fill the sphere, 0 at collapse (Section 4.1,
    arXiv:2011.10566). `effective_rank`: exp of the entropy of the singular values of the centred
    embeddings as shares of their sum, 1 to D (Roy & Vetterli 2007; arXiv:2210.02885); those below a
    thousandth of the largest count as 0.
    `uniformity`: log of the mean of exp(-2 |x - y|^2) over pairs of examples on the sphere, at best
    near -4, 0 at collapse (Eq. 3, arXiv:2005.10242). Float32 scalars without gradients.
  """
  size, dim = embeddings.shape
  sample = jax.lax.stop_gradient(embeddings[:: -(-size // SAMPLE)])
  z = l2_normalize(sample)
  count = len(z)
  squared = 2 - 2 * jnp.matmul(z, z.T, precision='highest')  # [n, n]
  pairs = jnp.where(jnp.eye(count, dtype=bool), 0.0, jnp.exp(-2 * squared))
  return {
    'feature_std': jnp.mean(jnp.std(z, axis=0)) * dim**0.5,
    'effective_rank': effective_rank(sample),
    'uniformity': jnp.log(jnp.sum(pairs) / max(count * (count - 1), 1) + 1e-30),
  }


def effective_rank(x: Array) -> Array:
  """Of `x [N, D]`, centred here; a scalar. See `spread`."""
  x = x.astype(jnp.float32)
  x -= jnp.mean(x, axis=0)
  small = (
    x.T if len(x) > x.shape[1] else x
  )  # Both products have the same eigenvalues but for zeros.
  squares = jnp.linalg.eigvalsh(jnp.matmul(small, small.T, precision='highest'))
  # What rounding leaves of an eigenvalue of 0 would count by its root.
  values = jnp.sqrt(jnp.where(squares > 1e-6 * squares[-1], squares, 0.0))
  shares = values / jnp.maximum(jnp.sum(values), 1e-12)
  return jnp.exp(-jnp.sum(shares * jnp.log(jnp.maximum(shares, 1e-12))))

"""Classification losses: arrays to one loss an example, in float32 whatever the compute dtype."""

import jax
import jax.numpy as jnp
import optax

from vit_jax.arrays import Array


def targets(label: Array, num_classes: int, smoothing: float = 0.0) -> Array:
  """Target probabilities.

  Args:
    label: `[B]` class numbers, or `[B, K]` probabilities or multi-hot labels.
    num_classes: K.
    smoothing: share of each target that is spread evenly over the K classes (Szegedy et al. 2015,
      arXiv:1512.00567, section 7).

  Returns:
    `[B, K]` float32.
  """
  if label.ndim == 1:
    label = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
  label = label.astype(jnp.float32)
  return label * (1 - smoothing) + smoothing / num_classes


def softmax_cross_entropy(logits: Array, label: Array, *, smoothing: float = 0.0) -> Array:
  """Cross-entropy of the softmax of `logits`.

  Args:
    logits: `[B, K]`.
    label: `[B]` class numbers or `[B, K]` probabilities.
    smoothing: label smoothing.

  Returns:
    `[B]` float32, in nats.
  """
  logits = logits.astype(jnp.float32)
  return optax.softmax_cross_entropy(logits, targets(label, logits.shape[-1], smoothing))


def sigmoid_cross_entropy(logits: Array, label: Array, *, smoothing: float = 0.0) -> Array:
  """Binary cross-entropy summed over the classes, for labels that do not exclude each other.

  Args:
    logits: `[B, K]`.
    label: `[B]` class numbers or `[B, K]` multi-hot labels.
    smoothing: label smoothing.

  Returns:
    `[B]` float32, in nats.
  """
  logits = logits.astype(jnp.float32)
  return jnp.sum(
    optax.sigmoid_binary_cross_entropy(logits, targets(label, logits.shape[-1], smoothing)), axis=-1
  )


LOSSES = {'softmax': softmax_cross_entropy, 'sigmoid': sigmoid_cross_entropy}

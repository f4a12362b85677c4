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


def kl_divergence(logits: Array, teacher: Array, *, temperature: float = 1.0) -> Array:
  """How far a student's softmax is from its teacher's: KL(teacher || student), times T^2.

  Hinton et al. 2015, arXiv:1503.02531, Section 2: the factor keeps the size of the gradients. With
  T = 1 it is Eq. 1 of arXiv:2106.05237.

  Args:
    logits: `[B, K]`, the student's.
    teacher: `[B, K]`, the teacher's logits.
    temperature: T, which both are divided by.

  Returns:
    `[B]` float32, in nats, at least 0.
  """
  student, teacher = (
    jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, teacher)
  )
  return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


LOSSES = {'softmax': softmax_cross_entropy, 'sigmoid': sigmoid_cross_entropy}

"""Multinomial logistic regression from features to classes, on the devices in float32.

For any N examples x with classes y, the objective is the mean cross-entropy of softmax(x W + b) in
nats, plus l2 / 2 times the sum of the squares of W; the bias b is free. scikit-learn's
`LogisticRegression` minimises the same with C = 1 / (N l2). A label below 0 leaves an example out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.arrays import Array
from vit_jax.evaluators import apply
from vit_jax.losses import classification

HISTORY = 20  # steps that L-BFGS estimates the curvature from
PATIENCE = 10  # steps without a lower loss after which float32 can do no better
BLOCK = 8192  # examples classified at a time


class Fit(NamedTuple):
  """A classifier, and how near it is to the minimum.

  Attributes:
    weights: [D + 1, K] float32; the last row is the bias.
    loss: the objective.
    gradient: the largest entry of its gradient, in absolute value.
    steps: how many were made.
    converged: whether `gradient` came down to the tolerance.
  """

  weights: np.ndarray
  loss: float
  gradient: float
  steps: int
  converged: bool


Solve = Callable[..., Fit]  # `fit`, or what is called like it


def fit(
  features: Any,
  labels: Any,
  num_classes: int,
  l2: float,
  start: np.ndarray | None = None,
  *,
  mesh: Mesh | None = None,
  max_steps: int = 1000,
  tolerance: float = 1e-5,
) -> Fit:
  """Minimises the objective by L-BFGS with a line search (strong Wolfe conditions).

  Without `l2`, or for a class that no example has, there is no minimum, but an infimum that the
  weights approach on their way to infinity; the gradient then still comes down to the tolerance.

  Args:
    features: [N, D] float, on the scale of 1; or what `place` made of them.
    labels: [N] int, below `num_classes`.
    num_classes: K.
    l2: the weight of the squared parameters.
    start: [D + 1, K] weights to start from; None is zeros.
    mesh: splits the examples over its devices; None uses one device.
    max_steps: at most so many.
    tolerance: stops where no entry of the gradient is larger.
  """
  mesh = mesh or _one_device()
  features, labels = place(features, labels, mesh)
  start = _start(start, features, num_classes)
  made = apply.jit(_lbfgs, mesh)(features, labels, start, l2, max_steps, tolerance)
  return _fit(made, tolerance)


def sgd(
  features: Any,
  labels: Any,
  num_classes: int,
  l2: float = 0.0,
  start: np.ndarray | None = None,
  *,
  mesh: Mesh | None = None,
  epochs: int = 90,
  batch_size: int = 4096,
  learning_rate: float | None = None,
  seed: int = 0,
  tolerance: float = 1e-5,
) -> Fit:
  """Lowers the objective as SimCLR trains its linear classifier: Appendix B.6, arXiv:2002.05709.

  Nesterov's momentum of 0.9, no weight decay (an `l2` of 0), a learning rate of 0.1 times
  the batch size / 256, 90 epochs; the cosine that brings it to 0 is that of the code released with
  the paper. It differs in that weights start from zeros, and that features are computed once:
  there are no random crops and flips.

  Args:
    features: as of `fit`.
    labels: as of `fit`.
    num_classes: K.
    l2: as of `fit`.
    start: as of `fit`.
    mesh: as of `fit`.
    epochs: passes over the examples, each in an order of its own; a rest that does not fill a batch
      is left out.
    batch_size: examples a step; all of them where they are fewer.
    learning_rate: None is 0.1 times the batch size / 256.
    seed: of the order.
    tolerance: what counts as converged; it stops nothing.
  """
  mesh = mesh or _one_device()
  features, labels = place(features, labels, mesh)
  count = int(apply.jit(_count, mesh)(labels))
  batch_size = min(batch_size, count)
  if learning_rate is None:
    learning_rate = 0.1 * batch_size / 256
  start = _start(start, features, num_classes)
  run = apply.jit(_sgd(count, batch_size, epochs), mesh)
  return _fit(run(features, labels, start, l2, learning_rate, seed), tolerance)


def predict(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Classes [N] of features [N, D]; of equal logits the lowest."""
  blocks = [features[i : i + BLOCK] for i in range(0, len(features), BLOCK)]
  return np.concatenate([(x @ weights[:-1] + weights[-1]).argmax(1) for x in blocks])


def accuracy(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
  """The share of right answers, from features [N, D] and labels [N]."""
  return float(np.mean(predict(features, weights) == labels))


def choose(
  train: tuple[Any, Any],
  validation: tuple[np.ndarray, np.ndarray],
  num_classes: int,
  l2: Sequence[float],
  *,
  mesh: Mesh | None = None,
  solve: Solve = fit,
) -> tuple[float, Fit]:
  """Fits with each l2, and takes that with the best accuracy on `validation`.

  As in Appendix A.3 of CLIP, arXiv:2103.00020, but for the search: a plain list, from the
  strongest to the weakest, each fit from the weights of the last. Of equally good ones the
  strongest.

  Args:
    train: features [N, D] and labels [N].
    validation: likewise.
    num_classes: K.
    l2: those to choose from.
    mesh: as of `fit`.
    solve: `fit`, `sgd`, or either with other arguments bound.

  Returns:
    The l2, and its fit.
  """
  mesh = mesh or _one_device()
  placed = place(*train, mesh)
  best, last = (-1.0, 0.0, None), None
  for strength in sorted(l2, reverse=True):
    last = solve(*placed, num_classes, strength, None if last is None else last.weights, mesh=mesh)
    right = accuracy(*validation, last.weights)
    if right > best[0]:
      best = right, strength, last
  return best[1], best[2]


def place(features: Any, labels: Any, mesh: Mesh) -> tuple[Array, Array]:
  """Puts examples on the devices, once for several fits; what is there already stays.

  Args:
    features: [N, D].
    labels: [N].
    mesh: splits them; a padding of examples left out makes that come out even.
  """
  if isinstance(features, jax.Array):
    return features, labels
  shards = sharding.batch_shards(mesh)
  missing = -len(labels) % shards
  features = np.pad(np.asarray(features, np.float32), ((0, missing), (0, 0)))
  labels = np.pad(np.asarray(labels, np.int32), (0, missing), constant_values=-1)
  placed = sharding.batch_sharding(mesh)
  return tuple(
    jax.make_array_from_callback(x.shape, placed, x.__getitem__) for x in (features, labels)
  )


def _one_device() -> Mesh:
  return sharding.make_mesh(dict(data=1), jax.local_devices()[:1])


def _start(start: np.ndarray | None, features: Array, num_classes: int) -> np.ndarray:
  return np.zeros((features.shape[1] + 1, num_classes), np.float32) if start is None else start


def _count(labels: Array) -> Array:
  return jnp.sum(labels >= 0)


def _objective(weights: Array, features: Array, labels: Array, l2: Any) -> Array:
  # By default TPUs multiply in bfloat16, in which no line search ends.
  logits = jnp.matmul(features, weights[:-1], precision=jax.lax.Precision.HIGHEST) + weights[-1]
  known = labels >= 0
  losses = classification.softmax_cross_entropy(logits, jnp.maximum(labels, 0))
  mean = jnp.sum(jnp.where(known, losses, 0)) / jnp.sum(known)
  return mean + l2 / 2 * jnp.sum(jnp.square(weights[:-1]))


def _lbfgs(
  features: Array, labels: Array, start: Array, l2: Array, max_steps: Array, tolerance: Array
) -> tuple[Array, ...]:
  def objective(weights: Array) -> Array:
    return _objective(weights, features, labels, l2)

  tx = optax.lbfgs(memory_size=HISTORY)
  value_and_grad = optax.value_and_grad_from_state(objective)

  def goes_on(carry: Any) -> Array:
    _, state, steps, idle = carry
    gradient = jnp.max(jnp.abs(optax.tree.get(state, 'grad')))
    return (steps == 0) | ((gradient > tolerance) & (steps < max_steps) & (idle < PATIENCE))

  def step(carry: Any) -> Any:
    weights, state, steps, idle = carry
    value, gradient = value_and_grad(weights, state=state)
    updates, state = tx.update(
      gradient, state, weights, value=value, grad=gradient, value_fn=objective
    )
    idle = jnp.where(optax.tree.get(state, 'value') < value, 0, idle + 1)
    return optax.apply_updates(weights, updates), state, steps + 1, idle

  weights, _, steps, _ = jax.lax.while_loop(goes_on, step, (start, tx.init(start), 0, 0))
  return weights, steps, *jax.value_and_grad(objective)(weights)


@functools.cache  # one function is compiled once
def _sgd(count: int, batch_size: int, epochs: int) -> Callable[..., tuple[Array, ...]]:
  batches = count // batch_size  # an epoch

  def run(
    features: Array, labels: Array, start: Array, l2: Array, learning_rate: Array, seed: Array
  ) -> tuple[Array, ...]:
    schedule = optax.cosine_decay_schedule(1.0, epochs * batches)
    tx = optax.chain(optax.trace(0.9, nesterov=True), optax.scale_by_schedule(schedule))
    (known,) = jnp.nonzero(labels >= 0, size=count)

    def step(carry: Any, rows: Array) -> tuple[Any, None]:
      weights, state = carry
      gradient = jax.grad(_objective)(weights, features[rows], labels[rows], l2)
      updates, state = tx.update(gradient, state)
      return (weights - learning_rate * updates, state), None

    def epoch(carry: Any, number: Array) -> tuple[Any, None]:
      key = jax.random.fold_in(jax.random.key(seed), number)
      rows = jax.random.permutation(key, known)[: batches * batch_size]
      return jax.lax.scan(step, carry, rows.reshape(batches, batch_size))

    (weights, _), _ = jax.lax.scan(epoch, (start, tx.init(start)), jnp.arange(epochs))
    made = jax.value_and_grad(_objective)(weights, features, labels, l2)
    return weights, jnp.asarray(epochs * batches), *made

  return run


def _fit(made: tuple[np.ndarray, ...], tolerance: float) -> Fit:
  weights, steps, loss, gradient = made
  largest = float(np.max(np.abs(gradient)))
  return Fit(weights, float(loss), largest, int(steps), largest <= tolerance)

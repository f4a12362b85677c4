"""Gradient accumulation: the step of a large batch in the memory of a small one."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from vit_jax import sharding
from vit_jax.arrays import Array, Batch

# From parameters, model state, batch and key to gradients, metrics (scalars) and model state.
Gradient = Callable[[Any, Any, Batch, Array], tuple[Any, dict[str, Array], Any]]


def accumulate(gradient: Gradient, count: int) -> Gradient:
  """`gradient` over `count` micro-batches, one after another; gradients and metrics are averaged.

  Equal to that of the whole batch where the loss is a mean over examples. Each micro-batch draws
  random numbers of its own, and finds the model state as the one before it left it.
  """
  if count == 1:
    return gradient

  def accumulated(
    params: Any, model_state: Any, batch: Batch, rng: Array
  ) -> tuple[Any, dict[str, Array], Any]:
    def add(carry: Any, row: Any) -> tuple[Any, dict[str, Array]]:
      (total, model_state), (i, part) = carry, row
      grads, metrics, model_state = gradient(params, model_state, part, jax.random.fold_in(rng, i))
      return (jax.tree.map(jnp.add, total, grads), model_state), metrics

    start = jax.tree.map(jnp.zeros_like, params), model_state
    rows = jnp.arange(count), split(batch, count)
    (total, model_state), metrics = jax.lax.scan(add, start, rows)
    grads = jax.tree.map(lambda x: x / count, total)
    return grads, {name: jnp.mean(x, axis=0) for name, x in metrics.items()}, model_state

  return accumulated


def split(batch: Batch, count: int) -> Batch:
  """Micro-batch i takes the rows i, count + i, ...: `[B, ...]` to `[count, B / count, ...]`.

  A device holds rows that follow each other, so it keeps all of its own: nothing is moved.
  """
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0),  # [count, B / count, ...]
    batch,
  )


def join(parts: Any) -> Any:
  """The rows in their order again: `[count, B / count, ...]` to `[B, ...]`, undoing `split`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def check(count: int, objective: nn.Module, variables: Any, batch_size: int, mesh: Mesh) -> None:
  """Raises ValueError, with the reason, where micro-batches do not add up to the batch.

  Args:
    count: of micro-batches.
    objective: the method; `couples_batch` says that its loss is no mean over examples.
    variables: the objective's, by collection.
    batch_size: of the global batch.
    mesh: the devices over which the batch is split.
  """
  if count == 1:
    return
  name = type(objective).__name__
  if getattr(objective, 'couples_batch', False):
    raise ValueError(
      f'accumulate is {count}, but {name} compares the examples of a batch with each other, and'
      ' would see those of a micro-batch only; set it to 1'
    )
  if 'batch_stats' in variables:
    raise ValueError(
      f'accumulate is {count}, but {name} normalises by the statistics of a batch, and would take'
      ' those of a micro-batch; set it to 1, or choose a model without BatchNorm'
    )
  check_rows('accumulate', count, batch_size, mesh)


def check_rows(field: str, count: int, batch_size: int, mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError where a device's rows of a batch are no multiple of `count`.

  Args:
    field: what the count is called in a config.
    count: of parts.
    batch_size: of the global batch.
    mesh: the devices over which the batch is split.
  """
  shards = sharding.batch_shards(mesh)
  rows = batch_size // shards
  if rows % count:
    choices = ', '.join(str(n) for n in range(1, rows + 1) if rows % n == 0)
    raise ValueError(
      f'{field} is {count}, which does not divide the {rows} examples of a batch that each of'
      f' {shards} parts of the mesh holds; choose from {choices}'
    )

"""Bytes on each device: of what is known before compiling, and of all that XLA lays out."""

import math
from typing import Any, NamedTuple

import jax

from vit_jax.state import TrainState


class Memory(NamedTuple):
  """What a compiled step holds on each device, in bytes, as XLA lays it out.

  Attributes:
    arguments: the state and the batch.
    outputs: the new state and the metrics.
    aliased: of the outputs, what takes the place of arguments: the donated state.
    temporaries: activations, gradients and whatever else lives within a step.
    code: the program.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int

  @property
  def total(self) -> int:
    """All of it at once."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def of_compiled(compiled: jax.stages.Compiled) -> Memory:
  """What a compiled program holds on each device."""
  stats = compiled.memory_analysis()
  return Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )


def of_state(like: TrainState) -> dict[str, int]:
  """Bytes of each part of a state on one device: a sum over its arrays, without any padding.

  Args:
    like: arrays, or shapes with shardings.
  """
  return {
    'parameters': of_tree(like.params),
    'optimizer': of_tree(like.opt_state),
    'average': of_tree(like.ema),
    'model state': of_tree(like.model_state),
    'step and key': of_tree((like.step, like.rng)),
  }


def of_tree(tree: Any) -> int:
  """Bytes of a tree's arrays on one device, by their shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
